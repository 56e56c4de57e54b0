/* SPDX-License-Identifier: Apache-2.0
 * The table of loops, compiled once per instruction set. */
#include <math.h>

#include "core/base/dtype.h"
#include "core/optim/wide.h"

/* Several lists call it, and calls cost next to nothing beside what they do. */
#define ONE_COPY __attribute__((noinline))

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

/* ---- 16-bit parameters ---------------------------------------------------- */

typedef void (*loop_fn)(void *p, const void *g, void *const *state, size_t n,
                        const brg__step_scalars *scalars);

static void update_16(const brg__run *r, const brg__wide *wide, loop_fn loop)
{
    uint16_t *param = r->param;
    const uint16_t *grad = r->grad;
    for (size_t i = 0; i < r->n; i += BRG__WIDE_BLOCK) {
        size_t n = r->n - i < BRG__WIDE_BLOCK ? r->n - i : BRG__WIDE_BLOCK;
        float block[BRG__WIDE_BLOCK], *master = r->master + i;
        void *state[BRG__OPTIM_MAX_STATE];
        for (int k = 0; k < BRG__OPTIM_MAX_STATE; k++)
            state[k] = r->state[k] ? (float *)r->state[k] + i : NULL;
        wide->load(block, grad + i, n);
        if (r->follows)
            brg__wide_follow(master, param + i, n, wide);
        loop(master, block, state, n, r->scalars);
        wide->store(param + i, master, n);
    }
}

/* One copy for both types and all rules: calls of a block cost next to
 * nothing, code does not. */
__attribute__((noinline)) static void
runs_16(const brg__run *runs, size_t n_runs, brg__wide wide, loop_fn loop)
{
    for (const brg__run *r = runs; r < runs + n_runs; r++)
        update_16(r, &wide, loop);
}

#define RUNS_16(rule, type)                                                    \
    static void rule##_runs_##type(const brg__run *runs, size_t n_runs)        \
    {                                                                          \
        runs_16(runs, n_runs, (brg__wide){load_##type, store_##type},          \
                rule##_f32);                                                   \
    }

RUNS_16(sgd, f16)
RUNS_16(sgd, bf16)
RUNS_16(adamw, f16)
RUNS_16(adamw, bf16)

#define OF_EACH(rule)                                                          \
    {                                                                          \
        [BRG_DTYPE_F64] = rule##_runs_f64, [BRG_DTYPE_F32] = rule##_runs_f32,  \
        [BRG_DTYPE_F16] = rule##_runs_f16, [BRG_DTYPE_BF16] = rule##_runs_bf16 \
    }

const brg__optim_kernels BRG__ISA_NAME(brg__optim_kernels) = {
    .sgd = OF_EACH(sgd),
    .adamw = OF_EACH(adamw),
    .f32 = {scale_f32, limit_f32},
    .f64 = {scale_f64, limit_f64},
    .load_f16 = load_f16,
    .load_bf16 = load_bf16,
    .store_f16 = store_f16,
    .store_bf16 = store_bf16,
};
