/* SPDX-License-Identifier: Apache-2.0
 * The handle of a started collective. It holds the call that the backend
 * works on, so it lives until the call is done and its owner has let go. */
#ifndef BRG_COMM_WORK_H
#define BRG_COMM_WORK_H

#include <stddef.h>

#include "comm/pg.h"

struct brg_work {
    brg_call call;
    brg_pg *pg;            /* NULL once the group was destroyed */
    uint64_t coalesced_by; /* which begin; 0: none */
    bool is_released;
    bool is_noted; /* in the trace: that it is complete */
    brg_work *prev;
    brg_work *next;
};

/* A work in flight on `pg`. */
brg_work *brg__work_create(brg_pg *pg, const brg_call *call);

/* Takes it off its group's list and frees it. */
void brg__work_free(brg_work *work);

/* Frees the works that are done and that nobody holds. */
void brg__work_reap(brg_pg *pg);

/* Keeps n more handles for works to come, so that n in flight never fail for
 * want of memory; and n fewer. */
brg_status brg__work_reserve(brg_pg *pg, size_t n);
void brg__work_unreserve(brg_pg *pg, size_t n);

/* The wait for this work has lasted the whole time-out: says who is late, and
 * where (watchdog.c). */
brg_status brg__work_fail_timeout(const brg_work *work);
/* The wait failed for a peer, as the thread's record says: adds the same. */
brg_status brg__work_fail_peer(const brg_work *work);

static inline brg_work *brg__work_of(const brg_call *call)
{
    return (brg_work *)((uintptr_t)call - offsetof(brg_work, call));
}

/* The group goes: its works are cut loose, to report an error when waited
 * for. */
void brg__work_orphan_all(brg_pg *pg);

#endif
