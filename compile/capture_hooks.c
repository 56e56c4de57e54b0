/* SPDX-License-Identifier: Apache-2.0
 * Capture of what hangs on a node: hooks, retain-grad, outputs, accumulation.
 *
 * A hook is one of three things in a plan: a call of the hook, several in a row
 * being one node; what its capture callback writes in its place; or, if it
 * reduces gradients, the steps of the reduction. */
#include <stdio.h>
#include <string.h>

#include "compile/capture_inside.h"
#include "core/base/error.h"

/* A list of hooks and what they see. */
typedef struct site {
    brg__ir_kind kind;
    uint32_t slot; /* only hooks of this one */
    const brg__hook_list *list;
    int *values; /* they may replace these, */
    int n;
    const int *others; /* and see these */
    int n_others;
} site;

/* ---- Called by the plan ------------------------------------------------------- */

static brg_status trace_calls(brg__capturing *c, const site *s,
                              brg__hook_range range)
{
    brg__layout layouts[BRG__IR_MAX_OUT] = {{0}};
    int in[BRG__IR_MAX_IN], outs[BRG__IR_MAX_OUT] = {0};
    if (s->n + s->n_others > BRG__IR_MAX_IN)
        return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                        "capture: %d gradients are too many for hooks",
                        s->n + s->n_others);
    for (int j = 0; j < s->n; j++) {
        layouts[j] = brg__capture_row_major(c, s->values[j]);
        in[j] = s->values[j];
    }
    for (int j = 0; j < s->n_others; j++)
        in[s->n + j] = s->others[j];
    brg__ir_node node = {.kind = s->kind,
                         .visit = (int)c->visit,
                         .slot = (int)s->slot,
                         .hooks = range,
                         .n_out = s->n};
    BRG_TRY(brg__capture_node(c, node, in, s->n + s->n_others, layouts, outs));
    c->ir->has_ranges |= range.n != UINT32_MAX;
    for (int j = 0; j < s->n; j++)
        if (s->values[j] != BRG__IR_NONE)
            s->values[j] = outs[j];
    return BRG_OK;
}

/* ---- Written by a callback ------------------------------------------------------ */

static brg_tensor *symbol_of(const brg__capturing *c, int id)
{
    return id == BRG__IR_NONE ? NULL : c->symbols.at[id];
}

static brg_status take_result(const brg__capturing *c, const brg_tensor *before,
                              brg_tensor *after, int *value)
{
    if (after == before)
        return BRG_OK;
    if (!before || !after)
        return BRG_FAIL(BRG_ERR_CALLBACK,
                        "it changes whether a gradient is defined");
    BRG_TRY(brg__check_replacement(before, after));
    if (!after->symbol || brg__symbol_capture(after->symbol) != c->number)
        return BRG_FAIL(BRG_ERR_CALLBACK,
                        "it gives back a tensor that was not made from its "
                        "gradients");
    *value = brg__capture_value_of(after);
    return BRG_OK;
}

static brg_status call_callback(brg__capturing *c, const site *s,
                                const brg_hook *hook)
{
    brg_tensor *before[BRG__IR_MAX_OUT], *grads[BRG__IR_MAX_OUT];
    brg_tensor *others[BRG__IR_MAX_OUT];
    for (int j = 0; j < s->n; j++)
        grads[j] = before[j] = symbol_of(c, s->values[j]);
    for (int j = 0; j < s->n_others; j++)
        others[j] = symbol_of(c, s->others[j]);
    brg_status status = hook->capture(grads, (size_t)s->n, others,
                                      (size_t)s->n_others, hook->user);
    BRG_EXPLAIN(status, "the capture callback of a hook");
    BRG_TRY(status);
    for (int j = 0; j < s->n; j++)
        BRG_TRY(take_result(c, before[j], grads[j], &s->values[j]));
    return BRG_OK;
}

/* What a callback cannot express, its hook may still do eagerly. */
static brg_status trace_callback(brg__capturing *c, const site *s,
                                 const brg_hook *hook)
{
    char why[160];
    brg_scope *scope = brg_scope_begin();
    if (!scope)
        return BRG_ERR_NOMEM;
    brg_status status = call_callback(c, s, hook);
    if (status != BRG_OK && status != BRG_ERR_NOMEM) {
        snprintf(why, sizeof why, "%s", brg_error_message());
        status =
            BRG_FAIL(BRG_ERR_UNSUPPORTED,
                     "the capture callback of a hook of %s failed: %s",
                     brg_node_name(c->task->visits.at[c->visit].node), why);
    }
    brg_scope_end(scope);
    return status;
}

/* On .grad instead of a gradient on its way. */
static brg_status trace_on_grad(brg__capturing *c, const site *s,
                                const brg_hook *hook)
{
    const brg_node *node = c->task->visits.at[c->visit].node;
    brg__layout layout = brg__slot_layout(&node->slots[0]);
    brg__ir_node read = {
        .kind = BRG__IR_GRAD, .visit = (int)c->visit, .n_out = 1};
    brg__ir_node write = {.kind = BRG__IR_SET_GRAD, .visit = (int)c->visit};
    int before, value;
    BRG_TRY(brg__capture_node(c, read, NULL, 0, &layout, &before));
    site on_grad = *s;
    value = before;
    on_grad.values = &value;
    on_grad.n = 1;
    BRG_TRY(trace_callback(c, &on_grad, hook));
    return value == before ? BRG_OK
                           : brg__capture_node(c, write, &value, 1, NULL, NULL);
}

/* ---- Reductions -------------------------------------------------------------------- */

/* Tokens have no symbols. */
static brg_status trace_reduction(brg__capturing *c,
                                  const brg__reduction_part *part)
{
    int reduction = brg__collected_reduction(c->c, part->self);
    BRG_TRY(brg__ir_add_reduction(c->ir, (int)c->visit, reduction, part));
    while (c->symbols.n < c->ir->values.n)
        BRG_TRY(brg__array_push(&c->symbols, NULL));
    return BRG_OK;
}

/* ---- A list of hooks ----------------------------------------------------------------- */

/* What takes the hook's place; *is_taken false: the plan calls it. */
static brg_status trace_instead(brg__capturing *c, const site *s,
                                const brg_hook *hook, bool *is_taken)
{
    brg__reduction_part part = {.ops = NULL};
    *is_taken = true;
    if (hook->on_collect)
        BRG_TRY(hook->on_collect(hook->user, &part));
    if (part.ops)
        return trace_reduction(c, &part);
    if (hook->capture)
        return s->kind == BRG__IR_POST_ACCUMULATE ? trace_on_grad(c, s, hook)
                                                  : trace_callback(c, s, hook);
    *is_taken = false;
    return BRG_OK;
}

static bool is_replaced(const brg_hook *hook)
{
    brg__reduction_part part = {.ops = NULL};
    return hook->capture ||
           (hook->on_collect && hook->on_collect(hook->user, &part) == BRG_OK &&
            part.ops);
}

/* Hooks in a row that the plan calls are one node; if all are, whatever is
 * added by then is called, too. */
static brg_status trace_list(brg__capturing *c, const site *s)
{
    brg__hook_range range = {0, 0};
    uint32_t position = 0;
    bool is_split = false, is_called = false;
    for (const brg_hook *h = s->list ? s->list->first : NULL; h;
         h = h->next, position++) {
        if (h->is_removed || h->slot != s->slot)
            continue;
        if (!is_replaced(h)) {
            is_called = true;
            continue;
        }
        range.n = position - range.first;
        if (is_called)
            BRG_TRY(trace_calls(c, s, range));
        bool is_taken;
        BRG_TRY(trace_instead(c, s, h, &is_taken));
        is_split = true;
        is_called = false;
        range.first = position + 1;
    }
    range.n = position - range.first;
    if (!is_called)
        return BRG_OK;
    return trace_calls(c, s, is_split ? range : BRG__ALL_HOOKS);
}

/* ---- Of a node ----------------------------------------------------------------------- */

static bool has_hook_in_slot(const brg__hook_list *list, uint32_t slot)
{
    for (const brg_hook *h = list->first; h; h = h->next)
        if (!h->is_removed && h->slot == slot)
            return true;
    return false;
}

brg_status brg__capture_slot(brg__capturing *c, const brg_node *node,
                             uint32_t slot, int *value)
{
    if (*value == BRG__IR_NONE)
        return BRG_OK;
    site s = {.kind = BRG__IR_TENSOR_HOOKS,
              .slot = slot,
              .list = brg__tensor_hooks_of(node),
              .values = value,
              .n = 1};
    BRG_TRY(trace_list(c, &s));
    if (node->hooks && has_hook_in_slot(&node->hooks->retain, slot)) {
        brg__ir_node retain = {
            .kind = BRG__IR_RETAIN, .visit = (int)c->visit, .slot = (int)slot};
        BRG_TRY(brg__capture_node(c, retain, value, 1, NULL, NULL));
    }
    for (size_t i = 0; i < c->task->requests.n; i++) {
        const brg__request *asked = &c->task->requests.at[i];
        brg__ir_node deliver = {
            .kind = BRG__IR_DELIVER, .visit = BRG__IR_NONE, .slot = (int)i};
        if (asked->visit == c->visit && asked->slot == slot)
            BRG_TRY(brg__capture_node(c, deliver, value, 1, NULL, NULL));
    }
    return BRG_OK;
}

brg_status brg__capture_pre_hooks(brg__capturing *c, const brg_node *node,
                                  int *grads)
{
    site s = {.kind = BRG__IR_PRE_HOOKS,
              .list = node->hooks ? &node->hooks->pre : NULL,
              .values = grads,
              .n = node->n_slots};
    return trace_list(c, &s);
}

brg_status brg__capture_post_hooks(brg__capturing *c, const brg_node *node,
                                   const int *grads, int *grad_in)
{
    site s = {.kind = BRG__IR_POST_HOOKS,
              .list = node->hooks ? &node->hooks->post : NULL,
              .values = grad_in,
              .n = node->n_edges,
              .others = grads,
              .n_others = node->n_slots};
    return trace_list(c, &s);
}

brg_status brg__capture_accumulate(brg__capturing *c, const brg_node *node,
                                   const int *grads)
{
    brg__ir_node accumulate = {.kind = BRG__IR_ACCUMULATE,
                               .visit = (int)c->visit};
    site s = {.kind = BRG__IR_POST_ACCUMULATE,
              .list = &brg__autograd_of(node->leaf)->post_accumulate};
    BRG_TRY(brg__capture_node(c, accumulate, grads, 1, NULL, NULL));
    return trace_list(c, &s);
}
