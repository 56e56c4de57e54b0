#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of two commits, run in turn:
    bench_compare.py [--passes N] <commit> <commit> <benchmark>...
    bench_compare.py [--passes N] <commit> . dispatch      '.': this tree
Commits are unpacked and built under build/compare. Prints for every
figure both medians, and the median and the spread of the ratios
(second / first) of the passes."""
import argparse
import pathlib
import re
import statistics
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent
LINE = re.compile(r"^bench: (\S+) +(\S+) *(\S*)", re.M)


def git(*arguments):
    return subprocess.run(["git", "-C", str(ROOT), *arguments], check=True,
                          stdout=subprocess.PIPE, text=True).stdout.strip()


def checkout(commit):
    """A folder with the files of that commit."""
    if commit == ".":
        return ROOT
    commit = git("rev-parse", "--short", commit + "^{commit}")
    folder = ROOT / "build" / "compare" / commit
    if not folder.exists():
        folder.mkdir(parents=True)
        archive = subprocess.run(["git", "-C", str(ROOT), "archive", commit],
                                 check=True, stdout=subprocess.PIPE).stdout
        subprocess.run(["tar", "-x", "-C", str(folder)], input=archive,
                       check=True)
    return folder


def run(folder, names):
    """Name -> (value, unit) of each figure."""
    done = subprocess.run([folder / "scripts" / "bench.sh", *names], cwd=folder,
                          stdout=subprocess.PIPE, text=True)
    figures = {name: (float(value), "" if "=" in unit else unit)
               for name, value, unit in LINE.findall(done.stdout)}
    if done.returncode or not figures:
        raise SystemExit(f"{folder}: the benchmarks failed\n{done.stdout[-2000:]}")
    return figures


def print_table(passes):
    """passes: pairs of what run() returned."""
    print(f"{'figure':<36}{'first':>12}{'second':>12}  {'unit':<8}"
          "second / first [least-most]")
    for name in passes[0][0]:
        pairs = [(a[name][0], b[name][0]) for a, b in passes
                 if name in a and name in b]
        if not pairs or any(a == 0 for a, _ in pairs):
            continue
        ratios = [b / a for a, b in pairs]
        first, second = (statistics.median(side) for side in zip(*pairs))
        print(f"{name:<36}{first:>12.4g}{second:>12.4g}  "
              f"{passes[0][0][name][1]:<8}{statistics.median(ratios):.3f} "
              f"[{min(ratios):.3f}-{max(ratios):.3f}]")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("commits", nargs=2)
    parser.add_argument("names", nargs="+")
    options = parser.parse_args()
    folders = [checkout(commit) for commit in options.commits]
    passes = []
    for number in range(options.passes):
        print(f"pass {number + 1} of {options.passes}", flush=True)
        passes.append([run(folder, options.names) for folder in folders])
    print_table(passes)


if __name__ == "__main__":
    main()
