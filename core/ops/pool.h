/* SPDX-License-Identifier: Apache-2.0
 * The geometry of pooling and its kernels, over row-major planes. */
#ifndef BRG_CORE_OPS_POOL_H
#define BRG_CORE_OPS_POOL_H

#include <stdbool.h>
#include <stdint.h>

/* [0] is the vertical axis. */
typedef struct brg__pool {
    int64_t planes, h, w;
    int64_t oh, ow;
    int64_t kernel[2], stride[2], padding[2];
    bool exclude_padding;
    bool is_wide; /* positions in a window are i32, else u8 */
} brg__pool;

#define BRG__POOL_KERNELS(REAL, suffix)                                        \
    void brg__pool_max_##suffix(const brg__pool *p, const REAL *x, REAL *y,    \
                                void *which);                                  \
    void brg__pool_put_##suffix(const brg__pool *p, const REAL *g,             \
                                const void *which, REAL *gx);                  \
    void brg__pool_take_##suffix(const brg__pool *p, const REAL *x,            \
                                 const void *which, REAL *y);                  \
    void brg__pool_avg_##suffix(const brg__pool *p, const REAL *x, REAL *y);   \
    void brg__pool_avg_grad_##suffix(const brg__pool *p, const REAL *g,        \
                                     REAL *gx);

BRG__POOL_KERNELS(float, f32)
BRG__POOL_KERNELS(double, f64)

/* Windows of 2 by 2 that neither overlap nor leave the image, in f32
 * (pool_pairs.c). */
bool brg__pool_is_pairs(const brg__pool *p);
void brg__pool_max_pairs(const brg__pool *p, const float *x, float *y,
                         uint8_t *which);
void brg__pool_put_pairs(const brg__pool *p, const float *g,
                         const uint8_t *which, float *gx);
void brg__pool_avg_pairs(const brg__pool *p, const float *x, float *y);
void brg__pool_avg_grad_pairs(const brg__pool *p, const float *g, float *gx);

#endif
