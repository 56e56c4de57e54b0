# SPDX-License-Identifier: Apache-2.0
"""Cost of PyTorch's eager ops on tensors of four numbers: the chains of
bench_dispatch. Prints nanoseconds per op, the best of several passes."""
import time

import torch

N_OPS, N_REPEATS, N_PASSES = 100, 20, 9

CHAINS = {
    "add": lambda x, w: x + w,
    "mul": lambda x, w: x * w,
    "relu": lambda x, w: torch.relu(x),
    "mixed": lambda x, w: torch.relu(x * w + w),
}
OPS_PER_LINK = {"mixed": 3}


def chain(op, x, w, n):
    for _ in range(n):
        x = op(x, w)
    return x


def best_ns(body, n_ops):
    body()
    best = float("inf")
    for _ in range(N_PASSES):
        start = time.perf_counter()
        for _ in range(N_REPEATS):
            body()
        best = min(best, time.perf_counter() - start)
    return 1e9 * best / (N_REPEATS * n_ops)


def main():
    torch.set_num_threads(1)
    x = torch.rand(4)
    w = torch.rand(4, requires_grad=True)
    ones = torch.ones(4)
    for name, op in CHAINS.items():
        per_link = OPS_PER_LINK.get(name, 1)
        n = N_OPS // per_link

        def forward():
            with torch.no_grad():
                chain(op, x, w, n)

        def both():
            w.grad = None
            chain(op, x + w, w, n).backward(ones)

        n_ops = n * per_link
        print(f"{name}.forward {best_ns(forward, n_ops):.1f}")
        print(f"{name}.both {best_ns(both, n_ops + 1):.1f}")


main()
