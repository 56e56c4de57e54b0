#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes a public header readable by Doxygen (docs/Doxyfile): its comments are
plain text, which Doxygen would pass over or take for markup."""
import re
import sys

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


print(COMMENT.sub(convert, open(sys.argv[1], encoding="utf-8").read()), end="")
