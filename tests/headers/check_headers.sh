#!/bin/sh
# Compiles each public header alone, strictly.
#   check_headers.sh <include> <generated include> <std> <compiler> <header>...
include=$1 generated=$2 std=$3 compiler=$4
shift 4
case $std in
c++*) language=c++ ;;
*) language=c ;;
esac
n_bad=0
for header in "$@"; do
    name=${header#"$include"/}
    printf '#include <%s>\n#include <%s>\ntypedef int nothing;\n' "$name" "$name" |
        "$compiler" -std="$std" -x $language -fsyntax-only -pedantic -Wall \
            -Wextra -Werror -I "$include" -I "$generated" - || {
        echo "$name does not compile alone as $std" >&2
        n_bad=$((n_bad + 1))
    }
done
echo "$# headers as $std, $n_bad bad"
test $n_bad -eq 0
