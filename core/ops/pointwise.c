/* SPDX-License-Identifier: Apache-2.0
 * How pointwise rows infer and run. Data that is contiguous and of the compute
 * type goes to the kernel as it lies; everything else goes tile by tile. */
#include "core/ops/pointwise.h"

#include <math.h>

#include "core/base/progress.h"
#include "core/ops/isa.h"
#include "core/ops/tiles.h"

#define CHUNK ((size_t)65536) /* elements between two progress polls */
#define MAX_INPUTS 3

static const brg__pw_row *row_of(const brg_op *op)
{
    return op->pointwise;
}

brg__pw_fn brg__pw_kernel(const brg_op *op, brg__ctype type)
{
    brg__pw_index i = row_of(op)->index;
    if (type == BRG__I64)
        return brg__pw_i64_base[i];
#if defined(BRG_HAVE_ISA_AVX512) && defined(BRG_HAVE_ISA_AVX2)
    brg__isa_level isa = brg__isa();
    if (type == BRG__F64)
        return isa == BRG__ISA_BASE ? brg__pw_f64_base[i] : brg__pw_f64_avx2[i];
    return isa == BRG__ISA_AVX512 ? brg__pw_f32_avx512[i]
           : isa == BRG__ISA_AVX2 ? brg__pw_f32_avx2[i]
                                  : brg__pw_f32_base[i];
#else
    return type == BRG__F64 ? brg__pw_f64_base[i] : brg__pw_f32_base[i];
#endif
}

/* The input whose dtype is the call's: after the condition if there is one. */
static int leading_input(const brg__pw_row *row)
{
    return row->cls == BRG__PW_COND ? 1 : 0;
}

brg__ctype brg__pw_ctype(const brg_op *op, const brg_tensor *const *in)
{
    return brg__ctype_of((brg_dtype)in[leading_input(row_of(op))]->dtype);
}

/* ---- Inference ----------------------------------------------------------- */

static brg_status check_scalars(const brg_op_call *call, const brg_tensor *t)
{
    const char *name = call->op->name;
    const double *p = call->attrs->f;
    if (row_of(call->op)->cls != BRG__PW_ANY)
        return BRG_OK;
    if (call->op == &brg__op_clamp)
        return brg__check_bounds(name, (brg_dtype)t->dtype, p[0], p[1]);
    BRG_TRY(brg__check_operand(name, (brg_dtype)t->dtype, p[0]));
    return brg__check_operand(name, (brg_dtype)t->dtype, p[1]);
}

static brg_status check_dtypes(const brg_op_call *call)
{
    const brg__pw_row *row = row_of(call->op);
    int lead = leading_input(row);
    if (row->cls == BRG__PW_FLT || row->cls == BRG__PW_FLT_BOOL)
        BRG_TRY(brg__check_float(call, 0, "the input"));
    if (row->cls == BRG__PW_COND)
        BRG_TRY(brg__check_dtype(call, 0, "the condition", BRG_DTYPE_BOOL));
    for (int i = lead + 1; i < call->n_in; i++)
        if (call->in[i]->dtype != call->in[lead]->dtype)
            return brg__check_same_dtype(call, lead, i);
    return check_scalars(call, call->in[lead]);
}

static brg_dtype out_dtype(const brg_op_call *call)
{
    const brg__pw_row *row = row_of(call->op);
    if (row->cls == BRG__PW_FLT_BOOL || row->cls == BRG__PW_ANY_BOOL)
        return BRG_DTYPE_BOOL;
    if (row->cls == BRG__PW_CAST)
        return (brg_dtype)call->attrs->i[0];
    return (brg_dtype)call->in[leading_input(row)]->dtype;
}

static brg_status fail_broadcast(const brg_op_call *call, int i)
{
    char a[BRG_TENSOR_TEXT_MAX], b[BRG_TENSOR_TEXT_MAX];
    return BRG_FAIL(BRG_ERR_SHAPE,
                    "%s: input %d does not broadcast with those before it: %s "
                    "and %s",
                    call->op->name, i, brg__tensor_text(call->in[i - 1], a),
                    brg__tensor_text(call->in[i], b));
}

brg_status brg__pw_infer(brg_op_call *call)
{
    BRG_TRY(check_dtypes(call));
    brg_out_info *info = &call->info[0];
    brg__infer_shape(call, 0, out_dtype(call), call->in[0]->ndim,
                     call->in[0]->shape);
    for (int i = 1; i < call->n_in; i++) {
        const brg_tensor *t = call->in[i];
        if (brg__shape_equal(info->ndim, info->shape, t->ndim, t->shape))
            continue;
        int64_t shape[BRG_MAX_DIMS];
        int ndim;
        if (!brg__shape_broadcast(info->ndim, info->shape, t->ndim, t->shape,
                                  &ndim, shape))
            return fail_broadcast(call, i);
        brg__infer_shape(call, 0, info->dtype, ndim, shape);
    }
    return BRG_OK;
}

/* ---- Running ------------------------------------------------------------- */

static void run_chunks(brg__pw_fn kernel, size_t n, size_t item, char *out,
                       const void *in[MAX_INPUTS], const double *p)
{
    while (n > CHUNK) {
        kernel(CHUNK, out, in, p);
        brg__progress_poll();
        n -= CHUNK;
        out += CHUNK * item;
        for (int i = 0; i < MAX_INPUTS; i++)
            if (in[i])
                in[i] = (const char *)in[i] + CHUNK * item;
    }
    kernel(n, out, in, p);
}

/* Kept apart so that the buffers do not weigh on small calls. */
__attribute__((noinline)) static void
run_tiles(const brg_op *op, brg__ctype type, const brg_tensor *const *in,
          const brg_tensor *out, const double *p)
{
    brg__pw_fn kernel = brg__pw_kernel(op, type);
    brg__tiles t;
    brg__tile_buffer buffers[MAX_INPUTS + 1];
    brg__tiles_init(&t, out->ndim, out->shape, type);
    for (int i = 0; i < op->n_in; i++)
        brg__tiles_add(&t, in[i]);
    brg__tiles_add(&t, out);
    int k_out = op->n_in;
    size_t since_poll = 0;
    for (brg__tiles_begin(&t); t.n > 0; brg__tiles_next(&t)) {
        const void *values[MAX_INPUTS] = {0};
        for (int i = 0; i < op->n_in; i++)
            values[i] = brg__tiles_read(&t, i, &buffers[i]);
        void *target = brg__tiles_target(&t, k_out, &buffers[k_out]);
        kernel(t.n, target, values, p);
        brg__tiles_write(&t, k_out, target);
        since_poll += t.n;
        if (since_poll >= CHUNK) {
            brg__progress_poll();
            since_poll = 0;
        }
    }
}

static bool is_plain(const brg_tensor *t, brg__ctype type, int64_t numel)
{
    return t->is_contiguous && t->numel == numel &&
           brg__is_native((brg_dtype)t->dtype, type);
}

void brg__pw_apply(const brg_op *op, const brg_tensor *const *in,
                   const brg_tensor *out, const double *p)
{
    int64_t numel = out->numel;
    if (numel == 0)
        return;
    brg__ctype type = brg__pw_ctype(op, in);
    bool all_plain = is_plain(out, type, numel);
    const void *values[MAX_INPUTS] = {0};
    for (int i = 0; i < op->n_in; i++) {
        all_plain = all_plain && is_plain(in[i], type, numel);
        values[i] = brg__tensor_ptr(in[i]);
    }
    if (!all_plain) {
        run_tiles(op, type, in, out, p);
        return;
    }
    run_chunks(brg__pw_kernel(op, type), (size_t)numel, brg__ctype_size(type),
               brg__tensor_ptr(out), values, p);
}

brg_status brg__pw_run(brg_op_call *call)
{
    brg__pw_index i = row_of(call->op)->index;
    if (i == BRG__PW_copy || i == BRG__PW_cast)
        brg__copy_strided(call->out[0], call->in[0]);
    else
        brg__pw_apply(call->op, (const brg_tensor *const *)call->in,
                      call->out[0], call->attrs->f);
    return BRG_OK;
}
