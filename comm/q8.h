/* SPDX-License-Identifier: Apache-2.0
 * Gradients in 8 bits: blocks that an all-reduce can sum.
 *
 *     | scale: bf16 | round: u16 | 60 codes: i8 |      value = scale * code
 *
 * Of 60 elements the largest magnitude decides the scale, max / 127 rounded
 * up, so the block's error is that of its own elements. Code -128 is NaN: an
 * element that is not finite says so alone.
 *
 * A sum is made in f32 of all sources in order, and becomes a block again. It
 * is rounded up or down by a dither that follows from `round` and the element:
 * over rounds (steps) it fills [0, 1) evenly, so that the errors of this
 * rounding, which nobody can feed back, have the mean 0. A partial (the sum of
 * a node) is a block too, rounded by another sequence: so it is 8 bits that go
 * from node to node. */
#ifndef BRG_COMM_Q8_H
#define BRG_COMM_Q8_H

#include <stddef.h>
#include <stdint.h>

#include <brigade/ext/backend.h>

#include "core/base/dtype.h"
#include "core/base/q8_block.h"

/* n elements to brg__q8_blocks(n) blocks, to nearest; what is missing of the
 * last is zero. left (may be NULL): x less what the blocks say, 0 where x or
 * that is not finite. */
void brg__q8_store(void *blocks, const float *x, float *left, size_t n,
                   uint16_t round);
void brg__q8_load(float *x, const void *blocks, size_t n);

/* All-reduces n blocks, aligned to 64: BRG_REDUCE_SUM or _AVG. Fails with
 * BRG_ERR_UNSUPPORTED if the group's backend cannot. *out as brg_all_reduce. */
BRG_NODISCARD brg_status brg__all_reduce_q8(brg_pg *pg, brg_work **out,
                                            void *blocks, size_t n,
                                            brg_reduce_op op);

/* ---- The loops, built per instruction set (q8_body.c) ------------------------ */

typedef struct brg__q8_loops {
    void (*store)(void *blocks, const float *x, float *left, size_t n,
                  uint16_t round);
    void (*load)(float *x, const void *blocks, size_t n);
    /* What brg_reduction says, times factor. */
    void (*sum)(const brg_reduction *r, float factor);
} brg__q8_loops;

extern const brg__q8_loops brg__q8_base;
extern const brg__q8_loops brg__q8_avx2;
extern const brg__q8_loops brg__q8_avx512;

/* Those of this processor; in reduce_kernels.c. */
const brg__q8_loops *brg__q8_chosen(void);

/* brg__reduce and brg__reduce_grouped of BRG__DTYPE_Q8. */
void brg__q8_reduce(const brg__q8_loops *loops, const brg_reduction *r);
void brg__q8_reduce_grouped(const brg_reduction *r, size_t group_size);

#endif
