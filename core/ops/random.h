/* SPDX-License-Identifier: Apache-2.0
 * The kernels of random numbers, one table per instruction set. */
#ifndef BRG_CORE_OPS_RANDOM_H
#define BRG_CORE_OPS_RANDOM_H

#include <stddef.h>
#include <stdint.h>

#include <brigade/random.h>

/* As brg_random_set_state, of what the library itself puts back. */
void brg__random_set_state(const brg_random_state *state);
/* The counters that a draw of n elements takes; takes so many, returns the
 * first. */
uint64_t brg__random_counters(int64_t n);
brg_random_state brg__random_take(uint64_t n_counters);

/* Counters are handled in blocks, four words each. */
#define BRG__RANDOM_COUNTERS 16
#define BRG__RANDOM_WORDS (4 * BRG__RANDOM_COUNTERS)

/* One block: the counters from `counter` on (its low 64 bits count up). */
typedef struct brg__random_block {
    uint32_t counter[4];
    uint32_t key[2];
} brg__random_block;

typedef struct brg__random_unit {
    float a, b;
    int n_bits;
} brg__random_unit;

typedef struct brg__random_kernels {
    void (*words)(const brg__random_block *block,
                  uint32_t out[BRG__RANDOM_WORDS]);
    /* out = a + b u, u = the upper n_bits of a word as a fraction; a where
     * rounding reached the open end a + b. n_bits <= 24 */
    void (*uniform)(size_t n, const uint32_t *words, const brg__random_unit *u,
                    float *out);
    /* Box-Muller: words 2j, 2j+1 become two normal numbers. */
    void (*normal)(const uint32_t words[BRG__RANDOM_WORDS],
                   float out[BRG__RANDOM_WORDS]);
    /* out = word < threshold ? 0 : x * scale; n <= BRG__RANDOM_WORDS */
    void (*mask_f32)(size_t n, const uint32_t *words, uint32_t threshold,
                     float scale, const float *x, float *out);
} brg__random_kernels;

extern const brg__random_kernels brg__random_base;
extern const brg__random_kernels brg__random_avx2;
extern const brg__random_kernels brg__random_avx512;

#endif
