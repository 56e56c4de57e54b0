/* SPDX-License-Identifier: Apache-2.0
 * The engine of reductions, for the ops that sum on the way. */
#ifndef BRG_CORE_OPS_REDUCE_H
#define BRG_CORE_OPS_REDUCE_H

#include "core/ops/op.h"

typedef enum brg__reduce_kind {
    BRG__REDUCE_SUM,
    BRG__REDUCE_MAX,
    BRG__REDUCE_MIN
} brg__reduce_kind;

/* out = scale * (x reduced over the dims whose bit is set); out is row-major
 * over the dims that are left. max and min need at least one element each. */
brg_status brg__reduce_now(brg_tensor *out, const brg_tensor *x, uint32_t dims,
                           brg__reduce_kind kind, double scale);

/* In which pieces floats are summed, so that others can do it to the bit: a
 * line in stretches of PIECE elements; columns in blocks of so many rows. */
#define BRG__SUM_PIECE 2048
static inline int64_t brg__sum_block_rows(brg_dtype dtype)
{
    bool is_direct = dtype == BRG_DTYPE_F32 || dtype == BRG_DTYPE_F64;
    return is_direct ? 128 : 8; /* 16 bits pass through a buffer */
}

/* Of a call of sum, mean or sum_to_like: the dims that it sums, as bits, and
 * by what it scales. */
void brg__sum_of_call(const brg_op_call *call, uint32_t *dims, double *scale);

/* out = scale * sum((x - mean)^2), mean over the same dims. */
brg_status brg__reduce_var_now(brg_tensor *out, const brg_tensor *x,
                               uint32_t dims, double scale);

/* g scale / (n - correction), where n = numel of x / numel of g: how many
 * elements of x each of g stands for. */
brg_tensor *brg__div_count(brg_tensor *g, brg_tensor *x, double scale,
                           double correction);

/* The set of dims of a call (n_dims 0: all) as bits; fails naming op. */
brg_status brg__reduce_dims(const char *op, const brg_tensor *x, int n_dims,
                            const int *dims, int64_t *mask);

#endif
