/* SPDX-License-Identifier: Apache-2.0
 * Running a group over tiles. */
#include <string.h>

#include "compile/fuse/fused.h"
#include "core/base/progress.h"
#include "core/ops/reduce.h"

#define NONE BRG__GROUP_NONE
#define CHUNK ((size_t)65536) /* elements between two progress polls */

/* One run. */
typedef struct walk {
    brg__fused *f;
    brg_tensor *const *outputs;
    char *workspace;
    const void *value[BRG__GROUP_MAX_IN + BRG__GROUP_MAX_OPS]; /* registers */
} walk;

static void *buffer_at(const walk *w, int i)
{
    return w->workspace + (size_t)i * w->f->buffer_bytes;
}

/* ---- Values ---------------------------------------------------------------------- */

static void round_tile(walk *w, const brg__fused_op *op, void *values)
{
    const brg__fused *f = w->f;
    void *narrow = buffer_at(w, f->n_buffers - 1);
    const brg__convert_kernels *k = f->tiles.convert;
    k->store[f->type][op->dtype](narrow, 1, values, f->tiles.n);
    k->load[op->dtype][f->type](values, narrow, 1, f->tiles.n);
}

static void *target_of(walk *w, const brg__fused_op *op)
{
    void *buffer = buffer_at(w, op->buffer);
    return op->tile == NONE || op->is_rounded
               ? buffer
               : brg__tiles_target(&w->f->tiles, op->tile, buffer);
}

static void run_ops(walk *w)
{
    brg__fused *f = w->f;
    for (int k = 0; k < f->n_ops; k++) {
        const brg__fused_op *op = &f->ops[k];
        if (!op->kernel)
            continue;
        const void *in[BRG__GROUP_OP_MAX_IN];
        for (int i = 0; i < BRG__GROUP_OP_MAX_IN; i++)
            in[i] = w->value[op->in[i]];
        void *to = target_of(w, op);
        op->kernel(f->tiles.n, to, in, &f->p[2 * k]);
        if (op->is_rounded)
            round_tile(w, op, to);
        if (op->tile != NONE)
            brg__tiles_write(&f->tiles, op->tile, to);
        w->value[op->to] = to;
    }
}

/* The same in one loop. */
static void run_compiled(walk *w)
{
    brg__fused *f = w->f;
    void *out[2 * BRG__GROUP_MAX_OUT];
    int n = 0;
    for (int k = 0; k < f->n_ops; k++)
        if (f->ops[k].is_export) {
            out[n] = target_of(w, &f->ops[k]);
            w->value[f->ops[k].to] = out[n++];
        }
    f->compiled(f->tiles.n, out, w->value, f->p);
    for (int k = 0; k < f->n_ops; k++)
        if (f->ops[k].is_export && f->ops[k].tile != NONE)
            brg__tiles_write(&f->tiles, f->ops[k].tile, w->value[f->ops[k].to]);
}

/* ---- Sums ------------------------------------------------------------------------ */

static void begin_sum(walk *w, brg__fused_sum *s, const void *direct)
{
    s->first = s->done = 0;
    s->line = 0;
    s->values = s->is_staged ? w->workspace + s->staging : direct;
    if (s->kind != BRG__SUM_COLUMNS)
        return;
    memset(w->workspace + s->partial, 0, (size_t)s->cols * w->f->item);
    memset(w->workspace + s->total, 0, (size_t)s->cols * sizeof(double));
}

static const void *value_at(const walk *w, const brg__fused_sum *s, int64_t at)
{
    return s->values + (size_t)(at - s->first) * w->f->item;
}

static void put(const walk *w, const brg__fused_sum *s, int64_t at, double v)
{
    const brg_tensor *to = w->outputs[s->out];
    brg__put_f64(brg__storage_base(to), (brg_dtype)to->dtype, to->offset + at,
                 v * s->scale);
}

/* Rows up to `end`, elements counted. */
static void sum_rows(walk *w, brg__fused_sum *s, int64_t end)
{
    while (s->done < end) {
        int64_t column = s->done % s->cols, left = s->cols - column;
        int64_t n = left < BRG__SUM_PIECE ? left : BRG__SUM_PIECE;
        if (s->done + n > end)
            return;
        s->line += w->f->rows->sum(value_at(w, s, s->done), (size_t)n);
        s->done += n;
        if (n == left) {
            put(w, s, s->done / s->cols - 1, s->line);
            s->line = 0;
        }
    }
}

static void put_columns(walk *w, const brg__fused_sum *s)
{
    const double *total = (const double *)(w->workspace + s->total);
    for (int64_t c = 0; c < s->cols; c++)
        put(w, s, c, total[c]);
}

static void sum_columns(walk *w, brg__fused_sum *s, int64_t end)
{
    char *partial = w->workspace + s->partial;
    double *total = (double *)(void *)(w->workspace + s->total);
    size_t cols = (size_t)s->cols;
    int64_t row = s->done / s->cols, rows = end / s->cols;
    if (rows < s->rows)
        rows -= rows % BRG__COL_STEP;
    while (row < rows) {
        int64_t block = (row / s->block_rows + 1) * s->block_rows;
        block = block < s->rows ? block : s->rows;
        int64_t to = rows < block ? rows : block;
        w->f->rows->col_add(partial, value_at(w, s, row * s->cols), cols,
                            (size_t)(to - row), cols);
        row = to;
        if (row == block)
            w->f->rows->col_flush(total, partial, cols);
    }
    s->done = row * s->cols;
    if (row == s->rows)
        put_columns(w, s);
}

/* The tile that ends at element `end` has been computed. */
static void add_tile(walk *w, brg__fused_sum *s, int64_t end)
{
    size_t n = w->f->tiles.n, item = w->f->item;
    if (s->is_staged) {
        char *staging = w->workspace + s->staging;
        size_t kept = (size_t)(s->done - s->first), held;
        held = (size_t)(end - (int64_t)n - s->done);
        memmove(staging, staging + kept * item, held * item);
        memcpy(staging + held * item, w->value[s->from], n * item);
        s->first = s->done;
    }
    if (s->kind == BRG__SUM_COLUMNS)
        sum_columns(w, s, end);
    else
        sum_rows(w, s, end);
}

/* ---- The walk -------------------------------------------------------------------- */

static void begin(walk *w, brg_tensor *const *in)
{
    brg__fused *f = w->f;
    for (int i = 0; i < f->n_loads; i++)
        brg__tiles_move(&f->tiles, i, in[f->load[i]]);
    for (int i = 0; i < f->n_stores; i++)
        brg__tiles_move(&f->tiles, f->n_loads + i, w->outputs[f->store[i]]);
    brg__tiles_start(&f->tiles);
    for (int i = 0; i < f->n_sums; i++) {
        brg__fused_sum *s = &f->sums[i];
        int tile =
            s->from < f->n_loads ? s->from : f->ops[s->from - f->n_loads].tile;
        begin_sum(w, s,
                  s->is_staged ? NULL : (void *)f->tiles.operand[tile].at);
    }
}

void brg__fused_run(brg__fused *f, brg_tensor *const *in,
                    brg_tensor *const *outputs, void *workspace)
{
    walk w = {.f = f, .outputs = outputs, .workspace = workspace};
    int64_t end = 0;
    size_t since_poll = 0;
    begin(&w, in);
    for (; f->tiles.n > 0; brg__tiles_next(&f->tiles)) {
        end += (int64_t)f->tiles.n;
        for (int i = 0; i < f->n_loads; i++)
            w.value[i] = brg__tiles_read(&f->tiles, i, buffer_at(&w, i));
        if (f->compiled)
            run_compiled(&w);
        else
            run_ops(&w);
        for (int i = 0; i < f->n_sums; i++)
            add_tile(&w, &f->sums[i], end);
        since_poll += f->tiles.n;
        if (since_poll >= CHUNK) {
            brg__progress_poll();
            since_poll = 0;
        }
    }
}
