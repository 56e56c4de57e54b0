#!/bin/sh
# The reference of the public interface, by Doxygen; fails on a warning.
#   api_docs.sh [folder]      html/index.html in it (build/api)
cd "$(dirname "$0")/.." || exit 1
command -v doxygen >/dev/null || { echo "doxygen is not installed" >&2; exit 77; }
mkdir -p "${1:-build/api}" || exit 1
out=$(cd "${1:-build/api}" && pwd)
rm -rf "$out/include" # of headers that are no more
# One process for all: a filter would be started for each header.
python3 scripts/doxygen_filter.py "$out" || exit 1
sed "s|build/api|$out|" docs/Doxyfile | doxygen - || exit 1
test -f "$out/html/index.html"
