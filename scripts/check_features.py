#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Every test that docs/features.md and docs/communication-hooks.md name exists,
and every yes of Brigade's names one."""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def known_tests():
    names = set()
    for path in (ROOT / "tests").rglob("*"):
        if path.suffix in (".c", ".h", ".py"):
            names |= set(re.findall(r"\btest_\w+", path.read_text()))
            names.add(re.sub(r"\.\w+$", "", path.name))
    return names


def main():
    known, problems = known_tests(), []
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
    print("\n".join(problems), end="\n" if problems else "")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
