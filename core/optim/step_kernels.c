/* SPDX-License-Identifier: Apache-2.0
 * The table of loops, compiled once per instruction set. */
#include <math.h>

#include "core/base/dtype.h"
#include "core/optim/kernels.h"

#define T float
#define FN(name) name##_f32
#define SQRT(x) sqrtf(x)
#include "core/optim/step_loops.h"
#undef T
#undef FN
#undef SQRT

#define T double
#define FN(name) name##_f64
#define SQRT(x) sqrt(x)
#include "core/optim/step_loops.h"
#undef T
#undef FN
#undef SQRT

static void load_f16(float *restrict to, const uint16_t *restrict from,
                     size_t n)
{
    for (size_t i = 0; i < n; i++)
        to[i] = brg__f16_to_f32(from[i]);
}

static void load_bf16(float *restrict to, const uint16_t *restrict from,
                      size_t n)
{
    for (size_t i = 0; i < n; i++)
        to[i] = brg__bf16_to_f32(from[i]);
}

static void store_f16(uint16_t *restrict to, const float *restrict from,
                      size_t n)
{
    for (size_t i = 0; i < n; i++)
        to[i] = brg__f32_to_f16(from[i]);
}

static void store_bf16(uint16_t *restrict to, const float *restrict from,
                       size_t n)
{
    for (size_t i = 0; i < n; i++)
        to[i] = brg__f32_to_bf16(from[i]);
}

const brg__optim_kernels BRG__ISA_NAME(brg__optim_kernels) = {
    .f32 = {sgd_f32, adamw_f32, sum_squares_f32, scale_f32, limit_f32},
    .f64 = {sgd_f64, adamw_f64, sum_squares_f64, scale_f64, limit_f64},
    .load_f16 = load_f16,
    .load_bf16 = load_bf16,
    .store_f16 = store_f16,
    .store_bf16 = store_bf16,
};
