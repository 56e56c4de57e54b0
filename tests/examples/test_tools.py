#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The program `brigade`: what its commands print, bad arguments, man pages."""
import csv
import io
import json
import os
import re
import shutil
import struct
import subprocess
import unittest

from support import MPIRUN, ROOT, ProgramTest

TOOL = os.environ.get("BRG_TOOL", "")
COMMANDS = re.findall(r"X\((\w+), \"", (ROOT / "tools/commands.h").read_text())


def write_safetensors(path, tensors, metadata=None):
    """name -> (dtype, bytes of an element, shape); zeros."""
    header, at = {"__metadata__": metadata} if metadata else {}, 0
    for name, (dtype, size, shape) in tensors.items():
        n = size
        for dim in shape:
            n *= dim
        header[name] = {"dtype": dtype, "shape": shape,
                        "data_offsets": [at, at + n]}
        at += n
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(at))
    return path


class ToolTest(ProgramTest):
    def run_tool(self, *arguments, ranks=0, code=0):
        run = self.run_program(TOOL, *arguments, ranks=ranks)
        self.assertEqual(run.code, code, f"\n{run}")
        return run

    def test_help_names_every_command(self):
        self.assertGreaterEqual(len(COMMANDS), 3)
        run = self.run_tool("--help")
        for name in COMMANDS:
            self.assertIn(f"  {name} ", run.out)
            self.assertIn(f"brigade {name}",
                          self.run_tool(name, "--help").out)
        self.assertRegex(self.run_tool("--version").out, r"^brigade \d")

    def test_bad_arguments(self):
        for arguments in ([], ["nothing"], ["info", "x"], ["bench", "--min"],
                          ["bench", "--min", "4Q"], ["bench", "--rounds", "0"],
                          ["bench", "--min", "8M", "--max", "4M"], ["plan"],
                          ["plan", "a", "b"], ["plan", "--bucket", "x", "a"],
                          ["plan", "--ranks", "4", "a"],
                          ["plan", "--simulate", "--ranks", "4,", "a"],
                          ["plan", "--simulate", "--ranks", "0", "a"],
                          ["plan", "--simulate", "--latency", "-1", "a"],
                          ["plan", "--simulate", "--bandwidth", "0", "a"],
                          ["plan", "--simulate", "--host", "0", "a"],
                          ["plan", "--simulate", "--algorithm", "tree", "a"],
                          ["plan", "--simulate", "a", "--ranks"]):
            with self.subTest(arguments=arguments):
                run = self.run_tool(*arguments, code=2)
                self.assertTrue(run.err)
                self.assertEqual(run.out, "")

    def test_info(self):
        lines = dict(line.split("=", 1)
                     for line in self.run_tool("info").out.splitlines())
        self.assertIn("version", lines)
        self.assertEqual(lines["device.cpu"], "1")
        self.assertTrue(lines["BRG_TIMEOUT_S"].endswith("(default)"))
        if MPIRUN:
            self.assertEqual(lines["backend.mpi"], "yes")
        if lines["backend.nccl"] == "no":
            self.assertTrue(lines["backend.nccl.why"])

    def test_bench(self):
        for ranks in (0, 2) if MPIRUN else (0,):
            run = self.run_tool("bench", "--csv", "--max", "64K", "--rounds",
                                "3", ranks=ranks)
            rows = list(csv.DictReader(io.StringIO(run.out)))
            self.assertEqual([int(row["bytes"]) for row in rows],
                             [4096, 16384, 65536])
            for row in rows:
                self.assertGreaterEqual(float(row["median_us"]),
                                        float(row["best_us"]))
                self.assertGreater(float(row["gb_per_s"]), 0)

    def test_plan(self):
        path = write_safetensors(self.folder / "model.safetensors", {
            "a.weight": ("F32", 4, [1024, 256]),
            "b.weight": ("F32", 4, [1024, 256]),
            "c.bias": ("F32", 4, [10]),
            "half": ("BF16", 2, [64]),
            "steps": ("I64", 8, [1])})
        run = self.run_tool("plan", "--first-bucket", "1K", "--bucket", "1M",
                            path)
        lines = run.out.splitlines()
        self.assertRegex(lines[0], "^4 gradients in 3 buckets, ")
        self.assertNotIn("steps", run.out)
        buckets = re.findall(r"^bucket \d+: (\w+), \d+ bytes\n((?:  .*\n)*)",
                             run.out, re.M)
        # Ready from the last on; a bucket closes when it has enough.
        self.assertEqual([(dtype, re.findall(r"  (\S+) ", names))
                          for dtype, names in buckets],
                         [("bf16", ["half"]),
                          ("f32", ["c.bias", "b.weight"]),
                          ("f32", ["a.weight"]), ])

    def test_plan_with_groups(self):
        path = write_safetensors(self.folder / "model.safetensors", {
            name: ("F32", 4, [64]) for name in ("a.w", "a.b", "b.w", "c.w")})

        def buckets(*arguments):
            out = self.run_tool("plan", *arguments, path).out
            return [re.findall(r"  (\S+) ", names) for names in
                    re.findall(r"^bucket .*\n((?:  .*\n)*)", out, re.M)]
        self.assertEqual(buckets("--group", "[bc].w", "--group", "*.w"),
                         [["c.w", "b.w"], ["a.w"], ["a.b"]])
        self.assertEqual(buckets("--group", "c*", "--first-bucket", "1"),
                         [["c.w"], ["b.w"], ["a.w", "a.b"]])
        for wrong in (["--group", "x*"], ["--group", "c*", "--group", "c.w"]):
            self.assertIn("no gradient is in the group",
                          self.run_tool("plan", *wrong, path, code=1).err)
        self.run_tool("plan", "--group", "", path, code=2)
        self.run_tool("plan", *(["--group", "a*"] * 65), path, code=2)

    def test_plan_of_a_checkpoint(self):
        tensors = {"fc.weight": ("F32", 4, [10]),
                   "optim/exp_avg/fc.weight": ("F32", 4, [10])}
        path = write_safetensors(self.folder / "run.safetensors", tensors,
                                 {"brigade.checkpoint": "1"})
        self.assertRegex(self.run_tool("plan", path).out, "^1 gradients in 1 ")
        path = write_safetensors(self.folder / "model.safetensors", tensors)
        self.assertRegex(self.run_tool("plan", path).out, "^2 gradients in 1 ")

    def test_plan_of_a_bad_file(self):
        run = self.run_tool("plan", self.folder / "none", code=1)
        self.assertIn("No such file", run.err)
        (self.folder / "bad").write_text("not a model")
        self.assertTrue(self.run_tool("plan", self.folder / "bad",
                                      code=1).err)

    def simulate(self, profile, *arguments):
        """The rows of the table, as numbers without the bars."""
        run = self.run_tool("plan", "--simulate", *arguments, profile)
        return [[float(x) for x in line.replace("|", "").split()]
                for line in run.out.splitlines()[4:]]

    def test_plan_simulates(self):
        # 1 ms, then 1 MB, 2 ms, then 1 MB; 1 ms behind: a step of 8 ms
        profile = self.folder / "profile"
        profile.write_text("brigade-profile 1\nstep\t8000000\t3000000\t0\n"
                           "grad\tf32\t1000000\t0\tb\n"
                           "grad\tf32\t1000000\t2000000\ta\n")
        # 8 Gbit/s: 1 GB/s; over 4 ranks 1 MB takes 1.5 ms and 6 messages
        for algorithm, n_messages in ("ring", 6), ("halving", 4):
            row, = self.simulate(profile, "--ranks", "4", "--latency", "10",
                                 "--bandwidth", "8", "--algorithm", algorithm,
                                 "--first-bucket", "1G")
            ranks, transfer, n, exposed, step, faster = row[:6]
            late = n_messages * 0.01
            self.assertEqual((ranks, n), (4, 1))
            self.assertAlmostEqual(exposed, 2 + 3 + late - 3, places=3)
            self.assertAlmostEqual(step, 8 + exposed, places=3)
            self.assertAlmostEqual(faster, 4 * 8 / step, places=2)
            n, exposed, step, _ = row[6:]
            self.assertEqual(n, 2)
            self.assertAlmostEqual(transfer, 3 + 2 * late, places=3)
            self.assertAlmostEqual(exposed, 2 + 1.5 + late - 3, places=3)
            self.assertAlmostEqual(step, 8 + exposed, places=3)
        # At 2 GB/s the thread is busy half of each 1.5 ms: the second begins
        # at 2.75, and the backward is over at 4.5, after it.
        row, = self.simulate(profile, "--ranks", "4", "--latency", "0",
                             "--bandwidth", "8", "--host", "16")
        self.assertEqual(row[6:9], [2, 0, 9.5])
        # A group of both: one bucket by size too; choices know none.
        one, = self.simulate(profile, "--ranks", "4", "--first-bucket", "1G")
        apart, = self.simulate(profile, "--ranks", "4", "--first-bucket", "1")
        self.assertEqual((one[2], apart[2]), (1, 2))
        grouped, = self.simulate(profile, "--ranks", "4", "--first-bucket",
                                 "1", "--group", "?")
        self.assertEqual(grouped, one)
        text = profile.read_text()
        profile.write_text(text.replace("\n", "\ngroup\t1\n")
                           .replace("group\t1\n", "", 2))
        grouped, = self.simulate(profile, "--ranks", "4", "--first-bucket",
                                 "1")
        self.assertEqual(grouped, one)
        profile.write_text(text)
        rows = self.simulate(profile)
        self.assertEqual([row[0] for row in rows], [2, 4, 8, 16, 32, 64])
        for row in rows:
            self.assertLessEqual(row[7], row[3])
        self.assertIn("is no profile", self.run_tool(
            "plan", "--simulate", ROOT / "README.md", code=1).err)

    def test_man_pages(self):
        pages = [ROOT / "tools/man/brigade.1"]
        pages += [ROOT / f"tools/man/brigade-{name}.1" for name in COMMANDS]
        for page in pages:
            text = page.read_text()
            for section in ".SH NAME", ".SH SYNOPSIS", ".SH DESCRIPTION":
                self.assertIn(section, text, page)
            if shutil.which("groff"):
                done = subprocess.run(["groff", "-man", "-Tascii", "-ww", page],
                                      capture_output=True, text=True)
                self.assertEqual(done.stderr, "", page)
        for name in COMMANDS:  # every option of the help is in the page
            page = (ROOT / f"tools/man/brigade-{name}.1").read_text()
            for option in re.findall(r"^  (--[\w-]+)",
                                     self.run_tool(name, "--help").out, re.M):
                self.assertIn(option, page)

    def test_slurm_script_of_the_docs(self):
        """The job of docs/launching.md, with a made-up srun: it resumes once
        there is a checkpoint, and not before."""
        text = (ROOT / "docs/launching.md").read_text()
        job = self.folder / "job.sh"
        job.write_text(re.search(r"```sh\n(.*?)```", text, re.S)[1])
        srun = self.folder / "srun"
        srun.write_text("#!/bin/sh\necho $OPENBLAS_NUM_THREADS \"$@\"\n")
        srun.chmod(0o755)
        path = f"{self.folder}:{os.environ['PATH']}"
        expected = "1 --mpi=pmix ./trainer --checkpoint run.safetensors"
        for _ in range(2):
            done = subprocess.run(["sh", "-eu", job], cwd=self.folder,
                                  env={**os.environ, "PATH": path},
                                  capture_output=True, text=True)
            self.assertEqual((done.stdout, done.stderr, done.returncode),
                             (expected + "\n", "", 0))
            (self.folder / "run.safetensors").write_text("")
            expected += " --resume run.safetensors"
        for option in re.findall(r"^#SBATCH (\S+)", job.read_text(), re.M):
            self.assertRegex(option, r"^--[a-z-]+=[\w:]+$")


if __name__ == "__main__":
    unittest.main()
