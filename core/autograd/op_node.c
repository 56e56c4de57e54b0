/* SPDX-License-Identifier: Apache-2.0
 * Op nodes: what a call saves, and the call of its gradient rule. */
#include "core/autograd/op_node.h"

#include <stdatomic.h>
#include <string.h>

#include "core/autograd/engine.h"
#include "core/base/error.h"

/* ---- Recording ------------------------------------------------------------------ */

/* Saves input or output `index`; bit positions are those of BRG_SAVE_*. */
static brg_status save_one(brg__saved *saved, brg_tensor *t, unsigned bit)
{
    bool is_meta = bit >= 16;
    saved->index = (uint8_t)(bit & 7u);
    saved->is_output = bit & 8u;
    saved->kind = BRG__SAVED_NOTHING;
    if (!t)
        return BRG_OK;
    saved->version = brg_tensor_version(t);
    if (is_meta) {
        BRG_TRY(brg__tensor_new_meta(&saved->tensor, t));
        saved->kind = BRG__SAVED_META;
    } else if (saved->is_output) {
        BRG_TRY(brg__tensor_new_alias(&saved->tensor, t));
        saved->kind = BRG__SAVED_OUTPUT;
    } else {
        saved->tensor = brg_retain(t);
        saved->kind = BRG__SAVED_TENSOR;
    }
    return BRG_OK;
}

static brg_status save_tensors(brg_node *node, const brg_op_call *call)
{
    int k = 0;
    for (uint32_t mask = call->op->saves; mask; mask &= mask - 1) {
        unsigned bit = (unsigned)__builtin_ctz(mask);
        unsigned index = bit & 7u;
        brg_tensor *t = bit & 8u ? call->out[index] : call->in[index];
        BRG_TRY(save_one(&node->saved[k++], t, bit));
    }
    return BRG_OK;
}

static brg_status connect(brg_node *node, const brg_op_call *call)
{
    for (int i = 0; i < call->n_in; i++)
        if (call->in[i] && !((call->op->no_grad_in >> i) & 1u))
            BRG_TRY(brg__edge_of(call->in[i], &node->edges[i]));
    for (int j = 0; j < call->op->n_diff_out; j++) {
        if (!brg__tensor_is_float(call->out[j]))
            continue;
        brg__autograd *a;
        BRG_TRY(brg__autograd_get(call->out[j], &a));
        brg__slot_set(&node->slots[j], call->out[j]);
        brg__node_retain(node);
        a->fn = node;
        a->slot = (uint16_t)j;
        a->requires_grad = true;
    }
    return BRG_OK;
}

static const brg__node_class op_class;

brg_status brg__op_node_record(brg_op_call *call)
{
    const brg_op *op = call->op;
    brg_node *node;
    BRG_TRY(brg__node_new(&node, &op_class, call->n_in, op->n_diff_out,
                          __builtin_popcount(op->saves)));
    node->op = op;
    node->attrs = *call->attrs;
    node->n_op_in = (uint8_t)call->n_in;
    node->n_op_out = (uint8_t)call->n_out;
    brg_status status = save_tensors(node, call);
    if (status == BRG_OK)
        status = connect(node, call);
    brg_node_release(node); /* the outputs hold it now */
    return status;
}

/* ---- Running -------------------------------------------------------------------- */

static brg_status check_version(const brg_node *node, const brg__saved *saved)
{
    uint32_t now = brg_tensor_version(saved->tensor);
    if (now == saved->version)
        return BRG_OK;
    char text[BRG_TENSOR_TEXT_MAX];
    return BRG_FAIL(BRG_ERR_MODIFIED,
                    "%s: its %s %d (%s), needed for the gradient, has been "
                    "modified by an in-place operation: it is at version %u; "
                    "expected version %u instead",
                    brg_node_name(node), saved->is_output ? "output" : "input",
                    saved->index, brg__tensor_text(saved->tensor, text), now,
                    saved->version);
}

/* An output comes back with its history when the result is differentiated. */
static brg_status restore_output(brg_node *node, const brg__saved *saved,
                                 brg_tensor **out)
{
    brg_tensor *alias;
    BRG_TRY(brg__tensor_new_alias(&alias, saved->tensor));
    *out = brg__scope_adopt(alias);
    if (!*out)
        return brg_error_code();
    if (saved->index >= node->n_slots)
        return BRG_OK;
    brg__autograd *a;
    BRG_TRY(brg__autograd_get(alias, &a));
    brg__node_retain(node);
    a->fn = node;
    a->slot = saved->index;
    a->requires_grad = true;
    return BRG_OK;
}

static brg_status unpack(brg_node *node, brg_tensor **in, brg_tensor **out)
{
    if (node->is_freed && node->n_saved > 0)
        return BRG_FAIL(BRG_ERR_STATE,
                        "Trying to backward through the graph a second time: "
                        "what %s saved has been freed; keep it with "
                        "retain_graph",
                        brg_node_name(node));
    for (uint16_t k = 0; k < node->n_saved; k++) {
        brg__saved *saved = &node->saved[k];
        brg_tensor **to = saved->is_output ? &out[saved->index]
                                           : &in[saved->index];
        if (saved->kind == BRG__SAVED_TENSOR || saved->kind == BRG__SAVED_OUTPUT)
            BRG_TRY(check_version(node, saved));
        if (saved->kind == BRG__SAVED_OUTPUT && !brg__grad_mode_is_off)
            BRG_TRY(restore_output(node, saved, to));
        else if (!*to || saved->kind != BRG__SAVED_META)
            *to = saved->tensor; /* a full tensor also serves as meta */
    }
    return BRG_OK;
}

static brg_status op_apply(brg_node *node, brg_tensor *const *grad_out,
                           brg_tensor **grad_in)
{
    brg_tensor *in[BRG_MAX_OP_INPUTS] = {0};
    brg_tensor *out[BRG_MAX_OP_OUTPUTS] = {0};
    BRG_TRY(unpack(node, in, out));
    brg_vjp v = {
        .op = node->op,
        .attrs = &node->attrs,
        .n_in = node->n_op_in,
        .n_out = node->n_op_out,
        .in = in,
        .out = out,
        .grad_out = grad_out,
        .is_differentiable = !brg__grad_mode_is_off,
    };
    const brg__task *task = brg__task_current();
    for (uint16_t i = 0; i < node->n_edges; i++)
        if (node->edges[i].node && brg__task_runs(task, node->edges[i].node))
            v.needs |= 1u << i;
    BRG_TRY(node->op->vjp(&v));
    memcpy(grad_in, v.grad_in, node->n_edges * sizeof *grad_in);
    return BRG_OK;
}

static const brg__node_class op_class = {.name = NULL, .apply = op_apply};
