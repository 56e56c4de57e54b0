#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Copies the public headers for Doxygen (docs/Doxyfile), line by line the same:
their comments are plain text, which it would pass over or take for markup.
    doxygen_filter.py <folder to copy to>"""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

COMMENT = re.compile(r"/\*.*?\*/", re.S)


def convert(match):
    text, before = match[0], match.string[:match.start()]
    line = before[before.rfind("\n") + 1:]
    body = re.sub(r"([\\@<>#&$%])", r"\\\1", text[2:-2])
    if "SPDX-License-Identifier" in text:
        return "/** \\file" + body.split("Apache-2.0", 1)[1] + "*/"
    if re.match(r" ?-{4,}", text[2:]) or "\n" in line or line.lstrip()[:1] == "#":
        return text
    if re.fullmatch(r" ---- .*", body.strip("\n").split("\n")[0]):
        return text  # a heading, and words about all that follows
    # behind a member or value: it belongs to what is before it
    return ("/**<" if line.strip() else "/**") + body + "*/"


def main():
    out = pathlib.Path(sys.argv[1])
    for path in sorted((ROOT / "include").rglob("*.h")):
        copy = out / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(COMMENT.sub(convert, path.read_text()))


if __name__ == "__main__":
    main()
