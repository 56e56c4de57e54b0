/* SPDX-License-Identifier: Apache-2.0
 * Buckets by measurement: when gradients are ready, how long a bucket takes,
 * what a step will cost, and the partition that costs least. See
 * docs/scheduling.md. */
#ifndef BRG_SCHEDULE_H
#define BRG_SCHEDULE_H

#include <brigade/ddp.h>
#include <brigade/reducer.h>

BRG_BEGIN_DECLS

/* All functions here are pure, and may be called by any thread, unless they
 * say that they are collective. Times are in nanoseconds. */

/* ---- How long a bucket takes -------------------------------------------------
 * An all-reduce of B bytes, with no other beside it, takes alpha + beta B, with an
 * alpha and a beta for each class of sizes: between two points it lies on the
 * line through them, beyond the last on the last line, below the first on the
 * first line, and never below zero. */
#define BRG_LINK_MAX 16

typedef struct brg_link_point {
    uint64_t nbytes;
    uint64_t ns;
    uint64_t busy_ns; /* of ns: spent by the computing thread itself */
} brg_link_point;

typedef struct brg_link {
    size_t n;                        /* 1 or more */
    brg_link_point at[BRG_LINK_MAX]; /* ascending in nbytes and in ns */
} brg_link;

BRG_API uint64_t brg_link_ns(const brg_link *link, uint64_t nbytes);
BRG_API uint64_t brg_link_busy_ns(const brg_link *link, uint64_t nbytes);

/* Collective: times all-reduces of f32 in memory of brg_pg_alloc, from 1 KiB to
 * about max_bytes in steps of four. Betas are those of all-reduces that are
 * waited for; alphas have besides what a short one takes longer if it is polled
 * now and then, as a backward polls. The slowest rank's medians, the same on
 * every rank. About ten times what an all-reduce of the largest size takes;
 * none may be in flight. A backend with shared memory keeps the buffer for
 * later calls of brg_pg_alloc. */
BRG_API BRG_NODISCARD brg_status brg_link_measure(brg_pg *pg, size_t max_bytes,
                                                  brg_link *filled);

/* Over n ranks, with latency a of a message and b bytes per second each way:
 *
 *     RING      2 (n - 1) a         + 2 (n - 1) / n B / b
 *     HALVING   2 ceil(log2(n)) a   + 2 (n - 1) / n B / b
 *
 * HALVING: recursive halving, then doubling. One rank: nothing takes time. A TiB
 * must take less than 2^61 ns, 73 years. */
typedef enum brg_link_algorithm {
    BRG_LINK_RING,
    BRG_LINK_HALVING
} brg_link_algorithm;

BRG_API BRG_NODISCARD brg_status brg_link_of(brg_link *filled,
                                             brg_link_algorithm algorithm,
                                             int n_ranks, double latency_ns,
                                             double bytes_per_s);

/* ---- When gradients are ready ------------------------------------------------ */

typedef struct brg_profile_grad {
    const char *name; /* borrowed from the profile */
    brg_dtype dtype;
    uint64_t nbytes;   /* in its bucket, padding included */
    uint64_t ready_ns; /* after the first */
    uint32_t group;    /* of bucket_groups, from 1; 0: none */
} brg_profile_grad;

/* Medians over the steps that were recorded. */
typedef struct brg_profile {
    size_t n;
    const brg_profile_grad *grads; /* in the order in which they were ready */
    uint64_t backward_ns; /* from the first gradient to the backward's end */
    uint64_t step_ns;     /* one step, what was waited for left out */
    uint64_t tail_nbytes; /* that go with the last bucket */
} brg_profile;

/* Records the next n_steps good steps (at most 1000) on this rank: one look at
 * the clock for each gradient. Between steps; once that many are recorded
 * nothing is spent. Not for gradients on a device or in leaves. While buckets are
 * measured (BRG_BUCKETS_MEASURED, between machines the default) it begins once
 * they are chosen; until then a profile is of the steps that they are chosen by. */
BRG_API BRG_NODISCARD brg_status brg_reducer_record(brg_reducer *reducer,
                                                    size_t n_steps);
BRG_API BRG_NODISCARD brg_status brg_ddp_record(brg_ddp *ddp, size_t n_steps);

/* What was recorded so far, of two steps at least. *out: owned. */
BRG_API BRG_NODISCARD brg_status
brg_reducer_get_profile(const brg_reducer *reducer, brg_profile **out);

/* A text: a line "brigade-profile 1", then lines of fields with tabs between:
 * "step ns backward_ns tail_bytes", "grad dtype bytes ready_ns name" and, where
 * the last gradient is in a group, "group number". */
BRG_API BRG_NODISCARD brg_status brg_profile_write(const brg_profile *profile,
                                                   const char *path);
BRG_API BRG_NODISCARD brg_status brg_profile_read(brg_profile **out,
                                                  const char *path);
BRG_API void brg_profile_destroy(brg_profile *profile);

/* ---- What a step will cost -----------------------------------------------------
 * Bucket k starts when its last gradient is ready and bucket k - 1 has ended.
 * While a bucket is on its way the backward gets on at the rate
 * (t - busy_ns) / t, so that by then it is late:
 *
 *     start_k = max(ready_k + late_(k-1), end_(k-1))
 *     end_k   = start_k + t(bytes_k)
 *     late_k  = late_(k-1) + busy_ns(bytes_k), or what of it fits before the
 *               backward is over
 *     busy    = late_last
 *     exposed = max(0, end_last - (backward + busy))
 *     step    = step_ns of the profile + busy + exposed
 *
 * step_ns is that of steps without transfers (of one rank alone) where the link
 * has busy_ns; of steps beside them it holds that time already. */
typedef struct brg_schedule {
    size_t n_buckets;
    uint64_t transfer_ns; /* the sum over buckets */
    uint64_t exposed_ns;
    uint64_t busy_ns;
    uint64_t step_ns;
} brg_schedule;

/* buckets[i]: which bucket gradient i of the profile is in, numbered from 0 in
 * the order in which they are sent; buckets of one dtype each. The tail goes
 * with the last one if that is f32, else alone after it. BRG_ERR_ARG, here and
 * below, if bytes or times come to 2^61 or more. */
BRG_API BRG_NODISCARD brg_status
brg_schedule_predict(brg_schedule *filled, const brg_profile *profile,
                     const brg_link *link, const uint32_t *buckets);

/* The buckets that limits in bytes make (0: the reducer's own of a group on the host), and the profile's
 * groups. buckets: filled, one for each gradient. */
BRG_API BRG_NODISCARD brg_status
brg_schedule_by_size(uint32_t *buckets, const brg_profile *profile,
                     size_t first_bucket_bytes, size_t bucket_bytes);

/* Of all cuts of the order into contiguous parts, the one with the least
 * exposed time if busy_ns is left out; of these, one with the fewest parts. A part makes one bucket of
 * each dtype in it; groups do not count. By dynamic programming over prefixes, O(n^2):
 *
 *     end(0) = 0
 *     end(j) = min over i < j of max(end(i), ready_(j-1)) + t(bytes i .. j-1)
 *
 * ready: of the prefix. An earlier end of a prefix never ends the whole later,
 * so this is the best of all partitions. The fewest parts that end by then are
 * found backwards from it, in O(n^2) for each part. */
BRG_API BRG_NODISCARD brg_status brg_schedule_choose(uint32_t *buckets,
                                                     const brg_profile *profile,
                                                     const brg_link *link);

BRG_END_DECLS

#endif
