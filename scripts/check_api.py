#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The public headers against the shared library: every function that a header
declares with BRG_API is exported, and nothing else is.
    check_api.py <libbrigade.so> [<component header> <libbrigade_x.so>]..."""
import pathlib
import re
import subprocess
import sys

INCLUDE = pathlib.Path(__file__).resolve().parent.parent / "include/brigade"
COMPONENT_HEADERS = {"mpi.h", "nccl.h", "cuda.h"}


def declared(path):
    text = re.sub(r"/\*.*?\*/", " ", path.read_text(), flags=re.S)
    text = re.sub(r"^\s*#(?:\\\n|.)*$", "", text, flags=re.M)
    return set(re.findall(r"\bBRG_API\b[^;{]*?\b(brg_\w+)\s*[\(;\[]", text))


def exported(library):
    lines = subprocess.run(["nm", "-D", "--defined-only", library], check=True,
                           capture_output=True, text=True).stdout.splitlines()
    return {line.split()[2].split("@")[0] for line in lines}


def compare(names, library):
    found = exported(library)
    for name in sorted(names - found):
        print(f"{name} is declared but not in {pathlib.Path(library).name}")
    for name in sorted(found - names):
        print(f"{name} is in {pathlib.Path(library).name} but in no header")
    return names == found


def main():
    headers = [h for h in INCLUDE.rglob("*.h") if h.name not in COMPONENT_HEADERS]
    good = compare(set().union(*map(declared, headers)), sys.argv[1])
    rest = sys.argv[2:]
    for header, library in zip(rest[::2], rest[1::2]):
        good &= compare(declared(INCLUDE / header), library)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
