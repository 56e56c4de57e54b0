/* SPDX-License-Identifier: Apache-2.0
 * Sums of squares. See squares.h. */
#include "core/ops/squares.h"

#include "core/ops/convert.h"
#include "core/ops/isa.h"

#define BLOCK 256

double brg__sum_squares(const void *x, brg_dtype dtype, size_t n)
{
    const brg__square_kernels *kernels = BRG__ISA_PICK(brg__squares);
    if (dtype == BRG_DTYPE_F64)
        return kernels->f64(x, n);
    if (dtype == BRG_DTYPE_F32)
        return kernels->f32(x, n);
    const size_t size = brg_dtype_size(dtype);
    double sum = 0;
    for (size_t i = 0; i < n; i += BLOCK) {
        float block[BLOCK];
        const size_t m = n - i < BLOCK ? n - i : BLOCK;
        brg__convert_row(block, BRG_DTYPE_F32, (const char *)x + i * size,
                         dtype, m);
        sum += kernels->f32(block, m);
    }
    return sum;
}
