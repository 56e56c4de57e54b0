/* SPDX-License-Identifier: Apache-2.0
 * Reductions: from tensors and dims to the problem that the kernels take. */
#include "core/cuda/cu.h"

#include <math.h>

#include "core/cuda/rows.h"

/* ---- The problem ------------------------------------------------------------- */

static void add_dim(int *n, int64_t *shape, int64_t *stride, int64_t size,
                    int64_t step)
{
    if (size == 1)
        return;
    if (*n > 0 && stride[*n - 1] == size * step) {
        shape[*n - 1] *= size;
        stride[*n - 1] = step;
        return;
    }
    shape[*n] = size;
    stride[(*n)++] = step;
}

/* Puts the dim of the smallest stride last, where threads are neighbours; the
 * order of a sum's elements is free, but fixed. */
static void sort_dims(int n, int64_t *shape, int64_t *stride)
{
    for (int i = 1; i < n; i++)
        for (int k = i; k > 0 && stride[k] > stride[k - 1]; k--) {
            int64_t size = shape[k], step = stride[k];
            shape[k] = shape[k - 1];
            stride[k] = stride[k - 1];
            shape[k - 1] = size;
            stride[k - 1] = step;
        }
}

static brg__cu_reduce problem_of(const brg_tensor *out, const brg_tensor *x,
                                 uint32_t mask, brg__cu_reduce_kind kind)
{
    brg__cu_reduce r = {.kind = kind,
                        .x = brg__tensor_ptr(x),
                        .out = brg__tensor_ptr(out),
                        .dtype = x->dtype,
                        .out_dtype = out->dtype,
                        .kept = 1,
                        .reduced = 1,
                        .scale = 1.0};
    for (int d = 0; d < x->ndim; d++) {
        bool reduces = mask >> d & 1;
        *(reduces ? &r.reduced : &r.kept) *= x->shape[d];
        if (reduces)
            add_dim(&r.n_reduced, r.reduced_shape, r.reduced_stride,
                    x->shape[d], x->stride[d]);
        else
            add_dim(&r.n_kept, r.kept_shape, r.kept_stride, x->shape[d],
                    x->stride[d]);
    }
    if (kind < BRG__CU_ARGMAX)
        sort_dims(r.n_reduced, r.reduced_shape, r.reduced_stride);
    return r;
}

/* Sums of nothing. */
static brg_status fill_empty(brg__cu *cu, const brg_tensor *out,
                             brg__cu_reduce_kind kind, double scale)
{
    double value = kind == BRG__CU_SUM && isfinite(scale) ? 0.0 : NAN;
    brg__cu_pointwise w = {.n = out->numel, .ndim = 1};
    w.shape[0] = out->numel;
    w.operand[0] = (brg__cu_operand){brg__tensor_ptr(out), out->dtype, {1}};
    return brg__cu_check(brg__cu_fill(&cu->queue, &w, value), "a sum");
}

static brg_status reduce(brg_op_call *call, const brg_tensor *x, uint32_t mask,
                         brg__cu_reduce_kind kind, double scale)
{
    const brg_tensor *out = call->out[0];
    brg__cu_temps temps = {.op = call->op->name};
    BRG__CU_TRY(brg__cu_enter(out->device, &temps.cu));
    if (out->numel == 0)
        return BRG_OK;
    if (x->numel == 0)
        return fill_empty(temps.cu, out, kind, scale);
    brg__cu_reduce r = problem_of(out, x, mask, kind);
    r.scale = scale;
    r.n_splits = brg__cu_reduce_splits(&temps.cu->queue, &r);
    if (r.n_splits > 1)
        BRG__CU_TRY(brg__cu_temp(&temps, &r.partials,
                                 (size_t)r.n_splits * (size_t)r.kept * 8));
    int error = brg__cu_reduce_launch(&temps.cu->queue, &r);
    brg__cu_temps_free(&temps);
    return brg__cu_check(error, call->op->name);
}

/* ---- Rows: i[0] the dims as bits ------------------------------------------------ */

static uint32_t dims_of(const brg_op_call *call)
{
    return (uint32_t)call->attrs->i[0];
}

static double count_of(const brg_op_call *call)
{
    double n = 1;
    for (int d = 0; d < call->in[0]->ndim; d++)
        if (dims_of(call) >> d & 1)
            n *= (double)call->in[0]->shape[d];
    return n;
}

brg_status brg__cu_run_sum(brg_op_call *call)
{
    return reduce(call, call->in[0], dims_of(call), BRG__CU_SUM, 1.0);
}

brg_status brg__cu_run_mean(brg_op_call *call)
{
    return reduce(call, call->in[0], dims_of(call), BRG__CU_SUM,
                  1.0 / count_of(call));
}

brg_status brg__cu_run_amax(brg_op_call *call)
{
    return reduce(call, call->in[0], dims_of(call), BRG__CU_MAX, 1.0);
}

brg_status brg__cu_run_amin(brg_op_call *call)
{
    return reduce(call, call->in[0], dims_of(call), BRG__CU_MIN, 1.0);
}

brg_status brg__cu_run_argmax(brg_op_call *call)
{
    return reduce(call, call->in[0], dims_of(call),
                  call->attrs->i[2] ? BRG__CU_ARGMIN : BRG__CU_ARGMAX, 1.0);
}

brg_status brg__cu_run_var(brg_op_call *call)
{
    double n = count_of(call) - call->attrs->f[0];
    return reduce(call, call->in[0], dims_of(call), BRG__CU_VAR,
                  1.0 / (n > 0 ? n : 0.0));
}

brg_status brg__cu_run_channel_sum(brg_op_call *call)
{
    return reduce(call, call->in[0], 0xDu, BRG__CU_SUM, 1.0);
}

brg_status brg__cu_run_sum_to_like(brg_op_call *call)
{
    const brg_tensor *g = call->in[0], *like = call->in[1];
    uint32_t mask = 0;
    for (int d = 0; d < g->ndim; d++) {
        int k = d - (g->ndim - like->ndim);
        if (k < 0 || (like->shape[k] == 1 && g->shape[d] != 1))
            mask |= 1u << d;
    }
    return reduce(call, g, mask, BRG__CU_SUM, 1.0);
}

/* f[0] g / (numel of x / numel of g - f[1]) */
brg_status brg__cu_run_div_count(brg_op_call *call)
{
    brg__cu *cu;
    const brg_tensor *g = call->in[0], *x = call->in[1];
    BRG__CU_TRY(brg__cu_enter(g->device, &cu));
    if (g->numel == 0)
        return BRG_OK;
    double n = (double)x->numel / (double)g->numel - call->attrs->f[1];
    const double p[2] = {call->attrs->f[0] / (n > 0 ? n : 0.0), 0.0};
    return brg__cu_apply(cu, BRG__CU_ROW_mul_scalar, &g, call->out[0], p);
}
