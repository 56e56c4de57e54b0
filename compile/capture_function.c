/* SPDX-License-Identifier: Apache-2.0
 * Traceable functions: their backward is called with symbols, and the ops that
 * it calls are the plan's. If it asks for what no symbol has, or fails, all that
 * it wrote is taken back and the plan calls it. */
#include "compile/capture_inside.h"
#include "core/autograd/context.h"
#include "core/base/error.h"

#include <brigade/ops.h>

typedef struct mark {
    size_t n_nodes, n_values, n_operands;
} mark;

/* Takes back what was written since. */
static void roll_back(brg__capturing *c, mark m)
{
    for (size_t i = 0; i < c->input_value.n; i++)
        if (c->input_value.at[i] >= (int)m.n_values)
            c->input_value.at[i] = BRG__IR_NONE;
    for (size_t id = m.n_values; id < c->ir->values.n; id++)
        brg_release(c->ir->values.at[id].constant);
    while (c->symbols.n > m.n_values)
        brg_release(c->symbols.at[--c->symbols.n]);
    c->ir->nodes.n = m.n_nodes;
    c->ir->values.n = m.n_values;
    c->ir->operands.n = m.n_operands;
}

/* Gradients whose being there only the run decides: it cannot be told here
 * what the function would see. */
static bool is_always_there(const brg__capturing *c, const brg_node *node,
                            const int *grads)
{
    for (uint16_t j = 0; j < node->n_slots; j++) {
        if (!node->slots[j].is_differentiable)
            continue;
        if (grads[j] == BRG__IR_NONE)
            return false;
        int made = brg__ir_maker_of_checked(c->ir, grads[j]);
        if (node->n_slots > 1 && made != BRG__IR_NONE &&
            c->ir->nodes.at[made].kind != BRG__IR_OP)
            return false;
    }
    return true;
}

/* The symbols of what its forward left: saved tensors, then attributes. */
static brg_status symbols_of_context(brg__capturing *c, const brg_node *node,
                                     brg_tensor **symbols)
{
    const brg_context *ctx = node->payload;
    for (size_t k = 0; k < node->n_saved + ctx->attributes.n; k++)
        BRG_TRY(brg__capture_saved(c, node, k, &symbols[k]));
    return BRG_OK;
}

/* In each run, whatever the strides of what comes in. */
static bool is_row_major(const brg__capturing *c, int id)
{
    int made = brg__ir_maker_of_checked(c->ir, id);
    if (made == BRG__IR_NONE)
        return false;
    const brg__ir_node *n = &c->ir->nodes.at[made];
    return n->kind == BRG__IR_OP && !(n->op->flags & BRG_OP_VIEW);
}

/* The gradients, as they come or copied where they may not be row-major. */
static brg_status symbols_of_gradients(const brg__capturing *c,
                                       const brg_node *node, const int *grads,
                                       bool is_row_major_needed,
                                       brg_tensor **grad_out)
{
    for (uint16_t j = 0; j < node->n_slots; j++) {
        if (grads[j] == BRG__IR_NONE)
            continue;
        grad_out[j] = c->symbols.at[grads[j]];
        if (is_row_major_needed && !is_row_major(c, grads[j]))
            grad_out[j] = brg_copy(grad_out[j]);
        if (!grad_out[j])
            return brg_error_code();
    }
    return BRG_OK;
}

/* Lets the function ask the gradients for their layout, or no longer. */
static void mark_gradients(brg_tensor **grad_out, uint16_t n, bool is_on)
{
    for (uint16_t j = 0; j < n; j++) {
        if (!grad_out[j])
            continue;
        uintptr_t bits = (uintptr_t)grad_out[j]->symbol;
        grad_out[j]->symbol = (void *)(is_on ? bits | BRG__SYMBOL_GRADIENT
                                             : bits & ~BRG__SYMBOL_GRADIENT);
    }
}

static brg_status call_traced(brg__capturing *c, brg_node *node,
                              brg__call_trace *trace, const int *grads,
                              int *grad_in)
{
    brg_tensor *grad_out[BRG__IR_MAX_OUT] = {0};
    brg_tensor *results[BRG__IR_MAX_OUT] = {0};
    bool is_second = trace->has_asked_layout;
    BRG_TRY(symbols_of_gradients(c, node, grads, is_second, grad_out));
    c->trace = trace;
    mark_gradients(grad_out, node->n_slots, true);
    brg_status status = brg__function_trace(node, trace, grad_out, results);
    mark_gradients(grad_out, node->n_slots, false);
    for (uint16_t i = 0; status == BRG_OK && i < node->n_edges; i++) {
        if (!results[i] || !node->edges[i].node)
            continue;
        status = brg__capture_fit(c, node, i, results[i], false, &grad_in[i]);
    }
    c->trace = NULL;
    return status;
}

static void roll_back_calls(brg__capturing *c, const brg_node *node,
                            mark before, int *grad_in)
{
    roll_back(c, before);
    for (uint16_t i = 0; i < node->n_edges; i++)
        grad_in[i] = BRG__IR_NONE;
}

/* One that asks whether a gradient is row-major is called a second time, with
 * gradients that are. */
brg_status brg__capture_function(brg__capturing *c, brg_node *node,
                                 const int *grads, int *grad_in, bool *is_done)
{
    const brg_context *ctx = node->payload;
    mark before = {c->ir->nodes.n, c->ir->values.n, c->ir->operands.n};
    *is_done = false;
    if (!is_always_there(c, node, grads) || c->c->records_graph)
        return BRG_OK;
    size_t n = node->n_saved + ctx->attributes.n;
    brg_tensor **symbols =
        brg__mem_alloc_array(n + 1, sizeof *symbols, "a function's symbols");
    if (!symbols)
        return BRG_ERR_NOMEM;
    brg__call_trace trace = {.saved = symbols,
                             .attributes = symbols + node->n_saved};
    brg_status status = symbols_of_context(c, node, symbols);
    if (status == BRG_OK)
        status = call_traced(c, node, &trace, grads, grad_in);
    if (trace.has_asked_layout && !trace.has_read_value &&
        status != BRG_ERR_NOMEM) {
        roll_back_calls(c, node, before, grad_in);
        status = symbols_of_context(c, node, symbols);
        if (status == BRG_OK)
            status = call_traced(c, node, &trace, grads, grad_in);
    }
    brg__mem_free(symbols);
    if (status == BRG_ERR_NOMEM)
        return status;
    *is_done = status == BRG_OK && !trace.has_read_value;
    if (*is_done)
        return brg__array_push(&c->ir->traced, (int)c->visit);
    roll_back_calls(c, node, before, grad_in);
    return BRG_OK;
}
