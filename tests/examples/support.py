# SPDX-License-Identifier: Apache-2.0
"""Runs the trainers as programs and reads what they print; makes small data
sets. Programs and mpirun come from the environment (examples/CMakeLists.txt
sets it)."""
import gzip
import json
import math
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


def gpt2_shapes(layers, dim, context, vocab):
    """The names of the published GPT-2, with their shapes."""
    yield "wte.weight", (vocab, dim)
    yield "wpe.weight", (context, dim)
    for i in range(layers):
        for name, n_in, n_out in (("attn.c_attn", dim, 3 * dim),
                                  ("attn.c_proj", dim, dim),
                                  ("mlp.c_fc", dim, 4 * dim),
                                  ("mlp.c_proj", 4 * dim, dim)):
            yield f"h.{i}.{name}.weight", (n_in, n_out)
            yield f"h.{i}.{name}.bias", (n_out,)
        for name in "ln_1", "ln_2":
            yield f"h.{i}.{name}.weight", (dim,)
            yield f"h.{i}.{name}.bias", (dim,)
    yield "ln_f.weight", (dim,)
    yield "ln_f.bias", (dim,)


def write_gpt2(path, layers, dim, context, vocab, seed=5):
    """Weights of that model, large ones too: values are drawn once, and each
    tensor begins at another place of them."""
    draw = random.Random(seed)
    n = 1 << 18
    values = struct.pack(f"<{n}f", *(draw.gauss(0, 0.02) for _ in range(n)))
    ones = struct.pack(f"<{dim}f", *[1.0] * dim)
    header, size, tensors = {}, 0, []
    for name, shape in gpt2_shapes(layers, dim, context, vocab):
        nbytes = 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape,
                        "data_offsets": [size, size + nbytes]}
        size += nbytes
        tensors.append((name, nbytes))
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, nbytes in tensors:
            if ".ln_" in "." + name and name.endswith(".weight"):
                file.write(ones)
                continue
            at = 4 * draw.randrange(n)
            while nbytes > 0:
                piece = values[at:at + nbytes]
                file.write(piece)
                nbytes -= len(piece)
                at = 0


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
