/* SPDX-License-Identifier: Apache-2.0
 * A process group's end in this process: the front that every call passes
 * before a backend sees it.
 *
 * The front owns argument checks, sequence numbers, the sticky error, the
 * counters and the list of works in flight; a backend only moves data. After
 * a failure of the backend the group is dead: the record is kept, abort is
 * called once, and works that were not done report the same record. */
#ifndef BRG_COMM_PG_H
#define BRG_COMM_PG_H

#include <brigade/ext/backend.h>

#include "core/base/array.h"
#include "core/base/error.h"
#include "core/trace/ring.h"

typedef struct brg__pg_block {
    void *ptr;
    size_t nbytes; /* 0: the backend's own */
} brg__pg_block;

struct brg_pg {
    brg_group end; /* what the backend filled */
    const brg_backend *backend;
    uint64_t timeout_ns;
    uint64_t n_started;     /* collectives: the next sequence number */
    uint64_t n_p2p_started; /* sends and recvs */
    brg_work *in_flight;    /* doubly linked, in no order */
    size_t n_released;      /* of these, given up by their owners */
    brg_work *spares;       /* n_spares handles for the works to come */
    size_t n_spares;
    size_t n_reserved;  /* kept at the most: spares and those in use */
    uint8_t n_reducers; /* numbers given so far; begins again behind 255 */
    uint8_t reducer;    /* signs the calls to come: see brg__pg_label */
    uint8_t pace;
    uint16_t plan;
    int32_t bucket;
    bool is_last;   /* of calls to come: see brg_call */
    uint8_t number; /* among the groups of this rank, in its trace */
    brg__record_ring *trace;
    bool is_coalescing;
    uint64_t n_coalesced; /* begins so far */
    bool is_registered;   /* with the thread's progress hook */
    bool is_borrowed;     /* by the user: brg_pg_destroy does nothing */
    bool is_unwanted;     /* destroyed while held */
    uint32_t n_holders;   /* reducers */
    brg_pg_stats stats;
    BRG__ARRAY(brg__pg_block) blocks;
    brg__error_record error; /* sticky; code BRG_OK while healthy */
};

/* A group through `backend`; what brg_pg_create does once it has found one. */
brg_status brg__pg_make(brg_pg **out, const brg_backend *backend,
                        const brg_pg_options *options);

/* Destroys it, whoever holds it. NULL is allowed. */
void brg__pg_close(brg_pg *pg);

/* What works in the group's memory keeps it: destroyed meanwhile, it goes when
 * the last one lets go. */
void brg__pg_hold(brg_pg *pg);
void brg__pg_let_go(brg_pg *pg);

/* One poll of the backend; false if the group has failed (now or before).
 * Sets no record of the caller's. */
bool brg__pg_poll(brg_pg *pg);

/* The group has failed with the caller's error record: keep it. */
void brg__pg_kill(brg_pg *pg);

/* Where the memory of brg_pg_alloc lies. */
static inline brg_device brg__pg_device(const brg_pg *pg)
{
    return pg->end.device;
}

/* So many recorded calls of this group were launched again: what comes next has
 * the number that it has on ranks that made them. */
void brg__pg_launched(brg_pg *pg, uint64_t n_calls);

/* Time as the group has it: virtual in a simulated world. */
uint64_t brg__pg_clock_ns(const brg_pg *pg);

/* Failures after which the ranks are no longer in step. */
bool brg__status_is_fatal(brg_status status);

/* A number from 1 for a reducer of this group: the same on every rank, as all
 * make their reducers in one order. */
uint8_t brg__pg_number_reducer(brg_pg *pg);

/* Calls from now on belong to this reducer, its pace (brg_call), its plan and a
 * bucket (0, 0, 0, -1: to none). Ranks whose calls do not agree in that get
 * BRG_ERR_MISMATCH before data moves, from backends that compare signatures. */
void brg__pg_label(brg_pg *pg, uint8_t reducer, uint8_t pace, uint16_t plan,
                   int32_t bucket);

/* Returns and restores the sticky error. */
brg_status brg__pg_check(const brg_pg *pg);

/* The backend's group if `pg` belongs to it, or NULL. */
void *brg__pg_group_of(const brg_pg *pg, const brg_group_ops *ops);

#endif
