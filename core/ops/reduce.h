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
