/* SPDX-License-Identifier: Apache-2.0
 * Looking inside a reducer: its buckets, what a step took. reducer.h includes
 * it. */
#ifndef BRG_REDUCER_INFO_H
#define BRG_REDUCER_INFO_H

#include <brigade/tensor.h>

BRG_BEGIN_DECLS

typedef struct brg_bucket_info {
    brg_dtype dtype;
    size_t n_params;
    const uint32_t *params; /* which ones; borrowed until buckets are made once
                               more, by the first wait (the sixth if they are
                               measured) */
    size_t nbytes;          /* reduced for it, padding included */
    const void *data;       /* borrowed */
    uint64_t launch_ns;     /* last step: when it was started, ... */
    uint64_t done_ns; /* ... and known to be done, after the first gradient */
} brg_bucket_info;

BRG_API size_t brg_reducer_n_buckets(const brg_reducer *reducer);
BRG_API BRG_NODISCARD brg_status brg_reducer_get_bucket(
    const brg_reducer *reducer, size_t bucket, brg_bucket_info *filled);
/* Which bucket holds gradient i, and at which byte. */
BRG_API BRG_NODISCARD brg_status brg_reducer_find(const brg_reducer *reducer,
                                                  size_t i, size_t *bucket,
                                                  size_t *offset);

/* How many ranks marked gradient i in the last step that ended well; on a GPU
 * until brg_reducer_confirm: all, if this one did. */
BRG_API size_t brg_reducer_n_used(const brg_reducer *reducer, size_t i);

/* Bytes and times of the last step count from its first gradient. */
typedef struct brg_reducer_stats {
    size_t n_params;
    size_t n_buckets;
    uint64_t n_bytes;         /* all-reduced in one step */
    uint64_t n_steps;         /* that ended well */
    uint64_t n_rebuilds;      /* 0 or 1 */
    uint64_t n_packed_bytes;  /* copied into slots, last step */
    uint64_t first_launch_ns; /* the first bucket was started */
    uint64_t last_ready_ns;   /* the last gradient was there, or the end */
    size_t n_early;           /* buckets started before that */
    uint64_t wait_ns;         /* then waited: communication not hidden */
    uint64_t total_wait_ns;   /* of all steps */
    /* With BRG_BUCKETS_MEASURED, once buckets were chosen: the wait of a step as
     * predicted for them, and for buckets by size. */
    uint64_t predicted_wait_ns;
    uint64_t predicted_by_size_ns;
} brg_reducer_stats;

BRG_API void brg_reducer_get_stats(const brg_reducer *reducer,
                                   brg_reducer_stats *filled);

/* The bucket plan as text, as snprintf does. */
BRG_API size_t brg_reducer_describe(const brg_reducer *reducer, char *filled,
                                    size_t size);

BRG_END_DECLS

#endif
