#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes docs/env.md and docs/ops.md from the row files, and
include/brigade/places.h from the headers of the ops. With --check, fails if
they are not what it would write."""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
NOTE = "<!-- Made by scripts/gen_docs.py from {}; do not edit. -->\n"


def strip_comments(text):
    return re.sub(r"/\*.*?\*/", " ", text, flags=re.S)


def split_args(text):
    """Arguments of a macro call, split at the commas of its top level."""
    args, depth, start, quoted, i = [], 0, 0, False, 0
    while i < len(text):
        c = text[i]
        if c == "\\" and quoted:
            i += 1
        elif c == '"':
            quoted = not quoted
        elif not quoted:
            depth += (c in "([{") - (c in ")]}")
            if c == "," and depth == 0:
                args.append(text[start:i].strip())
                start = i + 1
        i += 1
    return args + [text[start:].strip()]


def rows(text, pattern):
    """(macro, arguments) of each call of a macro that matches."""
    text = strip_comments(text)
    for match in re.finditer(rf"^\s*({pattern})\s*\(", text, flags=re.M):
        depth, end, quoted = 1, match.end(), False
        while depth and end < len(text):
            c = text[end]
            if c == '"' and text[end - 1] != "\\":
                quoted = not quoted
            elif not quoted:
                depth += (c == "(") - (c == ")")
            end += 1
        yield match[1], split_args(text[match.end():end - 1])


def unquote(text):
    return "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', text)).replace('\\"', '"')


def cell(text):
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


def env_page(source):
    out = ["# Environment variables\n",
           NOTE.format("core/base/env.def"),
           "Read when first needed; a value that is not understood is reported",
           "to the log sink and the default is used.\n",
           "| variable | default | meaning |", "|---|---|---|"]
    for _, (name, value, doc) in rows(source, "BRG_ENV"):
        default = f"`{unquote(value)}`" if unquote(value) else "empty"
        out.append(f"| `BRG_{name}` | {default} | {cell(unquote(doc))} |")
    return "\n".join(out) + "\n"


def ops_page(source):
    out = ["# Ops\n", NOTE.format("core/ops/ops.def"),
           "One row per op, as in the table of the library.\n",
           "| op | kind | definition |", "|---|---|---|"]
    for macro, args in rows(source, r"BRG_\w+"):
        kind = macro[len("BRG_"):].lower().replace("_", " ")
        rest = ", ".join(cell(a) for a in args[1:])
        out.append(f"| `{args[0]}` | {kind} | {f'`{rest}`' if rest else ''} |")
    return "\n".join(out) + "\n"


PLACES = """/* SPDX-License-Identifier: Apache-2.0
 * Op calls that know their place: see debug.h. Made by scripts/gen_docs.py from
 * the headers of the ops; do not edit. */
#ifndef BRG_PLACES_H
#define BRG_PLACES_H

#include <brigade/debug.h>
#include <brigade/ops.h>

#ifdef BRG_TRACE_CALLS

#define BRG_PLACE(call)                                                        \\
    (brg_place_push(__FILE__, __LINE__), brg_place_pop(call))

{}

#endif

#endif
"""


def place(name):
    """A macro of places.h, as clang-format has it."""
    define, call = f"#define {name}(...)", f"BRG_PLACE({name}(__VA_ARGS__))"
    one_line = f"{define} {call}"
    return one_line if len(one_line) <= 80 else f"{define:79}\\\n    {call}"


def places_header(source):
    names = re.findall(r"^BRG_API\s+brg_tensor\s*\*\s*(brg_\w+)\(",
                       strip_comments(source), flags=re.M)
    return PLACES.format("\n".join(map(place, names))) if names else ""


PAGES = [("include/brigade/ops_*.h", "include/brigade/places.h", places_header),
         ("core/base/env.def", "docs/env.md", env_page),
         ("core/ops/ops.def", "docs/ops.md", ops_page)]


def main():
    stale = []
    for source, target, page in PAGES:
        target = ROOT / target
        text = page("".join(f.read_text() for f in sorted(ROOT.glob(source))))
        if target.exists() and target.read_text() == text:
            continue
        if "--check" in sys.argv[1:]:
            stale.append(target.relative_to(ROOT).as_posix())
        else:
            target.write_text(text)
    for name in stale:
        print(f"{name} is out of date: run scripts/gen_docs.py")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
