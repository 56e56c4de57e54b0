/* SPDX-License-Identifier: Apache-2.0
 * Sums of squares, for norms of gradients. */
#ifndef BRG_CORE_OPS_SQUARES_H
#define BRG_CORE_OPS_SQUARES_H

#include "core/tensor/tensor.h"

/* sum of x[i]^2 over n elements in a row, of a real dtype, on the host: in 16
 * partial sums of f64, then a fixed tree (16 bits: of blocks, in order). The
 * same bits from every instruction set. */
double brg__sum_squares(const void *x, brg_dtype dtype, size_t n);

typedef struct brg__square_kernels {
    double (*f32)(const float *x, size_t n);
    double (*f64)(const double *x, size_t n);
} brg__square_kernels;

extern const brg__square_kernels brg__squares_base;
extern const brg__square_kernels brg__squares_avx2;
extern const brg__square_kernels brg__squares_avx512;

#endif
