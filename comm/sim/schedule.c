/* SPDX-License-Identifier: Apache-2.0
 * Whose turn it is: drawn from the ranks that can run and the events that can
 * happen. */
#include "comm/sim/world.h"

/* Polling ranks that see nothing happen for so long wait for ever. */
#define MAX_IDLE_TURNS 1000000

/* splitmix64 */
static uint64_t draw(brg__sim_world *world)
{
    uint64_t z = (world->random += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

size_t brg__sim_choose(brg__sim_world *world, size_t n)
{
    brg__sim_choices *c = &world->choices;
    if (n == 1)
        return 0;
    size_t i = 0, k = c->n;
    if (k < c->n_given)
        i = c->at[k] < n ? c->at[k] : n - 1;
    else if (k >= c->depth)
        i = (size_t)(draw(world) % n);
    if (k < BRG__SIM_MAX_DEPTH) {
        c->at[k] = (uint16_t)i;
        c->of[k] = (uint16_t)n;
        c->n++;
    }
    return i;
}

/* A wait that nothing ends any more is no time-out but a deadlock, so the
 * deadline counts only while something else is to come. */
static bool is_overdue(const brg__sim_rank *rank)
{
    return rank->is_overdue && rank->waits_for && !rank->waits_for->is_done;
}

static bool can_run(const brg__sim_rank *rank)
{
    if (rank->has_ended || rank->is_shrinking)
        return false;
    return !rank->waits_for || rank->waits_for->is_done || is_overdue(rank) ||
           brg__sim_is_doomed(rank);
}

/* What may come next: ranks first, then events. */
typedef struct options {
    size_t n_ranks;
    size_t n_events;
    uint64_t earliest; /* only what is not later */
    bool wants_late;
} options;

/* Done before the rank looks: its clock moves on to that when it runs. */
static uint64_t time_of(const brg__sim_rank *rank)
{
    const brg_call *call = rank->waits_for;
    if (is_overdue(rank))
        return rank->deadline;
    bool is_later = call && call->is_done && call->mark[0] > rank->clock;
    return is_later ? call->mark[0] : rank->clock;
}

static bool is_rank_open(const options *o, const brg__sim_rank *rank)
{
    return can_run(rank) && (!rank->is_late || o->wants_late) &&
           time_of(rank) <= o->earliest;
}

/* The network carries what was started at one time in the order of the calls,
 * as backends do. */
static bool is_event_open(const brg__sim_world *world, const options *o,
                          const brg__sim_event *event)
{
    bool is_open = event->at <= o->earliest;
    bool has_order = world->has_time && event->kind == BRG__SIM_RUN;
    for (size_t i = 0; has_order && is_open && i < world->events.n; i++) {
        const brg__sim_event *other = &world->events.at[i];
        is_open = other->kind != BRG__SIM_RUN || other->at > o->earliest ||
                  other->meeting->seq >= event->meeting->seq;
    }
    return is_open;
}

static void count(const brg__sim_world *world, options *o)
{
    o->n_ranks = o->n_events = 0;
    for (int r = 0; r < world->n_ranks; r++)
        o->n_ranks += is_rank_open(o, &world->ranks[r]);
    for (size_t i = 0; i < world->events.n; i++)
        o->n_events += is_event_open(world, o, &world->events.at[i]);
}

static uint64_t find_earliest(const brg__sim_world *world)
{
    uint64_t earliest = UINT64_MAX;
    for (int r = 0; r < world->n_ranks; r++)
        if (can_run(&world->ranks[r]) && time_of(&world->ranks[r]) < earliest)
            earliest = time_of(&world->ranks[r]);
    for (size_t i = 0; i < world->events.n; i++)
        if (world->events.at[i].at < earliest)
            earliest = world->events.at[i].at;
    return earliest;
}

/* Waits whose time-out comes before anything else does. */
static void find_overdue(brg__sim_world *world)
{
    uint64_t earliest = find_earliest(world);
    for (int r = 0; r < world->n_ranks && earliest < UINT64_MAX; r++) {
        brg__sim_rank *rank = &world->ranks[r];
        rank->is_overdue |= rank->waits_for && rank->deadline < earliest;
    }
}

static options find_options(brg__sim_world *world)
{
    options o = {.earliest = UINT64_MAX};
    if (world->has_time) {
        find_overdue(world);
        o.earliest = find_earliest(world);
    }
    count(world, &o);
    o.wants_late = o.n_ranks + o.n_events == 0;
    if (o.wants_late)
        count(world, &o);
    return o;
}

/* The i-th of the ranks that can run. */
static int nth_rank(const brg__sim_world *world, const options *o, size_t i)
{
    int r = 0;
    while (!is_rank_open(o, &world->ranks[r]) || i-- > 0)
        r++;
    return r;
}

static size_t nth_event(const brg__sim_world *world, const options *o, size_t i)
{
    size_t k = 0;
    while (!is_event_open(world, o, &world->events.at[k]) || i-- > 0)
        k++;
    return k;
}

static bool all_ended(const brg__sim_world *world)
{
    for (int r = 0; r < world->n_ranks; r++)
        if (!world->ranks[r].has_ended)
            return false;
    return true;
}

/* The next holder; events happen on the way to it. -1: all have ended. */
static int draw_holder(brg__sim_world *world)
{
    for (;;) {
        if (world->n_shrinking > 0)
            brg__sim_begin_age(world);
        options o = find_options(world);
        if (o.n_ranks + o.n_events == 0) {
            if (all_ended(world))
                return -1;
            brg__sim_deadlock(world);
            continue;
        }
        size_t i = brg__sim_choose(world, o.n_ranks + o.n_events);
        if (i < o.n_ranks)
            return nth_rank(world, &o, i);
        brg__sim_happen(world, nth_event(world, &o, i - o.n_ranks));
        world->n_idle = 0;
    }
}

void brg__sim_await_turn(brg__sim_rank *rank)
{
    while (sem_wait(&rank->turn) != 0) {
        /* a signal's handler has run */
    }
}

void brg__sim_yield(brg__sim_rank *rank)
{
    brg__sim_world *world = rank->world;
    if (++world->n_idle > MAX_IDLE_TURNS) {
        brg__sim_deadlock(world);
        world->n_idle = 0;
    }
    int next = draw_holder(world);
    if (next == rank->rank)
        return;
    sem_post(&world->ranks[next].turn); /* the caller has not ended */
    brg__sim_await_turn(rank);
}

void brg__sim_come_late(brg__sim_rank *rank)
{
    rank->is_late = !rank->world->has_time;
    if (rank->is_late)
        brg__sim_yield(rank);
    rank->is_late = false;
}

void brg__sim_leave(brg__sim_rank *rank)
{
    brg__sim_world *world = rank->world;
    rank->has_ended = true;
    world->n_idle = 0;
    int next = draw_holder(world);
    if (next >= 0)
        sem_post(&world->ranks[next].turn);
}
