/* SPDX-License-Identifier: Apache-2.0
 * Pooling kernels of any geometry, f32 and f64: one walk over the windows of
 * a plane that all of them share. */
#include "core/ops/pool.h"

#include <string.h>

/* One window, cut to the image: rows [y0, y1), columns [x0, x1). */
typedef struct window {
    int64_t n;      /* its number in the plane; counted by the user */
    int64_t oy, ox; /* its place among the outputs */
    int64_t y0, y1, x0, x1;
} window;

static int64_t clip(int64_t x, int64_t top)
{
    return x < 0 ? 0 : x < top ? x : top;
}

static void cut_rows(const brg__pool *p, window *at)
{
    const int64_t y = at->oy * p->stride[0] - p->padding[0];
    at->y0 = clip(y, p->h);
    at->y1 = clip(y + p->kernel[0], p->h);
}

static inline void cut_columns(const brg__pool *p, window *at)
{
    const int64_t x = at->ox * p->stride[1] - p->padding[1];
    at->x0 = clip(x, p->w);
    at->x1 = clip(x + p->kernel[1], p->w);
}

static void window_first(const brg__pool *p, window *at)
{
    *at = (window){0};
    cut_rows(p, at);
    cut_columns(p, at);
}

static inline bool window_next(const brg__pool *p, window *at)
{
    if (++at->ox == p->ow) {
        at->ox = 0;
        if (++at->oy == p->oh)
            return false;
        cut_rows(p, at);
    }
    cut_columns(p, at);
    return true;
}

/* The position of pixel (row, column) in the uncut window, and back to the
 * pixel's number in the plane. */
static inline int64_t position(const brg__pool *p, const window *at,
                               int64_t row, int64_t column)
{
    const int64_t y = at->oy * p->stride[0] - p->padding[0];
    const int64_t x = at->ox * p->stride[1] - p->padding[1];
    return (row - y) * p->kernel[1] + column - x;
}

static inline int64_t pixel(const brg__pool *p, const window *at,
                            int64_t position)
{
    const int64_t row =
        at->oy * p->stride[0] - p->padding[0] + position / p->kernel[1];
    const int64_t column =
        at->ox * p->stride[1] - p->padding[1] + position % p->kernel[1];
    return row * p->w + column;
}

static inline void which_set(const brg__pool *p, void *which, int64_t i,
                             int64_t position)
{
    if (p->is_wide)
        ((int32_t *)which)[i] = (int32_t)position;
    else
        ((uint8_t *)which)[i] = (uint8_t)position;
}

static inline int64_t which_get(const brg__pool *p, const void *which,
                                int64_t i)
{
    return p->is_wide ? ((const int32_t *)which)[i]
                      : ((const uint8_t *)which)[i];
}

static inline void *which_at(const brg__pool *p, void *which, int64_t i)
{
    return (char *)which + i * (p->is_wide ? 4 : 1);
}

#define REAL float
#define NAME(x) x##_f32
#include "core/ops/pool_body.h"
#undef REAL
#undef NAME
#define REAL double
#define NAME(x) x##_f64
#include "core/ops/pool_body.h"
#undef REAL
#undef NAME
