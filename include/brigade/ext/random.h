/* SPDX-License-Identifier: Apache-2.0
 * For authors of devices: a tensor of random numbers (brg_device_vtable.draw).
 *
 * Word k is lane k % 4 of Philox4x32-10 at the 128-bit counter offset + k / 4
 * (whose low 64 bits count), under the key `seed`. Operations are those below,
 * each rounded by itself, none contracted: all devices give the same bits. */
#ifndef BRG_EXT_RANDOM_H
#define BRG_EXT_RANDOM_H

#include <brigade/status.h>
#include <brigade/types.h>

BRG_BEGIN_DECLS

typedef enum brg_draw_kind {
    /* f64: a + b (word 2^-32). Others in f32: v = a + b (word / 2^(32 - n_bits),
     * rounded down, 2^-n_bits), a if b > 0 and v >= a + b; then rounded. */
    BRG_DRAW_UNIFORM,
    /* a + b z, z in f32 of words 2j and 2j + 1 (core/ops/normal.h). */
    BRG_DRAW_NORMAL,
    /* low + (word range) / 2^32, rounded down; i64. */
    BRG_DRAW_INTEGERS
} brg_draw_kind;

typedef struct brg_draw {
    brg_draw_kind kind;
    brg_dtype dtype;
    size_t numel; /* at least 1 */
    void *out;    /* row-major, on the device */
    uint64_t seed, offset;
    double a, b;
    int n_bits; /* at most 24 */
    int64_t low;
    uint64_t range; /* at most 2^32 */
} brg_draw;

BRG_END_DECLS

#endif
