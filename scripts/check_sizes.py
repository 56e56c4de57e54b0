#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Limits on the length of functions, files and public headers. With --report,
also the distribution."""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = ["core", "comm", "reducer", "compile", "include", "tests", "examples",
           "bench", "tools"]
MAX_FUNCTION, MAX_FILE, MAX_PUBLIC_HEADER = 70, 800, 300

# path, or path:function -> reason
EXCEPTIONS = {
}


def functions(lines):
    """(name, first line, length) of each function: K&R, brace in column 0."""
    start = None
    for number, line in enumerate(lines):
        if line == "{" and number > 0 and start is None:
            start = number
        elif line == "}" and start is not None:
            first = start - 1
            while first > 0 and re.match(r"\s", lines[first]):
                first -= 1
            head = " ".join(lines[first:start])
            match = re.search(r"(\w+)\s*\(", head)
            yield match[1] if match else "?", first + 1, number - first + 1
            start = None


def main():
    problems, lengths = [], []
    for path in sorted(p for f in FOLDERS for p in (ROOT / f).rglob("*.[ch]")):
        name = path.relative_to(ROOT).as_posix()
        lines = path.read_text().splitlines()
        limit = MAX_PUBLIC_HEADER if name.startswith("include/") else MAX_FILE
        if len(lines) > limit and name not in EXCEPTIONS:
            problems.append(f"{name}: {len(lines)} lines, limit {limit}")
        for function, first, length in functions(lines):
            lengths.append(length)
            key = f"{name}:{function}"
            if length > MAX_FUNCTION and key not in EXCEPTIONS:
                problems.append(f"{name}:{first}: {function} has {length} lines, "
                                f"limit {MAX_FUNCTION}")
    print("\n".join(problems), end="\n" if problems else "")
    if "--report" in sys.argv[1:] and lengths:
        lengths.sort()
        print(f"{len(lengths)} functions: median {lengths[len(lengths) // 2]}, "
              f"90% within {lengths[len(lengths) * 9 // 10]}, "
              f"longest {lengths[-1]} lines")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
