#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The example programs on GPUs: hand-written kernels in a custom function and
under the reducer, and the trainers with --device cuda. Without a GPU it ends
with 77; ranks that have none are left out, and that is said."""
import os
import subprocess
import sys
import unittest

from support import EXAMPLES, GPT, FASHION_MNIST, MPIRUN, ProgramTest
from support import write_images, write_text

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


if __name__ == "__main__":
    if N_GPUS == 0:
        print("SKIPPED, nothing was tested: no GPU")
        sys.exit(77)
    if RANKS[-1] < 2:
        print(f"NOT TESTED: 2 ranks ({N_GPUS} GPUs, mpirun: {MPIRUN})")
    unittest.main()
