/* SPDX-License-Identifier: Apache-2.0
 * Launching a group's kernels: which one, and its parameters. */
#include <string.h>

#include "compile/fuse/cuda_group.h"
#include "core/base/error.h"
#include "core/ops/reduce.h"
#include "core/tensor/device.h"
#include "core/tensor/shape.h"

#define NONE BRG__GROUP_NONE
#define MAX_BLOCKS 524280

/* The space as the operands walk it: neighbouring dims that all of them step
 * through alike are one. */
typedef struct space {
    int ndim;
    int64_t shape[BRG_MAX_DIMS];
    int64_t stride[BRG__GROUP_MAX_IN][BRG_MAX_DIMS]; /* of loads */
    int64_t n, rows, cols;
    bool is_flat;
    brg__cuda_kind kind[BRG__GROUP_MAX_IN];
} space;

/* ---- The space ----------------------------------------------------------------- */

static void merge_dims(space *s, int n_loads)
{
    int n = 0;
    for (int d = 0; d < s->ndim; d++) {
        if (s->shape[d] == 1)
            continue;
        bool joins = n > 0;
        for (int i = 0; joins && i < n_loads; i++)
            joins = s->stride[i][n - 1] == s->shape[d] * s->stride[i][d];
        n += !joins;
        s->shape[n - 1] = joins ? s->shape[n - 1] * s->shape[d] : s->shape[d];
        for (int i = 0; i < n_loads; i++)
            s->stride[i][n - 1] = s->stride[i][d];
    }
    s->ndim = n;
}

/* Meta tensors will be. */
static bool is_aligned(const brg_tensor *t, int width)
{
    if (!t->storage)
        return true;
    size_t bytes = (size_t)width * brg__tensor_item_size(t);
    bytes = bytes > 16 ? 16 : bytes;
    return (uintptr_t)brg__tensor_ptr(t) % bytes == 0;
}

/* False: the operand steps otherwise. */
static bool find_kind(const space *s, int i, brg__cuda_kind *kind)
{
    const int64_t *stride = s->stride[i];
    const int64_t row = s->ndim == 2 ? stride[0] : 0;
    const int64_t col = s->ndim > 0 ? stride[s->ndim - 1] : 1;
    const int64_t cols = s->ndim > 0 ? s->shape[s->ndim - 1] : 1;
    if (col == 1 && (s->ndim < 2 || row == cols))
        *kind = BRG__CUDA_WHOLE;
    else if (col == 1 && row == 0)
        *kind = BRG__CUDA_ROW;
    else if (col == 0 && row == 1)
        *kind = BRG__CUDA_COLUMN;
    else if (col == 0 && row == 0)
        *kind = BRG__CUDA_ONE;
    else
        return false;
    return true;
}

static bool is_flat(const brg__cuda_run *run, space *s)
{
    const brg__cuda_group *g = run->g;
    bool is = s->ndim <= 2 && s->n / g->width < INT32_MAX;
    if (is && s->ndim == 2)
        is = s->cols % g->width == 0;
    for (int i = 0; is && i < g->n_loads; i++)
        is = find_kind(s, i, &s->kind[i]) &&
             is_aligned(run->in[g->load[i]], g->width);
    for (int i = 0; is && i < g->n_stores; i++)
        is = is_aligned(run->results[g->store[i]], g->width);
    return is;
}

static void walk_space(const brg__cuda_run *run, space *s)
{
    const brg__cuda_group *g = run->g;
    const brg_tensor *out = run->results[g->store[0]];
    memset(s, 0, sizeof *s);
    s->ndim = out->ndim;
    s->n = out->numel;
    memcpy(s->shape, out->shape, sizeof s->shape);
    for (int i = 0; i < g->n_loads; i++) {
        const brg_tensor *t = run->in[g->load[i]];
        for (int d = 0; d < t->ndim; d++) {
            const int k = d + s->ndim - t->ndim;
            s->stride[i][k] = t->shape[d] == 1 ? 0 : t->stride[d];
        }
    }
    merge_dims(s, g->n_loads);
    s->rows = s->ndim == 2 ? s->shape[0] : 1;
    s->cols = s->ndim == 2 ? s->shape[1] : s->n;
    s->is_flat = is_flat(run, s);
}

/* ---- Sums -------------------------------------------------------------------------- */

static double find_sum(const brg__cuda_run *run, int k, int64_t *rows)
{
    const brg__group *group = run->g->group;
    const brg__group_op *op = &group->ops[k];
    brg_tensor *in[2] = {0};
    int cut;
    uint32_t dims;
    uint8_t ones = 0;
    double scale;
    for (int i = 0; i < op->n_in; i++)
        in[i] = op->in[i] < group->n_in ? run->in[op->in[i]]
                                        : run->results[op->in[i] - group->n_in];
    brg_op_call call = {
        .op = op->op, .n_in = op->n_in, .in = in, .attrs = &op->attrs};
    for (int d = 0; d < in[0]->ndim; d++)
        ones |= (uint8_t)((in[0]->shape[d] == 1) << d);
    brg__sum_of_call(&call, &dims, &scale);
    *rows = 0;
    if (brg__sum_of_dims(in[0]->ndim, ones, dims, &cut) != BRG__SUM_COLUMNS)
        return scale;
    *rows = 1;
    for (int d = 0; d < cut; d++)
        *rows *= in[0]->shape[d];
    return scale;
}

/* The rows that all sums are over; 0: they differ, or are others. */
static int64_t rows_of_sums(const brg__cuda_run *run)
{
    int64_t rows = 0;
    for (int s = 0; s < run->g->n_sums; s++) {
        int64_t mine;
        (void)find_sum(run, run->g->sum[s], &mine);
        if (s > 0 && mine != rows)
            return 0;
        rows = mine;
    }
    return rows;
}

/* The space divided as the sums divide it. */
static bool divides(const brg__cuda_run *run, space *s)
{
    const int width = run->g->width;
    const int64_t rows = rows_of_sums(run);
    if (rows == 0 || !s->is_flat || (s->rows > 1 && s->rows != rows))
        return false;
    for (int i = 0; i < run->g->n_loads; i++)
        if (s->kind[i] > BRG__CUDA_ROW)
            return false;
    s->rows = rows;
    s->cols = s->n / rows;
    const int64_t blocks =
        (s->cols / width + BRG__CUDA_COLUMNS - 1) / BRG__CUDA_COLUMNS;
    return s->cols % width == 0 && rows < INT32_MAX &&
           blocks <= BRG__CUDA_MAX_CLAIMS;
}

bool brg__cuda_sums(const brg__cuda_run *run)
{
    space s;
    if (!run->g->columns)
        return false;
    walk_space(run, &s);
    return divides(run, &s);
}

/* Enough blocks for all multiprocessors, of some rows each. */
static int64_t splits_for(const brg__cuda_run *run, const space *s,
                          int64_t blocks)
{
    const int64_t least = 2 * BRG__CUDA_DEPTH;
    int64_t splits = 4 * brg__cuda_kernels_units(run->kernels) / blocks;
    if (splits > s->rows / least)
        splits = s->rows / least;
    return splits < 1 ? 1 : splits;
}

/* ---- Parameters: in the order of cuda_text.c --------------------------------------- */

typedef struct params {
    _Alignas(8) char bytes[4096];
    size_t n;
} params;

static void add(params *p, const void *from, size_t nbytes)
{
    memcpy(p->bytes + p->n, from, nbytes);
    p->n += nbytes;
}

static void add_int(params *p, int64_t x)
{
    add(p, &x, sizeof x);
}

static void add_pointer(params *p, const brg_tensor *t)
{
    const void *at = t && t->storage ? brg__tensor_ptr(t) : NULL;
    add(p, &at, sizeof at);
}

static void add_scalars(params *p, const brg__cuda_group *g)
{
    for (int k = 0; k < g->group->n_ops; k++)
        for (int i = 0; g->scalars[k] != NONE && i < 2; i++) {
            const double x = g->group->ops[k].attrs.f[i];
            const float narrow = (float)x;
            if (g->type == BRG__F64)
                add(p, &x, sizeof x);
            else
                add(p, &narrow, sizeof narrow);
        }
}

static void fill_params(params *p, const brg__cuda_run *run, const space *s,
                        int64_t splits, const void *partials)
{
    const brg__cuda_group *g = run->g;
    p->n = 0;
    for (int i = 0; i < g->n_loads; i++)
        add_pointer(p, run->in[g->load[i]]);
    for (int i = 0; i < g->n_loads; i++)
        add_int(p, s->kind[i]);
    add(p, s->stride, (size_t)g->n_loads * sizeof *s->stride);
    for (int i = 0; i < g->n_stores; i++)
        add_pointer(p, run->results[g->store[i]]);
    add(p, s->shape, sizeof s->shape);
    add_int(p, s->ndim);
    add_int(p, s->n);
    add_int(p, s->rows);
    add_int(p, s->cols);
    if (g->has_columns) {
        for (int i = 0; i < g->n_sums; i++)
            add_pointer(p, run->results[g->sum[i]]);
        for (int i = 0; i < g->n_sums; i++) {
            int64_t rows;
            const double scale = find_sum(run, g->sum[i], &rows);
            add(p, &scale, sizeof scale);
        }
        add_int(p, splits);
        add(p, &partials, sizeof partials);
    }
    add_int(p, 0);
    add_scalars(p, g);
}

_Static_assert(BRG__GROUP_MAX_IN *(8 + 8 + 8 * BRG_MAX_DIMS) +
                       8 * BRG__CUDA_MAX_STORES + 8 * BRG_MAX_DIMS + 4 * 8 +
                       16 * BRG__GROUP_MAX_OUT + 3 * 8 +
                       16 * BRG__GROUP_MAX_OPS <=
                   4088,
               "parameters of a kernel have at most 4 KB");

/* ---- Launching ------------------------------------------------------------------------ */

static brg_status launch(const brg__cuda_run *run, const space *s, void *kernel,
                         brg_device_launch *l, int64_t splits,
                         const void *partials)
{
    const brg_device_vtable *vtable;
    params p;
    void *pointers[] = {p.bytes};
    BRG_TRY(brg__device_find(run->device, &vtable));
    fill_params(&p, run, s, splits, partials);
    l->kernel = kernel;
    l->params = pointers;
    return vtable->kernel_launch(run->device, l);
}

static brg_status launch_columns(const brg__cuda_run *run, const space *s)
{
    const brg_device_vtable *vtable;
    const brg__cuda_group *g = run->g;
    const int64_t per_row = s->cols / g->width;
    const int64_t blocks =
        (per_row + BRG__CUDA_COLUMNS - 1) / BRG__CUDA_COLUMNS;
    const int64_t splits = splits_for(run, s, blocks);
    const size_t nbytes =
        (size_t)(splits * g->n_sums * s->cols) * sizeof(double);
    void *partials = NULL;
    BRG_TRY(brg__device_find(run->device, &vtable));
    if (splits > 1)
        BRG_TRY(vtable->alloc(run->device, &partials, nbytes));
    brg_device_launch l = {.blocks = {(uint32_t)blocks, (uint32_t)splits},
                           .threads = {BRG__CUDA_COLUMNS, BRG__CUDA_DEPTH}};
    brg_status status = launch(run, s, g->columns, &l, splits, partials);
    if (partials)
        vtable->free(run->device, partials, nbytes);
    return status;
}

brg_status brg__cuda_launch(const brg__cuda_run *run, bool sums)
{
    const brg__cuda_group *g = run->g;
    space s;
    walk_space(run, &s);
    if (sums && divides(run, &s))
        return launch_columns(run, &s);
    const int64_t each = s.is_flat ? g->width : 1;
    const int64_t n = (s.n + each - 1) / each;
    const int64_t blocks = (n + BRG__CUDA_THREADS - 1) / BRG__CUDA_THREADS;
    brg_device_launch l = {
        .blocks = {(uint32_t)(blocks < MAX_BLOCKS ? blocks : MAX_BLOCKS), 1},
        .threads = {BRG__CUDA_THREADS, 1}};
    return launch(run, &s, s.is_flat ? g->flat : g->any, &l, 1, NULL);
}
