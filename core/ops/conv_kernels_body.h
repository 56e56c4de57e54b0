/* SPDX-License-Identifier: Apache-2.0
 * Loops over blocks of images for one element type REAL; NAME(x) names them.
 * Included by conv_kernels.c once per type, so it has no guard. */

static void NAME(unfold_row)(const REAL *from, int64_t step, const span *s,
                             REAL *to)
{
    for (int64_t x = 0; x < s->lo; x++)
        to[x] = 0;
    if (step == 1)
        copy_row(to + s->lo, from + s->lo, (size_t)(s->hi - s->lo) * sizeof *to,
                 sizeof *to);
    else
        for (int64_t x = s->lo; x < s->hi; x++)
            to[x] = from[x * step];
    for (int64_t x = s->hi; x < s->n; x++)
        to[x] = 0;
}

static void NAME(unfold)(const brg__conv *v, const void *image,
                         const int64_t *stride, const brg__conv_block *b,
                         void *unfolded)
{
    const int64_t step = v->stride[1] * stride[3];
    REAL *to = unfolded;
    for (int64_t k = 0; k < brg__conv_depth(v); k++) {
        const tap t = tap_of(v, k);
        const span s = span_of(v, t.x);
        const REAL *from =
            (const REAL *)image + t.c * stride[1] + t.x * stride[3];
        for (int64_t y = b->y0; y < b->y1; y++, to += v->ow) {
            const int64_t row = y * v->stride[0] + t.y;
            if (row < 0 || row >= v->h || s.lo == s.hi)
                memset(to, 0, (size_t)v->ow * sizeof *to);
            else
                NAME(unfold_row)(from + row * stride[2], step, &s, to);
        }
    }
}

static void NAME(fold_tap)(const brg__conv *v, const REAL *restrict from,
                           const brg__conv_block *b, const tap *t,
                           REAL *restrict image)
{
    const int64_t step = v->stride[1];
    const span s = span_of(v, t->x);
    for (int64_t y = b->y0; y < b->y1; y++, from += v->ow) {
        const int64_t row = y * v->stride[0] + t->y;
        if (row < 0 || row >= v->h)
            continue;
        REAL *restrict to = image + (t->c * v->h + row) * v->w + t->x;
        if (step == 1)
            for (int64_t x = s.lo; x < s.hi; x++)
                to[x] += from[x];
        else
            for (int64_t x = s.lo; x < s.hi; x++)
                to[x * step] += from[x];
    }
}

/* Channels innermost: what a tap adds to has left the store buffer when the
 * next tap reads it. */
static void NAME(fold)(const brg__conv *v, const void *unfolded,
                       const brg__conv_block *b, void *image)
{
    const int64_t n = (b->y1 - b->y0) * v->ow, n_taps = v->kh * v->kw;
    for (int64_t i = 0; i < n_taps; i++)
        for (int64_t k = i; k < brg__conv_depth(v); k += n_taps) {
            const tap t = tap_of(v, k);
            NAME(fold_tap)(v, (const REAL *)unfolded + k * n, b, &t, image);
        }
}

static void NAME(fill)(const brg__conv *v, const brg__conv_bias *bias,
                       const brg__conv_block *b, void *y)
{
    const int64_t n_o = brg__conv_group_o(v), n = (b->y1 - b->y0) * v->ow;
    const REAL *from = (const REAL *)bias->at + b->group * n_o * bias->step;
    for (int64_t o = 0; o < n_o; o++) {
        const REAL value = from[o * bias->step];
        REAL *to = (REAL *)y + o * v->oh * v->ow;
        for (int64_t i = 0; i < n; i++)
            to[i] = value;
    }
}
