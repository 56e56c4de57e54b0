/* SPDX-License-Identifier: Apache-2.0
 * References and calls of the cases in op_cases_dense.def: plain loops in
 * double. Geometries are fixed here; test_conv.c, test_pool.c and
 * test_attention.c go through many. */
#ifndef BRG_TESTS_CORE_OP_REF_DENSE_H
#define BRG_TESTS_CORE_OP_REF_DENSE_H

#include "tests/support/op_case.h"

/* ---- Matrix products ------------------------------------------------------- */

/* (..,m,k) x (..,k,n) with the same batch dims, or a b without. */
static inline void ref_matmul(op_values *y, const op_values *x)
{
    const int d = x[0].shape.ndim;
    const int64_t m = x[0].shape.size[d - 2], k = x[0].shape.size[d - 1];
    const int64_t n = x[1].shape.size[x[1].shape.ndim - 1];
    op_shape shape = x[0].shape;
    shape.size[d - 1] = n;
    op_values_init(y, d, shape.size);
    for (int64_t i = 0; i < (int64_t)y->n; i++) {
        const int64_t row = i / n, col = i % n;
        const int64_t batch = x[1].shape.ndim == 2 ? 0 : row / m;
        for (int64_t l = 0; l < k; l++)
            y->v[i] += x[0].v[row * k + l] * x[1].v[(batch * k + l) * n + col];
    }
}

static inline void ref_contract_rows(op_values *y, const op_values *x)
{
    const int64_t m = x[0].shape.size[x[0].shape.ndim - 1];
    const int64_t n = x[1].shape.size[x[1].shape.ndim - 1];
    op_values_init(y, 2, (const int64_t[]){m, n});
    for (int64_t i = 0; i < m * n; i++)
        for (size_t l = 0; l < x[0].n / (size_t)m; l++)
            y->v[i] +=
                x[0].v[(int64_t)l * m + i / n] * x[1].v[(int64_t)l * n + i % n];
}

static inline void ref_linear(op_values *y, const op_values *x)
{
    const int d = x[0].shape.ndim;
    const int64_t k = x[1].shape.size[1], n = x[1].shape.size[0];
    op_shape shape = x[0].shape;
    shape.size[d - 1] = n;
    op_values_init(y, d, shape.size);
    for (int64_t i = 0; i < (int64_t)y->n; i++) {
        y->v[i] = x[2].v[i % n];
        for (int64_t l = 0; l < k; l++)
            y->v[i] += x[0].v[i / n * k + l] * x[1].v[i % n * k + l];
    }
}

/* ---- Products and what follows them (core/ops/merged.c) ------------------- */

static inline double ref_gelu_slope(double x)
{
    const double c = 0.7978845608028654, u = c * (x + 0.044715 * x * x * x);
    const double t = tanh(u);
    return 0.5 * (1 + t) +
           0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x);
}

/* x[2]: the bias, if there are three. */
static inline void ref_linear_gelu(op_values *y, const op_values *x)
{
    op_values zero = {0};
    op_values in[3] = {x[0], x[1], x[2]};
    const bool has_bias = x[2].shape.ndim == 1;
    if (!has_bias) {
        op_values_init(&zero, 1, &x[1].shape.size[0]);
        in[2] = zero;
    }
    ref_linear(y, in);
    free(zero.v);
    for (size_t i = 0; i < y->n; i++) {
        const double v = y->v[i];
        const double u = 0.7978845608028654 * (v + 0.044715 * v * v * v);
        y->v[i] = 0.5 * v * (1 + tanh(u));
    }
}

static inline void ref_linear_add(op_values *y, const op_values *x)
{
    ref_linear(y, x);
    for (size_t i = 0; i < y->n; i++)
        y->v[i] += x[3].v[i];
}

static inline void ref_matmul_gelu_grad(op_values *y, const op_values *x)
{
    ref_matmul(y, x);
    for (size_t i = 0; i < y->n; i++)
        y->v[i] *= ref_gelu_slope(x[2].v[i]);
}

/* Of g (m,k), w (n,k), y (m,n). */
static inline void ref_matmul_t_gelu_grad(op_values *y, const op_values *x)
{
    const int64_t k = x[1].shape.size[1], n = x[1].shape.size[0];
    op_values_init(y, x[2].shape.ndim, x[2].shape.size);
    for (int64_t i = 0; i < (int64_t)y->n; i++) {
        for (int64_t l = 0; l < k; l++)
            y->v[i] += x[0].v[i / n * k + l] * x[1].v[i % n * k + l];
        y->v[i] *= ref_gelu_slope(x[2].v[i]);
    }
}

/* ---- Convolution: 4 channels of 6 by 5 to 6 filters of 3 by 2, stride (2,1),
 * padding (1,0), dilation (1,2), 2 groups: 3 by 3 outputs --------------------- */

static const brg_attrs dense_conv_attrs = {.i = {2, 1, 1, 0, 1, 2, 2}};
static const int64_t dense_conv_w[4] = {6, 2, 3, 2};

static inline brg_tensor *dense_conv(brg_tensor *const *x)
{
    brg_conv2d_options o = BRG_CONV2D_OPTIONS_INIT;
    o.stride[0] = 2;
    o.padding[0] = 1;
    o.dilation[1] = 2;
    o.groups = 2;
    return brg_conv2d(x[0], x[1], x[2], &o);
}

static inline brg_tensor *dense_conv_grad_input(brg_tensor *const *x)
{
    brg_tensor *like = brg_zeros(brg_tensor_dtype(x[0]),
                                 BRG_SHAPE(brg_tensor_size(x[0], 0), 4, 6, 5));
    return brg__call3(&brg__op_conv2d_grad_input, x[0], x[1], like,
                      &dense_conv_attrs);
}

static inline brg_tensor *dense_conv_grad_weight(brg_tensor *const *x)
{
    brg_tensor *like = brg_zeros(brg_tensor_dtype(x[0]), 4, dense_conv_w);
    return brg__call3(&brg__op_conv2d_grad_weight, x[0], x[1], like,
                      &dense_conv_attrs);
}

/* For every product of the sum: positions in y, x and w. */
static inline bool dense_conv_term(int64_t y, int64_t tap, int64_t *x,
                                   int64_t *w)
{
    const int64_t ox = y % 3, oy = y / 3 % 3, o = y / 9 % 6, n = y / 54;
    const int64_t c = tap / 6, ky = tap / 2 % 3, kx = tap % 2;
    const int64_t iy = oy * 2 - 1 + ky, ix = ox + kx * 2;
    *x = ((n * 4 + o / 3 * 2 + c) * 6 + iy) * 5 + ix;
    *w = o * 12 + tap;
    return iy >= 0 && iy < 6;
}

static inline void ref_conv(op_values *y, const op_values *x)
{
    op_values_init(y, 4, (const int64_t[]){x->shape.size[0], 6, 3, 3});
    for (int64_t i = 0; i < (int64_t)y->n; i++) {
        y->v[i] = x[2].v[i / 9 % 6];
        for (int64_t tap = 0, ix, iw; tap < 12; tap++)
            if (dense_conv_term(i, tap, &ix, &iw))
                y->v[i] += x[0].v[ix] * x[1].v[iw];
    }
}

static inline void ref_conv_grad_input(op_values *gx, const op_values *x)
{
    op_values_init(gx, 4, (const int64_t[]){x->shape.size[0], 4, 6, 5});
    for (int64_t i = 0; i < (int64_t)x[0].n; i++)
        for (int64_t tap = 0, ix, iw; tap < 12; tap++)
            if (dense_conv_term(i, tap, &ix, &iw))
                gx->v[ix] += x[0].v[i] * x[1].v[iw];
}

static inline void ref_conv_grad_weight(op_values *gw, const op_values *x)
{
    op_values_init(gw, 4, dense_conv_w);
    for (int64_t i = 0; i < (int64_t)x[0].n; i++)
        for (int64_t tap = 0, ix, iw; tap < 12; tap++)
            if (dense_conv_term(i, tap, &ix, &iw))
                gw->v[iw] += x[0].v[i] * x[1].v[ix];
}

static inline void ref_channel_sum(op_values *y, const op_values *x)
{
    const int64_t *s = x->shape.size, plane = s[2] * s[3];
    op_values_init(y, 1, s + 1);
    for (int64_t i = 0; i < (int64_t)x->n; i++)
        y->v[i / plane % s[1]] += x->v[i];
}

/* ---- Pooling: windows of 2 by 2, stride 2, of planes of 4 by 6 --------------- */

static const brg_attrs dense_pool_attrs = {.i = {2, 2, 2, 2, 0, 0, 0}};

static inline brg_pool2d_options dense_pool_options(void)
{
    brg_pool2d_options o = BRG_POOL2D_OPTIONS_INIT;
    o.kernel[0] = o.kernel[1] = 2;
    return o;
}

static inline brg_tensor *dense_max_pool(brg_tensor *const *x)
{
    const brg_pool2d_options o = dense_pool_options();
    return brg_max_pool2d(x[0], &o);
}

static inline brg_tensor *dense_avg_pool(brg_tensor *const *x)
{
    const brg_pool2d_options o = dense_pool_options();
    return brg_avg_pool2d(x[0], &o);
}

static inline brg_tensor *dense_pool_image(brg_tensor *const *x)
{
    return brg_zeros(brg_tensor_dtype(x[0]),
                     BRG_SHAPE(brg_tensor_size(x[0], 0), 2, 4, 6));
}

/* Of window i of an image: its pixel at position 0..3. */
static inline int64_t dense_pool_pixel(int64_t i, int64_t position)
{
    const int64_t ox = i % 3, oy = i / 3 % 2, plane = i / 6;
    return plane * 24 + (oy * 2 + position / 2) * 6 + ox * 2 + position % 2;
}

static inline void dense_windows_init(op_values *y, const op_values *x)
{
    op_values_init(y, 4, (const int64_t[]){x->shape.size[0], 2, 2, 3});
}

static inline void dense_image_init(op_values *y, const op_values *x)
{
    op_values_init(y, 4, (const int64_t[]){x->shape.size[0], 2, 4, 6});
}

static inline void ref_max_pool(op_values *y, const op_values *x)
{
    dense_windows_init(y, x);
    for (int64_t i = 0; i < (int64_t)y->n; i++) {
        y->v[i] = -INFINITY;
        for (int64_t k = 0; k < 4; k++)
            y->v[i] = fmax(y->v[i], x->v[dense_pool_pixel(i, k)]);
    }
}

static inline void ref_avg_pool(op_values *y, const op_values *x)
{
    dense_windows_init(y, x);
    for (int64_t i = 0; i < (int64_t)y->n; i++)
        for (int64_t k = 0; k < 4; k++)
            y->v[i] += x->v[dense_pool_pixel(i, k)] / 4;
}

static inline void ref_avg_pool_grad(op_values *gx, const op_values *x)
{
    dense_image_init(gx, x);
    for (int64_t i = 0; i < (int64_t)x->n; i++)
        for (int64_t k = 0; k < 4; k++)
            gx->v[dense_pool_pixel(i, k)] += x->v[i] / 4;
}

static inline void ref_pool_put(op_values *gx, const op_values *x)
{
    dense_image_init(gx, x);
    for (int64_t i = 0; i < (int64_t)x->n; i++)
        gx->v[dense_pool_pixel(i, (int64_t)x[1].v[i])] += x->v[i];
}

static inline void ref_pool_take(op_values *y, const op_values *x)
{
    dense_windows_init(y, x);
    for (int64_t i = 0; i < (int64_t)y->n; i++)
        y->v[i] = x->v[dense_pool_pixel(i, (int64_t)x[1].v[i])];
}

/* ---- Attention: causal, scale 0.7; heads of 3 queries, 4 keys, size 2 ------- */

static const brg_attrs dense_attention_attrs = {.i = {1, 2}, .f = {0.7}};

static inline brg_tensor *dense_attention(brg_tensor *const *x)
{
    brg_attention_options o = BRG_ATTENTION_OPTIONS_INIT;
    o.is_causal = true;
    o.scale = 0.7;
    return brg_scaled_dot_product_attention(x[0], x[1], x[2], &o);
}

static inline brg_tensor *dense_attention_qkv(brg_tensor *const *x)
{
    brg_attention_options o = BRG_ATTENTION_OPTIONS_INIT;
    o.is_causal = true;
    o.scale = 0.7;
    return brg_attention_qkv(x[0], 2, &o);
}

/* The gradient of q for x = q, k, v and a gradient of the output. */
static inline brg_tensor *dense_attention_grad(brg_tensor *const *x)
{
    brg_tensor *out[BRG_MAX_OP_OUTPUTS] = {0};
    if (brg_op_apply(&brg__op_attention, 3, x, &dense_attention_attrs, out) !=
        BRG_OK)
        return NULL;
    brg_tensor *in[] = {x[0], x[1], x[2], out[0], out[1], x[3]};
    return brg__call(&brg__op_attention_grad, 6, in, &dense_attention_attrs);
}

static inline brg_tensor *dense_attention_qkv_grad(brg_tensor *const *x)
{
    brg_tensor *out[BRG_MAX_OP_OUTPUTS] = {0};
    if (brg_op_apply(&brg__op_attention_qkv, 1, x, &dense_attention_attrs,
                     out) != BRG_OK)
        return NULL;
    brg_tensor *in[] = {x[0], out[0], out[1], x[1]};
    return brg__call(&brg__op_attention_qkv_grad, 4, in,
                     &dense_attention_attrs);
}

/* Probabilities of query i of a head over its s keys, `step` floats apart. */
static inline void dense_probabilities(const double *q, const double *k,
                                       int64_t step, int64_t i, int64_t s,
                                       double *p)
{
    double sum = 0;
    for (int64_t j = 0; j < s; j++) {
        p[j] = j > i ? 0
                     : exp(0.7 * (q[0] * k[j * step] + q[1] * k[j * step + 1]));
        sum += p[j];
    }
    for (int64_t j = 0; j < s; j++)
        p[j] /= sum;
}

static inline void ref_attention(op_values *y, const op_values *x)
{
    op_values_init(y, 4, x[0].shape.size);
    const int64_t t = x[0].shape.size[2], s = x[1].shape.size[2];
    for (int64_t row = 0; row < (int64_t)y->n / 2; row++) {
        const int64_t head = row / t * s * 2;
        double p[8];
        dense_probabilities(x[0].v + row * 2, x[1].v + head, 2, row % t, s, p);
        for (int64_t j = 0; j < s; j++)
            for (int c = 0; c < 2; c++)
                y->v[row * 2 + c] += p[j] * x[2].v[head + j * 2 + c];
    }
}

/* gq = scale * sum over keys of p (g v - mean of g v) k. */
static inline void ref_attention_grad(op_values *gq, const op_values *x)
{
    op_values_init(gq, 4, x[0].shape.size);
    const int64_t t = x[0].shape.size[2], s = x[1].shape.size[2];
    for (int64_t row = 0; row < (int64_t)gq->n / 2; row++) {
        const double *k = x[1].v + row / t * s * 2, *g = x[3].v + row * 2;
        const double *v = x[2].v + row / t * s * 2;
        double p[8], mean = 0;
        dense_probabilities(x[0].v + row * 2, k, 2, row % t, s, p);
        for (int64_t j = 0; j < s; j++)
            mean += p[j] * (g[0] * v[j * 2] + g[1] * v[j * 2 + 1]);
        for (int64_t j = 0; j < s; j++)
            for (int c = 0; c < 2; c++)
                gq->v[row * 2 + c] +=
                    0.7 * p[j] *
                    (g[0] * v[j * 2] + g[1] * v[j * 2 + 1] - mean) *
                    k[j * 2 + c];
    }
}

/* qkv (b,t,3*2*2): element c of head h of part `part` of row i. */
static inline void ref_attention_qkv(op_values *y, const op_values *x)
{
    const int64_t b = x->shape.size[0], t = x->shape.size[1];
    op_values_init(y, 3, (const int64_t[]){b, t, 4});
    for (int64_t i = 0; i < b * t * 2; i++) {
        const int64_t head = i % 2, row = i / 2;
        const double *at = x->v + row / t * t * 12 + head * 2;
        double p[8];
        dense_probabilities(at + row % t * 12, at + 4, 12, row % t, t, p);
        for (int64_t j = 0; j < t; j++)
            for (int c = 0; c < 2; c++)
                y->v[i * 2 + c] += p[j] * at[j * 12 + 8 + c];
    }
}

/* Part of the gradient of one query for all of its head; see above. */
static inline void dense_qkv_grad_row(double *gx, const double *at,
                                      const double *g, int64_t i, int64_t t)
{
    double p[8], mean = 0;
    dense_probabilities(at + i * 12, at + 4, 12, i, t, p);
    for (int64_t j = 0; j < t; j++)
        mean += p[j] * (g[0] * at[j * 12 + 8] + g[1] * at[j * 12 + 9]);
    for (int64_t j = 0; j < t; j++) {
        const double gp = g[0] * at[j * 12 + 8] + g[1] * at[j * 12 + 9];
        const double gs = 0.7 * p[j] * (gp - mean);
        for (int c = 0; c < 2; c++) {
            gx[i * 12 + c] += gs * at[j * 12 + 4 + c];
            gx[j * 12 + 4 + c] += gs * at[i * 12 + c];
            gx[j * 12 + 8 + c] += p[j] * g[c];
        }
    }
}

static inline void ref_attention_qkv_grad(op_values *gx, const op_values *x)
{
    const int64_t t = x->shape.size[1];
    op_values_init(gx, 3, x->shape.size);
    for (int64_t i = 0; i < (int64_t)gx->n / 6; i++) {
        const int64_t head = i % 2, row = i / 2;
        const int64_t at = row / t * t * 12 + head * 2;
        dense_qkv_grad_row(gx->v + at, x->v + at, x[1].v + i * 2, row % t, t);
    }
}

/* Part 1 of 3 parts of 2 heads. */
static const brg_attrs dense_heads_attrs = {.i = {2, 3, 1}};

static inline void ref_heads_split(op_values *y, const op_values *x)
{
    const int64_t *s = x->shape.size, d = s[2] / 6;
    op_values_init(y, 4, (const int64_t[]){s[0], 2, s[1], d});
    for (int64_t i = 0; i < (int64_t)y->n; i++) {
        const int64_t row = i / d % s[1], head = i / d / s[1] % 2;
        const int64_t b = i / d / s[1] / 2;
        y->v[i] = x->v[((b * s[1] + row) * 6 + 2 + head) * d + i % d];
    }
}

static inline void ref_heads_merge(op_values *y, const op_values *x)
{
    const int64_t *s = x->shape.size, t = s[2], d = s[3];
    op_values_init(y, 3, (const int64_t[]){s[0], t, 6 * d});
    for (int64_t i = 0; i < (int64_t)x->n; i++) {
        const int64_t row = i / d % t, head = i / d / t % 2, b = i / d / t / 2;
        y->v[((b * t + row) * 6 + 2 + head) * d + i % d] = x->v[i];
    }
}

#endif
