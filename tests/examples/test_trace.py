#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`brigade trace` on traces of the GPT trainer, of ranks that fail, and of
other clocks; and files written by a signal."""
import json
import os
import pathlib
import re
import signal
import struct
import subprocess
import time
import unittest
import xml.etree.ElementTree as ElementTree

from support import GPT, MPIRUN, ProgramTest, write_text

TOOL = os.environ.get("BRG_TOOL", "")
SMALL = ("--layers", 2, "--dim", 32, "--heads", 2, "--context", 16,
         "--batch", 12, "--warm-up", 5, "--no-progress")
HEADER = struct.Struct("<8sIIQQQQqQiiii")
RECORD = 64


class TraceTest(ProgramTest):
    def setUp(self):
        super().setUp()
        self.text = write_text(self.folder / "text")
        self.traces = self.folder / "traces"
        self.traces.mkdir()

    def train(self, *arguments, ranks=2):
        return self.good(GPT, "--data", self.text, *SMALL, *arguments,
                         "--trace", self.traces, ranks=ranks)

    def look(self, *arguments, code=0):
        run = self.run_program(TOOL, "trace", *arguments)
        self.assertEqual(run.code, code, f"\n{run}")
        return run

    def events(self):
        path = self.folder / "trace.json"
        self.look("--json", path, self.traces)
        return json.loads(path.read_text())["traceEvents"]

    def test_events_of_a_training_run(self):
        for arguments in ((), ("--compile",)):
            with self.subTest(arguments=arguments):
                self.train("--steps", 6, *arguments)
                self.check_events(self.events())

    def write_trace(self, rank, n_ranks, starts, ends, buckets=()):
        """A file of collectives 0, 1, .. by hand, times in ns; buckets: of
        each its (reducer, bucket)."""
        records = []
        for seq, (start, end) in enumerate(zip(starts, ends)):
            reducer, bucket = buckets[seq] if buckets else (0, -1)
            for kind, at in (3, start), (5, end):  # START, COMPLETE
                records.append(struct.pack(
                    "<QQBBBBhHQQQiiq", at, len(records) + 1, kind, 0, 0,
                    reducer, bucket, 0, seq, 1000, 0, -1, -1, 0))
        text = f"group\t0\tmpi\t{rank}\t{n_ranks}\n".encode()
        header = HEADER.pack(b"BRGTRACE", 1, RECORD, len(records), 0, len(text),
                             ends[-1], 0, 7, rank, n_ranks, 1 + rank, 0)
        path = self.traces / f"rank{rank}.trace"
        path.write_bytes(header + b"".join(records) + text)

    def test_stragglers_are_named(self):
        """Rank 2 comes 4 ms after the others, but twice rank 0 comes 1 ms
        after all."""
        starts = [[], [], []]
        ends = []
        for seq in range(10):
            at = 10_000_000 * (1 + seq)
            starts[1].append(at)
            starts[0].append(at + (5_000_000 if seq in (3, 7) else 1000))
            starts[2].append(at + 4_000_000)
            ends.append(at + 6_000_000)
        for rank in range(3):
            self.write_trace(rank, 3, starts[rank], ends)
        out = self.look(self.traces).out
        self.assertIn("rank 2: the last to start 8 of 10 collectives, "
                      "31.992 ms behind", out)
        self.assertIn("rank 0: the last to start 2 of 10 collectives, "
                      "2.000 ms behind", out)
        self.assertNotIn("rank 1: the last", out)

    def test_each_bucket_of_each_reducer_has_a_track_with_a_name(self):
        buckets = [(1, 0), (1, 1), (2, 0), (1, 1000), (1, 0), (2, 0)]
        starts = [1_000_000 * (1 + k) for k in range(len(buckets))]
        self.write_trace(0, 1, starts, [t + 1000 for t in starts], buckets)
        events = self.events()
        names = {e["tid"]: e["args"]["name"] for e in events
                 if e["name"] == "thread_name"}
        calls = [e for e in events if e["ph"] == "X"]
        self.assertEqual([names[e["tid"]] for e in calls],
                         ["bucket 0", "bucket 1", "bucket 0 of reducer 2",
                          "bucket 1000", "bucket 0", "bucket 0 of reducer 2"])
        self.assertEqual(len({e["tid"] for e in calls}), 4)

    def check_events(self, events):
        for rank in 0, 1:
            mine = [e for e in events if e["pid"] == rank]
            spans = {}
            for e in mine:
                if e["ph"] == "X" and e["name"] in ("step", "forward",
                                                    "backward", "optimizer"):
                    spans.setdefault(e["name"], []).append(e)
            for name in "step", "forward", "backward", "optimizer":
                self.assertEqual(len(spans[name]), 6, name)
            buckets = [e for e in mine if e["ph"] == "X" and
                       "seq" in e["args"] and "bucket" in e["args"] and
                       e["tid"] >= 200000]
            self.assertTrue(buckets)
            gradients = [e for e in mine if e["ph"] == "X" and
                         e["tid"] == 100000]
            for step, backward in zip(spans["step"], spans["backward"]):
                begin, end = step["ts"], step["ts"] + step["dur"]
                inside = [e for e in buckets if begin <= e["ts"] <= end]
                self.assertTrue(inside)
                for e in inside:  # every bucket ends within its step
                    self.assertLessEqual(e["ts"] + e["dur"], end)
                    ready = [g for g in gradients if
                             g["args"]["bucket"] == e["args"]["bucket"] and
                             begin <= g["ts"] <= end]
                    for g in ready:  # and begins behind its gradients
                        self.assertLessEqual(g["ts"] + g["dur"],
                                             e["ts"] + 1e-3)
                names = [g["name"] for g in gradients
                         if begin <= g["ts"] <= end]
                self.assertEqual(len(names), len(set(names)))
                self.assertGreater(len(names), 20)
                self.assertFalse([n for n in names if "parameter" in n])
        self.check_meetings(events)

    def check_meetings(self, events):
        """No rank leaves a bucket before all have come to it."""
        buckets = {}
        for e in events:
            if e["ph"] == "X" and e["tid"] >= 200000:
                key = e["args"]["group"], e["args"]["seq"]
                buckets.setdefault(key, {})[e["pid"]] = e
        self.assertTrue(buckets)
        for key, by_rank in buckets.items():
            self.assertEqual(sorted(by_rank), [0, 1], key)
            last = max(e["ts"] for e in by_rank.values())
            for e in by_rank.values():
                self.assertGreaterEqual(e["ts"] + e["dur"], last - 1e-3)

    def shift(self, rank, ns):
        """As if the rank's clock were another one."""
        path = self.traces / f"rank{rank}.trace"
        data = bytearray(path.read_bytes())
        fields = list(HEADER.unpack_from(data))
        fields[8] = 4711
        HEADER.pack_into(data, 0, *fields)
        for i in range(fields[3]):
            at = HEADER.size + i * RECORD
            time_ns, = struct.unpack_from("<Q", data, at)
            struct.pack_into("<Q", data, at, time_ns + ns)
        path.write_bytes(data)

    def test_clocks_are_aligned(self):
        self.train("--steps", 30)
        self.shift(1, 12345678901)
        run = self.look(self.traces)
        found = float(re.search(r"rank 1: .* clock ([-+][\d.]+) us",
                                run.out)[1])
        self.assertLess(abs(found * 1000 + 12345678901), 2e6)  # of 2 ms
        self.check_meetings(self.events())

    def test_picture(self):
        self.train("--steps", 4)
        path = self.folder / "step.svg"
        for step in 1, 4:
            self.look("--svg", path, "--step", step, self.traces)
            root = ElementTree.parse(path).getroot()
            texts = [e.text for e in root.iter() if e.tag.endswith("}text")]
            for text in "rank 0", "rank 1", "buckets", "gradients":
                self.assertIn(text, texts)
            titles = [e.text for e in root.iter() if e.tag.endswith("}title")]
            for text in "forward, ", "backward, ", "optimizer, ", "0: ":
                self.assertTrue([t for t in titles if t.startswith(text)],
                                text)
        run = self.look("--svg", path, "--step", 5, self.traces, code=1)
        self.assertIn("no step 5 of 4", run.err)

    def test_bad_arguments(self):
        self.look(code=2)
        self.look("--json", code=2)
        self.look("--what", self.traces, code=2)
        self.assertIn("there is no *.trace", self.look(self.traces,
                                                       code=1).err)
        (self.traces / "x.trace").write_text("nothing")
        self.assertIn("x.trace", self.look(self.traces, code=1).err)

    def wait_for(self, what, seconds=60):
        end = time.monotonic() + seconds
        while not what():
            self.assertLess(time.monotonic(), end, "too late")
            time.sleep(0.05)

    def test_a_signal_shows_where_a_rank_is(self):
        environment = {**os.environ, "BRG_TRACE_FOLDER": str(self.traces),
                       "BRG_TRACE_SIGNAL": str(int(signal.SIGUSR1))}
        process = subprocess.Popen(
            [GPT, "--data", str(self.text), *map(str, SMALL), "--backend",
             "self", "--steps", "100000"], env=environment,
            stdout=subprocess.DEVNULL)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        path = self.traces / "rank0.trace"

        def ask():
            handled = pathlib.Path(f"/proc/{process.pid}/status").read_text()
            mask = int(re.search(r"SigCgt:\s*(\w+)", handled)[1], 16)
            if mask >> (signal.SIGUSR1 - 1) & 1:  # it is installed
                process.send_signal(signal.SIGUSR1)
            return path.exists() and HEADER.unpack_from(
                path.read_bytes())[3] > 1000
        self.wait_for(ask)
        self.assertIsNone(process.poll())  # and the program goes on
        run = self.look(path)
        self.assertRegex(run.out, r"rank 0: \d+ records")

    def test_a_late_rank_is_named(self):
        """A rank that is stopped in the middle of training."""
        if not MPIRUN:
            self.skipTest("built without MPI")
        environment = {**os.environ, "BRG_TRACE_FOLDER": str(self.traces),
                       "BRG_TRACE_SIGNAL": str(int(signal.SIGUSR1)),
                       "BRG_TIMEOUT_S": "2", "ASAN_OPTIONS": "detect_leaks=0"}
        process = subprocess.Popen(
            [*MPIRUN, "2", GPT, "--data", str(self.text), *map(str, SMALL),
             "--steps", "100000", "--log-losses",
             str(self.folder / "losses")],
            env=environment, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        losses = self.folder / "losses"
        self.wait_for(lambda: losses.exists() and losses.stat().st_size > 0)
        late = self.rank_of(process, 1)
        os.kill(late, signal.SIGUSR1)
        self.wait_for((self.traces / "rank1.trace").exists)
        os.kill(late, signal.SIGSTOP)
        self.wait_for((self.traces / "rank0.trace").exists)
        run = self.look(self.traces)
        self.assertRegex(run.out, r"rank 0: last started \w+ #\d+")
        self.assertRegex(run.out, r"rank 1 is late: last started \w+ #\d+.*"
                         r"last gradient \w+")
        os.kill(late, signal.SIGCONT)
        _, errors = process.communicate(timeout=60)
        self.assertNotEqual(process.returncode, 0)
        self.assertRegex(errors, r"timed out after 2 s; rank 1 has not")
        run = self.look(self.traces / "rank0.trace")
        self.assertIn("timed out after 2 s; rank 1 has not", run.out)
        self.assertRegex(run.out, "1 of 2 ranks wrote nothing")

    def rank_of(self, process, rank):
        """The process of a rank below mpirun."""
        for path in pathlib.Path("/proc").iterdir():
            try:
                name = os.readlink(path / "exe")
                variables = (path / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            mine = f"BRG_TRACE_FOLDER={self.traces}".encode()
            ranks = [v for v in variables if v.endswith(b"_RANK=%d" % rank) and
                     (b"COMM_WORLD_RANK" in v or v.startswith(b"PMI_RANK"))]
            if name == os.path.realpath(GPT) and mine in variables and ranks:
                return int(path.name)
        self.fail("no such process")
        return None


if __name__ == "__main__":
    unittest.main()
