/* SPDX-License-Identifier: Apache-2.0
 * The kernel of sums in a fixed order. */
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
 * which may be dst; the others are in `room`. */
typedef struct brg__nccl_sum_job {
    const char *room, *own;
    size_t room_stride, own_stride; /* bytes between sources */
    int own_first, own_n;
    int n_src;
    int is_tree;
    int dtype;      /* brg_dtype of dst */
    int is_partial; /* sources of a 16-bit dtype are f32 */
    int divisor;    /* 0: a sum, else an average */
    void *dst;
    size_t count;
    uint8_t merges[BRG__NCCL_MAX_SRC];
} brg__nccl_sum_job;

/* Queues it; returns the cudaError_t. */
int brg__nccl_sum_launch(const brg__nccl_sum_job *job, void *stream);

#ifdef __cplusplus
}
#endif

#endif
