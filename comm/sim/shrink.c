/* SPDX-License-Identifier: Apache-2.0
 * A group of the ranks that are left: when every rank that is neither dead nor
 * at its end waits for it, these become the members and a new age begins.
 * Everything of the old one has been forgotten by then. */
#include "comm/sim/world.h"
#include "core/base/error.h"

static brg_status check(const brg__sim_end *end)
{
    const brg__sim_rank *rank = end->rank;
    if (rank->has_died)
        return BRG_FAIL(BRG_ERR_COMM, "rank %d has died, by script",
                        rank->rank);
    if (end->age != rank->age)
        return BRG_FAIL(BRG_ERR_STATE,
                        "rank %d: brg_pg_shrink: this group was shrunk before",
                        rank->seat);
    return BRG_OK;
}

/* Those that wait for something else are told when that will never come. */
static void wait_for_the_rest(brg__sim_rank *rank)
{
    rank->verdict.code = BRG_OK;
    rank->is_shrinking = true;
    rank->world->n_shrinking++;
    while (rank->is_shrinking)
        brg__sim_yield(rank);
}

brg_status brg__sim_shrink(void *group, brg_group *filled)
{
    brg__sim_end *end = group;
    brg__sim_rank *rank = end->rank;
    BRG_TRY(check(end));
    const struct brg_sim_fault *fault = brg__sim_next_fault(rank);
    if (fault && fault->kind == BRG_SIM_DIE)
        return brg__sim_die(rank, "brg_pg_shrink");
    brg__sim_forget(rank);
    rank->world->n_idle = 0;
    if (fault && fault->kind == BRG_SIM_DELAY) {
        rank->clock += fault->ns;
        brg__sim_come_late(rank);
    }
    wait_for_the_rest(rank);
    brg_status status = brg__sim_end_make(rank, filled);
    if (status != BRG_OK)
        brg__sim_forget(rank); /* the others have it as a member */
    return status;
}

/* ---- A new age ---------------------------------------------------------------- */

/* Ranks of a node if all nodes have as many left; else each member is a node
 * of its own, as under MPI. */
static int even_nodes(const brg__sim_world *world)
{
    int size = world->options.node_size, found = 0;
    for (int i = 0, first = 0; size > 0 && i <= world->n_members; i++) {
        if (i < world->n_members &&
            world->members[i] / size == world->members[first] / size)
            continue;
        if (found > 0 && i - first != found)
            return 1;
        found = i - first;
        first = i;
    }
    return found;
}

static void take_in(brg__sim_world *world, brg__sim_rank *rank)
{
    rank->is_shrinking = false;
    rank->seat = world->n_members;
    world->members[world->n_members++] = rank->rank;
    rank->age = world->age;
    rank->is_dead = false;
    rank->death = 0;
    rank->n_calls = rank->next_seq[0] = rank->next_seq[1] = 0;
    rank->lost = NULL;
    rank->has_last = false;
}

/* They have agreed: two trips of a small message through the group. */
static void pass_time(brg__sim_world *world)
{
    uint64_t now = world->net_free;
    for (int i = 0; i < world->n_members; i++) {
        const brg__sim_rank *rank = brg__sim_member(world, i);
        now = rank->clock > now ? rank->clock : now;
    }
    if (world->has_time)
        now += 2 * brg__sim_cost(world, &(brg_call){.coll = BRG_COLL_BARRIER});
    for (int i = 0; i < world->n_members; i++)
        brg__sim_member(world, i)->clock = now;
    world->net_free = now;
}

static bool is_gone(const brg__sim_rank *rank)
{
    return rank->has_ended || rank->has_died;
}

void brg__sim_begin_age(brg__sim_world *world)
{
    for (int r = 0; r < world->n_ranks; r++)
        if (!is_gone(&world->ranks[r]) && !world->ranks[r].is_shrinking)
            return;
    brg__sim_clear(world);
    world->age++;
    world->n_members = world->n_dead = world->n_shrinking = 0;
    for (int r = 0; r < world->n_ranks; r++)
        if (world->ranks[r].is_shrinking)
            take_in(world, &world->ranks[r]);
        else
            world->ranks[r].seat = -1;
    world->node_size = even_nodes(world);
    pass_time(world);
}
