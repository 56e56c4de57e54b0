/* SPDX-License-Identifier: Apache-2.0
 * The ranks of a run: which group to use, small sums, and agreeing on
 * failures so that one message is printed and no rank waits for ever. */
#ifndef EXAMPLES_COMMON_WORLD_H
#define EXAMPLES_COMMON_WORLD_H

#include <brigade/comm.h>

typedef struct world {
    brg_pg *pg;
    brg_pg *gpus; /* over NCCL, where gradients are reduced; NULL: in pg */
    int rank;
    int size;
    int failed_rank; /* after world_agree: who prints; -1: nobody failed */
} world;

/* The rank that a launcher put into the environment; 0 without one. */
int world_env_rank(void);

/* The group: `backend`, or if NULL "mpi" when started by a launcher with more
 * than one process, else the group of one. Ended by world_close. */
BRG_NODISCARD brg_status world_open(world *w, const char *backend);
void world_close(world *w);

/* Makes `name` ("cuda", NULL: the CPU) the device of new tensors, and loads
 * its component. "cuda" is the GPU of this rank: its number on this machine. */
BRG_NODISCARD brg_status world_use_device(const char *name);

/* The group for gradients: over NCCL if tensors are made on a GPU. Collective;
 * *out: borrowed. */
BRG_NODISCARD brg_status world_gradients(world *w, brg_pg **out);

/* Sums of n values over the ranks, in place. */
BRG_NODISCARD brg_status world_sum(const world *w, double *values, size_t n);

/* Collective: BRG_OK if `mine` is BRG_OK on every rank. Else a failing rank
 * gets its own status back and keeps its message, the others get
 * BRG_ERR_PEER; failed_rank is the lowest that failed. */
BRG_NODISCARD brg_status world_agree(world *w, brg_status mine);

/* A whole program: opens the world, runs, prints the error if there is one (one
 * rank does, the others are silent), closes. Returns the exit status. */
int world_run(const char *program, const char *backend,
              brg_status (*run)(const void *arguments, world *w),
              const void *arguments);

#endif
