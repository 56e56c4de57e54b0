/* SPDX-License-Identifier: Apache-2.0
 * The reducer's inside: one step over a set of gradients.
 *
 *     arrive(i) ...        each gradient once, in any order; complete buckets
 *                          start strictly in bucket order
 *     complete             starts what remains, waits, reads the tail, arms
 *                          the next step
 *
 * The tail, in the last bucket, says for every parameter how many ranks used
 * it, how many ranks gave up, how many have no more data, and how many had
 * gradients that are not finite: integers in f32, which add exactly (and
 * survive the average: times world size, rounded). Whether all ranks are
 * at one place and have one plan is found there as well. It costs 4 bytes a
 * parameter and saves every step a collective. What follows from it is the
 * same on every rank, so all may enter one more collective to find out who is
 * to blame.
 *
 * Both front ends stand on this: raw.c for buffers of the user's, ddp.c. */
#ifndef BRG_REDUCER_REDUCER_H
#define BRG_REDUCER_REDUCER_H

#include <brigade/reducer.h>
#include <brigade/trace.h>

#include "core/base/error.h"
#include "core/tensor/device.h"
#include "reducer/bucket.h"
#include "reducer/bucket_plan.h"
#include "reducer/hooks/hook.h"
#include "reducer/inbox.h"

/* One parameter; first what each of its gradients touches. */
typedef struct brg__member {
    void *grad; /* NULL: the gradient lives in its slot */
    void *slot;
    size_t nbytes;
    uint32_t bucket;
    uint32_t arrival; /* its number in this step, from 0 */
    bool is_ready;    /* arrived in this step */
    bool is_used;     /* by this rank, in this step */
    brg_dtype dtype;
    brg_device device;
    size_t count;
    size_t n_rows;
    char *name;         /* owned */
    uint32_t group;     /* of the user's, from 1; 0: none */
    uint32_t n_used;    /* ranks, in the last step */
    double sum_squares; /* of the result, with measure_norm */
} brg__member;

/* The tail of gradients on a device (tail_device.c). */
typedef struct brg__device_tail {
    const brg_device_vtable *vtable; /* NULL: the tail is in host memory */
    float *values; /* owned, host: what `mine` holds; the next; the last result
                      where the device has no fetch */
    void *mine;    /* on the device: what this rank has to say */
    bool is_sent;  /* mine holds values */
    void *fetch;   /* the device's: the tail of the last step, on its way */
    bool is_pending;  /* that has not been looked at */
    uint64_t n_sent;  /* steps */
    uint64_t n_known; /* of these, the first ones: they have been reduced */
    brg__error_record verdict; /* on the last step, not told yet */
    bool is_ready;       /* the next step may be recorded, or is launched: */
    uint64_t first_call; /* of the group, in it; */
    uint64_t n_calls;    /* in such a step */
} brg__device_tail;

/* What the device itself finds out about gradients (look_device.c). */
typedef struct brg__device_look {
    brg_device_array *arrays; /* owned: room for a bucket's; NULL: none looks */
    uint64_t *found;  /* on the device, with check_finite: two marks, for what
                         this rank packed, and for what a hook has made; then
                         room for three f32 */
    double *partials; /* on the device, with measure_norm; then their total */
    size_t *places; /* owned: of each parameter's partials; then their number */
} brg__device_look;

/* Times of the steps recorded so far, one row a step; see profile.c. */
typedef struct brg__recording {
    size_t n_rows; /* 0: none are, or were */
    size_t n_done;
    size_t n_spans;        /* steps whose length is known: the next has begun */
    uint64_t *ready_ns;    /* owned block: n_rows x n_params, by parameter */
    uint64_t *backward_ns; /* n_rows */
    uint64_t *step_ns;     /* n_rows; less the wait */
    bool is_on;
    uint64_t start_ns; /* of the step before, if that was recorded; else 0 */
    uint64_t wait_ns;  /* in it */
} brg__recording;

/* With check_finite (finite.c). Parameters count from 1; 0: none. */
typedef struct brg__finite {
    uint32_t own;    /* the first that this rank packed in this step */
    uint32_t spoilt; /* the first that came so from a communication hook */
    brg_finite_info last;
} brg__finite;

/* Steps recorded for BRG_BUCKETS_MEASURED, after one that warms up. */
#define BRG__MEASURED_STEPS 5

#define BRG__FIRST_BUCKET_BYTES ((size_t)1 << 20)
#define BRG__BUCKET_BYTES ((size_t)25 << 20)
#define BRG__BUCKET_BYTES_THERE ((size_t)60 << 20) /* on a device */

struct brg_reducer {
    brg_pg *pg; /* borrowed */
    int rank;
    int world_size;
    brg_reducer_options options; /* complete */
    bool is_inner;               /* a ddp drives it */
    /* A bucket has been reduced; may be NULL. */
    void (*on_reduced)(brg_reducer *r, size_t bucket);
    /* What is sent along behind the tail: n_cargo f32, written by `load`. */
    size_t n_cargo;
    brg_status (*load)(const brg_ddp *of, float *cargo);
    const brg_ddp *loads_of;

    brg_device device; /* of gradients, slots and buckets */
    brg__device_tail tail;
    brg__device_look look;
    uint64_t *clocks; /* on the device, of the last waits; or NULL */
    brg__error_record clock_failure; /* the first since they are measured */

    size_t n_params;
    brg__member *members;
    struct brg_watch *watches; /* owned, of their buffers (guard.h); or NULL */
    brg__plan plan;
    uint64_t plan_hash;
    uint8_t number; /* among the reducers of its group (comm/pg.h) */
    char *arena;    /* the group's memory */
    brg__bucket *buckets;
    brg__hook_binding hooked;
    uint32_t *arrivals;      /* of this step, in order */
    brg__inbox inbox;        /* marks of other threads */
    _Atomic uintptr_t owner; /* the thread that drives it; see raw.c */
    uint8_t *notes;          /* of all ranks, then this one's (tail.c) */
    size_t n_works;          /* handles that the group keeps for it */

    brg_leaf_run run; /* n_leaves 0: the default reduction (leaves.h) */
    uint32_t leaf;    /* of the run, under way */
    bool has_groups;  /* of the user's: options.bucket_groups */
    bool is_sharded;  /* a bucket is reduced to each rank's shard of it */
    bool has_halves;  /* gradients whose partial sums are wider; with leaves */

    bool is_running;        /* a step has begun */
    bool is_closing;        /* what arrives now is late */
    bool has_failed;        /* this rank has given the last step up */
    bool is_shadow;         /* this rank takes part in the step without data */
    uint32_t n_shadows;     /* ranks that did, in the last step */
    bool is_rebuilt;        /* or never to be */
    bool is_default_choice; /* options.buckets was BRG_BUCKETS_DEFAULT */
    brg__recording recording;
    brg__recording wanted; /* to follow, while buckets are measured; or none */
    bool *closes;          /* owned, by place in arrivals; see bucket_plan.h */
    bool has_closes;       /* they hold; else sizes decide */
    uint32_t pace;         /* switches off and on since the last step */
    uint32_t pace_begun;   /* the same when this step began */
    uint8_t n_suspect;     /* steps to be signed with BRG_PACE_FAILED */
    uint64_t n_traced_bytes; /* of n_packed_bytes, in the trace */
    bool is_in_trace; /* the gradient that comes next, with its arrival */
    brg__finite finite;
    brg_tensor *found_inf; /* owned, with check_finite: one f32 on the device,
                              0 if the last step's gradients were finite */
    uint32_t lacking; /* 1 + the first gradient that this rank is known not to
                         make in this step, but should; or 0 */
    size_t n_ready;
    size_t n_launched;
    size_t n_waited;           /* buckets, of those launched */
    brg__error_record failure; /* the first of this step's waits */
    brg__error_record own;     /* of this rank alone: the tail tells of it */
    brg__error_record refused; /* the first of its callbacks */
    uint64_t start_ns;
    brg_reducer_stats stats;
    brg__error_record broken; /* sticky: out of step with the other ranks */
};

/* What all ranks must have alike, as numbers below BRG__MARK_BASE: pace, and
 * pieces of the hash of the plan. */
#define BRG__N_MARKS 4
#define BRG__MARK_BASE 31
/* The first of three: see tail.c. */
#define BRG__TAIL_FINITE(r) ((r)->n_params + 2 + 2 * BRG__N_MARKS)
#define BRG__TAIL_FOUND(r) (BRG__TAIL_FINITE(r) + 3)
/* Behind it, what look.found holds: not reduced, but fetched along. */
#define BRG__N_FOUND 2
#define BRG__N_TAIL(r)                                                         \
    (BRG__TAIL_FOUND(r) + ((r)->look.found ? 2 * BRG__N_FOUND : 0))
#define BRG__N_NOTES(r) ((r)->n_params + 2 + BRG__N_MARKS)

/* "parameter fc1.weight" or "parameter 3", for messages. */
const char *brg__member_name(const brg_reducer *r, size_t i);

/* ---- Making (reducer.c) ------------------------------------------------------ */

/* Everything that needs no other rank. */
brg_status brg__reducer_prepare(brg_reducer **out, brg_pg *pg,
                                const brg_reducer_param *params,
                                size_t n_params,
                                const brg_reducer_options *options);
/* The arena, once all ranks are known to agree. Collective. */
brg_status brg__reducer_attach(brg_reducer *r);

/* The front end for raw buffers (raw.c). */
void brg__raw_init(brg_reducer *r);

/* The options that all ranks must share (verify.h). */
uint32_t brg__reducer_flags(const brg_reducer *r);

/* The plan for this order (NULL: the first guess). */
brg_status brg__reducer_plan(const brg_reducer *r, const uint32_t *order,
                             brg__plan *out);

/* Before the ranks meet: the same for n_cargo as it is now. */
brg_status brg__reducer_plan_anew(brg_reducer *r);

/* Has the group keep handles for all works of a step by this plan: a bucket
 * that cannot be started puts the rank out of step. */
brg_status brg__reducer_reserve(brg_reducer *r, const brg__plan *plan);

/* Points members and buckets into the arena by the plan. */
void brg__reducer_lay_out(brg_reducer *r);

/* ---- A step (step.c) ----------------------------------------------------------- */

/* BRG_OK unless an earlier failure has put this rank out of step. */
brg_status brg__reducer_check(const brg_reducer *r);

/* Begins the step if this is its first gradient; fails if i was there. */
brg_status brg__reducer_expect_slowly(brg_reducer *r, size_t i);
static inline brg_status brg__reducer_expect(brg_reducer *r, size_t i)
{
    bool is_plain = r->broken.code == BRG_OK && r->is_running;
    return is_plain && !r->members[i].is_ready
               ? BRG_OK
               : brg__reducer_expect_slowly(r, i);
}

/* Gradient i, which was expected, is in its slot. `is_used`: it counts as a
 * gradient. */
brg_status brg__reducer_arrive(brg_reducer *r, size_t i, bool is_used);
/* The two halves of it: no bucket starts; those below n that are ready do. */
void brg__reducer_take(brg_reducer *r, size_t i, bool is_used);
brg_status brg__reducer_launch_ready(brg_reducer *r, size_t n);
static inline brg_status brg__reducer_launch(brg_reducer *r, size_t n)
{
    bool has_ready = r->n_launched < n &&
                     r->buckets[r->n_launched].state == BRG__BUCKET_READY;
    return has_ready ? brg__reducer_launch_ready(r, n) : BRG_OK;
}

/* What went wrong last is why this rank cannot complete the step: its end says
 * so, and the tail tells the others. */
void brg__reducer_fail_own(brg_reducer *r);

typedef enum brg__arrival {
    BRG__ARRIVES_LATER,   /* the reducer takes it some time */
    BRG__ARRIVES_COPIED,  /* at once, by this thread */
    BRG__ARRIVES_IN_PLACE /* it is in its bucket */
} brg__arrival;

/* For the trace: gradient i is complete. One in place, or after a short copy by
 * the same thread at once, is one record. */
void brg__reducer_trace_hook(brg_reducer *r, size_t i, brg__arrival how);

/* Gradient i was marked before in this step. */
brg_status brg__reducer_fail_twice(const brg_reducer *r, size_t i);

/* All gradients being there: waits for buckets [n_waited, n), each handed on
 * by r->on_reduced. A failure is kept, and returned at the end of the step as
 * well. */
brg_status brg__reducer_wait_until(brg_reducer *r, size_t n);

/* Takes in what other threads have marked (raw.c). */
brg_status brg__reducer_drain(brg_reducer *r);

/* From now on gradients are late: no more part of the backward. */
brg_status brg__reducer_close(brg_reducer *r);

/* Zeros for gradients that are not there; a failure is the device's. */
brg_status brg__reducer_fill(brg_reducer *r);

/* Ends the step, all gradients being there: waits, judges, arms. */
brg_status brg__reducer_complete(brg_reducer *r);

/* The same, with zeros for what is missing. */
brg_status brg__reducer_settle(brg_reducer *r);

/* The same, and the step is lost for every rank: has_failed is true. If the
 * tail is on its way already, the others will take the step as good, and this
 * rank has to go on as they do: has_failed is false. */
brg_status brg__reducer_give_up(brg_reducer *r);

/* ---- The tail (tail.c) ----------------------------------------------------------- */

brg_status brg__tail_write(brg_reducer *r);
/* What the step came to; sets n_used of the members. On a device: what the
 * step before came to (tail_device.c). */
brg_status brg__tail_judge(brg_reducer *r);

/* An integer that was summed in the tail or behind it, as it was; and where
 * what was sent along lies. */
uint32_t brg__tail_number(const brg_reducer *r, float reduced);
float *brg__tail_cargo(const brg_reducer *r);

/* What reduced values of a tail say; n_used and n_shadows are set. */
typedef struct brg__tail_counts {
    uint32_t n_failed; /* ranks */
    bool is_missing;   /* a gradient that may not be */
    size_t mark;       /* the first not alike; BRG__N_MARKS: all are */
} brg__tail_counts;
void brg__tail_fill(const brg_reducer *r, float *tail);
brg__tail_counts brg__tail_count(brg_reducer *r, const float *tail);

brg_status brg__device_tail_prepare(brg_reducer *r);
void brg__device_tail_free(brg_reducer *r);
brg_status brg__device_tail_write(brg_reducer *r, void *tail);
/* Sends what the tail of a step that is recorded or launched next will say. */
brg_status brg__device_tail_ready(brg_reducer *r);
brg_status brg__device_tail_judge(brg_reducer *r, void *tail);
/* What the step before came to; `tail` will tell of this one. */
brg_status brg__device_tail_next(brg_reducer *r, const void *tail);
/* The same of a step whose work was launched again: the tail is on its way. */
brg_status brg__device_tail_launched(brg_reducer *r);
/* n_used and n_shadows are those of the last step. May wait for the device. */
brg_status brg__device_tail_read(brg_reducer *r);
/* What the last step came to, if that was not told yet. */
brg_status brg__device_tail_tell(brg_reducer *r);

/* Do the other ranks take a step as good that this one has given up? */
static inline bool brg__tail_is_late(const brg_reducer *r)
{
    return r->tail.vtable && r->is_rebuilt;
}

/* ---- The device's waits (exposed.c) ------------------------------------------------ */

/* Its queue begins to wait for buckets, or goes on. Nothing unless it is
 * measured; a failure is that of brg_reducer_exposed_ns. */
void brg__exposed_mark(brg_reducer *r, bool is_end);
void brg__exposed_free(brg_reducer *r);

/* ---- Norms (norm.c) ------------------------------------------------------------------ */

/* Of the gradients in bucket k, which has been reduced. */
void brg__norm_measure(brg_reducer *r, size_t k);
/* n elements times a factor. */
void brg__norm_scale(void *at, brg_dtype dtype, size_t n, double factor);

/* ---- What is not finite (finite.c) ------------------------------------------------ */

/* Gradient i lies where this rank has packed it. */
void brg__finite_look(brg_reducer *r, size_t i);
/* Bucket k is as a communication hook has left it. */
void brg__finite_look_after(brg_reducer *r, size_t k);
/* The bits of the largest element of gradient i that is fine; UINT64_MAX: all
 * are. is_result: it was reduced. */
uint64_t brg__finite_limit(const brg_reducer *r, size_t i, bool is_result);
/* With check_finite: makes found_inf; anew, on another device, which hears of
 * each step by brg__finite_send. */
brg_status brg__finite_prepare(brg_reducer *r);
brg_status brg__finite_place(brg_reducer *r, brg_device device);
brg_status brg__finite_send(brg_reducer *r);
/* The step is over: ranks that found something, and the sums of their numbers
 * and of their first parameters. */
void brg__finite_end(brg_reducer *r, uint32_t n_ranks, uint32_t ranks,
                     uint32_t params);

/* ---- The same on a device (look_device.c) ------------------------------------------ */

/* Fails if the device cannot do what the options want. */
brg_status brg__look_prepare(brg_reducer *r);
void brg__look_free(brg_reducer *r);

/* A step begins. */
brg_status brg__look_begin(const brg_reducer *r);
/* With leaves: gradient i has arrived. Without: bucket k is about to start. */
brg_status brg__look_at_gradient(const brg_reducer *r, size_t i);
brg_status brg__look_at_bucket(const brg_reducer *r, size_t k);
/* Bucket k has been reduced. */
brg_status brg__look_at_result(const brg_reducer *r, size_t k);
/* What this rank has found, into the tail that it sends; all that was found,
 * behind the reduced one. */
brg_status brg__look_tell(const brg_reducer *r, float *tail);
brg_status brg__look_keep(const brg_reducer *r, float *tail);
/* As they came with the tail. */
void brg__look_read(brg_reducer *r, const float *tail);

/* The sum of the squares of all gradients that were used, on the device; of
 * this rank's shards, if there are some. */
brg_status brg__look_norm(const brg_reducer *r, double **total);
/* Waits for a value. */
brg_status brg__look_fetch(const brg_reducer *r, const double *from,
                           double *value);

/* ---- The order of arrival (rebuild.c) ---------------------------------------------- */

/* Is it time to? Alike on every rank, after a good step. */
bool brg__rebuild_is_due(const brg_reducer *r);
/* Collectives in between are this reducer's, and not taken for another's. */
void brg__reducer_sign(const brg_reducer *r);
void brg__reducer_unsign(const brg_reducer *r);

/* Buckets anew in the order in which rank 0's gradients arrived (or as
 * measured.c says); contents move along. Collective. If a rank has no memory
 * for it, all keep the old plan. */
brg_status brg__reducer_rebuild(brg_reducer *r);

/* ---- groups.c: which parameters are to share a bucket ------------------------- */

typedef struct brg__group_list {
    const char *what;       /* "brg_ddp_create" */
    const uint32_t *groups; /* by parameter, from 1; 0: none. NULL: no groups */
    size_t n_groups;
    size_t n;
    const void *list; /* of the parameters, for: */
    const char *(*name)(const void *list, size_t i); /* may be NULL */
} brg__group_list;

/* Numbers that exist, and none of them without a parameter. */
brg_status brg__groups_check(const brg__group_list *g);

#endif
