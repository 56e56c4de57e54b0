# SPDX-License-Identifier: Apache-2.0
"""The four models of bench/models.c in PyTorch: same shapes, same batch."""
import torch
from torch import nn
from torch.nn import functional as F


def mlp(hidden):
    return nn.Sequential(nn.Linear(784, hidden), nn.ReLU(),
                         nn.Linear(hidden, hidden), nn.ReLU(),
                         nn.Linear(hidden, 10))


def cnn():
    return nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(),
                         nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
                         nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(),
                         nn.Linear(128, 10))


class Block(nn.Module):
    def __init__(self, width, n_heads, length):
        super().__init__()
        self.n_heads = n_heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        mask = torch.full((length, length), float("-inf")).triu(1)
        self.register_buffer("mask", mask, persistent=False)

    def attend(self, x):
        b, t, c = x.shape
        q, k, v = (part.view(b, t, self.n_heads, -1).transpose(1, 2)
                   for part in self.qkv(x).split(c, dim=2))
        scores = (q * (c // self.n_heads) ** -0.5) @ k.transpose(-2, -1)
        y = F.softmax(scores + self.mask, dim=-1) @ v
        return self.proj(y.transpose(1, 2).reshape(b, t, c))

    def forward(self, x):
        x = x + self.attend(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x)),
                                    approximate="tanh"))


class Gpt(nn.Module):
    """4 blocks of width 128; the head shares the weight of the embedding."""

    def __init__(self, n_tokens=256, length=64, width=128, n_heads=4, n_blocks=4):
        super().__init__()
        self.tokens = nn.Embedding(n_tokens, width)
        self.places = nn.Parameter(torch.zeros(length, width))
        self.blocks = nn.Sequential(*(Block(width, n_heads, length)
                                      for _ in range(n_blocks)))
        self.norm = nn.LayerNorm(width)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, ids):
        x = self.norm(self.blocks(self.tokens(ids) + self.places))
        return F.linear(x, self.tokens.weight).flatten(0, 1)


def build(name):
    """model, inputs, targets, optimizer: a batch of random data."""
    if name == "gpt":
        model = Gpt()
        x = torch.randint(256, (8, 64))
        y = torch.randint(256, (8 * 64,))
        return model, x, y, torch.optim.AdamW(model.parameters(), lr=1e-3,
                                              foreach=True)
    if name == "cnn":
        layout = torch.channels_last  # a tenth faster
        model = cnn().to(memory_format=layout)
        x = torch.rand(64, 1, 28, 28).to(memory_format=layout)
    else:
        model = mlp({"mlp-a": 512, "mlp-b": 2048}[name])
        x = torch.rand(128 if name == "mlp-b" else 64, 784)
    y = torch.randint(10, (len(x),))
    return model, x, y, torch.optim.SGD(model.parameters(), lr=0.05,
                                        foreach=True)
