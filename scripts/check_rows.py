#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Says which rows of the specification are met.

Runs the row tests (programs rows_test_* in the folder given) and reads what
they print: a row is met when the test of its name ran and passed, and is not
listed in tests/rows/partial.tsv, where a row stands of which only a part is
checked yet. Fails if a row test fails, was skipped or is not there, or a test
has the name of no row."""
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUTCOME = re.compile(r"^\[\s+(OK|FAILED|ERROR|SKIPPED)\s+\] (?:--- )?(test_\w+)$",
                     re.M)


def table(path):
    lines = path.read_text().splitlines()[1:]
    return [line.split("\t") for line in lines if line.strip()]


def run_all(folder):
    """Name of each row test that ran -> OK, FAILED or SKIPPED."""
    outcomes = {}
    for program in sorted(folder.glob("rows_test_*")):
        done = subprocess.run([program], capture_output=True, text=True)
        for outcome, name in OUTCOME.findall(done.stdout + done.stderr):
            outcomes[name] = outcome
    return outcomes


def main():
    if len(sys.argv) != 2 or not pathlib.Path(sys.argv[1]).is_dir():
        print("usage: check_rows.py FOLDER, where rows_test_* were built",
              file=sys.stderr)
        return 2
    outcomes = run_all(pathlib.Path(sys.argv[1]))
    rows = table(ROOT / "tests/rows/rows.tsv")
    partial = {line[0]: line[1] for line in table(ROOT / "tests/rows/partial.tsv")}
    names = {row[2] for row in rows}
    wrong = [name for name, outcome in outcomes.items()
             if name not in names or outcome in ("FAILED", "ERROR")]
    wrong += [name for name in {*names, *partial} if outcomes.get(name) != "OK"]
    met = 0
    for suite, number, name, groups in rows:
        outcome = outcomes.get(name)
        if outcome == "OK" and name not in partial:
            met += 1
            continue
        why = partial.get(name) if outcome == "OK" else outcome or "no test yet"
        print(f"not met: {suite} {number} {name} ({groups}): {why}")
    for name in sorted(set(wrong)):
        print(f"wrong: {name}: failed, was skipped, or is the name of no row or of "
              "no test")
    print(f"rows: {met} of {len(rows)} met")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
