/* SPDX-License-Identifier: Apache-2.0
 * Pooling of f32 images by windows of 2 by 2 that do not overlap: pairs of
 * rows through vector loops.
 *
 * Rows are short, so a row is worked on in whole vectors: what is written
 * past its end is the beginning of the next, which comes later. Only rows too
 * near to the end of the tensor keep to their length. */
#include <string.h>

#include "core/ops/image_kernels.h"
#include "core/ops/isa.h"
#include "core/ops/pool.h"

#define UNIT 16

extern const brg__image_kernels brg__images_f32_base;
extern const brg__image_kernels brg__images_f32_avx2;
extern const brg__image_kernels brg__images_f32_avx512;

const brg__image_kernels *brg__image_kernels_get(void)
{
    return BRG__ISA_PICK(brg__images_f32);
}

bool brg__pool_is_pairs(const brg__pool *p)
{
    return p->kernel[0] == 2 && p->kernel[1] == 2 && p->stride[0] == 2 &&
           p->stride[1] == 2 && p->padding[0] == 0 && p->padding[1] == 0;
}

/* One row of outputs: its first element, the image's two rows, and how many
 * windows to work on. */
typedef struct pair {
    int64_t y, a, b, n;
} pair;

static pair pair_of(const brg__pool *p, int64_t row)
{
    const int64_t plane = row / p->oh, oy = row % p->oh;
    pair r = {.y = row * p->ow, .n = p->ow};
    r.a = (plane * p->h + 2 * oy) * p->w;
    r.b = r.a + p->w;
    const int64_t n = (p->ow + UNIT - 1) / UNIT * UNIT;
    if (r.y + n <= p->planes * p->oh * p->ow &&
        r.b + 2 * n <= p->planes * p->h * p->w)
        r.n = n;
    return r;
}

void brg__pool_max_pairs(const brg__pool *p, const float *x, float *y,
                         uint8_t *which)
{
    const brg__image_kernels *kernels = brg__image_kernels_get();
    for (int64_t i = 0; i < p->planes * p->oh; i++) {
        const pair r = pair_of(p, i);
        kernels->max(x + r.a, x + r.b, y + r.y, which + r.y, r.n);
    }
}

void brg__pool_avg_pairs(const brg__pool *p, const float *x, float *y)
{
    const brg__image_kernels *kernels = brg__image_kernels_get();
    for (int64_t i = 0; i < p->planes * p->oh; i++) {
        const pair r = pair_of(p, i);
        kernels->avg(x + r.a, x + r.b, y + r.y, r.n);
    }
}

/* The pixels that no window has, once the pairs are written. */
static void clear_rest(const brg__pool *p, float *gx)
{
    for (int64_t i = 0; i < p->planes; i++, gx += p->h * p->w) {
        for (int64_t y = 0; y < 2 * p->oh && 2 * p->ow < p->w; y++)
            gx[(y + 1) * p->w - 1] = 0;
        if (2 * p->oh < p->h)
            memset(gx + (p->h - 1) * p->w, 0, (size_t)p->w * sizeof *gx);
    }
}

void brg__pool_put_pairs(const brg__pool *p, const float *g,
                         const uint8_t *which, float *gx)
{
    const brg__image_kernels *kernels = brg__image_kernels_get();
    for (int64_t i = 0; i < p->planes * p->oh; i++) {
        const pair r = pair_of(p, i);
        kernels->put(g + r.y, which + r.y, gx + r.a, gx + r.b, r.n);
    }
    clear_rest(p, gx);
}

void brg__pool_avg_grad_pairs(const brg__pool *p, const float *g, float *gx)
{
    const brg__image_kernels *kernels = brg__image_kernels_get();
    for (int64_t i = 0; i < p->planes * p->oh; i++) {
        const pair r = pair_of(p, i);
        kernels->avg_grad(g + r.y, gx + r.a, gx + r.b, r.n);
    }
    clear_rest(p, gx);
}
