/* SPDX-License-Identifier: Apache-2.0
 * The simulated world: ranks, what they have started, and what is to happen.
 *
 * One rank holds the turn at a time and owns the whole world while it does;
 * the mutex only hands the turn over. At a communication point the holder
 * draws what comes next, from the ranks that can run and the events that can
 * happen, by a generator seeded once: nothing depends on the clock or on the
 * system's scheduler.
 *
 *   meeting  a collective by sequence number; it runs when all have come
 *   event    something that will happen: a meeting's data moves, then each
 *            rank learns of it, at a time of its own */
#ifndef BRG_COMM_SIM_WORLD_H
#define BRG_COMM_SIM_WORLD_H

#include <pthread.h>

#include "comm/pg.h"

typedef struct brg__sim_rank {
    struct brg__sim_world *world;
    int rank;
    bool is_dead;     /* starts nothing any more: failed or ended */
    bool has_ended;   /* its program has returned */
    int death;        /* its place among those that died, from 1 */
    uint64_t n_calls; /* collectives started */
    brg_call *waits_for;
    brg__error_record verdict; /* imposed on it: mismatch, deadlock */
    brg_status status;
    pthread_t thread;
    pthread_cond_t turn;
} brg__sim_rank;

typedef struct brg__sim_meeting {
    struct brg__sim_meeting *next_free;
    uint64_t seq;
    int n_joined;
    int n_told;
    bool has_run;
    bool is_mismatch;
    brg_signature first; /* of whoever came first */
    brg_signature other; /* the one that disagrees */
    brg_call *calls[];   /* by rank; NULL: has not come, or has died */
} brg__sim_meeting;

typedef enum brg__sim_event_kind {
    BRG__SIM_RUN,  /* the meeting's data moves */
    BRG__SIM_COPY, /* call (a send) to other (a recv) */
    BRG__SIM_TELL  /* call is done; its meeting, if any, counts it */
} brg__sim_event_kind;

typedef struct brg__sim_event {
    brg__sim_event_kind kind;
    int rank; /* of TELL, and of the sender of COPY */
    brg__sim_meeting *meeting;
    brg_call *call;
    brg_call *other;
} brg__sim_event;

/* A send or recv that is not done. */
typedef struct brg__sim_p2p {
    int rank;
    bool is_matched;
    brg_call *call;
} brg__sim_p2p;

typedef struct brg__sim_world {
    pthread_mutex_t lock;
    int holder; /* rank whose turn it is; -1: nobody's */
    int n_ranks;
    int node_size;
    uint64_t random;
    uint64_t n_idle; /* turns passed since anything happened */
    int n_dead;
    int first_failed; /* rank, or -1 */
    brg__error_record failure;
    brg_sim_rank_fn fn;
    void *user;
    brg__sim_rank *ranks;
    brg__sim_meeting *free_meetings;
    BRG__ARRAY(brg__sim_meeting *) open;
    BRG__ARRAY(brg__sim_event) events;
    BRG__ARRAY(brg__sim_p2p) p2p;
} brg__sim_world;

/* ---- Turns (schedule.c); the caller holds the turn ------------------------- */

/* Lets others run; returns when the turn comes back. */
void brg__sim_yield(brg__sim_rank *rank);

/* Hands the turn on for good. */
void brg__sim_leave(brg__sim_rank *rank);

/* ---- Matching (matching.c); the caller holds the turn ----------------------- */

/* The rank's call takes its place in a meeting or meets its peer. */
brg_status brg__sim_join(brg__sim_rank *rank, brg_call *call);

/* Makes one of the events happen. */
void brg__sim_happen(brg__sim_world *world, size_t i);

/* Drops every call of the rank: its buffers may be gone. */
void brg__sim_forget(brg__sim_rank *rank);

/* Why what the rank has started can never complete; BRG_OK if it may. The
 * record is set on failure. */
brg_status brg__sim_check(brg__sim_rank *rank);

/* The same without a record. */
bool brg__sim_is_doomed(const brg__sim_rank *rank);

/* Every living rank waits and nothing can happen: all are told so. */
void brg__sim_deadlock(brg__sim_world *world);

/* Which ranks the call waits for, in words. */
void brg__sim_explain(const brg__sim_rank *rank, const brg_call *call,
                      char *text, size_t size);

#endif
