/* SPDX-License-Identifier: Apache-2.0
 * What a captured function gives back, and a segment's own backward. */
#include <string.h>

#include "compile/capture.h"
#include "compile/trace_inside.h"

/* ---- Results --------------------------------------------------------------------- */

static const brg__ir_node *maker_of(const brg__tracing *t, int value)
{
    const brg__ir_value *v = &t->ir->values.at[value];
    return v->source == BRG__IR_FROM_NODE ? &t->ir->nodes.at[v->node] : NULL;
}

static bool is_view(const brg__ir_node *node)
{
    return node && node->kind == BRG__IR_OP &&
           (node->op->flags & BRG_OP_VIEW) && node->n_in == 1 &&
           node->n_out == 1;
}

/* The tensor from outside whose memory a symbol shows, or NULL. */
const brg_tensor *brg__trace_outside(brg__tracing *t, const brg_tensor *symbol)
{
    const brg__symbol *s = brg__trace_symbol(t, symbol);
    if (!s)
        return NULL;
    const brg__ir *ir =
        s->is_backward ? &t->captured->backward : &t->captured->forward;
    const brg__ir_value *v = &ir->values.at[s->value];
    while (v->source == BRG__IR_FROM_NODE && is_view(&ir->nodes.at[v->node]))
        v = &ir->values.at[brg__ir_in(ir, &ir->nodes.at[v->node])[0]];
    if (v->source == BRG__IR_FROM_CONST)
        return v->constant;
    return v->source == BRG__IR_FROM_INPUT && !s->is_backward
               ? t->call->inputs[v->index]
               : NULL;
}

/* The ops that lead from a base to the result, first to last. */
static brg_status list_views(brg__tracing *t, brg__result *result, int value,
                             int *base)
{
    const brg__ir_node *node = maker_of(t, value);
    size_t n = 0;
    *base = value;
    for (; is_view(node); node = maker_of(t, *base), n++)
        *base = brg__ir_in(t->ir, node)[0];
    BRG_TRY(brg__array_reserve(&result->views, n));
    result->views.n = n;
    for (node = maker_of(t, value); is_view(node);
         node = maker_of(t, brg__ir_in(t->ir, node)[0]))
        result->views.at[--n] = (brg__view_op){node->op, node->attrs};
    return BRG_OK;
}

static brg_status find_base(brg__captured *c, int value, int *index)
{
    for (size_t i = 0; i < c->bases.n; i++)
        if (c->bases.at[i].value == value) {
            *index = (int)i;
            return BRG_OK;
        }
    *index = (int)c->bases.n;
    return brg__array_push(&c->bases, ((brg__base){value, BRG__IR_NONE}));
}

static brg_status add_result(brg__tracing *t, brg_tensor *output,
                             brg__result *result)
{
    brg__captured *c = t->captured;
    int value, base;
    if (!output)
        return BRG_OK;
    if (output->grad_info && brg__autograd_of(output)->retain)
        return brg__tracer_refuse("brg_retain_grad of a result",
                                  "call it outside of the function");
    BRG_TRY(brg__trace_operand(t, &output, &value));
    result->requires_grad = brg_requires_grad(output);
    BRG_TRY(list_views(t, result, value, &base));
    const brg__ir_value *v = &t->ir->values.at[base];
    if (v->source == BRG__IR_FROM_INPUT) {
        result->from = BRG__RESULT_INPUT;
        result->index = v->index;
    } else if (v->source == BRG__IR_FROM_CONST) {
        result->from = BRG__RESULT_CONST;
        result->tensor = v->constant;
    } else {
        result->from = BRG__RESULT_BASE;
        BRG_TRY(find_base(c, base, &result->index));
        if (result->requires_grad)
            c->bases.at[result->index].slot = 0; /* numbered below */
    }
    return BRG_OK;
}

static brg_status add_results(brg__tracing *t, brg_tensor *const *outputs)
{
    brg__captured *c = t->captured;
    for (size_t j = 0; j < t->call->n_outputs; j++) {
        BRG_TRY(brg__array_push(&c->results, (brg__result){0}));
        BRG_TRY(add_result(t, outputs[j], &c->results.at[j]));
    }
    for (size_t i = 0; i < c->bases.n; i++)
        if (c->bases.at[i].slot != BRG__IR_NONE)
            c->bases.at[i].slot = c->n_slots++;
    return BRG_OK;
}

/* The symbol that stands for a value of the forward plan, not only for its
 * shape. */
static brg_tensor *symbol_of(const brg__tracing *t, int value)
{
    for (size_t i = 0; i < t->symbols.n; i++)
        if (!t->symbols.at[i].is_backward && t->symbols.at[i].value == value)
            return t->symbols.at[i].tensor;
    return NULL;
}

/* ---- The pristine backward ---------------------------------------------------------- */

typedef struct gradients {
    BRG__ARRAY(brg_tensor *) outputs;  /* bases that carry one */
    BRG__ARRAY(brg_tensor *) tangents; /* theirs */
    BRG__ARRAY(brg_tensor *) leaves;
    BRG__ARRAY(brg__leaf) which;
    BRG__ARRAY(brg_tensor *) grads; /* of the leaves */
} gradients;

static brg_status list_gradients(brg__tracing *t, gradients *g)
{
    const brg__captured *c = t->captured;
    for (size_t i = 0; i < c->bases.n; i++) {
        if (c->bases.at[i].slot == BRG__IR_NONE)
            continue;
        brg_tensor *output = symbol_of(t, c->bases.at[i].value), *tangent;
        brg__layout layout = brg__layout_row_major(output);
        brg__ir_value value = {.source = BRG__IR_FROM_INPUT,
                               .index = c->bases.at[i].slot};
        BRG_TRY(brg__trace_new(t, value, &layout, &tangent));
        BRG_TRY(brg__array_push(&g->outputs, output));
        BRG_TRY(brg__array_push(&g->tangents, tangent));
    }
    for (size_t i = 0; i < t->symbols.n; i++) {
        const brg__symbol *s = &t->symbols.at[i];
        if ((!s->input && !s->real) || !brg_requires_grad(s->tensor))
            continue;
        brg__leaf leaf = {.input = s->input - 1, .tensor = s->real};
        BRG_TRY(brg__array_push(&g->leaves, s->tensor));
        BRG_TRY(brg__array_push(&g->which, leaf));
        BRG_TRY(brg__array_push(&g->grads, NULL));
    }
    return BRG_OK;
}

static brg_status differentiate(brg__tracing *t, gradients *g)
{
    brg__captured *c = t->captured;
    brg_backward_options options = BRG_BACKWARD_OPTIONS_INIT;
    BRG_TRY(list_gradients(t, g));
    options.grad_outputs = g->tangents.at;
    BRG_TRY(brg_grad(g->grads.at, g->outputs.at, g->outputs.n, g->leaves.at,
                     g->leaves.n, &options));
    if (t->is_refused)
        return BRG_ERR_UNSUPPORTED;
    for (size_t i = 0; i < g->leaves.n; i++) {
        if (!g->grads.at[i])
            continue;
        BRG_TRY(brg__trace_output(t, g->grads.at[i], (int)c->edges.n));
        BRG_TRY(brg__array_push(&c->edges, g->which.at[i]));
    }
    t->ir->n_inputs = c->n_slots + (int)c->kept.n;
    if (c->edges.n > BRG__MAX_SLOTS || c->bases.n > BRG__MAX_SLOTS)
        return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                        "capture: the function has gradients for %zu tensors "
                        "and of %zu results, %d is the most",
                        c->edges.n, c->bases.n, BRG__MAX_SLOTS);
    return BRG_OK;
}

static brg_status add_backward(brg__tracing *t)
{
    gradients g = {0};
    BRG_TRY(brg__capture_point());
    t->is_backward = true;
    t->ir = &t->captured->backward;
    brg_status status = differentiate(t, &g);
    t->is_backward = false;
    t->ir = &t->captured->forward;
    brg__array_deinit(&g.outputs);
    brg__array_deinit(&g.tangents);
    brg__array_deinit(&g.leaves);
    brg__array_deinit(&g.which);
    brg__array_deinit(&g.grads);
    return status;
}

/* ---- What the forward plan gives ------------------------------------------------------ */

static brg_status keep_output(brg__tracing *t, brg__kept *kept)
{
    brg__captured *c = t->captured;
    brg_tensor *symbol = symbol_of(t, kept->value);
    if (kept->is_shape) {
        brg__layout layout = brg__layout_from_start(symbol);
        return brg__tensor_new_view(&kept->shape, &layout, NULL);
    }
    for (size_t i = 0; i < c->bases.n; i++)
        if (c->bases.at[i].value == kept->value) {
            kept->output = (int)i;
            return BRG_OK;
        }
    kept->output = c->n_outputs++;
    return brg__trace_output(t, symbol, kept->output);
}

brg_status brg__trace_segment(brg__tracing *t, brg_tensor *const *outputs)
{
    brg__captured *c = t->captured;
    BRG_TRY(add_results(t, outputs));
    if (c->n_slots > 0)
        BRG_TRY(add_backward(t));
    for (size_t i = 0; i < c->bases.n; i++)
        BRG_TRY(brg__trace_output(t, symbol_of(t, c->bases.at[i].value),
                                  c->n_outputs++));
    for (size_t k = 0; k < c->kept.n; k++)
        BRG_TRY(keep_output(t, &c->kept.at[k]));
    c->n_draws = (int)t->draws.n;
    return BRG_OK;
}

brg_status brg__trace_step_results(brg__tracing *t, brg_tensor *const *outputs)
{
    brg__captured *c = t->captured;
    for (size_t j = 0; j < t->call->n_outputs; j++) {
        brg__result result = {.from = BRG__RESULT_NONE};
        if (outputs[j]) {
            result.from = BRG__RESULT_BASE;
            result.index = c->n_outputs;
            BRG_TRY(brg__trace_output(t, outputs[j], c->n_outputs++));
        }
        BRG_TRY(brg__array_push(&c->results, result));
    }
    c->n_draws = (int)t->draws.n;
    return BRG_OK;
}
