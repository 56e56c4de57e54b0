#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Training steps on GPUs beside PyTorch, in one go on one machine:

    run.py FOLDER [--ranks 2] [--rounds 2] [--ways WAY,...] [--exposed]
           [--budget SECONDS] [MODEL-BATCH...]
    run.py FOLDER --profile OUT [--ranks 2] [--ways WAY,...] [MODEL-BATCH...]

FOLDER holds gpu_training. Each round runs every way of each model once, ours
and PyTorch's in turn; what is printed are medians over all repeats of all
rounds, then the ratios, the targets and a table in markdown. MODEL-BATCH:
gpt2-16, gpt2-4, mlp-128, gpt-8; the batch is that of each GPU. Ours: the modes
of gpu_training, in one process, in which they take turns; "fused auto": that
with BRG_NCCL_SUMS=auto; "quickest": fused with BRG_CUDA_REPEATABLE=0;
"fused alone": on one GPU. PyTorch: DistributedDataParallel, eager and compiled
by torch.compile, the small ones also with its CUDA graphs (mode
reduce-overhead); of gpt2 with bf16 parameters and f32 copies in the optimizer,
as here, and (gpt2-amp) with f32 parameters under autocast.

--exposed: how long the GPU waits for reductions when its backward has ended.
--budget: what has not begun when so many seconds are over is left out, and
what runs then is stopped. --profile: where the time of a step goes, rank by
rank (kernel_times.so of FOLDER; OUT: a folder for all of it)."""
import argparse
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
# at most so many ms on two H200; at least so many times torch.compile's speed
TARGETS = {"gpt2-16": (31.0, 1.18), "gpt2-4": (10.5, None),
           "mlp-128": (0.45, None), "gpt-8": (0.9, None)}
STEPS = {"gpt2-16": 30, "gpt2-4": 60, "mlp-128": 400, "gpt-8": 200}
AUTO = {"BRG_NCCL_SUMS": "auto"}
QUICKEST = {"BRG_CUDA_REPEATABLE": "0"}
# name: the mode of gpu_training, what is set for it, on one GPU alone
OURS = {"eager": ("eager", {}, False), "compiled": ("compiled", {}, False),
        "graph": ("graph", {}, False), "fused": ("fused", {}, False),
        "graph auto": ("graph", AUTO, False),
        "fused auto": ("fused", AUTO, False),
        "quickest": ("fused", QUICKEST, False),
        "eager alone": ("eager", {}, True),
        "compiled alone": ("compiled", {}, True),
        "graph alone": ("graph", {}, True),
        "fused alone": ("fused", {}, True)}
TORCH = {"torch": [], "torch compiled": ["--compile"],
         "torch reduce-overhead": ["--compile", "--mode", "reduce-overhead"],
         "torch amp compiled": ["--compile"]}
LINE = re.compile(r"^(step_ms|host_us|exposed_us) (.*) mode (\w+)", re.M)


class Clock:
    """What is left of the time for all."""

    def __init__(self, seconds):
        self.end = time.monotonic() + seconds if seconds else None
        self.least = min(15, seconds / 4) if seconds else 0

    def left(self):
        return self.end - time.monotonic() if self.end else 1e9


def stop(process):
    """mpirun ends its ranks if it is asked to; the others go with the group."""
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        pass
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.communicate()


def output(command, settings, clock):
    """What the command printed; "" if it failed, which is said."""
    started = time.monotonic()
    limit = min(150, clock.left())
    text = " ".join(map(str, command))
    with subprocess.Popen(
            list(map(str, command)), stdout=subprocess.PIPE, text=True,
            stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
            start_new_session=True, env={**os.environ, **settings}) as process:
        try:
            out, err = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            stop(process)
            print(f"STOPPED after {limit:.0f} s: {text}", flush=True)
            return ""
    print(f"# {time.monotonic() - started:.0f} s: {text}", flush=True)
    for line in re.findall("^kernel_times: .*", err, re.M):
        print(line)
    if process.returncode:
        print(f"FAILED ({process.returncode}): {text}\n{out[-600:]}\n"
              f"{err[-1200:]}", flush=True)
        return ""
    return out


def launched(command, ranks):
    if ranks == 1:
        return list(command)
    return ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to",
            "none", "-n", ranks, *command]


def ours(args, key, names, clock):
    """Measures ways that differ in their mode only: {way: {what: values}}."""
    model, batch = key.split("-")
    modes = {OURS[name][0]: name for name in names}
    _, settings, is_alone = OURS[names[0]]
    ranks = 1 if is_alone else args.ranks
    command = [pathlib.Path(args.folder) / "gpu_training", model, batch,
               ",".join(modes), STEPS[key], 3, 0]
    if args.exposed and ranks > 1:
        command.append("exposed")
    found = {name: {} for name in names}
    for what, values, mode in LINE.findall(
            output(launched(command, ranks), settings, clock)):
        numbers = [float(v) for v in re.findall(r"[\d.]+", values)]
        found[modes[mode]].setdefault(what, []).append(numbers)
    return found


def torch(args, key, name, clock):
    model = "gpt2-amp" if "amp" in name else key.split("-")[0]
    out = output([sys.executable, HERE / "torch_step.py", model,
                  key.split("-")[1], "--ranks", args.ranks, "--steps",
                  STEPS[key], *TORCH[name]],
                 {"TORCHINDUCTOR_COMPILE_THREADS": "8"}, clock)
    return {name: {"step_ms": [[float(v)] for v in
                               re.findall(r"^([\d.]+)$", out, re.M)]}}


def ways_of(args, key):
    names = [n for n in OURS if args.ranks > 1 or not OURS[n][2]]
    names += ["torch", "torch compiled"]
    if not key.startswith("gpt2"):  # bound by launches
        names.append("torch reduce-overhead")
    if key == "gpt2-16":
        names.append("torch amp compiled")
    wanted = args.ways.split(",") if args.ways else names
    for name in wanted:
        if name not in OURS and name not in TORCH:
            sys.exit(f"'{name}' is no way: {', '.join([*OURS, *TORCH])}")
    return [n for n in names if n in wanted]


def measure(args, key, clock):
    """{way: {what: lists of numbers, one for each repeat}}."""
    groups = {}  # what one process measures
    for name in ways_of(args, key):
        kind = str(OURS[name][1:]) if name in OURS else name
        groups.setdefault(kind, []).append(name)
    found = {}
    for _ in range(args.rounds):
        for names in groups.values():
            if clock.left() < clock.least:
                print(f"LEFT OUT, the time is over: {key} {', '.join(names)}")
                continue
            new = ours(args, key, names, clock) if names[0] in OURS \
                else torch(args, key, names[0], clock)
            for name, what in new.items():
                for kind, values in what.items():
                    found.setdefault(name, {}).setdefault(kind,
                                                          []).extend(values)
    return found


def median(values, i=0):
    return statistics.median(v[i] for v in values)


def report_way(key, name, what):
    times = [v[0] for v in what["step_ms"]]
    ms = statistics.median(times)
    text = f"bench: {key:8} {name:20} {ms:9.3f} ms  " \
           f"({min(times):.3f} to {max(times):.3f})"
    if "host_us" in what:
        host = what["host_us"]
        text += f"  host {median(host):.1f} us, waits {median(host, 1):g}, " \
                f"{median(host, 2):g} bytes from the driver"
    if "exposed_us" in what:
        least, most = (median(what["exposed_us"], i) for i in (0, 1))
        text += f"  exposed {least:.0f} to {most:.0f} us: " \
                f"{0.1 * least / ms:.2f} to {0.1 * most / ms:.2f} %"
    print(text)
    return ms


def report(key, found):
    ms = {name: report_way(key, name, what) for name, what in found.items()
          if what.get("step_ms")}
    mine = {n: ms[n] for n in OURS if n in ms and not OURS[n][2]}
    if mine:
        best = min(mine, key=mine.get)
        limit, factor = TARGETS[key]
        print(f"bench: {key:8} best: {best}, {mine[best]:.3f} ms, target "
              f"{limit} ms: {'ok' if mine[best] <= limit else 'miss'}")
    for name in ms:
        if mine and name.startswith("torch"):
            text = f"bench: {key:8} {name} / {best} = {ms[name] / mine[best]:.3f}"
            if factor and name == "torch compiled":
                text += f", target {factor}: " + (
                    "ok" if ms[name] / mine[best] >= factor else "miss")
            print(text)
    for mode in "eager", "graph", "fused":
        alone = ms.get(f"{mode} alone")
        if alone and mode in ms:
            print(f"bench: {key:8} {mode}: 1 - alone / all = "
                  f"{1 - alone / ms[mode]:.4f} of a step for the other GPU")
    sys.stdout.flush()
    return ms


def table(title, rows, names, form):
    if not names:
        return
    print(f"\n{title}:\n")
    print("| model, batch | " + " | ".join(names) + " |")
    print("|---" * (len(names) + 1) + "|")
    for key, values in rows.items():
        cells = [form(values[n]) if n in values else "" for n in names]
        print(f"| `{key.replace('-', '` ')} | " + " | ".join(cells) + " |")
    sys.stdout.flush()


def tables(all_found):
    rows = {key: {n: median(w["step_ms"]) for n, w in found.items()
                  if w.get("step_ms")} for key, found in all_found.items()}
    names = [n for n in [*OURS, *TORCH] if any(n in r for r in rows.values())]
    table("ms of a step", rows, names,
          lambda v: f"{v:.2f}" if v > 5 else f"{v:.3f}")
    rows = {key: {n: [median(w["host_us"], i) for i in range(3)]
                  for n, w in found.items() if w.get("host_us")}
            for key, found in all_found.items()}
    names = [n for n in OURS if any(n in r for r in rows.values())]
    table("us of a call of the host, waits in a step", rows, names,
          lambda v: f"{v[0]:.0f}, {v[1]:g}")


# ---- Where the time goes --------------------------------------------------------

def profile(args, key, name, clock):
    """Its ranks' tables of groups as one."""
    folder = pathlib.Path(args.profile).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    mode, settings, is_alone = OURS[name]
    ranks = 1 if is_alone else args.ranks
    model, batch = key.split("-")
    base = f"{key}-{name.replace(' ', '-')}"
    for rank in range(ranks):
        (folder / f"{base}-{rank}.md").unlink(missing_ok=True)
    # mpirun does not see the library
    command = ["env", "CUDA_INJECTION64_PATH="
               f"{pathlib.Path(args.folder).resolve() / 'kernel_times.so'}",
               f"KERNEL_TIMES={folder}/{base}-%r.md",
               pathlib.Path(args.folder) / "gpu_training", model, batch, mode,
               40, 1, 0, "steps"]
    print(output(launched(command, ranks), settings, clock).strip())
    rows, heads = {}, []
    for rank in range(ranks):
        path = folder / f"{base}-{rank}.md"
        if not path.exists():
            print(f"rank {rank} wrote no {path}")
            continue
        lines = path.read_text().splitlines()
        heads.append(f"rank {rank}: {lines[0]}")
        for line in lines[4:lines.index("", 4) if "" in lines[4:] else None]:
            what, us, share = (c.strip() for c in line.strip("|").split("|"))
            rows.setdefault(what, {})[rank] = f"{us} ({share})"
    print(f"\n{key}, {name}: us of a step\n" + "\n".join(heads) + "\n")
    print("| what | " + " | ".join(f"rank {r}" for r in range(ranks)) + " |")
    print("|---" * (ranks + 1) + "|")
    for what, cells in rows.items():
        print(f"| {what} | " + " | ".join(cells.get(r, "0") for r in
                                          range(ranks)) + " |")
    print(flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("keys", nargs="*", default=list(TARGETS))
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--ways", help="of those, by name; all")
    parser.add_argument("--exposed", action="store_true")
    parser.add_argument("--budget", type=float, help="seconds for all")
    parser.add_argument("--profile", help="a folder for what each rank writes")
    args = parser.parse_intermixed_args()
    clock = Clock(args.budget)
    if args.profile:
        for key in args.keys:
            for name in (args.ways or "fused").split(","):
                profile(args, key, name, clock)
        return
    if args.no_torch:
        args.ways = ",".join(args.ways.split(",") if args.ways else OURS)
    all_found = {}
    for key in args.keys:
        all_found[key] = measure(args, key, clock)
        report(key, all_found[key])
    tables(all_found)


if __name__ == "__main__":
    main()
