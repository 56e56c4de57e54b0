/* SPDX-License-Identifier: Apache-2.0
 * Attention by strips of queries: a strip of scores against all the keys it
 * sees is made, used and forgotten, so that memory is a strip and not the
 * square. The backward makes the strips again from the saved log-sum-exp.
 * Keys that a causal strip cannot see are skipped. Uses scratch slots 2 and
 * 3. */
#include <math.h>
#include <string.h>

#include "core/base/progress.h"
#include "core/ops/attention.h"
#include "core/ops/gemm.h"
#include "core/ops/isa.h"
#include "core/ops/rows.h"

#define REAL double
#define NAME(x) x##_f64
#define EXP exp
#define LOG log
#include "core/ops/attention_body.h"

static const brg__attention_kernels kernels_f64 = {softmax_f64,
                                                   softmax_grad_f64};

extern const brg__attention_kernels brg__attention_f32_base;
extern const brg__attention_kernels brg__attention_f32_avx2;
extern const brg__attention_kernels brg__attention_f32_avx512;

const brg__attention_kernels *brg__attention_kernels_of(brg_dtype dtype)
{
    return dtype == BRG_DTYPE_F64 ? &kernels_f64
                                  : BRG__ISA_PICK(brg__attention_f32);
}

/* Queries per strip: fewer mean less work on keys that are masked, more mean
 * less packing per product. */
#define MAX_STRIP 64

static int64_t strip_rows(const brg__attention *a)
{
    if (a->is_causal && a->t <= 2 * MAX_STRIP)
        return MAX_STRIP / 2;
    return a->t < MAX_STRIP ? a->t : MAX_STRIP;
}

/* A strip of one head: queries [first, first + rows), keys [0, cols). */
typedef struct strip {
    const brg__attention *a;
    const brg__attention_kernels *kernels;
    int64_t b, head;
    int64_t first, rows, cols;
    char *scores, *dp, *delta;
} strip;

static int64_t item_size(const brg__attention *a)
{
    return a->dtype == BRG_DTYPE_F64 ? 8 : 4;
}

/* Rows of an operand from `row` on, for the strip's head. */
static void *rows_at(const strip *s, const brg__heads *x, int64_t row)
{
    const int64_t at = s->b * x->batch + s->head * x->head + row * x->row;
    return (char *)x->at + at * item_size(s->a);
}

static void *lse_at(const strip *s)
{
    const int64_t row = (s->b * s->a->n_heads + s->head) * s->a->t + s->first;
    return (char *)s->a->lse + row * item_size(s->a);
}

static brg__mat mat(const strip *s, const brg__heads *x, int64_t row)
{
    return brg__mat_of(rows_at(s, x, row), x->row, x->col);
}

static brg__mat flip(brg__mat m)
{
    return brg__mat_of(m.at, m.col, m.row);
}

/* to (rows,cols) = alpha * x (rows,inner) y^T: one row per query. */
static brg_status multiply_strip(const strip *s, const brg__heads *x,
                                 const brg__heads *y, int64_t inner,
                                 double alpha, void *to)
{
    const brg__gemm g = {.dtype = s->a->dtype,
                         .m = s->rows,
                         .n = s->cols,
                         .k = inner,
                         .a = mat(s, x, s->first),
                         .b = flip(mat(s, y, 0)),
                         .alpha = alpha,
                         .c = to,
                         .ldc = s->cols};
    return brg__gemm_run(&g);
}

/* Rows of `to` for the strip's queries = weights (rows,cols) x. */
static brg_status queries_from_keys(const strip *s, const void *weights,
                                    const brg__heads *x, int64_t width,
                                    const brg__heads *to)
{
    const brg__gemm g = {.dtype = s->a->dtype,
                         .m = s->rows,
                         .n = width,
                         .k = s->cols,
                         .a = brg__mat_of(weights, s->cols, 1),
                         .b = mat(s, x, 0),
                         .alpha = 1.0,
                         .c = rows_at(s, to, s->first),
                         .ldc = to->row};
    return brg__gemm_run(&g);
}

/* Rows of `to` for the strip's keys (+)= weights^T x, x a row per query. */
static brg_status keys_from_queries(const strip *s, const void *weights,
                                    const brg__heads *x, int64_t width,
                                    const brg__heads *to)
{
    const brg__gemm g = {.dtype = s->a->dtype,
                         .accumulate = s->first + s->rows < s->a->t,
                         .m = s->cols,
                         .n = width,
                         .k = s->rows,
                         .a = brg__mat_of(weights, 1, s->cols),
                         .b = mat(s, x, s->first),
                         .alpha = 1.0,
                         .c = rows_at(s, to, 0),
                         .ldc = to->row};
    return brg__gemm_run(&g);
}

static brg__strip rows_of(const strip *s)
{
    const brg__strip rows = {s->scores, s->rows,         s->cols,
                             s->first,  s->a->is_causal, lse_at(s)};
    return rows;
}

static brg_status forward_strip(const strip *s)
{
    const brg__attention *a = s->a;
    BRG_TRY(multiply_strip(s, &a->q, &a->k, a->d, a->scale, s->scores));
    const brg__strip rows = rows_of(s);
    s->kernels->softmax(&rows);
    return queries_from_keys(s, s->scores, &a->v, a->d_out, &a->out);
}

static double dot(const strip *s, const void *x, int64_t step_x, const void *y,
                  int64_t step_y)
{
    const int64_t n = s->a->d_out;
    if (step_x == 1 && step_y == 1)
        return brg__row_kernels_of(s->a->dtype)->dot(x, y, 0, (size_t)n);
    double sum = 0;
    for (int64_t j = 0; j < n; j++)
        sum += s->a->dtype == BRG_DTYPE_F64
                   ? ((const double *)x)[j * step_x] *
                         ((const double *)y)[j * step_y]
                   : (double)(((const float *)x)[j * step_x] *
                              ((const float *)y)[j * step_y]);
    return sum;
}

/* delta = sum over columns of g * out, per query. */
static void fill_delta(const strip *s)
{
    const brg__heads *g = &s->a->g, *out = &s->a->out;
    for (int64_t i = 0; i < s->rows; i++) {
        const double sum = dot(s, rows_at(s, g, s->first + i), g->col,
                               rows_at(s, out, s->first + i), out->col);
        if (s->a->dtype == BRG_DTYPE_F64)
            ((double *)s->delta)[i] = sum;
        else
            ((float *)s->delta)[i] = (float)sum;
    }
}

static brg_status backward_strip(const strip *s)
{
    const brg__attention *a = s->a;
    BRG_TRY(multiply_strip(s, &a->q, &a->k, a->d, a->scale, s->scores));
    BRG_TRY(multiply_strip(s, &a->g, &a->v, a->d_out, 1.0, s->dp));
    fill_delta(s);
    const brg__strip rows = rows_of(s);
    s->kernels->softmax_grad(&rows, s->dp, s->delta, a->scale);
    BRG_TRY(keys_from_queries(s, s->scores, &a->g, a->d_out, &a->gv));
    BRG_TRY(keys_from_queries(s, s->dp, &a->q, a->d, &a->gk));
    return queries_from_keys(s, s->dp, &a->k, a->d, &a->gq);
}

static brg_status make_scratch(strip *s, bool is_backward)
{
    const brg__attention *a = s->a;
    const size_t item = (size_t)item_size(a);
    const size_t nbytes = (size_t)(strip_rows(a) * a->s) * item;
    s->scores = brg__scratch(2, nbytes, "attention scores");
    if (!s->scores)
        return BRG_ERR_NOMEM;
    if (!is_backward)
        return BRG_OK;
    s->delta = brg__scratch(3, nbytes + MAX_STRIP * item, "attention scores");
    if (!s->delta)
        return BRG_ERR_NOMEM;
    s->dp = s->delta + MAX_STRIP * item;
    return BRG_OK;
}

/* The strips of one head, last first: it sees all keys and so sets what the
 * others add to. */
static brg_status each_strip(strip *s, brg_status (*fn)(const strip *s))
{
    const brg__attention *a = s->a;
    const int64_t rows = strip_rows(a);
    for (int64_t end = a->t; end > 0; end = s->first) {
        s->first = (end - 1) / rows * rows;
        s->rows = end - s->first;
        s->cols = a->is_causal && end < a->t && end < a->s ? end : a->s;
        BRG_TRY(fn(s));
    }
    return BRG_OK;
}

static brg_status run(const brg__attention *a, bool is_backward)
{
    strip s = {.a = a, .kernels = brg__attention_kernels_of(a->dtype)};
    BRG_TRY(make_scratch(&s, is_backward));
    for (s.b = 0; s.b < a->n_batch; s.b++)
        for (s.head = 0; s.head < a->n_heads; s.head++) {
            BRG_TRY(
                each_strip(&s, is_backward ? backward_strip : forward_strip));
            brg__progress_poll();
        }
    return BRG_OK;
}

brg_status brg__attention_forward(const brg__attention *a)
{
    return run(a, false);
}

brg_status brg__attention_backward(const brg__attention *a)
{
    return run(a, true);
}
