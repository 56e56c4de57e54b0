#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Every test that docs/features.md, docs/communication-hooks.md and docs/compiled.md
name exists, every yes of Brigade's names one, and every no a reason; and
docs/README.md leads to every page."""
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


def main():
    known = known_tests()
    problems = list(check_compiled(known)) + list(check_index())
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
