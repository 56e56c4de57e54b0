/* SPDX-License-Identifier: Apache-2.0
 * Running an executable: step by step, letting go of each piece of memory after
 * its last use. */
#include <string.h>

#include "compile/relaunch_exec.h"
#include "compile/run_inside.h"
#include "compile/segment.h"
#include "core/base/error.h"
#include "core/base/progress.h"
#include "core/ops/op.h"
#include "core/tensor/shape.h"

#include <brigade/ops.h>

/* ---- Memory -------------------------------------------------------------------------- */

/* The root's tensor of this run; takes over the reference. */
void brg__run_set(brg__root *root, brg_tensor *real)
{
    root->real = real;
    root->storage.data = real->storage ? brg__tensor_ptr(real) : NULL;
}

static brg_status begin(brg__running *r)
{
    brg__exec *exec = r->exec;
    for (size_t k = 0; k < exec->n_roots; k++) {
        brg__root *root = &exec->roots[k];
        root->is_undefined = false;
        root->real = NULL;
        if (root->kind == BRG__ROOT_CONST && root->constant->storage)
            brg__run_set(root, brg_retain(root->constant));
        if (root->kind != BRG__ROOT_INPUT)
            continue;
        brg__run_set(root, r->c->inputs.at[root->input]);
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

void brg__run_let_go(brg__running *r, size_t step)
{
    const brg__exec *exec = r->exec;
    for (int i = exec->first_dying[step]; i < exec->first_dying[step + 1];
         i++) {
        brg__root *root = &exec->roots[exec->dying[i]];
        brg_release(root->real);
        root->real = NULL;
    }
}

static void end(brg__running *r)
{
    for (size_t k = 0; k < r->exec->n_roots; k++) {
        brg_release(r->exec->roots[k].real);
        r->exec->roots[k].real = NULL;
    }
}

/* Its last use is the leaf that it goes to, whole, or on its way there. */
brg_tensor *brg__run_home(const brg__running *r, const brg__root *root)
{
    const brg__exec *exec = r->exec;
    if (!root || root->last < 0 || (exec->again && exec->is_launched))
        return NULL; /* launched again, it would be written each time */
    const brg__ir_node *user = exec->steps[root->last].node;
    if (user->kind == BRG__IR_VALIDATE && exec->ir->is_loose) {
        root = brg__run_root(r, user->first_out);
        if (!root || root->last < 0)
            return NULL;
        user = exec->steps[root->last].node;
    }
    if (user->kind != BRG__IR_ACCUMULATE && user->kind != BRG__IR_LEAF)
        return NULL;
    return brg__free_home(r->task->visits.at[user->visit].node,
                          user->kind == BRG__IR_LEAF);
}

/* The same if it is of the root's sizes. */
static brg_tensor *home_of(const brg__running *r, const brg__root *root)
{
    brg_tensor *home = brg__run_home(r, root);
    if (!home)
        return NULL;
    const brg__ir_node *user = r->exec->steps[root->last].node;
    const brg_tensor *t = &r->exec->values[brg__ir_in(r->exec->ir, user)[0]].t;
    if (t->offset != 0 || !t->is_contiguous || t->dtype != home->dtype ||
        t->numel != home->numel ||
        (size_t)t->numel * brg__tensor_item_size(t) != root->nbytes)
        return NULL;
    return brg__shape_equal(root->layout.ndim, root->layout.shape, home->ndim,
                            home->shape)
               ? home
               : NULL;
}

brg_status brg__run_make(brg__running *r, const brg__ir_node *node)
{
    for (int j = 0; j < node->n_out; j++) {
        brg__root *root = brg__run_root(r, node->first_out + j);
        if (!root || root->kind != BRG__ROOT_HEAP || root->real)
            continue;
        brg_tensor *real, *home = home_of(r, root);
        BRG_TRY(home ? brg__tensor_new_view(&real, &root->layout, home->storage)
                     : brg__tensor_new(&real, &root->layout));
        brg__run_set(root, real);
    }
    return BRG_OK;
}

brg_status brg__run_give(brg__running *r, int id, brg_tensor *t)
{
    brg__root *root = brg__run_root(r, id);
    if (!root)
        return BRG_OK;
    root->is_undefined = t == NULL;
    if (!t)
        return BRG_OK;
    bool is_kept = t->sparse || r->exec->ir->is_loose;
    brg_tensor *real = is_kept ? t : brg_contiguous(t);
    if (!real)
        return brg_error_code();
    brg__run_set(root, brg_retain(real));
    return BRG_OK;
}

/* ---- Steps ---------------------------------------------------------------------------------- */

static brg_status run_step(brg__running *r, size_t at)
{
    brg__step *step = &r->exec->steps[at];
    brg__ir_kind kind = step->node->kind;
    if (kind == BRG__IR_OP || kind == BRG__IR_ADD || kind == BRG__IR_FUSED)
        return brg__run_op(r, step);
    return brg__run_user(r, at);
}

/* A step that makes no tensors needs no scope. It asks for no memory then, so
 * that what follows an optimizer's step does not fail for want of it. */
brg_status brg__run_step(brg__running *r, size_t at)
{
    brg__ir_kind kind = r->exec->steps[at].node->kind;
    if (kind == BRG__IR_EFFECT || kind == BRG__IR_OUTPUT)
        return run_step(r, at);
    if (kind == BRG__IR_FINAL)
        return BRG_OK;
    brg_scope *scope = brg_scope_begin();
    if (!scope)
        return BRG_ERR_NOMEM;
    brg_status status = run_step(r, at);
    brg_scope_end(scope);
    return status;
}

brg_status brg__run_steps(brg__running *r)
{
    for (size_t at = 0; at < r->exec->n_steps; at++) {
        brg_status status = brg__run_step(r, at);
        if (status != BRG_OK)
            return status;
        brg__run_let_go(r, at);
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
static void hold_lists(const brg__running *r,
                       void (*change)(brg__hook_list *list))
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
static void free_traced(const brg__running *r, bool is_run)
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
    brg__running r = {exec, task, c};
    brg_status status = begin(&r);
    free_graph(task, false);
    free_traced(&r, false);
    hold_lists(&r, brg__hook_list_hold);
    if (status == BRG_OK)
        status = brg__exec_again_serves(exec) ? brg__exec_again_run(&r)
                                              : brg__run_steps(&r);
    hold_lists(&r, brg__hook_list_let_go);
    if (status == BRG_OK)
        free_graph(task, true);
    if (status == BRG_OK)
        free_traced(&r, true);
    end(&r);
    return status;
}
