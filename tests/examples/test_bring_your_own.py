#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A hand-written trainer that adopted the reducer, in C, C++ and Fortran: the
numbers of the program without the library, at every number of ranks; and the
change as its README shows it."""
import difflib
import os
import re
import unittest

from support import MPIRUN, ROOT, ProgramTest

FOLDER = ROOT / "examples/bring_your_own"
ALONE = os.environ.get("BRG_BYO_ALONE", "")
PROGRAMS = os.environ.get("BRG_BYO_PROGRAMS", "").split()


def body(name):
    """The file without its first comment."""
    return (FOLDER / name).read_text().split("*/\n", 1)[1].splitlines()


def changes():
    lines = list(difflib.unified_diff(body("alone.c"), body("ranks.c"), n=1,
                                      lineterm=""))[2:]
    return ["@@" if line.startswith("@@") else line for line in lines]


class BringYourOwnTest(ProgramTest):
    def numbers(self, program, ranks=0):
        run = self.run_program(program, ranks=ranks)
        self.assertEqual(run.code, 0, f"\n{run}")
        found = re.fullmatch(r"error +(\S+), w1\[0\] +(\S+)\n", run.out)
        self.assertTrue(found, f"\n{run}")
        return [float(text) for text in found.groups()]

    def test_every_program_gives_the_numbers_of_one_rank(self):
        expected = self.numbers(ALONE)
        self.assertLess(expected[0], 0.05)  # it has learned
        self.assertGreaterEqual(len(PROGRAMS), 1)
        for program in PROGRAMS:
            for ranks in (0, 1, 2, 3, 4) if MPIRUN else (0,):
                with self.subTest(program=program, ranks=ranks):
                    for a, b in zip(expected, self.numbers(program, ranks)):
                        self.assertAlmostEqual(a, b, delta=2e-10)

    def test_readme_shows_the_change(self):
        readme = (FOLDER / "README.md").read_text()
        block = re.search(r"```diff\n(.*?)\n```", readme, re.S)[1]
        self.assertEqual(block.splitlines(), changes())

    def test_the_change_is_small(self):
        new = [line[1:].strip() for line in changes() if line[0] == "+"]
        n = len([x for x in new if x not in ("", "{", "}")])
        self.assertEqual(n, 24)
        self.assertIn(f"{n} lines", (FOLDER / "README.md").read_text())


if __name__ == "__main__":
    unittest.main()
