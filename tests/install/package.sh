#!/bin/sh
# The Debian package: built, unpacked, and its program run from there.
#   package.sh <build folder>
set -eu
build=$1
command -v dpkg-deb >/dev/null && command -v cpack >/dev/null || exit 77
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cpack -G DEB --config "$build/CPackConfig.cmake" -B "$work" >"$work/log" 2>&1 || {
    cat "$work/log"
    exit 1
}
deb=$(echo "$work"/*.deb)
dpkg-deb -x "$deb" "$work/root"
"$work/root/usr/bin/brigade" --version
"$work/root/usr/bin/brigade" info | grep '^backend.mpi='
for file in include/brigade/reducer.h lib/libbrigade.so.0 lib/libbrigade.a \
    lib/cmake/brigade/brigade-config.cmake lib/pkgconfig/brigade.pc \
    share/man/man1/brigade.1 share/man/man1/brigade-plan.1; do
    test -e "$work/root/usr/$file" || { echo "no $file in $deb"; exit 1; }
done
# Every library that libbrigade needs comes with a dependency of the package.
depends=$(dpkg-deb -f "$deb" Depends)
for needed in $(readelf -d "$work/root/usr/lib/libbrigade.so.0" |
    sed -n 's/.*(NEEDED).*\[\(.*\)\.so.*\]/\1/p'); do
    case $needed in
    libc | libm | ld-linux*) package=libc6 ;;
    libz) package=zlib1g ;;
    libopenblas | libcjson) package=$needed ;;
    *) package="($needed)" ;;
    esac
    case $depends in
    *"$package"*) ;;
    *) echo "needs $needed, but depends on: $depends"; exit 1 ;;
    esac
done
