#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The example programs on GPUs: hand-written kernels in a custom function and
under the reducer, and the trainers with --device cuda. Without a GPU it ends
with 77; ranks that have none are left out, and that is said."""
import os
import random
import struct
import subprocess
import sys
import unittest

from support import EXAMPLES, GPT, FASHION_MNIST, MPIRUN, ProgramTest
from support import write_gpt2, write_images, write_text

BYO_ALONE = os.environ.get("BRG_BYO_ALONE", "")
BYO_CUDA = os.environ.get("BRG_BYO_CUDA", "")
CUDA_FUNCTION = os.environ.get("BRG_CUDA_FUNCTION", "")
SMALL = ("--layers", 2, "--dim", 32, "--heads", 4, "--context", 32,
         "--batch", 16, "--warm-up", 5, "--no-progress", "--device", "cuda")


def count_gpus():
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], text=True,
                                capture_output=True, timeout=60)
    except OSError:
        return 0
    return sum(x.startswith("GPU ") for x in listed.stdout.splitlines())


N_GPUS = count_gpus()
RANKS = [n for n in (0, 1, 2) if n <= N_GPUS and (n == 0 or MPIRUN)]


class GpuTest(ProgramTest):
    def numbers(self, program, ranks=0):
        run = self.run_program(program, ranks=ranks)
        self.assertEqual(run.code, 0, f"\n{run}")
        words = run.out.replace(",", "").split()
        return [float(words[1]), float(words[3])]

    def test_custom_function(self):
        run = self.run_program(CUDA_FUNCTION)
        self.assertEqual(run.code, 0, f"\n{run}")

    def test_bring_your_own_kernels(self):
        expected = self.numbers(BYO_ALONE)
        for ranks in RANKS:
            with self.subTest(ranks=ranks):
                for a, b in zip(expected, self.numbers(BYO_CUDA, ranks)):
                    self.assertAlmostEqual(a, b, delta=1e-9)

    def hashes(self, program, *arguments):
        """Of the weights, by number of ranks."""
        return {ranks: self.good(program, *arguments,
                                 ranks=ranks).result["params_hash"]
                for ranks in RANKS}

    def test_launched_steps_have_the_bits_of_eager_ones(self):
        text = write_text(self.folder / "text")
        eager = self.hashes(GPT, "--data", text, *SMALL, "--steps", 12)
        step = self.hashes(GPT, "--data", text, *SMALL, "--steps", 12,
                           "--compile=step")
        self.assertEqual(eager, step)

    def test_fused_steps_differ_in_last_bits(self):
        text = write_text(self.folder / "text")
        for ranks in RANKS:
            found = []
            for flag in (), ("--compile=fused",):
                log = self.folder / f"losses{ranks}-{len(flag)}"
                self.good(GPT, "--data", text, *SMALL, "--steps", 12, *flag,
                          "--log-losses", log, ranks=ranks)
                found.append(log)
            self.assert_losses_close(*found, 1e-3)

    def test_one_hash_on_one_gpu_and_on_two(self):
        how = "--reduction", "reproducible"
        text = write_text(self.folder / "text")
        found = self.hashes(GPT, "--data", text, *SMALL, *how, "--steps", 8)
        self.assertEqual(len(set(found.values())), 1, found)
        images = write_images(self.folder / "images")
        for model in "mlp", "cnn":
            found = self.hashes(FASHION_MNIST, "--data", images, "--model",
                                model, "--batch", 96, "--steps", 8, *how,
                                "--no-progress", "--device", "cuda")
            self.assertEqual(len(set(found.values())), 1, (model, found))


    def test_ranks_say_what_is_exposed(self):
        """By the GPU's clock, eager and in launched steps; the time of one
        alone is not waited."""
        text = write_text(self.folder / "text")
        for ranks in RANKS[-1:]:
            for flag in (), ("--compile=step",):
                run = self.good(GPT, "--data", text, *SMALL, "--steps", 40,
                                *flag, ranks=ranks)
                share = float(run.result["wait_share"])
                print(f"{ranks} ranks, {flag}: wait_share {share}")
                self.assertLess(share, 0.9)
                if ranks > 1:
                    self.assertGreater(share, 0)
                self.assertEqual(float(run.result["peak_tflops"]), 67)


class Gpt2Test(ProgramTest):
    """--config gpt2-124m with weights in the published names."""
    VOCAB = 50257

    def write_tokens(self, n):
        draw = random.Random(11)
        path = self.folder / "tokens"
        path.write_bytes(struct.pack(
            f"<{n}H", *(draw.randrange(self.VOCAB) for _ in range(n))))
        return path

    def arguments(self, layers, context, windows, batch):
        weights = self.folder / "model.safetensors"
        write_gpt2(weights, layers, 768, context, self.VOCAB)
        return ("--config", "gpt2-124m", "--layers", layers, "--context",
                context, "--data", self.write_tokens(windows * context + 1),
                "--weights", weights, "--batch", batch, "--warm-up", 1,
                "--lr", 1e-4, "--no-progress")

    def run_one(self, name, *arguments, ranks=0):
        log = self.folder / name
        run = self.good(GPT, *arguments, "--log-losses", log, ranks=ranks)
        return run, log

    def test_losses_are_those_of_the_cpu(self):
        """Of the full width, with two blocks."""
        how = *self.arguments(2, 64, 30, 4), "--steps", 4
        want, here = self.run_one("cpu", *how)
        for ranks in sorted({0, RANKS[-1]}):
            for dtype, most in ("f32", 2e-4), ("bf16", 5e-3):
                run, there = self.run_one(f"{dtype}{ranks}", *how, "--device",
                                          "cuda", "--dtype", dtype, ranks=ranks)
                self.assert_losses_close(here, there, most)
                self.assertAlmostEqual(float(run.result["val_loss"]),
                                       float(want.result["val_loss"]),
                                       delta=20 * most)
                self.assertEqual(float(run.result["peak_tflops"]),
                                 67 if dtype == "f32" else 989)

    def test_of_the_published_size(self):
        """Twelve blocks, 1024 tokens, in bf16 and f32."""
        how = (*self.arguments(12, 1024, 22, 4), "--steps", 5, "--device",
               "cuda")
        _, f32 = self.run_one("f32", *how)
        for ranks in RANKS[-1:]:
            for flag in (), ("--compile=fused",):
                run, bf16 = self.run_one(f"bf16{ranks}", *how, "--dtype",
                                         "bf16", *flag, ranks=ranks)
                self.assert_losses_close(f32, bf16, 5e-3)
                self.assertGreater(float(run.result["mfu"]), 0)
                print(f"gpt2-124m, bf16, {ranks} ranks, {flag}: "
                      f"{run.result['step_ms']} ms")


if __name__ == "__main__":
    if N_GPUS == 0:
        print("SKIPPED, nothing was tested: no GPU")
        sys.exit(77)
    if RANKS[-1] < 2:
        print(f"NOT TESTED: 2 ranks ({N_GPUS} GPUs, mpirun: {MPIRUN})")
    unittest.main()
