/* SPDX-License-Identifier: Apache-2.0
 * One backward under a ddp: hooks, the end, and failure. See ddp.h. */
#include "core/autograd/engine.h"
#include "core/base/log.h"
#include "reducer/ddp.h"
#include "reducer/leaves.h"
#include "reducer/shard.h"

/* ---- The end of a backward ------------------------------------------------------ */

static void drop_kept(brg_ddp *ddp)
{
    for (size_t k = 0; k < ddp->n_late; k++) {
        brg__ddp_param *p = &ddp->params[ddp->late[k]];
        brg_release(p->kept);
        p->kept = NULL;
    }
    ddp->n_late = 0;
}

/* What the slot holds is the gradient of earlier backwards. It counts in the
 * sum; should no rank turn out to have used the parameter, it has to come
 * back as it was, and an average of equal numbers need not. */
static brg_status keep_slot(brg__ddp_param *p)
{
    if (!p->ddp->reducer->options.allow_unused)
        return BRG_OK;
    brg__layout layout = brg__layout_of(p->view);
    BRG_TRY(brg__tensor_new(&p->kept, &layout));
    return brg__ddp_copy(p->kept, p->view);
}

brg_status brg__ddp_pack(brg__ddp_param *p, brg_tensor *grad)
{
    brg_reducer *r = p->ddp->reducer;
    if (!grad)
        BRG_TRY(brg__device_zero(p->home->device, p->home->storage->data,
                                 r->members[p->index].nbytes));
    if (!grad || grad == p->home)
        return BRG_OK;
    r->stats.n_packed_bytes += r->members[p->index].nbytes;
    return brg__ddp_write(p->home, grad); /* touched when the step ends */
}

brg_status brg__ddp_fill(brg__ddp_param *p, brg_tensor *grad)
{
    brg_reducer *r = p->ddp->reducer;
    BRG_TRY(brg__ddp_pack(p, grad));
    BRG_TRY(brg__ddp_sum_finish(p));
    if (!brg__ddp_is_staged(p))
        return BRG_OK;
    r->stats.n_packed_bytes += r->members[p->index].nbytes;
    return brg__ddp_stage(p, p->home, brg__leaf_home(r, p->index));
}

void brg__ddp_remember_late(brg__ddp_param *p)
{
    p->ddp->late[p->ddp->n_late++] = (uint32_t)p->index;
}

/* A parameter whose hook did not run in this backward. It may have been used
 * in one that only accumulated. */
static brg_status settle_param(brg__ddp_param *p)
{
    brg_tensor *grad = brg_tensor_grad(p->leaf);
    if (brg__has_leaves(p->ddp->reducer))
        return brg__ddp_leaf_settle(p);
    bool has_gradient = grad != NULL || p->has_sum;
    brg__ddp_remember_late(p);
    if (grad == p->view && !p->is_used)
        BRG_TRY(keep_slot(p));
    BRG_TRY(brg__ddp_fill(p, grad));
    return brg__reducer_arrive(p->ddp->reducer, p->index,
                               p->is_used && has_gradient);
}

/* .grad is a tensor of its own: it gets the result, or is made with it. */
static brg_status copy_out(brg__ddp_param *p)
{
    brg_tensor *grad = brg_tensor_grad(p->leaf);
    if (grad)
        return brg__ddp_copy(grad, p->view);
    brg__layout layout = brg__layout_of(p->view);
    BRG_TRY(brg__tensor_new(&grad, &layout));
    brg_status status = brg__ddp_copy(grad, p->view);
    if (status == BRG_OK)
        status = brg_tensor_set_grad(p->leaf, grad);
    brg_release(grad);
    return status;
}

/* Some rank used it: .grad becomes the average. None did: .grad stays. */
static brg_status hand_over(brg__ddp_param *p)
{
    if (p->ddp->reducer->members[p->index].n_used == 0)
        return p->kept ? brg__ddp_copy(p->view, p->kept) : BRG_OK;
    if (p->ddp->options.grads_apart)
        return copy_out(p);
    return brg_tensor_grad(p->leaf) == p->view
               ? BRG_OK
               : brg_tensor_set_grad(p->leaf, p->view);
}

/* Once, when a step has shown the order in which gradients come. */
static brg_status rebuild(brg_ddp *ddp)
{
    /* The first step of a static graph shows no order. Steps are counted alike
     * on every rank. */
    if (!brg__rebuild_is_due(ddp->reducer) ||
        (ddp->options.static_graph && ddp->reducer->stats.n_steps < 2))
        return BRG_OK;
    brg_status status = brg__reducer_rebuild(ddp->reducer);
    for (size_t i = 0; i < ddp->n_params; i++)
        brg__ddp_view_place(&ddp->params[i]);
    return status;
}

/* The step is over, and slots have new contents. */
static void end_params(brg_ddp *ddp)
{
    for (size_t i = 0; i < ddp->n_params; i++) {
        brg__ddp_param *p = &ddp->params[i];
        if (!p->is_written)
            brg_tensor_touch(p->view);
        p->is_used = p->is_written = p->has_sum = false;
    }
}

/* All slots have new contents, perhaps new places. */
brg_status brg__ddp_hand_over_all(brg_ddp *ddp)
{
    bool is_apart = ddp->options.grads_apart;
    for (size_t k = 0; !is_apart && k < ddp->n_late; k++)
        BRG_TRY(hand_over(&ddp->params[ddp->late[k]]));
    for (size_t i = 0; is_apart && i < ddp->n_params; i++)
        BRG_TRY(hand_over(&ddp->params[i]));
    end_params(ddp);
    brg_status own = brg__cargo_unload(ddp); /* of a device; all go on */
    if (own == BRG_OK)
        own = brg__ddp_staged_end(ddp);
    brg__error_record kept;
    brg__error_save(&kept);
    brg_status status = rebuild(ddp);
    if (status == BRG_OK)
        status = brg__ddp_sync_buffers(ddp);
    if (own != BRG_OK)
        brg__error_restore(&kept);
    return own != BRG_OK ? own : status;
}

/* This rank has given up a step that the others take as good: its buffers become
 * what theirs do. */
static void follow_buffers(brg_ddp *ddp)
{
    if (brg__tail_is_late(ddp->reducer) && brg__cargo_unload(ddp) == BRG_OK)
        (void)brg__ddp_sync_buffers(ddp);
}

/* static_graph: the hook of p ran less often than in the first step. */
static brg_status fail_fewer(const brg__ddp_param *p)
{
    const brg_reducer *r = p->ddp->reducer;
    return BRG_FAIL(BRG_ERR_STATE,
                    "rank %d: static_graph: %s got %u gradients in this step, "
                    "%u in the first",
                    r->rank, brg__member_name(r, p->index),
                    p->n_fires - p->n_left, p->n_fires);
}

/* Every parameter that is not there yet. */
static brg_status settle_rest(brg_ddp *ddp)
{
    for (size_t i = 0; i < ddp->n_params; i++) {
        brg__ddp_param *p = &ddp->params[i];
        if (ddp->reducer->members[i].is_ready)
            continue;
        if (ddp->graph == BRG__GRAPH_FIXED && p->n_left > 0)
            return fail_fewer(p);
        BRG_TRY(settle_param(p));
    }
    return BRG_OK;
}

/* The first good step of a static graph says what the others are like. */
static void end_recording(brg_ddp *ddp, bool is_good)
{
    if (ddp->graph != BRG__GRAPH_RECORDING)
        return;
    if (is_good)
        ddp->graph = BRG__GRAPH_FIXED;
    for (size_t i = 0; !is_good && i < ddp->n_params; i++)
        ddp->params[i].n_fires = 0;
}

static brg_status finish(void *user)
{
    brg_ddp *ddp = user;
    brg_reducer *r = ddp->reducer;
    ddp->has_joined = false;
    brg_status status = brg__reducer_close(r);
    if (status == BRG_OK)
        status = settle_rest(ddp);
    if (status != BRG_OK) { /* this rank's own; it must not leave the others */
        brg__error_record kept;
        brg__error_save(&kept);
        if (brg__reducer_give_up(r) == BRG_OK)
            follow_buffers(ddp);
        brg__error_restore(&kept);
    } else if (!brg__leaf_is_last(r)) {
        brg__leaf_next(r);
    } else if ((status = brg__reducer_complete(r)) == BRG_OK) {
        status = brg__ddp_hand_over_all(ddp);
    }
    if (status != BRG_OK)
        end_params(ddp);
    brg__ddp_leaf_place(ddp);
    brg__ddp_note_end(ddp);
    end_recording(ddp, status == BRG_OK);
    drop_kept(ddp);
    return status;
}

/* The backward failed on this rank. The engine keeps its error. */
static void on_failure(void *user)
{
    brg_ddp *ddp = user;
    if (!ddp->has_joined)
        return;
    ddp->has_joined = false;
    brg_status status = brg__reducer_give_up(ddp->reducer);
    if (status == BRG_OK && !ddp->reducer->has_failed)
        (void)brg__ddp_hand_over_all(ddp); /* as the other ranks do */
    else if (status == BRG_OK)
        follow_buffers(ddp);
    end_recording(ddp, status == BRG_OK && !ddp->reducer->has_failed);
    end_params(ddp);
    brg__ddp_leaf_place(ddp);
    brg__ddp_note_end(ddp);
    drop_kept(ddp);
}

/* ---- Hooks ------------------------------------------------------------------------- */

/* static_graph: parameters of which nothing will come are ready at once. */
static brg_status expect_as_before(brg_ddp *ddp)
{
    for (size_t i = 0; i < ddp->n_params; i++)
        ddp->params[i].n_left = ddp->params[i].n_fires;
    for (size_t i = 0; i < ddp->n_params; i++)
        if (ddp->params[i].n_fires == 0) {
            BRG_TRY(brg__reducer_expect(ddp->reducer, i));
            BRG_TRY(settle_param(&ddp->params[i]));
        }
    return BRG_OK;
}

brg_status brg__ddp_join(brg_ddp *ddp)
{
    if (ddp->has_joined)
        return BRG_OK;
    BRG_TRY(brg__reducer_check(ddp->reducer));
    BRG_TRY(brg__shard_check(ddp, "backward"));
    ddp->has_joined = true;
    brg_status status =
        brg__queue_at_end(finish, on_failure, ddp, ddp->reducer->number);
    if (status == BRG_OK && ddp->graph == BRG__GRAPH_FIXED)
        status = expect_as_before(ddp);
    if (status == BRG_OK)
        return BRG_OK;
    brg__error_record kept;
    brg__error_save(&kept);
    on_failure(ddp);
    brg__error_restore(&kept);
    return status;
}

/* .grad, which fits the view, has been copied there. */
static void show_view(const brg__ddp_param *p, brg_tensor *grad)
{
    brg__autograd_of(p->leaf)->grad = brg_retain(p->view);
    brg_release(grad);
}

brg_status brg__ddp_take(brg__ddp_param *p)
{
    brg_tensor *grad = brg__autograd_of(p->leaf)->grad;
    bool has_gradient = grad != NULL || p->has_sum;
    p->is_used |= grad != NULL;
    bool has_leaves = brg__has_leaves(p->ddp->reducer);
    brg__reducer_trace_hook(p->ddp->reducer, p->index,
                            has_leaves ? BRG__ARRIVES_LATER
                            : grad == p->view && !p->has_sum &&
                                    !brg__ddp_is_staged(p)
                                ? BRG__ARRIVES_IN_PLACE
                                : BRG__ARRIVES_COPIED);
    if (has_leaves)
        return brg__ddp_leaf_gradient(p, grad);
    BRG_TRY(brg__reducer_expect(p->ddp->reducer, p->index));
    BRG_TRY(brg__ddp_fill(p, grad));
    if (!grad)
        brg__ddp_remember_late(p);
    else if (grad != p->view && !p->ddp->options.grads_apart)
        show_view(p, grad);
    brg__reducer_take(p->ddp->reducer, p->index, has_gradient);
    return BRG_OK;
}

/* Is this the last gradient of p in this step? Not known while recording. */
static brg_status count(brg__ddp_param *p, bool *is_last)
{
    const brg_reducer *r = p->ddp->reducer;
    *is_last = p->ddp->graph == BRG__GRAPH_FREE;
    if (*is_last)
        return BRG_OK;
    p->is_used |= brg_tensor_grad(p->leaf) != NULL;
    if (p->ddp->graph == BRG__GRAPH_RECORDING) {
        p->n_fires++;
        return BRG_OK;
    }
    if (p->n_left == 0)
        return BRG_FAIL(BRG_ERR_STATE,
                        "rank %d: static_graph: %s got another gradient after "
                        "the %u that it got in the first step",
                        r->rank, brg__member_name(r, p->index), p->n_fires);
    *is_last = --p->n_left == 0;
    return BRG_OK;
}

/* A rank without data: every gradient is zero, and nobody's. */
brg_status brg__ddp_shadow_step(brg_ddp *ddp)
{
    brg_reducer *r = ddp->reducer;
    r->is_shadow = true;
    BRG_TRY(brg__reducer_close(r));
    brg_status status = BRG_OK;
    for (size_t i = 0; i < ddp->n_params; i++) {
        brg__ddp_param *p = &ddp->params[i];
        brg__ddp_remember_late(p);
        p->is_used = false;
        if (brg_tensor_grad(p->leaf) == p->view && keep_slot(p) != BRG_OK)
            brg__log(BRG_LOG_WARN, "reducer",
                     "no memory to keep the gradient of %s, should no rank "
                     "use it",
                     brg__member_name(r, i));
        if (brg__device_zero(r->device, r->members[i].slot,
                             r->members[i].nbytes) != BRG_OK)
            status = brg_error_code();
        /* If a bucket does not start, completing tries again. */
        (void)brg__reducer_arrive(r, i, false);
    }
    brg_status ended = brg__reducer_complete(r);
    status = ended != BRG_OK ? ended : status;
    if (status == BRG_OK)
        status = brg__ddp_hand_over_all(ddp);
    brg__ddp_note_end(ddp);
    drop_kept(ddp);
    return status;
}

brg_status brg__ddp_on_gradient(brg_tensor *leaf, void *param)
{
    brg__ddp_param *p = param;
    brg_reducer *r = p->ddp->reducer;
    if (!p->ddp->is_sync && !brg__has_leaves(r)) {
        p->is_used |= brg_tensor_grad(leaf) != NULL;
        return brg__ddp_sum_add(p);
    }
    BRG_TRY(brg__ddp_join(p->ddp));
    bool is_last;
    BRG_TRY(count(p, &is_last));
    if (!is_last)
        return BRG_OK;
    BRG_TRY(brg__ddp_take(p));
    return brg__reducer_launch(r, r->plan.n_buckets);
}
