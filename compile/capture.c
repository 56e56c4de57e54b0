/* SPDX-License-Identifier: Apache-2.0
 * Capture: see capture.h.
 *
 * A symbol is a meta tensor that stands for a value of the IR. Gradient rules
 * are called with symbols for what they saved; the ops they call come to the
 * capture's emitter, which writes them down and answers with new symbols. */
#include "compile/capture.h"

#include <stdio.h>
#include <string.h>

#include "compile/capture_inside.h"
#include "compile/segment.h"
#include "core/autograd/context.h"
#include "core/autograd/recompute.h"
#include "core/base/error.h"
#include "core/ops/op.h"
#include "core/tensor/device.h"
#include "core/tensor/sparse.h"

#include <brigade/ops.h>

brg_status (*brg__capture_step)(void);

brg_status brg__capture_point(void)
{
    return brg__capture_step ? brg__capture_step() : BRG_OK;
}

/* ---- Values and their symbols ------------------------------------------------------ */

/* A value whose example this symbol is; takes over the symbol. */
static brg_status add_value(brg__capturing *c, brg__ir_value value,
                            brg_tensor *symbol, int *id)
{
    value.dtype = (brg_dtype)symbol->dtype;
    value.ndim = symbol->ndim;
    brg__layout layout = brg__layout_of(symbol);
    value.ones = brg__ir_ones(&layout);
    brg_status status = brg__array_push(&c->symbols, symbol);
    if (status != BRG_OK) {
        brg_release(symbol);
        return status;
    }
    BRG_TRY(brg__ir_add_value(c->ir, &value, id));
    symbol->symbol = brg__symbol_of((uint32_t)*id + 1, c->number);
    return BRG_OK;
}

brg_status brg__capture_value(brg__capturing *c, brg__ir_value value,
                              const brg__layout *layout, int *id)
{
    brg_tensor *symbol;
    BRG_TRY(brg__tensor_new_view(&symbol, layout, NULL));
    return add_value(c, value, symbol, id);
}

/* A sparse tensor of these sizes without entries. */
static brg_status sparse_symbol(const brg__layout *layout, int n_sparse,
                                brg_tensor **symbol)
{
    brg__layout places = {.dtype = BRG_DTYPE_I64, .ndim = 2};
    brg__layout rest = {.dtype = layout->dtype,
                        .ndim = layout->ndim - n_sparse + 1};
    brg_tensor *like = NULL, *indices = NULL, *values = NULL;
    places.shape[0] = n_sparse;
    for (int d = 1; d < rest.ndim; d++)
        rest.shape[d] = layout->shape[n_sparse + d - 1];
    brg__shape_strides(places.ndim, places.shape, places.stride);
    brg__shape_strides(rest.ndim, rest.shape, rest.stride);
    brg_status status = brg__tensor_new_view(&like, layout, NULL);
    if (status == BRG_OK)
        status = brg__tensor_new(&indices, &places);
    if (status == BRG_OK)
        status = brg__tensor_new(&values, &rest);
    if (status == BRG_OK)
        status = brg__sparse_new(symbol, like, indices, values, false);
    brg_release(like);
    brg_release(indices);
    brg_release(values);
    return status;
}

static brg_status sparse_value(brg__capturing *c, brg__ir_value value,
                               const brg__layout *layout, int n_sparse, int *id)
{
    brg_tensor *symbol;
    BRG_TRY(sparse_symbol(layout, n_sparse, &symbol));
    return add_value(c, value, symbol, id);
}

brg_status brg__capture_input(brg__capturing *c, int input, int *id)
{
    *id = c->input_value.at[input];
    if (*id != BRG__IR_NONE)
        return BRG_OK;
    brg__layout layout = brg__layout_from_start(c->c->inputs.at[input]);
    brg__ir_value value = {.source = BRG__IR_FROM_INPUT, .index = input};
    const brg_tensor *t = c->c->inputs.at[input];
    BRG_TRY(t->sparse
                ? sparse_value(c, value, &layout, brg__sparse_n_dims(t), id)
                : brg__capture_value(c, value, &layout, id));
    c->input_value.at[input] = *id;
    return BRG_OK;
}

brg_status brg__capture_like_slot(brg__capturing *c, uint32_t visit,
                                  uint32_t slot, int *id)
{
    brg__layout layout =
        brg__slot_layout(&c->task->visits.at[visit].node->slots[slot]);
    brg__ir_value value = {
        .source = BRG__IR_FROM_SLOT, .visit = (int)visit, .index = (int)slot};
    return brg__capture_value(c, value, &layout, id);
}

brg_status brg__capture_operand(brg__capturing *c, brg_tensor *t, int *id)
{
    *id = BRG__IR_NONE;
    if (!t)
        return BRG_OK;
    char text[BRG_TENSOR_TEXT_MAX];
    if (t->symbol && brg__symbol_capture(t->symbol) != c->number)
        return brg__symbol_is_left(BRG_ERR_UNSUPPORTED, "capture", t);
    if (t->symbol) {
        *id = brg__capture_value_of(t);
        return BRG_OK;
    }
    if (c->trace && t->ndim > 0) /* of the sizes of this run */
        c->trace->has_read_value = true;
    if (!t->storage)
        return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                        "capture: a gradient rule made %s without a value",
                        brg__tensor_text(t, text));
    brg__layout layout = brg__layout_of(t);
    brg__ir_value value = {.source = BRG__IR_FROM_CONST, .constant = t};
    BRG_TRY(brg__capture_value(c, value, &layout, id));
    brg_retain(t);
    return BRG_OK;
}

/* ---- The emitter --------------------------------------------------------------------- */

/* An op that repeats the attributes of a random op reads them at run time. */
static int lifted_from(const brg__capturing *c, const brg_op_call *call)
{
    const brg_node *node = c->task->visits.at[c->visit].node;
    if (!node->op || !(node->op->flags & BRG_OP_IMPURE) ||
        memcmp(&node->attrs, call->attrs, sizeof node->attrs) != 0)
        return BRG__IR_NONE;
    return (int)c->visit;
}

/* Random numbers of its own would be the same in every run. */
static brg_status check_expressible(const brg__capturing *c,
                                    const brg_op_call *call, int lifted)
{
    const char *why = NULL;
    if (call->op->flags & BRG_OP_INPLACE)
        why = "changes a tensor in place";
    else if ((call->op->flags & BRG_OP_IMPURE) && lifted == BRG__IR_NONE &&
             !c->is_splicing)
        why = "draws random numbers or has other effects";
    if (!why)
        return BRG_OK;
    return BRG_FAIL(BRG_ERR_UNSUPPORTED, "capture: %s %s", call->op->name, why);
}

/* Dims that the indices of a sparse result have: those of its source. */
static int n_sparse_dims(const brg_op_call *call)
{
    for (int i = 0; i < call->n_in; i++)
        if (call->in[i] && call->in[i]->sparse)
            return brg__sparse_n_dims(call->in[i]);
    return call->op == &brg__op_sparse_coo ? (int)call->in[0]->shape[0] : 1;
}

static brg_status refuse_sparse(const brg_op_call *call)
{
    for (int i = 0; i < call->n_in; i++)
        if (call->in[i] && call->in[i]->sparse &&
            !(call->op->flags & BRG_OP_SPARSE))
            return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                            "%s: input %d is sparse, expected a dense tensor",
                            call->op->name, i);
    return BRG_OK;
}

static brg_status emit_captured(brg__emitter *self, brg_op_call *call)
{
    brg__capturing *c = (brg__capturing *)self;
    int in[BRG_MAX_OP_INPUTS];
    BRG_TRY(brg__capture_point());
    memset(call->info, 0, (size_t)call->n_out * sizeof *call->info);
    BRG_TRY(call->op->infer(call));
    for (int j = 0; j < call->n_out; j++) {
        c->ir->is_loose |= call->info[j].is_sparse;
        c->ir->is_there &= !call->info[j].is_sparse;
    }
    BRG_TRY(refuse_sparse(call));
    for (int i = 0; i < call->n_in; i++)
        BRG_TRY(brg__capture_operand(c, call->in[i], &in[i]));
    int lifted = lifted_from(c, call);
    BRG_TRY(check_expressible(c, call, lifted));
    brg__ir_node node = {.kind = BRG__IR_OP,
                         .op = call->op,
                         .attrs = *call->attrs,
                         .lifted = lifted,
                         .visit = BRG__IR_NONE,
                         .n_out = call->n_out};
    BRG_TRY(brg__ir_add_node(c->ir, &node, in, call->n_in));
    int at = (int)c->ir->nodes.n - 1;
    for (int j = 0; j < call->n_out; j++) {
        brg__layout layout =
            brg__out_layout(&call->info[j], brg__call_device(call));
        brg__ir_value value = {.source = BRG__IR_FROM_NODE, .node = at};
        int id;
        BRG_TRY(call->info[j].is_sparse
                    ? sparse_value(c, value, &layout, n_sparse_dims(call), &id)
                    : brg__capture_value(c, value, &layout, &id));
        call->out[j] = brg__scope_adopt(brg_retain(c->symbols.at[id]));
        if (!call->out[j])
            return brg_error_code();
    }
    return BRG_OK;
}

/* ---- Nodes that are no ops -------------------------------------------------------------- */

brg_status brg__capture_node(brg__capturing *c, brg__ir_node node,
                             const int *in, int n_in,
                             const brg__layout *out_layouts, int *outs)
{
    node.lifted = BRG__IR_NONE;
    BRG_TRY(brg__ir_add_node(c->ir, &node, in, n_in));
    int at = (int)c->ir->nodes.n - 1;
    for (int j = 0; j < node.n_out; j++) {
        brg__ir_value value = {.source = BRG__IR_FROM_NODE, .node = at};
        BRG_TRY(brg__capture_value(c, value, &out_layouts[j], &outs[j]));
    }
    return BRG_OK;
}

brg__layout brg__capture_row_major(const brg__capturing *c, int id)
{
    static const brg__layout nothing;
    if (id == BRG__IR_NONE)
        return nothing;
    brg__layout layout = brg__layout_row_major(c->symbols.at[id]);
    return layout;
}

/* ---- The rule of an op --------------------------------------------------------------------- */

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
    return grad->sparse && fits ? sparse_value(c, passed, &layout,
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
                 .is_differentiable = c->c->records_graph};
    for (uint16_t i = 0; i < node->n_edges; i++)
        if (node->edges[i].node && brg__task_runs(c->task, node->edges[i].node))
            v.needs |= 1u << i;
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
                          .tensors = ctx->tensors,
                          .saved_args = ctx->saved_args};
    snprintf(f.name, sizeof f.name, "%s", brg_node_name(node));
    for (uint16_t i = 0; i < node->n_edges; i++)
        if (node->edges[i].node && brg__task_runs(c->task, node->edges[i].node))
            f.grads |= 1u << i;
    for (uint16_t j = 0; j < node->n_slots; j++)
        if (!node->slots[j].is_differentiable)
            f.non_differentiable |= 1u << j;
    return brg__array_push(&c->ir->functions, f);
}

static brg_status trace_apply(brg__capturing *c, brg_node *node,
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

/* ---- The walk ------------------------------------------------------------------------------- */

static brg_status route(brg__capturing *c, const brg_node *node,
                        const int *grad_in)
{
    for (uint16_t i = 0; i < node->n_edges; i++) {
        const brg__edge *edge = &node->edges[i];
        uint32_t to;
        if (!edge->node || !brg__task_runs(c->task, edge->node) ||
            !brg__map_get(&c->task->index, edge->node, &to))
            continue;
        brg__visit *next = &c->task->visits.at[to];
        int *buffer = &c->buffers.at[next->first_buffer + edge->slot];
        if (*buffer == BRG__IR_NONE) {
            *buffer = grad_in[i];
        } else if (grad_in[i] != BRG__IR_NONE) {
            int in[2] = {*buffer, grad_in[i]};
            brg__layout layout = brg__capture_row_major(c, *buffer);
            brg__ir_node add = {
                .kind = BRG__IR_ADD, .visit = BRG__IR_NONE, .n_out = 1};
            BRG_TRY(brg__capture_node(c, add, in, 2, &layout, buffer));
        }
        if (--next->n_waiting == 0)
            BRG_TRY(brg__ready_push(c->task, to));
    }
    return BRG_OK;
}

static brg_status trace_visit(brg__capturing *c, uint32_t visit)
{
    const brg__visit *v = &c->task->visits.at[visit];
    brg_node *node = v->node;
    bool is_wide =
        node->n_edges > BRG__IR_MAX_OUT || node->n_slots > BRG__IR_MAX_OUT;
    if (is_wide && !brg__segment_splices(node))
        return BRG_FAIL(BRG_ERR_UNSUPPORTED, "capture: %s is too wide",
                        brg_node_name(node));
    int grads[BRG__MAX_SLOTS], grad_in[BRG__MAX_SLOTS];
    c->visit = visit;
    BRG_TRY(brg__capture_point());
    memcpy(grads, c->buffers.at + v->first_buffer,
           node->n_slots * sizeof *grads);
    for (int i = 0; i < BRG__MAX_SLOTS; i++)
        grad_in[i] = BRG__IR_NONE;
    for (uint32_t slot = 0; slot < node->n_slots; slot++)
        BRG_TRY(brg__capture_slot(c, node, slot, &grads[slot]));
    if (!v->is_needed)
        return BRG_OK;
    if (is_wide && node->hooks &&
        (node->hooks->pre.first || node->hooks->post.first))
        return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                        "capture: %s has too many gradients for its hooks",
                        brg_node_name(node));
    BRG_TRY(brg__capture_pre_hooks(c, node, grads));
    BRG_TRY(brg__capture_point());
    BRG_TRY(trace_apply(c, node, grads, grad_in));
    BRG_TRY(brg__capture_point());
    BRG_TRY(brg__capture_post_hooks(c, node, grads, grad_in));
    BRG_TRY(brg__capture_point());
    return route(c, node, grad_in);
}

static brg_status start(brg__capturing *c)
{
    size_t n_inputs = c->c->inputs.n, n_buffers = c->c->root_input.n;
    BRG_TRY(brg__array_reserve(&c->input_value, n_inputs));
    BRG_TRY(brg__array_reserve(&c->buffers, n_buffers));
    for (size_t i = 0; i < n_inputs; i++)
        c->input_value.at[c->input_value.n++] = BRG__IR_NONE;
    for (size_t i = 0; i < n_buffers; i++) {
        int id = BRG__IR_NONE;
        if (c->c->root_input.at[i] != BRG__IR_NONE)
            BRG_TRY(brg__capture_input(c, c->c->root_input.at[i], &id));
        c->buffers.at[c->buffers.n++] = id;
    }
    c->ir->n_inputs = (int)n_inputs;
    return BRG_OK;
}

static brg_status walk(brg__capturing *c)
{
    BRG_TRY(start(c));
    uint32_t visit;
    while (brg__ready_pop(c->task, &visit))
        BRG_TRY(trace_visit(c, visit));
    brg__ir_node end = {
        .kind = BRG__IR_FINAL, .lifted = BRG__IR_NONE, .visit = BRG__IR_NONE};
    BRG_TRY(brg__ir_add_node(c->ir, &end, NULL, 0));
    return brg__ir_verify(c->ir);
}

/* What the walk uses up of the task. */
typedef struct task_state {
    BRG__ARRAY(uint32_t) waiting;
    BRG__ARRAY(brg__ready) heap;
    uint64_t n_arrivals;
} task_state;

static brg_status keep_task(task_state *s, const brg__task *task)
{
    BRG_TRY(brg__array_reserve(&s->waiting, task->visits.n));
    BRG_TRY(brg__array_reserve(&s->heap, task->heap.n));
    for (size_t i = 0; i < task->visits.n; i++)
        s->waiting.at[s->waiting.n++] = task->visits.at[i].n_waiting;
    for (size_t i = 0; i < task->heap.n; i++)
        s->heap.at[s->heap.n++] = task->heap.at[i];
    s->n_arrivals = task->n_arrivals;
    return BRG_OK;
}

static void restore_task(task_state *s, brg__task *task)
{
    for (size_t i = 0; i < s->waiting.n; i++)
        task->visits.at[i].n_waiting = s->waiting.at[i];
    task->heap.n = s->heap.n;
    for (size_t i = 0; i < s->heap.n; i++)
        task->heap.at[i] = s->heap.at[i];
    task->n_arrivals = s->n_arrivals;
    brg__array_deinit(&s->waiting);
    brg__array_deinit(&s->heap);
}

brg_status brg__capture_task(brg__ir *ir, brg__task *task,
                             const brg__collected *collected)
{
    brg__capturing c = {.number = brg__new_capture(),
                        .base.emit = emit_captured,
                        .ir = ir,
                        .task = task,
                        .c = collected};
    task_state state = {0};
    brg_status status = keep_task(&state, task);
    if (status == BRG_OK) {
        brg__emitter *before = brg__emitter_set(&c.base);
        bool mode = brg_grad_mode_set(false);
        ir->is_loose = collected->records_graph || collected->is_sparse ||
                       collected->is_elsewhere;
        ir->is_there = collected->is_elsewhere && !collected->records_graph &&
                       !collected->is_sparse;
        status = walk(&c);
        brg_grad_mode_set(mode);
        brg__emitter_set(before);
        restore_task(&state, task);
    } else {
        brg__array_deinit(&state.waiting);
        brg__array_deinit(&state.heap);
    }
    for (size_t i = 0; i < c.symbols.n; i++)
        brg_release(c.symbols.at[i]);
    brg__array_deinit(&c.symbols);
    brg__array_deinit(&c.buffers);
    brg__array_deinit(&c.input_value);
    return status;
}
