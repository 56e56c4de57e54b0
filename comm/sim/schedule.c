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

static bool can_run(const brg__sim_rank *rank)
{
    if (rank->has_ended)
        return false;
    return !rank->waits_for || rank->waits_for->is_done ||
           brg__sim_is_doomed(rank);
}

static size_t count_runnable(const brg__sim_world *world)
{
    size_t n = 0;
    for (int r = 0; r < world->n_ranks; r++)
        n += can_run(&world->ranks[r]);
    return n;
}

/* The i-th of the ranks that can run. */
static int nth_runnable(const brg__sim_world *world, size_t i)
{
    int r = 0;
    while (!can_run(&world->ranks[r]) || i-- > 0)
        r++;
    return r;
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
        size_t n_ranks = count_runnable(world);
        size_t n_choices = n_ranks + world->events.n;
        if (n_choices == 0) {
            if (all_ended(world))
                return -1;
            brg__sim_deadlock(world);
            continue;
        }
        size_t i = (size_t)(draw(world) % n_choices);
        if (i < n_ranks)
            return nth_runnable(world, i);
        brg__sim_happen(world, i - n_ranks);
        world->n_idle = 0;
    }
}

static void hand_over(brg__sim_world *world)
{
    int next = draw_holder(world);
    pthread_mutex_lock(&world->lock);
    world->holder = next;
    if (next >= 0)
        pthread_cond_signal(&world->ranks[next].turn);
    pthread_mutex_unlock(&world->lock);
}

void brg__sim_yield(brg__sim_rank *rank)
{
    brg__sim_world *world = rank->world;
    if (++world->n_idle > MAX_IDLE_TURNS) {
        brg__sim_deadlock(world);
        world->n_idle = 0;
    }
    hand_over(world);
    pthread_mutex_lock(&world->lock);
    while (world->holder != rank->rank)
        pthread_cond_wait(&rank->turn, &world->lock);
    pthread_mutex_unlock(&world->lock);
}

void brg__sim_leave(brg__sim_rank *rank)
{
    rank->has_ended = true;
    rank->world->n_idle = 0;
    hand_over(rank->world);
}
