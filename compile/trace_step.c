/* SPDX-License-Identifier: Apache-2.0
 * A backward inside a function that is being captured: the engine walks over
 * symbols, so its rules write themselves down. What happens at a leaf is a step
 * of the plan, with the hooks that the leaf has when the plan runs; or, if the
 * only one is a reducer's, accumulation and the steps of the reduction. */
#include <stddef.h>

#include "compile/capture.h"
#include "compile/trace_inside.h"

/* ---- Asking hooks ------------------------------------------------------------- */

static brg_status ask_list(const brg__hook_list *list, size_t *n,
                           brg__reduction_part *part)
{
    for (const brg_hook *h = list ? list->first : NULL; h; h = h->next) {
        if (h->is_removed)
            continue;
        ++*n;
        if (h->on_collect)
            BRG_TRY(h->on_collect(h->user, part));
    }
    return BRG_OK;
}

brg_status brg__leaf_ask(brg_tensor *leaf, brg__reduction_part *part)
{
    brg_node *node;
    size_t n = 0;
    *part = (brg__reduction_part){.ops = NULL};
    BRG_TRY(brg__accumulate_node(&node, leaf));
    const brg__autograd *a = brg__autograd_of(leaf);
    brg_status status = ask_list(&a->hooks, &n, part);
    if (status == BRG_OK)
        status = ask_list(&a->post_accumulate, &n, part);
    if (status == BRG_OK && node->hooks)
        status = ask_list(&node->hooks->pre, &n, part);
    if (status == BRG_OK && node->hooks)
        status = ask_list(&node->hooks->post, &n, part);
    brg_node_release(node);
    if (n > 1)
        part->ops = NULL;
    return status;
}

/* ---- Leaves --------------------------------------------------------------------- */

static brg_status leaf_visit(brg__tracing *t, const brg__symbol *symbol,
                             int *visit)
{
    brg__captured *c = t->captured;
    brg__leaf leaf = {.input = symbol->input - 1, .tensor = symbol->real};
    for (size_t i = 0; i < c->edges.n; i++)
        if (c->edges.at[i].input == leaf.input &&
            c->edges.at[i].tensor == leaf.tensor) {
            *visit = (int)i;
            return BRG_OK;
        }
    *visit = (int)c->edges.n;
    BRG_TRY(brg__leaf_ask(brg__leaf_of(&leaf, t->call->inputs), &leaf.part));
    return brg__array_push(&c->edges, leaf);
}

/* A reducer has one entry for each backward of the function. */
static brg_status reduction_of(brg__tracing *t, const brg__reduction_part *part,
                               int *id)
{
    brg__captured *c = t->captured;
    size_t i = c->first_reduction.at[c->first_reduction.n - 1];
    while (i < c->reductions.n && c->reductions.at[i].self != part->self)
        i++;
    *id = (int)i;
    if (i < c->reductions.n)
        return BRG_OK;
    return brg__array_push(&c->reductions,
                           ((brg__reduction){part->ops, part->self, true}));
}

static brg_status put_leaf(brg__tracing *t, int visit, int grad)
{
    const brg__reduction_part *part = &t->captured->edges.at[visit].part;
    brg__ir_node node = {.kind = part->ops ? BRG__IR_ACCUMULATE : BRG__IR_LEAF,
                         .lifted = BRG__IR_NONE,
                         .visit = visit};
    int reduction;
    BRG_TRY(brg__ir_add_node(t->ir, &node, &grad, 1));
    if (!part->ops)
        return BRG_OK;
    BRG_TRY(reduction_of(t, part, &reduction));
    BRG_TRY(
        brg__array_push(&t->captured->members,
                        ((brg__reduction_member){reduction, part->member})));
    return brg__ir_add_reduction(t->ir, visit, reduction, part);
}

static brg_status trace_leaf(brg__tracing *t, brg_node *node, brg_tensor **grad)
{
    const brg__symbol *symbol =
        node->leaf->symbol ? brg__trace_symbol(t, node->leaf) : NULL;
    if (!symbol)
        return brg__tracer_refuse("backward of a graph from outside",
                                  "make its result an input");
    if (!symbol->input && !symbol->real)
        return brg__tracer_refuse("a leaf made by the function",
                                  "use brg_grad for its gradient");
    if (symbol->input && !brg_is_leaf(t->call->inputs[symbol->input - 1]))
        return brg__tracer_refuse("backward beyond an input",
                                  "give it a detached one");
    if (brg__autograd_of(node->leaf)->post_accumulate.first || node->hooks)
        return brg__tracer_refuse("a hook on accumulation",
                                  "add it outside of the function");
    BRG_TRY(brg__run_tensor_hooks(node, 0, BRG__ALL_HOOKS, grad));
    int visit, id;
    brg_tensor *operand = *grad;
    BRG_TRY(leaf_visit(t, symbol, &visit));
    BRG_TRY(brg__trace_operand(t, &operand, &id));
    return put_leaf(t, visit, id);
}

/* ---- The walk ---------------------------------------------------------------------- */

static brg_status evaluate(brg__tracing *t, brg__task *task, uint32_t at)
{
    const brg__visit *visit = &task->visits.at[at];
    BRG_TRY(brg__capture_point());
    if (!brg__node_is_accumulate(visit->node) || !visit->is_needed ||
        task->returns_grads)
        return brg__task_evaluate(task, at);
    brg_tensor **buffer = &task->buffers.at[visit->first_buffer];
    brg_tensor *grad = *buffer;
    *buffer = NULL;
    brg_scope *scope = brg_scope_begin();
    brg_status status =
        scope ? trace_leaf(t, visit->node, &grad) : BRG_ERR_NOMEM;
    brg_release(grad);
    brg_scope_end(scope);
    return status;
}

static brg_status walk(brg__tracing *t, brg__task *task)
{
    uint32_t at;
    while (brg__ready_pop(task, &at))
        BRG_TRY(evaluate(t, task, at));
    return BRG_OK;
}

brg_status brg__trace_backward(brg__runner *self, brg__task *task)
{
    brg__tracing *t =
        (brg__tracing *)((char *)self - offsetof(brg__tracing, runner));
    if (!brg__grad_mode_is_off && t->call->wants_graph)
        *t->call->wants_graph = true;
    if (task->returns_grads)
        return walk(t, task);
    if (!brg__grad_mode_is_off)
        return brg__tracer_refuse("backward with create_graph", "use brg_grad");
    t->captured->is_step = true;
    BRG_TRY(brg__array_push(&t->captured->first_reduction,
                            t->captured->reductions.n));
    BRG_TRY(brg__trace_effect(t, &t->call->backward_begin));
    BRG_TRY(walk(t, task));
    return brg__trace_effect(t, &t->call->backward_end);
}
