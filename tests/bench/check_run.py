#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What bench/gpu/run.py makes of what gpu_training prints, with a made-up one."""
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]

# it fails with one model, sleeps with another
TRAINING = """#!/bin/sh
case "$1" in
mlp) echo "no memory" >&2; exit 1 ;;
gpt) sleep 60 ;;
esac
if test -n "$KERNEL_TIMES"; then
    cat >"$(echo "$KERNEL_TIMES" | sed s/%r/0/)" <<END
4 steps of 100 us (1 left out), 24 records (0 lost)

| what | us of a step | of it |
|---|---|---|
| products | 40 | 40.0% |
| step | 100 | 100.0% |

| us of a step | times | what | kernel |
|---|---|---|---|
| 20.0 | 1.0 | optimizer | update |
END
fi
for mode in $(echo "$3" | tr , ' '); do
    for ms in 30 32 34; do
        echo "step_ms $ms.5 queued_ms 1.0 mode $mode"
    done
    echo "host_us 35.5 waits 0.00 driver_bytes 0 graphs 1.00 mode $mode"
    echo "exposed_us 325.0 650.0 mode $mode"
done
"""


def run(folder, *flags):
    done = subprocess.run(
        [sys.executable, ROOT / "bench/gpu/run.py", folder, "--ranks", "1",
         "--rounds", "1", *flags], stdout=subprocess.PIPE, text=True,
        stderr=subprocess.STDOUT, timeout=50, check=False)
    return done.returncode, done.stdout


def expect(text, *parts):
    for part in parts:
        if part not in text:
            sys.exit(f"expected '{part}' in:\n{text}")


def main():
    with tempfile.TemporaryDirectory() as folder:
        program = pathlib.Path(folder, "gpu_training")
        program.write_text(TRAINING)
        program.chmod(0o755)
        code, text = run(folder, "gpt2-16", "--ways", "eager,fused,quickest")
        expect(text, "32.500 ms  (30.500 to 34.500)  host 35.5 us, waits 0, "
               "0 bytes from the driver  exposed 325 to 650 us: 1.00 to 2.00 %",
               "target 31.0 ms: miss", "| `gpt2` 16 | 32.50 | 32.50 | 32.50 |",
               "| `gpt2` 16 | 36, 0 | 36, 0 | 36, 0 |")
        code, text = run(folder, "mlp-128", "gpt2-4", "--ways", "fused")
        expect(text, "FAILED (1)", "no memory", "| `gpt2` 4 | 32.50 |")
        code, text = run(folder, "gpt-8", "--ways", "fused,quickest",
                         "--budget", "2")
        expect(text, "STOPPED after", "LEFT OUT, the time is over: gpt-8 quick")
        code, text = run(folder, "gpt2-16", "--profile", f"{folder}/out")
        expect(text, "rank 0: 4 steps of 100 us", "| products | 40 (40.0%) |",
               "| step | 100 (100.0%) |")
        code, text = run(folder, "gpt2-16", "--ways", "fussed")
        expect(text, "'fussed' is no way: eager, ")
        if code == 0:
            sys.exit("a way that there is not ends well")


if __name__ == "__main__":
    main()
