/* SPDX-License-Identifier: Apache-2.0
 * Unfolding of convolutions, compiled once per instruction set. */
#include <string.h>

#include "core/ops/conv.h"
#include "core/ops/isa.h"

/* Output (y, x) reads pixel (y * stride + tap.y, x * stride + tap.x). */
typedef struct tap {
    int64_t c, y, x;
} tap;

static tap tap_of(const brg__conv *v, int64_t k)
{
    const int64_t n = v->kh * v->kw;
    const tap t = {.c = k / n,
                   .y = k % n / v->kw * v->dilation[0] - v->padding[0],
                   .x = k % v->kw * v->dilation[1] - v->padding[1]};
    return t;
}

/* Of n outputs of a row, [lo, hi) read inside the image. */
typedef struct span {
    int64_t lo, hi, n;
} span;

static span span_of(const brg__conv *v, int64_t tap_x)
{
    const int64_t step = v->stride[1], end = v->w - tap_x; /* x * step < end */
    span s = {.lo = tap_x < 0 ? (step - 1 - tap_x) / step : 0,
              .hi = end > 0 ? (end + step - 1) / step : 0,
              .n = v->ow};
    s.hi = s.hi < s.n ? s.hi : s.n;
    s.lo = s.lo < s.hi ? s.lo : s.hi;
    return s;
}

/* Rows are short: moves of a fixed size, the last of which overlaps the one
 * before, instead of a call of memcpy. */
static inline void copy_row(void *to, const void *from, size_t n, size_t item)
{
    enum { MOVE = 32 };
    char *restrict t = to;
    const char *restrict f = from;
    size_t at = 0;
    for (; at + MOVE <= n; at += MOVE)
        memcpy(t + at, f + at, MOVE);
    if (at < n && n >= MOVE)
        memcpy(t + n - MOVE, f + n - MOVE, MOVE);
    else
        for (; at < n; at += item)
            memcpy(t + at, f + at, item);
}

#define REAL float
#define NAME(x) x##_f32
#include "core/ops/conv_kernels_body.h"
#undef REAL
#undef NAME
#define REAL double
#define NAME(x) x##_f64
#include "core/ops/conv_kernels_body.h"
#undef REAL
#undef NAME

extern const brg__conv_kernels BRG__ISA_NAME(brg__conv_kernels)[2];
const brg__conv_kernels BRG__ISA_NAME(brg__conv_kernels)[2] = {
    {unfold_f32, fold_f32, fill_f32},
    {unfold_f64, fold_f64, fill_f64},
};
