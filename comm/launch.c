/* SPDX-License-Identifier: Apache-2.0
 * What launchers tell the processes that they start, in the environment. */
#include <stdlib.h>
#include <string.h>

#include <brigade/comm.h>

#include "comm/registry.h"

/* NULL: that launcher does not say it. PMIX_RANK: srun --mpi=pmix and others;
 * Slurm's own variables alone say nothing of ranks of MPI, since a batch script
 * has them too. */
static const struct launcher {
    const char *rank, *local;
} launchers[] = {
    {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"}, /* Open MPI */
    {"PMI_RANK", "MPI_LOCALRANKID"},                        /* MPICH, Intel */
    {"MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_LOCAL_RANK"},   /* MVAPICH2 */
    {"PMIX_RANK", NULL},
};
#define N_LAUNCHERS (sizeof launchers / sizeof launchers[0])

/* A number that is not negative; -1: it is not there. */
static int number(const char *name)
{
    const char *text = name ? getenv(name) : NULL;
    char *end;
    if (!text || !*text)
        return -1;
    const long value = strtol(text, &end, 10);
    return *end == '\0' && value >= 0 && value <= 1 << 30 ? (int)value : -1;
}

int brg_launch_rank(void)
{
    int rank = -1;
    for (size_t i = 0; rank < 0 && i < N_LAUNCHERS; i++)
        rank = number(launchers[i].rank);
    return rank;
}

int brg_launch_local_rank(void)
{
    int local = -1;
    if (brg_launch_rank() < 0)
        return -1;
    for (size_t i = 0; local < 0 && i < N_LAUNCHERS; i++)
        local = number(launchers[i].local);
    return local < 0 ? number("SLURM_LOCALID") : local;
}

const char *brg__backend_choose(const char *name)
{
    if (!name || strcmp(name, "auto") != 0)
        return name;
    return brg_launch_rank() >= 0 ? "mpi" : "self";
}
