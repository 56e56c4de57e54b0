/* SPDX-License-Identifier: Apache-2.0
 * 16-bit floats pass through f32 in blocks that stay in the nearest cache. */
#ifndef BRG_CORE_OPTIM_WIDE_H
#define BRG_CORE_OPTIM_WIDE_H

#include "core/optim/kernels.h"

#define BRG__WIDE_BLOCK 1024

typedef struct brg__wide {
    void (*load)(float *to, const uint16_t *from, size_t n);
    void (*store)(uint16_t *to, const float *from, size_t n);
} brg__wide;

static inline brg__wide brg__wide_of(const brg__optim_kernels *kernels,
                                     brg_dtype dtype)
{
    brg__wide f16 = {kernels->load_f16, kernels->store_f16};
    brg__wide bf16 = {kernels->load_bf16, kernels->store_bf16};
    return dtype == BRG_DTYPE_F16 ? f16 : bf16;
}

/* The parameter was written by somebody else: where the master copy does not
 * round to it, take its value. At most a block. */
static inline void brg__wide_follow(float *master, const uint16_t *param,
                                    size_t n, const brg__wide *wide)
{
    uint16_t rounded[BRG__WIDE_BLOCK];
    float value[BRG__WIDE_BLOCK];
    wide->store(rounded, master, n);
    wide->load(value, param, n);
    for (size_t i = 0; i < n; i++)
        if (rounded[i] != param[i])
            master[i] = value[i];
}

#endif
