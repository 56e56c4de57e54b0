#!/bin/sh
# clang-format over the tracked C files.
#   format.sh          rewrites them
#   format.sh --check  lists those that would change; 77: no clang-format here
# Rows in .def files may be long and are left alone.
cd "$(dirname "$0")/.." || exit 1
format=$(command -v clang-format || command -v clang-format-14) || {
    echo "clang-format was not found (Debian package clang-format); skipped"
    exit 77
}
files=$(git ls-files '*.c' '*.h' 2>/dev/null)
test -n "$files" || { echo "not a git checkout; skipped"; exit 77; }
case ${1:-} in
--check)
    bad=$(for file in $files; do
        test -f "$file" || continue
        "$format" "$file" | cmp -s - "$file" || echo "$file"
    done)
    test -z "$bad" && exit 0
    echo "not formatted (run scripts/format.sh):" >&2
    echo "$bad" | sed 's/^/    /' >&2
    exit 1
    ;;
"") "$format" -i $files ;;
*)
    "$format" -i "$@"
    ;;
esac
