# SPDX-License-Identifier: Apache-2.0
"""Runs the trainers as programs and reads what they print; makes small data
sets. Programs and mpirun come from the environment (examples/CMakeLists.txt
sets it)."""
import gzip
import os
import pathlib
import random
import re
import shutil
import struct
import subprocess
import tempfile
import unittest

FASHION_MNIST = os.environ.get("BRG_FASHION_MNIST", "")
GPT = os.environ.get("BRG_GPT", "")
EXAMPLES = os.environ.get("BRG_EXAMPLES", "")  # folder of the small programs
MPIRUN = os.environ.get("BRG_MPIRUN", "").split()
ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TIMEOUT_S = 120


class Run:
    """A program that has ended."""

    def __init__(self, command, environment=None):
        done = subprocess.run(command, stdin=subprocess.DEVNULL, text=True,
                              capture_output=True, timeout=TIMEOUT_S,
                              env={**os.environ, **(environment or {})})
        self.command = " ".join(map(str, command))
        self.code, self.out, self.err = (done.returncode, done.stdout,
                                         done.stderr)
        self.result = {}
        lines = self.out.replace("\r", "").splitlines()
        if lines and lines[-1].startswith("result: "):
            self.result = dict(re.findall(r"(\w+)=(\S+)", lines[-1]))

    def __str__(self):
        return (f"{self.command}\nexit code {self.code}\n"
                f"--- stdout\n{self.out}\n--- stderr\n{self.err}")


class ProgramTest(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="brg-examples-"))
        self.addCleanup(shutil.rmtree, self.folder)

    def run_program(self, program, *arguments, ranks=0):
        """Ranks 0: without mpirun."""
        if ranks and not MPIRUN:
            self.skipTest("built without MPI")
        command = [program, *map(str, arguments)]
        if not ranks:
            return Run(command)
        # MPI unloads the parts of it that leak before they can be named in a
        # list of suppressions; runs without mpirun do look for leaks.
        return Run([*MPIRUN, str(ranks), *command],
                   {"ASAN_OPTIONS": "detect_leaks=0"})

    def good(self, program, *arguments, ranks=0):
        run = self.run_program(program, *arguments, ranks=ranks)
        self.assertEqual(run.code, 0, f"\n{run}")
        self.assertTrue(run.result, f"no result line\n{run}")
        self.assertEqual(int(run.result["ranks"]), max(ranks, 1))
        self.assertRegex(run.result["params_hash"], "^[0-9a-f]{16}$")
        return run

    def bad(self, program, *arguments, ranks=0, says=()):
        """Must fail, and name each of `says` in one line of stderr."""
        run = self.run_program(program, *arguments, ranks=ranks)
        self.assertNotEqual(run.code, 0, f"\n{run}")
        self.assertGreater(run.code, 0, f"ended by a signal\n{run}")
        self.assertFalse(run.result, f"\n{run}")
        for sanitizer in "Sanitizer", "runtime error":
            self.assertNotIn(sanitizer, run.err, f"\n{run}")
        lines = [line for line in run.err.splitlines()
                 if all(text in line for text in says)]
        self.assertTrue(lines, f"nothing on stderr says {says}\n{run}")
        return run

    def losses(self, path):
        rows = [line.split() for line in path.read_text().splitlines()]
        return [int(step) for step, _ in rows], [float(x) for _, x in rows]

    def assert_losses_close(self, a, b, tolerance):
        steps_a, losses_a = self.losses(a)
        steps_b, losses_b = self.losses(b)
        self.assertEqual(steps_a, steps_b)
        for step, x, y in zip(steps_a, losses_a, losses_b):
            self.assertLessEqual(abs(x - y), tolerance * (1 + abs(x)),
                                 f"step {step}: {x} and {y}")


def write_idx(path, shape, data):
    head = struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape)
    opener = gzip.open if str(path).endswith(".gz") else open
    with opener(path, "wb") as file:
        file.write(head + bytes(data))


def write_images(folder, n_train=480, n_test=101, seed=1):
    """Ten classes that differ in which rows are bright, with noise."""
    source = random.Random(seed)
    folder.mkdir(exist_ok=True)
    for prefix, n in ("train", n_train), ("t10k", n_test):
        labels = [source.randrange(10) for _ in range(n)]
        pixels = bytearray(source.randbytes(n * 784))
        for i, label in enumerate(labels):
            at = i * 784 + label * 56
            pixels[at:at + 56] = bytes([255]) * 56
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", (n, 28, 28),
                  pixels)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte", (n,), labels)
    return folder


def write_text(path, n_words=4000, seed=1):
    source = random.Random(seed)
    words = ["the", "light", "was", "upon", "water", "and", "there", "said"]
    path.write_text(" ".join(source.choice(words) for _ in range(n_words)))
    return path
