/* SPDX-License-Identifier: Apache-2.0
 * A pair of normal numbers from two random words (Box and Muller, 1958), for
 * the CPU's kernels and those of GPUs. Files that include it are compiled
 * without contraction of a product and a sum, so that the bits are the same in
 * all instruction sets. */
#ifndef BRG_CORE_OPS_NORMAL_H
#define BRG_CORE_OPS_NORMAL_H

#include "core/ops/vmath.h"

BRG__VM void brg__normal_pair(uint32_t first, uint32_t second, float *even,
                              float *odd)
{
    /* in (0, 1], so that the logarithm is finite */
    float u = ((float)(int32_t)(first >> 8) + 1.0f) * 0x1p-24f;
    float angle = (float)(int32_t)(second >> 8) * (0x1p-24f * 6.2831853f);
    float radius = sqrtf(-2.0f * brg__f32_log(u));
    *even = radius * brg__f32_cos(angle);
    *odd = radius * brg__f32_sin(angle);
}

#endif
