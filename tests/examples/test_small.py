#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The small examples, each of which checks its own result; and the code in
README.md."""
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
                     "offload", "sparse_embedding"):
            with self.subTest(name=name):
                self.check(name)

    def test_ddp_under_mpirun(self):
        for ranks in 1, 2, 3:
            run = self.check("04_ddp_mpi", ranks=ranks)
            self.assertIn(f"{ranks} ranks learned", run.out)

    def test_readme_shows_the_example(self):
        source = (ROOT / "examples/04_ddp_mpi.c").read_text()
        part = re.search(r"/\* README begin \*/\n(.*?)/\* README end \*/",
                         source, re.S)[1]
        readme = (ROOT / "README.md").read_text()
        blocks = re.findall(r"```c\n(.*?)```", readme, re.S)
        self.assertIn(part, blocks, "README.md and examples/04_ddp_mpi.c")

    def test_readme_files_exist(self):
        readme = (ROOT / "README.md").read_text()
        for name in re.findall(r"`((?:\w+/)+[\w.]+)`", readme):
            with self.subTest(name=name):
                self.assertTrue((ROOT / name).exists())

    def test_sizes(self):
        for path in (ROOT / "examples").glob("*.c"):
            self.assertLess(len(path.read_text().splitlines()), 120, path)


if __name__ == "__main__":
    unittest.main()
