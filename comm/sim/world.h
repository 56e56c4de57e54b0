/* SPDX-License-Identifier: Apache-2.0
 * The simulated world: ranks, what they have started, and what is to happen.
 *
 * One rank holds the turn at a time and owns the whole world while it does;
 * a semaphore of each rank hands it over. At a communication point the holder
 * draws what comes next, from the ranks that can run and the events that can
 * happen, by a generator seeded once: nothing depends on the clock or on the
 * system's scheduler.
 *
 *   meeting  a collective by sequence number; it runs when all have come
 *   event    something that will happen: a meeting's data moves, then each
 *            rank learns of it, at a time of its own
 *   member   a rank of the group there is now: all at the start, those that
 *            are left after a shrink, which begins a new age. A rank's seat
 *            among the members is its rank in the group; calls, signatures
 *            and meetings go by seats
 *
 * With virtual time only the earliest of them are drawn from. What is drawn is
 * written down, so that a run can be repeated choice by choice. */
#ifndef BRG_COMM_SIM_WORLD_H
#define BRG_COMM_SIM_WORLD_H

#include <pthread.h>
#include <semaphore.h>

#include <brigade/sim.h>

#include "comm/pg.h"

#define BRG__SIM_MAX_DEPTH 64
#define BRG__SIM_POLL_NS 1000

typedef struct brg__sim_rank {
    struct brg__sim_world *world;
    int rank;
    int seat;             /* among the members; -1: no longer one */
    uint32_t age;         /* of the group that it is a member of */
    bool is_dead;         /* starts nothing any more: failed or ended */
    bool has_ended;       /* its program has returned */
    bool is_shrinking;    /* waits for the others that are left */
    int death;            /* its place among those that died, from 1 */
    bool has_died;        /* by script */
    bool is_late;         /* waits until nothing else can happen */
    uint64_t n_calls;     /* collectives started */
    uint64_t next_seq[2]; /* of collectives, of sends and recvs: to come */
    uint64_t n_starts;    /* these, sends and recvs */
    uint64_t clock;       /* ns */
    const brg_call *lost; /* by script */
    brg_call *waits_for;
    brg__error_record verdict; /* imposed on it: mismatch, deadlock */
    brg_status status;
    uint64_t timeout_ns;
    uint64_t deadline; /* of its wait, with virtual time */
    bool is_overdue;   /* its wait has come to that */
    size_t arrival_at; /* where its next one may be in the list of them */
    bool has_last;
    brg_signature last; /* collective that it has started */
    uint64_t last_at;   /* which came then */
    brg__record_ring *trace;
    brg__record_place place;
    pthread_t thread;
    sem_t turn;
} brg__sim_rank;

/* One end of a group: the rank's as long as their ages are the same. */
typedef struct brg__sim_end {
    brg__sim_rank *rank;
    uint32_t age;
} brg__sim_end;

typedef struct brg__sim_meeting {
    struct brg__sim_meeting *next_free;
    uint64_t seq;
    int n_joined;
    int n_told;
    uint64_t at; /* the last to join did so */
    bool has_run;
    bool is_mismatch;
    brg_signature first; /* of whoever came first */
    brg_signature other; /* the one that disagrees */
    brg_call *calls[];   /* by seat; NULL: has not come, or has died */
} brg__sim_meeting;

typedef enum brg__sim_event_kind {
    BRG__SIM_RUN,  /* the meeting's data moves */
    BRG__SIM_COPY, /* call (a send) to other (a recv) */
    BRG__SIM_TELL, /* call is done; its meeting, if any, counts it */
    BRG__SIM_AGAIN /* a call comes a second time */
} brg__sim_event_kind;

typedef struct brg__sim_event {
    brg__sim_event_kind kind;
    int seat;    /* of TELL and AGAIN, and of the sender of COPY */
    uint64_t at; /* not before */
    brg__sim_meeting *meeting;
    brg_call *call;
    brg_call *other;
    brg_signature again; /* what comes */
} brg__sim_event;

/* A send or recv that is not done. */
typedef struct brg__sim_p2p {
    int seat;
    bool is_matched;
    bool is_over; /* the message is there; its rank is yet to be told */
    brg_call *call;
} brg__sim_p2p;

/* What was drawn of how many, where there was a choice: the first ones. */
typedef struct brg__sim_choices {
    size_t n_given; /* to be followed */
    size_t depth;   /* after these the first, so far; then by the seed */
    size_t n;       /* made */
    uint16_t at[BRG__SIM_MAX_DEPTH];
    uint16_t of[BRG__SIM_MAX_DEPTH];
} brg__sim_choices;

typedef struct brg__sim_world {
    int n_ranks;
    int n_members;
    int *members; /* rank at each seat */
    uint32_t age; /* shrinks so far */
    int n_shrinking;
    int node_size; /* of the members */
    uint64_t random;
    brg_sim_options options;
    bool has_time;
    uint64_t net_free; /* the last collective is over */
    brg__sim_choices choices;
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

/* Until the turn is the rank's. */
void brg__sim_await_turn(brg__sim_rank *rank);

/* Lets others run; returns when the turn comes back. */
void brg__sim_yield(brg__sim_rank *rank);

/* One of n, 0 to n - 1. */
size_t brg__sim_choose(brg__sim_world *world, size_t n);

/* Lets everything else happen first; with virtual time the clock sees to it. */
void brg__sim_come_late(brg__sim_rank *rank);

/* Hands the turn on for good. */
void brg__sim_leave(brg__sim_rank *rank);

/* ---- Matching (matching.c); the caller holds the turn ----------------------- */

static inline brg__sim_rank *brg__sim_member(const brg__sim_world *world,
                                             int seat)
{
    return &world->ranks[world->members[seat]];
}

/* The rank's call takes its place in a meeting or meets its peer. */
brg_status brg__sim_join(brg__sim_rank *rank, brg_call *call);

/* Makes one of the events happen. */
void brg__sim_happen(brg__sim_world *world, size_t i);

/* Drops every call of the rank: its buffers may be gone. */
void brg__sim_forget(brg__sim_rank *rank);

/* The rank dies by script; BRG_ERR_COMM. */
brg_status brg__sim_die(brg__sim_rank *rank, const char *where);

/* Why what the rank has started can never complete; BRG_OK if it may. The
 * record is set on failure. */
brg_status brg__sim_check(brg__sim_rank *rank);

/* The same without a record. */
bool brg__sim_is_doomed(const brg__sim_rank *rank);

/* How a rank stands to a call of `group`, another one (brg_group_ops.look). */
void brg__sim_look(void *group, const brg_call *call, int rank,
                   brg_peer *filled);

/* Every living rank waits and nothing can happen: all are told so but those that
 * shrink, whom the others may join then. */
void brg__sim_deadlock(brg__sim_world *world);

/* The same message once more, at some later time. */
void brg__sim_repeat(brg__sim_rank *rank, const brg_call *call);

/* No meeting, event or message is left: of a group that is over. */
void brg__sim_clear(brg__sim_world *world);

/* ---- Shrinking (shrink.c); the caller holds the turn -------------------------- */

/* The slot of brg_group_ops. */
brg_status brg__sim_shrink(void *end, brg_group *filled);

/* If all that are left wait for it: they are the members from now on. */
void brg__sim_begin_age(brg__sim_world *world);

/* The rank's end of the group there is now (sim.c). */
brg_status brg__sim_end_make(brg__sim_rank *rank, brg_group *filled);

/* ---- Scripts and time (script.c) --------------------------------------------- */

/* What the script says of the rank's next call; NULL: nothing. */
const struct brg_sim_fault *brg__sim_next_fault(brg__sim_rank *rank);

/* When the rank's next call is to arrive, by a recorded run: 0: whenever it is
 * made; UINT64_MAX: never. To be asked before brg__sim_next_fault. */
uint64_t brg__sim_next_arrival(brg__sim_rank *rank);

/* ns that a call takes. */
uint64_t brg__sim_cost(const brg__sim_world *world, const brg_call *call);

/* ---- Runs (sim.c) -------------------------------------------------------------- */

/* One run; the choices are given and filled. */
brg_status brg__sim_run(int world_size, const brg_sim_options *options,
                        brg_sim_rank_fn fn, void *user,
                        brg__sim_choices *choices);

/* The caller's options, checked, with all fields. */
brg_status brg__sim_options_take(brg_sim_options *filled, int world_size,
                                 const brg_sim_options *options,
                                 brg_sim_rank_fn fn);

#endif
