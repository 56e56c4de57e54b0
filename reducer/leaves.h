/* SPDX-License-Identifier: Apache-2.0
 * The reproducible reduction inside a reducer.
 *
 * A step of this rank is one backward per leaf of its run (comm.h). Its arena
 * has n_slots slots, each laid out by the bucket plan:
 *
 *     slot 0: bucket 0 | bucket 1 | ... tail     the parts of bucket b lie
 *     slot 1: bucket 0 | bucket 1 | ...          n bytes apart
 *     ...
 *
 * The backward of a leaf writes into the slot that brg_leaf_slot names; each
 * gradient, when it arrives, is added to its neighbours in the tree. In the
 * last leaf buckets start as ever, with all that has become of them. */
#ifndef BRG_REDUCER_LEAVES_H
#define BRG_REDUCER_LEAVES_H

#include "reducer/reducer.h"

static inline bool brg__has_leaves(const brg_reducer *r)
{
    return r->run.n_leaves > 0;
}

/* Also where there are no leaves: every backward is a whole step. */
static inline bool brg__leaf_is_last(const brg_reducer *r)
{
    return !brg__has_leaves(r) || r->leaf + 1 == r->run.n;
}

/* What an average is taken over. */
static inline double brg__reducer_divisor(const brg_reducer *r)
{
    return brg__has_leaves(r) ? (double)r->run.n_leaves : r->world_size;
}

brg_status brg__leaves_prepare(brg_reducer *r, uint32_t n_leaves);

/* Bytes of the arena, alike on all ranks. */
brg_status brg__leaves_arena(const brg_reducer *r, size_t *nbytes);
void brg__leaves_lay_out(const brg_reducer *r, brg__bucket *bucket,
                         size_t offset);
/* Zeros in all slots but the first. */
brg_status brg__leaves_clear(const brg_reducer *r);

/* Where the backward of this leaf is to put gradient i. */
void *brg__leaf_home(const brg_reducer *r, size_t i);
/* Gradient i of this leaf is there. */
brg_status brg__leaf_take(const brg_reducer *r, size_t i);

/* All gradients of this leaf are there, and it is not the last. */
void brg__leaf_next(brg_reducer *r);
/* The step is lost: on to its end. */
void brg__leaf_skip(brg_reducer *r);

#endif
