/* SPDX-License-Identifier: Apache-2.0
 * The loops over parameters, built once per instruction set. A step is a list
 * of runs, and one call takes all of one dtype. All arrays are dense and none
 * overlaps another. */
#ifndef BRG_CORE_OPTIM_KERNELS_H
#define BRG_CORE_OPTIM_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <brigade/types.h>

#include "core/ops/isa.h"

/* What a step's formula needs besides the arrays (optim.h). */
typedef struct brg__sgd_scalars {
    double lr;
    double momentum;
    double keep; /* 1 - dampening, or 1 at the first step */
    double weight_decay;
    bool nesterov;
} brg__sgd_scalars;

typedef struct brg__adamw_scalars {
    double decay; /* 1 - lr weight_decay */
    double beta1;
    double beta2;
    double step_size;  /* lr / (1 - beta1^t) */
    double root_scale; /* 1 / sqrt(1 - beta2^t) */
    double eps;
} brg__adamw_scalars;

typedef union brg__step_scalars {
    brg__sgd_scalars sgd;
    brg__adamw_scalars adamw;
} brg__step_scalars;

#define BRG__OPTIM_MAX_STATE 2

/* Elements in a row that have the same scalars. */
typedef struct brg__run {
    void *param;
    const void *grad; /* of the parameter's dtype */
    /* f64 for f64, else f32. */
    void *state[BRG__OPTIM_MAX_STATE]; /* NULL: there is none */
    float *master;                     /* of 16-bit parameters, else NULL */
    const brg__step_scalars *scalars;
    size_t n;
    brg_dtype dtype;
    bool follows; /* the master copy follows the parameter first */
} brg__run;

/* Those of one dtype: f64, f32, f16, bf16. */
#define BRG__OPTIM_N_DTYPES 4
typedef void (*brg__update_fn)(const brg__run *runs, size_t n_runs);

/* For one real type. The arrays are of that type. */
typedef struct brg__real_kernels {
    void (*scale)(void *g, size_t n, double factor);
    void (*limit)(void *g, size_t n, double limit);
} brg__real_kernels;

typedef struct brg__optim_kernels {
    brg__update_fn sgd[BRG__OPTIM_N_DTYPES]; /* state: momentum, or NULL */
    brg__update_fn adamw[BRG__OPTIM_N_DTYPES];
    brg__real_kernels f32;
    brg__real_kernels f64;
    /* 16-bit floats from and to f32. */
    void (*load_f16)(float *to, const uint16_t *from, size_t n);
    void (*load_bf16)(float *to, const uint16_t *from, size_t n);
    void (*store_f16)(uint16_t *to, const float *from, size_t n);
    void (*store_bf16)(uint16_t *to, const float *from, size_t n);
} brg__optim_kernels;

extern const brg__optim_kernels brg__optim_kernels_base;
extern const brg__optim_kernels brg__optim_kernels_avx2;
extern const brg__optim_kernels brg__optim_kernels_avx512;

static inline const brg__optim_kernels *brg__optim_kernels_get(void)
{
    return BRG__ISA_PICK(brg__optim_kernels);
}

#endif
