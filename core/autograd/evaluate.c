/* SPDX-License-Identifier: Apache-2.0
 * One node of a backward: hooks, gradient rule, validation, routing.
 *
 * Order: tensor hooks, retain-grad writes, outputs of brg_grad; then, if the
 * node is needed, pre-hooks, the rule, validation, post-hooks; then each
 * result is added into the slot that its edge leads to. */
#include <string.h>

#include "core/autograd/debug.h"
#include "core/autograd/engine.h"
#include "core/base/error.h"
#include "core/base/tracer.h"
#include "core/ops/op.h"
#include "core/tensor/device.h"
#include "core/tensor/shape.h"

#include <brigade/device.h>
#include <brigade/ops.h>
#include <brigade/sparse.h>

#define MAX_SLOTS BRG__MAX_SLOTS

/* ---- Validation -------------------------------------------------------------------- */

static brg_status slot_like(const brg__slot *slot, brg_tensor **out)
{
    brg__layout layout = brg__slot_layout(slot);
    brg_tensor *meta;
    BRG_TRY(brg__tensor_new_view(&meta, &layout, NULL));
    if (slot->symbol && brg__is_traced())
        meta->symbol = brg__symbol_of_shape(slot->symbol);
    *out = brg__scope_adopt(meta);
    return *out ? BRG_OK : brg_error_code();
}

brg_status brg__validate_gradient(const brg_node *from, size_t i,
                                  const brg__slot *slot, brg_tensor **grad)
{
    brg_tensor *g = *grad;
    if (!brg__slot_has_sizes(slot, g)) {
        char a[BRG_SHAPE_TEXT_MAX], b[BRG_SHAPE_TEXT_MAX];
        if (!brg__slot_can_sum(slot, g))
            return BRG_FAIL(BRG_ERR_SHAPE,
                            "%s returned an invalid gradient at index %zu - "
                            "got %s but expected shape compatible with %s",
                            brg_node_name(from), i,
                            brg__shape_text(g->ndim, g->shape, a),
                            brg__shape_text(slot->ndim, slot->shape, b));
        brg_tensor *like;
        BRG_TRY(slot_like(slot, &like));
        g = brg_sum_to_like(g, like);
    }
    if (g && g->dtype != slot->dtype)
        g = g->sparse ? brg_sparse_cast(g, (brg_dtype)slot->dtype)
                      : brg_cast(g, (brg_dtype)slot->dtype);
    if (!g)
        return brg_error_code();
    if (g->ndim == 0 && !(g = brg_to(g, slot->device)))
        return brg_error_code();
    if (!brg__device_equal(g->device, slot->device)) {
        char a[24], b[24];
        return BRG_FAIL(BRG_ERR_DEVICE,
                        "%s returned a gradient on %s at index %zu, expected "
                        "%s",
                        brg_node_name(from), brg__device_text(g->device, a), i,
                        brg__device_text(slot->device, b));
    }
    *grad = g;
    return BRG_OK;
}

/* ---- Adding up ---------------------------------------------------------------------- */

static bool can_add_in_place(const brg_tensor *sum, const brg_tensor *grad)
{
    if (!brg__grad_mode_is_off || brg__ref_count(&sum->refs) != 1)
        return false;
    if (sum->sparse)
        return grad->sparse; /* which gives it new parts */
    return sum->storage && brg__ref_count(&sum->storage->refs) == 1 &&
           sum->is_contiguous;
}

brg_status brg__task_add_gradient(brg__task *task, uint32_t visit,
                                  uint32_t slot, brg_tensor *grad)
{
    if (!grad)
        return BRG_OK;
    brg_tensor **buffer =
        &task->buffers.at[task->visits.at[visit].first_buffer + slot];
    if (!*buffer) {
        *buffer = brg_retain(grad);
        return BRG_OK;
    }
    if (can_add_in_place(*buffer, grad))
        return brg_add_(*buffer, grad, 1.0);
    brg_tensor *sum = brg_sparse_add(*buffer, grad);
    if (!sum)
        return brg_error_code();
    brg_release(*buffer);
    *buffer = brg_retain(sum);
    return BRG_OK;
}

/* ---- Hooks ---------------------------------------------------------------------------- */

brg_status brg__check_replacement(const brg_tensor *before,
                                  const brg_tensor *after)
{
    const char *what = NULL;
    if (!brg__shape_equal(before->ndim, before->shape, after->ndim,
                          after->shape))
        what = "size";
    else if (before->dtype != after->dtype)
        what = "type";
    else if (!brg__device_equal(before->device, after->device))
        what = "device";
    if (!what)
        return BRG_OK;
    char a[BRG_TENSOR_TEXT_MAX], b[BRG_TENSOR_TEXT_MAX];
    return BRG_FAIL(BRG_ERR_CALLBACK,
                    "a hook has changed the %s of value: the gradient was %s, "
                    "the replacement is %s",
                    what, brg__tensor_text(before, a),
                    brg__tensor_text(after, b));
}

static void replace(brg_tensor **slot, brg_tensor *by)
{
    brg_retain(by);
    brg_release(*slot);
    *slot = by;
}

brg__hook_list *brg__tensor_hooks_of(const brg_node *node)
{
    if (brg__node_is_accumulate(node))
        return &brg__autograd_of(node->leaf)->hooks;
    return node->hooks ? &node->hooks->tensor : NULL;
}

brg_status brg__run_tensor_hooks(brg_node *node, uint32_t slot,
                                 brg__hook_range range, brg_tensor **grad)
{
    brg__hook_list *list = brg__tensor_hooks_of(node);
    brg_status status = BRG_OK;
    brg__hook_run run;
    if (!list)
        return BRG_OK;
    for (brg_hook *h = brg__hook_run_begin(&run, list, range);
         h && status == BRG_OK; h = brg__hook_run_next(&run)) {
        if (h->slot != slot || !*grad)
            continue;
        brg_tensor *replacement = NULL;
        status = ((brg_grad_hook_fn)h->fn)(*grad, &replacement, h->user);
        BRG_EXPLAIN(status, "a tensor hook");
        if (status == BRG_OK && replacement)
            status = brg__check_replacement(*grad, replacement);
        if (status == BRG_OK && replacement)
            replace(grad, replacement);
    }
    brg__hook_run_end(&run);
    return status;
}

brg_status brg__run_retain_writes(brg_node *node, uint32_t slot,
                                  brg_tensor *grad)
{
    brg_status status = BRG_OK;
    brg__hook_run run;
    if (!node->hooks)
        return BRG_OK;
    brg__hook_list *list = &node->hooks->retain;
    for (brg_hook *h = brg__hook_run_begin(&run, list, BRG__ALL_HOOKS);
         h && status == BRG_OK; h = brg__hook_run_next(&run)) {
        if (h->slot != slot || !grad)
            continue;
        brg_tensor *t = h->user, *sum = grad;
        brg_tensor *old = brg_tensor_grad(t);
        if (old && !(sum = brg_sparse_add(old, grad)))
            status = brg_error_code();
        else
            status = brg_tensor_set_grad(t, sum);
    }
    brg__hook_run_end(&run);
    return status;
}

static brg_status run_slot_hooks(brg_node *node, brg_tensor **grads)
{
    for (uint32_t slot = 0; slot < node->n_slots; slot++) {
        BRG_TRY(
            brg__run_tensor_hooks(node, slot, BRG__ALL_HOOKS, &grads[slot]));
        BRG_TRY(brg__run_retain_writes(node, slot, grads[slot]));
    }
    return BRG_OK;
}

/* Takes over what a hook wrote into `seen`, whose entries were `before`. */
static brg_status take_replacements(brg_tensor *const *seen,
                                    brg_tensor *const *before, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (seen[i] == before[i])
            continue;
        if (!before[i] || !seen[i])
            return BRG_FAIL(BRG_ERR_CALLBACK,
                            "a hook has returned an incorrect number of "
                            "values: gradient %zu of %zu is %s and cannot "
                            "become %s",
                            i, n, before[i] ? "defined" : "undefined",
                            seen[i] ? "defined" : "undefined");
        BRG_TRY(brg__check_replacement(before[i], seen[i]));
    }
    return BRG_OK;
}

brg_status brg__run_pre_hooks(brg_node *node, brg__hook_range range,
                              brg_tensor **grads)
{
    if (!node->hooks)
        return BRG_OK;
    brg_status status = BRG_OK;
    brg__hook_run run;
    for (brg_hook *h = brg__hook_run_begin(&run, &node->hooks->pre, range);
         h && status == BRG_OK; h = brg__hook_run_next(&run)) {
        brg_tensor *seen[MAX_SLOTS];
        memcpy(seen, grads, node->n_slots * sizeof *seen);
        status = ((brg_node_pre_hook_fn)h->fn)(seen, node->n_slots, h->user);
        BRG_EXPLAIN(status, "a pre-hook of %s", brg_node_name(node));
        if (status == BRG_OK)
            status = take_replacements(seen, grads, node->n_slots);
        for (size_t i = 0; status == BRG_OK && i < node->n_slots; i++)
            if (seen[i] != grads[i])
                replace(&grads[i], seen[i]);
    }
    brg__hook_run_end(&run);
    return status;
}

brg_status brg__run_post_hooks(brg_node *node, brg__hook_range range,
                               brg_tensor **grad_in,
                               brg_tensor *const *grad_out)
{
    if (!node->hooks)
        return BRG_OK;
    size_t n = node->n_edges;
    brg_status status = BRG_OK;
    brg__hook_run run;
    for (brg_hook *h = brg__hook_run_begin(&run, &node->hooks->post, range);
         h && status == BRG_OK; h = brg__hook_run_next(&run)) {
        brg_tensor *seen[MAX_SLOTS];
        memcpy(seen, grad_in, n * sizeof *seen);
        status = ((brg_node_post_hook_fn)h->fn)(seen, n, grad_out,
                                                node->n_slots, h->user);
        BRG_EXPLAIN(status, "a post-hook of %s", brg_node_name(node));
        if (status == BRG_OK)
            status = take_replacements(seen, grad_in, n);
        if (status == BRG_OK)
            memcpy(grad_in, seen, n * sizeof *seen);
    }
    brg__hook_run_end(&run);
    return status;
}

/* ---- The node --------------------------------------------------------------------------- */

/* Hands over the gradients that brg_grad asked for, as tensor hooks left
 * them. */
static void deliver(brg__task *task, uint32_t visit, brg_tensor *const *grads)
{
    for (size_t i = 0; i < task->requests.n; i++) {
        brg__request *asked = &task->requests.at[i];
        if (asked->visit == visit && grads[asked->slot])
            replace(&asked->grad, grads[asked->slot]);
    }
}

/* The place that waits for the gradient of this edge, if the rule may write
 * there: it is the only one of this backward. */
static brg_tensor *home_of(const brg__task *task, const brg__edge *edge)
{
    uint32_t to;
    if (!edge->node || !brg__node_is_accumulate(edge->node) ||
        !brg__map_get(&task->index, edge->node, &to))
        return NULL;
    const brg__visit *visit = &task->visits.at[to];
    bool is_only = visit->is_needed && visit->n_waiting == 1 &&
                   task->buffers.at[visit->first_buffer] == NULL;
    return is_only ? brg__free_home(edge->node, true) : NULL;
}

static void offer_homes(const brg__task *task, const brg_node *node)
{
    if (!node->op || node->hooks || !brg__grad_mode_is_off)
        return;
    for (uint16_t i = 0; i < node->n_edges && i < BRG_MAX_OP_INPUTS; i++) {
        brg_tensor *home = home_of(task, &node->edges[i]);
        if (!home)
            continue;
        brg__offered.homes[i] = home;
        brg__offered.is_open = true;
    }
}

static void withdraw_homes(void)
{
    brg__offered.selected = -1;
    if (!brg__offered.is_open)
        return;
    memset(brg__offered.homes, 0, sizeof brg__offered.homes);
    brg__offered.is_open = false;
}

bool brg__node_is_idle(const brg_node *node, brg_tensor *const *grads)
{
    bool is_idle = !node->cls->wants_undefined;
    for (uint16_t i = 0; is_idle && i < node->n_slots; i++)
        is_idle = grads[i] == NULL;
    return is_idle;
}

static brg_status call_rule(brg_node *node, brg_tensor *const *grads,
                            brg_tensor **grad_in)
{
    if (brg__node_is_idle(node, grads))
        return BRG_OK;
    brg_status status = node->cls->apply(node, grads, grad_in);
    if (status != BRG_OK)
        return brg__error_prefix("backward of %s: ", brg_node_name(node));
    for (uint16_t i = 0; i < node->n_edges; i++) {
        const brg__edge *edge = &node->edges[i];
        if (!grad_in[i] || !edge->node)
            continue;
        brg_vjp_select(i); /* a sum over broadcast dims may make it */
        BRG_TRY(brg__validate_gradient(node, i, &edge->node->slots[edge->slot],
                                       &grad_in[i]));
    }
    return BRG_OK;
}

/* A gradient that lies in a bucket changes when the bucket is reduced: another
 * gradient of the node that shares its memory gets memory of its own. */
static brg_status keep_apart(const brg_node *node, brg_tensor **grad_in)
{
    for (uint16_t i = 0; i < node->n_edges; i++) {
        const brg_node *to = node->edges[i].node;
        if (!to || !grad_in[i] || !brg__node_is_accumulate(to))
            continue;
        const brg_tensor *home = brg__autograd_of(to->leaf)->home;
        if (!home || grad_in[i]->storage != home->storage)
            continue;
        for (uint16_t j = 0; j < node->n_edges; j++)
            if (j != i && grad_in[j] && grad_in[j]->storage == home->storage &&
                !(grad_in[j] = brg_copy(grad_in[j])))
                return brg_error_code();
    }
    return BRG_OK;
}

static brg_status apply_rule(const brg__task *task, brg_node *node,
                             brg_tensor *const *grads, brg_tensor **grad_in)
{
    offer_homes(task, node);
    bool is_open = brg__offered.is_open;
    brg_status status = call_rule(node, grads, grad_in);
    withdraw_homes();
    return status == BRG_OK && is_open ? keep_apart(node, grad_in) : status;
}

static brg_status route(brg__task *task, const brg_node *node,
                        brg_tensor *const *grad_in)
{
    for (uint16_t i = 0; i < node->n_edges; i++) {
        const brg__edge *edge = &node->edges[i];
        uint32_t to;
        if (!edge->node || !brg__task_runs(task, edge->node) ||
            !brg__map_get(&task->index, edge->node, &to))
            continue;
        BRG_TRY(brg__task_add_gradient(task, to, edge->slot, grad_in[i]));
        if (--task->visits.at[to].n_waiting == 0)
            BRG_TRY(brg__ready_push(task, to));
    }
    return BRG_OK;
}

brg_status brg__task_evaluate(brg__task *task, uint32_t visit)
{
    brg_node *node = task->visits.at[visit].node;
    brg_tensor *grads[MAX_SLOTS], *grad_in[MAX_SLOTS];
    memset(grad_in, 0, node->n_edges * sizeof *grad_in);
    brg_tensor **buffers =
        &task->buffers.at[task->visits.at[visit].first_buffer];
    memcpy(grads, buffers, node->n_slots * sizeof *grads);
    memset(buffers, 0, node->n_slots * sizeof *buffers); /* ours now */
    brg_scope *scope = brg_scope_begin();
    brg_status status = scope ? BRG_OK : BRG_ERR_NOMEM;
    if (status == BRG_OK)
        status = run_slot_hooks(node, grads);
    if (status == BRG_OK && task->visits.at[visit].is_wanted)
        deliver(task, visit, grads);
    if (status == BRG_OK && task->visits.at[visit].is_needed) {
        status = brg__run_pre_hooks(node, BRG__ALL_HOOKS, grads);
        if (status == BRG_OK)
            status = apply_rule(task, node, grads, grad_in);
        if (status == BRG_OK)
            status = brg__run_post_hooks(node, BRG__ALL_HOOKS, grad_in, grads);
        if (status == BRG_OK && brg__anomaly_is_on && !brg__is_traced())
            status = brg__anomaly_check(node, grad_in);
        if (!task->is_retained && !brg__node_is_accumulate(node))
            brg__node_free_saved(node); /* leaves are shared by threads */
    }
    if (status == BRG_OK)
        status = route(task, node, grad_in);
    for (uint16_t i = 0; i < node->n_slots; i++)
        brg_release(grads[i]); /* a rule may have passed one on */
    brg_scope_end(scope);
    return status;
}
