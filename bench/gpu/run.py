#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Training steps on GPUs beside PyTorch, in one go on one machine:

    run.py FOLDER [--ranks 2] [--rounds 2] [--ways WAY;...] [MODEL-BATCH...]

FOLDER holds gpu_training. Each round runs every way of each model once, ours
and PyTorch's in turn; what is printed are medians over all repeats of all
rounds, then the ratios and the targets. MODEL-BATCH: gpt2-16, gpt2-4, mlp-128,
gpt-8; the batch is that of each GPU. Ours: the modes of gpu_training; "fused
nccl": that with BRG_NCCL_SUMS=nccl; "quickest": fused with
BRG_CUDA_REPEATABLE=0. PyTorch: DistributedDataParallel, eager
and compiled by torch.compile, the small ones also with its CUDA graphs (mode
reduce-overhead); of gpt2 with bf16 parameters and f32 copies in
the optimizer, as here, and (gpt2-amp) with f32 parameters under autocast."""
import argparse
import os
import pathlib
import re
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
# at most so many ms on two H200; at least so many times torch.compile's speed
TARGETS = {"gpt2-16": (31.0, 1.18), "gpt2-4": (10.5, None),
           "mlp-128": (0.45, None), "gpt-8": (0.9, None)}
STEPS = {"gpt2-16": 30, "gpt2-4": 60, "mlp-128": 400, "gpt-8": 200}
NCCL = {"BRG_NCCL_SUMS": "nccl"}
# name: the mode of gpu_training, and what is set for it
OURS = {"eager": ("eager", {}), "compiled": ("compiled", {}),
        "graph": ("graph", {}), "graph nccl": ("graph", NCCL),
        "fused": ("fused", {}), "fused nccl": ("fused", NCCL),
        "quickest": ("fused", {"BRG_CUDA_REPEATABLE": "0"})}


def numbers(command, pattern, settings=None):
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True,
                          stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
                          timeout=150, env={**os.environ, **(settings or {})})
    found = re.findall(pattern, done.stdout, re.M)
    if done.returncode or not found:
        print(f"FAILED ({done.returncode}): {' '.join(map(str, command))}\n"
              f"{done.stdout[-600:]}\n{done.stderr[-1200:]}", flush=True)
    return found


def ours(folder, key, name, ranks):
    model, batch = key.split("-")
    mode, settings = OURS[name]
    command = [pathlib.Path(folder) / "gpu_training", model, batch, mode,
               STEPS[key]]
    if ranks > 1:
        command = ["mpirun", "--allow-run-as-root", "--oversubscribe",
                   "--bind-to", "none", "-n", ranks, *command]
    return numbers(list(map(str, command)),
                   r"^step_ms ([\d.]+) queued_ms ([\d.]+)", settings)


def torch(key, model, ranks, *flags):
    return numbers([sys.executable, str(HERE / "torch_step.py"), model,
                    key.split("-")[1], "--ranks", str(ranks), "--steps",
                    str(STEPS[key]), *flags], r"^([\d.]+)$")


def ways(folder, key, ranks, exposed):
    """name: what measures it once."""
    found = {mode: lambda m=mode: ours(folder, key, m, ranks) for mode in OURS}
    if exposed and ranks > 1:
        for mode in "eager", "graph", "fused":
            found[f"{mode}, one GPU"] = lambda m=mode: ours(folder, key, m, 1)
    model = key.split("-")[0]
    found["torch"] = lambda: torch(key, model, ranks)
    found["torch compiled"] = lambda: torch(key, model, ranks, "--compile")
    if model != "gpt2":  # bound by launches
        found["torch reduce-overhead"] = lambda: torch(
            key, model, ranks, "--compile", "--mode", "reduce-overhead")
    if key == "gpt2-16":
        found["torch amp compiled"] = lambda: torch(key, "gpt2-amp", ranks,
                                                    "--compile")
    return found


def report(key, times, queued):
    ms = {name: statistics.median(t) for name, t in times.items() if t}
    for name, value in ms.items():
        extra = f"  queued in {statistics.median(queued[name]):.3f} ms" \
            if queued.get(name) else ""
        print(f"bench: {key:8} {name:20} {value:9.3f} ms  "
              f"({min(times[name]):.3f} to {max(times[name]):.3f}){extra}")
    mine = {n: ms[n] for n in OURS if n in ms}
    if not mine:
        return
    best = min(mine, key=mine.get)
    limit, factor = TARGETS[key]
    print(f"bench: {key:8} best: {best}, {mine[best]:.3f} ms, target {limit} "
          f"ms: {'ok' if mine[best] <= limit else 'miss'}")
    for name in ms:
        if name.startswith("torch"):
            text = f"bench: {key:8} {name} / {best} = {ms[name] / mine[best]:.3f}"
            if factor and name == "torch compiled":
                text += f", target {factor}: " + (
                    "ok" if ms[name] / mine[best] >= factor else "miss")
            print(text)
    for mode in "eager", "graph", "fused":
        alone = ms.get(f"{mode}, one GPU")
        if alone and mode in ms:
            print(f"bench: {key:8} {mode}: 1 - one GPU / all = "
                  f"{1 - alone / ms[mode]:.4f} of a step for communication")
    sys.stdout.flush()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("keys", nargs="*", default=list(TARGETS))
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--ways", help="of those, by name; all")
    args = parser.parse_args()
    for key in args.keys:
        found = ways(args.folder, key, args.ranks, True)
        if args.ways:
            found = {n: found[n] for n in args.ways.split(";")}
        times, queued = {n: [] for n in found}, {}
        for _ in range(args.rounds):
            for name, measure in found.items():
                if args.no_torch and name.startswith("torch"):
                    continue
                for values in measure() or []:
                    values = values if isinstance(values, tuple) else (values,)
                    times[name].append(float(values[0]))
                    if len(values) > 1:
                        queued.setdefault(name, []).append(float(values[1]))
        report(key, times, queued)


if __name__ == "__main__":
    main()
