/* SPDX-License-Identifier: Apache-2.0
 * For authors of devices: what communication hooks do to the gradients of a
 * bucket (brg_device_vtable.compress). */
#ifndef BRG_EXT_COMPRESS_H
#define BRG_EXT_COMPRESS_H

#include <brigade/status.h>
#include <brigade/types.h>

BRG_BEGIN_DECLS

typedef enum brg_compress_rule {
    /* Each element by itself, in f32:
     *     x = data + error;  wire = round(x);  error = x - wire
     * but error 0 where that is not finite. TO_HALF: to the wire's dtype, to
     * nearest even; wire[count..room) = 0. */
    BRG_COMPRESS_TO_HALF,
    /* The same to blocks of 60 elements in 64 bytes (core/base/q8_block.h),
     * whose round is the low 16 bits of *steps; and back: data = blocks. */
    BRG_COMPRESS_TO_Q8,
    BRG_COMPRESS_FROM_Q8,

    /* Low rank, all of it f32; data, error (n, m), left (n, rank), right and
     * q (m, rank), row-major. Parts with n 0 have only data and wire.
     *     ADD       error = data, + error if is_kept; n 0: wire = data
     *     DRAW      q[i] = z(seed + (i + 1) 0x9E3779B97F4A7C15) 2^-63 - 1, z
     *               being the finaliser of splitmix64 over u64
     *     ORTHO     left's columns by Gram and Schmidt, twice, dot products in
     *               f64; one of which 1e-8 of the square is left, or less, is 0
     *     JUDGE     *finite = all of left and right is finite
     *     EXPAND    data = left right^T;  error -= share data, 0 if not finite;
     *               n 0: data = wire
     *     WARM      q = share right if is_kept; as DRAW says if not finite */
    BRG_COMPRESS_ADD,
    BRG_COMPRESS_DRAW,
    BRG_COMPRESS_ORTHO,
    BRG_COMPRESS_JUDGE,
    BRG_COMPRESS_EXPAND,
    BRG_COMPRESS_WARM
} brg_compress_rule;

/* One parameter of a bucket. Pointers are the device's; what a rule does not
 * name is not set. */
typedef struct brg_compress_part {
    size_t count; /* of data, error */
    size_t room;  /* of wire, elements; count or more */
    void *data;   /* the gradient, then the result: f32 or f64 */
    void *wire;
    float *error; /* NULL: none is fed back */
    size_t n, m;
    float *left, *right, *q;
    float *finite; /* one number: 1 or 0 */
    uint64_t seed;
} brg_compress_part;

typedef struct brg_compress_job {
    brg_compress_rule rule;
    brg_dtype dtype;                /* of data */
    brg_dtype wire_dtype;           /* TO_HALF */
    const brg_compress_part *parts; /* in host memory, until the call ends */
    size_t n_parts;
    const int64_t *steps; /* the device's */
    int rank;
    bool is_kept;
    float share;
} brg_compress_job;

BRG_END_DECLS

#endif
