/* SPDX-License-Identifier: Apache-2.0
 * The reproducible sum of one element, by the definition of the tree. */
#ifndef BRG_TESTS_SUPPORT_LEAF_ORACLE_H
#define BRG_TESTS_SUPPORT_LEAF_ORACLE_H

#include <math.h>
#include <stdint.h>

#include <brigade/types.h>

#include "tests/support/unwatched.h"

#define LEAF_ORACLE_MAX 64

UNWATCHED static inline double leaf_oracle_node(const double *leaves,
                                                uint32_t n, bool is_f64,
                                                uint32_t size, uint32_t begin)
{
    uint32_t half = size / 2;
    if (size == 1)
        return leaves[begin];
    double left = leaf_oracle_node(leaves, n, is_f64, half, begin);
    if (begin + half >= n)
        return left;
    double right = leaf_oracle_node(leaves, n, is_f64, half, begin + half);
    return is_f64 ? left + right : (double)((float)left + (float)right);
}

/* Of n leaves; not rounded to 16 bits yet. f32 and below are summed in f32. */
UNWATCHED static inline double leaf_oracle(const double *leaves, uint32_t n,
                                           brg_dtype dtype, bool is_average)
{
    uint32_t size = 1;
    bool is_f64 = dtype == BRG_DTYPE_F64;
    while (size < n)
        size *= 2;
    double sum = leaf_oracle_node(leaves, n, is_f64, size, 0);
    if (!is_average)
        return sum;
    if (!brg_dtype_is_float(dtype))
        return trunc(sum / n);
    return is_f64 ? sum * (1.0 / n) : (double)((float)sum * (1.0f / (float)n));
}

#endif
