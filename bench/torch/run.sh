#!/bin/sh
# PyTorch beside the library, if a Python with PyTorch is here: PYTHON or
# python3 or Debian's /usr/bin/python3 (package python3-torch).
#   run.sh <folder of the bench programs> [name...]
here=$(dirname "$0")
for python in "${PYTHON:-python3}" /usr/bin/python3; do
    if "$python" -c "import torch" 2>/dev/null; then
        exec "$python" "$here/compare.py" "$@"
    fi
done
echo "bench_torch: skipped, no Python with PyTorch (Debian: python3-torch)"
