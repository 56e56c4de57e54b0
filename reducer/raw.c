/* SPDX-License-Identifier: Apache-2.0
 * The reducer's front end for buffers of the user's.
 *
 * One thread owns the reducer: it starts buckets, polls and waits. What other
 * threads mark goes through the inbox. With results that are handed out bucket
 * by bucket, a bucket's gradients are copied back, and the user is told, while
 * later buckets are still on their way. */
#include <pthread.h>
#include <string.h>

#include "core/base/progress.h"
#include "core/base/tracer.h"
#include "core/base/text.h"
#include "reducer/guard.h"
#include "reducer/leaves.h"

/* Differs between threads that run. */
static uintptr_t this_thread(void)
{
    return (uintptr_t)pthread_self(); /* cheaper than a thread's variable */
}

static void set_owner(brg_reducer *r)
{
    atomic_store_explicit(&r->owner, this_thread(), memory_order_relaxed);
}

/* Other threads ask this while the owner polls; whoever asks knows for sure
 * only that it is the owner itself, which is all that counts. */
static bool is_owner(const brg_reducer *r)
{
    return atomic_load_explicit(&r->owner, memory_order_relaxed) ==
           this_thread();
}

void brg__raw_init(brg_reducer *r)
{
    set_owner(r);
}

static brg_status check_raw(const brg_reducer *r, const char *what)
{
    BRG_CHECK_ARG(r, "%s: the reducer is NULL", what);
    if (r->is_inner)
        return BRG_FAIL(BRG_ERR_STATE,
                        "%s: this reducer belongs to a brg_ddp, which drives "
                        "it",
                        what);
    return BRG_OK;
}

static brg_status check_index(const brg_reducer *r, size_t i, const char *what)
{
    BRG_TRY(check_raw(r, what));
    BRG_CHECK_ARG(i < r->n_params,
                  "rank %d: %s: there is no parameter %zu; the reducer has "
                  "%zu",
                  r->rank, what, i, r->n_params);
    return BRG_OK;
}

/* The same for what only the owner may do: this thread is it from now on. */
static brg_status own(brg_reducer *r, const char *what)
{
    BRG_TRY(check_raw(r, what));
    BRG_TRY(brg__tracer_outside(what));
    set_owner(r);
    return brg__reducer_check(r);
}

/* ---- Marks ------------------------------------------------------------------ */

/* This thread marks i, and nobody else does. */
static brg_status claim(brg_reducer *r, size_t i)
{
    BRG_TRY(brg__guard_buffer(r, i));
    return brg__inbox_claim(&r->inbox, i) ? BRG_OK
                                          : brg__reducer_fail_twice(r, i);
}

/* What the device's queue gets from now on comes behind `event`, if not NULL. */
static brg_status await_event(const brg_reducer *r, size_t i, void *event)
{
    const brg_device device = r->members[i].device;
    const brg_device_vtable *table;
    if (!event)
        return BRG_OK;
    BRG_TRY(brg__device_find(device, &table));
    return table->event_wait(device, event);
}

/* From a device to the host: waits for its queue, and hears what its kernels
 * found wrong. One thread at a time may, so it is the owner that does. */
static bool is_staged(const brg_reducer *r, size_t i)
{
    return r->members[i].grad && r->members[i].device.type != r->device.type;
}

static brg_status copy_in(const brg_reducer *r, size_t i)
{
    const brg__member *m = &r->members[i];
    return m->grad ? brg__device_copy(r->device, brg__leaf_home(r, i),
                                      m->device, m->grad, m->nbytes)
                   : BRG_OK;
}

static brg_status pack(const brg_reducer *r, size_t i, void *event)
{
    BRG_TRY(await_event(r, i, event));
    return copy_in(r, i);
}

/* The thread that marked it has the error itself. */
static void fail_from_afar(brg_reducer *r, size_t i)
{
    (void)BRG_FAIL(BRG_ERR_DEVICE,
                   "rank %d: %s: the mark of another thread failed, so its "
                   "gradient is not there (brg_reducer_mark_ready said why)",
                   r->rank, brg__member_name(r, i));
    brg__reducer_fail_own(r);
}

brg_status brg__reducer_drain(brg_reducer *r)
{
    brg__inbox_mark mark;
    while (brg__inbox_take(&r->inbox, &mark)) {
        BRG_TRY(brg__reducer_expect(r, mark.i));
        if (!mark.is_good)
            fail_from_afar(r, mark.i);
        else if (is_staged(r, mark.i) && copy_in(r, mark.i) != BRG_OK)
            brg__reducer_fail_own(r);
        if (r->members[mark.i].grad)
            r->stats.n_packed_bytes += r->members[mark.i].nbytes;
        BRG_TRY(brg__reducer_arrive(r, mark.i, true));
    }
    return BRG_OK;
}

static brg_status mark_from_afar(brg_reducer *r, size_t i, void *event)
{
    BRG_TRY(claim(r, i));
    brg_status status =
        is_staged(r, i) ? await_event(r, i, event) : pack(r, i, event);
    brg__inbox_put(&r->inbox, i, status == BRG_OK); /* the others wait for it */
    return status;
}

static brg_status mark(brg_reducer *r, size_t i, void *event)
{
    bool is_mine = is_owner(r);
    brg__arrival own =
        r->members[i].grad ? BRG__ARRIVES_COPIED : BRG__ARRIVES_IN_PLACE;
    brg__reducer_trace_hook(r, i, is_mine ? own : BRG__ARRIVES_LATER);
    if (!is_mine)
        return mark_from_afar(r, i, event);
    BRG_TRY(brg__reducer_check(r));
    BRG_TRY(claim(r, i));
    BRG_TRY(brg__reducer_expect(r, i));
    brg_status packed = pack(r, i, event);
    if (packed != BRG_OK) /* it arrives all the same: the others wait for it */
        brg__reducer_fail_own(r);
    if (r->members[i].grad)
        r->stats.n_packed_bytes += r->members[i].nbytes;
    BRG_TRY(brg__reducer_arrive(r, i, true));
    BRG_TRY(brg__reducer_drain(r));
    brg__progress_poll();
    return packed;
}

brg_status brg_reducer_mark_ready(brg_reducer *r, size_t i)
{
    BRG_TRY(check_index(r, i, "brg_reducer_mark_ready"));
    return mark(r, i, NULL);
}

brg_status brg_reducer_mark_ready_after(brg_reducer *r, size_t i, void *event)
{
    static const char what[] = "brg_reducer_mark_ready_after";
    const brg_device_vtable *table;
    char text[24];
    BRG_TRY(check_index(r, i, what));
    BRG_CHECK_ARG(event, "rank %d: %s: the event of %s is NULL", r->rank, what,
                  brg__member_name(r, i));
    BRG_TRY(brg__device_find(r->members[i].device, &table));
    if (!table->event_wait)
        return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                        "rank %d: %s: %s is on %s, where no event can be "
                        "waited for; call brg_reducer_mark_ready when it is "
                        "there",
                        r->rank, what, brg__member_name(r, i),
                        brg__device_text(r->members[i].device, text));
    return mark(r, i, event);
}

brg_status brg_reducer_poll(brg_reducer *r)
{
    BRG_TRY(own(r, "brg_reducer_poll"));
    BRG_TRY(brg__reducer_drain(r));
    brg_pg_progress(r->pg);
    return BRG_OK;
}

brg_status brg_reducer_set_grad(brg_reducer *r, size_t i, void *grad)
{
    BRG_TRY(check_index(r, i, "brg_reducer_set_grad"));
    brg__member *m = &r->members[i];
    BRG_CHECK_ARG(grad && m->grad, "rank %d: brg_reducer_set_grad: %s %s",
                  r->rank, brg__member_name(r, i),
                  grad ? "lives in its slot" : "cannot move to NULL");
    if (r->is_running || brg__inbox_is_claimed(&r->inbox, i))
        return BRG_FAIL(BRG_ERR_STATE,
                        "rank %d: brg_reducer_set_grad: %s cannot move while "
                        "a step is under way",
                        r->rank, brg__member_name(r, i));
    void *before = m->grad;
    m->grad = grad;
    brg_status status = brg__guard_distinct(r);
    if (status != BRG_OK)
        m->grad = before;
    else
        brg__guard_move(r, i);
    return status;
}

/* ---- Leaves ----------------------------------------------------------------- */

bool brg_reducer_next_leaf(const brg_reducer *r, uint32_t *leaf)
{
    if (!r || !brg__has_leaves(r))
        return false;
    *leaf = r->run.first + r->leaf;
    return brg__leaf_is_last(r);
}

/* What ends a step is for the last leaf alone. */
static brg_status check_last_leaf(const brg_reducer *r, const char *what)
{
    if (brg__leaf_is_last(r))
        return BRG_OK;
    return BRG_FAIL(BRG_ERR_STATE,
                    "rank %d: %s: leaf %u is not the last one of this rank, "
                    "which is %u; end it with brg_reducer_end_leaf",
                    r->rank, what, r->run.first + r->leaf,
                    r->run.first + r->run.n - 1);
}

brg_status brg_reducer_end_leaf(brg_reducer *r)
{
    BRG_TRY(own(r, "brg_reducer_end_leaf"));
    if (!brg__has_leaves(r))
        return BRG_FAIL(BRG_ERR_STATE,
                        "rank %d: brg_reducer_end_leaf: the reducer was made "
                        "without BRG_REDUCTION_REPRODUCIBLE",
                        r->rank);
    if (brg__leaf_is_last(r))
        return BRG_FAIL(BRG_ERR_STATE,
                        "rank %d: brg_reducer_end_leaf: leaf %u is the last "
                        "one of this rank; end the step with brg_reducer_wait",
                        r->rank, r->run.first + r->leaf);
    BRG_TRY(brg__reducer_drain(r));
    BRG_TRY(brg__reducer_close(r));
    BRG_TRY(brg__reducer_fill(r));
    brg__leaf_next(r);
    return BRG_OK;
}

/* ---- Results ---------------------------------------------------------------- */

static void refuse(brg_reducer *r)
{
    if (r->refused.code == BRG_OK)
        brg__error_save(&r->refused);
}

static void copy_back(brg_reducer *r, size_t i)
{
    const brg__member *m = &r->members[i];
    if (r->options.keep_in_slots || !m->grad || m->nbytes == 0)
        return;
    if (brg__guard_buffer(r, i) != BRG_OK ||
        brg__device_copy(m->device, m->grad, r->device, m->slot, m->nbytes) !=
            BRG_OK)
        refuse(r);
}

static void tell(brg_reducer *r, size_t bucket)
{
    if (!r->options.on_bucket || r->refused.code != BRG_OK)
        return;
    brg_status status = r->options.on_bucket(r, bucket, r->options.user);
    BRG_EXPLAIN(status, "rank %d: on_bucket", r->rank);
    if (status != BRG_OK)
        refuse(r);
}

static void hand_out(brg_reducer *r, size_t bucket)
{
    const brg__plan_bucket *b = &r->plan.buckets[bucket];
    for (size_t k = 0; k < b->n_params; k++)
        copy_back(r, r->plan.order[b->first + k]);
    tell(r, bucket);
}

/* At the end, when it is known who used what: a gradient that no rank marked
 * stays. */
static void hand_out_used(brg_reducer *r)
{
    for (size_t i = 0; i < r->n_params; i++)
        if (r->members[i].n_used > 0)
            copy_back(r, i);
    for (size_t k = 0; k < r->plan.n_buckets; k++)
        tell(r, k);
}

static size_t n_unmarked(const brg_reducer *r)
{
    return r->is_running ? r->n_params - r->n_ready : r->n_params;
}

static brg_status fail_unmarked(const brg_reducer *r)
{
    char names[300];
    size_t n_named = 0, n = n_unmarked(r);
    brg__text text = brg__text_begin(names, sizeof names);
    for (size_t i = 0; i < r->n_params && n_named < 4; i++)
        if (!r->is_running || !r->members[i].is_ready)
            brg__text_add(&text, "%s%s", n_named++ ? ", " : "",
                          brg__member_name(r, i));
    if (n > n_named)
        brg__text_add(&text, " and %zu more", n - n_named);
    return BRG_FAIL(BRG_ERR_STATE,
                    "rank %d: brg_reducer_wait_bucket: not marked in this "
                    "step: %s",
                    r->rank, names);
}

brg_status brg_reducer_wait_bucket(brg_reducer *r, size_t bucket)
{
    BRG_TRY(own(r, "brg_reducer_wait_bucket"));
    BRG_CHECK_ARG(bucket < r->plan.n_buckets,
                  "rank %d: brg_reducer_wait_bucket: there is no bucket %zu "
                  "of %zu",
                  r->rank, bucket, r->plan.n_buckets);
    if (r->options.allow_unused)
        return BRG_FAIL(BRG_ERR_STATE,
                        "rank %d: brg_reducer_wait_bucket: with allow_unused, "
                        "gradients are known at the end of the step",
                        r->rank);
    BRG_TRY(check_last_leaf(r, "brg_reducer_wait_bucket"));
    BRG_TRY(brg__reducer_drain(r));
    if (n_unmarked(r) > 0)
        return fail_unmarked(r);
    r->refused.code = BRG_OK;
    r->on_reduced = hand_out;
    BRG_TRY(brg__reducer_wait_until(r, bucket + 1));
    if (r->refused.code != BRG_OK)
        brg__error_restore(&r->refused);
    return r->refused.code;
}

/* ---- The end of a step ------------------------------------------------------- */

static brg_status rebuild_once(brg_reducer *r)
{
    brg_status status =
        brg__rebuild_is_due(r) ? brg__reducer_rebuild(r) : BRG_OK;
    if (status != BRG_OK || r->refused.code == BRG_OK)
        return status;
    brg__error_restore(&r->refused); /* this rank's own; the step was good */
    return r->refused.code;
}

brg_status brg_reducer_wait(brg_reducer *r)
{
    BRG_TRY(own(r, "brg_reducer_wait"));
    BRG_TRY(check_last_leaf(r, "brg_reducer_wait"));
    (void)brg__reducer_drain(r);
    bool is_early = !r->options.allow_unused && n_unmarked(r) == 0;
    r->on_reduced = is_early ? hand_out : NULL;
    r->refused.code = BRG_OK;
    BRG_TRY(brg__reducer_settle(r));
    if (!is_early)
        hand_out_used(r);
    return rebuild_once(r);
}

brg_status brg_reducer_join(brg_reducer *r, bool *is_over)
{
    BRG_TRY(own(r, "brg_reducer_join"));
    BRG_CHECK_ARG(is_over, "brg_reducer_join: is_over is NULL");
    *is_over = false;
    if (brg__has_leaves(r))
        return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                        "rank %d: brg_reducer_join: under the reproducible "
                        "reduction every rank has leaves in every step",
                        r->rank);
    BRG_TRY(brg__reducer_drain(r));
    if (r->is_running)
        return BRG_FAIL(BRG_ERR_STATE,
                        "rank %d: brg_reducer_join: this rank has marked "
                        "gradients in this step; wait for it first",
                        r->rank);
    r->on_reduced = NULL;
    r->refused.code = BRG_OK;
    r->is_shadow = true;
    BRG_TRY(brg__reducer_settle(r));
    *is_over = r->n_shadows == (uint32_t)r->world_size;
    hand_out_used(r);
    return rebuild_once(r);
}

brg_status brg_reducer_cancel(brg_reducer *r)
{
    BRG_TRY(own(r, "brg_reducer_cancel"));
    r->on_reduced = NULL;
    r->refused.code = BRG_OK;
    BRG_TRY(brg__reducer_give_up(r));
    return r->has_failed ? BRG_OK : rebuild_once(r);
}
