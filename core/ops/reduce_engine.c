/* SPDX-License-Identifier: Apache-2.0
 * The engine of reductions: sum, max and min over a set of dims.
 *
 * The dims are split into kept and reduced ones, and merged where they lie in
 * memory as one. Then floats go one of two ways:
 *
 *   by columns   the innermost kept dim is dense in memory: stripes of up to
 *                BRG__COLS results, each fed with all its rows
 *   by rows      else: one result after the other, each fed with the pieces
 *                of its innermost reduced dim
 *
 * Integers are summed one by one in i64. */
#include <math.h>

#include "core/ops/reduce.h"
#include "core/ops/rows.h"

#define PIECE BRG__SUM_PIECE

/* A nest of loops over memory. */
typedef struct loops {
    int n;
    int64_t size[BRG_MAX_DIMS];
    int64_t step[BRG_MAX_DIMS];
    int64_t index[BRG_MAX_DIMS];
    int64_t at;
    int64_t count;
} loops;

/* Appends a dim inside those there are, merged with the last if possible. */
static void loops_add(loops *l, int64_t size, int64_t step)
{
    if (size == 1)
        return;
    int last = l->n - 1;
    if (l->n > 0 && l->step[last] == size * step) {
        l->size[last] *= size;
        l->step[last] = step;
        return;
    }
    l->size[l->n] = size;
    l->step[l->n++] = step;
}

/* Starts again at element `at`, without the last `n_inner` dims. */
static void loops_reset(loops *l, int64_t at, int n_inner)
{
    l->at = at;
    l->count = 1;
    for (int d = 0; d < l->n - n_inner; d++) {
        l->index[d] = 0;
        l->count *= l->size[d];
    }
}

static void loops_next(loops *l, int n_inner)
{
    for (int d = l->n - n_inner - 1; d >= 0; d--) {
        l->at += l->step[d];
        if (++l->index[d] < l->size[d])
            return;
        l->at -= l->size[d] * l->step[d];
        l->index[d] = 0;
    }
}

typedef struct job {
    const brg__row_kernels *k;
    brg__reduce_kind kind;
    double scale;
    const char *base;
    brg_dtype dtype;
    char *out;
    brg_dtype out_dtype;
    int64_t out_at;
    loops kept;
    loops reduced; /* outermost first; the innermost is the piece */
    int64_t polls;
} job;

static double start_of(brg__reduce_kind kind)
{
    return kind == BRG__REDUCE_SUM   ? 0.0
           : kind == BRG__REDUCE_MAX ? -(double)INFINITY
                                     : (double)INFINITY;
}

static double combine(brg__reduce_kind kind, double total, double v)
{
    if (kind == BRG__REDUCE_SUM)
        return total + v;
    bool passes = kind == BRG__REDUCE_MAX ? v > total : v < total;
    return passes || v != v ? v : total;
}

static double reduce_piece(const job *j, const void *x, size_t n)
{
    return j->kind == BRG__REDUCE_SUM   ? j->k->sum(x, n)
           : j->kind == BRG__REDUCE_MAX ? j->k->max(x, n)
                                        : j->k->min(x, n);
}

static void reduce_columns(const job *j, double *total, const void *x,
                           size_t ld, size_t rows, size_t n)
{
    (j->kind == BRG__REDUCE_SUM   ? j->k->col_sum
     : j->kind == BRG__REDUCE_MAX ? j->k->col_max
                                  : j->k->col_min)(total, x, ld, rows, n);
}

/* ---- By rows --------------------------------------------------------- */

/* With `shift`, the sum of (x - *shift)^2 instead. */
static double reduce_line(job *j, int64_t at, const double *shift)
{
    double buffer[PIECE], total = start_of(j->kind);
    const loops *in = &j->reduced;
    int64_t n = in->n ? in->size[in->n - 1] : 1;
    int64_t stride = in->n ? in->step[in->n - 1] : 1;
    for (int64_t i = 0; i < n; i += PIECE) {
        size_t n_now = (size_t)(n - i < PIECE ? n - i : PIECE);
        const void *x = brg__row_load(j->k, j->base, j->dtype, at + i * stride,
                                      stride, n_now, buffer);
        double v =
            shift ? j->k->sum_sq(x, *shift, n_now) : reduce_piece(j, x, n_now);
        total = combine(j->kind, total, v);
        brg__poll_after(&j->polls, (int64_t)n_now);
    }
    return total;
}

/* All that goes into the result at hand. */
static double reduce_one(job *j, const double *shift)
{
    loops *in = &j->reduced;
    int n_inner = in->n > 0;
    double total = start_of(j->kind);
    loops_reset(in, j->kept.at, n_inner);
    for (int64_t i = 0; i < in->count; i++) {
        total = combine(j->kind, total, reduce_line(j, in->at, shift));
        loops_next(in, n_inner);
    }
    return total;
}

static void reduce_by_rows(job *j)
{
    for (int64_t o = 0; o < j->kept.count; o++) {
        brg__put_f64(j->out, j->out_dtype, j->out_at + o,
                     reduce_one(j, NULL) * j->scale);
        loops_next(&j->kept, 0);
    }
}

/* ---- By columns ------------------------------------------------------ */

/* `rows` rows, `ld` apart, of one stripe. */
static void reduce_block(job *j, double *total, int64_t at, int64_t ld,
                         int64_t rows, size_t n)
{
    double buffer[4 * BRG__COLS];
    bool in_place = j->dtype == BRG_DTYPE_F32 || j->dtype == BRG_DTYPE_F64;
    int64_t most = brg__sum_block_rows(j->dtype);
    for (int64_t i = 0; i < rows; i += most) {
        int64_t n_now = rows - i < most ? rows - i : most;
        const char *x = j->base + (size_t)(at + i * ld) * j->k->item;
        for (int64_t r = 0; !in_place && r < n_now; r++)
            brg__row_load(j->k, j->base, j->dtype, at + (i + r) * ld, 1, n,
                          (float *)buffer + (size_t)r * n);
        reduce_columns(j, total, in_place ? (const void *)x : buffer,
                       in_place ? (size_t)ld : n, (size_t)n_now, n);
        brg__poll_after(&j->polls, n_now * (int64_t)n);
    }
}

static void reduce_stripe(job *j, int64_t at, int64_t out_at, int64_t n)
{
    double total[BRG__COLS];
    loops *in = &j->reduced;
    int n_inner = in->n > 0;
    int64_t rows = in->n ? in->size[in->n - 1] : 1;
    int64_t ld = in->n ? in->step[in->n - 1] : n;
    for (int64_t c = 0; c < n; c++)
        total[c] = start_of(j->kind);
    loops_reset(in, at, n_inner);
    for (int64_t i = 0; i < in->count; i++) {
        reduce_block(j, total, in->at, ld, rows, (size_t)n);
        loops_next(in, n_inner);
    }
    for (int64_t c = 0; c < n; c++)
        brg__put_f64(j->out, j->out_dtype, out_at + c, total[c] * j->scale);
}

static void reduce_by_columns(job *j)
{
    loops *kept = &j->kept;
    int64_t n = kept->size[kept->n - 1], out_at = j->out_at;
    loops_reset(kept, kept->at, 1);
    for (int64_t o = 0; o < kept->count; o++, out_at += n) {
        for (int64_t c = 0; c < n; c += BRG__COLS)
            reduce_stripe(j, kept->at + c, out_at + c,
                          n - c < BRG__COLS ? n - c : BRG__COLS);
        loops_next(kept, 1);
    }
}

/* ---- Integers -------------------------------------------------------- */

static int64_t combine_int(brg__reduce_kind kind, int64_t total, int64_t v)
{
    if (kind == BRG__REDUCE_SUM)
        return (int64_t)((uint64_t)total + (uint64_t)v); /* wraps */
    bool passes = kind == BRG__REDUCE_MAX ? v > total : v < total;
    return passes ? v : total;
}

static void reduce_ints(job *j)
{
    loops *in = &j->reduced;
    int64_t start = j->kind == BRG__REDUCE_SUM   ? 0
                    : j->kind == BRG__REDUCE_MAX ? INT64_MIN
                                                 : INT64_MAX;
    for (int64_t o = 0; o < j->kept.count; o++) {
        int64_t total = start;
        loops_reset(in, j->kept.at, 0);
        for (int64_t i = 0; i < in->count; i++) {
            total = combine_int(j->kind, total,
                                brg__get_i64(j->base, j->dtype, in->at));
            loops_next(in, 0);
        }
        brg__poll_after(&j->polls, in->count);
        brg__put_i64(j->out, j->out_dtype, j->out_at + o, total);
        loops_next(&j->kept, 0);
    }
}

/* ---- Entry ----------------------------------------------------------- */

static void fill_empty(brg_tensor *out, brg__reduce_kind kind, double scale)
{
    /* 0 * scale: the mean of nothing, whose scale is infinite, is NaN. */
    double v = kind == BRG__REDUCE_SUM ? 0.0 * scale : start_of(kind);
    for (int64_t i = 0; i < out->numel; i++)
        brg__put_f64(brg__storage_base(out), (brg_dtype)out->dtype,
                     out->offset + i, v);
}

static job job_of(brg_tensor *out, const brg_tensor *x, uint32_t dims,
                  brg__reduce_kind kind, double scale)
{
    job j = {.kind = kind,
             .scale = scale,
             .base = brg__storage_base(x),
             .dtype = (brg_dtype)x->dtype,
             .out = brg__storage_base(out),
             .out_dtype = (brg_dtype)out->dtype,
             .out_at = out->offset,
             .polls = 65536};
    for (int d = 0; d < x->ndim; d++)
        loops_add(dims >> d & 1u ? &j.reduced : &j.kept, x->shape[d],
                  x->stride[d]);
    loops_reset(&j.kept, x->offset, 0);
    if (brg__tensor_is_float(x))
        j.k = brg__row_kernels_of(j.dtype);
    return j;
}

brg_status brg__reduce_now(brg_tensor *out, const brg_tensor *x, uint32_t dims,
                           brg__reduce_kind kind, double scale)
{
    if (x->numel == 0) {
        fill_empty(out, kind, scale);
        return BRG_OK;
    }
    job j = job_of(out, x, dims, kind, scale);
    const loops *kept = &j.kept;
    if (!j.k)
        reduce_ints(&j);
    else if (kept->n > 0 && kept->step[kept->n - 1] == 1)
        reduce_by_columns(&j);
    else
        reduce_by_rows(&j);
    return BRG_OK;
}

brg_status brg__reduce_var_now(brg_tensor *out, const brg_tensor *x,
                               uint32_t dims, double scale)
{
    if (x->numel == 0) {
        fill_empty(out, BRG__REDUCE_SUM, scale);
        return BRG_OK;
    }
    job j = job_of(out, x, dims, BRG__REDUCE_SUM, scale);
    double n = (double)x->numel / (double)out->numel;
    for (int64_t o = 0; o < j.kept.count; o++) {
        double mean = reduce_one(&j, NULL) / n;
        brg__put_f64(j.out, j.out_dtype, j.out_at + o,
                     reduce_one(&j, &mean) * scale);
        loops_next(&j.kept, 0);
    }
    return BRG_OK;
}
