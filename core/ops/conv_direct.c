/* SPDX-License-Identifier: Apache-2.0
 * Convolutions of stride 1 in f32, without unfolding.
 *
 * An image is copied once, with its padding. In the flat copy the pixel that
 * tap (ky, kx) of output p = y * width + x reads is at p + ky * dh * width +
 * kx * dw: a *shift* of p. So the unfolded matrix need not be made: its rows
 * are shifted views of the image, which the blocked product reads in place.
 * The price is (kw - 1) * dw columns of each row that wrap around to the next
 * and are thrown away.
 *
 *   forward       y (o,p)      = weight (o,taps) * shifts (taps,p)
 *   grad_input    the forward of the padded g with turned weights
 *   grad_weight   gw^T (taps,o) = shifts (taps,p) * g^T (p,o), where g has
 *                 zeros in the columns that wrap
 *
 * Scratch: slot 0 the product's, 1 shifts and turned weights, 2 the image, 3
 * an output before columns are thrown away, or g^T and gw^T. */
#include <string.h>

#include "core/base/alloc.h"
#include "core/base/progress.h"
#include "core/ops/conv.h"
#include "core/ops/gemm_kernels.h"
#include "core/ops/image_kernels.h"

/* Floats that may be read past the end of an operand. */
#define SLACK BRG__GEMM_MAX_NR

/* The image of one group, padded and flat. */
typedef struct flat {
    int64_t height, width; /* padded */
    int64_t plane;         /* floats of a channel */
    int64_t n_out;         /* outputs, those that wrap included */
    int64_t n_taps;        /* channels * kh * kw */
    int64_t *shifts;       /* (n_taps) */
    float *image;
    float *spare; /* memory after the shifts */
} flat;

static bool can_read_direct(const brg__conv *v)
{
    return v->dtype == BRG_DTYPE_F32 && v->stride[0] == 1 &&
           v->stride[1] == 1 && v->n > 0;
}

static void fill_shifts(const brg__conv *v, flat *f)
{
    int64_t *shift = f->shifts;
    for (int64_t c = 0; c < brg__conv_group_c(v); c++)
        for (int64_t ky = 0; ky < v->kh; ky++)
            for (int64_t kx = 0; kx < v->kw; kx++)
                *shift++ = c * f->plane + ky * v->dilation[0] * f->width +
                           kx * v->dilation[1];
}

static brg_status flat_init(flat *f, const brg__conv *v, int64_t n_spare)
{
    f->height = v->h + 2 * v->padding[0];
    f->width = v->w + 2 * v->padding[1];
    f->plane = f->height * f->width;
    f->n_out = (v->oh - 1) * f->width + v->ow;
    f->n_taps = brg__conv_depth(v);
    const size_t n_image = (size_t)(brg__conv_group_c(v) * f->plane + SLACK);
    f->image = brg__scratch(2, n_image * sizeof(float), "a padded image");
    f->shifts = brg__scratch(1,
                             (size_t)f->n_taps * sizeof *f->shifts +
                                 (size_t)n_spare * sizeof(float),
                             "the taps of a convolution");
    if (!f->image || !f->shifts)
        return BRG_ERR_NOMEM;
    f->spare = (float *)(f->shifts + f->n_taps);
    memset(f->image, 0, n_image * sizeof(float));
    fill_shifts(v, f);
    return BRG_OK;
}

/* Copies one group of one image inside the padding, which stays zero. */
static void flat_fill(const flat *f, const brg__conv *v, const brg__images *x,
                      int64_t n, int64_t group)
{
    const int64_t *stride = x->stride, n_c = brg__conv_group_c(v);
    const float *image = (const float *)x->at + n * stride[0];
    brg__image_rows r = {
        .ldt = f->width, .ldf = stride[2], .n_rows = v->h, .n = v->w};
    for (int64_t c = 0; c < n_c; c++) {
        r.from = image + (group * n_c + c) * stride[1];
        r.to =
            f->image + c * f->plane + v->padding[0] * f->width + v->padding[1];
        if (stride[3] == 1) {
            brg__image_kernels_get()->copy_rows(&r);
            continue;
        }
        for (int64_t i = 0; i < v->h * v->w; i++) {
            const int64_t row = i / v->w, col = i % v->w;
            r.to[row * r.ldt + col] = r.from[row * r.ldf + col * stride[3]];
        }
    }
}

/* Drops the columns that wrap and adds the bias of each filter. */
static void keep_columns(const flat *f, const brg__conv *v, const float *from,
                         const float *bias, int64_t step, float *to)
{
    brg__image_rows r = {
        .ldt = v->ow, .ldf = f->width, .n_rows = v->oh, .n = v->ow};
    for (int64_t o = 0; o < brg__conv_group_o(v); o++) {
        r.to = to + o * v->oh * v->ow;
        r.from = from + o * f->n_out;
        r.bias = bias ? bias[o * step] : 0;
        brg__image_kernels_get()->copy_rows(&r);
    }
}

static brg_status forward(const brg__conv *v, const flat *f,
                          const brg__images *x, const float *weight,
                          const brg__conv_bias *bias, float *y)
{
    const int64_t n_o = brg__conv_group_o(v), plane = v->oh * v->ow;
    float *wide = brg__scratch(3, (size_t)(n_o * f->n_out) * sizeof *wide,
                               "the output of a convolution");
    if (!wide)
        return BRG_ERR_NOMEM;
    brg__product p = {.m = n_o,
                      .n = f->n_out,
                      .k = f->n_taps,
                      .a_row = f->n_taps,
                      .a_col = 1,
                      .b = f->image,
                      .b_rows = f->shifts,
                      .b_col = 1,
                      .b_slack = SLACK,
                      .alpha = 1.0f,
                      .c = wide,
                      .ldc = f->n_out};
    for (int64_t n = 0; n < v->n; n++) {
        for (int64_t group = 0; group < v->groups; group++) {
            flat_fill(f, v, x, n, group);
            p.a = weight + group * n_o * f->n_taps;
            BRG_TRY(brg__product_run(&p));
            const float *b =
                bias->at ? bias->at + group * n_o * bias->step : NULL;
            keep_columns(f, v, wide, b, bias->step,
                         y + (n * v->o + group * n_o) * plane);
        }
        brg__progress_poll();
    }
    return BRG_OK;
}

bool brg__conv_direct_forward(const brg__conv *v, const brg__images *x,
                              const void *weight, const brg__conv_bias *bias,
                              void *y, brg_status *status)
{
    flat f;
    if (!can_read_direct(v))
        return false;
    *status = flat_init(&f, v, 0);
    if (*status == BRG_OK)
        *status = forward(v, &f, x, weight, bias, y);
    return true;
}

/* ---- grad_input ------------------------------------------------------------ */

/* The convolution of g that gives the gradient of x. */
static brg__conv turned(const brg__conv *v)
{
    brg__conv t = *v;
    t.c = v->o;
    t.o = v->c;
    t.h = v->oh;
    t.w = v->ow;
    t.oh = v->h;
    t.ow = v->w;
    t.padding[0] = v->dilation[0] * (v->kh - 1) - v->padding[0];
    t.padding[1] = v->dilation[1] * (v->kw - 1) - v->padding[1];
    return t;
}

/* (groups,o,c,taps) to (groups,c,o,taps), taps in reversed order. */
static void turn_weight(const brg__conv *v, const float *from, float *to)
{
    const int64_t n_o = brg__conv_group_o(v), n_c = brg__conv_group_c(v);
    const int64_t n = v->kh * v->kw;
    for (int64_t i = 0; i < v->groups * n_o * n_c; i++) {
        const int64_t group = i / (n_o * n_c), o = i / n_c % n_o, c = i % n_c;
        float *taps = to + ((group * n_c + c) * n_o + o) * n;
        for (int64_t tap = 0; tap < n; tap++)
            taps[tap] = from[i * n + n - 1 - tap];
    }
}

bool brg__conv_direct_grad_input(const brg__conv *v, const void *g,
                                 const void *weight, void *gx,
                                 brg_status *status)
{
    flat f;
    const brg__conv t = turned(v);
    if (!can_read_direct(v) || t.padding[0] < 0 || t.padding[1] < 0)
        return false;
    const int64_t stride[4] = {t.c * t.h * t.w, t.h * t.w, t.w, 1};
    const brg__images images = {(void *)g, stride};
    const brg__conv_bias none = {NULL, 0};
    *status = flat_init(&f, &t, v->o * brg__conv_depth(v));
    if (*status != BRG_OK)
        return true;
    turn_weight(v, weight, f.spare);
    *status = forward(&t, &f, &images, f.spare, &none, gx);
    return true;
}

/* ---- grad_weight ------------------------------------------------------------- */

/* One group of g, pixels by channels; pixels that wrap stay zero. */
static void transpose_pixels(const flat *f, const brg__conv *v, const float *g,
                             float *to)
{
    const int64_t n_o = brg__conv_group_o(v);
    const brg__gemm_kernels *kernels = brg__gemm_kernels_get();
    for (int64_t y = 0; y < v->oh; y++)
        kernels->transpose(to + y * f->width * n_o, n_o, g + y * v->ow,
                           v->oh * v->ow, n_o, v->ow);
}

static brg_status grad_weight(const brg__conv *v, const flat *f,
                              const brg__images *x, const float *g, float *gw)
{
    const int64_t n_o = brg__conv_group_o(v), n_gt = f->n_out * n_o + SLACK;
    const int64_t n_gw = f->n_taps * n_o;
    float *gt = brg__scratch(3, (size_t)(n_gt + v->groups * n_gw) * sizeof *gt,
                             "a gradient");
    if (!gt)
        return BRG_ERR_NOMEM;
    float *sum = gt + n_gt;
    memset(gt, 0, (size_t)n_gt * sizeof *gt);
    brg__product p = {.m = f->n_taps,
                      .n = n_o,
                      .k = f->n_out,
                      .a = f->image,
                      .a_rows = f->shifts,
                      .a_col = 1,
                      .b = gt,
                      .b_row = n_o,
                      .b_col = 1,
                      .b_slack = SLACK,
                      .alpha = 1.0f,
                      .ldc = n_o};
    for (int64_t n = 0; n < v->n; n++) {
        p.mode = n > 0 ? BRG__GEMM_ADD : BRG__GEMM_SET;
        for (int64_t group = 0; group < v->groups; group++) {
            flat_fill(f, v, x, n, group);
            transpose_pixels(f, v, g + (n * v->o + group * n_o) * v->oh * v->ow,
                             gt);
            p.c = sum + group * n_gw;
            BRG_TRY(brg__product_run(&p));
        }
        brg__progress_poll();
    }
    for (int64_t group = 0; group < v->groups; group++)
        brg__gemm_kernels_get()->transpose(gw + group * n_gw, f->n_taps,
                                           sum + group * n_gw, n_o, f->n_taps,
                                           n_o);
    return BRG_OK;
}

bool brg__conv_direct_grad_weight(const brg__conv *v, const void *g,
                                  const brg__images *x, void *gw,
                                  brg_status *status)
{
    flat f;
    if (!can_read_direct(v))
        return false;
    *status = flat_init(&f, v, 0);
    if (*status == BRG_OK)
        *status = grad_weight(v, &f, x, g, gw);
    return true;
}
