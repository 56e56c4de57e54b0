#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The GPT trainer as a program, on a small made-up text."""
import unittest

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


if __name__ == "__main__":
    unittest.main()
