/* SPDX-License-Identifier: Apache-2.0
 * Waiting, testing and freeing of works. */
#include "comm/work.h"

#include <sched.h>

#include "comm/call.h"
#include "comm/trace.h"
#include "core/base/clock.h"
#include "core/base/thread.h"

#define POLLS_PER_CLOCK 64
#define QUICK_POLLS 32
#define QUICK_NBYTES 16384

/* ---- Handles --------------------------------------------------------------- */

static brg_work *take_spare(brg_pg *pg)
{
    brg_work *work = pg->spares;
    if (!work)
        return NULL;
    pg->spares = work->next;
    pg->n_spares--;
    return work;
}

static void give_spare(brg_pg *pg, brg_work *work)
{
    work->next = pg->spares;
    pg->spares = work;
    pg->n_spares++;
}

void brg__work_unreserve(brg_pg *pg, size_t n)
{
    pg->n_reserved -= n;
    while (pg->n_spares > pg->n_reserved)
        brg__obj_free(take_spare(pg), sizeof(brg_work));
}

brg_status brg__work_reserve(brg_pg *pg, size_t n)
{
    pg->n_reserved += n;
    for (size_t k = 0; k < n; k++) {
        brg_work *work = brg__obj_alloc(sizeof *work, "a work handle");
        if (!work) {
            brg__work_unreserve(pg, n);
            return BRG_ERR_NOMEM;
        }
        give_spare(pg, work);
    }
    return BRG_OK;
}

brg_work *brg__work_create(brg_pg *pg, const brg_call *call)
{
    brg_work *work = take_spare(pg);
    if (!work)
        work = brg__obj_alloc(sizeof *work, "a work handle");
    if (!work)
        return NULL;
    *work = (brg_work){.call = *call, .pg = pg, .next = pg->in_flight};
    if (work->next)
        work->next->prev = work;
    pg->in_flight = work;
    return work;
}

void brg__work_free(brg_work *work)
{
    brg_pg *pg = work->pg;
    if (pg) {
        if (work->prev)
            work->prev->next = work->next;
        else
            pg->in_flight = work->next;
        if (work->next)
            work->next->prev = work->prev;
        pg->n_released -= work->is_released;
    }
    if (pg && pg->n_spares < pg->n_reserved)
        give_spare(pg, work);
    else
        brg__obj_free(work, sizeof *work);
}

/* Done, or never to be: the backend has let go of it. */
static bool is_over(const brg_work *work)
{
    return work->call.is_done || !work->pg || work->pg->error.code != BRG_OK;
}

void brg__work_reap(brg_pg *pg)
{
    for (brg_work *work = pg->in_flight, *next; work; work = next) {
        next = work->next;
        if (work->is_released && is_over(work))
            brg__work_free(work);
    }
}

void brg__work_orphan_all(brg_pg *pg)
{
    brg__work_unreserve(pg, pg->n_reserved);
    for (brg_work *work = pg->in_flight, *next; work; work = next) {
        next = work->next;
        if (work->is_released)
            brg__work_free(work);
        else
            work->pg = NULL;
    }
}

void brg_work_release(brg_work *work)
{
    if (!work)
        return;
    if (is_over(work)) {
        brg__work_free(work);
        return;
    }
    work->is_released = true;
    work->pg->n_released++;
}

bool brg_work_test(brg_work *work)
{
    if (!work || is_over(work))
        return true;
    return !brg__pg_poll(work->pg) || work->call.is_done;
}

static brg_status idle(brg_work *work, uint64_t n)
{
    const brg_group_ops *ops = work->pg->end.ops;
    if (ops->idle)
        return ops->idle(work->pg->end.group, &work->call, n);
    sched_yield();
    return BRG_OK;
}

static brg_status poll_until_done(brg_work *work, uint64_t start)
{
    brg_pg *pg = work->pg;
    for (uint64_t n = 1;; n++) {
        pg->stats.n_polls++;
        BRG_TRY(pg->end.ops->progress(pg->end.group));
        if (work->call.is_done)
            return BRG_OK;
        BRG_TRY(idle(work, n));
        if (n % POLLS_PER_CLOCK == 0 &&
            brg__clock_ns() - start > pg->timeout_ns)
            return brg__work_fail_timeout(work);
    }
}

/* Small calls are often done in less time than it takes to look at the clock:
 * they get some polls before. */
static brg_status poll_a_little(brg_work *work)
{
    brg_pg *pg = work->pg;
    for (int n = 0; n < QUICK_POLLS && !work->call.is_done; n++) {
        pg->stats.n_polls++;
        BRG_TRY(pg->end.ops->progress(pg->end.group));
        brg__cpu_relax();
    }
    return BRG_OK;
}

static brg_status poll(brg_work *work)
{
    uint64_t start = brg__clock_ns();
    brg_status status = poll_until_done(work, start);
    work->pg->stats.wait_ns += brg__clock_ns() - start;
    return status;
}

static brg_status wait_for(brg_work *work)
{
    brg_pg *pg = work->pg;
    const brg_group_ops *ops = pg->end.ops;
    if (!ops->wait && work->call.nbytes <= QUICK_NBYTES)
        BRG_TRY(poll_a_little(work));
    if (work->call.is_done)
        return BRG_OK;
    uint64_t start = brg__record_now(pg->trace);
    brg__record_call(pg, &work->call, BRG_TRACE_WAIT, 0);
    brg_status status =
        ops->wait ? ops->wait(pg->end.group, &work->call) : poll(work);
    if (status == BRG_ERR_PEER)
        status = brg__work_fail_peer(work);
    brg__record_completed(pg);
    brg__record_call(pg, &work->call, BRG_TRACE_WAKE,
                     brg__record_now(pg->trace) - start);
    return status;
}

static brg_status fail_orphan(const brg_work *work)
{
    char call[120];
    brg__call_describe(&work->call, call, sizeof call);
    return BRG_FAIL(BRG_ERR_STATE,
                    "%s was in flight when its group was destroyed", call);
}

/* The backend may hold it back until the end, for which the caller would wait. */
static bool is_held_back(const brg_work *work)
{
    const brg_pg *pg = work->pg;
    return pg && pg->is_coalescing && pg->error.code == BRG_OK &&
           work->coalesced_by == pg->n_coalesced && !work->call.is_done;
}

static brg_status fail_held_back(brg_work *work)
{
    char call[120];
    brg__call_describe(&work->call, call, sizeof call);
    const int rank = work->pg->end.rank;
    brg_work_release(work);
    return BRG_FAIL(BRG_ERR_STATE,
                    "rank %d: brg_work_wait: %s is coalesced: expected "
                    "brg_coalesce_end before",
                    rank, call);
}

brg_status brg_work_wait(brg_work *work)
{
    BRG_CHECK_ARG(work, "brg_work_wait: the work is NULL");
    if (is_held_back(work))
        return fail_held_back(work);
    brg_pg *pg = work->pg;
    brg_status status = BRG_OK;
    if (!work->call.is_done) {
        if (!pg)
            status = fail_orphan(work);
        else if ((status = brg__pg_check(pg)) == BRG_OK &&
                 (status = wait_for(work)) != BRG_OK)
            brg__pg_kill(pg);
    }
    if (pg && work->call.is_done)
        brg__record_complete(work);
    brg__work_free(work);
    if (pg && pg->n_released)
        brg__work_reap(pg);
    return status;
}
