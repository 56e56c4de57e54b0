/* SPDX-License-Identifier: Apache-2.0
 * What the backward of one node is in the plan: the rule of an op called with
 * symbols, what it saved, its gradients as their slots take them; or a call. */
#include <stdio.h>
#include <string.h>

#include "compile/capture_inside.h"
#include "compile/segment.h"
#include "core/autograd/recompute.h"
#include "core/base/error.h"
#include "core/ops/op.h"
#include "core/tensor/device.h"
#include "core/tensor/sparse.h"

#include <brigade/ops.h>

/* Whether a tensor packed by the same hooks is unpacked before. */
static bool has_unpacked(const brg__capturing *c, const brg__pack_hooks *pack)
{
    for (size_t at = 0; at < c->ir->nodes.n; at++) {
        const brg__ir_node *n = &c->ir->nodes.at[at];
        if (n->kind == BRG__IR_UNPACK &&
            c->task->visits.at[n->visit].node->saved[n->slot].pack == pack)
            return true;
    }
    return false;
}

/* A tensor packed by hooks: unpacked here, when the plan runs. */
static brg_status unpack_saved(brg__capturing *c, const brg_node *node,
                               uint16_t k, brg_tensor **symbol)
{
    brg__layout layout = brg__layout_of(node->saved[k].tensor);
    brg__shape_strides(layout.ndim, layout.shape, layout.stride);
    const brg__pack_hooks *pack = node->saved[k].pack;
    bool is_split =
        pack->hooks.split == BRG_PACK_SPLIT_EACH ||
        (pack->hooks.split == BRG_PACK_SPLIT_FIRST && !has_unpacked(c, pack));
    brg__ir_node unpack = {.kind = BRG__IR_UNPACK,
                           .visit = (int)c->visit,
                           .slot = k,
                           .is_split = is_split,
                           .n_out = 1};
    int id;
    BRG_TRY(brg__capture_node(c, unpack, NULL, 0, &layout, &id));
    *symbol = c->symbols.at[id];
    return BRG_OK;
}

brg_status brg__capture_saved(brg__capturing *c, const brg_node *node, size_t k,
                              brg_tensor **symbol)
{
    int input = c->c->saved_input.at[c->c->first_saved.at[c->visit] + (int)k];
    int id;
    *symbol = NULL;
    if (k < node->n_saved && node->saved[k].pack)
        return unpack_saved(c, node, (uint16_t)k, symbol);
    if (input == BRG__IR_NONE)
        return BRG_OK;
    BRG_TRY(brg__capture_input(c, input, &id));
    *symbol = c->symbols.at[id];
    return BRG_OK;
}

/* Where the rule looks for them: inputs in the low bits of the mask, outputs
 * from bit 8. */
static brg_status symbols_of_saved(brg__capturing *c, const brg_node *node,
                                   brg_tensor **in, brg_tensor **out)
{
    uint32_t mask = node->saves;
    for (uint16_t k = 0; k < node->n_saved; k++, mask &= mask - 1) {
        unsigned bit = (unsigned)__builtin_ctz(mask);
        BRG_TRY(brg__capture_saved(c, node, k,
                                   bit & 8u ? &out[bit & 7u] : &in[bit & 7u]));
    }
    return BRG_OK;
}

/* The check that the engine makes. What it lets pass is as it was, or as the
 * slot is. */
static brg_status trace_validate(brg__capturing *c, const brg_node *node,
                                 uint16_t i, brg_tensor *grad, bool is_by_rule,
                                 int *value)
{
    const brg__edge *edge = &node->edges[i];
    const brg__slot *slot = &edge->node->slots[edge->slot];
    bool fits = grad->dtype == slot->dtype && brg__slot_has_sizes(slot, grad);
    brg__layout layout = fits ? brg__layout_of(grad) : brg__slot_layout(slot);
    brg__ir_node check = {.kind = BRG__IR_VALIDATE,
                          .lifted = BRG__IR_NONE,
                          .visit = (int)c->visit,
                          .slot = i,
                          .is_by_rule = is_by_rule,
                          .n_out = 1};
    int in;
    BRG_TRY(brg__capture_operand(c, grad, &in));
    BRG_TRY(brg__ir_add_node(c->ir, &check, &in, 1));
    brg__ir_value passed = {.source = BRG__IR_FROM_NODE,
                            .node = (int)c->ir->nodes.n - 1};
    return grad->sparse && fits
               ? brg__capture_sparse_value(c, passed, &layout,
                                           brg__sparse_n_dims(grad), value)
               : brg__capture_value(c, passed, &layout, value);
}

brg_status brg__capture_fit(brg__capturing *c, const brg_node *node, uint16_t i,
                            brg_tensor *grad, bool is_by_rule, int *value)
{
    const brg__edge *edge = &node->edges[i];
    const brg__slot *slot = &edge->node->slots[edge->slot];
    uint32_t to;
    if (!brg__slot_has_sizes(slot, grad) && brg__slot_can_sum(slot, grad) &&
        brg__map_get(&c->task->index, edge->node, &to)) {
        int like;
        BRG_TRY(brg__capture_like_slot(c, to, edge->slot, &like));
        grad = brg_sum_to_like(grad, c->symbols.at[like]);
        if (!grad)
            return brg_error_code();
    }
    /* What does not fit is found where the plan checks it. */
    bool may_fit =
        brg__slot_has_sizes(slot, grad) &&
        (grad->ndim == 0 || brg__device_equal(grad->device, slot->device));
    if (may_fit)
        BRG_TRY(brg__validate_gradient(node, i, slot, &grad)); /* dtype */
    return trace_validate(c, node, i, grad, is_by_rule, value);
}

static brg_status trace_rule(brg__capturing *c, brg_node *node,
                             const int *grads, int *grad_in)
{
    brg_tensor *in[BRG_MAX_OP_INPUTS] = {0}, *out[BRG_MAX_OP_OUTPUTS] = {0};
    brg_tensor *grad_out[BRG_MAX_OP_OUTPUTS] = {0};
    BRG_TRY(symbols_of_saved(c, node, in, out));
    for (uint16_t j = 0; j < node->n_slots; j++)
        if (grads[j] != BRG__IR_NONE)
            grad_out[j] = c->symbols.at[grads[j]];
    brg_vjp v = {.op = node->op,
                 .attrs = &node->attrs,
                 .n_in = node->n_op_in,
                 .n_out = node->n_op_out,
                 .in = in,
                 .out = out,
                 .grad_out = grad_out,
                 .needs = brg__task_needs(c->task, node),
                 .is_differentiable = c->c->records_graph};
    BRG_TRY(node->op->vjp(&v));
    for (uint16_t i = 0; i < node->n_edges; i++) {
        const brg__edge *edge = &node->edges[i];
        if (!v.grad_in[i] || !edge->node)
            continue;
        BRG_TRY(brg__capture_fit(c, node, i, v.grad_in[i], true, &grad_in[i]));
    }
    return BRG_OK;
}

/* It does what no plan can hold, or unpacks what only that can unpack. */
static bool cuts_plan(const brg_node *node)
{
    if (brg__node_tracing(node) == BRG_FUNCTION_UNTRACEABLE)
        return true;
    for (uint16_t k = 0; k < node->n_saved; k++)
        if (node->saved[k].pack &&
            node->saved[k].pack->hooks.split != BRG_PACK_SPLIT_NEVER)
            return true;
    return false;
}

static bool runs_stretch(const brg_node *node)
{
    const brg_context *ctx = node->payload;
    return brg__node_is_function(node) &&
           ctx->function->id == BRG__RECOMPUTE_ID;
}

/* A node with code of its own: called when the plan runs. */
static brg_status trace_call(brg__capturing *c, const brg_node *node,
                             const int *grads, int *grad_in)
{
    brg__layout layouts[BRG__IR_MAX_OUT];
    int outs[BRG__IR_MAX_OUT];
    memset(layouts, 0, sizeof layouts);
    for (uint16_t i = 0; i < node->n_edges; i++)
        if (node->edges[i].node)
            layouts[i] = brg__slot_layout(
                &node->edges[i].node->slots[node->edges[i].slot]);
    brg__ir_node call = {.kind = BRG__IR_CALL,
                         .visit = (int)c->visit,
                         .is_split = cuts_plan(node),
                         .is_stretch = runs_stretch(node),
                         .n_out = node->n_edges};
    BRG_TRY(brg__capture_node(c, call, grads, node->n_slots, layouts, outs));
    for (uint16_t i = 0; i < node->n_edges; i++) {
        int checked;
        if (!node->edges[i].node)
            continue;
        BRG_TRY(trace_validate(c, node, i, c->symbols.at[outs[i]], false,
                               &checked));
        if (brg__task_runs(c->task, node->edges[i].node))
            grad_in[i] = checked;
    }
    return BRG_OK;
}

static bool is_all_undefined(const brg_node *node, const int *grads)
{
    for (uint16_t j = 0; j < node->n_slots; j++)
        if (grads[j] != BRG__IR_NONE)
            return false;
    return !node->cls->wants_undefined;
}

/* What is written down of it, whichever way it is met. */
static brg_status put_function(brg__capturing *c, const brg_node *node)
{
    const brg_context *ctx = node->payload;
    brg__ir_function f = {.visit = (int)c->visit,
                          .n_args = (int)ctx->n_args,
                          .n_out = node->n_slots,
                          .n_saved = node->n_saved,
                          .grads = brg__task_needs(c->task, node),
                          .tensors = ctx->tensors,
                          .saved_args = ctx->saved_args};
    snprintf(f.name, sizeof f.name, "%s", brg_node_name(node));
    for (uint16_t j = 0; j < node->n_slots; j++)
        if (!node->slots[j].is_differentiable)
            f.non_differentiable |= 1u << j;
    return brg__array_push(&c->ir->functions, f);
}

brg_status brg__capture_rule(brg__capturing *c, brg_node *node,
                             const int *grads, int *grad_in)
{
    if (is_all_undefined(node, grads))
        return BRG_OK;
    if (brg__node_is_accumulate(node))
        return brg__capture_accumulate(c, node, grads);
    bool is_done = true;
    brg_status status = BRG_OK;
    if (brg__node_is_function(node))
        BRG_TRY(put_function(c, node));
    brg_scope *scope = brg_scope_begin();
    if (!scope)
        return BRG_ERR_NOMEM;
    if (node->op)
        status = trace_rule(c, node, grads, grad_in);
    else if (brg__segment_splices(node))
        status = brg__capture_segment(c, node, grads, grad_in);
    else if (brg__node_tracing(node) == BRG_FUNCTION_TRACEABLE)
        status = brg__capture_function(c, node, grads, grad_in, &is_done);
    else
        is_done = false;
    if (status == BRG_OK && !is_done)
        status = trace_call(c, node, grads, grad_in);
    brg_scope_end(scope);
    return status;
}
