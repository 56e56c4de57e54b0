/* SPDX-License-Identifier: Apache-2.0
 * Pointwise rows: from tensors to the problem that the kernels take. */
#include "core/cuda/cu.h"

#include <string.h>

#include "core/cuda/rows.h"

/* ---- Which row ------------------------------------------------------------------ */

static const char *const row_names[] = {
#define BRG_UNARY(cls, name, ...) #name,
#define BRG_BINARY(cls, name, ...) #name,
#define BRG_TERNARY(cls, name, ...) #name,
#define BRG_KERNEL(name, ...)
#define BRG_KERNEL_NOGRAD(name, ...)
#define BRG_VIEW(name, ...)
#include "core/ops/ops.def"
#include "core/ops/ops_undef.h"
};

/* The first field of brg_op.pointwise is the row's number, counted alike in
 * the library and here; the name tells if they were built from two lists. */
static int row_of(const brg_op *op)
{
    int row;
    memcpy(&row, op->pointwise, sizeof row);
    return row >= 0 && row < BRG__CU_N_ROWS &&
                   strcmp(row_names[row], op->name) == 0
               ? row
               : -1;
}

/* ---- The problem --------------------------------------------------------------------- */

static int ctype_of(int dtype)
{
    return dtype == BRG_DTYPE_F64 ? 1 : dtype <= BRG_DTYPE_BF16 ? 0 : 2;
}

/* Strides of t under a shape that it broadcasts to. */
static void set_operand(brg__cu_operand *o, const brg_tensor *t, int ndim,
                        const int64_t *shape)
{
    *o = (brg__cu_operand){.at = brg__tensor_ptr(t), .dtype = t->dtype};
    for (int d = 0; d < t->ndim; d++) {
        int k = d + ndim - t->ndim;
        o->stride[k] = t->shape[d] == 1 && shape[k] != 1 ? 0 : t->stride[d];
    }
}

/* Drops dims of size 1 and joins neighbours that every operand walks as one. */
static void merge_dims(brg__cu_pointwise *w)
{
    int n = 0;
    for (int d = 0; d < w->ndim; d++) {
        if (w->shape[d] == 1)
            continue;
        bool joins = n > 0;
        for (int k = 0; joins && k <= w->n_in; k++)
            joins = w->operand[k].stride[n - 1] ==
                    w->shape[d] * w->operand[k].stride[d];
        if (!joins)
            n++;
        w->shape[n - 1] = joins ? w->shape[n - 1] * w->shape[d] : w->shape[d];
        for (int k = 0; k <= w->n_in; k++)
            w->operand[k].stride[n - 1] = w->operand[k].stride[d];
    }
    w->ndim = n;
}

/* Row-major, or (an input) the same rows again and again. */
static bool is_in_rows(const brg__cu_pointwise *w, int k)
{
    const int64_t *stride = w->operand[k].stride;
    if (w->ndim < 2)
        return w->ndim == 0 || stride[0] == 1;
    return stride[1] == 1 &&
           (stride[0] == w->shape[1] || (k > 0 && stride[0] == 0));
}

static bool is_packed(const brg__cu_pointwise *w)
{
    int dtype = w->operand[0].dtype;
    bool is = w->ndim <= 2 && dtype >= BRG_DTYPE_F32 && dtype <= BRG_DTYPE_BF16;
    if (is && w->ndim == 2)
        is = w->shape[1] % (dtype == BRG_DTYPE_F32 ? 4 : 8) == 0;
    for (int k = 0; is && k <= w->n_in; k++)
        is = w->operand[k].dtype == dtype && is_in_rows(w, k) &&
             (uintptr_t)w->operand[k].at % 16 == 0;
    return is;
}

static brg__cu_pointwise problem_of(int row, int n_in,
                                    const brg_tensor *const *in,
                                    const brg_tensor *out, const double *p)
{
    brg__cu_pointwise w = {.row = row, .n_in = n_in, .n = out->numel};
    w.ndim = out->ndim;
    memcpy(w.shape, out->shape, sizeof w.shape);
    set_operand(&w.operand[0], out, out->ndim, out->shape);
    for (int i = 0; i < n_in; i++)
        set_operand(&w.operand[i + 1], in[i], out->ndim, out->shape);
    if (p)
        memcpy(w.p, p, sizeof w.p);
    merge_dims(&w);
    w.is_packed = n_in > 0 && is_packed(&w);
    return w;
}

static int n_inputs(int row)
{
    static const uint8_t counts[] = {
#define BRG_UNARY(cls, name, ...) 1,
#define BRG_BINARY(cls, name, ...) 2,
#define BRG_TERNARY(cls, name, ...) 3,
#define BRG_KERNEL(name, ...)
#define BRG_KERNEL_NOGRAD(name, ...)
#define BRG_VIEW(name, ...)
#include "core/ops/ops.def"
#include "core/ops/ops_undef.h"
    };
    return counts[row];
}

/* After the condition if there is one. */
static int leading_input(int row)
{
    return row == BRG__CU_ROW_where || row == BRG__CU_ROW_keep_if ||
                   row == BRG__CU_ROW_keep_unless
               ? 1
               : 0;
}

brg_status brg__cu_apply(brg__cu *cu, int row, const brg_tensor *const *in,
                         const brg_tensor *out, const double *p)
{
    if (out->numel == 0)
        return BRG_OK;
    brg__cu_pointwise w = problem_of(row, n_inputs(row), in, out, p);
    w.ctype = ctype_of(in[leading_input(row)]->dtype);
    return brg__cu_check(brg__cu_pointwise_launch(&cu->queue, &w),
                         row_names[row]);
}

brg_status brg__cu_run_pointwise(brg_op_call *call)
{
    brg__cu *cu;
    BRG__CU_TRY(brg__cu_enter(call->out[0]->device, &cu));
    int row = row_of(call->op);
    if (row < 0)
        return BRG__CU_FAIL(BRG_ERR_ABI,
                            "%s: libbrigade_cuda was built from another list "
                            "of ops than this library",
                            call->op->name);
    return brg__cu_apply(cu, row, (const brg_tensor *const *)call->in,
                         call->out[0], call->attrs->f);
}

brg_status brg__cu_run_full_like(brg_op_call *call)
{
    brg__cu *cu;
    const brg_tensor *out = call->out[0];
    BRG__CU_TRY(brg__cu_enter(out->device, &cu));
    if (out->numel == 0)
        return BRG_OK;
    brg__cu_pointwise w = problem_of(0, 0, NULL, out, NULL);
    return brg__cu_check(brg__cu_fill(&cu->queue, &w, call->attrs->f[0]),
                         "full_like");
}

brg_status brg__cu_rows_as(brg__cu_temps *temps, const brg_tensor *t,
                           brg_dtype dtype, const void **out)
{
    *out = NULL;
    if (!t || t->numel == 0)
        return BRG_OK;
    if (t->is_contiguous && t->dtype == dtype) {
        *out = brg__tensor_ptr(t);
        return BRG_OK;
    }
    static const uint8_t sizes[BRG_N_DTYPES] = {8, 4, 2, 2, 8, 4, 1, 1};
    void *at;
    BRG__CU_TRY(brg__cu_temp(temps, &at, (size_t)t->numel * sizes[dtype]));
    brg__storage storage = {.data = at};
    brg_tensor packed = *t;
    packed.storage = &storage;
    packed.dtype = (uint8_t)dtype;
    packed.offset = 0;
    packed.is_contiguous = true;
    int64_t step = 1;
    for (int d = t->ndim - 1; d >= 0; d--) {
        packed.stride[d] = step;
        step *= t->shape[d];
    }
    *out = at;
    return brg__cu_apply(temps->cu, BRG__CU_ROW_copy, &t, &packed, NULL);
}

brg_status brg__cu_rows_of(brg__cu_temps *temps, const brg_tensor *t,
                           const void **out)
{
    return brg__cu_rows_as(temps, t, t ? (brg_dtype)t->dtype : BRG_DTYPE_F32,
                           out);
}
