#!/bin/sh
# clang-format over the tracked C files.
#   format.sh          rewrites them
#   format.sh --check  lists those that would change; 77: no clang-format 14
#                      here (each version has its own taste)
# Rows in .def files may be long and are left alone.
cd "$(dirname "$0")/.." || exit 1
format=$(command -v clang-format-14 || command -v clang-format) || {
    echo "clang-format was not found (Debian package clang-format); skipped"
    exit 77
}
files=$(git ls-files '*.c' '*.h' 2>/dev/null)
test -n "$files" || { echo "not a git checkout; skipped"; exit 77; }
case ${1:-} in
--check)
    "$format" --version | grep -q 'version 14\.' || {
        echo "$("$format" --version) is not version 14; skipped"
        exit 77
    }
    # Many files a process: there are many, and most are short.
    said=$(for file in $files; do
        if test -f "$file"; then echo "$file"; fi
    done | xargs -n 50 -P "$(getconf _NPROCESSORS_ONLN)" \
        "$format" --dry-run --Werror 2>&1) && exit 0
    bad=$(echo "$said" | sed -n 's/^\([^ :]*\):[0-9].*clang-format-violations.*/\1/p')
    test -n "$bad" || { echo "$said" >&2; exit 1; }
    echo "not formatted (run scripts/format.sh):" >&2
    echo "$bad" | sort -u | sed 's/^/    /' >&2
    exit 1
    ;;
"") "$format" -i $files ;;
*)
    "$format" -i "$@"
    ;;
esac
