#!/bin/sh
# The reference of the public interface, by Doxygen; fails on a warning.
#   api_docs.sh [folder]      html/index.html in it (build/api)
cd "$(dirname "$0")/.." || exit 1
command -v doxygen >/dev/null || { echo "doxygen is not installed" >&2; exit 77; }
mkdir -p "${1:-build/api}" || exit 1
BRG_DOXYGEN_OUT=$(cd "${1:-build/api}" && pwd)
export BRG_DOXYGEN_OUT
rm -rf "$BRG_DOXYGEN_OUT/include" # of headers that are no more
# One process for all: a filter would be started for each header.
python3 scripts/doxygen_filter.py "$BRG_DOXYGEN_OUT" || exit 1
doxygen docs/Doxyfile || exit 1
test -f "$BRG_DOXYGEN_OUT/html/index.html"
