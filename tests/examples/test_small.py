#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The small examples, each of which checks its own result; and the code in
README.md."""
import os
import pathlib
import re
import unittest

from support import EXAMPLES, ROOT, ProgramTest


class SmallTest(ProgramTest):
    def check(self, name, ranks=0):
        run = self.run_program(pathlib.Path(EXAMPLES) / name, ranks=ranks)
        self.assertEqual(run.code, 0, f"\n{run}")
        self.assertEqual(run.err, "")
        return run

    def test_programs(self):
        for name in ("01_tensor", "02_autograd_mlp", "03_ddp_sim",
                     "04_ddp_mpi", "05_compiled_step", "checkpointing", "custom_function",
                     "offload", "shrink", "sparse_embedding"):
            with self.subTest(name=name):
                self.check(name)

    def test_ddp_under_mpirun(self):
        for ranks in 1, 2, 3:
            run = self.check("04_ddp_mpi", ranks=ranks)
            self.assertIn(f"{ranks} ranks learned", run.out)

    @unittest.skipUnless(os.environ.get("BRG_SHRINKS"), "MPI without ULFM")
    def test_shrink_under_mpirun(self):
        os.environ["MPIRUN_OPTIONS"] = "--with-ft ulfm"
        self.addCleanup(os.environ.pop, "MPIRUN_OPTIONS")
        for ranks, dying, left in (2, (1,), (0,)), (4, (1, 0), (2, 3)):
            run = self.run_program(pathlib.Path(EXAMPLES) / "shrink", *dying,
                                   ranks=ranks)
            for rank in range(ranks):
                line = f"rank {rank}: weights differ"
                self.assertEqual(rank in left, line in run.out, f"\n{run}")

    def check_shown(self, page, program):
        source = (ROOT / "examples" / program).read_text()
        part = re.search(r"/\* shown begin \*/\n(.*?)/\* shown end \*/",
                         source, re.S)[1]
        blocks = re.findall(r"```c\n(.*?)```", (ROOT / page).read_text(), re.S)
        self.assertIn(part, blocks, f"{page} and examples/{program}")

    def test_pages_show_the_examples(self):
        self.check_shown("README.md", "04_ddp_mpi.c")
        self.check_shown("docs/failures.md", "shrink.c")

    def test_readme_files_exist(self):
        readme = (ROOT / "README.md").read_text()
        for name in re.findall(r"`((?:\w+/)+[\w.]+)`", readme):
            with self.subTest(name=name):
                self.assertTrue((ROOT / name).exists())

    def test_sizes(self):
        for path in (ROOT / "examples").glob("*.c"):
            self.assertLess(len(path.read_text().splitlines()), 140, path)


if __name__ == "__main__":
    unittest.main()
