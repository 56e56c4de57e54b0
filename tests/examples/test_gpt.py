#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The GPT trainer as a program, on a small made-up text."""
import json
import math
import os
import random
import shutil
import struct
import unittest
import unittest.mock

from support import GPT, ProgramTest, write_text

SMALL = ("--layers", 1, "--dim", 16, "--heads", 2, "--context", 16,
         "--batch", 12, "--warm-up", 5, "--no-progress")


class GptTest(ProgramTest):
    def setUp(self):
        super().setUp()
        self.text = write_text(self.folder / "text")

    def train(self, *arguments, ranks=0):
        return self.good(GPT, "--data", self.text, *SMALL, *arguments,
                         ranks=ranks)

    def refuse(self, *arguments, ranks=0, says=()):
        return self.bad(GPT, "--data", self.text, *SMALL, *arguments,
                        ranks=ranks, says=says)

    def test_ranks_learn_and_agree(self):
        for ranks in 0, 2, 3:
            with self.subTest(ranks=ranks):
                run = self.train("--steps", 150, "--lr", 0.01, "--log-losses",
                                 self.folder / f"losses{ranks}", ranks=ranks)
                self.assertLess(float(run.result["val_loss"]), 2.0)
        for ranks in 2, 3:
            for name in "losses0", f"losses{ranks}":
                path = self.folder / name
                path.write_text("".join(path.read_text()
                                        .splitlines(True)[:30]))
            self.assert_losses_close(self.folder / "losses0",
                                     self.folder / f"losses{ranks}", 1e-3)

    def test_resume_bit_for_bit(self):
        state = self.folder / "state"
        for ranks in 0, 2:
            whole = self.train("--steps", 8, "--sample", 20, ranks=ranks)
            self.train("--steps", 5, "--decay-steps", 8, "--checkpoint", state,
                       ranks=ranks)
            rest = self.train("--steps", 8, "--sample", 20, "--resume", state,
                              ranks=ranks)
            for key in "params_hash", "val_loss":
                self.assertEqual(whole.result[key], rest.result[key])
            samples = [run.out.split("sample: ")[1].split("result: ")[0]
                       for run in (whole, rest)]
            self.assertEqual(*samples)

    def test_compiled_to_the_bit(self):
        for ranks in 0, 2, 4:
            with self.subTest(ranks=ranks):
                eager = self.train("--steps", 4, ranks=ranks)
                for flag in "--compile", "--compile=step":
                    plan = self.train("--steps", 4, flag, ranks=ranks)
                    self.assertEqual(eager.result["params_hash"],
                                     plan.result["params_hash"], flag)

    def test_fused_to_the_last_bits(self):
        """With kernels that the system's compiler makes, where there is one."""
        cache = self.folder / "kernels"
        with unittest.mock.patch.dict(os.environ,
                                      BRG_COMPILE_CACHE=str(cache)):
            for ranks in 0, 2:
                found = []
                for flag in (), ("--compile=fused",):
                    log = self.folder / f"losses{len(flag)}"
                    self.train("--steps", 12, "--log-losses", log, *flag,
                               ranks=ranks)
                    found.append(log)
                self.assert_losses_close(*found, 1e-4)
        if shutil.which("cc"):
            self.assertTrue(list(cache.glob("*.so")), "there are no kernels")

    def test_one_hash_at_any_world_size(self):
        hashes = set()
        for ranks in 0, 2, 3, 4:
            run = self.train("--steps", 6, "--reduction", "reproducible",
                             "--leaves", 6, ranks=ranks)
            hashes.add(run.result["params_hash"])
        self.assertEqual(len(hashes), 1)
        other = self.train("--steps", 6, "--reduction", "reproducible")
        self.assertNotIn(other.result["params_hash"], hashes)  # 8 leaves

    def test_resume_at_another_world_size(self):
        state = self.folder / "state"
        how = "--reduction", "reproducible", "--decay-steps", 8
        whole = self.train("--steps", 8, *how, ranks=2)
        self.train("--steps", 5, *how, "--checkpoint", state, ranks=3)
        for ranks in 0, 4:
            rest = self.train("--steps", 8, *how, "--resume", state,
                              "--compile", ranks=ranks)
            self.assertEqual(whole.result["params_hash"],
                             rest.result["params_hash"])

    def test_from_4_ranks_to_2_to_3(self):
        states = [self.folder / f"state{i}" for i in range(2)]
        how = "--reduction", "reproducible", "--decay-steps", 9
        whole = self.train("--steps", 9, *how)
        self.train("--steps", 3, *how, "--checkpoint", states[0], ranks=4)
        self.train("--steps", 6, *how, "--resume", states[0], "--checkpoint",
                   states[1], ranks=2)
        rest = self.train("--steps", 9, *how, "--resume", states[1], ranks=3)
        self.assertEqual(whole.result["params_hash"],
                         rest.result["params_hash"])

    def test_sample(self):
        run = self.train("--steps", 2, "--sample", 30, "--prompt", "the",
                         "--temperature", 0)
        self.assertIn("sample: the", run.out)
        run = self.train("--steps", 2, "--sample", 0)
        self.assertNotIn("sample:", run.out)

    def test_failures(self):
        self.refuse("--dim", 18, "--heads", 4, says=["--dim", "--heads"])
        self.refuse("--layers", 0, says=["--layers"])
        self.refuse("--reduction", "ring", says=["--reduction", "ring"])
        self.refuse("--reduction", "reproducible", "--leaves", 13,
                    says=["--batch is 12", "13 (leaves)"])
        self.refuse("--reduction", "reproducible", "--leaves", 2, ranks=3,
                    says=["2 leaves", "3 (the world size)"])
        self.refuse("--temperature", "warm", says=["--temperature", "warm"])
        self.refuse("--lr", "1e30", "--clip", 0, ranks=2,
                    says=["rank", "step"])
        state = self.folder / "state"
        self.train("--steps", 1, "--checkpoint", state)
        self.refuse("--dim", 32, "--resume", state, says=["state"])
        self.text.write_text("too short")
        self.refuse(says=["text", "9 bytes"])
        self.text.unlink()
        self.refuse(ranks=2, says=["rank 0", "text"])


class Gpt2:
    """GPT-2 in plain Python (f64), written from the paper and the published
    names: the reference for --weights."""

    def __init__(self, layers, dim, heads, context, vocab, seed):
        draw = random.Random(seed)
        self.layers, self.dim, self.heads = layers, dim, heads
        self.at = {}  # name: (shape, values)

        def add(name, *shape, std=0.3, mean=0.0):
            n = math.prod(shape)
            values = struct.unpack(f"<{n}f", struct.pack(
                f"<{n}f", *(draw.gauss(mean, std) for _ in range(n))))
            self.at[name] = shape, values

        add("wte.weight", vocab, dim)
        add("wpe.weight", context, dim)
        for i in range(layers):
            for name, n_in, n_out in (("attn.c_attn", dim, 3 * dim),
                                      ("attn.c_proj", dim, dim),
                                      ("mlp.c_fc", dim, 4 * dim),
                                      ("mlp.c_proj", 4 * dim, dim)):
                add(f"h.{i}.{name}.weight", n_in, n_out)
                add(f"h.{i}.{name}.bias", n_out)
            for name in "ln_1", "ln_2":
                add(f"h.{i}.{name}.weight", dim, mean=1.0)
                add(f"h.{i}.{name}.bias", dim)
        add("ln_f.weight", dim, mean=1.0)
        add("ln_f.bias", dim)

    def save(self, path, prefix="", without=()):
        header, data = {"__metadata__": {"format": "pt"}}, b""
        for name, (shape, values) in self.at.items():
            if name in without:
                continue
            new = struct.pack(f"<{len(values)}f", *values)
            header[prefix + name] = {
                "dtype": "F32", "shape": shape,
                "data_offsets": [len(data), len(data) + len(new)]}
            data += new
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data)

    def rows(self, name):
        (_, n), values = self.at[name]
        return [values[i:i + n] for i in range(0, len(values), n)]

    def linear(self, x, name):
        columns = list(zip(*self.rows(name + ".weight")))
        bias = self.at[name + ".bias"][1]
        return [[sum(map(float.__mul__, row, map(float, c))) + b
                 for c, b in zip(columns, bias)] for row in x]

    def norm(self, x, name):
        w, b = self.at[name + ".weight"][1], self.at[name + ".bias"][1]
        out = []
        for row in x:
            mean = sum(row) / len(row)
            var = sum((v - mean) ** 2 for v in row) / len(row)
            out.append([(v - mean) / math.sqrt(var + 1e-5) * p + q
                        for v, p, q in zip(row, w, b)])
        return out

    def attention(self, x, name):
        d = self.dim // self.heads
        qkv = self.linear(x, name + ".c_attn")
        out = [[0.0] * self.dim for _ in x]
        for first in range(0, self.dim, d):
            q, k, v = ([row[p * self.dim + first:p * self.dim + first + d]
                        for row in qkv] for p in range(3))
            for i, qi in enumerate(q):
                e = [math.exp(sum(map(float.__mul__, qi, k[j])) / math.sqrt(d))
                     for j in range(i + 1)]
                for c in range(d):
                    out[i][first + c] = sum(
                        e[j] * v[j][c] for j in range(i + 1)) / sum(e)
        return self.linear(out, name + ".c_proj")

    def losses(self, tokens):
        """Of all but the first token."""
        wte, wpe = self.rows("wte.weight"), self.rows("wpe.weight")
        x = [[a + b for a, b in zip(wte[t], p)]
             for t, p in zip(tokens[:-1], wpe)]

        def add(a, b):
            return [list(map(float.__add__, r, s)) for r, s in zip(a, b)]

        for i in range(self.layers):
            x = add(x, self.attention(self.norm(x, f"h.{i}.ln_1"),
                                      f"h.{i}.attn"))
            h = self.linear(self.norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")
            h = [[0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) *
                                           (v + 0.044715 * v ** 3)))
                  for v in row] for row in h]
            x = add(x, self.linear(h, f"h.{i}.mlp.c_proj"))
        for row, target in zip(self.norm(x, "ln_f"), tokens[1:]):
            logits = [sum(map(float.__mul__, row, map(float, w))) for w in wte]
            yield math.log(sum(map(math.exp, logits))) - logits[target]


class Gpt2Test(ProgramTest):
    CONTEXT, VOCAB, WINDOWS = 8, 60, 40
    SMALL = ("--config", "gpt2-124m", "--layers", 2, "--dim", 16, "--heads", 2,
             "--context", CONTEXT, "--vocab", VOCAB, "--batch", 4,
             "--no-progress")

    def setUp(self):
        super().setUp()
        draw = random.Random(7)
        self.tokens = [draw.randrange(self.VOCAB)
                       for _ in range(self.WINDOWS * self.CONTEXT + 1)]
        self.text = self.folder / "tokens"
        self.text.write_bytes(struct.pack(f"<{len(self.tokens)}H",
                                          *self.tokens))
        self.model = Gpt2(2, 16, 2, self.CONTEXT, self.VOCAB, 3)
        self.weights = self.folder / "model.safetensors"

    def reference(self):
        """The mean loss of the windows left out of training: 5%, the last."""
        losses = []
        for w in range(self.WINDOWS - self.WINDOWS // 20, self.WINDOWS):
            at = w * self.CONTEXT
            losses += self.model.losses(self.tokens[at:at + self.CONTEXT + 1])
        return sum(losses) / len(losses)

    def train(self, *arguments, ranks=0):
        return self.good(GPT, "--data", self.text, *self.SMALL, *arguments,
                         ranks=ranks)

    def test_published_weights(self):
        for prefix in "", "transformer.":
            self.model.save(self.weights, prefix)
            run = self.train("--weights", self.weights, "--eval-only")
            self.assertAlmostEqual(float(run.result["val_loss"]),
                                   self.reference(), delta=2e-5)
        run = self.train("--weights", self.weights, "--eval-only", "--dtype",
                         "bf16")
        self.assertAlmostEqual(float(run.result["val_loss"]), self.reference(),
                               delta=5e-2)

    def test_bf16_learns(self):
        """The tokens are random, so that only their number can be learnt."""
        for dtype in "f32", "bf16":
            run = self.train("--dtype", dtype, "--steps", 60, "--lr", 3e-3,
                             "--warm-up", 5, "--peak-tflops", 1)
            self.assertLess(float(run.result["val_loss"]), 4.4)
            self.assertGreater(float(run.result["tokens_s"]), 0)
            self.assertGreater(float(run.result["mfu"]), 0)

    def test_ranks_and_plans_in_bf16(self):
        hashes = {self.train("--dtype", "bf16", "--steps", 4, *flag)
                  .result["params_hash"]
                  for flag in ((), ("--compile",), ("--compile=step",))}
        self.assertEqual(len(hashes), 1)
        self.train("--dtype", "bf16", "--steps", 4, ranks=2)

    def test_failures(self):
        def refuse(*arguments, says):
            self.bad(GPT, "--data", self.text, *self.SMALL, *arguments,
                     says=says)

        refuse("--config", "gpt3", says=["--config", "gpt3"])
        refuse("--dtype", "int8", says=["--dtype", "int8"])
        refuse("--sample", 5, says=["--sample"])
        self.model.save(self.weights, without=["h.1.ln_2.bias"])
        refuse("--weights", self.weights, says=["no tensor", "h.1.ln_2.bias"])
        self.model.save(self.weights)
        refuse("--weights", self.weights, "--dim", 8,
               says=["wte.weight", "60", "16"])
        self.weights.write_bytes(b"no")
        refuse("--weights", self.weights, says=["model.safetensors"])
        refuse("--weights", self.folder / "none", says=["none"])


if __name__ == "__main__":
    unittest.main()
