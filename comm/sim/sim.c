/* SPDX-License-Identifier: Apache-2.0
 * The simulated group's slots, and running a program on every rank. */
#include <string.h>

#include "comm/call.h"
#include "comm/local.h"
#include "comm/pg.h"
#include "comm/sim/world.h"
#include "comm/trace.h"
#include "core/base/clock.h"
#include "core/base/options.h"

/* Of a rank, if nobody asks for more: enough for messages. */
#define SMALL_TRACE 256
#define SMALL_TEXT 4096

static brg__sim_rank *rank_of(void *group)
{
    return ((brg__sim_end *)group)->rank;
}

static brg_status die(brg__sim_rank *rank, const brg_call *call)
{
    char text[120];
    brg__call_describe(call, text, sizeof text);
    return brg__sim_die(rank, text);
}

/* Comes when it did in a recorded run, unless it is later already. */
static void come_as_recorded(brg__sim_rank *rank, const brg_call *call,
                             uint64_t at)
{
    if (!rank->world->has_time || at <= rank->clock || at == UINT64_MAX)
        return;
    rank->clock = at;
    brg__record_progressed_at(call, BRG_TRACE_ARRIVED, at);
    brg__sim_yield(rank);
}

/* mark[0]: when it came, and then when it was done; mark[1]: to be spoilt. */
static brg_status sim_start(void *group, brg_call *call)
{
    brg__sim_rank *rank = rank_of(group);
    uint64_t arrival = brg__sim_next_arrival(rank);
    const struct brg_sim_fault *fault = brg__sim_next_fault(rank);
    come_as_recorded(rank, call, arrival);
    call->mark[0] = rank->clock;
    if (fault && fault->kind == BRG_SIM_DIE)
        return die(rank, call);
    if (fault && fault->kind == BRG_SIM_DELAY) {
        call->mark[0] += fault->ns;
        brg__sim_come_late(rank);
        if (rank->world->has_time)
            brg__record_progressed_at(call, BRG_TRACE_ARRIVED, call->mark[0]);
    }
    call->mark[1] = fault && fault->kind == BRG_SIM_CORRUPT;
    if ((fault && fault->kind == BRG_SIM_DROP) || arrival == UINT64_MAX)
        rank->lost = call;
    else
        BRG_TRY(brg__sim_join(rank, call));
    if (fault && fault->kind == BRG_SIM_REPEAT)
        brg__sim_repeat(rank, call);
    brg__sim_yield(rank);
    return BRG_OK;
}

static brg_status sim_progress(void *group)
{
    brg__sim_rank *rank = rank_of(group);
    if (rank->world->has_time)
        rank->clock += BRG__SIM_POLL_NS;
    brg__sim_yield(rank);
    return brg__sim_check(rank);
}

static brg_status time_out(brg__sim_rank *rank, const brg_call *call)
{
    rank->clock = rank->deadline;
    return brg__work_fail_timeout(brg__work_of(call));
}

static brg_status sim_wait(void *group, brg_call *call)
{
    brg__sim_rank *rank = rank_of(group);
    brg_status status = BRG_OK;
    rank->waits_for = call;
    rank->is_overdue = false;
    rank->deadline = rank->clock + rank->timeout_ns;
    while (!call->is_done && status == BRG_OK) {
        brg__sim_yield(rank);
        if (!call->is_done && rank->is_overdue)
            status = time_out(rank, call);
        else if (!call->is_done)
            status = brg__sim_check(rank);
    }
    rank->waits_for = NULL;
    if (call->is_done && call->mark[0] > rank->clock)
        rank->clock = call->mark[0];
    return status;
}

/* The rank may be a member of a later group: that one goes on. */
static void forget(const brg__sim_end *end)
{
    if (end->age == end->rank->age)
        brg__sim_forget(end->rank);
}

static void sim_abort(void *group, brg_status why)
{
    (void)why;
    forget(group);
}

static void sim_destroy(void *group)
{
    forget(group);
    brg__mem_free(group);
}

static uint64_t sim_clock_ns(void *group)
{
    const brg__sim_rank *rank = rank_of(group);
    return rank->world->has_time ? rank->clock : brg__clock_ns();
}

static const brg_group_ops sim_ops = {
    .abi = BRG_BACKEND_ABI,
    .struct_size = sizeof(brg_group_ops),
    .start = sim_start,
    .progress = sim_progress,
    .wait = sim_wait,
    .look = brg__sim_look,
    .abort = sim_abort,
    .clock_ns = sim_clock_ns,
    .shrink = brg__sim_shrink,
    .destroy = sim_destroy,
};

brg_status brg__sim_end_make(brg__sim_rank *rank, brg_group *filled)
{
    brg__sim_end *end = BRG__NEW(brg__sim_end);
    if (!end)
        return BRG_ERR_NOMEM;
    *end = (brg__sim_end){.rank = rank, .age = rank->age};
    *filled = (brg_group){.ops = &sim_ops,
                          .group = end,
                          .rank = rank->seat,
                          .world_size = rank->world->n_members,
                          .sums_leaves = true,
                          .place = &rank->place,
                          .sums_blocks = true};
    return BRG_OK;
}

static brg_status sim_create(const brg_host *host,
                             const brg_pg_options *options, brg_group *filled)
{
    (void)host;
    brg__sim_rank *rank = (brg__sim_rank *)options->backend_data;
    rank->timeout_ns = (uint64_t)(options->timeout_s * 1e9);
    return brg__sim_end_make(rank, filled);
}

static const brg_backend backend_sim = {
    .abi = BRG_BACKEND_ABI,
    .struct_size = sizeof(brg_backend),
    .name = "sim",
    .create = sim_create,
};

/* ---- Running ----------------------------------------------------------------- */

static brg_status run_program(brg__sim_rank *rank)
{
    brg__sim_world *world = rank->world;
    brg_pg *pg = NULL;
    brg_pg_options options = BRG_PG_OPTIONS_INIT;
    options.backend_data = rank;
    options.timeout_s = world->options.timeout_s;
    BRG_TRY(brg__pg_make(&pg, &backend_sim, &options));
    brg_error_clear();
    pg->is_borrowed = true;
    brg_status status = world->fn(pg, world->user);
    BRG_EXPLAIN(status, "the program");
    brg__pg_close(pg);
    return status;
}

static void note_failure(brg__sim_rank *rank)
{
    brg__sim_world *world = rank->world;
    if (world->first_failed >= 0 || rank->has_died)
        return;
    world->first_failed = rank->rank;
    (void)brg__error_prefix("rank %d: ", rank->rank);
    brg__error_save(&world->failure);
}

static void *rank_main(void *user)
{
    brg__sim_rank *rank = user;
    brg__sim_await_turn(rank);
    brg__record_adopt(rank->trace);
    rank->status = run_program(rank);
    brg__record_adopt(NULL);
    if (rank->status != BRG_OK)
        note_failure(rank);
    brg__sim_forget(rank);
    brg__sim_leave(rank);
    return NULL;
}

static void free_world(brg__sim_world *world)
{
    for (int r = 0; world->ranks && r < world->n_ranks; r++) {
        sem_destroy(&world->ranks[r].turn);
        brg__record_ring_destroy(world->ranks[r].trace);
    }
    for (size_t i = 0; i < world->open.n; i++)
        brg__mem_free(world->open.at[i]);
    while (world->free_meetings) {
        brg__sim_meeting *meeting = world->free_meetings;
        world->free_meetings = meeting->next_free;
        brg__mem_free(meeting);
    }
    brg__array_deinit(&world->open);
    brg__array_deinit(&world->events);
    brg__array_deinit(&world->p2p);
    brg__mem_free(world->ranks);
    brg__mem_free(world->members);
}

static brg_status init_traces(brg__sim_world *world)
{
    size_t n = 1, wanted = world->options.trace_records;
    size_t n_text = wanted ? BRG__RECORD_TEXT : SMALL_TEXT;
    while (n < (wanted ? wanted : SMALL_TRACE))
        n *= 2;
    for (int r = 0; r < world->n_ranks; r++) {
        brg__sim_rank *rank = &world->ranks[r];
        BRG_TRY(brg__record_ring_create(&rank->trace, n, n_text));
        rank->trace->clock = world->has_time ? &rank->clock : NULL;
    }
    return BRG_OK;
}

static brg_status init_world(brg__sim_world *world, int n,
                             const brg_sim_options *options)
{
    world->n_ranks = world->n_members = n;
    world->node_size = options->node_size;
    world->random = options->seed;
    world->options = *options;
    world->has_time = options->latency_ns > 0 || options->bytes_per_s > 0;
    world->first_failed = -1;
    world->ranks =
        brg__mem_alloc_array((size_t)n, sizeof(brg__sim_rank), "ranks");
    world->members =
        brg__mem_alloc_array((size_t)n, sizeof *world->members, "ranks");
    if (!world->ranks || !world->members)
        return BRG_ERR_NOMEM;
    for (int r = 0; r < n; r++) {
        world->members[r] = r;
        world->ranks[r].world = world;
        world->ranks[r].rank = world->ranks[r].seat = r;
        sem_init(&world->ranks[r].turn, 0, 0);
    }
    return init_traces(world);
}

/* A rank without a thread counts as one that ended at once. */
static void start_threads(brg__sim_world *world, bool *has_thread)
{
    for (int r = 0; r < world->n_ranks; r++) {
        brg__sim_rank *rank = &world->ranks[r];
        has_thread[r] =
            pthread_create(&rank->thread, NULL, rank_main, rank) == 0;
        if (has_thread[r])
            continue;
        rank->status = BRG_FAIL(BRG_ERR_NOMEM, "no thread for a rank");
        rank->is_dead = rank->has_ended = true;
        note_failure(rank);
    }
}

static brg_status run_world(brg__sim_world *world)
{
    bool has_thread[BRG__LOCAL_MAX_RANKS];
    start_threads(world, has_thread);
    /* The main thread acts as a rank outside the world that hands over. */
    brg__sim_rank outside = {.world = world, .rank = -1};
    brg__sim_leave(&outside);
    for (int r = 0; r < world->n_ranks; r++)
        if (has_thread[r])
            pthread_join(world->ranks[r].thread, NULL);
    if (world->first_failed < 0)
        return BRG_OK;
    brg__error_restore(&world->failure);
    return world->failure.code;
}

brg_status brg__sim_run(int world_size, const brg_sim_options *options,
                        brg_sim_rank_fn fn, void *user,
                        brg__sim_choices *choices)
{
    brg__sim_world world = {.fn = fn, .user = user, .choices = *choices};
    brg_status status = init_world(&world, world_size, options);
    if (status == BRG_OK)
        status = run_world(&world);
    *choices = world.choices;
    free_world(&world);
    return status;
}

/* ---- Virtual time --------------------------------------------------------------- */

uint64_t brg_sim_now_ns(const brg_pg *pg)
{
    const brg__sim_end *end = brg__pg_group_of(pg, &sim_ops);
    return end ? end->rank->clock : 0;
}

void brg_sim_spend_ns(brg_pg *pg, uint64_t ns)
{
    brg__sim_end *end = brg__pg_group_of(pg, &sim_ops);
    if (!end || !end->rank->world->has_time)
        return;
    end->rank->clock += ns;
    brg__sim_yield(end->rank);
}
