/* SPDX-License-Identifier: Apache-2.0
 * Unfolding of image blocks for one element type REAL; NAME(x) names its
 * functions. Included by conv_unfold.c once per type, so it has no guard.
 *
 * The block of output rows [y0, y1) of one group becomes a matrix with a row
 * per (channel, ky, kx) and a column per output pixel. */

/* Where kernel column kx meets the image: outputs [*lo, *hi) of a row. */
static void NAME(valid)(const brg__conv *v, int64_t kx, int64_t *lo,
                        int64_t *hi)
{
    const int64_t s = v->stride[1];
    const int64_t first = v->padding[1] - kx * v->dilation[1];
    const int64_t end = v->w + first; /* x * s < end */
    *lo = first > 0 ? (first + s - 1) / s : 0;
    *hi = end > 0 ? (end + s - 1) / s : 0;
    *hi = *hi < v->ow ? *hi : v->ow;
    *lo = *lo < *hi ? *lo : *hi;
}

static void NAME(unfold_row)(const brg__conv *v, const REAL *from, int64_t step,
                             int64_t lo, int64_t hi, REAL *to)
{
    for (int64_t x = 0; x < lo; x++)
        to[x] = 0;
    if (step == 1)
        memcpy(to + lo, from + lo, (size_t)(hi - lo) * sizeof *to);
    else
        for (int64_t x = lo; x < hi; x++)
            to[x] = from[x * step];
    for (int64_t x = hi; x < v->ow; x++)
        to[x] = 0;
}

static void NAME(unfold)(const brg__conv *v, const REAL *image,
                         const int64_t *stride, int64_t y0, int64_t y1,
                         REAL *to)
{
    const int64_t taps = v->kh * v->kw, step = v->stride[1] * stride[3];
    for (int64_t k = 0; k < brg__conv_depth(v); k++) {
        const int64_t ky = k % taps / v->kw, kx = k % v->kw;
        const REAL *plane = image + k / taps * stride[1];
        int64_t lo, hi;
        NAME(valid)(v, kx, &lo, &hi);
        const int64_t ix = kx * v->dilation[1] - v->padding[1];
        for (int64_t y = y0; y < y1; y++, to += v->ow) {
            const int64_t iy =
                y * v->stride[0] + ky * v->dilation[0] - v->padding[0];
            if (iy < 0 || iy >= v->h || lo == hi)
                memset(to, 0, (size_t)v->ow * sizeof *to);
            else
                NAME(unfold_row)
                (v, plane + iy * stride[2] + ix * stride[3], step, lo, hi, to);
        }
    }
}

/* Adds an unfolded block back to a row-major image. */
static void NAME(fold)(const brg__conv *v, const REAL *from, int64_t y0,
                       int64_t y1, REAL *image)
{
    const int64_t taps = v->kh * v->kw, s = v->stride[1];
    for (int64_t k = 0; k < brg__conv_depth(v); k++) {
        const int64_t ky = k % taps / v->kw, kx = k % v->kw;
        REAL *plane = image + k / taps * v->h * v->w;
        int64_t lo, hi;
        NAME(valid)(v, kx, &lo, &hi);
        const int64_t ix = kx * v->dilation[1] - v->padding[1];
        for (int64_t y = y0; y < y1; y++, from += v->ow) {
            const int64_t iy =
                y * v->stride[0] + ky * v->dilation[0] - v->padding[0];
            if (iy < 0 || iy >= v->h)
                continue;
            REAL *to = plane + iy * v->w + ix;
            for (int64_t x = lo; x < hi; x++)
                to[x * s] += from[x];
        }
    }
}
