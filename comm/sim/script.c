/* SPDX-License-Identifier: Apache-2.0
 * Faults by script, and how long things take. */
#include "comm/local.h"
#include "comm/patterns/tree.h"
#include "comm/sim/world.h"
#include "core/base/options.h"

#define MAX_RECORDS ((size_t)1 << 24)

const struct brg_sim_fault *brg__sim_next_fault(brg__sim_rank *rank)
{
    const brg_sim_options *o = &rank->world->options;
    uint64_t call = rank->n_starts++;
    for (size_t i = 0; i < o->n_faults; i++)
        if (o->faults[i].rank == rank->rank && o->faults[i].call == call)
            return &o->faults[i];
    return NULL;
}

/* The list is most likely in the order of calls: the search goes on where it
 * ended. */
uint64_t brg__sim_next_arrival(brg__sim_rank *rank)
{
    const brg_sim_options *o = &rank->world->options;
    for (size_t i = 0; i < o->n_arrivals; i++) {
        size_t k = (rank->arrival_at + i) % o->n_arrivals;
        const struct brg_sim_arrival *a = &o->arrivals[k];
        if (a->rank != rank->rank || a->call != rank->n_starts)
            continue;
        rank->arrival_at = k + 1;
        return a->at_ns;
    }
    return 0;
}

brg_status brg__sim_die(brg__sim_rank *rank, const char *where)
{
    rank->has_died = true;
    brg__sim_forget(rank);
    return BRG_FAIL(BRG_ERR_COMM, "rank %d died at %s, by script", rank->rank,
                    where);
}

/* ---- Costs (sim.h has the formulas) ------------------------------------------ */

static uint64_t n_steps(int n_ranks)
{
    uint64_t n = 0;
    while (1u << n < (unsigned)n_ranks)
        n++;
    return n;
}

uint64_t brg__sim_cost(const brg__sim_world *world, const brg_call *call)
{
    const brg_sim_options *o = &world->options;
    int n = world->n_members;
    uint64_t latencies = n_steps(n);
    double times = 0, share = (double)(n - 1) / n;
    switch (call->coll) {
    case BRG_COLL_ALL_REDUCE:
        latencies *= 2;
        times = 2 * share;
        break;
    case BRG_COLL_SUM_LEAVES:
        latencies *= 2;
        times = (brg__tree_max_parts(call->n_leaves, n) + 1) * share;
        break;
    case BRG_COLL_REDUCE_SCATTER:
    case BRG_COLL_ALL_GATHER:
        times = share * n;
        break;
    case BRG_COLL_BROADCAST:
        times = n > 1;
        break;
    case BRG_COLL_BARRIER:
        break;
    case BRG_COLL_SEND:
    case BRG_COLL_RECV:
        latencies = 1;
        times = 1;
        break;
    }
    double bytes = times * (double)call->nbytes;
    double moving = o->bytes_per_s > 0 ? 1e9 * bytes / o->bytes_per_s : 0;
    return latencies * o->latency_ns + (uint64_t)moving;
}

/* ---- Options -------------------------------------------------------------------- */

static brg_status check_fault(const struct brg_sim_fault *f, int world_size)
{
    BRG_CHECK_ARG((unsigned)f->kind <= BRG_SIM_REPEAT && f->rank >= 0 &&
                      f->rank < world_size,
                  "simulated world: a fault of kind %d on rank %d of %d",
                  (int)f->kind, f->rank, world_size);
    return BRG_OK;
}

brg_status brg__sim_options_take(brg_sim_options *filled, int world_size,
                                 const brg_sim_options *options,
                                 brg_sim_rank_fn fn)
{
    *filled = (brg_sim_options)BRG_SIM_OPTIONS_INIT;
    BRG_TRY(
        BRG_TAKE_OPTIONS(filled, options, "brg_sim_run", BRG_SIM_OPTIONS_INIT));
    BRG_CHECK_ARG(world_size >= 1 && world_size <= BRG__LOCAL_MAX_RANKS,
                  "brg_sim_run: world size is %d, expected 1 to %d", world_size,
                  BRG__LOCAL_MAX_RANKS);
    BRG_CHECK_ARG(filled->node_size >= 0,
                  "brg_sim_run: node_size is %d, expected 0 or more",
                  filled->node_size);
    BRG_CHECK_ARG(filled->bytes_per_s >= 0,
                  "brg_sim_run: bytes_per_s is %g, expected 0 or more",
                  filled->bytes_per_s);
    BRG_CHECK_ARG(filled->timeout_s >= 0,
                  "brg_sim_run: timeout_s is %g, expected 0 or more",
                  filled->timeout_s);
    BRG_CHECK_ARG(filled->trace_records <= MAX_RECORDS,
                  "brg_sim_run: trace_records is %zu, expected at most %zu",
                  filled->trace_records, MAX_RECORDS);
    BRG_CHECK_ARG(fn, "brg_sim_run: the program is NULL");
    for (size_t i = 0; i < filled->n_faults; i++)
        BRG_TRY(check_fault(&filled->faults[i], world_size));
    return BRG_OK;
}
