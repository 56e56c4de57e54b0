#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Every test that docs/features.md, docs/communication-hooks.md and docs/compiled.md
name exists, every yes of Brigade's names one, and every no a reason; and
docs/README.md leads to every page.

    check_features.py [--ran LOG...]

With LastTest.log of one or more runs of all tests: every test that features.md
names ran and passed in one of them. Those that could not (cuda/ without a GPU,
nccl/ in a build without it, checks of debug builds, what is run by hand) are
listed, with the reason."""
import argparse
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Folders of which the logs may have nothing. Any other is one that should have
# been configured.
LEFT_OUT = {"cuda": "a build without CUDA", "nccl": "a build without NCCL"}


def known_tests():
    names = set()
    for path in (ROOT / "tests").rglob("*"):
        if path.suffix in (".c", ".h", ".py"):
            names |= set(re.findall(r"\btest_\w+", path.read_text()))
            names.add(re.sub(r"\.\w+$", "", path.name))
    return names


def short_names(text):
    """Those of docs/compiled.md: the end of a name behind two dots, and the
    beginning of some before a star."""
    ends = set(re.findall(r"`\.{2,3}(\w+)`", text))
    begins = set(re.findall(r"\b(test_\w+)\*", text))
    return ends, begins


def check_compiled(known):
    text = (ROOT / "docs/compiled.md").read_text()
    ends, begins = short_names(text)
    for name in sorted(set(re.findall(r"\b(test_\w+)\b(?!\*)", text)) - begins):
        if name not in known:
            yield f"docs/compiled.md: there is no test {name}"
    for end in sorted(ends):
        if end.endswith("__x"):
            continue  # where the short form is explained
        if not any(name.endswith(end) for name in known):
            yield f"docs/compiled.md: there is no test ..{end}"
    for begin in sorted(begins):
        if not any(name.startswith(begin) for name in known):
            yield f"docs/compiled.md: there is no test {begin}*"


def check_index():
    """docs/README.md leads to every page, and no link of a page to nothing."""
    text = (ROOT / "docs/README.md").read_text()
    for page in sorted((ROOT / "docs").glob("*.md")):
        if page.name != "README.md" and f"({page.name})" not in text:
            yield f"docs/README.md: no link to {page.name}"
        words = re.sub(r"^    .*$", "", page.read_text(), flags=re.M)
        for link in re.findall(r"\]\(([^)#:]+)\)", words):
            if not (page.parent / link).exists():
                yield f"docs/{page.name}: there is no {link}"


class Logs:
    """What ran, by the logs of ctest: tests of C by their line, those of Python
    by their file, of which only the whole is known."""

    def __init__(self, paths):
        text = "\n".join(pathlib.Path(p).read_text(errors="replace")
                         for p in paths)
        self.passed = set(re.findall(r"^\[ +OK \] (test_\w+)", text, re.M))
        self.bad = set(re.findall(r"^\[ +(?:SKIPPED|FAILED) +\] (test_\w+)", text,
                                  re.M)) - self.passed
        self.folders, self.programs, self.partly = set(), set(), set()
        self.skipped = {}  # programs, with what they said
        for part in re.split(r"^\d+/\d+ Testing: ", text, flags=re.M)[1:]:
            name = part.split("\n", 1)[0]
            file = re.search(r"/(test_\w+)\.py\"", part)
            program = re.sub(r"_\d+$", "", name)
            self.folders.add(name.split("/")[0])
            skipped = re.search(r"^SKIPPED, nothing was tested: (.*)", part, re.M)
            if skipped:
                self.skipped[program] = skipped[1]
            if "\nTest Passed." not in part or skipped:
                continue
            if file and re.search(r"^OK \(.*skipped", part, re.M):
                self.partly.add(f"{file[1]}.py")
            else:
                self.passed |= {f"{file[1]}.py"} if file else set()
                self.programs.add(program)


def places_of(name):
    """The files of tests that define it."""
    for path in (ROOT / "tests").rglob("*"):
        if path.suffix in (".c", ".h", ".py") and (
                path.stem == name or re.search(
                    rf"(void\s+|def ){name}\(", path.read_text())):
            yield path


def excuse(name, files, logs):
    """Why it need not have run; None: it must have."""
    programs = {f"{f.parent.name}/{f.stem}" for f in files}
    folders = {f.parent.name for f in files}
    if name.endswith("_in_debug_builds") or name.startswith("test_watch__"):
        return "a check of debug builds"
    if any(f.name in logs.partly for f in files):
        return "its file was skipped in part"
    for program in sorted(programs - logs.programs):
        if program in logs.skipped:
            return logs.skipped[program]
    if folders and folders <= set(LEFT_OUT) - logs.folders:
        return LEFT_OUT[min(folders)]
    return None


def check_ran(text, logs):
    """Yields problems, and prints what could not run."""
    by_hand = set()
    for line in text.splitlines():
        if "by hand" in line or "as row 61" in line:
            by_hand |= set(re.findall(r"`(test_\w+)`", line))
    for name in sorted(set(re.findall(r"`(test_\w+)`", text))):
        files = list(places_of(name))
        if name in logs.passed or any(f.name in logs.passed for f in files):
            continue
        programs = {f"{f.parent.name}/{f.stem}" for f in files}
        if programs & logs.programs and name in {f.stem for f in files}:
            continue  # it names the program
        why = "run by hand" if name in by_hand else excuse(name, files, logs)
        if why:
            print(f"docs/features.md: {name} did not run here: {why}")
        else:
            why = "was skipped or failed" if name in logs.bad else "did not run"
            yield f"docs/features.md: {name} {why}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--ran", nargs="+", default=[], metavar="LOG")
    ran = parser.parse_args().ran
    known = known_tests()
    problems = list(check_compiled(known)) + list(check_index())
    if ran:
        problems += check_ran((ROOT / "docs/features.md").read_text(), Logs(ran))
    for page in "features.md", "communication-hooks.md":
        text = (ROOT / "docs" / page).read_text()
        for name in sorted(set(re.findall(r"`(test_\w+)`", text))):
            if name not in known:
                problems.append(f"docs/{page}: there is no test {name}")
    rows = (ROOT / "docs/features.md").read_text().splitlines()
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        if len(cells) == 11 and cells[0].isdigit() and \
                cells[2] in ("**Y**", "**P**") and "`test_" not in cells[10]:
            problems.append(f"docs/features.md: row {cells[0]} names no test")
        if len(cells) == 11 and cells[0].isdigit() and not cells[10]:
            problems.append(f"docs/features.md: row {cells[0]} gives no reason")
    print("\n".join(problems), end="\n" if problems else "")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
