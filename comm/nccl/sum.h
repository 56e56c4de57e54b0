/* SPDX-License-Identifier: Apache-2.0
 * The kernels of sums in a fixed order. */
#ifndef BRG_COMM_NCCL_SUM_H
#define BRG_COMM_NCCL_SUM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define BRG__NCCL_MAX_SRC 1024

/* dst[i] = src[0][i] + src[1][i] + .. , in that order or in the tree that
 * merges describe (brg_reduction in ext/backend.h); 16-bit floats are added in
 * f32 and rounded once. Sources own_first to own_first + own_n are this rank's,
 * which may be dst; the others lie in `room` one after the other. */
typedef struct brg__nccl_sum_job {
    const char *room, *own;
    size_t room_stride, own_stride; /* bytes between sources */
    int own_first, own_n;
    int n_src;
    int is_tree;
    int dtype;      /* brg_dtype of dst */
    int is_partial; /* sources of a 16-bit dtype are f32 */
    int divisor;    /* 0: a sum, else an average */
    int is_aligned; /* the launch's own */
    void *dst;
    size_t count;
    const uint32_t *stop; /* NULL, or on the device: not 0: nothing is done */
    uint8_t merges[BRG__NCCL_MAX_SRC];
} brg__nccl_sum_job;

/* Queues it; returns the cudaError_t. */
int brg__nccl_sum_launch(const brg__nccl_sum_job *job, void *stream);

/* ---- Between GPUs that reach each other's memory ---------------------------------- */

#define BRG__NCCL_NEAR 8         /* ranks */
#define BRG__NCCL_PUSH_BLOCKS 64 /* of one launch */

/* In the GPU's memory, zero before the first launch: how many there were. */
typedef struct brg__nccl_turns {
    uint64_t turn;
    unsigned n_done; /* blocks of this one */
    uint32_t stop;   /* of sums that are not pushed by a kernel */
} brg__nccl_turns;

/* The same sum, by one kernel on each rank: it writes its sources into the rooms
 * of the others, waits for theirs, and sums. rooms[r], flags[r]: of rank r, as
 * this GPU sees them; a room holds two turns. flags[r][from][block]: the turn
 * for which rank `from` has written. places[r]: of this rank's first source in
 * the room of rank r. */
typedef struct brg__nccl_push_job {
    brg__nccl_sum_job sum; /* its room is this rank's */
    int rank, n_ranks, n_blocks;
    size_t turn_stride;
    char *rooms[BRG__NCCL_NEAR];
    uint64_t *flags[BRG__NCCL_NEAR];
    int places[BRG__NCCL_NEAR];
    brg__nccl_turns *turns;
    const uint32_t *stop; /* in host memory: not 0 ends the wait */
    uint32_t *gave_up;    /* in host memory: set when limit_ns has passed */
    uint64_t limit_ns;
} brg__nccl_push_job;

int brg__nccl_push_launch(const brg__nccl_push_job *job, void *stream);

#ifdef __cplusplus
}
#endif

#endif
