/* SPDX-License-Identifier: Apache-2.0
 * Running an executable: step by step, letting go of each piece of memory after
 * its last use. */
#include <string.h>

#include "compile/plan.h"
#include "compile/segment.h"
#include "core/autograd/context.h"
#include "core/base/error.h"
#include "core/base/progress.h"
#include "core/base/tracer.h"
#include "core/ops/convert.h"
#include "core/ops/op.h"
#include "core/tensor/shape.h"

#include <brigade/ops.h>
#include <brigade/sparse.h>

typedef struct run {
    brg__exec *exec;
    brg__task *task;
    brg__collected *c;
} run;

static brg__root *root_of(const run *r, int id)
{
    int root = id == BRG__IR_NONE ? -1 : r->exec->values[id].root;
    return root < 0 ? NULL : &r->exec->roots[root];
}

static bool is_defined(const run *r, int id)
{
    const brg__root *root = root_of(r, id);
    return id != BRG__IR_NONE && (!root || !root->is_undefined);
}

/* ---- Memory -------------------------------------------------------------------------- */

/* The root's tensor of this run; takes over the reference. */
static void set_real(brg__root *root, brg_tensor *real)
{
    root->real = real;
    root->storage.data = real->storage ? brg__tensor_ptr(real) : NULL;
}

static brg_status begin(run *r)
{
    brg__exec *exec = r->exec;
    for (size_t k = 0; k < exec->n_roots; k++) {
        brg__root *root = &exec->roots[k];
        root->is_undefined = false;
        root->real = NULL;
        if (root->kind == BRG__ROOT_CONST && root->constant->storage)
            set_real(root, brg_retain(root->constant));
        if (root->kind != BRG__ROOT_INPUT)
            continue;
        set_real(root, r->c->inputs.at[root->input]);
        r->c->inputs.at[root->input] = NULL; /* the root owns it now */
    }
    /* What no step uses goes at once; the vector ends empty. */
    for (size_t i = 0; i < r->c->inputs.n; i++)
        brg_release(r->c->inputs.at[i]);
    r->c->inputs.n = 0;
    for (size_t k = 0; k < exec->n_roots; k++)
        if (exec->roots[k].kind == BRG__ROOT_INPUT && exec->roots[k].last < 0) {
            brg_release(exec->roots[k].real);
            exec->roots[k].real = NULL;
        }
    return BRG_OK;
}

static void let_go(run *r, size_t step)
{
    const brg__exec *exec = r->exec;
    for (int i = exec->first_dying[step]; i < exec->first_dying[step + 1];
         i++) {
        brg__root *root = &exec->roots[exec->dying[i]];
        brg_release(root->real);
        root->real = NULL;
    }
}

static void end(run *r)
{
    for (size_t k = 0; k < r->exec->n_roots; k++) {
        brg_release(r->exec->roots[k].real);
        r->exec->roots[k].real = NULL;
    }
}

/* Where the gradient that this root holds should lie (see brg__placement): its
 * last use is the leaf that it goes to, whole. */
static brg_tensor *home_of(const run *r, const brg__root *root)
{
    const brg__ir_node *user = r->exec->steps[root->last].node;
    if (user->kind != BRG__IR_ACCUMULATE && user->kind != BRG__IR_LEAF)
        return NULL;
    const brg_node *node = r->task->visits.at[user->visit].node;
    const brg__autograd *a = brg__autograd_of(node->leaf);
    const brg_tensor *t = &r->exec->values[brg__ir_in(r->exec->ir, user)[0]].t;
    brg_tensor *home = a->home;
    bool is_seen = user->kind == BRG__IR_LEAF && a->hooks.first;
    if (!home || a->grad || node->hooks || is_seen || !home->is_contiguous ||
        t->offset != 0 || !t->is_contiguous || t->dtype != home->dtype ||
        t->numel != home->numel ||
        (size_t)t->numel * brg__tensor_item_size(t) != root->nbytes)
        return NULL;
    return brg__shape_equal(root->layout.ndim, root->layout.shape, home->ndim,
                            home->shape)
               ? home
               : NULL;
}

static brg_status make_outputs(run *r, const brg__ir_node *node)
{
    for (int j = 0; j < node->n_out; j++) {
        brg__root *root = root_of(r, node->first_out + j);
        if (!root || root->kind != BRG__ROOT_HEAP || root->real)
            continue;
        brg_tensor *real, *home = home_of(r, root);
        BRG_TRY(home ? brg__tensor_new_view(&real, &root->layout, home->storage)
                     : brg__tensor_new(&real, &root->layout));
        set_real(root, real);
    }
    return BRG_OK;
}

/* ---- Values for user code --------------------------------------------------------------- */

/* The value as a tensor of its own, owned; NULL if it is undefined. The root's
 * own tensor is handed over if this is its last use. */
static brg_status take(run *r, int id, bool is_last, brg_tensor **out)
{
    *out = NULL;
    if (!is_defined(r, id))
        return BRG_OK;
    const brg_tensor *t = &r->exec->values[id].t;
    brg__root *root = root_of(r, id);
    brg_tensor *real = root->real;
    bool is_whole =
        real->sparse || r->exec->ir->is_loose ||
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

/* A result of user code becomes its root's tensor, row-major. A sparse one stays
 * as it is: hooks and leaves take it, ops and sums refuse it. */
static brg_status give(run *r, int id, brg_tensor *t)
{
    brg__root *root = root_of(r, id);
    if (!root)
        return BRG_OK;
    root->is_undefined = t == NULL;
    if (!t)
        return BRG_OK;
    bool is_kept = t->sparse || r->exec->ir->is_loose;
    brg_tensor *real = is_kept ? t : brg_contiguous(t);
    if (!real)
        return brg_error_code();
    set_real(root, brg_retain(real));
    return BRG_OK;
}

static void release_all(brg_tensor **tensors, int n)
{
    for (int i = 0; i < n; i++)
        brg_release(tensors[i]);
}

/* Operand i is the last use of its root: this is the last step that uses it,
 * and no operand after this one does. */
static bool is_last_use(const run *r, const brg__ir_node *node, int i,
                        size_t step)
{
    const int *in = brg__ir_in(r->exec->ir, node);
    const brg__root *root = root_of(r, in[i]);
    if (!root || root->last != (int)step)
        return false;
    for (int k = i + 1; k < node->n_in; k++)
        if (root_of(r, in[k]) == root)
            return false;
    return true;
}

static brg_status take_all(run *r, const brg__ir_node *node, size_t step,
                           brg_tensor **taken)
{
    memset(taken, 0, (size_t)node->n_in * sizeof *taken);
    for (int i = 0; i < node->n_in; i++)
        BRG_TRY(take(r, brg__ir_in(r->exec->ir, node)[i],
                     is_last_use(r, node, i, step), &taken[i]));
    return BRG_OK;
}

/* ---- Steps ---------------------------------------------------------------------------------- */

static brg_status check_dense(const run *r, const brg__ir_node *node)
{
    for (int i = 0; i < node->n_in; i++) {
        const brg__root *root = root_of(r, brg__ir_in(r->exec->ir, node)[i]);
        if (root && root->real && root->real->sparse)
            return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                            "a compiled backward takes sparse gradients of "
                            "custom functions straight to leaves only");
    }
    return BRG_OK;
}

/* Random numbers: drawn now, or those that were drawn. */
static void set_attrs(run *r, brg__step *step)
{
    const brg__ir_node *node = step->node;
    if (node->lifted != BRG__IR_NONE) {
        const brg_node *from = r->task->visits.at[node->lifted].node;
        step->attrs = *brg__segment_attrs(from, node->draw);
    } else if (node->draw) {
        brg_attrs *drawn = &r->exec->io->draws[node->draw - 1];
        if (node->is_drawing) {
            *drawn = node->attrs;
            brg__dropout_redraw(drawn, step->call.out[0]->numel);
        }
        step->attrs = *drawn;
    }
}

static void touch_given(const run *r, const brg__ir_node *node)
{
    for (int i = 0; i < node->n_in; i++) {
        const brg__root *root = root_of(r, brg__ir_in(r->exec->ir, node)[i]);
        if (root &&
            (root->kind == BRG__ROOT_CONST || root->kind == BRG__ROOT_INPUT))
            brg_tensor_touch(root->real);
    }
}

static brg_status run_op(run *r, brg__step *step)
{
    const brg__ir_node *node = step->node;
    bool is_missing = false;
    for (int i = 0; i < node->n_in; i++) {
        int id = brg__ir_in(r->exec->ir, node)[i];
        is_missing |= id != BRG__IR_NONE && !is_defined(r, id);
    }
    for (int j = 0; is_missing && j < node->n_out; j++) {
        brg__root *root = root_of(r, node->first_out + j);
        if (root && !step->is_view)
            root->is_undefined = true;
    }
    if (is_missing)
        return BRG_OK;
    BRG_TRY(check_dense(r, node));
    if (step->is_view)
        return BRG_OK;
    BRG_TRY(make_outputs(r, node));
    set_attrs(r, step);
    BRG_TRY(step->call.op->run[BRG_DEVICE_CPU](&step->call));
    if (node->op->flags & BRG_OP_IMPURE) /* it may have changed tensors */
        touch_given(r, node);
    return BRG_OK;
}

/* Fan-in: the sum, or the one that is there. */
static brg_status run_add(run *r, const brg__ir_node *node)
{
    const int *in = brg__ir_in(r->exec->ir, node);
    bool a = is_defined(r, in[0]), b = is_defined(r, in[1]);
    root_of(r, node->first_out)->is_undefined = !a && !b;
    if (!a && !b)
        return BRG_OK;
    BRG_TRY(check_dense(r, node));
    BRG_TRY(make_outputs(r, node));
    brg__value *values = r->exec->values;
    const brg_op *op = a && b ? &brg__op_add : &brg__op_copy;
    brg_tensor *operands[2] = {&values[a ? in[0] : in[1]].t, &values[in[1]].t};
    static const brg_attrs none;
    brg_op_call call = {.op = op,
                        .n_in = a && b ? 2 : 1,
                        .n_out = 1,
                        .in = operands,
                        .attrs = &none};
    call.out[0] = &values[node->first_out].t;
    return op->run[BRG_DEVICE_CPU](&call);
}

/* ---- Loose plans: ops as the engine would call them ------------------------------------------- */

/* Its tensor of this run, borrowed; one that is a shape only, as it is. */
static brg_tensor *loose_operand(const run *r, int id)
{
    if (id == BRG__IR_NONE || !is_defined(r, id))
        return NULL;
    const brg__root *root = root_of(r, id);
    return root ? root->real : &r->exec->values[id].t;
}

static brg_status run_op_loose(run *r, brg__step *step)
{
    const brg__ir_node *node = step->node;
    brg_tensor *in[BRG_MAX_OP_INPUTS], *out[BRG_MAX_OP_OUTPUTS] = {0};
    bool is_missing = false;
    for (int i = 0; i < node->n_in; i++) {
        int id = brg__ir_in(r->exec->ir, node)[i];
        in[i] = loose_operand(r, id);
        is_missing |= id != BRG__IR_NONE && !in[i];
    }
    if (!is_missing) {
        set_attrs(r, step);
        BRG_TRY(brg_op_apply(node->op, node->n_in, in, &step->attrs, out));
    }
    for (int j = 0; j < node->n_out; j++)
        BRG_TRY(give(r, node->first_out + j, out[j]));
    return BRG_OK;
}

static brg_status run_add_loose(run *r, const brg__ir_node *node)
{
    const int *in = brg__ir_in(r->exec->ir, node);
    brg_tensor *a = loose_operand(r, in[0]), *b = loose_operand(r, in[1]);
    brg_tensor *sum = a && b ? brg_sparse_add(a, b) : (a ? a : b);
    if (a && b && !sum)
        return brg_error_code();
    return give(r, node->first_out, sum);
}

/* ---- Groups that do not run as one: undefined operands, other sizes --------------------------- */

static brg_status run_one(const brg__group_op *op, brg_tensor **in,
                          brg_tensor **out)
{
    int n = 0;
    for (int i = 0; i < op->n_in; i++)
        n += in[i] != NULL;
    *out = NULL;
    if (op->is_fan_in && n == 1)
        *out = in[0] ? in[0] : in[1];
    if (n < op->n_in)
        return BRG_OK;
    brg_op_call call = {.op = op->op,
                        .n_in = op->n_in,
                        .n_out = 1,
                        .in = in,
                        .attrs = &op->attrs};
    BRG_TRY(op->op->infer(&call));
    brg__layout layout = {.dtype = call.info[0].dtype,
                          .ndim = call.info[0].ndim};
    memcpy(layout.shape, call.info[0].shape, sizeof layout.shape);
    brg__shape_strides(layout.ndim, layout.shape, layout.stride);
    BRG_TRY(brg__tensor_new(&call.out[0], &layout));
    if (!brg__scope_adopt(call.out[0]))
        return brg_error_code();
    *out = call.out[0];
    return op->op->run[BRG_DEVICE_CPU](&call);
}

static brg_status run_unfused(run *r, const brg__step *step)
{
    const brg__ir_node *node = step->node;
    const brg__group *g = r->exec->ir->groups.at[node->group];
    brg_tensor *value[BRG__GROUP_MAX_IN + BRG__GROUP_MAX_OPS];
    for (int i = 0; i < g->n_in; i++)
        value[i] = is_defined(r, brg__ir_in(r->exec->ir, node)[i]) ? step->in[i]
                                                                   : NULL;
    for (int k = 0; k < g->n_ops; k++) {
        brg_tensor *in[BRG__GROUP_OP_MAX_IN];
        for (int i = 0; i < g->ops[k].n_in; i++)
            in[i] = value[g->ops[k].in[i]];
        BRG_TRY(run_one(&g->ops[k], in, &value[g->n_in + k]));
        if (g->ops[k].out == BRG__GROUP_NONE)
            continue;
        brg_tensor *made = value[g->n_in + k];
        int id = node->first_out + g->ops[k].out;
        root_of(r, id)->is_undefined = !made;
        if (made && made->numel > 0)
            brg__copy_strided(&r->exec->values[id].t, made);
    }
    return BRG_OK;
}

static brg_status run_fused(run *r, brg__step *step)
{
    const brg__ir_node *node = step->node;
    bool is_missing = false;
    for (int i = 0; i < node->n_in; i++)
        is_missing |= !is_defined(r, brg__ir_in(r->exec->ir, node)[i]);
    BRG_TRY(check_dense(r, node));
    BRG_TRY(make_outputs(r, node));
    if (is_missing || !step->fused)
        return run_unfused(r, step);
    brg__fused_run(step->fused, step->in, step->out, r->exec->workspace);
    return BRG_OK;
}

static brg_status call_node(run *r, brg_node *node, brg_tensor **grads,
                            brg_tensor **grad_in)
{
    bool is_undefined = !node->cls->wants_undefined;
    for (uint16_t j = 0; is_undefined && j < node->n_slots; j++)
        is_undefined = grads[j] == NULL;
    if (is_undefined)
        return BRG_OK;
    brg_status status = node->cls->apply(node, grads, grad_in);
    if (status != BRG_OK)
        return brg__error_prefix("backward of %s: ", brg_node_name(node));
    for (uint16_t i = 0; i < node->n_edges; i++) {
        const brg__edge *edge = &node->edges[i];
        if (grad_in[i] && edge->node)
            BRG_TRY(brg__validate_gradient(
                node, i, &edge->node->slots[edge->slot], &grad_in[i]));
    }
    if (!r->task->is_retained)
        brg__node_free_saved(node);
    return BRG_OK;
}

/* What the unpack hook gives back, borrowed from the scope. */
static brg_status unpack(run *r, const brg__ir_node *node, brg_tensor **out)
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
static brg_status run_region(const run *r, const brg__ir_node *node,
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
static bool is_for_hooks(const run *r, size_t at)
{
    const brg__ir_node *node = r->exec->steps[at].node;
    const brg__root *root = root_of(r, brg__ir_in(r->exec->ir, node)[0]);
    if (!root || root->last == (int)at)
        return false;
    for (size_t k = at + 1; k <= (size_t)root->last; k++) {
        const brg__ir_node *user = r->exec->steps[k].node;
        if (user->kind == BRG__IR_POST_HOOKS && user->visit == node->visit)
            continue;
        for (int i = 0; i < user->n_in; i++)
            if (root_of(r, brg__ir_in(r->exec->ir, user)[i]) == root)
                return false;
    }
    return true;
}

/* A step of a reduction that another room carries out. */
static brg_status run_reduction(const run *r, const brg__ir_node *node)
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
static brg_status run_on_leaf(const run *r, size_t at, brg_tensor **t,
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
static brg_status run_of_function(run *r, const brg__ir_node *node,
                                  brg_tensor *const *t, brg_tensor **made)
{
    if (node->kind == BRG__IR_REGION)
        return run_region(r, node, t, made);
    if (node->kind == BRG__IR_EFFECT)
        return node->effect->run(node->effect, t[0]);
    r->exec->io->outputs[node->slot] = brg_retain(t[0]);
    return BRG_OK;
}

/* Everything that is no op: with tensors of their own in `t`. */
static brg_status run_special(run *r, size_t at, brg_tensor **t)
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
        status = unpack(r, node, made);
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
        brg_release(r->task->captures.at[node->slot].grad);
        r->task->captures.at[node->slot].grad = brg_retain(t[0]);
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
    case BRG__IR_CALL:
        status = call_node(r, owner, t, made);
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
        break; /* elsewhere */
    }
    for (int j = 0; status == BRG_OK && j < node->n_out; j++)
        status = give(r, node->first_out + j, results[j]);
    if (status == BRG_OK && r->exec->steps[at].frees_saved &&
        !r->task->is_retained)
        brg__node_free_saved(owner);
    return status;
}

static brg_status run_step(run *r, size_t at)
{
    brg__step *step = &r->exec->steps[at];
    const brg__ir_node *node = step->node;
    bool is_loose = r->exec->ir->is_loose;
    if (node->kind == BRG__IR_OP)
        return is_loose ? run_op_loose(r, step) : run_op(r, step);
    if (node->kind == BRG__IR_ADD)
        return is_loose ? run_add_loose(r, node) : run_add(r, node);
    if (node->kind == BRG__IR_FUSED)
        return run_fused(r, step);
    if (brg__ir_is_reduction(node))
        return run_reduction(r, node);
    brg_tensor *taken[BRG__IR_MAX_IN];
    brg_status status = take_all(r, node, at, taken);
    if (status == BRG_OK)
        status = run_special(r, at, taken);
    release_all(taken, node->n_in);
    return status;
}

/* A step that makes no tensors needs no scope. It asks for no memory then, so
 * that what follows an optimizer's step does not fail for want of it. */
static brg_status run_in_scope(run *r, size_t at)
{
    brg__ir_kind kind = r->exec->steps[at].node->kind;
    if (kind == BRG__IR_EFFECT || kind == BRG__IR_OUTPUT)
        return run_step(r, at);
    brg_scope *scope = brg_scope_begin();
    if (!scope)
        return BRG_ERR_NOMEM;
    brg_status status = run_step(r, at);
    brg_scope_end(scope);
    return status;
}

static brg_status run_steps(run *r)
{
    for (size_t at = 0; at < r->exec->n_steps; at++) {
        brg_status status = run_in_scope(r, at);
        if (status != BRG_OK)
            return status;
        let_go(r, at);
        brg__progress_poll();
    }
    return BRG_OK;
}

static bool is_packed(const brg_node *node)
{
    for (uint16_t k = 0; k < node->n_saved; k++)
        if (node->saved[k].pack)
            return true;
    return false;
}

/* From here on only the run holds what the graph saved, but for what hooks
 * packed: a node keeps that until it is unpacked. */
static void free_graph(brg__task *task, bool is_run)
{
    for (size_t i = 0; i < task->buffers.n; i++) {
        brg_release(task->buffers.at[i]);
        task->buffers.at[i] = NULL;
    }
    for (size_t i = 0; i < task->visits.n && !task->is_retained; i++) {
        const brg__visit *visit = &task->visits.at[i];
        if (visit->is_needed && brg__segment_frees(visit->node) &&
            (is_run || !is_packed(visit->node)))
            brg__node_free_saved(visit->node);
    }
}

/* While only some of a list's hooks are steps, their positions must stay. */
static void hold_lists(const run *r, void (*change)(brg__hook_list *list))
{
    if (!r->exec->ir->has_ranges)
        return;
    for (size_t at = 0; at < r->exec->n_steps; at++) {
        const brg__ir_node *node = r->exec->steps[at].node;
        if (node->hooks.n == 0 || node->hooks.n == UINT32_MAX)
            continue;
        brg_node *owner = r->task->visits.at[node->visit].node;
        if (node->kind == BRG__IR_POST_ACCUMULATE)
            change(&brg__autograd_of(owner->leaf)->post_accumulate);
        else if (node->kind == BRG__IR_TENSOR_HOOKS)
            change(brg__tensor_hooks_of(owner));
        else
            change(node->kind == BRG__IR_PRE_HOOKS ? &owner->hooks->pre
                                                   : &owner->hooks->post);
    }
}

/* Functions whose ops are in the plan. */
static void free_traced(const run *r, bool is_run)
{
    for (size_t i = 0; i < r->exec->ir->traced.n && !r->task->is_retained;
         i++) {
        brg_node *node = r->task->visits.at[r->exec->ir->traced.at[i]].node;
        if (is_run || !is_packed(node))
            brg__node_free_saved(node);
    }
}

brg_status brg__exec_run(brg__exec *exec, brg__task *task, brg__collected *c)
{
    run r = {exec, task, c};
    brg_status status = begin(&r);
    free_graph(task, false);
    free_traced(&r, false);
    hold_lists(&r, brg__hook_list_hold);
    if (status == BRG_OK)
        status = run_steps(&r);
    hold_lists(&r, brg__hook_list_let_go);
    if (status == BRG_OK)
        free_graph(task, true);
    if (status == BRG_OK)
        free_traced(&r, true);
    end(&r);
    return status;
}
