#!/bin/sh
# Names in the built libraries: a shared library exports only brg_* (and not
# brg__*, which is for the inside); the static one defines only brg_* names.
#   check_symbols.sh <libbrigade.a> <libbrigade.so>...
set -u
static=$1
shift
bad=0

# complain <what> <names>: fails if there are any.
complain() {
    test -n "$2" || return 0
    echo "$1:" >&2
    echo "$2" | sed 's/^/    /' >&2
    bad=1
}

for library in "$@"; do
    exported=$(nm -D --defined-only "$library" | awk '{print $3}')
    echo "$(basename "$library"): $(echo "$exported" | grep -c .) exported names"
    complain "$library exports names that are not brg_*" \
        "$(echo "$exported" | grep -Ev '^brg_[^_]')"
    test -n "$exported" || complain "exports nothing" "$library"
done
complain "$static defines names that are not brg_*" \
    "$(nm -g --defined-only "$static" 2>/dev/null |
        awk 'NF == 3 {print $3}' | grep -Ev '^brg_' | sort -u)"
exit $bad
