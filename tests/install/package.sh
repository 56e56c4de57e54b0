#!/bin/sh
# The Debian packages: built, unpacked, and the program run from there.
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
for deb in "$work"/*.deb; do
    dpkg-deb -x "$deb" "$work/root"
done
usr=$work/root/usr
libraries=$(dirname "$(find "$usr/lib" -name libbrigade.so.0)")
"$usr/bin/brigade" --version
"$usr/bin/brigade" info | grep '^backend.mpi='
for file in "$usr/include/brigade/reducer.h" "$libraries/libbrigade.a" \
    "$libraries/cmake/brigade/brigade-config.cmake" \
    "$libraries/pkgconfig/brigade.pc" "$usr/share/doc/brigade/copyright" \
    "$usr/share/man/man1/brigade.1.gz" "$usr/share/man/man1/brigade-plan.1.gz"; do
    test -e "$file" || { echo "no $file in the packages"; exit 1; }
done

# check <package> <library>: every library that it needs comes with a
# dependency of the package.
check() {
    depends=$(dpkg-deb -f "$work/$1"_*.deb Depends)
    for needed in $(readelf -d "$libraries/$2" |
        sed -n 's/.*(NEEDED).*\[\(.*\)\.so.*\]/\1/p'); do
        case $needed in
        libc | libm | ld-linux*) package=libc6 ;;
        libz) package=zlib1g ;;
        libmpi) package=libopenmpi ;;
        libmpich) package=libmpich ;;
        libopenblas | libcjson) package=$needed ;;
        *) package="($needed)" ;;
        esac
        case $depends in
        *"$package"*) ;;
        *) echo "$2 needs $needed, but $1 depends on: $depends"; exit 1 ;;
        esac
    done
}
check brigade libbrigade.so.0
if test -e "$libraries/libbrigade_mpi.so.0" &&
    command -v dpkg-shlibdeps >/dev/null && command -v file >/dev/null; then
    check brigade-mpi libbrigade_mpi.so.0
fi
