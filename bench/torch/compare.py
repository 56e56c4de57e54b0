# SPDX-License-Identifier: Apache-2.0
"""Training steps, op overhead and memory against PyTorch: runs both sides in
turn several times and prints the median of the ratios of the pairs.
    compare.py <folder of the bench programs> [model or 'dispatch']...
PyTorch runs with DDP over gloo, two ranks, one thread each, static graph,
gradients as views of buckets, and the best bucket size of several."""
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
N_PAIRS = int(os.environ.get("BENCH_PAIRS", 5))
# model: steps of one run, how many times faster we should be
MODELS = {"mlp-a": (300, 2.5), "mlp-b": (30, 1.4), "cnn": (30, 1.4),
          "gpt": (40, 1.25)}
# the same for our compiled step, against PyTorch's eager one: versions with
# torch.compile for this Python are not packaged
COMPILED = {"mlp-a": 3.0, "gpt": 1.4}
MAX_OVERHEAD, MAX_MEMORY = 1 / 10, 1 / 3


def report(name, value, unit, target=None, is_ok=None):
    rest = "" if target is None else \
        f" target={target:.4g} {'ok' if is_ok else 'miss'}"
    print(f"bench: {name:<32} {value:10.4g} {unit}{rest}", flush=True)


def keys_and_values(text):
    """Lines 'key value ...' and 'bench: key value ...'."""
    found = re.findall(r"^(?:bench: )?([\w.]+) +([-+.\de]+)", text, re.M)
    return {key: float(value) for key, value in found}


def output_of(command, **options):
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True,
                          check=True, stdin=subprocess.DEVNULL, **options)
    return keys_and_values(done.stdout)


def run_ours(folder, model, n_steps, *mode):
    return output_of(["mpirun", "-n", "2", "--bind-to", "none",
                      folder / "bench_step", model, str(n_steps), *mode])


def run_torch(model, n_steps):
    with tempfile.TemporaryDirectory() as temporary:
        def command(rank):
            return [sys.executable, HERE / "step.py", model, str(n_steps),
                    str(rank), "2", temporary + "/rendezvous"]
        env = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
        peer = subprocess.Popen(command(1), env=env, stdin=subprocess.DEVNULL)
        try:
            return output_of(command(0), env=env)
        finally:
            peer.wait()


def compare_model(folder, model):
    n_steps, target = MODELS[model]
    speed, best, memory, peak, ours_ms, torch_ms = [], [], [], [], [], []
    compiled = []
    for _ in range(N_PAIRS):
        ours, torch = run_ours(folder, model, n_steps), run_torch(model, n_steps)
        if model in COMPILED:
            whole = run_ours(folder, model, n_steps, "whole")
            compiled.append(torch["step_ms"] / whole["step_ms"])
        speed.append(torch["step_ms"] / ours["step_ms"])
        best.append(torch["best_ms"] / ours["best_ms"])
        memory.append(ours["rss_mb"] / torch["rss_mb"])
        peak.append(ours["hwm_mb"] / torch["hwm_mb"])
        ours_ms.append(ours["step_ms"])
        torch_ms.append(torch["step_ms"])
    median = statistics.median(speed)
    report(f"torch.{model}.speedup", median, "x", target, median >= target)
    if compiled:
        median, target = statistics.median(compiled), COMPILED[model]
        report(f"torch.{model}.compiled_speedup", median, "x", target,
               median >= target)
        report(f"torch.{model}.compiled_speedup_least", min(compiled), "x")
    report(f"torch.{model}.speedup_least", min(speed), "x")
    report(f"torch.{model}.speedup_most", max(speed), "x")
    report(f"torch.{model}.speedup_of_best_steps", statistics.median(best), "x")
    report(f"torch.{model}.step", statistics.median(ours_ms), "ms")
    report(f"torch.{model}.torch_step", statistics.median(torch_ms), "ms")
    for name, ratios in (("memory", memory), ("peak_memory", peak)):
        median = statistics.median(ratios)
        report(f"torch.{model}.{name}", median, "x", MAX_MEMORY,
               median <= MAX_MEMORY)
    report(f"torch.{model}.resident", ours["rss_mb"], "MB")
    report(f"torch.{model}.torch_resident", torch["rss_mb"], "MB")


def compare_dispatch(folder):
    ratios = {}
    for _ in range(N_PAIRS):
        ours = output_of([folder / "bench_dispatch"])
        torch = output_of([sys.executable, HERE / "dispatch.py"])
        for key, value in torch.items():
            ratios.setdefault(key, []).append(ours["dispatch." + key] / value)
    for key, values in ratios.items():
        median = statistics.median(values)
        report(f"torch.dispatch.{key}", median, "x", MAX_OVERHEAD,
               median <= MAX_OVERHEAD)


def main():
    folder = pathlib.Path(sys.argv[1])
    for name in sys.argv[2:] or [*MODELS, "dispatch"]:
        if name == "dispatch":
            compare_dispatch(folder)
        else:
            compare_model(folder, name)


main()
