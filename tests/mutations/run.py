#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Re-introduces known bugs, one at a time, into a copy of the sources; each
must make its test, which alone is run, fail by a check: not by a program that
does not build, crashes or never ends. Prints the score.

    tests/mutations/run.py [<name>...]
    tests/mutations/run.py --apply      # only whether the patches still fit
    tests/mutations/run.py --refresh    # patches that fit, to the line

A patch begins with "test: <target>", "caught by: <test>" and a line that says
what the bug is. The numbers are those of docs/simulated-world.md. Patches of
the NCCL backend are left out, and counted as such, where NCCL is not found.
"""
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILD = "build/mutations"  # as deep as build/test: ccache finds its objects
TIMEOUT_S = 120
JOBS = os.environ.get("BRG_JOBS", "2")
OPTIONS = ("-DBRG_BUILD_BENCH=OFF", "-DBRG_BUILD_EXAMPLES=OFF",
           "-DCMAKE_BUILD_TYPE=Release", "-DBRG_WERROR=ON")
if shutil.which("ccache"):
    OPTIONS += ("-DCMAKE_C_COMPILER_LAUNCHER=ccache",)
FAILED = re.compile(r"^\[  FAILED  \] (test_\w+)$", re.M)


def run(*command, **options):
    return subprocess.run(list(map(str, command)), text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          **options)


def copy_sources(folder):
    files = run("git", "-C", ROOT, "ls-files", "-co", "--exclude-standard")
    for name in files.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def build(folder, *targets):
    return run("ninja", "-C", folder / BUILD, "-j", JOBS, *targets)


def run_test(folder, target, test):
    """None if this test of the program passes, else what happened: that it
    failed, or one line about a program that did not come so far."""
    try:
        done = run(folder / BUILD / "tests" / target, timeout=TIMEOUT_S,
                   env={**os.environ, "BRG_TEST_FILTER": test})
    except subprocess.TimeoutExpired:
        return "no end after %d s" % TIMEOUT_S
    if f"[ RUN      ] {test}\n" not in done.stdout:
        return f"{test} was not run"
    if done.returncode == 0:
        return None
    has_failed = test in FAILED.findall(done.stdout)
    return test if has_failed else "exit status %d" % done.returncode


def head_of(patch):
    """The fields above the empty line, but for the description."""
    lines = patch.read_text().splitlines()[:2]
    return dict(line.split(": ", 1) for line in lines)


def build_mutated(folder, target):
    """What a bug leaves unused is no error, but then all is built anew."""
    if build(folder, target).returncode == 0:
        return True
    run("cmake", "-DBRG_WERROR=OFF", folder / BUILD)
    return build(folder, target).returncode == 0


def judge(folder, patch, target, expected):
    """What became of one mutation."""
    done = run("patch", "-p1", "-s", "-d", folder, "-i", patch)
    if done.returncode != 0:
        return "the patch does not apply: " + done.stdout.strip()
    try:
        if not build_mutated(folder, target):
            return "does not build"
        failed = run_test(folder, target, expected)
    finally:
        run("patch", "-p1", "-s", "-R", "-d", folder, "-i", patch)
    if failed is None:
        return "survived"
    if failed == expected:
        return "caught by " + expected
    return f"not caught by {expected}: {failed}"


def check_patches(patches):
    """Whether each still applies: in a second, where a run takes minutes."""
    n_bad = 0
    for p in patches:
        done = run("patch", "-p1", "-s", "--dry-run", "-d", ROOT, "-i", p)
        n_bad += done.returncode != 0
        if done.returncode != 0:
            print(f"{p.stem}: does not apply: {done.stdout.strip()}")
    print(f"patches that apply: {len(patches) - n_bad} of {len(patches)}")
    return 1 if n_bad else 0


def changed_files(patch):
    return [line.split("/", 1)[1] for line in patch.read_text().splitlines()
            if line.startswith("+++ b/")]


def refresh(patches):
    """Writes each patch anew against the sources as they are."""
    with tempfile.TemporaryDirectory(prefix="brg-mutations-") as name:
        for p in patches:
            before, after = (pathlib.Path(name) / p.stem / side
                             for side in "ab")
            for file in changed_files(p):
                for side in before, after:
                    (side / file).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(ROOT / file, side / file)
            done = run("patch", "-p1", "-s", "--no-backup-if-mismatch", "-d",
                       after, "-i", p)
            if done.returncode != 0:
                print(f"{p.stem}: make it anew: {done.stdout.strip()}")
                continue
            head = p.read_text().split("--- a/", 1)[0]
            diffs = [run("diff", "-up", "--label", f"a/{file}", "--label",
                         f"b/{file}", before / file, after / file).stdout
                     for file in changed_files(p)]
            p.write_text(head + "".join(diffs))
    return check_patches(patches)


def main(names):
    if names == ["--apply"]:
        return check_patches(sorted(HERE.glob("*.patch")))
    if names == ["--refresh"]:
        return refresh(sorted(HERE.glob("*.patch")))
    patches = [p for p in sorted(HERE.glob("*.patch"))
               if not names or p.stem in names]
    heads = {p: head_of(p) for p in patches}
    folder = pathlib.Path(tempfile.mkdtemp(prefix="brg-mutations-"))
    os.environ["CCACHE_BASEDIR"] = str(folder)
    try:
        copy_sources(folder)
        run("cmake", "-S", folder, "-B", folder / BUILD, "-G", "Ninja",
            *OPTIONS)
        has_nccl = run("ninja", "-C", folder / BUILD, "-t", "query",
                       "tests/nccl_test_contract").returncode == 0
        left_out = [p for p in patches if not has_nccl
                    and heads[p]["test"].startswith("nccl_")]
        patches = [p for p in patches if p not in left_out]
        targets = sorted({heads[p]["test"] for p in patches})
        done = build(folder, *targets)
        if done.returncode != 0:
            print(done.stdout[-2000:])
            return 1
        for head in heads.values():
            failed = head["test"] in targets and run_test(
                folder, head["test"], head["caught by"])
            if failed:
                print(f"{head['test']} without any mutation: {failed}")
                return 1
        n_caught = 0
        for patch in patches:
            result = judge(folder, patch, heads[patch]["test"],
                           heads[patch]["caught by"])
            n_caught += result.startswith("caught by ")
            print(f"{patch.stem}: {result}", flush=True)
        for patch in left_out:
            print(f"{patch.stem}: NOT RUN, NCCL is not here")
        print(f"mutations caught: {n_caught} of {len(patches)}"
              + (f", {len(left_out)} not run" if left_out else ""))
        return 0 if n_caught == len(patches) else 1
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
