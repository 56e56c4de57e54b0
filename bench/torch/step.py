# SPDX-License-Identifier: Apache-2.0
"""One rank of a PyTorch DDP run: prints its step time and resident memory.
    step.py <model> <steps> <rank> <ranks> <rendezvous file, or tcp://...>"""
import os
import sys
import time

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import models

# Bucket size in MB: the fastest of 1, 5, 25 and 100.
BUCKET_MB = {"mlp-a": 5, "mlp-b": 5, "cnn": 100, "gpt": 100}


def memory_mb(key):
    """VmRSS (now) or VmHWM (most) of this process."""
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith(key + ":"):
                return int(line.split()[1]) / 1024
    return float("nan")


def main():
    name, n_steps, rank, n_ranks, rendezvous = sys.argv[1:6]
    if "://" not in rendezvous:
        rendezvous = "file://" + rendezvous
    torch.set_num_threads(1)
    torch.manual_seed(1)
    model, x, y, optimizer = models.build(name)
    dist.init_process_group("gloo", init_method=rendezvous,
                            rank=int(rank), world_size=int(n_ranks))
    if int(n_ranks) > 1:
        cap = float(os.environ.get("BUCKET_MB", BUCKET_MB[name]))
        model = DistributedDataParallel(
            model, static_graph=True, gradient_as_bucket_view=True,
            bucket_cap_mb=cap, broadcast_buffers=False)

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    first = step().item()
    for _ in range(9):
        step()
    times = []
    for _ in range(int(n_steps)):
        start = time.perf_counter()
        loss = step()
        times.append(time.perf_counter() - start)
    times.sort()
    dist.barrier()
    if int(rank) == 0:
        print(f"step_ms {1e3 * times[len(times) // 2]:.4f}")
        print(f"best_ms {1e3 * times[0]:.4f}")
        print(f"loss {first:.4f} {loss.item():.4f}")
        print(f"rss_mb {memory_mb('VmRSS'):.1f}")
        print(f"hwm_mb {memory_mb('VmHWM'):.1f}")


main()
