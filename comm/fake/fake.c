/* SPDX-License-Identifier: Apache-2.0
 * The fake group: one rank of a world that is not there. It keeps a log of
 * what it is asked to send and fails when told to.
 *
 * A call is done at the first progress after its start, so that callers see
 * it in flight as they would with a real group. */
#include <string.h>

#include "comm/call.h"
#include "comm/pg.h"

typedef struct fake_group {
    int rank;
    int world_size;
    int64_t until_failure; /* calls left before one fails; -1: none does */
    brg_call *first;       /* started, not done */
    brg_call **last;
    bool must_fail; /* the last of these is the one to fail */
    BRG__ARRAY(brg_fake_call) log;
} fake_group;

static void move_data(const fake_group *fake, const brg_call *call)
{
    const char *send = call->send;
    char *recv = call->recv;
    size_t own = (size_t)fake->rank * call->nbytes;
    if (call->nbytes == 0)
        return;
    if (call->coll == BRG_COLL_REDUCE_SCATTER && recv != send + own)
        memmove(recv, send + own, call->nbytes);
    if (call->coll != BRG_COLL_ALL_GATHER)
        return;
    for (int r = 0; r < fake->world_size; r++)
        if (recv + (size_t)r * call->nbytes != send)
            memcpy(recv + (size_t)r * call->nbytes, send, call->nbytes);
}

static brg_status fake_start(void *group, brg_call *call)
{
    fake_group *fake = group;
    brg_fake_call entry = {.name = brg__coll_rows[call->coll].name,
                           .count = call->count,
                           .dtype = call->dtype,
                           .op = call->op,
                           .peer = call->peer};
    BRG_TRY(brg__array_push(&fake->log, entry));
    if (fake->until_failure == 0)
        fake->must_fail = true;
    if (fake->until_failure > 0)
        fake->until_failure--;
    *fake->last = call;
    fake->last = &call->next;
    return BRG_OK;
}

static brg_status fail_call(const fake_group *fake, const brg_call *call)
{
    char text[120];
    brg__call_describe(call, text, sizeof text);
    return BRG_FAIL(BRG_ERR_COMM,
                    "rank %d: %s failed, as brg_fake_fail_after "
                    "asked",
                    fake->rank, text);
}

static brg_status fake_progress(void *group)
{
    fake_group *fake = group;
    while (fake->first) {
        brg_call *call = fake->first;
        if (fake->must_fail && !call->next)
            return fail_call(fake, call);
        fake->first = call->next;
        if (!fake->first)
            fake->last = &fake->first;
        move_data(fake, call);
        call->is_done = true;
    }
    return BRG_OK;
}

static void fake_abort(void *group, brg_status why)
{
    (void)why;
    fake_group *fake = group;
    fake->first = NULL;
    fake->last = &fake->first;
}

static void fake_destroy(void *group)
{
    fake_group *fake = group;
    brg__array_deinit(&fake->log);
    brg__mem_free(fake);
}

static const brg_group_ops fake_ops = {
    .abi = BRG_BACKEND_ABI,
    .struct_size = sizeof(brg_group_ops),
    .start = fake_start,
    .progress = fake_progress,
    .abort = fake_abort,
    .destroy = fake_destroy,
};

static brg_status fake_create(const brg_host *host,
                              const brg_pg_options *options, brg_group *filled)
{
    (void)host;
    const int *place = options->backend_data; /* rank, world size */
    fake_group *fake = BRG__NEW(fake_group);
    if (!fake)
        return BRG_ERR_NOMEM;
    fake->rank = place[0];
    fake->world_size = place[1];
    fake->until_failure = -1;
    fake->last = &fake->first;
    *filled = (brg_group){.ops = &fake_ops,
                          .group = fake,
                          .rank = fake->rank,
                          .world_size = fake->world_size,
                          .sums_blocks = true};
    return BRG_OK;
}

static const brg_backend backend_fake = {
    .abi = BRG_BACKEND_ABI,
    .struct_size = sizeof(brg_backend),
    .name = "fake",
    .create = fake_create,
};

brg_status brg_pg_create_fake(brg_pg **out, int rank, int world_size)
{
    BRG_CHECK_ARG(out, "brg_pg_create_fake: out is NULL");
    *out = NULL;
    BRG_CHECK_ARG(world_size >= 1,
                  "brg_pg_create_fake: world size is %d, expected 1 or more",
                  world_size);
    BRG_CHECK_ARG(rank >= 0 && rank < world_size,
                  "brg_pg_create_fake: rank is %d, expected 0 to %d", rank,
                  world_size - 1);
    int place[2] = {rank, world_size};
    brg_pg_options options = BRG_PG_OPTIONS_INIT;
    options.backend_data = place;
    return brg__pg_make(out, &backend_fake, &options);
}

/* ---- The log ---------------------------------------------------------------- */

size_t brg_fake_n_calls(const brg_pg *pg)
{
    const fake_group *fake = brg__pg_group_of(pg, &fake_ops);
    return fake ? fake->log.n : 0;
}

brg_status brg_fake_call_at(const brg_pg *pg, size_t i, brg_fake_call *filled)
{
    const fake_group *fake = brg__pg_group_of(pg, &fake_ops);
    BRG_CHECK_ARG(fake, "brg_fake_call_at: not a fake group");
    BRG_CHECK_ARG(filled, "brg_fake_call_at: filled is NULL");
    BRG_CHECK_ARG(i < fake->log.n,
                  "brg_fake_call_at: call %zu of %zu does not exist", i,
                  fake->log.n);
    *filled = fake->log.at[i];
    return BRG_OK;
}

brg_status brg_fake_fail_after(brg_pg *pg, int64_t n)
{
    fake_group *fake = brg__pg_group_of(pg, &fake_ops);
    BRG_CHECK_ARG(fake, "brg_fake_fail_after: not a fake group");
    BRG_CHECK_ARG(n >= -1,
                  "brg_fake_fail_after: n is %lld, expected -1 or more",
                  (long long)n);
    fake->until_failure = n;
    fake->must_fail = false;
    pg->error.code = BRG_OK;
    return BRG_OK;
}
