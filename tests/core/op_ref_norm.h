/* SPDX-License-Identifier: Apache-2.0
 * References of norms and losses: see op_ref_shape.h, which includes this. */
#ifndef BRG_TESTS_CORE_OP_REF_NORM_H
#define BRG_TESTS_CORE_OP_REF_NORM_H

#include "tests/core/op_ref_shape.h"

/* ---- Softmax: for each line along dim 1 ------------------------------ */

/* y along dim 1 at k, from sums over the line; `what` is 0 softmax,
 * 1 log_softmax, 2 and 3 their gradients from x[0] = g, x[1] = y. */
static double ref_softmax_at(const op_values *x, size_t k, int what)
{
    int64_t i[8] = {0};
    ref_index(&x[0].shape, k, i);
    double total = 0, own = x[0].v[k], gained = 0;
    double out = what >= 2 ? x[1].v[k] : 0;
    int64_t j[8];
    memcpy(j, i, sizeof j);
    for (j[1] = 0; j[1] < x[0].shape.size[1]; j[1]++) {
        total += exp(op_at(&x[0], j));
        if (what >= 2)
            gained += op_at(&x[0], j) * (what == 2 ? op_at(&x[1], j) : 1.0);
    }
    return what == 0   ? exp(own) / total
           : what == 1 ? own - log(total)
           : what == 2 ? (own - gained) * out
                       : own - exp(out) * gained;
}

static void ref_softmax_kind(op_values *y, const op_values *x, int what)
{
    op_values_init(y, x[0].shape.ndim, x[0].shape.size);
    for (size_t k = 0; k < y->n; k++)
        y->v[k] = ref_softmax_at(x, k, what);
}

static void ref_softmax(op_values *y, const op_values *x)
{
    ref_softmax_kind(y, x, 0);
}

static void ref_log_softmax(op_values *y, const op_values *x)
{
    ref_softmax_kind(y, x, 1);
}

static void ref_softmax_grad(op_values *y, const op_values *x)
{
    ref_softmax_kind(y, x, 2);
}

static void ref_log_softmax_grad(op_values *y, const op_values *x)
{
    ref_softmax_kind(y, x, 3);
}

/* ---- Layer norm: x (rows, n), eps 0.01 ------------------------------- */

typedef struct ref_moments {
    double mean, rstd;
} ref_moments;

static ref_moments ref_row_moments(const double *x, size_t n)
{
    ref_moments m = {0, 0};
    double var = 0;
    for (size_t i = 0; i < n; i++)
        m.mean += x[i] / (double)n;
    for (size_t i = 0; i < n; i++)
        var += (x[i] - m.mean) * (x[i] - m.mean) / (double)n;
    m.rstd = 1.0 / sqrt(var + 0.01);
    return m;
}

/* w, b NULL: 1, 0. */
static void ref_norm_rows(op_values *y, const op_values *x, const op_values *w,
                          const op_values *b, size_t n)
{
    op_values_init(y, x->shape.ndim, x->shape.size);
    for (size_t r = 0; n && r < x->n / n; r++) {
        ref_moments m = ref_row_moments(x->v + r * n, n);
        for (size_t i = 0; i < n; i++)
            y->v[r * n + i] =
                (x->v[r * n + i] - m.mean) * m.rstd * (w ? w->v[i] : 1.0) +
                (b ? b->v[i] : 0.0);
    }
}

static void ref_layer_norm(op_values *y, const op_values *x)
{
    ref_norm_rows(y, &x[0], &x[1], &x[2], x[1].n);
}

static void ref_layer_norm_plain(op_values *y, const op_values *x)
{
    ref_norm_rows(y, &x[0], NULL, NULL, (size_t)x[0].shape.size[1]);
}

static void ref_layer_norm_weight(op_values *y, const op_values *x)
{
    ref_norm_rows(y, &x[0], &x[1], NULL, x[1].n);
}

static void ref_layer_norm_bias(op_values *y, const op_values *x)
{
    ref_norm_rows(y, &x[0], NULL, &x[1], x[1].n);
}

/* gx of g, x, w, mean, rstd, as if mean and rstd were any numbers. */
static void ref_layer_norm_grad(op_values *y, const op_values *x)
{
    size_t n = x[2].n;
    op_values_init(y, x[1].shape.ndim, x[1].shape.size);
    for (size_t r = 0; r < x[3].n; r++) {
        double s0 = 0, s1 = 0, mean = x[3].v[r], rstd = x[4].v[r];
        const double *g = x[0].v + r * n, *v = x[1].v + r * n;
        for (size_t i = 0; i < n; i++) {
            s0 += g[i] * x[2].v[i] / (double)n;
            s1 += g[i] * x[2].v[i] * (v[i] - mean) * rstd / (double)n;
        }
        for (size_t i = 0; i < n; i++)
            y->v[r * n + i] =
                rstd * (g[i] * x[2].v[i] - s0 - (v[i] - mean) * rstd * s1);
    }
}

static void ref_layer_norm_grad_add(op_values *y, const op_values *x)
{
    ref_layer_norm_grad(y, x);
    for (size_t i = 0; i < y->n; i++)
        y->v[i] += x[5].v[i];
}

/* ---- Batch norm: x (N,C,..), eps 0.01 -------------------------------- */

static size_t ref_channel_of(const op_values *x, size_t k)
{
    int64_t i[8] = {0};
    ref_index(&x->shape, k, i);
    return (size_t)i[1];
}

static void ref_batch_norm(op_values *y, const op_values *x)
{
    op_values_init(y, x[0].shape.ndim, x[0].shape.size);
    double *line = calloc(x[0].n + 1, sizeof *line);
    for (size_t c = 0; c < (size_t)x[0].shape.size[1]; c++) {
        size_t n = 0;
        for (size_t k = 0; k < x[0].n; k++)
            if (ref_channel_of(&x[0], k) == c)
                line[n++] = x[0].v[k];
        ref_moments m = ref_row_moments(line, n);
        for (size_t k = 0; k < x[0].n; k++)
            if (ref_channel_of(&x[0], k) == c)
                y->v[k] = (x[0].v[k] - m.mean) * m.rstd * x[1].v[c] + x[2].v[c];
    }
    free(line);
}

/* With running statistics x[3], x[4]. */
static void ref_batch_norm_eval(op_values *y, const op_values *x)
{
    op_values_init(y, x[0].shape.ndim, x[0].shape.size);
    for (size_t k = 0; k < y->n; k++) {
        size_t c = ref_channel_of(&x[0], k);
        y->v[k] = (x[0].v[k] - x[3].v[c]) / sqrt(x[4].v[c] + 0.01) * x[1].v[c] +
                  x[2].v[c];
    }
}

/* gx of g, x, w, mean, rstd in training. */
static void ref_batch_norm_grad(op_values *y, const op_values *x)
{
    size_t channels = x[2].n;
    double *s0 = calloc(channels, sizeof *s0), *s1 = calloc(channels, 8);
    double n = (double)x[0].n / (double)channels;
    op_values_init(y, x[1].shape.ndim, x[1].shape.size);
    for (int pass = 0; pass < 2; pass++)
        for (size_t k = 0; k < y->n; k++) {
            size_t c = ref_channel_of(&x[1], k);
            double h = (x[1].v[k] - x[3].v[c]) * x[4].v[c];
            if (pass == 0) {
                s0[c] += x[0].v[k] / n;
                s1[c] += x[0].v[k] * h / n;
            } else {
                y->v[k] =
                    x[2].v[c] * x[4].v[c] * (x[0].v[k] - s0[c] - h * s1[c]);
            }
        }
    free(s0);
    free(s1);
}

/* ---- Losses ---------------------------------------------------------- */

/* Of one row: the sum over classes of -q[c] log p[c], where q is smoothed by
 * e. */
static double ref_row_loss(const double *x, size_t n, size_t target, double e)
{
    double total = 0, loss = 0;
    for (size_t c = 0; c < n; c++)
        total += exp(x[c]);
    for (size_t c = 0; c < n; c++) {
        double q = e / (double)n + (c == target ? 1.0 - e : 0.0);
        loss -= q * (x[c] - log(total));
    }
    return loss;
}

/* n_classes: 0 means all columns. */
static void ref_cross_entropy_of(op_values *y, const op_values *x, double e,
                                 int64_t ignored, size_t n_classes)
{
    size_t n = (size_t)x[0].shape.size[x[0].shape.ndim - 1], n_valid = 0;
    double total = 0;
    op_values_init(y, 0, NULL);
    for (size_t r = 0; r < x[1].n; r++) {
        if ((int64_t)x[1].v[r] == ignored)
            continue;
        total += ref_row_loss(x[0].v + r * n, n_classes ? n_classes : n,
                              (size_t)x[1].v[r], e);
        n_valid++;
    }
    y->v[0] = total / (double)n_valid;
}

static void ref_cross_entropy(op_values *y, const op_values *x)
{
    ref_cross_entropy_of(y, x, 0.0, -100, 0);
}

static void ref_cross_entropy_smooth(op_values *y, const op_values *x)
{
    ref_cross_entropy_of(y, x, 0.2, 1, 0);
}

static void ref_cross_entropy_padded(op_values *y, const op_values *x)
{
    ref_cross_entropy_of(y, x, 0.2, 1, 3);
}

/* gx of g, logits, targets, lse, as if lse were any numbers. */
static void ref_cross_entropy_grad(op_values *y, const op_values *x)
{
    size_t n = (size_t)x[1].shape.size[1];
    op_values_init(y, x[1].shape.ndim, x[1].shape.size);
    for (size_t k = 0; k < y->n; k++) {
        size_t r = k / n, c = k % n;
        double q = c == (size_t)x[2].v[r] ? 1.0 : 0.0;
        y->v[k] = (exp(x[1].v[k] - x[3].v[r]) - q) * x[0].v[0] / (double)x[2].n;
    }
}

static void ref_cross_entropy_targets(op_values *y, const op_values *x)
{
    size_t n = (size_t)x[0].shape.size[1];
    op_values_init(y, x[0].shape.ndim, x[0].shape.size);
    for (size_t r = 0; r < x[1].n; r++)
        y->v[r * n + (size_t)x[1].v[r]] = 1.0 / (double)x[1].n;
}

static void ref_nll(op_values *y, const op_values *x)
{
    size_t n = (size_t)x[0].shape.size[1];
    op_values_init(y, 0, NULL);
    for (size_t r = 0; r < x[1].n; r++)
        y->v[0] -= x[0].v[r * n + (size_t)x[1].v[r]] / (double)x[1].n;
}

static void ref_mse(op_values *y, const op_values *x)
{
    op_values_init(y, 0, NULL);
    double total = 0;
    for (size_t k = 0; k < x[0].n; k++)
        total += (x[0].v[k] - x[1].v[k]) * (x[0].v[k] - x[1].v[k]);
    y->v[0] = total / (double)x[0].n;
}

static void ref_mse_grad(op_values *y, const op_values *x)
{
    op_values_init(y, x[1].shape.ndim, x[1].shape.size);
    for (size_t k = 0; k < y->n; k++)
        y->v[k] = 2.0 * (x[1].v[k] - x[2].v[k]) * x[0].v[0] / (double)y->n;
}

#endif
