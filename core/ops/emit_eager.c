/* SPDX-License-Identifier: Apache-2.0
 * The eager emitter: infers, makes the outputs, runs the kernel. Also the
 * thread's choice of emitter. */
#include <string.h>

#include <brigade/autograd.h>

#include "core/ops/op.h"
#include "core/tensor/device.h"
#include "core/tensor/symbol.h"

static brg_status fail_sparse(const brg_op_call *call, int i)
{
    char text[BRG_TENSOR_TEXT_MAX];
    return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                    "%s: input %d is %s, expected a dense tensor: use "
                    "brg_to_dense",
                    call->op->name, i, brg__tensor_text(call->in[i], text));
}

static brg_status find_device(const brg_op_call *call, brg_device *out)
{
    *out = BRG_CPU;
    const brg_tensor *first = NULL;
    for (int i = 0; i < call->n_in; i++) {
        const brg_tensor *t = call->in[i];
        if (!t)
            continue;
        if (t->symbol)
            return brg__symbol_is_left(BRG_ERR_STATE, call->op->name, t);
        if (t->sparse && !(call->op->flags & BRG_OP_SPARSE))
            return fail_sparse(call, i);
        if (!first) {
            first = t;
            *out = t->device;
        } else if (t->device.type != out->type ||
                   t->device.index != out->index) {
            char a[24], b[24];
            return BRG_FAIL(BRG_ERR_DEVICE,
                            "%s: input %d is on %s, the inputs before it on "
                            "%s",
                            call->op->name, i, brg__device_text(t->device, a),
                            brg__device_text(*out, b));
        }
    }
    return BRG_OK;
}

_Thread_local brg__placement brg__offered = {.selected = -1};

void brg_vjp_select(int i)
{
    brg__offered.selected = i;
}

brg_status brg__apply_grads(const brg_op *op, int n_in, brg_tensor *const *in,
                            const brg_attrs *attrs, brg_tensor **out)
{
    brg__offered.selected = 0;
    brg__offered.is_row = true;
    brg_status status = brg_op_apply(op, n_in, in, attrs, out);
    brg__offered.selected = -1;
    brg__offered.is_row = false;
    return status;
}

/* The storage offered for output j of that kind, taken from the offer; or NULL. */
static brg__storage *take_home(const brg_out_info *info, int j,
                               brg_device device)
{
    int i = brg__offered.selected + (brg__offered.is_row ? j : 0);
    if (brg__offered.selected < 0 || i >= BRG_MAX_OP_INPUTS ||
        !brg__offered.homes[i])
        return NULL;
    const brg_tensor *home = brg__offered.homes[i];
    if ((brg_dtype)home->dtype != info->dtype || home->offset != 0 ||
        !brg__device_equal(home->device, device) ||
        !brg__shape_equal(home->ndim, home->shape, info->ndim, info->shape))
        return NULL;
    brg__offered.homes[i] = NULL;
    return home->storage;
}

brg_device brg__call_device(const brg_op_call *call)
{
    for (int i = 0; i < call->n_in; i++)
        if (call->in[i])
            return call->in[i]->device;
    return BRG_CPU;
}

brg__layout brg__out_layout(const brg_out_info *info, brg_device device)
{
    brg__layout layout = {.dtype = info->dtype,
                          .device = info->is_elsewhere ? info->device : device,
                          .ndim = info->ndim};
    memcpy(layout.shape, info->shape, sizeof layout.shape);
    if (info->is_view) {
        memcpy(layout.stride, info->stride, sizeof layout.stride);
        layout.offset = info->offset;
    } else {
        brg__shape_strides(layout.ndim, layout.shape, layout.stride);
    }
    return layout;
}

static brg_status make_output(brg_op_call *call, int j, brg_device device)
{
    const brg_out_info *info = &call->info[j];
    if (info->is_sparse)
        return BRG_OK;
    brg__layout layout = brg__out_layout(info, device);
    brg_tensor *t;
    if (info->is_view) {
        BRG_TRY(brg__tensor_new_view(&t, &layout,
                                     call->in[info->view_of]->storage));
    } else {
        brg__storage *home =
            brg__offered.is_open ? take_home(info, j, layout.device) : NULL;
        brg_status status = home ? brg__tensor_new_view(&t, &layout, home)
                                 : brg__tensor_new(&t, &layout);
        if (status != BRG_OK)
            return brg__error_prefix("%s: ", call->op->name);
    }
    if (info->is_view && brg_grad_mode()) {
        brg_tensor *of = call->in[info->view_of];
        t->base = brg_retain(of->base ? of->base : of);
    }
    call->out[j] = brg__scope_adopt(t);
    return call->out[j] ? BRG_OK : brg_error_code();
}

static bool is_view(const brg_op_call *call)
{
    for (int j = 0; j < call->n_out; j++)
        if (!call->info[j].is_view)
            return false;
    return true;
}

static brg_status emit_eager(brg__emitter *self, brg_op_call *call)
{
    (void)self;
    brg_device device;
    BRG_TRY(find_device(call, &device));
    memset(call->info, 0, (size_t)call->n_out * sizeof *call->info);
    brg_status status = call->op->infer(call);
    BRG_EXPLAIN(status, "%s: its infer", call->op->name);
    BRG_TRY(status);
    for (int j = 0; j < call->n_out; j++)
        BRG_TRY(make_output(call, j, device));
    if (is_view(call))
        return BRG_OK;
    brg__run_fn run;
    BRG_TRY(brg__kernel_find(call->op, device, &run));
    status = run(call);
    BRG_EXPLAIN(status, "%s: its run", call->op->name);
    return status;
}

brg__emitter brg__eager_emitter = {emit_eager};

static _Thread_local brg__emitter *current;

brg__emitter *brg__emitter_get(void)
{
    return current ? current : &brg__eager_emitter;
}

brg__emitter *brg__emitter_set(brg__emitter *emitter)
{
    brg__emitter *before = current;
    current = emitter;
    return before;
}
