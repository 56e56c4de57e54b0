#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Ranks of a trainer under mpirun are killed at random moments: while they
start, train, evaluate and write their checkpoint. Nothing hangs; every other
rank names the one that was killed, or mpirun ends it; and training
goes on from the checkpoint, at any number of ranks, to the weights of a run
that was left alone.

BRG_KILLS: how many (4); BRG_TEST_SEED: of the moments. A failure prints the
kill that it came of."""
import collections
import os
import pathlib
import random
import shutil
import signal
import subprocess
import time
import unittest

from support import FASHION_MNIST, MPIRUN, ProgramTest, write_images

N_KILLS = int(os.environ.get("BRG_KILLS", "4"))
SEED = int(os.environ.get("BRG_TEST_SEED", "6"))
TIMEOUT_S = 4  # of the library, where nobody can see who has died
LIMIT_S = 40  # for a run to end after a kill
N_STEPS = 60
SMALL = ("--batch", 24, "--steps", N_STEPS, "--reduction", "reproducible",
         "--no-progress")

Kill = collections.namedtuple(
    "Kill", "number ranks victim recovers node_size moment")


def children(pid):
    """Processes of this parent, with the rank that mpirun gave them."""
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1]
                         .split()[1])
            if parent != pid:
                continue
            for word in (folder / "environ").read_bytes().split(b"\0"):
                if word.startswith(b"OMPI_COMM_WORLD_RANK="):
                    yield int(folder.name), int(word.split(b"=")[1])
        except (OSError, ValueError):
            continue  # it has just ended


def where(pid):
    """What a process that hangs is at, if there is a debugger."""
    if not shutil.which("gdb"):
        return ""
    return subprocess.run(["gdb", "-p", str(pid), "-batch", "-ex", "bt"],
                          stdin=subprocess.DEVNULL, capture_output=True,
                          text=True).stdout


@unittest.skipUnless(MPIRUN, "built without MPI")
class Kills(ProgramTest):
    def setUp(self):
        super().setUp()
        self.data = write_images(self.folder / "data")
        self.state = self.folder / "state"
        self.metrics = self.folder / "metrics"

    def train(self, *arguments, ranks=0):
        return self.good(FASHION_MNIST, "--data", self.data, *SMALL,
                         *arguments, ranks=ranks)

    def start(self, kill):
        options = ("--eval-every", 5, "--checkpoint", self.state, "--metrics",
                   self.metrics)
        command = [*MPIRUN, str(kill.ranks), FASHION_MNIST, "--data",
                   self.data, *SMALL, *options]
        return subprocess.Popen(
            list(map(str, command)), stdin=subprocess.DEVNULL, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, "BRG_TIMEOUT_S": str(TIMEOUT_S),
                 "BRG_MPI_NODE_SIZE": str(kill.node_size),
                 "OMPI_MCA_orte_enable_recovery": str(int(kill.recovers)),
                 "ASAN_OPTIONS": "detect_leaks=0"})

    def n_rows(self):
        try:
            return self.metrics.read_text().count("\n")
        except OSError:
            return 0

    def find(self, kill, process):
        """The victim, when its time has come; None if the run has ended."""
        deadline = time.monotonic() + LIMIT_S
        # Where others go on when one has died, MPI itself waits for it while
        # they all start.
        while kill.recovers and self.n_rows() < 2 and process.poll() is None:
            self.assertLess(time.monotonic(), deadline, kill)
            time.sleep(0.001)
        time.sleep(kill.moment)
        while process.poll() is None:
            self.assertLess(time.monotonic(), deadline, kill)
            for pid, rank in children(process.pid):
                if rank == kill.victim:
                    return pid
        return None

    def judge(self, kill, process, has_killed, out, err):
        """Done before the kill, or everybody knows who it was."""
        if "result: " in out and not (has_killed and process.returncode):
            return "done"
        say = f"{kill}, exit code {process.returncode}\n{out}\n{err}"
        self.assertTrue(has_killed, say)
        for sanitizer in "Sanitizer", "runtime error":
            self.assertNotIn(sanitizer, err, say)
        names = [f"rank {kill.victim}, which has died",
                 f"rank {kill.victim} has died",
                 f"rank {kill.victim} has not "]
        lines = err.splitlines()
        if not kill.recovers:
            # mpirun does not always say whose end it was.
            names += [f"process rank {kill.victim} ",
                      "the job has been aborted"]
            self.assertTrue(any(n in line for n in names for line in lines),
                            say)
            return "ended"
        for rank in range(kill.ranks):
            if rank == kill.victim:
                continue
            mine = [line for line in lines
                    if line.startswith(f"fashion_mnist: rank {rank}:")]
            self.assertTrue(any(n in line for n in names for line in mine),
                            say)
        return "named"

    def run_kill(self, kill):
        for path in self.state, self.metrics:
            path.unlink(missing_ok=True)
        process = self.start(kill)
        try:
            victim = self.find(kill, process)
            killed_at = time.monotonic()
            if victim:
                os.kill(victim, signal.SIGKILL)
            out, err = process.communicate(timeout=LIMIT_S)
        except ProcessLookupError:  # it had ended by itself
            victim = None
            out, err = process.communicate(timeout=LIMIT_S)
        finally:
            if process.poll() is None:  # it hangs: nothing shall stay behind
                for pid, rank in children(process.pid):
                    print(f"{kill}: rank {rank} hangs\n{where(pid)}")
                    os.kill(pid, signal.SIGKILL)
                process.kill()
                process.wait()
        seconds = time.monotonic() - killed_at
        return self.judge(kill, process, victim is not None, out, err), seconds

    def test_kills(self):
        source = random.Random(SEED)
        whole = self.train()
        began = time.monotonic()
        self.train(ranks=3)
        length = time.monotonic() - began
        counts, slowest = collections.Counter(), 0.0
        for number in range(N_KILLS):
            ranks = source.choice((2, 3, 4))
            kill = Kill(number, ranks, source.randrange(ranks),
                        number % 2 == 1, source.choice((0, 0, 1)),
                        source.uniform(0, length))
            outcome, seconds = self.run_kill(kill)
            counts[outcome] += 1
            slowest = max(slowest, seconds)
            written = list(self.folder.glob("state.tmp.*"))
            counts["while writing"] += len(written)
            for path in written:
                path.unlink()
            if not self.state.exists():
                counts["before a checkpoint"] += 1
                continue
            rest = self.train("--resume", self.state,
                              ranks=source.choice((0, 2, 3)))
            self.assertEqual(rest.result["params_hash"],
                             whole.result["params_hash"], kill)
        print(f"seed {SEED}, {N_KILLS} kills: {dict(counts)}; ended at most "
              f"{slowest:.2f} s after the kill")


if __name__ == "__main__":
    unittest.main()
