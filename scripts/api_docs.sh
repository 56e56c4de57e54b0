#!/bin/sh
# The reference of the public interface, by Doxygen; fails on a warning.
#   api_docs.sh [folder]      html/index.html in it (build/api)
cd "$(dirname "$0")/.." || exit 1
command -v doxygen >/dev/null || { echo "doxygen is not installed" >&2; exit 77; }
BRG_DOXYGEN_OUT=${1:-build/api}
export BRG_DOXYGEN_OUT
mkdir -p "$BRG_DOXYGEN_OUT" || exit 1
doxygen docs/Doxyfile || exit 1
test -f "$BRG_DOXYGEN_OUT/html/index.html"
