/* SPDX-License-Identifier: Apache-2.0
 * Sums between GPUs of one machine that reach each other's memory; NCCL has no
 * part in them. Each rank has a block of memory that the others have mapped:
 *
 *     flags | turn 0 | turn 1 | slot 0 | slot 1 | ..
 *
 * Small sums: one kernel writes the sources into a turn of the others, waits for
 * theirs and sums (sum.h). Large sums: copy engines do the writing, a chunk to a
 * slot, and the multiprocessors only what must be added:
 *
 *     credits  wait CREDIT
 *     copies               copy to the others
 *     own                             raise DATA there  wait DATA  sum  raise
 *                                                               CREDIT there
 *
 * A flag is raised by one rank and lowered by the one that waited for it, so that
 * a recorded call may be launched again and again. Flags of slots are on the
 * board, in host memory: where ranks are lost, the host raises all of them
 * again and again until what was queued has run through. */
#ifndef BRG_COMM_NCCL_DIRECT_H
#define BRG_COMM_NCCL_DIRECT_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <brigade/ext/backend.h>

#include "comm/nccl/board.h"
#include "comm/nccl/sum.h"

/* Of sums: BRG_NCCL_SUMS. */
typedef enum brg__nccl_way {
    BRG__NCCL_BY_NCCL,
    BRG__NCCL_BY_SIZE,
    BRG__NCCL_BY_KERNEL,
    BRG__NCCL_BY_COPY
} brg__nccl_way;

typedef struct brg__nccl_direct {
    bool is_on;
    char *memory;               /* this rank's */
    char *near[BRG__NCCL_NEAR]; /* of each rank, mapped here */
    char *board;                /* as the GPU sees it; NULL: it does not */
    brg__nccl_turns *turns;
    cudaStream_t credits, copies, rescue;
    cudaEvent_t began, credited[BRG__NCCL_SLOTS];
    cudaEvent_t copied[BRG__NCCL_SLOTS], summed[BRG__NCCL_SLOTS];
    CUresult (*queue_ops)(CUstream, unsigned, CUstreamBatchMemOpParams *,
                          unsigned);
    pthread_t releaser;
    bool is_releasing;
    _Atomic bool is_over; /* for the releaser */
} brg__nccl_direct;

/* What is summed: `send` holds job->own_n sources of `count` elements, one every
 * job->own_stride bytes; `each` bytes an element, of the result out_each. Nothing
 * else of the step is left to be computed beside it: is_last.
 * places[r]: where they are among those that rank r gets; `most`: how many any
 * rank gets. */
typedef struct brg__nccl_near_sum {
    const char *send;
    char *recv;
    size_t count, each, out_each, most;
    bool is_last;
    int places[BRG__NCCL_NEAR];
    const brg__nccl_sum_job *job;
} brg__nccl_near_sum;

struct brg__nccl_group;
struct brg_nccl_options;

/* What is not known is BY_NCCL. */
brg__nccl_way brg__nccl_direct_way(const char *name);
/* Collective. That it cannot be had is no error. */
brg_status brg__nccl_direct_open(struct brg__nccl_group *g,
                                 const struct brg_nccl_options *o);
/* Waits for what is queued if the group has failed. */
void brg__nccl_direct_close(struct brg__nccl_group *g);

/* Whether a sum of so many sources in all is done here; alike on all ranks. */
bool brg__nccl_direct_takes(const struct brg__nccl_group *g, size_t n_src,
                            size_t most, size_t count, size_t each,
                            size_t out_each);
brg_status brg__nccl_direct_sum(struct brg__nccl_group *g,
                                const brg__nccl_near_sum *s);

/* No wait of this group on the GPU lasts from now on. For the watch's thread, or
 * when there is none any more. */
void brg__nccl_direct_stop(struct brg__nccl_group *g);
/* A kernel has waited longer than the watch should have let it. */
bool brg__nccl_direct_gave_up(const struct brg__nccl_group *g);

#endif
