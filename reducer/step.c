/* SPDX-License-Identifier: Apache-2.0
 * One step: gradients arrive, buckets start in order, all are waited for. */
#include <sched.h>
#include <string.h>

#include "comm/call.h"
#include "comm/pg.h"
#include "comm/trace.h"
#include "reducer/leaves.h"
#include "reducer/profile.h"

brg_status brg__reducer_check(const brg_reducer *r)
{
    if (r->broken.code != BRG_OK)
        brg__error_restore(&r->broken);
    return r->broken.code;
}

static void begin(brg_reducer *r)
{
    if (r->is_running)
        return;
    r->is_running = true;
    r->has_failed = r->is_closing = false;
    r->n_ready = r->n_launched = r->n_waited = 0;
    r->failure.code = r->own.code = BRG_OK;
    r->finite.own = r->finite.spoilt = 0;
    r->pace_begun = r->pace;
    r->start_ns = brg__pg_clock_ns(r->pg);
    r->stats.n_packed_bytes = r->n_traced_bytes = 0;
    r->stats.first_launch_ns = r->stats.last_ready_ns = r->stats.wait_ns = 0;
    r->stats.n_early = 0;
    if (r->recording.n_rows)
        brg__recording_begin(r);
}

brg_status brg__reducer_expect_slowly(brg_reducer *r, size_t i)
{
    BRG_TRY(brg__reducer_check(r));
    begin(r);
    return r->members[i].is_ready ? brg__reducer_fail_twice(r, i) : BRG_OK;
}

static bool all_are_marked(const brg_reducer *r)
{
    bool all = true;
    for (size_t i = 0; all && i < r->n_params; i++)
        all = brg__inbox_is_claimed(&r->inbox, i);
    return all;
}

brg_status brg__reducer_fail_twice(const brg_reducer *r, size_t i)
{
    bool all_are = r->is_inner ? r->n_ready == r->n_params : all_are_marked(r);
    if (all_are && !brg__leaf_is_last(r))
        return BRG_FAIL(BRG_ERR_STATE,
                        "rank %d: %s is ready again, but leaf %u was not ended "
                        "(brg_reducer_end_leaf)",
                        r->rank, brg__member_name(r, i),
                        r->run.first + r->leaf);
    if (all_are)
        return BRG_FAIL(BRG_ERR_STATE,
                        "rank %d: Expected to have finished reduction in the "
                        "prior iteration before starting a new one: %s is "
                        "ready again, but the last step was not waited for",
                        r->rank, brg__member_name(r, i));
    return BRG_FAIL(BRG_ERR_STATE,
                    "rank %d: Expected to mark a variable ready only once: %s "
                    "(bucket %u) was marked twice in this step",
                    r->rank, brg__member_name(r, i), r->members[i].bucket);
}

/* ---- What a bucket's call is signed with -------------------------------------- */

/* The plan; or apart from it by which gradient this rank does not make. */
static uint16_t label_of(const brg_reducer *r)
{
    return (uint16_t)(r->plan_hash + r->lacking);
}

static uint8_t mark_of(const brg_reducer *r)
{
    return r->n_suspect > 0 ? BRG_PACE_FAILED : 0;
}

/* Not compared: this rank takes part without data. */
static uint8_t pace_of(const brg_reducer *r)
{
    const uint8_t pace = (uint8_t)(1 + r->pace_begun % 120);
    return r->is_shadow ? 0 : pace | mark_of(r);
}

/* Ranks disagree because one of them makes no gradient of a parameter: both are
 * named. */
static void name_lacking(const brg_reducer *r, const brg__mismatch sides[2])
{
    int rank = 0;
    size_t first = r->n_params;
    for (int k = 0; k < 2; k++) {
        size_t lacking = (uint16_t)(sides[k].plan - (uint16_t)r->plan_hash);
        if (lacking > 0 && lacking <= first) {
            first = lacking - 1;
            rank = sides[k].rank;
        }
    }
    if (first < r->n_params)
        (void)brg__error_prefix("the plan of rank %d makes no gradient of %s "
                                "(if parameters may be left out, set "
                                "options.allow_unused): ",
                                rank, brg__member_name(r, first));
}

/* Why ranks disagree in their calls for a bucket, if that is known. */
static void explain_mismatch(const brg_reducer *r)
{
    brg__mismatch sides[2];
    bool both = brg_error_code() == BRG_ERR_MISMATCH;
    for (int k = 0; both && k < 2; k++)
        both = brg__mismatch_read(brg_error_message(), k, r->number, &sides[k]);
    if (!both)
        return;
    if (sides[0].plan == sides[1].plan &&
        sides[0].n_switches != sides[1].n_switches)
        (void)brg__error_prefix(
            "the ranks are out of step: since the last step brg_ddp_set_sync "
            "was switched on rank %d: %u times, on rank %d: %u times: ",
            sides[0].rank, sides[0].n_switches, sides[1].rank,
            sides[1].n_switches);
    else
        name_lacking(r, sides);
}

/* "bucket 2 (fc1.weight and 3 more): " */
static void prefix_bucket(const brg_reducer *r, size_t k)
{
    explain_mismatch(r);
    const brg__plan_bucket *b = &r->plan.buckets[k];
    if (b->n_params == 0)
        (void)brg__error_prefix("bucket %zu: ", k);
    else if (b->n_params == 1)
        (void)brg__error_prefix("bucket %zu (%s): ", k,
                                brg__member_name(r, r->plan.order[b->first]));
    else
        (void)brg__error_prefix("bucket %zu (%s and %zu more): ", k,
                                brg__member_name(r, r->plan.order[b->first]),
                                b->n_params - 1);
}

/* ---- Starting buckets --------------------------------------------------------- */

static brg_status reduce_bucket(brg_reducer *r, size_t k)
{
    brg__bucket *bucket = &r->buckets[k];
    brg_reduce_op op = r->options.sum ? BRG_REDUCE_SUM : BRG_REDUCE_AVG;
    if (!brg__hook_takes(r, k))
        return brg__bucket_launch(bucket, r->pg, op);
    bucket->launch_ns = brg__pg_clock_ns(r->pg);
    BRG_TRY(brg__hook_start(r, k));
    bucket->state = BRG__BUCKET_LAUNCHED;
    return BRG_OK;
}

/* Ranks that start buckets of different reducers, or by different plans, must
 * not mix them up, however alike they look. */
static brg_status start_bucket(brg_reducer *r, size_t k)
{
    brg__pg_label(r->pg, r->number, pace_of(r), label_of(r), (int32_t)k);
    r->pg->is_last = k + 1 == r->plan.n_buckets;
    brg_status status = reduce_bucket(r, k);
    r->pg->is_last = false;
    brg__reducer_unsign(r);
    return status;
}

void brg__reducer_sign(const brg_reducer *r)
{
    brg__pg_label(r->pg, r->number, mark_of(r), 0, -1);
}

void brg__reducer_unsign(const brg_reducer *r)
{
    brg__pg_label(r->pg, 0, 0, 0, -1);
}

static brg_status end_bucket(brg_reducer *r, size_t k)
{
    if (!brg__hook_takes(r, k))
        return brg__bucket_wait(&r->buckets[k], r->pg);
    brg_status status = brg__hook_finish(r, k);
    brg__bucket_end(&r->buckets[k], r->pg);
    return status;
}

/* Ready buckets, as long as all before them have started: ranks whose
 * gradients arrive in different orders still agree on the order of the
 * collectives. The last bucket comes after all gradients, so its tail is
 * known by then. */
brg_status brg__reducer_launch_ready(brg_reducer *r, size_t n)
{
    while (r->n_launched < n) {
        brg__bucket *bucket = &r->buckets[r->n_launched];
        if (bucket->state != BRG__BUCKET_READY)
            break;
        bool is_last = r->n_launched + 1 == r->plan.n_buckets;
        if (brg__look_at_bucket(r, r->n_launched) != BRG_OK) {
            prefix_bucket(r, r->n_launched);
            return brg__error_prefix("looking at ");
        }
        if (is_last && brg__tail_write(r) != BRG_OK)
            return brg__error_prefix("the tail of the last bucket: ");
        if (start_bucket(r, r->n_launched) != BRG_OK) {
            prefix_bucket(r, r->n_launched);
            return brg__error_prefix("starting ");
        }
        if (r->n_launched == 0)
            r->stats.first_launch_ns = bucket->launch_ns - r->start_ns;
        r->n_launched++;
    }
    return BRG_OK;
}

static brg_status launch_all(brg_reducer *r)
{
    return brg__reducer_launch(r, r->plan.n_buckets);
}

static void trace(const brg_reducer *r, size_t i, brg_trace_kind kind,
                  size_t nbytes, int64_t value)
{
    brg__record_put_gradient(
        r->pg->trace, r->pg->end.place, kind,
        &(brg__record_gradient){.group = r->pg->number,
                                .reducer = r->number,
                                .bucket =
                                    brg__record_bucket(r->members[i].bucket),
                                .param = (uint32_t)i,
                                .nbytes = nbytes,
                                .value = value});
}

/* A look at the clock takes as long as copying this much. */
#define COPY_IN_NO_TIME 1024

void brg__reducer_trace_hook(brg_reducer *r, size_t i, brg__arrival how)
{
    if (!atomic_load_explicit(&brg__record_is_on, memory_order_relaxed))
        return;
    size_t nbytes = r->members[i].nbytes;
    bool is_there = how == BRG__ARRIVES_IN_PLACE ||
                    (how == BRG__ARRIVES_COPIED && nbytes <= COPY_IN_NO_TIME);
    if (how != BRG__ARRIVES_LATER) /* else another thread's to write */
        r->is_in_trace = is_there;
    trace(r, i, BRG_TRACE_HOOK, nbytes, is_there);
}

static void trace_copy(brg_reducer *r, size_t i)
{
    bool is_there = r->is_in_trace;
    uint64_t nbytes = r->stats.n_packed_bytes - r->n_traced_bytes;
    r->n_traced_bytes = r->stats.n_packed_bytes;
    r->is_in_trace = false;
    if (is_there ||
        !atomic_load_explicit(&brg__record_is_on, memory_order_relaxed))
        return;
    trace(r, i, BRG_TRACE_COPY, (size_t)nbytes, 0);
}

/* The first failure of a step is the one that counts. */
static void keep_failure(brg_reducer *r)
{
    if (r->failure.code == BRG_OK)
        brg__error_save(&r->failure);
}

void brg__reducer_fail_own(brg_reducer *r)
{
    if (r->own.code == BRG_OK)
        brg__error_save(&r->own);
    r->has_failed = true; /* the tail tells the others */
}

/* Looks at a gradient before it becomes a part of a sum. */
static brg_status take_in(brg_reducer *r, size_t i)
{
    if (r->options.check_finite && !r->tail.vtable)
        brg__finite_look(r, i);
    if (r->members[i].arrival == 0)
        BRG_TRY(brg__look_begin(r));
    if (!brg__has_leaves(r) || r->has_failed)
        return BRG_OK;
    BRG_TRY(brg__look_at_gradient(r, i));
    return brg__leaf_take(r, i);
}

void brg__reducer_take(brg_reducer *r, size_t i, bool is_used)
{
    trace_copy(r, i);
    brg__member *member = &r->members[i];
    member->is_ready = true;
    member->is_used |= is_used; /* in any leaf */
    member->arrival = (uint32_t)(r->leaf * r->n_params + r->n_ready);
    r->arrivals[r->n_ready++] = (uint32_t)i;
    if (!r->is_closing) {
        if (r->n_ready == r->n_params) /* a look at the clock is not free */
            r->stats.last_ready_ns = brg__pg_clock_ns(r->pg) - r->start_ns;
        r->stats.n_early = r->n_launched;
    }
    if (r->recording.is_on)
        brg__recording_gradient(r, i);
    if (take_in(r, i) != BRG_OK)
        brg__reducer_fail_own(r);
    if (brg__leaf_is_last(r))
        brg__bucket_arrive(&r->buckets[member->bucket]);
}

brg_status brg__reducer_arrive(brg_reducer *r, size_t i, bool is_used)
{
    brg__reducer_take(r, i, is_used);
    return launch_all(r);
}

/* ---- The end ------------------------------------------------------------------- */

brg_status brg__reducer_close(brg_reducer *r)
{
    BRG_TRY(brg__reducer_check(r));
    begin(r);
    if (r->n_ready < r->n_params)
        r->stats.last_ready_ns = brg__pg_clock_ns(r->pg) - r->start_ns;
    r->is_closing = true;
    return BRG_OK;
}

static brg_status look_at_result(brg_reducer *r, size_t k)
{
    if (r->tail.vtable)
        return brg__look_at_result(r, k);
    if (r->options.measure_norm)
        brg__norm_measure(r, k);
    if (r->options.check_finite && brg__hook_takes(r, k))
        brg__finite_look_after(r, k);
    return BRG_OK;
}

static void wait_one(brg_reducer *r, size_t k)
{
    uint64_t start = brg__pg_clock_ns(r->pg);
    if (k == 0) /* maybe before the step's end: brg_reducer_wait_bucket */
        brg__exposed_mark(r, false);
    brg_status status = end_bucket(r, k);
    r->stats.wait_ns += r->buckets[k].done_ns - start;
    if (status != BRG_OK) {
        prefix_bucket(r, k);
        keep_failure(r);
        return;
    }
    if (look_at_result(r, k) != BRG_OK)
        keep_failure(r);
    if (r->on_reduced && r->failure.code == BRG_OK && r->own.code == BRG_OK)
        r->on_reduced(r, k);
}

brg_status brg__reducer_wait_until(brg_reducer *r, size_t n)
{
    BRG_TRY(launch_all(r));
    for (; r->n_waited < n; r->n_waited++)
        wait_one(r, r->n_waited);
    const brg__error_record *first =
        r->own.code != BRG_OK ? &r->own : &r->failure;
    if (first->code != BRG_OK)
        brg__error_restore(first);
    return first->code;
}

/* Every bucket that has started, even after one has failed. */
static brg_status wait_all(brg_reducer *r)
{
    for (; r->n_waited < r->n_launched; r->n_waited++)
        wait_one(r, r->n_waited);
    r->stats.total_wait_ns += r->stats.wait_ns;
    if (r->failure.code != BRG_OK)
        brg__error_restore(&r->failure);
    return r->failure.code;
}

static brg_status wait_measured(brg_reducer *r)
{
    const brg_status status = wait_all(r);
    brg__exposed_mark(r, true);
    return status;
}

static void arm(brg_reducer *r)
{
    for (size_t k = 0; k < r->plan.n_buckets; k++)
        brg__bucket_arm(&r->buckets[k]);
    for (size_t i = 0; i < r->n_params; i++)
        r->members[i].is_ready = r->members[i].is_used = false;
    brg__inbox_clear(&r->inbox);
    r->leaf = 0;
    r->pace = 0;
    r->lacking = 0;
    r->n_suspect -= r->n_suspect > 0;
    r->is_running = r->is_shadow = r->is_in_trace = false;
}

/* A bucket could not be started, so the others wait for it. Unless the group
 * is dead anyway, no later collective of this rank would meet its like. */
static brg_status give_out(brg_reducer *r)
{
    brg_status status = brg__error_prefix(
        "rank %d is out of step with the other ranks: ", r->rank);
    brg__error_record kept;
    brg__error_save(&kept);
    if (brg_pg_error(r->pg) == BRG_OK)
        r->broken = kept;
    (void)wait_all(r);
    brg__error_restore(&kept);
    return status;
}

brg_status brg__reducer_complete(brg_reducer *r)
{
    brg_status status = launch_all(r);
    if (status != BRG_OK)
        status = give_out(r);
    else if ((status = wait_measured(r)) == BRG_OK)
        status = brg__tail_judge(r);
    if (status == BRG_OK && !r->has_failed) {
        r->stats.n_steps++;
        if (r->recording.is_on)
            brg__recording_end(r);
    }
    arm(r);
    if (r->own.code != BRG_OK) /* it says more than what the others hear */
        brg__error_restore(&r->own);
    return r->own.code != BRG_OK ? r->own.code : status;
}

/* Another thread is copying gradient i this moment. */
static void await_mark(brg_reducer *r, size_t i)
{
    while (!r->members[i].is_ready) {
        sched_yield();
        (void)brg__reducer_drain(r);
    }
}

brg_status brg__reducer_fill(brg_reducer *r)
{
    brg_status own = BRG_OK;
    brg__error_record kept;
    for (size_t i = 0; i < r->n_params; i++) {
        if (r->members[i].is_ready)
            continue;
        if (!brg__inbox_claim(&r->inbox, i)) {
            await_mark(r, i);
            continue;
        }
        if (brg__device_zero(r->device, brg__leaf_home(r, i),
                             r->members[i].nbytes) != BRG_OK) {
            own = brg_error_code(); /* of the device */
            brg__error_save(&kept);
            brg__reducer_fail_own(r);
        }
        /* If a bucket does not start, completing tries again. */
        (void)brg__reducer_arrive(r, i, false);
    }
    if (own != BRG_OK)
        brg__error_restore(&kept);
    return own;
}

brg_status brg__reducer_settle(brg_reducer *r)
{
    brg__error_record kept;
    BRG_TRY(brg__reducer_check(r));
    (void)brg__reducer_drain(r);
    BRG_TRY(brg__reducer_close(r));
    brg_status own = brg__reducer_fill(r);
    brg__error_save(&kept);
    brg_status status = brg__reducer_complete(r);
    if (own != BRG_OK)
        brg__error_restore(&kept);
    return own != BRG_OK ? own : status;
}

brg_status brg__reducer_give_up(brg_reducer *r)
{
    BRG_TRY(brg__reducer_close(r));
    r->n_suspect = 2;
    r->has_failed |= r->n_launched < r->plan.n_buckets;
    r->own.code = BRG_OK; /* who gives a step up knows why */
    brg__leaf_skip(r);
    return brg__reducer_settle(r);
}
