/* SPDX-License-Identifier: Apache-2.0
 * Steps that belong to the graph of the run: hooks, custom functions, leaves,
 * reductions; they get tensors of their own. */
#include <string.h>

#include "compile/run_inside.h"
#include "core/autograd/context.h"
#include "core/base/error.h"
#include "core/base/tracer.h"
#include "core/tensor/shape.h"

#include <brigade/ops.h>

/* ---- Values as tensors ------------------------------------------------------------------ */

/* The value as a tensor of its own, owned; NULL if it is undefined. The root's
 * own tensor is handed over if this is its last use. */
static brg_status take(brg__running *r, int id, bool is_last, brg_tensor **out)
{
    *out = NULL;
    if (!brg__run_has(r, id))
        return BRG_OK;
    const brg_tensor *t = &r->exec->values[id].t;
    brg__root *root = brg__run_root(r, id);
    brg_tensor *real = root->real;
    int made = brg__ir_maker(r->exec->ir, id);
    bool is_whole =
        real->sparse || r->exec->ir->is_loose ||
        (made != BRG__IR_NONE && /* not validated yet */
         r->exec->ir->nodes.at[made].kind == BRG__IR_CALL) ||
        (t->offset == 0 &&
         brg__shape_equal(t->ndim, t->shape, real->ndim, real->shape) &&
         memcmp(t->stride, real->stride, t->ndim * sizeof *t->stride) == 0);
    if (is_whole) {
        *out = is_last ? real : brg_retain(real);
        if (is_last)
            root->real = NULL;
        return BRG_OK;
    }
    brg__layout layout = brg__layout_of(t);
    layout.offset += real->offset;
    return brg__tensor_new_view(out, &layout, real->storage);
}

static void release_all(brg_tensor **tensors, int n)
{
    for (int i = 0; i < n; i++)
        brg_release(tensors[i]);
}

/* Operand i is the last use of its root: this is the last step that uses it,
 * and no operand after this one does. */
static bool is_last_use(const brg__running *r, const brg__ir_node *node, int i,
                        size_t step)
{
    const int *in = brg__ir_in(r->exec->ir, node);
    const brg__root *root = brg__run_root(r, in[i]);
    if (!root || root->last != (int)step)
        return false;
    for (int k = i + 1; k < node->n_in; k++)
        if (brg__run_root(r, in[k]) == root)
            return false;
    return true;
}

static brg_status take_all(brg__running *r, const brg__ir_node *node,
                           size_t step, brg_tensor **taken)
{
    memset(taken, 0, (size_t)node->n_in * sizeof *taken);
    for (int i = 0; i < node->n_in; i++)
        BRG_TRY(take(r, brg__ir_in(r->exec->ir, node)[i],
                     is_last_use(r, node, i, step), &taken[i]));
    return BRG_OK;
}

/* ---- Steps ---------------------------------------------------------------------------------- */

static brg_status call_node(brg__running *r, brg_node *node, brg_tensor **grads,
                            brg_tensor **grad_in)
{
    if (brg__node_is_idle(node, grads))
        return BRG_OK;
    brg_status status = node->cls->apply(node, grads, grad_in);
    if (status != BRG_OK)
        return brg__error_prefix("backward of %s: ", brg_node_name(node));
    if (!r->task->is_retained)
        brg__node_free_saved(node);
    return BRG_OK;
}

/* What the engine does with a gradient before it goes on its way. */
static brg_status validate(const brg__ir_node *node, const brg_node *owner,
                           brg_tensor *grad, brg_tensor **out)
{
    const brg__edge *edge = &owner->edges[node->slot];
    *out = grad;
    if (!grad)
        return BRG_OK;
    return brg__validate_gradient(owner, (size_t)node->slot,
                                  &edge->node->slots[edge->slot], out);
}

/* What the unpack hook gives back, borrowed from the scope. */
static brg_status unpack(brg__running *r, const brg__ir_node *node,
                         brg_tensor **out)
{
    brg_node *owner = r->task->visits.at[node->visit].node;
    const brg_tensor *t = &r->exec->values[node->first_out].t;
    BRG_TRY(brg__saved_get(owner, &owner->saved[node->slot], out));
    const brg_tensor *got = *out;
    if (!brg__shape_equal(got->ndim, got->shape, t->ndim, t->shape) ||
        got->dtype != t->dtype || got->sparse)
        return BRG_FAIL(BRG_ERR_CALLBACK,
                        "a saved tensor unpack hook of %s gave back another "
                        "shape or dtype than was packed",
                        brg_node_name(owner));
    return BRG_OK;
}

/* A branch or loop; its results are what they were seen to be. */
static brg_status run_region(const brg__running *r, const brg__ir_node *node,
                             brg_tensor *const *in, brg_tensor **out)
{
    BRG_TRY(node->region->run(node->region, in, out));
    for (int j = 0; j < node->n_out; j++) {
        const brg_tensor *want = &r->exec->values[node->first_out + j].t;
        char a[BRG_TENSOR_TEXT_MAX], b[BRG_TENSOR_TEXT_MAX];
        if (out[j]->dtype != want->dtype ||
            !brg__shape_equal(out[j]->ndim, out[j]->shape, want->ndim,
                              want->shape))
            return BRG_FAIL(BRG_ERR_CALLBACK,
                            "%s: result %d is %s, it was captured as %s",
                            node->region->name, j, brg__tensor_text(out[j], a),
                            brg__tensor_text(want, b));
    }
    return BRG_OK;
}

/* What the engine does when a gradient arrives at a leaf. */
static brg_status run_leaf(brg_node *leaf, brg_tensor **grad)
{
    BRG_TRY(brg__run_tensor_hooks(leaf, 0, BRG__ALL_HOOKS, grad));
    BRG_TRY(brg__run_pre_hooks(leaf, BRG__ALL_HOOKS, grad));
    BRG_TRY(leaf->cls->apply(leaf, grad, NULL));
    return brg__run_post_hooks(leaf, BRG__ALL_HOOKS, NULL, grad);
}

/* The gradient that this step accumulates is kept only for the leaf's own
 * post-hooks, which see it as it is. */
static bool is_for_hooks(const brg__running *r, size_t at)
{
    const brg__ir_node *node = r->exec->steps[at].node;
    const brg__root *root = brg__run_root(r, brg__ir_in(r->exec->ir, node)[0]);
    if (!root || root->last == (int)at)
        return false;
    for (size_t k = at + 1; k <= (size_t)root->last; k++) {
        const brg__ir_node *user = r->exec->steps[k].node;
        if (user->kind == BRG__IR_POST_HOOKS && user->visit == node->visit)
            continue;
        for (int i = 0; i < user->n_in; i++)
            if (brg__run_root(r, brg__ir_in(r->exec->ir, user)[i]) == root)
                return false;
    }
    return true;
}

/* A step of a reduction that another room carries out. */
static brg_status run_reduction(const brg__running *r, const brg__ir_node *node)
{
    const brg__reduction *to = &r->c->reductions.at[node->bucket.reduction];
    size_t member = (size_t)node->slot, bucket = (size_t)node->bucket.number;
    if (node->kind == BRG__IR_PACK)
        return to->ops->pack(to->self, member);
    if (node->kind == BRG__IR_START)
        return to->ops->start(to->self, bucket);
    if (node->kind == BRG__IR_WAIT)
        return to->ops->wait(to->self, bucket);
    return to->ops->write_back(to->self, member);
}

/* A step of a leaf, which is no hook of its gradient. */
static brg_status run_on_leaf(const brg__running *r, size_t at, brg_tensor **t,
                              brg_tensor **made)
{
    const brg__ir_node *node = r->exec->steps[at].node;
    brg_node *owner = r->task->visits.at[node->visit].node;
    switch ((int)node->kind) {
    case BRG__IR_ACCUMULATE:
        return brg__accumulate(owner, t[0], 1 + is_for_hooks(r, at));
    case BRG__IR_POST_ACCUMULATE:
        return brg__run_post_accumulate(owner->leaf, node->hooks);
    case BRG__IR_GRAD:
        made[0] = brg_tensor_grad(owner->leaf);
        return BRG_OK;
    case BRG__IR_SET_GRAD:
        return t[0] ? brg_tensor_set_grad(owner->leaf, t[0]) : BRG_OK;
    default: /* LEAF */
        return run_leaf(owner, &t[0]);
    }
}

/* What only captured functions have. */
static brg_status run_of_function(brg__running *r, const brg__ir_node *node,
                                  brg_tensor *const *t, brg_tensor **made)
{
    if (node->kind == BRG__IR_REGION)
        return run_region(r, node, t, made);
    if (node->kind == BRG__IR_EFFECT)
        return node->effect->run(node->effect, t[0]);
    r->exec->io->outputs[node->slot] = brg_retain(t[0]);
    return BRG_OK;
}

/* What a node of the graph does itself. */
static brg_status run_of_node(brg__running *r, const brg__ir_node *node,
                              brg_node *owner, brg_tensor **t,
                              brg_tensor **made)
{
    if (node->kind == BRG__IR_UNPACK)
        return unpack(r, node, made);
    if (node->kind == BRG__IR_VALIDATE)
        return validate(node, owner, t[0], made);
    return call_node(r, owner, t, made);
}

/* Everything that is no op: with tensors of their own in `t`. */
static brg_status run_special(brg__running *r, size_t at, brg_tensor **t)
{
    const brg__ir_node *node = r->exec->steps[at].node;
    brg_node *owner = node->visit == BRG__IR_NONE
                          ? NULL
                          : r->task->visits.at[node->visit].node;
    brg_tensor *made[BRG__IR_MAX_OUT] = {0};
    brg_tensor **results = t;
    brg_status status = BRG_OK;
    switch (node->kind) {
    case BRG__IR_UNPACK:
    case BRG__IR_CALL:
    case BRG__IR_VALIDATE:
        status = run_of_node(r, node, owner, t, made);
        results = made;
        break;
    case BRG__IR_TENSOR_HOOKS:
        status = brg__run_tensor_hooks(owner, (uint32_t)node->slot, node->hooks,
                                       &t[0]);
        break;
    case BRG__IR_RETAIN:
        status = brg__run_retain_writes(owner, (uint32_t)node->slot, t[0]);
        break;
    case BRG__IR_DELIVER:
        brg_release(r->task->requests.at[node->slot].grad);
        r->task->requests.at[node->slot].grad = brg_retain(t[0]);
        break;
    case BRG__IR_PRE_HOOKS:
        status = brg__run_pre_hooks(owner, node->hooks, t);
        break;
    case BRG__IR_POST_HOOKS:
        memcpy(made, t, owner->n_edges * sizeof *made);
        status =
            brg__run_post_hooks(owner, node->hooks, made, t + owner->n_edges);
        results = made;
        break;
    case BRG__IR_ACCUMULATE:
    case BRG__IR_POST_ACCUMULATE:
    case BRG__IR_GRAD:
    case BRG__IR_SET_GRAD:
    case BRG__IR_LEAF:
        status = run_on_leaf(r, at, t, made);
        results = made;
        break;
    case BRG__IR_REGION:
    case BRG__IR_EFFECT:
    case BRG__IR_OUTPUT:
        status = run_of_function(r, node, t, made);
        results = made;
        break;
    case BRG__IR_OP:
    case BRG__IR_ADD:
    case BRG__IR_FUSED:
    case BRG__IR_PACK:
    case BRG__IR_START:
    case BRG__IR_WAIT:
    case BRG__IR_WRITE_BACK:
    case BRG__IR_FINAL:
        break; /* elsewhere */
    }
    for (int j = 0; status == BRG_OK && j < node->n_out; j++)
        status = brg__run_give(r, node->first_out + j, results[j]);
    if (status == BRG_OK && r->exec->steps[at].frees_saved &&
        !r->task->is_retained)
        brg__node_free_saved(owner);
    return status;
}

brg_status brg__run_user(brg__running *r, size_t at)
{
    const brg__ir_node *node = r->exec->steps[at].node;
    if (brg__ir_is_reduction(node))
        return run_reduction(r, node);
    if (r->exec->steps[at].is_view)
        return BRG_OK;
    brg_tensor *taken[BRG__IR_MAX_IN];
    brg_status status = take_all(r, node, at, taken);
    if (status == BRG_OK)
        status = run_special(r, at, taken);
    release_all(taken, node->n_in);
    return status;
}
