/* SPDX-License-Identifier: Apache-2.0
 * Loops over rows of f32 images that pooling spends time in,
 * one table per instruction set. Arguments do not overlap. */
#ifndef BRG_CORE_OPS_IMAGE_KERNELS_H
#define BRG_CORE_OPS_IMAGE_KERNELS_H

#include <stdint.h>

/* A pair of rows a, b is n windows of 2 by 2 pixels; positions in a window
 * are 0, 1 in a and 2, 3 in b. */
typedef struct brg__image_kernels {
    void (*max)(const float *a, const float *b, float *y, uint8_t *which,
                int64_t n);
    void (*put)(const float *g, const uint8_t *which, float *a, float *b,
                int64_t n);
    void (*avg)(const float *a, const float *b, float *y, int64_t n);
    void (*avg_grad)(const float *g, float *a, float *b, int64_t n);
} brg__image_kernels;

const brg__image_kernels *brg__image_kernels_get(void);

#endif
