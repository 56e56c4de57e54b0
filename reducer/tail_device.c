/* SPDX-License-Identifier: Apache-2.0
 * The tail of gradients on a device. A step is queued, so what it came to is
 * not known when it ends; waiting for that would stop the host in every step.
 *
 *     step t      tail written on the device, reduced, fetch queued
 *     step t+1    the same; then the tail of t is looked at, and its error is
 *                 that of step t+1, on every rank alike
 *
 * At once are read: steps before buckets are made anew (which all ranks must do
 * together), and steps in which this rank has no gradient for a parameter or no
 * data (how many ranks have is asked then). No collective follows from what is
 * read, since ranks read at different times; so an error counts ranks and does
 * not name them. See docs/adr/0007. */
#include <math.h>
#include <sched.h>
#include <string.h>

#include "comm/pg.h"
#include "core/base/alloc.h"
#include "core/base/clock.h"
#include "core/base/text.h"
#include "reducer/reducer.h"

/* The group's own time-out names who is late. */
#define GROUP_SAYS_MORE_NS 2000000000u

static size_t n_bytes(const brg_reducer *r)
{
    return BRG__N_TAIL(r) * sizeof(float);
}

brg_status brg__device_tail_prepare(brg_reducer *r)
{
    brg__device_tail *t = &r->tail;
    if (r->device.type == BRG_DEVICE_CPU)
        return BRG_OK;
    BRG_TRY(brg__device_find(r->device, &t->vtable));
    BRG_TRY(brg__look_prepare(r));
    t->values = brg__mem_alloc_array(3 * BRG__N_TAIL(r), sizeof *t->values,
                                     "the tail of buckets");
    if (!t->values)
        return BRG_ERR_NOMEM;
    return t->vtable->alloc(r->device, &t->mine, n_bytes(r));
}

void brg__device_tail_free(brg_reducer *r)
{
    brg__device_tail *t = &r->tail;
    if (t->mine)
        t->vtable->free(r->device, t->mine, n_bytes(r));
    brg__look_free(r); /* the tail's size depends on it */
    brg__exposed_free(r);
    if (t->fetch && t->vtable->fetch_free)
        t->vtable->fetch_free(r->device, t->fetch);
    brg__mem_free(t->values);
    *t = (brg__device_tail){0};
}

/* A steady step says what the last one said: nothing goes to the device. */
static brg_status send(brg_reducer *r, const float *next)
{
    brg__device_tail *t = &r->tail;
    const brg_device host = {BRG_DEVICE_CPU, 0};
    if (t->is_sent && memcmp(next, t->values, n_bytes(r)) == 0)
        return BRG_OK;
    memcpy(t->values, next, n_bytes(r));
    t->is_sent = false;
    BRG_TRY(t->vtable->copy(r->device, t->mine, host, t->values, n_bytes(r)));
    t->is_sent = true;
    return BRG_OK;
}

/* What a good step will say. One that says something else while it is recorded
 * gives the recording up, which is right: it is not like those to come. */
brg_status brg__device_tail_ready(brg_reducer *r)
{
    float *next = r->tail.values + BRG__N_TAIL(r);
    r->tail.is_ready = true;
    r->tail.first_call = r->pg->n_started;
    brg__tail_fill(r, next);
    for (size_t i = 0; i < r->n_params; i++)
        next[i] = 1;
    next[r->n_params] = 0;
    memset(next + BRG__TAIL_FINITE(r), 0, 3 * sizeof *next);
    return send(r, next);
}

brg_status brg__device_tail_write(brg_reducer *r, void *tail)
{
    brg__device_tail *t = &r->tail;
    float *next = t->values + BRG__N_TAIL(r);
    brg__tail_fill(r, next);
    BRG_TRY(send(r, next));
    BRG_TRY(t->vtable->copy(r->device, tail, r->device, t->mine, n_bytes(r)));
    return brg__look_tell(r, tail);
}

/* ---- Verdicts ---------------------------------------------------------------- */

static brg_status blame_missing(const brg_reducer *r)
{
    char names[320];
    brg__text text = brg__text_begin(names, sizeof names);
    const uint32_t n_data = (uint32_t)r->world_size - r->n_shadows;
    size_t n_missing = 0;
    for (size_t i = 0; i < r->n_params; i++) {
        const uint32_t n_used = r->members[i].n_used;
        if (n_used >= n_data || n_missing++ >= 4)
            continue;
        brg__text_add(&text, "%s%s on %u of %u ranks",
                      n_missing > 1 ? "; " : "", brg__member_name(r, i),
                      n_data - n_used, n_data);
    }
    if (n_missing > 4)
        brg__text_add(&text, "; and %zu more", n_missing - 4);
    return BRG_FAIL(BRG_ERR_STATE,
                    "rank %d: no gradient in step %llu for %s. If parameters "
                    "may be left out, set options.allow_unused",
                    r->rank, (unsigned long long)r->tail.n_sent, names);
}

static brg_status judge(brg_reducer *r, const float *tail)
{
    brg__look_read(r, tail);
    const brg__tail_counts found = brg__tail_count(r, tail);
    const unsigned long long step = r->tail.n_sent;
    if (found.mark == 0)
        return BRG_FAIL(BRG_ERR_MISMATCH,
                        "rank %d: the ranks that reduce %s and %zu more are "
                        "out of step in step %llu: brg_ddp_set_sync was off "
                        "for other backwards on some",
                        r->rank, brg__member_name(r, 0), r->n_params - 1, step);
    if (found.mark < BRG__N_MARKS)
        return BRG_FAIL(BRG_ERR_MISMATCH,
                        "rank %d: the gradients of %s and %zu more were mixed "
                        "up in step %llu: the ranks have different bucket "
                        "plans",
                        r->rank, brg__member_name(r, 0), r->n_params - 1, step);
    if (found.n_failed > 0)
        return BRG_FAIL(BRG_ERR_PEER,
                        "rank %d: backward failed in step %llu on %u of %d "
                        "ranks, so the gradients of that step have no meaning",
                        r->rank, step, found.n_failed, r->world_size);
    return found.is_missing ? blame_missing(r) : BRG_OK;
}

/* ---- Reading ----------------------------------------------------------------- */

/* The ranks that this waits for may be gone. */
static brg_status fail_timeout(brg_reducer *r)
{
    brg_status status = BRG_FAIL(
        BRG_ERR_TIMEOUT,
        "rank %d: the gradients of step %llu were not reduced within %g s",
        r->rank, (unsigned long long)r->tail.n_sent,
        (double)r->pg->timeout_ns * 1e-9);
    brg__pg_kill(r->pg);
    return status;
}

static brg_status await(brg_reducer *r, const void **tail)
{
    const brg__device_tail *t = &r->tail;
    const uint64_t start = brg__clock_ns();
    for (;;) {
        BRG_TRY(t->vtable->fetched(r->device, t->fetch, tail));
        if (!brg__pg_poll(r->pg)) /* what was aborted leaves a tail, too */
            return brg_pg_error(r->pg);
        if (*tail)
            return BRG_OK;
        if (brg__clock_ns() - start > r->pg->timeout_ns + GROUP_SAYS_MORE_NS)
            return fail_timeout(r);
        (void)sched_yield();
    }
}

brg_status brg__device_tail_read(brg_reducer *r)
{
    brg__device_tail *t = &r->tail;
    const void *tail = t->values + 2 * BRG__N_TAIL(r);
    if (!t->is_pending)
        return BRG_OK;
    t->is_pending = false;
    if (t->vtable->fetch)
        BRG_TRY(await(r, &tail));
    else if (!brg__pg_poll(r->pg))
        return brg_pg_error(r->pg);
    t->n_known = t->n_sent;
    brg__error_record kept;
    brg__error_save(&kept);
    if (judge(r, tail) != BRG_OK)
        brg__error_save(&t->verdict);
    brg__error_restore(&kept);
    return BRG_OK;
}

brg_status brg__device_tail_tell(brg_reducer *r)
{
    BRG_TRY(brg__device_tail_read(r));
    const brg_status status = r->tail.verdict.code;
    if (status != BRG_OK)
        brg__error_restore(&r->tail.verdict);
    r->tail.verdict.code = BRG_OK;
    return status;
}

static brg_status fetch(brg_reducer *r, const void *tail)
{
    brg__device_tail *t = &r->tail;
    const brg_device host = {BRG_DEVICE_CPU, 0};
    t->n_sent++;
    if (t->vtable->fetch)
        BRG_TRY(t->vtable->fetch(r->device, &t->fetch, tail, n_bytes(r)));
    else
        BRG_TRY(t->vtable->copy(host, t->values + 2 * BRG__N_TAIL(r), r->device,
                                tail, n_bytes(r)));
    t->is_pending = true;
    return BRG_OK;
}

/* This rank used all: the number of ranks is at least one, and taken as all
 * until it is read. */
static bool assume_used(brg_reducer *r)
{
    bool all = !r->is_shadow;
    for (size_t i = 0; all && i < r->n_params; i++)
        all = r->members[i].is_used;
    for (size_t i = 0; all && i < r->n_params; i++)
        r->members[i].n_used = (uint32_t)r->world_size;
    return all;
}

brg_status brg__device_tail_judge(brg_reducer *r, void *tail)
{
    brg_status before = brg__device_tail_tell(r);
    brg__error_record kept;
    if (before != BRG_OK)
        brg__error_save(&kept);
    if (r->tail.is_ready)
        r->tail.n_calls = r->pg->n_started - r->tail.first_call;
    r->tail.is_ready = false;
    BRG_TRY(brg__look_keep(r, tail));
    BRG_TRY(fetch(r, tail));
    const bool all_used = assume_used(r);
    if (!all_used || !r->is_rebuilt)
        BRG_TRY(brg__device_tail_read(r));
    if (before != BRG_OK) {
        brg__error_restore(&kept);
        return before;
    }
    if (r->is_rebuilt)
        return BRG_OK;
    brg_status status = brg__device_tail_tell(r);
    return r->has_failed ? BRG_OK : status; /* its own error says more */
}

brg_status brg__device_tail_next(brg_reducer *r, const void *tail)
{
    brg_status before = brg__device_tail_tell(r);
    brg__error_record kept;
    if (before != BRG_OK)
        brg__error_save(&kept);
    BRG_TRY(fetch(r, tail));
    if (before != BRG_OK)
        brg__error_restore(&kept);
    return before;
}
