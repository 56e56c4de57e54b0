/* SPDX-License-Identifier: Apache-2.0
 * Dtype rows and conversion of the 16-bit floats, round to nearest even. */
#ifndef BRG_CORE_BASE_DTYPE_H
#define BRG_CORE_BASE_DTYPE_H

#include <stdint.h>
#include <string.h>

#include <brigade/types.h>

/* A block of 8-bit numbers (comm/q8.h): an element of all-reduces, of no
 * tensor. It has a name and a size as dtypes have. */
#define BRG__DTYPE_Q8 ((brg_dtype)113)

static inline float brg__bits_f32(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline uint32_t brg__f32_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float brg__bf16_to_f32(uint16_t h)
{
    return brg__bits_f32((uint32_t)h << 16);
}

static inline uint16_t brg__f32_to_bf16(float x)
{
    uint32_t bits = brg__f32_bits(x);
    uint32_t rounded = bits + 0x7FFFu + ((bits >> 16) & 1u);
    uint32_t quiet = bits | 0x00400000u; /* keep a NaN a NaN */
    return (uint16_t)((x != x ? quiet : rounded) >> 16);
}

/* Exact for every f16, subnormals included: scaled by 2^112 in f32. */
static inline float brg__f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t rest = (uint32_t)(h & 0x7FFFu) << 13;
    float scaled = brg__bits_f32(rest) * 0x1p112f;
    uint32_t special = rest | 0x7F800000u; /* infinity and NaN */
    uint32_t bits = (h & 0x7C00u) == 0x7C00u ? special : brg__f32_bits(scaled);
    return brg__bits_f32(sign | bits);
}

static inline uint16_t brg__f32_to_f16(float x)
{
    uint32_t bits = brg__f32_bits(x);
    uint32_t sign = (bits >> 16) & 0x8000u;
    uint32_t magnitude = bits & 0x7FFFFFFFu;
    /* Subnormal results: adding 0.5 makes the hardware round at 2^-24. */
    uint32_t tiny =
        brg__f32_bits(brg__bits_f32(magnitude) + 0.5f) - 0x3F000000u;
    uint32_t normal =
        (magnitude - 0x38000000u + 0xFFFu + ((magnitude >> 13) & 1u)) >> 13;
    uint32_t h = magnitude < 0x38800000u ? tiny : normal;
    h = magnitude >= 0x477FF000u ? 0x7C00u : h; /* rounds to infinity */
    h = magnitude > 0x7F800000u ? 0x7E00u : h;  /* NaN */
    return (uint16_t)(sign | h);
}

#endif
