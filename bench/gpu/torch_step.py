#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The trainings of bench/gpu/run.py in PyTorch: same shapes, same batch for each
GPU, DistributedDataParallel over NCCL where there are more.

    torch_step.py MODEL BATCH [--compile [--mode reduce-overhead]] [--ranks N]
                  [--steps N] [--repeats N]

MODEL: gpt2 (124M, T = 1024, bf16 parameters with f32 ones in the optimizer),
gpt2-amp (f32 parameters, autocast to bf16), mlp (784-2048-2048-10, f32), gpt
(4 blocks of 128, T = 64, f32). Prints the mean time of a step in ms, one line
for each repeat. Steps hold forward, backward, clipping, AdamW; no host waits."""
import argparse
import os
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, width, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)
        self.c_fc = nn.Linear(width, 4 * width)
        self.mlp_proj = nn.Linear(4 * width, width)

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = (p.view(b, t, self.n_heads, -1).transpose(1, 2)
                   for p in self.c_attn(self.ln_1(x)).split(c, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(y.transpose(1, 2).reshape(b, t, c))
        h = F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh")
        return x + self.mlp_proj(h)


class Gpt(nn.Module):
    def __init__(self, n_blocks, width, n_heads, length, n_rows):
        super().__init__()
        self.wte = nn.Embedding(n_rows, width)
        self.wpe = nn.Embedding(length, width)
        self.h = nn.ModuleList(Block(width, n_heads) for _ in range(n_blocks))
        self.ln_f = nn.LayerNorm(width)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, ids, targets):
        x = self.wte(ids) + self.wpe.weight[:ids.shape[1]]
        for block in self.h:
            x = block(x)
        logits = F.linear(self.ln_f(x), self.wte.weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]),
                               targets.reshape(-1))


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(784, 2048), nn.ReLU(),
                                 nn.Linear(2048, 2048), nn.ReLU(),
                                 nn.Linear(2048, 10))

    def forward(self, x, targets):
        return F.cross_entropy(self.net(x), targets)


class MasterAdamW:
    """AdamW on f32 copies of bf16 parameters; all are cast in one call."""

    def __init__(self, params):
        self.params = list(params)
        self.masters = [p.detach().float() for p in self.params]
        for master in self.masters:
            master.grad = torch.empty_like(master)
        self.grads = [master.grad for master in self.masters]
        self.inner = torch.optim.AdamW(self.masters, lr=1e-4, weight_decay=0.1,
                                       fused=True)

    def step(self):
        with torch.no_grad():
            torch._foreach_copy_(self.grads, [p.grad for p in self.params])
            self.inner.step()
            torch._foreach_copy_(self.params, self.masters)

    def zero_grad(self):
        for p in self.params:
            p.grad = None


def make(name, batch):
    if name == "mlp":
        return (Mlp().cuda(), torch.randn(batch, 784, device="cuda"),
                torch.randint(10, (batch,), device="cuda"))
    sizes = (4, 128, 4, 64, 256) if name == "gpt" else (12, 768, 12, 1024, 50304)
    model = Gpt(*sizes).cuda()
    if name == "gpt2":
        model = model.bfloat16()
    ids = torch.randint(sizes[4], (batch, sizes[3] + 1), device="cuda")
    return model, ids[:, :-1], ids[:, 1:]


def work(rank, args):
    torch.cuda.set_device(rank)
    torch.manual_seed(1)
    model, x, y = make(args.model, args.batch)
    if args.ranks > 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29511")
        dist.init_process_group("nccl", rank=rank, world_size=args.ranks)
        model = nn.parallel.DistributedDataParallel(
            model, device_ids=[rank], gradient_as_bucket_view=True)
    if args.compile:
        model = torch.compile(model, mode=args.mode)
    params = list(model.parameters())
    if args.model == "gpt2":
        optim = MasterAdamW(params)
    else:
        optim = torch.optim.AdamW(params, lr=1e-4, weight_decay=0.1, fused=True)
    amp = torch.autocast("cuda", torch.bfloat16, enabled=args.model == "gpt2-amp")

    def step():
        if args.mode == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()
        with amp:
            loss = model(x, y)
        loss.backward()
        if args.model != "mlp":
            torch.nn.utils.clip_grad_norm_(params, 1.0)
        optim.step()
        optim.zero_grad()

    for _ in range(10):
        step()
    for _ in range(args.repeats):
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(args.steps):
            step()
        torch.cuda.synchronize()
        if rank == 0:
            print(f"{(time.perf_counter() - started) / args.steps * 1e3:.3f}",
                  flush=True)
    if args.ranks > 1:
        dist.destroy_process_group()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model", choices=["gpt2", "gpt2-amp", "mlp", "gpt"])
    parser.add_argument("batch", type=int)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--mode", default="default",
                        choices=["default", "reduce-overhead"],
                        help="of --compile; reduce-overhead: CUDA graphs")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    if args.ranks > 1:
        mp.spawn(work, (args,), args.ranks)
    else:
        work(0, args)


if __name__ == "__main__":
    main()
