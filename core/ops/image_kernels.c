/* SPDX-License-Identifier: Apache-2.0
 * Loops over rows of f32 images, compiled once per instruction set. */
#include "core/ops/image_kernels.h"

#include "core/ops/isa.h"
#include "core/ops/vectors.h"

/* ---- Pairs of rows, a vector of windows at a time -------------------------- */

/* Every second element of the 2 LANES at `at`: from the first, the second. */
INLINE vec load_even(const float *at)
{
    return even_of(load(at), load(at + LANES));
}

INLINE vec load_odd(const float *at)
{
    return odd_of(load(at), load(at + LANES));
}

/* Where the mask is set x, else y. */
INLINE vec pick(ivec mask, vec x, vec y)
{
    return (vec)(((ivec)x & mask) | ((ivec)y & ~mask));
}

/* The first of equal values, and the first NaN. */
INLINE void take(vec *best, ivec *position, vec x, int at)
{
    const ivec mask = (x > *best) | ((x != x) & (*best == *best));
    *best = pick(mask, x, *best);
    *position = (mask & at) | (*position & ~mask);
}

static void max_rest(const float *a, const float *b, float *y, uint8_t *which,
                     int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        const float x[4] = {a[2 * i], a[2 * i + 1], b[2 * i], b[2 * i + 1]};
        int best = 0;
        for (int k = 1; k < 4; k++)
            if (x[k] > x[best] || (x[k] != x[k] && x[best] == x[best]))
                best = k;
        y[i] = x[best];
        which[i] = (uint8_t)best;
    }
}

static void max(const float *a, const float *b, float *y, uint8_t *which,
                int64_t n)
{
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        vec best = load_even(a + 2 * i);
        ivec position = {0};
        take(&best, &position, load_odd(a + 2 * i), 1);
        take(&best, &position, load_even(b + 2 * i), 2);
        take(&best, &position, load_odd(b + 2 * i), 3);
        store(y + i, best);
        *(bytes *)(which + i) = __builtin_convertvector(position, bytes);
    }
    max_rest(a + 2 * i, b + 2 * i, y + i, which + i, n - i);
}

/* A loop, since gcc 12 converts a vector of bytes one by one. */
INLINE ivec load_bytes(const uint8_t *at)
{
    int32_t wide[LANES] __attribute__((aligned(64)));
    for (int i = 0; i < LANES; i++)
        wide[i] = at[i];
    return *(const ivec *)wide;
}

/* a before b, since vectors may reach past the end of a. */
static void put_row(const float *g, const uint8_t *which, float *to, int64_t n,
                    int first)
{
    const vec zero = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        const vec x = load(g + i);
        const ivec position = load_bytes(which + i);
        const vec left = pick(position == first, x, zero);
        const vec right = pick(position == first + 1, x, zero);
        store(to + 2 * i, zip_low(left, right));
        store(to + 2 * i + LANES, zip_high(left, right));
    }
    for (; i < n; i++)
        for (int k = 0; k < 2; k++)
            to[2 * i + k] = which[i] == first + k ? g[i] : 0;
}

static void put(const float *g, const uint8_t *which, float *a, float *b,
                int64_t n)
{
    put_row(g, which, a, n, 0);
    put_row(g, which, b, n, 2);
}

static void avg(const float *restrict a, const float *restrict b,
                float *restrict y, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = 0.25f * (a[2 * i] + a[2 * i + 1] + b[2 * i] + b[2 * i + 1]);
}

static void avg_grad(const float *restrict g, float *restrict a,
                     float *restrict b, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        a[2 * i] = a[2 * i + 1] = 0.25f * g[i];
    for (int64_t i = 0; i < n; i++)
        b[2 * i] = b[2 * i + 1] = 0.25f * g[i];
}

extern const brg__image_kernels BRG__ISA_NAME(brg__images_f32);
const brg__image_kernels BRG__ISA_NAME(brg__images_f32) = {max, put, avg,
                                                           avg_grad};
