/* SPDX-License-Identifier: Apache-2.0
 * One bucket of a step: a piece of the arena and its way through
 *
 *     PENDING --last gradient arrives--> READY --start--> LAUNCHED
 *        ^                                                    |
 *        +------------- arm (next step) <--- REDUCED <--wait--+
 *
 * A wait that fails leads to REDUCED too: the step is over either way. */
#ifndef BRG_REDUCER_BUCKET_H
#define BRG_REDUCER_BUCKET_H

#include <brigade/comm.h>

typedef enum brg__bucket_state {
    BRG__BUCKET_PENDING,
    BRG__BUCKET_READY,
    BRG__BUCKET_LAUNCHED,
    BRG__BUCKET_REDUCED
} brg__bucket_state;

typedef struct brg__bucket {
    brg__bucket_state state;
    size_t n_params;
    size_t n_waiting; /* gradients still to come */
    void *data;
    size_t count; /* elements, padding and tail included */
    brg_dtype dtype;
    brg_leaf_parts parts; /* n_leaves 0: of the default reduction */
    bool is_sharded;      /* each rank gets its piece of the result */
    brg_work *work;       /* while LAUNCHED; owned */
    uint64_t launch_ns;
    uint64_t done_ns;
} brg__bucket;

/* For the next step. */
void brg__bucket_arm(brg__bucket *bucket);

/* One of its gradients is in place. */
void brg__bucket_arrive(brg__bucket *bucket);

/* Starts the reduction of a READY bucket; stays READY on failure. */
brg_status brg__bucket_launch(brg__bucket *bucket, brg_pg *pg,
                              brg_reduce_op op);

/* Waits for a LAUNCHED bucket. */
brg_status brg__bucket_wait(brg__bucket *bucket, const brg_pg *pg);

/* A LAUNCHED bucket has been reduced by somebody else, or never will be: what
 * may still be in flight for it is waited for. */
void brg__bucket_end(brg__bucket *bucket, const brg_pg *pg);

/* Lets go of a bucket in flight; false if it still is. */
bool brg__bucket_drop(brg__bucket *bucket);

#endif
