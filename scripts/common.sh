# Shared by the scripts; to be sourced from the repository root.
set -eu

say() { printf '\n== %s\n' "$*"; }
die() { printf '\nerror: %s\n' "$*" >&2; exit 1; }

# need_packages <package>...: installs those of the Debian packages that are
# missing, as root or through sudo; does nothing when all are there.
need_packages() {
    command -v dpkg-query >/dev/null 2>&1 || {
        echo "not a Debian or Ubuntu system; taking it that these are there: $*"
        return 0
    }
    missing=""
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null |
            grep -q 'install ok installed' || missing="$missing $package"
    done
    test -n "$missing" || return 0
    say "installing:$missing"
    if test "$(id -u)" = 0; then
        as_root=""
    elif command -v sudo >/dev/null 2>&1; then
        as_root=sudo
    else
        die "packages are missing and there is neither root nor sudo.
Ask an administrator for:  apt-get install$missing"
    fi
    $as_root apt-get update -q ||
        echo "apt-get update failed; trying with the lists at hand"
    # shellcheck disable=SC2086
    $as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -q -y --no-install-recommends $missing ||
        die "apt-get install failed for:$missing"
}

# What the library and its tests are built from.
BUILD_PACKAGES="gcc libc6-dev cmake ninja-build pkg-config libopenblas-dev
zlib1g-dev librandom123-dev libcjson-dev libxxhash-dev libxsmm-dev
libopenmpi-dev openmpi-bin"
TEST_PACKAGES="libcmocka-dev g++ gfortran python3 patch"
# What style, reference and packages are checked with; a test without them is
# skipped, or checks less.
CHECK_PACKAGES="clang-14 clang-format-14 doxygen dpkg-dev file"

# configure_and_build <folder> <cmake option>...
configure_and_build() {
    folder=$1
    shift
    launcher=""
    if command -v ccache >/dev/null 2>&1; then
        launcher="-DCMAKE_C_COMPILER_LAUNCHER=ccache"
        export CCACHE_BASEDIR="$PWD" # builds share what they compile alike
    fi
    say "configuring $folder"
    # shellcheck disable=SC2086
    cmake -S . -B "$folder" -G Ninja $launcher "$@" || die "cmake failed"
    say "building $folder"
    # shellcheck disable=SC2086
    cmake --build "$folder" --parallel ${BUILD_TARGETS:-} || die "the build failed"
}
