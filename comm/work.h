/* SPDX-License-Identifier: Apache-2.0
 * The handle of a started collective. It holds the call that the backend
 * works on, so it lives until the call is done and its owner has let go. */
#ifndef BRG_COMM_WORK_H
#define BRG_COMM_WORK_H

#include "comm/pg.h"

struct brg_work {
    brg_call call;
    brg_pg *pg; /* NULL once the group was destroyed */
    bool is_released;
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

/* The group goes: its works are cut loose, to report an error when waited
 * for. */
void brg__work_orphan_all(brg_pg *pg);

#endif
