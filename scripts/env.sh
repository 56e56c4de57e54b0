# Environment for running Brigade's programs; to be sourced:  . scripts/env.sh
# Nothing that is set already is changed.

# Parallelism comes from ranks: one thread each.
export OPENBLAS_NUM_THREADS="${OPENBLAS_NUM_THREADS:-1}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

# OpenBLAS up to 0.3.21 does not know newer AMD processors and falls back to
# its Haswell kernels; those of SkylakeX run there, twice as fast.
brg_has_avx512() {
    test -r /proc/cpuinfo || return 1
    brg_flags=$(sed -n '/^flags/{p;q;}' /proc/cpuinfo)
    for brg_flag in avx512f avx512bw avx512dq avx512vl; do
        case " $brg_flags " in *" $brg_flag "*) ;; *) return 1 ;; esac
    done
    grep -q AuthenticAMD /proc/cpuinfo
}
if test -z "${OPENBLAS_CORETYPE:-}" && brg_has_avx512; then
    export OPENBLAS_CORETYPE=SkylakeX
fi

# Open MPI refuses to run as root unless told twice, and more ranks than cores
# unless told once (as in containers and on small test machines).
if test "$(id -u)" = 0; then
    export OMPI_ALLOW_RUN_AS_ROOT="${OMPI_ALLOW_RUN_AS_ROOT:-1}"
    export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="${OMPI_ALLOW_RUN_AS_ROOT_CONFIRM:-1}"
fi
export OMPI_MCA_rmaps_base_oversubscribe="${OMPI_MCA_rmaps_base_oversubscribe:-1}"
