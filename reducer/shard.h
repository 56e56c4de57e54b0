/* SPDX-License-Identifier: Apache-2.0
 * Sharded optimizer state. Buckets are cut into one shard a rank, equal in
 * bytes; the parameters lie in an arena of the same layout, so the all-gather
 * of a bucket needs no copies.
 *
 *     bucket   | p3      | p2                    | p1     | .... |
 *     shards   | rank 0         | rank 1         | rank 2        | */
#ifndef BRG_REDUCER_SHARD_H
#define BRG_REDUCER_SHARD_H

#include <brigade/shard.h>

#include "reducer/ddp.h"

/* What `rank` owns of gradient i: all of it, if nothing is sharded. */
brg_optim_range brg__shard_of(const brg_reducer *r, size_t i, int rank);

/* The parameter of the ddp that is this leaf; NULL if there is none. */
const brg__ddp_param *brg__ddp_find(const brg_ddp *ddp, const brg_tensor *leaf);

/* What needs no other rank: a plan with shards, checks, room. */
brg_status brg__shard_prepare(brg_ddp *ddp);
/* The parameters move into the group's memory. Collective. */
brg_status brg__shard_attach(brg_ddp *ddp);
/* And out of it. */
void brg__shard_detach(brg_ddp *ddp);

/* Fails while parameters are on their way. `what` needs them. */
brg_status brg__shard_check(const brg_ddp *ddp, const char *what);

/* From the norm of the rank's ranges to that of all. Collective. */
brg_status brg__shard_add_norms(brg_ddp *ddp, double *norm);

#endif
