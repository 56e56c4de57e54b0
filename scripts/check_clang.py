#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Every C file of a build, read by clang with the warnings of the build: what gcc
accepts clang should accept. Nothing is compiled.

usage: check_clang.py <build folder made with Ninja>"""
import concurrent.futures
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys

SKIPPED = 77
WITH_VALUE = ("-o", "-MF", "-MT", "-MQ")
ALONE = ("-c", "-MD", "-MMD")


def commands(build):
    """The compiler's arguments for each C file; once for the objects of the shared
    and the static library."""
    done = subprocess.run(["ninja", "-C", build, "-t", "compdb"],
                          capture_output=True, text=True, check=True)
    found = {}
    for entry in json.loads(done.stdout):
        words = shlex.split(entry["command"])
        if not entry["file"].endswith(".c") or "-c" not in words:
            continue
        first = next(i for i, word in enumerate(words) if word.startswith("-"))
        arguments = [word for k, word in enumerate(words[first:], first)
                     if word not in ALONE + WITH_VALUE
                     and words[k - 1] not in WITH_VALUE
                     and not (word.startswith("-D")
                              and word.endswith("_EXPORTS"))]
        found[tuple(sorted(set(arguments) - {"-fPIC"}))] = arguments
    return list(found.values())


def main():
    build = pathlib.Path(sys.argv[1])
    clang = next(filter(None, map(shutil.which, ("clang", "clang-14"))), None)
    if not clang or not (build / "build.ninja").exists():
        print("skipped: needs clang and a build made with Ninja")
        return SKIPPED

    def read(arguments):
        return subprocess.run(
            [clang, "-fsyntax-only", "-Werror", "-Wno-unknown-warning-option",
             *arguments], cwd=build, capture_output=True, text=True)

    calls = commands(build)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        bad = [done.stderr for done in pool.map(read, calls) if done.returncode]
    print("".join(bad), end="")
    print(f"{len(calls)} files and their variants, {len(bad)} with warnings")
    return 1 if bad or not calls else 0


if __name__ == "__main__":
    sys.exit(main())
