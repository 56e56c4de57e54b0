/* SPDX-License-Identifier: Apache-2.0
 * Which gradients travel together, and where each lies. Pure: sizes and an
 * order in, buckets out; every rank computes the same plan from the same
 * input. Shared with the compiler.
 *
 *     arena   | bucket 0            | bucket 1     | bucket 2        |
 *     slots   | p3  .| p2       ..  | p1         . | p0 ... tail  .. |
 *
 * Tensors are taken in the given order, one open bucket per (dtype, device).
 * A bucket closes once it holds at least its limit in bytes, so it may
 * overshoot and no tensor is split; the next bucket of that key has the next
 * limit, the last limit repeats. Or the places where buckets close are given
 * (schedule.h). A group of the user's has a bucket of its own for each (dtype,
 * device), whatever its size, which counts for no limit. Buckets are numbered
 * in the order in which they become complete, since they are sent in that
 * order. Slots begin at multiples of 64 bytes and so do buckets; the gaps are
 * part of what is reduced and stay zero. The arena's size does not depend on
 * the order.
 *
 * The tail is a few f32 at the end of the last bucket, or in a bucket of
 * their own after it if that one is not f32.
 *
 * With shards, the bytes of a bucket of parameters are a multiple of the
 * alignment times their number, so that each is cut into equal, aligned
 * pieces; parameters may lie across the cuts. The arena's size depends on the
 * order then. */
#ifndef BRG_REDUCER_BUCKET_PLAN_H
#define BRG_REDUCER_BUCKET_PLAN_H

#include <brigade/status.h>
#include <brigade/types.h>

#define BRG__PLAN_ALIGN 64

typedef struct brg__plan_param {
    size_t nbytes;
    brg_dtype dtype;
    brg_device device;
    uint32_t group; /* of the user's, from 1; 0: none */
} brg__plan_param;

typedef struct brg__plan_request {
    const brg__plan_param *params;
    size_t n_params;
    /* A permutation of the parameters, first to be ready first; NULL: last
     * registered first, as a backward pass goes. */
    const uint32_t *order;
    const size_t *limits; /* bytes; at least one, or closes */
    size_t n_limits;
    /* By place in the order: every open bucket ends there. NULL: limits say
     * where. */
    const bool *closes;
    size_t n_tail;      /* f32 elements; 0: no tail */
    bool is_tail_alone; /* in a bucket of its own, whatever the last one is */
    size_t n_shards;    /* 0: 1 */
} brg__plan_request;

typedef struct brg__plan_slot {
    uint32_t bucket;
    size_t offset; /* bytes from the start of the arena */
    size_t nbytes;
} brg__plan_slot;

typedef struct brg__plan_bucket {
    size_t first; /* holds parameters order[first .. first + n_params) */
    size_t n_params;
    size_t offset; /* bytes from the start of the arena */
    size_t nbytes; /* a multiple of the alignment, tail included */
    brg_dtype dtype;
    brg_device device;
} brg__plan_bucket;

typedef struct brg__plan {
    size_t n_params;
    size_t n_buckets;
    uint32_t *order;           /* parameters, bucket by bucket */
    brg__plan_slot *slots;     /* by parameter */
    brg__plan_bucket *buckets; /* at most n_params + 1 */
    size_t n_tail;
    size_t tail_offset; /* bytes from the start of the arena */
    size_t nbytes;      /* of the arena */
} brg__plan;

/* Fails with BRG_ERR_ARG if the order is no permutation or the sizes do not
 * fit into memory. */
brg_status brg__plan_make(brg__plan *out, const brg__plan_request *request);
void brg__plan_deinit(brg__plan *plan);

/* Equal for equal plans, on every rank. */
uint64_t brg__plan_hash(const brg__plan *plan);

/* A stable text, one line a bucket; returns the length of the whole text,
 * of which as much as fits is written (always terminated). */
size_t brg__plan_print(const brg__plan *plan, char *filled, size_t size);

#endif
