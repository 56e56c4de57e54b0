#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The Fashion-MNIST trainer as a program, on a small made-up data set."""
import csv
import pathlib
import unittest

from support import (MPIRUN, FASHION_MNIST, ProgramTest, write_idx, write_images)

REAL = pathlib.Path("/usr/share/datasets/fashion-mnist")


class FashionMnistTest(ProgramTest):
    def setUp(self):
        super().setUp()
        self.data = write_images(self.folder / "data")

    def train(self, *arguments, ranks=0):
        return self.good(FASHION_MNIST, "--data", self.data, "--no-progress",
                         *arguments, ranks=ranks)

    def refuse(self, *arguments, ranks=0, says=()):
        return self.bad(FASHION_MNIST, "--data", self.data, "--no-progress",
                        *arguments, ranks=ranks, says=says)


class Training(FashionMnistTest):
    def test_ranks_learn_and_agree(self):
        """The hash is compared over ranks by the trainer itself."""
        for ranks in 1, 2, 3:
            with self.subTest(ranks=ranks):
                run = self.train("--epochs", 6, "--batch", 24, "--lr", 0.01,
                                 ranks=ranks)
                self.assertGreater(float(run.result["accuracy"]), 0.5)
                self.assertEqual(run.result["steps"], "120")

    def test_same_losses_for_any_number_of_ranks(self):
        """A batch of B on one rank, of B / n on each of n; 32 is not a
        multiple of 3."""
        for ranks in 0, 2, 3:
            self.train("--epochs", 1, "--batch", 32, "--lr", 0.01,
                       "--log-losses", self.folder / f"losses{ranks}",
                       ranks=ranks)
        for ranks in 2, 3:
            self.assert_losses_close(self.folder / "losses0",
                                     self.folder / f"losses{ranks}", 1e-4)

    def test_one_hash_at_any_world_size(self):
        for model in "mlp", "cnn":
            hashes = {
                self.train("--model", model, "--steps", 4, "--batch", 16,
                           "--reduction", "reproducible",
                           ranks=ranks).result["params_hash"]
                for ranks in (0, 2, 3)}
            self.assertEqual(len(hashes), 1)

    def test_evaluation_counts_each_sample_once(self):
        for ranks in 0, 2, 3:
            run = self.train("--eval-only", ranks=ranks)
            if ranks == 0:
                first = run.result
            self.assertEqual(run.result["accuracy"], first["accuracy"])
            self.assertEqual(run.result["loss"], first["loss"])
            self.assertEqual(run.result["steps"], "0")

    def test_optimizer_and_steps(self):
        run = self.train("--optimizer", "adamw", "--steps", 7, "--batch", 16)
        self.assertEqual(run.result["steps"], "7")
        run = self.train("--model", "cnn", "--steps", 2, "--batch", 8, ranks=2)
        self.assertEqual(run.result["model"], "cnn")

    def test_progress_lines(self):
        run = self.good(FASHION_MNIST, "--data", self.data, "--epochs", 1)
        self.assertIn("epoch 1, step 3:", run.out)
        self.assertNotIn("\x1b", run.out, "not a terminal")
        self.assertEqual(run.err, "")

    def test_metrics(self):
        path = self.folder / "metrics.csv"
        losses = self.folder / "losses"
        for ranks in (0, 2) if MPIRUN else (0,):
            self.train("--steps", 3, "--metrics", path, "--log-losses", losses,
                       ranks=ranks)
            with path.open() as file:
                rows = list(csv.DictReader(file))
            steps, expected = self.losses(losses)
            self.assertEqual([int(row["step"]) for row in rows], steps)
            self.assertEqual([float(row["loss"]) for row in rows], expected)
            for row in rows:
                self.assertEqual(row["epoch"], "0")
                self.assertGreater(float(row["step_ms"]),
                                   float(row["wait_ms"]))
                self.assertGreater(float(row["lr"]), 0)
        self.bad(FASHION_MNIST, "--data", self.data, "--metrics",
                 self.folder / "none" / "file", says=["cannot write"])

    def test_profile(self):
        path = self.folder / "profile"
        hashes = set()
        for buckets in "default", "size", "measured":
            run = self.train("--steps", 9, "--profile", path, "--buckets",
                             buckets, ranks=2 if MPIRUN else 0)
            hashes.add(run.result["params_hash"])
            lines = [line.split("\t") for line in
                     path.read_text().splitlines()]
            self.assertEqual(lines[0], ["brigade-profile 1"])
            step, backward, _ = map(int, lines[1][1:])
            self.assertGreater(step, backward)
            ready = [int(line[3]) for line in lines[2:]]
            self.assertEqual(ready, sorted(ready))
            self.assertEqual(lines[2][0], "grad")
        self.assertEqual(len(hashes), 1, "buckets change no bit")
        self.refuse("--steps", 1, "--profile", path, says=["2 at least"])
        self.refuse("--buckets", "large",
                    says=["expected default or size or measured"])

    def test_seed(self):
        runs = [self.train("--steps", 3, "--seed", seed).result["params_hash"]
                for seed in (4, 4, 5)]
        self.assertEqual(runs[0], runs[1])
        self.assertNotEqual(runs[0], runs[2])

    def test_compiled_to_the_bit(self):
        for model in "mlp", "cnn":
            for ranks in 0, 2, 3:
                with self.subTest(model=model, ranks=ranks):
                    options = ("--model", model, "--steps", 4, "--batch", 24)
                    eager = self.train(*options, ranks=ranks)
                    for flag in "--compile", "--compile=step":
                        plan = self.train(*options, flag, ranks=ranks)
                        self.assertEqual(eager.result["params_hash"],
                                         plan.result["params_hash"], flag)


class Resuming(FashionMnistTest):
    def check(self, *options, ranks):
        state = self.folder / "state.safetensors"
        options = ("--batch", 48, *options)
        whole = self.train("--epochs", 2, *options, ranks=ranks)
        self.train("--epochs", 1, "--checkpoint", state, *options, ranks=ranks)
        rest = self.train("--epochs", 2, "--resume", state, *options,
                          ranks=ranks)
        for key in "params_hash", "accuracy", "loss", "steps":
            self.assertEqual(whole.result[key], rest.result[key], key)

    def test_bit_for_bit(self):
        self.check(ranks=0)
        self.check(ranks=2)
        self.check("--optimizer", "adamw", ranks=2)

    def test_in_the_middle_of_an_epoch(self):
        state = self.folder / "state"
        whole = self.train("--steps", 9, "--batch", 32)
        self.train("--steps", 4, "--batch", 32, "--checkpoint", state)
        rest = self.train("--steps", 9, "--batch", 32, "--resume", state)
        self.assertEqual(whole.result["params_hash"],
                         rest.result["params_hash"])

    def test_past_the_last_step_it_says_so(self):
        state = self.folder / "state"
        whole = self.train("--steps", 4, "--checkpoint", state)
        self.assertNotIn("--resume", whole.err)
        rest = self.train("--steps", 3, "--resume", state, ranks=2)
        self.assertEqual(rest.err.count("is at step 4 and training ends at "
                                        "step 3"), 1, rest)
        self.assertEqual(whole.result["params_hash"],
                         rest.result["params_hash"])
        only = self.train("--eval-only", "--steps", 3, "--resume", state)
        self.assertNotIn("is at step", only.err)

    def test_at_another_number_of_ranks(self):
        state = self.folder / "state"
        self.train("--steps", 4, "--checkpoint", state, ranks=2)
        a = self.train("--eval-only", "--resume", state)
        b = self.train("--eval-only", "--resume", state, ranks=3)
        self.assertEqual(a.result["params_hash"], b.result["params_hash"])
        self.assertEqual(a.result["accuracy"], b.result["accuracy"])

    def test_from_4_ranks_to_2_to_3(self):
        """Bit for bit under the reproducible reduction."""
        how = ("--batch", 24, "--reduction", "reproducible")
        for model in "mlp", "cnn":
            states = [self.folder / f"{model}{i}" for i in range(2)]
            options = (*how, "--model", model)
            whole = self.train("--steps", 9, *options)
            self.train("--steps", 3, *options, "--checkpoint", states[0],
                       ranks=4)
            self.train("--steps", 6, *options, "--resume", states[0],
                       "--checkpoint", states[1], ranks=2)
            rest = self.train("--steps", 9, *options, "--resume", states[1],
                              ranks=3)
            self.assertEqual(whole.result["params_hash"],
                             rest.result["params_hash"], model)

    def test_bad_checkpoints(self):
        state = self.folder / "state"
        self.refuse("--resume", state, says=["state"])
        self.train("--steps", 2, "--checkpoint", state)
        self.assertEqual(len(list(self.folder.iterdir())), 2,
                         "data and state, no temporary file")
        self.refuse("--resume", state, "--seed", 9, says=["state", "seed"])
        self.refuse("--resume", state, "--model", "cnn", says=["state"])
        self.refuse("--resume", state, "--optimizer", "adamw",
                    says=["state"])
        contents = state.read_bytes()
        state.write_bytes(contents[:-100])
        self.refuse("--resume", state, ranks=2, says=["state"])
        state.write_bytes(b"\xff" * 64)
        self.refuse("--resume", state, says=["state"])

    def test_checkpoint_that_cannot_be_written(self):
        """Said before the training, if it is known by then."""
        late = self.folder / ("x" * 250)  # too long with .tmp
        for path, says, is_late in (
                (self.folder / "no" / "such" / "state", "no/such", False),
                (self.folder, "Is a directory", False),
                (late, "too long", True)):
            with self.subTest(says=says):
                run = self.refuse("--steps", 2, "--checkpoint", path, ranks=2,
                                  says=["rank 0", says])
                self.assertNotIn("rank 1:", run.err)
                self.assertEqual("epoch 1" in run.out, is_late, f"\n{run}")
        run = self.refuse("--steps", 2, "--profile",
                          self.folder / "no" / "profile", says=["no/profile"])
        self.assertNotIn("epoch 1", run.out)


class Failing(FashionMnistTest):
    def test_arguments(self):
        for arguments, says in (
                (["--epochs", "0"], ["--epochs", "'0'"]),
                (["--epochs", "two"], ["--epochs", "two"]),
                (["--batch", "-4"], ["--batch", "-4"]),
                (["--batch", "100000"], ["--batch", "480"]),
                (["--lr", "nan"], ["--lr", "nan"]),
                (["--lr", "1e999"], ["--lr", "1e999"]),
                (["--model", "rnn"], ["--model", "rnn", "cnn"]),
                (["--optimizer", "adam"], ["--optimizer", "adamw"]),
                (["--seed", "1x"], ["--seed", "1x"]),
                (["--backend", "pigeon"], ["pigeon"]),
                (["--no-such-option"], ["no-such-option"]),
                (["extra"], ["extra"])):
            with self.subTest(arguments=arguments):
                self.refuse(*arguments, says=says)

    def test_help(self):
        for option in "--help", "--usage", "--version":
            run = self.run_program(FASHION_MNIST, option)
            self.assertEqual((run.code, run.err), (0, ""), option)
            self.assertIn("fashion_mnist", run.out, option)

    def test_data_files(self):
        images = self.data / "train-images-idx3-ubyte.gz"
        labels = self.data / "train-labels-idx1-ubyte"
        good = images.read_bytes()
        images.write_bytes(good[:-2000])
        self.refuse(says=[images.name])
        images.write_bytes(b"not an image file at all")
        self.refuse(says=[images.name])
        write_idx(images, (480, 28, 27), bytes(480 * 28 * 27))
        self.refuse(says=["480, 28, 27", "28, 28"])
        images.unlink()
        run = self.refuse(ranks=2, says=["rank 0", images.name])
        self.assertNotIn("rank 1:", run.err, "one message is enough")
        images.write_bytes(good)
        write_idx(labels, (479,), bytes(479))
        self.refuse(says=["480 images", "479 labels"])
        write_idx(labels, (480,), bytes(479) + bytes([10]))
        self.refuse(says=["479", "is 10"])

    def test_loss_that_is_not_a_number(self):
        for ranks in 0, 2:
            self.refuse("--lr", "1e30", ranks=ranks,
                        says=["rank", "step ", "loss"])

    def test_log_that_cannot_be_written(self):
        self.refuse("--log-losses", self.folder / "no" / "log",
                    says=["no/log"])


@unittest.skipUnless(REAL.is_dir(), "no dataset-fashion-mnist here")
class Real(ProgramTest):
    def test_part_of_an_epoch(self):
        run = self.good(FASHION_MNIST, "--steps", 150, "--no-progress",
                        ranks=2)
        self.assertGreater(float(run.result["accuracy"]), 0.75)


if __name__ == "__main__":
    unittest.main()
