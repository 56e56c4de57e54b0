#!/bin/bash
# The Debian packages in a Debian of their own, which has no more than a C
# compiler, CMake and pkg-config: built here, read by lintian, installed there
# by dpkg, then programs are built against them and run, on two ranks too.
#   chroot.sh [<folder for builds, default build/deb>]
# By hand, as root: debootstrap takes some 150 MB from Debian's mirror. Leaves
# with 77 without debootstrap. CHROOT: a debootstrapped folder to be used again.
set -eu
cd "$(dirname "$0")/../.."
build=${1:-build/deb}
suite=bookworm mirror=http://deb.debian.org/debian
command -v debootstrap >/dev/null || { echo "skipped: there is no debootstrap"; exit 77; }
test "$(id -u)" = 0 || { echo "skipped: chroot wants to be root"; exit 77; }

say() { printf '== %s\n' "$*"; }

say "packages"
cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX=/usr \
    -DBRG_WITH_CUDA=OFF -DBRG_BUILD_TESTS=OFF -DBRG_BUILD_BENCH=OFF \
    -DBRG_BUILD_EXAMPLES=OFF >"$build.log"
cmake --build "$build" >>"$build.log"
rm -rf "$build/packages"
cpack -G DEB --config "$build/CPackConfig.cmake" -B "$build/packages" >>"$build.log"
if command -v lintian >/dev/null; then
    say "lintian"
    # Not mended: there is no address to write to; libraries and headers share a
    # package; cpack calls ldconfig by itself.
    lintian --allow-root --fail-on error,warning --suppress-tags \
        bogus-mail-host,bogus-mail-host-in-debian-changelog,link-to-shared-library-in-wrong-package,package-name-doesnt-match-sonames,maintscript-calls-ldconfig \
        "$build"/packages/*.deb
fi

root=${CHROOT:-}
if test -z "$root"; then
    root=$(mktemp -d)
    trap 'umount "$root/proc" "$root/dev/shm" 2>/dev/null || true; rm -rf "$root"' EXIT
    say "debootstrap $suite"
    debootstrap --variant=minbase --include=gcc,libc6-dev,make,cmake,pkg-config \
        "$suite" "$root" "$mirror" >"$build.log" || { tail "$build.log"; exit 1; }
else
    trap 'umount "$root/proc" "$root/dev/shm" 2>/dev/null || true' EXIT
fi
mkdir -p "$root/dev/shm"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/dev/shm"
cp /etc/resolv.conf "$root/etc/resolv.conf"
rm -rf "$root/packages"
mkdir "$root/packages"
cp "$build"/packages/*.deb tests/install/main.c tests/install/mpi.c \
    tests/install/CMakeLists.txt "$root/packages"

cat >"$root/packages/inside.sh" <<'EOF'
set -eu
export DEBIAN_FRONTEND=noninteractive OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
cd /packages
apt-get update -q >log
echo "== dpkg -i brigade: what it lacks is what it says"
dpkg -i brigade_*.deb >>log 2>&1 && exit 1
apt-get install -q -y --no-install-recommends -f >>log
dpkg -s brigade | grep '^Status: install ok installed'
brigade --version
brigade info | grep 'backend.mpi' || true
gcc main.c -o plain $(pkg-config --cflags --libs brigade)
./plain
if pkg-config --exists brigade-mpi; then exit 1; fi
echo "== dpkg -i brigade-mpi"
dpkg -i brigade-mpi_*.deb >>log 2>&1 && exit 1
apt-get install -q -y --no-install-recommends -f >>log
dpkg -s brigade-mpi | grep '^Status: install ok installed'
ldd /usr/lib/*/libbrigade_mpi.so.0 | grep 'libmpi\.'
if ldd /usr/lib/*/libbrigade*.so.0 | grep 'not found'; then exit 1; fi
apt-get install -q -y --no-install-recommends $(dpkg -s brigade-mpi | sed -n 's/^Recommends: //p' | tr -d ,) >>log
echo "== pkg-config"
gcc mpi.c -o ranks $(pkg-config --cflags --libs brigade-mpi)
mpirun --oversubscribe -n 2 ./ranks
mpirun --oversubscribe -n 2 ./plain mpi
mpirun --oversubscribe -n 2 brigade bench >bench && head -n 2 bench
echo "== find_package"
cmake -S . -B by_cmake -DCOMPONENTS=mpi >>log
cmake --build by_cmake >>log
by_cmake/consumer
mpirun --oversubscribe -n 2 by_cmake/consumer_mpi
echo "== static, with the packages that brigade suggests"
apt-get install -q -y --no-install-recommends $(dpkg -s brigade | sed -n 's/^Suggests: //p' | tr -d ,) >>log
cmake -S . -B static -DUSE_STATIC=ON -DCOMPONENTS=mpi >>log
cmake --build static >>log
mpirun --oversubscribe -n 2 static/consumer_mpi
echo "== removed"
dpkg -r brigade-mpi brigade >>log
test ! -e /usr/bin/brigade
EOF
chroot "$root" bash /packages/inside.sh || { tail -n 20 "$root/packages/log"; exit 1; }
say "all good"
