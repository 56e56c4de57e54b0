/* SPDX-License-Identifier: Apache-2.0
 * The compiler's vectors of f32, as long as the instruction set's: for files
 * of brg_isa_source() whose loops need more than the vectoriser finds. */
#ifndef BRG_CORE_OPS_VECTORS_H
#define BRG_CORE_OPS_VECTORS_H

#include <stdint.h>

#if defined(BRG_ISA_AVX512)
#define LANES 16
#elif defined(BRG_ISA_AVX2)
#define LANES 8
#else
#define LANES 4
#endif
#define INLINE static inline __attribute__((always_inline, unused))

typedef float vec
    __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(LANES * 4), may_alias));
typedef uint8_t bytes
    __attribute__((vector_size(LANES), aligned(1), may_alias));

INLINE vec load(const float *at)
{
    return *(const vec *)at;
}

INLINE void store(float *at, vec x)
{
    *(vec *)at = x;
}

#if LANES == 16
#define ZIP_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define ZIP_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define ODD 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#elif LANES == 8
#define ZIP_LOW 0, 8, 1, 9, 2, 10, 3, 11
#define ZIP_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14
#define ODD 1, 3, 5, 7, 9, 11, 13, 15
#else
#define ZIP_LOW 0, 4, 1, 5
#define ZIP_HIGH 2, 6, 3, 7
#define EVEN 0, 2, 4, 6
#define ODD 1, 3, 5, 7
#endif

/* The elements of x and y in turn: the first half of them, the second. */
INLINE vec zip_low(vec x, vec y)
{
    return __builtin_shufflevector(x, y, ZIP_LOW);
}

INLINE vec zip_high(vec x, vec y)
{
    return __builtin_shufflevector(x, y, ZIP_HIGH);
}

/* Every second element of x and y: from the first, from the second. */
INLINE vec even_of(vec x, vec y)
{
    return __builtin_shufflevector(x, y, EVEN);
}

INLINE vec odd_of(vec x, vec y)
{
    return __builtin_shufflevector(x, y, ODD);
}

#endif
