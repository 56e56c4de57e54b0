/* SPDX-License-Identifier: Apache-2.0
 * Op nodes: what a call saves, and the call of its gradient rule. */
#include "core/autograd/op_node.h"

#include <stdatomic.h>
#include <string.h>

#include "core/autograd/engine.h"
#include "core/base/error.h"

/* ---- Recording ------------------------------------------------------------------ */

/* What the gradients of the inputs in `needs` are made of. A tensor that is
 * there whole also serves where only its shape is needed. */
static uint32_t saves_for(const brg_op *op, uint32_t needs)
{
    uint32_t any = 0, mask = 0;
    for (int i = 0; i < op->n_in; i++) {
        any |= op->saves_for[i];
        if ((needs >> i) & 1u)
            mask |= op->saves_for[i];
    }
    mask = any ? op->saves & mask : op->saves;
    return mask & ~(mask << 16);
}

static uint32_t inputs_in_need(const brg_op_call *call)
{
    uint32_t needs = 0;
    for (int i = 0; i < call->n_in; i++)
        if (call->in[i] && brg__requires_grad(call->in[i]))
            needs |= 1u << i;
    return needs & ~call->op->no_grad_in;
}

/* The bits are those of BRG_SAVE_*. */
static brg_status save_tensors(brg_node *node, const brg_op_call *call)
{
    int k = 0;
    for (uint32_t mask = node->saves; mask; mask &= mask - 1) {
        unsigned bit = (unsigned)__builtin_ctz(mask);
        int index = (int)(bit & 7u);
        bool is_output = bit & 8u;
        brg__saved_kind kind = bit >= 16   ? BRG__SAVED_META
                               : is_output ? BRG__SAVED_OUTPUT
                                           : BRG__SAVED_INPUT;
        brg_tensor *t = is_output ? call->out[index] : call->in[index];
        BRG_TRY(brg__saved_init(&node->saved[k++], kind, index, t));
    }
    return BRG_OK;
}

static brg_status connect_inputs(brg_node *node, const brg_op_call *call)
{
    for (int i = 0; i < call->n_in; i++)
        if (call->in[i] && !((call->op->no_grad_in >> i) & 1u))
            BRG_TRY(brg__edge_of(call->in[i], &node->edges[i]));
    return BRG_OK;
}

static brg_status connect_outputs(brg_node *node, const brg_op_call *call)
{
    for (int j = 0; j < call->op->n_diff_out; j++) {
        if (!brg__tensor_is_float(call->out[j]))
            continue;
        brg__slot_set(&node->slots[j], call->out[j]);
        BRG_TRY(brg__tensor_set_history(call->out[j], node, j));
    }
    return BRG_OK;
}

static const brg__node_class op_class;
const brg_attrs brg__no_attrs;

brg_status brg__op_node_new(brg_node **out, const brg_op_call *call)
{
    const brg_op *op = call->op;
    uint32_t saves = saves_for(op, inputs_in_need(call));
    BRG_TRY(brg__node_new(out, &op_class, call->n_in, op->n_diff_out,
                          __builtin_popcount(saves)));
    brg_node *node = *out;
    node->saves = saves;
    node->op = op;
    node->has_attrs = call->attrs != &brg__no_attrs;
    if (node->has_attrs)
        node->attrs = *call->attrs;
    node->n_op_in = (uint8_t)call->n_in;
    node->n_op_out = (uint8_t)call->n_out;
    brg_status status = save_tensors(node, call);
    if (status == BRG_OK)
        status = connect_inputs(node, call);
    brg__node_stamp(node);
    if (status != BRG_OK)
        brg_node_release(node);
    return status;
}

brg_status brg__op_node_record(brg_op_call *call)
{
    brg_node *node;
    BRG_TRY(brg__op_node_new(&node, call));
    brg_status status = connect_outputs(node, call);
    brg_node_release(node); /* the outputs hold it now */
    return status;
}

/* ---- Running -------------------------------------------------------------------- */

/* Puts what was saved, as far as it is wanted, back into the places of the
 * call. */
static brg_status unpack(brg_node *node, uint32_t wanted, brg_tensor **in,
                         brg_tensor **out)
{
    BRG_TRY(brg__node_check_alive(node));
    uint32_t mask = node->saves;
    for (uint16_t k = 0; k < node->n_saved; k++, mask &= mask - 1) {
        const brg__saved *saved = &node->saved[k];
        unsigned bit = (unsigned)__builtin_ctz(mask);
        bool is_output = bit & 8u;
        brg_tensor **to = is_output ? &out[saved->index] : &in[saved->index];
        /* Only the shape may be wanted of one that was saved whole. */
        if (((wanted | wanted >> 16) >> bit) & 1u)
            BRG_TRY(brg__saved_get(node, saved, to));
    }
    return BRG_OK;
}

static brg_status op_apply(brg_node *node, brg_tensor *const *grad_out,
                           brg_tensor **grad_in)
{
    brg_tensor *in[BRG_MAX_OP_INPUTS] = {0};
    brg_tensor *out[BRG_MAX_OP_OUTPUTS] = {0};
    brg_vjp v = {
        .op = node->op,
        .attrs = &node->attrs,
        .n_in = node->n_op_in,
        .n_out = node->n_op_out,
        .in = in,
        .out = out,
        .grad_out = grad_out,
        .needs = brg__task_needs(brg__task_current(), node),
        .is_differentiable = !brg__grad_mode_is_off,
    };
    BRG_TRY(unpack(node, saves_for(node->op, v.needs), in, out));
    if (v.needs == 0)
        return BRG_OK;
    brg_status status = node->op->vjp(&v);
    BRG_EXPLAIN(status, "its vjp");
    BRG_TRY(status);
    memcpy(grad_in, v.grad_in, node->n_edges * sizeof *grad_in);
    return BRG_OK;
}

static const char *op_name(const brg_node *node)
{
    return node->op->name;
}

static const brg__node_class op_class = {.name_of = op_name, .apply = op_apply};
