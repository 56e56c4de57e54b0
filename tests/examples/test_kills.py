#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Ranks of the trainers under mpirun are killed at random moments: while they
start, train, evaluate and write their checkpoint. The job ends soon; every
other rank names the one that was killed, or mpirun ends it; and training
goes on from the checkpoint, at any number of ranks (with the default reduction
at the same one), to the weights of a run that was left alone. A run that was
over before its kill does not count: another moment is drawn.

BRG_KILLS: how many (4); BRG_TEST_SEED: of the moments; BRG_TEST_SLOWNESS: of
the machine (1), a factor for how soon. A failure prints the kill that it came
of."""
import collections
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import time
import unittest

from support import (FASHION_MNIST, GPT, MPIRUN, ProgramTest, write_images,
                     write_text)

N_KILLS = int(os.environ.get("BRG_KILLS", "4"))
SEED = int(os.environ.get("BRG_TEST_SEED", "6"))
TIMEOUT_S = 4  # of the library, where nobody can see who has died
# For a run to end after a kill: a time-out, that of a rank which waits for one
# that waits, and what else there is to do.
END_S = (2 * TIMEOUT_S + 6) * float(os.environ.get("BRG_TEST_SLOWNESS", "1"))
LIMIT_S = END_S + 30  # for one that hangs, which is then looked at
MAX_DRAWS = 10  # of a moment, until one comes before the end of the run

# What is trained, and how.
Job = collections.namedtuple("Job", "program n_steps reproducible arguments")
SMALL_GPT = ("--layers", 1, "--dim", 16, "--heads", 2, "--context", 16,
             "--warm-up", 5, "--sample", 0)
JOBS = (Job(FASHION_MNIST, 60, True, ("--model", "mlp")),
        Job(GPT, 200, False, (*SMALL_GPT, "--compile=step")),
        Job(FASHION_MNIST, 12, False, ("--model", "cnn")),
        Job(GPT, 200, True, (*SMALL_GPT, "--compile")),
        Job(FASHION_MNIST, 60, False, ("--model", "mlp", "--compile=step")),
        Job(FASHION_MNIST, 12, True, ("--model", "cnn", "--compile")))

Kill = collections.namedtuple(
    "Kill", "number job ranks victim recovers node_size row moment")


# What tells a process its rank: Open MPI's variable, hydra's (MPICH).
RANK_OF = re.compile(rb"(?:OMPI_COMM_WORLD_RANK|PMI_RANK)=(\d+)")


def parents():
    """Of each process there is."""
    found = {}
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            found[int(folder.name)] = int(words[1])
        except OSError:
            continue  # it has just ended
    return found


def rank_of(pid):
    try:
        words = pathlib.Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    ranks = [int(found[1]) for found in map(RANK_OF.fullmatch, words) if found]
    return ranks[0] if ranks else None


def ranks_below(pid):
    """Processes that mpirun has given a rank: children of it or of its proxy,
    and not what they start in turn."""
    above = parents()
    level = [pid]
    while level:
        level = [child for child, parent in above.items() if parent in level]
        ranks = [(child, rank_of(child)) for child in level]
        yield from ((child, rank) for child, rank in ranks if rank is not None)
        level = [child for child, rank in ranks if rank is None]


def is_hydra():
    """The launcher is MPICH's."""
    said = subprocess.run([os.environ.get("MPIRUN", "mpirun"), "--version"],
                          capture_output=True, text=True)
    return "HYDRA" in said.stdout


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
        self.data = {FASHION_MNIST: write_images(self.folder / "data"),
                     GPT: write_text(self.folder / "text")}
        # Hydra ends all ranks with -disable-auto-cleanup too.
        self.can_recover = not is_hydra()
        self.state = self.folder / "state"
        self.metrics = self.folder / "metrics"
        self.hashes = {}
        self.lengths = {}

    def command(self, job, *arguments):
        reduction = "reproducible" if job.reproducible else "default"
        return (job.program, "--data", self.data[job.program], "--batch", 24,
                "--steps", job.n_steps, "--reduction", reduction,
                "--no-progress", *job.arguments, *arguments)

    def train(self, job, *arguments, ranks=0, node_size=0):
        os.environ["BRG_MPI_NODE_SIZE"] = str(node_size)
        return self.good(*self.command(job, *arguments), ranks=ranks)

    def left_alone(self, job, ranks, node_size):
        """The hash of a run that nobody disturbs. By default sums are those
        of the ranks, in the order of the nodes."""
        if job.reproducible:
            ranks = node_size = 0
        key = job, ranks, node_size
        if key not in self.hashes:
            self.hashes[key] = self.train(
                job, ranks=ranks,
                node_size=node_size).result["params_hash"]
        return self.hashes[key]

    def length(self, job):
        """Of a run, from its start to its end."""
        if job not in self.lengths:
            began = time.monotonic()
            self.train(job, ranks=3)
            self.lengths[job] = time.monotonic() - began
        return self.lengths[job]

    def start(self, kill):
        options = ("--eval-every", 5, "--checkpoint", self.state, "--metrics",
                   self.metrics)
        command = [*MPIRUN, str(kill.ranks),
                   *self.command(kill.job, *options)]
        return subprocess.Popen(
            list(map(str, command)), stdin=subprocess.DEVNULL, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, "BRG_TIMEOUT_S": str(TIMEOUT_S),
                 "BRG_MPI_NODE_SIZE": str(kill.node_size),
                 "OMPI_MCA_orte_enable_recovery": str(int(kill.recovers)),
                 # UCX, below MPICH, ends who reads memory of one that died.
                 "UCX_TLS": "^cma",
                 "ASAN_OPTIONS": "detect_leaks=0"})

    def n_rows(self):
        try:
            return self.metrics.read_text().count("\n")
        except OSError:
            return 0

    def wait_for_row(self, kill, process, row, deadline):
        while self.n_rows() < row and process.poll() is None:
            self.assertLess(time.monotonic(), deadline, kill)
            time.sleep(0.0005)

    def find(self, kill, process):
        """The victim, when its time has come; None if the run has ended."""
        deadline = time.monotonic() + LIMIT_S
        if not kill.recovers:
            time.sleep(kill.moment)
        # Where others go on when one has died, MPI itself waits for it while
        # they all start: not before the first steps.
        self.wait_for_row(kill, process, min(kill.row, 2), deadline)
        while process.poll() is None:
            self.assertLess(time.monotonic(), deadline, kill)
            for pid, rank in ranks_below(process.pid):
                if rank == kill.victim:
                    self.wait_for_row(kill, process, kill.row, deadline)
                    if kill.recovers:
                        time.sleep(kill.moment)
                    return pid if process.poll() is None else None
        return None

    def judge(self, kill, process, has_killed, out, err):
        """Done before the kill, or everybody knows who it was."""
        if "result: " in out and not (has_killed and process.returncode):
            return "done"
        say = f"{kill}, exit code {process.returncode}\n{out}\n{err}"
        self.assertTrue(has_killed, say)
        for sanitizer in "Sanitizer", "runtime error":
            self.assertNotIn(sanitizer, err, say)
        # One that waits for others who wait for it says so of them, and that it
        # has not come.
        names = [f"rank {kill.victim}, which has died",
                 f"rank {kill.victim} has died",
                 f"rank {kill.victim} has not ",
                 f"nor have come:.*rank {kill.victim}\\b",
                 f"one has not come: rank[ 0-9,]* {kill.victim}\\b"]
        lines = err.splitlines()
        if not kill.recovers:
            # mpirun does not always say whose end it was; hydra says it on
            # stdout.
            lines += out.splitlines()
            names += [f"process rank {kill.victim} ",
                      "the job has been aborted", "EXIT STRING: Killed"]
            self.assertTrue(any(re.search(n, line) for n in names for line in lines),
                            say)
            return "ended"
        name = pathlib.Path(kill.job.program).name
        for rank in range(kill.ranks):
            if rank == kill.victim:
                continue
            mine = [line for line in lines
                    if line.startswith(f"{name}: rank {rank}:")]
            self.assertTrue(any(re.search(n, line) for n in names for line in mine),
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
                for pid, rank in ranks_below(process.pid):
                    print(f"{kill}: rank {rank} hangs\n{where(pid)}")
                    os.kill(pid, signal.SIGKILL)
                process.kill()
                process.wait()
        seconds = time.monotonic() - killed_at
        outcome = self.judge(kill, process, victim is not None, out, err)
        if outcome != "done":
            self.assertLess(seconds, END_S,
                            f"{kill}: from the kill to the end\n{out}\n{err}")
        return outcome, seconds

    def draw_and_run(self, source, number):
        """Until the kill was one of a run under way."""
        job = JOBS[number % len(JOBS)]
        is_odd = (number + number // len(JOBS)) % 2 == 1
        recovers = is_odd and self.can_recover
        longest = 0.005 if recovers else self.length(job)
        for n_drawn in range(MAX_DRAWS):
            ranks = source.choice((2, 3, 4))
            # From the start, or from a row of the metrics on, about a step.
            kill = Kill(number, job, ranks, source.randrange(ranks), recovers,
                        source.choice((0, 0, 1)),
                        source.randint(2, job.n_steps) if recovers else 0,
                        source.uniform(0, longest))
            outcome, seconds = self.run_kill(kill)
            if outcome != "done":
                return kill, outcome, seconds, n_drawn
        self.fail(f"{MAX_DRAWS} runs were over before the kill, at last {kill}")

    def go_on(self, source, kill):
        """From the checkpoint, to the weights of a run left alone."""
        ranks, node_size = kill.ranks, kill.node_size
        if kill.job.reproducible:
            ranks, node_size = source.choice((0, 2, 3)), 0
        rest = self.train(kill.job, "--resume", self.state, ranks=ranks,
                          node_size=node_size)
        self.assertEqual(rest.result["params_hash"],
                         self.left_alone(kill.job, ranks, node_size), kill)

    def test_kills(self):
        source = random.Random(SEED)
        counts, slowest = collections.Counter(), (0.0, None)
        for number in range(N_KILLS):
            kill, outcome, seconds, n_late = self.draw_and_run(source, number)
            counts[outcome] += 1
            counts["drawn again"] += n_late
            slowest = max(slowest, (seconds, kill))
            written = list(self.folder.glob("state.tmp.*"))
            counts["while writing"] += len(written)
            for path in written:
                path.unlink()
            if not self.state.exists():
                counts["before a checkpoint"] += 1
                continue
            self.go_on(source, kill)
            counts["went on"] += 1
        self.assertEqual(counts["ended"] + counts["named"], N_KILLS)
        print(f"seed {SEED}, {N_KILLS} kills: {dict(counts)}; ended at most "
              f"{slowest[0]:.2f} s after the kill ({slowest[1]})")


if __name__ == "__main__":
    unittest.main()
