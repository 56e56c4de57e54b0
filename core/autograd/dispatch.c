/* SPDX-License-Identifier: Apache-2.0
 * Every op call comes through here: check, emit, record.
 *
 * The emitter runs the op now or, during a capture, writes it down; recording
 * makes the node through which the gradient will come back. */
#include <string.h>

#include "core/autograd/autocast.h"
#include "core/autograd/debug.h"
#include "core/autograd/node.h"
#include "core/autograd/op_node.h"
#include "core/base/error.h"
#include "core/ops/op.h"

/* Required inputs must be there; a NULL one carries its own error. */
static brg_status check_inputs(const brg_op *op, int n_in,
                               brg_tensor *const *in)
{
    if (op->abi != BRG_OP_ABI || op->struct_size != sizeof(brg_op))
        return BRG_FAIL(BRG_ERR_ABI,
                        "an op was built for interface %u (%zu bytes), this "
                        "library has %u (%zu bytes): build it again",
                        op->abi, op->struct_size, BRG_OP_ABI, sizeof(brg_op));
    if (n_in != op->n_in)
        return BRG_FAIL(BRG_ERR_ARG, "%s takes %d inputs, got %d", op->name,
                        op->n_in, n_in);
    for (int i = 0; i < n_in; i++)
        if (!in[i] && !((op->optional >> i) & 1u)) {
            if (brg_error_code() != BRG_OK)
                return brg_error_code();
            return BRG_FAIL(BRG_ERR_ARG, "%s: input %d is NULL", op->name, i);
        }
    return BRG_OK;
}

static bool wants_gradient(const brg_op *op, int n_in, brg_tensor *const *in)
{
    if (brg__grad_mode_is_off || !op->vjp)
        return false;
    for (int i = 0; i < n_in; i++)
        if (in[i] && brg__requires_grad(in[i]) && !((op->no_grad_in >> i) & 1u))
            return true;
    return false;
}

brg_status brg_op_apply(const brg_op *op, int n_in, brg_tensor *const *in,
                        const brg_attrs *attrs, brg_tensor **out)
{
    brg_op_call call;
    call.op = op;
    call.n_in = n_in;
    call.n_out = op->n_out;
    brg_tensor *cast[BRG_MAX_OP_INPUTS];
    call.in = in;
    call.attrs = attrs ? attrs : &brg__no_attrs;
    memset(call.out, 0, sizeof call.out);
    brg_status status = check_inputs(op, n_in, in);
    if (status == BRG_OK && brg__autocast.is_on) {
        memcpy(cast, in, (size_t)n_in * sizeof *cast);
        status = brg__autocast_inputs(op, n_in, cast);
        call.in = in = cast;
    }
    if (status == BRG_OK) {
        brg__emitter *emitter = brg__emitter_get();
        status = emitter->emit(emitter, &call);
        in = call.in; /* a capture puts symbols in the place of tensors */
    }
    if (status == BRG_OK && wants_gradient(op, n_in, in))
        status = brg__op_node_record(&call);
    if (status == BRG_OK && brg__n_observers != 0)
        status = brg__observe(&call);
    for (int j = 0; j < op->n_out; j++)
        out[j] = status == BRG_OK ? call.out[j] : NULL;
    return status;
}
