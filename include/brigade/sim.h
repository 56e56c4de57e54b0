/* SPDX-License-Identifier: Apache-2.0
 * The simulated world beyond brg_sim_run: virtual time, faults by script, and
 * every order of events. See docs/simulated-world.md. */
#ifndef BRG_SIM_H
#define BRG_SIM_H

#include <brigade/comm.h>

BRG_BEGIN_DECLS

/* ---- Virtual time -------------------------------------------------------------
 * With brg_sim_options.latency_ns or bytes_per_s set, every rank has a clock of
 * its own, and what is earliest happens first; the seed decides among equals.
 * Over n ranks, with s = ceil(log2(n)) latencies and share = (n - 1) / n, a
 * collective of B bytes takes
 *
 *     all_reduce       2 s + 2 share B / bandwidth
 *     sum_leaves       2 s + (parts + 1) share B / bandwidth
 *     reduce_scatter   s + share n B / bandwidth, as does all_gather
 *     broadcast        s + B / bandwidth
 *     barrier          s
 *     send, recv       1 latency + B / bandwidth
 *
 * from when its last rank has started it, and none before the one ahead of it
 * is over. A poll takes 1 us. Both calls are for groups of a simulated world
 * (0 and nothing otherwise). */
BRG_API uint64_t brg_sim_now_ns(const brg_pg *pg);
/* This rank computes for so long; the others go on. */
BRG_API void brg_sim_spend_ns(brg_pg *pg, uint64_t ns);

/* ---- Faults ------------------------------------------------------------------- */

typedef enum brg_sim_fault_kind {
    BRG_SIM_DELAY,   /* arrives `ns` later; without virtual time: after
                        everything else that can happen */
    BRG_SIM_DROP,    /* never arrives */
    BRG_SIM_CORRUPT, /* one bit of what this rank receives is flipped, unless
                        it is alone */
    BRG_SIM_DIE,     /* the rank is gone, as after SIGKILL: its call fails with
                        BRG_ERR_COMM, its program's result is passed over */
    BRG_SIM_REPEAT   /* arrives a second time, later */
} brg_sim_fault_kind;

/* Befalls the call-th communication call of a rank, from 0: collectives, sends,
 * recvs and brg_pg_shrink (which is only delayed or died in) together. `rank`
 * is that of the first group, also after a shrink. */
struct brg_sim_fault {
    brg_sim_fault_kind kind;
    int rank;
    uint64_t call;
    uint64_t ns;
};

struct brg_trace;

/* ---- Runs of others, again --------------------------------------------------------
 * With virtual time: the call-th communication call of a rank (counted as for
 * faults) arrives at this time, or when it is made if that is later; UINT64_MAX:
 * never. So a program that only communicates meets as a recorded one did. */
struct brg_sim_arrival {
    int rank;
    uint64_t call;
    uint64_t at_ns;
};

/* The arrivals of a recorded run: one trace of each rank (trace.h), clocks
 * aligned, time 0 at the first of them; from the first collective on that all
 * files still have. `group`: 0 is the first that the processes made. A rank
 * whose group failed before it came to a collective that others came to never
 * comes to it. Fills at most `size`; *n: how many there are. */
BRG_API BRG_NODISCARD brg_status brg_sim_arrivals_of(
    struct brg_sim_arrival *filled, size_t size, size_t *n,
    struct brg_trace *const *traces, size_t n_traces, int group);

/* ---- Every order ------------------------------------------------------------------
 * Runs the program again and again, once for every order in which the first
 * `depth` choices of the scheduler can be made (later ones follow the seed), or
 * until a run fails or max_runs have been made. The program must do the same
 * each time. Returns the failure, with the choices that lead to it in the
 * message: brg_sim_options.replay repeats it. */
typedef struct brg_sim_exploration {
    size_t depth;      /* 1 to 64 */
    uint64_t max_runs; /* 0: no limit */
    uint64_t n_runs;   /* filled */
    bool is_complete;  /* filled: there is no other order */
} brg_sim_exploration;

BRG_API BRG_NODISCARD brg_status brg_sim_explore(int world_size,
                                                 const brg_sim_options *options,
                                                 brg_sim_rank_fn fn, void *user,
                                                 brg_sim_exploration *filled);

BRG_END_DECLS

#endif
