/* SPDX-License-Identifier: Apache-2.0
 * Random numbers: Philox4x32-10, a function of seed and counter.
 *
 * Each thread has a state: a seed and how many counters were used. A draw of n
 * elements uses ceil(n / 4) counters: element k takes lane k % 4 of counter
 * offset + k / 4, in row-major order whatever the memory layout, so every
 * device, processor and memory layout gives the same numbers, to the bit. */
#ifndef BRG_RANDOM_H
#define BRG_RANDOM_H

#include <brigade/tensor.h>

BRG_BEGIN_DECLS

/* ---- State of the calling thread ----------------------------------------- */

typedef struct brg_random_state {
    uint64_t seed;
    uint64_t offset;
} brg_random_state;

/* Starts over from this seed. A thread that never calls it has seed 0. */
BRG_API void brg_seed(uint64_t seed);
/* For checkpoints. */
BRG_API void brg_random_get_state(brg_random_state *filled);
BRG_API void brg_random_set_state(const brg_random_state *state);

/* ---- New tensors --------------------------------------------------------- */

/* Uniform in [0, 1), of a float dtype: multiples of 2^-24 (f32), 2^-32 (f64),
 * 2^-11 (f16), 2^-8 (bf16). */
BRG_API brg_tensor *brg_rand(brg_dtype dtype, int ndim, const int64_t *shape);
/* Normal with mean 0 and deviation 1 (Box and Muller, 1958), of a float dtype,
 * computed in f32. */
BRG_API brg_tensor *brg_randn(brg_dtype dtype, int ndim, const int64_t *shape);
/* i64 in [low, high), high - low <= 2^32. */
BRG_API brg_tensor *brg_randint(int64_t low, int64_t high, int ndim,
                                const int64_t *shape);
/* The numbers 0 .. n-1 in random order, i64. */
BRG_API brg_tensor *brg_randperm(int64_t n);

/* ---- In place: floats, not recorded -------------------------------------- */

/* Uniform in [low, high). */
BRG_API BRG_NODISCARD brg_status brg_uniform_(brg_tensor *t, double low,
                                              double high);
BRG_API BRG_NODISCARD brg_status brg_normal_(brg_tensor *t, double mean,
                                             double deviation);

/* ---- Dropout ------------------------------------------------------------- */

/* While training: each element becomes 0 with probability p, else x / (1 - p).
 * Otherwise, and for p = 0: x itself. The gradient draws the same mask again
 * from seed and counter; nothing is stored. */
BRG_API brg_tensor *brg_dropout(brg_tensor *x, double p, bool training);

BRG_END_DECLS

#endif
