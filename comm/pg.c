/* SPDX-License-Identifier: Apache-2.0
 * Lifecycle, memory, progress and queries of process groups. */
#include "comm/pg.h"

#include <string.h>

#include "comm/registry.h"
#include "comm/trace.h"
#include "comm/work.h"
#include "core/base/clock.h"
#include "core/base/env.h"
#include "core/base/log.h"
#include "core/base/options.h"
#include "core/base/progress.h"

static void poll_from_engine(void *user)
{
    brg_pg_progress(user);
}

/* The caller's options with every default filled in. */
static brg_status complete_options(const brg_pg_options *options,
                                   brg_pg_options *filled)
{
    *filled = (brg_pg_options)BRG_PG_OPTIONS_INIT;
    BRG_TRY(BRG_TAKE_OPTIONS(filled, options, "brg_pg_create",
                             BRG_PG_OPTIONS_INIT));
    BRG_CHECK_ARG(filled->timeout_s >= 0,
                  "brg_pg_create: timeout_s is %g, expected 0 or more",
                  filled->timeout_s);
    if (filled->timeout_s == 0)
        filled->timeout_s = brg__env_double(BRG__ENV_TIMEOUT_S);
    return BRG_OK;
}

static brg_status check_end(const brg_backend *backend, const brg_group *end)
{
    const brg_group_ops *ops = end->ops;
    if (!ops || ops->abi != BRG_BACKEND_ABI ||
        ops->struct_size != sizeof(brg_group_ops))
        return BRG_FAIL(BRG_ERR_ABI,
                        "backend %s: its group has ABI %u, expected %u",
                        backend->name, ops ? ops->abi : 0, BRG_BACKEND_ABI);
    if (!ops->start || !ops->progress || !ops->destroy)
        return BRG_FAIL(BRG_ERR_ABI,
                        "backend %s: start, progress and destroy are required",
                        backend->name);
    return BRG_OK;
}

/* The backend has filled pg->end. */
static brg_status open_end(brg_pg *pg)
{
    BRG_TRY(check_end(pg->backend, &pg->end));
    pg->bucket = -1;
    pg->trace = brg__record_mine();
    pg->number = brg__record_join(pg->trace, pg->backend->name, pg->end.rank,
                                  pg->end.world_size, pg->end.place);
    if (pg->end.wants_polls)
        BRG_TRY(brg__progress_register(poll_from_engine, pg));
    pg->is_registered = pg->end.wants_polls;
    return BRG_OK;
}

brg_status brg__pg_make(brg_pg **out, const brg_backend *backend,
                        const brg_pg_options *options)
{
    brg_status status;
    brg_pg_options complete;
    BRG_TRY(complete_options(options, &complete));
    brg_pg *pg = BRG__NEW(brg_pg);
    if (!pg)
        return BRG_ERR_NOMEM;
    pg->backend = backend;
    pg->timeout_ns = (uint64_t)(complete.timeout_s * 1e9);
    BRG_TRY_GOTO(backend->create(brg_host_get(), &complete, &pg->end), out);
    BRG_TRY_GOTO(open_end(pg), out);
    *out = pg;
    return BRG_OK;
out:
    brg_pg_destroy(pg);
    return status;
}

brg_status brg_pg_create(brg_pg **out, const char *backend,
                         const brg_pg_options *options)
{
    BRG_CHECK_ARG(out, "brg_pg_create: out is NULL");
    *out = NULL;
    BRG_CHECK_ARG(backend, "brg_pg_create: the backend's name is NULL");
    const brg_backend *found;
    BRG_TRY(brg__backend_find(brg__backend_choose(backend), &found));
    return brg__pg_make(out, found, options);
}

/* ---- Going on with fewer ranks ----------------------------------------------- */

/* It is over, also where it was healthy: the ranks meet elsewhere. */
static void give_up(brg_pg *pg)
{
    brg__error_record kept;
    brg__error_save(&kept);
    (void)BRG_FAIL(BRG_ERR_STATE,
                   "rank %d: this group was given up by brg_pg_shrink",
                   pg->end.rank);
    brg__pg_kill(pg);
    brg__error_restore(&kept);
}

brg_status brg_pg_shrink(brg_pg **out, brg_pg *pg)
{
    BRG_CHECK_ARG(out, "brg_pg_shrink: out is NULL");
    *out = NULL;
    BRG_CHECK_ARG(pg, "brg_pg_shrink: the group is NULL");
    if (!pg->end.ops->shrink)
        return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                        "rank %d: brg_pg_shrink: backend %s cannot go on with "
                        "fewer ranks; start again from a checkpoint",
                        pg->end.rank, pg->backend->name);
    brg_pg *fresh = BRG__NEW(brg_pg);
    if (!fresh)
        return BRG_ERR_NOMEM;
    fresh->backend = pg->backend;
    fresh->timeout_ns = pg->timeout_ns;
    brg_status status = pg->end.ops->shrink(pg->end.group, &fresh->end);
    if (status != BRG_ERR_UNSUPPORTED)
        give_up(pg);
    if (status == BRG_OK)
        status = open_end(fresh);
    if (status != BRG_OK) {
        brg_pg_destroy(fresh);
        return status;
    }
    *out = fresh;
    return BRG_OK;
}

static void free_block(brg_pg *pg, const brg__pg_block *block)
{
    if (block->nbytes == 0)
        pg->end.ops->free(pg->end.group, block->ptr);
    else
        brg__block_free(block->ptr, block->nbytes, BRG_CACHE_LINE);
}

void brg__pg_hold(brg_pg *pg)
{
    pg->n_holders++;
}

void brg__pg_let_go(brg_pg *pg)
{
    if (--pg->n_holders == 0 && pg->is_unwanted)
        brg__pg_close(pg);
}

void brg_pg_destroy(brg_pg *pg)
{
    if (!pg || pg->is_borrowed)
        return;
    pg->is_unwanted = true;
    if (pg->n_holders == 0)
        brg__pg_close(pg);
    else
        brg__log(BRG_LOG_WARN, "comm",
                 "rank %d: a group was destroyed before its %u reducers; it "
                 "stays until they are",
                 pg->end.rank, (unsigned)pg->n_holders);
}

void brg__pg_close(brg_pg *pg)
{
    if (!pg)
        return;
    brg__error_record kept;
    brg__error_save(&kept);
    if (pg->is_registered)
        brg__progress_unregister(poll_from_engine, pg);
    if (pg->trace)
        brg__record_leave(pg->trace, pg->end.place);
    brg__work_reap(pg);
    for (size_t i = 0; i < pg->blocks.n; i++)
        free_block(pg, &pg->blocks.at[i]);
    if (pg->end.ops && pg->end.ops->destroy)
        pg->end.ops->destroy(pg->end.group);
    brg__work_orphan_all(pg);
    brg__array_deinit(&pg->blocks);
    brg__mem_free(pg);
    brg__error_restore(&kept);
}

int brg_pg_rank(const brg_pg *pg)
{
    return pg ? pg->end.rank : -1;
}

int brg_pg_world_size(const brg_pg *pg)
{
    return pg ? pg->end.world_size : 0;
}

const char *brg_pg_backend_name(const brg_pg *pg)
{
    return pg ? pg->backend->name : "none";
}

/* ---- Memory ---------------------------------------------------------------- */

static brg_status alloc_ordinary(brg__pg_block *block, size_t nbytes)
{
    block->nbytes = brg__round_up(nbytes ? nbytes : 1, BRG_CACHE_LINE);
    block->ptr =
        brg__block_alloc(block->nbytes, BRG_CACHE_LINE, "memory of a group");
    if (!block->ptr)
        return BRG_ERR_NOMEM;
    memset(block->ptr, 0, block->nbytes);
    return BRG_OK;
}

brg_status brg_pg_alloc(brg_pg *pg, void **out, size_t nbytes)
{
    BRG_CHECK_ARG(out, "brg_pg_alloc: out is NULL");
    *out = NULL;
    BRG_CHECK_ARG(pg, "brg_pg_alloc: the group is NULL");
    BRG_CHECK_ARG(nbytes <= PTRDIFF_MAX / 2,
                  "rank %d: brg_pg_alloc: %zu bytes are more than any machine "
                  "has",
                  pg->end.rank, nbytes);
    BRG_TRY(brg__pg_check(pg));
    brg_status room = brg__array_reserve(&pg->blocks, 1);
    brg__pg_block block = {0};
    if (pg->end.ops->alloc) {
        brg_status status = pg->end.ops->alloc(
            pg->end.group, room == BRG_OK ? &block.ptr : NULL, nbytes);
        if (brg__status_is_fatal(status))
            brg__pg_kill(pg);
        BRG_TRY(status);
    } else {
        BRG_TRY(room);
        BRG_TRY(alloc_ordinary(&block, nbytes));
    }
    pg->blocks.at[pg->blocks.n++] = block;
    *out = block.ptr;
    return BRG_OK;
}

void brg_pg_free(brg_pg *pg, void *ptr)
{
    if (!pg || !ptr)
        return;
    for (size_t i = 0; i < pg->blocks.n; i++)
        if (pg->blocks.at[i].ptr == ptr) {
            free_block(pg, &pg->blocks.at[i]);
            pg->blocks.at[i] = pg->blocks.at[--pg->blocks.n];
            return;
        }
}

/* ---- Failure and progress -------------------------------------------------- */

bool brg__status_is_fatal(brg_status status)
{
    return status == BRG_ERR_COMM || status == BRG_ERR_MISMATCH ||
           status == BRG_ERR_TIMEOUT || status == BRG_ERR_PEER ||
           status == BRG_ERR_INTERNAL;
}

void brg__pg_kill(brg_pg *pg)
{
    if (pg->error.code != BRG_OK)
        return;
    brg__error_save(&pg->error);
    if (pg->end.ops->abort)
        pg->end.ops->abort(pg->end.group, pg->error.code);
    brg__record_failure(pg);
    brg__error_restore(&pg->error);
}

uint64_t brg__pg_clock_ns(const brg_pg *pg)
{
    const brg_group_ops *ops = pg->end.ops;
    return ops->clock_ns ? ops->clock_ns(pg->end.group) : brg__clock_ns();
}

void brg__pg_launched(brg_pg *pg, uint64_t n_calls)
{
    pg->n_started += n_calls;
    if (pg->end.ops->launched && pg->error.code == BRG_OK)
        pg->end.ops->launched(pg->end.group);
}

uint8_t brg__pg_number_reducer(brg_pg *pg)
{
    pg->n_reducers = (uint8_t)(pg->n_reducers % 255 + 1);
    return pg->n_reducers;
}

void brg__pg_label(brg_pg *pg, uint8_t reducer, uint8_t pace, uint16_t plan,
                   int32_t bucket)
{
    pg->reducer = reducer;
    pg->pace = pace;
    pg->plan = plan;
    pg->bucket = bucket;
}

brg_status brg__pg_check(const brg_pg *pg)
{
    if (pg->error.code != BRG_OK)
        brg__error_restore(&pg->error);
    return pg->error.code;
}

brg_status brg_pg_error(brg_pg *pg)
{
    BRG_CHECK_ARG(pg, "brg_pg_error: the group is NULL");
    return brg__pg_check(pg);
}

bool brg__pg_poll(brg_pg *pg)
{
    if (pg->error.code != BRG_OK)
        return false;
    pg->stats.n_polls++;
    if (pg->end.ops->progress(pg->end.group) != BRG_OK) {
        brg__pg_kill(pg);
        return false;
    }
    brg__record_completed(pg);
    return true;
}

void brg_pg_progress(brg_pg *pg)
{
    if (!pg || !pg->in_flight || pg->error.code != BRG_OK)
        return;
    if (!brg__pg_poll(pg))
        return;
    if (pg->n_released)
        brg__work_reap(pg);
}

void brg_pg_get_stats(const brg_pg *pg, brg_pg_stats *filled)
{
    *filled = pg ? pg->stats : (brg_pg_stats){0};
}

void *brg__pg_group_of(const brg_pg *pg, const brg_group_ops *ops)
{
    return pg && pg->end.ops == ops ? pg->end.group : NULL;
}
