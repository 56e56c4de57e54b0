#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Dependency direction: which room may include which, and where the headers of
vendors may appear. Tests, examples and benchmarks may see everything."""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

# room -> rooms it may include besides itself
CORE = ["core/base", "core/tensor", "core/ops", "core/autograd"]
MAY = {
    "core/base": [],
    "core/trace": CORE[:1],
    "core/tensor": CORE[:1],
    "core/ops": CORE[:2],
    "core/autograd": CORE[:3],
    "core/nn": CORE,
    "core/optim": CORE,
    "core/io": CORE,
    "core/cuda": CORE[:3],  # structs and texts, no symbols: docs/adr/0005
    "comm/patterns": [],
    "comm": CORE[:1] + ["core/trace", "comm/patterns"],
    "comm/mpi": CORE[:1] + ["comm/patterns"],
    "comm/nccl": CORE[:1] + ["comm/patterns"],
    "reducer": CORE + ["core/trace", "comm"],
    "compile": CORE + ["comm", "reducer"],
}

# pattern of a vendor's header -> rooms that may include it
VENDOR = [
    (r"mpi(-ext)?\.h", ["comm/mpi"]),
    (r"nccl.*\.h", ["comm/nccl"]),
    (r"(cuda|cublas|cudnn|nvrtc|cub/).*\.(h|cuh)", ["core/cuda", "comm/nccl"]),
    (r"cblas\.h|openblas.*\.h|lapacke?\.h", ["core/ops"]),
    (r"(.*/)?cJSON\.h", ["core/io"]),
    (r"zlib\.h", ["core/io"]),
    (r"Random123/.*", ["core/base", "core/ops", "core/nn", "core/io"]),
    (r"xxhash\.h", ["core/base", "core/io", "comm", "comm/mpi", "reducer", "compile"]),
    (r"cmocka\.h", []),
]

# (file, included): exceptions, each with its reason
EXCEPTIONS = {
}

INCLUDE = re.compile(r'^\s*#\s*include\s+([<"])([^>"]+)[>"]')


def room_of(path):
    """The longest room that holds this path from the root, or None."""
    rooms = [room for room in MAY if path.startswith(room + "/")]
    return max(rooms, key=len, default=None)


def problem(path, room, quote, included):
    if (path, included) in EXCEPTIONS:
        return None
    for pattern, rooms in VENDOR:
        if quote == "<" and re.fullmatch(pattern, included) and room not in rooms:
            return "is a vendor's header of " + (" and ".join(rooms) or "tests")
    if included.endswith(".c"):
        return "is a .c file"
    if quote == "<" or room is None:
        return None
    if not (ROOT / included).exists():
        return "is not a path from the repository root"
    target = room_of(included)
    if target not in (None, room) and target not in MAY[room]:
        return f"is in {target}, which {room} may not include"
    return None


def main():
    n_bad = 0
    folders = ["core", "comm", "reducer", "compile", "include"]
    for path in sorted(p for f in folders for p in (ROOT / f).rglob("*")
                       if p.suffix in (".c", ".h", ".cu", ".cuh")):
        name = path.relative_to(ROOT).as_posix()
        for number, line in enumerate(path.read_text().splitlines(), 1):
            match = INCLUDE.match(line)
            if not match:
                continue
            why = problem(name, room_of(name), *match.groups())
            if name.startswith("include/") and match[1] == '"':
                why = "is not a public header"
            if why:
                print(f"{name}:{number}: {match[2]} {why}")
                n_bad += 1
    return 1 if n_bad else 0


if __name__ == "__main__":
    sys.exit(main())
