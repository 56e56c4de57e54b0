/* SPDX-License-Identifier: Apache-2.0
 * Attention over plain memory: the blocked algorithm (attention_run.c) and
 * its row kernels (attention_kernels.c). */
#ifndef BRG_CORE_OPS_ATTENTION_H
#define BRG_CORE_OPS_ATTENTION_H

#include "core/ops/op.h"

/* One operand: element (b, head, row, column) is at[b * batch + head *
 * head + row * row + column * col]. */
typedef struct brg__heads {
    void *at;
    int64_t batch, head, row, col;
} brg__heads;

typedef struct brg__attention {
    brg_dtype dtype; /* f32 or f64 */
    int64_t n_batch, n_heads;
    int64_t t, s;     /* queries and keys */
    int64_t d, d_out; /* sizes of a key and of a value */
    double scale;
    bool is_causal;
    brg__heads q, k, v, out;
    void *lse; /* (b,heads,t): log of the sum of exp of the scores */
    /* Of the gradient; the columns of gq, gk, gv are adjacent. */
    brg__heads g, gq, gk, gv;
} brg__attention;

/* Fill out and lse. The columns of out are adjacent. */
brg_status brg__attention_forward(const brg__attention *a);
/* Fill gq, gk and gv from the rest. */
brg_status brg__attention_backward(const brg__attention *a);

/* A strip of scores, row-major without gaps: `rows` queries, the first of
 * which is query `first`, by `cols` keys. */
typedef struct brg__strip {
    void *scores;
    int64_t rows, cols;
    int64_t first;
    bool is_causal;
    void *lse; /* of each row */
} brg__strip;

typedef struct brg__attention_kernels {
    /* scores become probabilities, zero where masked; lse is set. */
    void (*softmax)(const brg__strip *strip);
    /* scores become probabilities by lse; dp (like scores) becomes the
     * gradient of the scores, scale * p * (dp - delta of the row). */
    void (*softmax_grad)(const brg__strip *strip, void *dp, const void *delta,
                         double scale);
} brg__attention_kernels;

const brg__attention_kernels *brg__attention_kernels_of(brg_dtype dtype);

#endif
