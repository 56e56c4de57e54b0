/* SPDX-License-Identifier: Apache-2.0
 * Making a group concrete: shapes, registers and buffers, how sums go. */
#include "compile/fuse/fused.h"

#include <string.h>

#include "core/base/dtype.h"
#include "core/base/error.h"
#include "core/ops/reduce.h"
#include "core/tensor/device.h"

#define NONE BRG__GROUP_NONE

/* ---- Shapes -------------------------------------------------------------------- */

static void set_meta(brg_tensor *t, const brg_out_info *info, brg_device device)
{
    memset(t, 0, sizeof *t);
    atomic_init(&t->refs.n, 1 << 20);
    t->ndim = (uint8_t)info->ndim;
    t->dtype = (uint8_t)info->dtype;
    t->device = device;
    memcpy(t->shape, info->shape, sizeof t->shape);
    brg__shape_strides(info->ndim, info->shape, t->stride);
    (void)brg__shape_numel(info->ndim, info->shape, &t->numel);
    t->is_contiguous = true;
}

static brg_tensor *tensor_of(const brg__group *g, brg_tensor *const *in,
                             brg_tensor *results, int number)
{
    return number < g->n_in ? in[number] : &results[number - g->n_in];
}

/* What op k runs over. */
static const brg_tensor *space_of(const brg__group *g, brg_tensor *const *in,
                                  brg_tensor *results, int k)
{
    const brg__group_op *op = &g->ops[k];
    return op->is_sum ? tensor_of(g, in, results, op->in[0]) : &results[k];
}

/* The eager sum of an operand goes as its strides have it. */
static bool is_summable(const brg__group *g, brg_tensor *const *in, int k)
{
    const brg__group_op *op = &g->ops[k];
    return !op->is_sum || op->in[0] >= g->n_in || in[op->in[0]]->is_contiguous;
}

brg_status brg__fused_infer(const brg__group *group, brg_device device,
                            brg_tensor *const *in, brg_tensor *results,
                            bool *is_uniform)
{
    *is_uniform = true;
    for (int k = 0; k < group->n_ops; k++) {
        const brg__group_op *op = &group->ops[k];
        brg_tensor *operands[BRG__GROUP_OP_MAX_IN] = {0};
        brg_op_call call = {.op = op->op,
                            .n_in = op->n_in,
                            .n_out = 1,
                            .in = operands,
                            .attrs = &op->attrs};
        for (int i = 0; i < op->n_in; i++) {
            operands[i] = tensor_of(group, in, results, op->in[i]);
            *is_uniform &= brg__device_equal(operands[i]->device, device);
        }
        BRG_TRY(op->op->infer(&call));
        set_meta(&results[k], &call.info[0], device);
        const brg_tensor *a = space_of(group, in, results, 0);
        const brg_tensor *b = space_of(group, in, results, k);
        *is_uniform &= a->numel > 0 && is_summable(group, in, k) &&
                       brg__shape_equal(a->ndim, a->shape, b->ndim, b->shape);
    }
    return BRG_OK;
}

/* ---- Registers and the walk -------------------------------------------------------- */

/* The loads come first: register i is load i; then those of the ops. */
static int load_register(brg__fused *f, int operand)
{
    for (int i = 0; i < f->n_loads; i++)
        if (f->load[i] == operand)
            return i;
    f->load[f->n_loads] = operand;
    return f->n_loads++;
}

static void find_loads(brg__fused *f)
{
    const brg__group *g = f->group;
    for (int k = 0; k < g->n_ops; k++) {
        int n = g->ops[k].is_sum ? 1 : g->ops[k].n_in;
        for (int i = 0; i < n; i++)
            if (g->ops[k].in[i] < g->n_in)
                (void)load_register(f, g->ops[k].in[i]);
    }
}

static int register_of(brg__fused *f, int number)
{
    return number < f->group->n_in ? load_register(f, number)
                                   : f->n_loads + number - f->group->n_in;
}

static void lay_tiles(brg__fused *f, brg_tensor *const *in,
                      brg_tensor *const *outputs, const brg_tensor *space)
{
    brg__tiles_init(&f->tiles, space->ndim, space->shape, f->type);
    for (int i = 0; i < f->n_loads; i++)
        brg__tiles_add(&f->tiles, in[f->load[i]]);
    for (int i = 0; i < f->n_stores; i++)
        brg__tiles_add(&f->tiles, outputs[f->store[i]]);
    brg__tiles_prepare(&f->tiles);
}

static brg__ctype type_of(const brg__group *g, brg_tensor *const *in,
                          brg_tensor *results)
{
    const brg__group_op *op = &g->ops[0];
    brg_tensor *operands[BRG__GROUP_OP_MAX_IN];
    for (int i = 0; i < op->n_in; i++)
        operands[i] = tensor_of(g, in, results, op->in[i]);
    return op->is_sum
               ? brg__ctype_of((brg_dtype)operands[0]->dtype)
               : brg__pw_ctype(op->op, (const brg_tensor *const *)operands);
}

static void set_ops(brg__fused *f, const brg_tensor *results)
{
    const brg__group *g = f->group;
    f->n_ops = g->n_ops;
    for (int k = 0; k < g->n_ops; k++) {
        const brg__group_op *from = &g->ops[k];
        brg__fused_op *op = &f->ops[k];
        op->dtype = (brg_dtype)results[k].dtype;
        op->to = f->n_loads + k;
        op->tile = NONE;
        f->p[2 * k] = from->attrs.f[0];
        f->p[2 * k + 1] = from->attrs.f[1];
        if (from->is_sum)
            continue;
        op->kernel = brg__pw_kernel(from->op, f->type);
        op->is_rounded =
            op->dtype == BRG_DTYPE_F16 || op->dtype == BRG_DTYPE_BF16;
        for (int i = 0; i < from->n_in; i++)
            op->in[i] = register_of(f, from->in[i]);
        if (from->out != BRG__GROUP_NONE) {
            op->is_export = true;
            op->tile = f->n_loads + f->n_stores;
            f->store[f->n_stores++] = from->out;
        }
    }
}

/* ---- Sums ------------------------------------------------------------------------ */

static size_t grow(size_t *nbytes, size_t more)
{
    size_t at = *nbytes;
    *nbytes = brg__round_up(at + more, BRG_CACHE_LINE);
    return at;
}

static int64_t product(const int64_t *shape, int from, int to)
{
    int64_t n = 1;
    for (int d = from; d < to; d++)
        n *= shape[d];
    return n;
}

static void set_sum(brg__fused *f, int k, brg_tensor *const *in,
                    brg_tensor *results)
{
    const brg__group_op *op = &f->group->ops[k];
    brg__fused_sum *s = &f->sums[f->n_sums++];
    brg_tensor *operands[2] = {tensor_of(f->group, in, results, op->in[0])};
    if (op->n_in > 1)
        operands[1] = tensor_of(f->group, in, results, op->in[1]);
    brg_op_call call = {
        .op = op->op, .n_in = op->n_in, .in = operands, .attrs = &op->attrs};
    const brg_tensor *x = operands[0];
    uint32_t dims;
    uint8_t ones = 0;
    int cut;
    for (int d = 0; d < x->ndim; d++)
        ones |= (uint8_t)((x->shape[d] == 1) << d);
    brg__sum_of_call(&call, &dims, &s->scale);
    s->kind = brg__sum_of_dims(x->ndim, ones, dims, &cut);
    s->rows = product(x->shape, 0, cut);
    s->cols = product(x->shape, cut, x->ndim);
    s->block_rows = brg__sum_block_rows((brg_dtype)x->dtype);
    s->out = op->out;
    s->from = register_of(f, op->in[0]);
    int made_by = op->in[0] - f->group->n_in;
    int tile = made_by < 0 ? s->from : f->ops[made_by].tile;
    s->is_staged = tile == NONE || !brg__tiles_is_direct(&f->tiles, tile);
    if (made_by >= 0)
        f->ops[made_by].is_export = true;
}

static void place_sum(brg__fused *f, brg__fused_sum *s)
{
    bool by_columns = s->kind == BRG__SUM_COLUMNS;
    size_t cols = (size_t)s->cols;
    size_t kept = by_columns ? BRG__COL_STEP * cols : BRG__SUM_PIECE;
    if (s->is_staged)
        s->staging = grow(&f->nbytes, (kept + f->tiles.max_n) * f->item);
    if (by_columns) {
        s->partial = grow(&f->nbytes, cols * f->item);
        s->total = grow(&f->nbytes, cols * sizeof(double));
    }
}

/* ---- Buffers ----------------------------------------------------------------------- */

/* The last op that reads register `to`; sums read after all. */
static int last_use(const brg__fused *f, int to, int from)
{
    int last = from;
    for (int s = 0; s < f->n_sums; s++)
        if (f->sums[s].from == to)
            return f->n_ops;
    for (int k = from + 1; k < f->n_ops; k++)
        for (int i = 0; f->ops[k].kernel && i < f->group->ops[k].n_in; i++)
            if (f->ops[k].in[i] == to)
                last = k;
    return last;
}

/* One for each load, for they may hold what they repeat; the ops' are used
 * again. The last one is for rounding. */
static void share_buffers(brg__fused *f)
{
    int free_after[BRG__GROUP_MAX_OPS], n = 0;
    for (int k = 0; k < f->n_ops; k++) {
        if (!f->ops[k].kernel)
            continue;
        int b = 0;
        while (b < n && free_after[b] >= k)
            b++;
        n += b == n;
        free_after[b] = last_use(f, f->ops[k].to, k);
        f->ops[k].buffer = f->n_loads + b;
    }
    f->n_buffers = f->n_loads + n + 1;
}

static brg__fused *new_fused(const brg__group *group)
{
    size_t n = (size_t)group->n_ops, n_sums = 0;
    for (int k = 0; k < group->n_ops; k++)
        n_sums += group->ops[k].is_sum;
    brg__fused *f = brg__mem_alloc(sizeof *f + n * sizeof *f->ops +
                                       n_sums * sizeof *f->sums +
                                       (2 * n + 1) * sizeof *f->p,
                                   "a group");
    if (!f)
        return NULL;
    f->group = group;
    f->ops = (brg__fused_op *)(void *)(f + 1);
    f->sums = (brg__fused_sum *)(void *)(f->ops + n);
    f->p = (double *)(void *)(f->sums + n_sums);
    return f;
}

/* ---- Bytes ------------------------------------------------------------------------- */

static size_t bytes_of(const brg_tensor *t)
{
    return (size_t)t->numel * brg__tensor_item_size(t);
}

static void count_bytes(brg__fused *f, brg_tensor *const *in,
                        brg_tensor *const *outputs, brg_tensor *results)
{
    const brg__group *g = f->group;
    for (int i = 0; i < f->n_loads; i++)
        f->bytes_moved += bytes_of(in[f->load[i]]);
    for (int j = 0; j < g->n_out; j++)
        f->bytes_moved += bytes_of(outputs[j]);
    for (int k = 0; k < g->n_ops; k++) {
        int n = g->ops[k].is_sum ? 1 : g->ops[k].n_in;
        f->bytes_unfused += bytes_of(&results[k]);
        for (int i = 0; i < n; i++)
            f->bytes_unfused +=
                bytes_of(tensor_of(g, in, results, g->ops[k].in[i]));
    }
}

/* ---- Life ------------------------------------------------------------------------- */

brg_status brg__fused_create(brg__fused **out, const brg__group *group,
                             brg_tensor *const *in, brg_tensor *const *outputs,
                             const brg_tensor *results)
{
    brg__fused *f = new_fused(group);
    brg_tensor *made = (brg_tensor *)(uintptr_t)results;
    *out = f;
    if (!f)
        return BRG_ERR_NOMEM;
    f->type = type_of(group, in, made);
    f->item = brg__ctype_size(f->type);
    f->rows = brg__row_kernels_of(f->type == BRG__F64 ? BRG_DTYPE_F64
                                                      : BRG_DTYPE_F32);
    find_loads(f);
    set_ops(f, results);
    lay_tiles(f, in, outputs, space_of(group, in, made, 0));
    for (int k = 0; k < group->n_ops; k++)
        if (group->ops[k].is_sum && group->ops[k].out != NONE)
            set_sum(f, k, in, made);
    share_buffers(f);
    f->buffer_bytes = f->tiles.max_n * f->item;
    (void)grow(&f->nbytes, (size_t)f->n_buffers * f->buffer_bytes);
    for (int s = 0; s < f->n_sums; s++)
        place_sum(f, &f->sums[s]);
    count_bytes(f, in, outputs, made);
    return BRG_OK;
}

void brg__fused_destroy(brg__fused *fused)
{
    brg__mem_free(fused);
}
