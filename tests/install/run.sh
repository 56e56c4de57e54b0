#!/bin/sh
# Installs a build into a prefix of its own, then builds and runs a project
# outside against it: by find_package and by pkg-config, shared and static.
#   run.sh <build folder> <cmake> <C compiler> [component...]
set -eu
build=$1 cmake=$2 compiler=$3
shift 3
here=$(cd "$(dirname "$0")" && pwd)
work=$build/install_test
prefix=$work/prefix

say() { echo "== $*"; }

# run <component or empty> <program> <argument>...: components on two ranks
run() {
    ranks=""
    test "$1" != mpi || ranks="${MPIRUN:-mpirun} -n 2"
    shift
    $ranks "$@" >"$work/output" 2>&1 || {
        cat "$work/output"
        echo "$* failed" >&2
        exit 1
    }
}

rm -rf "$work"
mkdir -p "$work"
say "installing"
"$cmake" --install "$build" --prefix "$prefix" >"$work/install.log"

pc_dir=$(dirname "$(find "$prefix" -name brigade.pc)")
export PKG_CONFIG_PATH="$pc_dir${PKG_CONFIG_PATH:+:$PKG_CONFIG_PATH}"
lib_dir=$(pkg-config --variable=libdir brigade)

for file in share/brigade/brigade.f90; do
    test -f "$prefix/$file" || { echo "$file was not installed" >&2; exit 1; }
done

components=$(echo "$*" | tr ' ' ';')
for static in OFF ON; do
    say "find_package, static $static"
    "$cmake" -S "$here" -B "$work/cmake_$static" -DCMAKE_PREFIX_PATH="$prefix" \
        -DCMAKE_C_COMPILER="$compiler" -DUSE_STATIC=$static \
        -DCOMPONENTS="$components" >"$work/configure.log"
    "$cmake" --build "$work/cmake_$static" >"$work/build.log" || {
        cat "$work/build.log"; exit 1; }
    run "" "$work/cmake_$static/consumer"
    test ! -x "$work/cmake_$static/consumer_cxx" ||
        run "" "$work/cmake_$static/consumer_cxx"
    for name in "$@"; do
        run "$name" "$work/cmake_$static/consumer_$name"
        BRG_BACKEND_PATH=$lib_dir run "$name" "$work/cmake_$static/consumer" "$name"
    done
done
if readelf -d "$work/cmake_ON/consumer" | grep -q libbrigade; then
    echo "the static program needs libbrigade.so" >&2
    exit 1
fi

say "a component that is not there must be refused"
if "$cmake" -S "$here" -B "$work/missing" -DCMAKE_PREFIX_PATH="$prefix" \
    -DCOMPONENTS=no_such_part >"$work/missing.log" 2>&1; then
    echo "find_package found no_such_part" >&2
    exit 1
fi

for suffix in "" -static; do
    say "pkg-config, brigade$suffix"
    # shellcheck disable=SC2046
    "$compiler" -std=c11 "$here/main.c" -o "$work/pc$suffix" \
        $(pkg-config --cflags --libs "brigade$suffix") -Wl,-rpath,"$lib_dir"
    run "" "$work/pc$suffix"
    for name in "$@"; do
        "$compiler" -std=c11 "$here/$name.c" -o "$work/pc_$name$suffix" \
            $(pkg-config --cflags --libs "brigade-$name$suffix") \
            -Wl,-rpath,"$lib_dir"
        run "$name" "$work/pc_$name$suffix"
        run "$name" "$work/pc$suffix" "$name" # found beside libbrigade, or by rpath
    done
done
say "all good"
