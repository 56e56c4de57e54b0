#!/bin/sh
# A program under mpirun, also as root, and with more ranks than processors.
#   mpirun.sh [-n] <ranks> <program> [<argument>...]
# MPIRUN: another program instead of mpirun, such as mpiexec.mpich;
# MPIRUN_OPTIONS: more options of it, such as --with-ft ulfm.
test "$1" = -n && shift
test $# -ge 2 || { sed -n '3s/^# *//p' "$0" >&2; exit 2; }
ranks=$1
shift
if test "$(id -u)" = 0; then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
options=
mpirun=${MPIRUN:-mpirun}
if "$mpirun" --version 2>/dev/null | grep -q 'Open MPI\|OpenRTE'; then
    options="--oversubscribe --bind-to none"
    export OMPI_MCA_btl_vader_single_copy_mechanism=none
fi
exec "$mpirun" $options ${MPIRUN_OPTIONS:-} -n "$ranks" "$@"
