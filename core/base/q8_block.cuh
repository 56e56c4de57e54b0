/* SPDX-License-Identifier: Apache-2.0
 * Blocks of 8-bit numbers in device code: a warp takes a block, a lane its
 * elements lane and lane + 32, of which those from 60 on are none. The formulas
 * are those of comm/q8_body.c. */
#ifndef BRG_CORE_BASE_Q8_BLOCK_CUH
#define BRG_CORE_BASE_Q8_BLOCK_CUH

#include <float.h>
#include <stdint.h>

#include "core/base/q8_block.h"

#define BRG__Q8_HEAD 4 /* bytes before the codes */
#define BRG__Q8_MOST 127
#define BRG__Q8_NOT_FINITE (-128)

static __device__ __forceinline__ float brg__q8_value(float scale, int code)
{
    return code == BRG__Q8_NOT_FINITE ? __uint_as_float(0x7FC00000u)
                                      : __fmul_rn(scale, (float)code);
}

static __device__ __forceinline__ bool brg__q8_is_finite(float x)
{
    return (__float_as_uint(x) & 0x7FFFFFFFu) < 0x7F800000u;
}

static __device__ __forceinline__ float
brg__q8_scale_of(const unsigned char *block)
{
    return __uint_as_float((uint32_t)*(const uint16_t *)block << 16);
}

/* Element i of a block; i below 60. */
static __device__ __forceinline__ int
brg__q8_code(const unsigned char *block, int i)
{
    return ((const int8_t *)block)[BRG__Q8_HEAD + i];
}

/* max / 127 rounded up to bf16, as bits. */
static __device__ __forceinline__ uint32_t brg__q8_scale_bits(uint32_t most)
{
    const float scale =
        fmaxf(__fdiv_rn(__uint_as_float(most), (float)BRG__Q8_MOST), FLT_MIN);
    return most == 0 ? 0 : (__float_as_uint(scale) + 0xFFFFu) >> 16;
}

/* The magnitude as bits, whose order is that of the numbers. */
static __device__ __forceinline__ uint32_t brg__q8_magnitude(float x)
{
    return brg__q8_is_finite(x) ? __float_as_uint(x) & 0x7FFFFFFFu : 0;
}

/* x[k] and up[k]: of element lane + 32 k, 0 where there is none; rounded down
 * at the fraction 1 - up. All lanes call it; returns the scale. */
static __device__ __forceinline__ float
brg__q8_put(unsigned char *block, int lane, const float x[2],
            const float up[2], uint16_t round, int code[2])
{
    uint32_t most = max(brg__q8_magnitude(x[0]), brg__q8_magnitude(x[1]));
    for (int k = 16; k > 0; k /= 2)
        most = max(most, __shfl_xor_sync(0xFFFFFFFFu, most, k));
    const uint32_t bits = brg__q8_scale_bits(most);
    const float scale = __uint_as_float(bits << 16);
    const float inverse = scale > 0 ? __fdiv_rn(1.0f, scale) : 0;
    for (int k = 0; k < 2; k++) {
        float above =
            __fadd_rn(__fmul_rn(x[k], inverse), BRG__Q8_MOST + 1 + up[k]);
        above = above < 2 * BRG__Q8_MOST + 1 ? above : 2 * BRG__Q8_MOST + 1;
        above = above > 1 ? above : 1;
        code[k] = brg__q8_is_finite(x[k]) ? (int)above - (BRG__Q8_MOST + 1)
                                          : BRG__Q8_NOT_FINITE;
        if (lane + 32 * k < (int)BRG__Q8_N)
            ((int8_t *)block)[BRG__Q8_HEAD + lane + 32 * k] = (int8_t)code[k];
    }
    if (lane == 0)
        *(uint32_t *)block = bits | (uint32_t)round << 16;
    return scale;
}

#endif
