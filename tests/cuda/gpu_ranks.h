/* SPDX-License-Identifier: Apache-2.0
 * What programs under mpirun with a GPU for each rank share: who this rank is,
 * the group over MPI, a beginning after which only rank 0 is heard, an end. */
#ifndef BRG_TESTS_CUDA_GPU_RANKS_H
#define BRG_TESTS_CUDA_GPU_RANKS_H

#include <brigade/nccl.h>

#include "tests/cuda/compare.h"
#include "tests/support/mpi_ranks.h"

static int rank, n_ranks;
static brg_pg *over;

static inline brg_device mine(void)
{
    return (brg_device){BRG_DEVICE_CUDA, (int16_t)rank};
}

static inline int check_gpus(void)
{
    int status = require_gpu();
    if (status || brg_device_count(BRG_DEVICE_CUDA) >= n_ranks)
        return status;
    printf("SKIPPED, nothing was tested: %d GPUs for %d ranks\n",
           brg_device_count(BRG_DEVICE_CUDA), n_ranks);
    return BRG_TEST_SKIPPED;
}

/* 0, or the exit status. */
static inline int gpu_ranks_begin(int argc, char **argv)
{
    MPI_Init(&argc, &argv);
    rank = mpi_rank();
    n_ranks = mpi_n_ranks();
    int status = check_gpus();
    if (status) {
        MPI_Finalize();
        return status;
    }
    bool is_ready = mpi_silence(rank) &&
                    brg_backend_register(brg_comm_mpi()) == BRG_OK &&
                    brg_pg_create(&over, "mpi", NULL) == BRG_OK;
    return is_ready ? 0 : 1;
}

static inline int gpu_ranks_end(int n_failed)
{
    brg_pg_destroy(over);
    MPI_Finalize();
    return n_failed;
}

#endif
