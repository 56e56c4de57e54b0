/* SPDX-License-Identifier: Apache-2.0
 * Philox4x32-10 on sixteen counters at a time, and what becomes of its words.
 *
 * J. K. Salmon, M. A. Moraes, R. O. Dror and D. E. Shaw, "Parallel Random
 * Numbers: As Easy as 1, 2, 3" (SC 2011). The constants come from their
 * library, Random123; tests/core/test_random.c compares with it. */
#include <Random123/philox.h>

#include "core/ops/isa.h"
#include "core/ops/normal.h"
#include "core/ops/random.h"

#define N BRG__RANDOM_COUNTERS

static void philox_round(uint32_t c[4][N], uint32_t key_0, uint32_t key_1)
{
    for (int l = 0; l < N; l++) {
        uint64_t even = (uint64_t)PHILOX_M4x32_0 * c[0][l];
        uint64_t odd = (uint64_t)PHILOX_M4x32_1 * c[2][l];
        c[0][l] = (uint32_t)(odd >> 32) ^ c[1][l] ^ key_0;
        c[2][l] = (uint32_t)(even >> 32) ^ c[3][l] ^ key_1;
        c[1][l] = (uint32_t)odd;
        c[3][l] = (uint32_t)even;
    }
}

static void words(const brg__random_block *block,
                  uint32_t out[BRG__RANDOM_WORDS])
{
    uint32_t c[4][N];
    uint64_t first = (uint64_t)block->counter[1] << 32 | block->counter[0];
    for (int l = 0; l < N; l++) {
        uint64_t counter = first + (uint64_t)l;
        c[0][l] = (uint32_t)counter;
        c[1][l] = (uint32_t)(counter >> 32);
        c[2][l] = block->counter[2];
        c[3][l] = block->counter[3];
    }
    uint32_t key_0 = block->key[0], key_1 = block->key[1];
    for (int round = 0; round < philox4x32_rounds; round++) {
        philox_round(c, key_0, key_1);
        key_0 += PHILOX_W32_0;
        key_1 += PHILOX_W32_1;
    }
    for (int l = 0; l < N; l++)
        for (int lane = 0; lane < 4; lane++)
            out[4 * l + lane] = c[lane][l];
}

static void uniform(size_t n, const uint32_t *words_in,
                    const brg__random_unit *u, float *out)
{
    float a = u->a, b = u->b, end = u->b > 0.0f ? a + b : INFINITY;
    float unit = 1.0f / (float)(1 << u->n_bits);
    int shift = 32 - u->n_bits;
    BRG__INDEPENDENT
    for (size_t i = 0; i < n; i++) {
        float v = a + b * ((float)(int32_t)(words_in[i] >> shift) * unit);
        out[i] = v >= end ? a : v;
    }
}

static void normal(const uint32_t words_in[BRG__RANDOM_WORDS],
                   float out[BRG__RANDOM_WORDS])
{
    for (int j = 0; j < BRG__RANDOM_WORDS / 2; j++)
        brg__normal_pair(words_in[2 * j], words_in[2 * j + 1], &out[2 * j],
                         &out[2 * j + 1]);
}

static void mask_f32(size_t n, const uint32_t *words_in, uint32_t threshold,
                     float scale, const float *x, float *out)
{
    BRG__INDEPENDENT
    for (size_t i = 0; i < n; i++)
        out[i] = words_in[i] < threshold ? 0.0f : x[i] * scale;
}

const brg__random_kernels BRG__ISA_NAME(brg__random) = {
    .words = words,
    .uniform = uniform,
    .normal = normal,
    .mask_f32 = mask_f32,
};
