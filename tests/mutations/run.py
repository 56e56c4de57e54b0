#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Re-introduces known bugs, one at a time, into a copy of the sources; each
must make its test fail. Prints the score.

    tests/mutations/run.py [<name>...]
    tests/mutations/run.py --apply      # only whether the patches still fit
    tests/mutations/run.py --refresh    # patches that fit, to the line

A patch begins with "test: <target>" and a line that says what the bug is. The
numbers are those of the bug classes in the order in which users of other
systems met them: accumulation, rebuilding, layouts, overlap, stale state.
"""
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TIMEOUT_S = 120
JOBS = os.environ.get("BRG_JOBS", "2")
OPTIONS = ("-DBRG_BUILD_BENCH=OFF", "-DBRG_BUILD_EXAMPLES=OFF",
           "-DBRG_WITH_CUDA=OFF", "-DBRG_WITH_NCCL=OFF",
           "-DCMAKE_BUILD_TYPE=Release")


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
    return run("ninja", "-C", folder / "build", "-j", JOBS, *targets)


def passes(folder, target):
    try:
        return run(folder / "build" / "tests" / target,
                   timeout=TIMEOUT_S).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def judge(folder, patch, target):
    """What became of one mutation."""
    done = run("patch", "-p1", "-s", "-d", folder, "-i", patch)
    if done.returncode != 0:
        return "the patch does not apply: " + done.stdout.strip()
    try:
        if build(folder, target).returncode != 0:
            return "does not build"
        return "survived" if passes(folder, target) else "caught"
    finally:
        run("patch", "-p1", "-s", "-R", "-d", folder, "-i", patch)


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
    targets = {p: p.read_text().splitlines()[0].removeprefix("test: ")
               for p in patches}
    folder = pathlib.Path(tempfile.mkdtemp(prefix="brg-mutations-"))
    try:
        copy_sources(folder)
        run("cmake", "-S", folder, "-B", folder / "build", "-G", "Ninja",
            *OPTIONS)
        done = build(folder, *sorted(set(targets.values())))
        if done.returncode != 0:
            print(done.stdout[-2000:])
            return 1
        for target in sorted(set(targets.values())):
            if not passes(folder, target):
                print(f"{target} fails without any mutation")
                return 1
        n_caught = 0
        for patch, target in targets.items():
            result = judge(folder, patch, target)
            n_caught += result == "caught"
            print(f"{patch.stem}: {result} ({target})", flush=True)
        print(f"mutations caught: {n_caught} of {len(patches)}")
        return 0 if n_caught == len(patches) else 1
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
