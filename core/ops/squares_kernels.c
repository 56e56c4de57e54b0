/* SPDX-License-Identifier: Apache-2.0
 * The loops over squares, compiled once per instruction set. */
#include "core/ops/isa.h"
#include "core/ops/squares.h"

#define LANES 16

#define SUM_SQUARES(name, type)                                                \
    static double name(const type *x, size_t n)                                \
    {                                                                          \
        double sums[LANES] = {0};                                              \
        size_t i = 0;                                                          \
        for (; i + LANES <= n; i += LANES)                                     \
            for (size_t k = 0; k < LANES; k++)                                 \
                sums[k] += (double)x[i + k] * (double)x[i + k];                \
        for (size_t k = 0; i + k < n; k++)                                     \
            sums[k] += (double)x[i + k] * (double)x[i + k];                    \
        for (size_t width = LANES / 2; width > 0; width /= 2)                  \
            for (size_t k = 0; k < width; k++)                                 \
                sums[k] += sums[k + width];                                    \
        return sums[0];                                                        \
    }

SUM_SQUARES(of_f32, float)
SUM_SQUARES(of_f64, double)

const brg__square_kernels BRG__ISA_NAME(brg__squares) = {of_f32, of_f64};
