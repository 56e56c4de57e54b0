/* SPDX-License-Identifier: Apache-2.0
 * Matrix products of plain memory: what matmul, convolution and attention are
 * made of. Operands have any strides; one whose rows and columns both have
 * gaps is copied to scratch slot 1. Slots 0, 2 and 3 are left to callers. */
#ifndef BRG_CORE_OPS_GEMM_H
#define BRG_CORE_OPS_GEMM_H

#include <stdbool.h>
#include <stdint.h>

#include <brigade/status.h>
#include <brigade/types.h>

#include "core/ops/op.h"

/* A matrix: element (i, j) is at[i * row + j * col]. */
typedef struct brg__mat {
    const void *at;
    int64_t row;
    int64_t col;
} brg__mat;

static inline brg__mat brg__mat_of(const void *at, int64_t row, int64_t col)
{
    brg__mat mat = {at, row, col};
    return mat;
}

/* c (m,n) = alpha * a (m,k) * b (k,n), added to what c holds if `accumulate`,
 * or to `bias` (n adjacent elements, the same for each row) if there is one.
 * c has rows of n adjacent elements, ldc apart. */
typedef struct brg__gemm {
    brg_dtype dtype; /* f32 or f64 */
    bool accumulate;
    int64_t m, n, k;
    brg__mat a, b;
    double alpha;
    const void *bias;
    void *c;
    int64_t ldc;
} brg__gemm;

/* Somebody else's products, a plan's: `run` returns false for those that it
 * leaves to the matrix library. NULL on a thread: nobody's. */
typedef struct brg__gemm_maker {
    bool (*run)(const struct brg__gemm_maker *self, const brg__gemm *g);
} brg__gemm_maker;

/* Asked first by the products of this thread; returns the one before. */
const brg__gemm_maker *brg__gemm_swap(const brg__gemm_maker *maker);

/* Sizes may be 0. */
brg_status brg__gemm_run(const brg__gemm *g);

/* Runs `run` on f32 copies of a call's 16-bit tensors and rounds its 16-bit
 * outputs once (run_16.c). */
brg_status brg__run_16_as_f32(brg_op_call *call,
                              brg_status (*run)(brg_op_call *call));

static inline bool brg__is_16_bit(const brg_tensor *t)
{
    return t->dtype == BRG_DTYPE_F16 || t->dtype == BRG_DTYPE_BF16;
}

#endif
