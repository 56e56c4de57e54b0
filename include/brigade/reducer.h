/* SPDX-License-Identifier: Apache-2.0
 * Gradient reduction: buckets that are all-reduced while backward runs. */
#ifndef BRG_REDUCER_H
#define BRG_REDUCER_H

#include <brigade/comm.h>
#include <brigade/comm_hook.h>
#include <brigade/tensor.h>

BRG_BEGIN_DECLS

/* Gradients are packed into buckets, and each bucket is all-reduced as soon
 * as its gradients are there and the buckets before it have started: the same
 * order on every rank, whatever the order of the gradients.
 *
 *   brg_ddp      for parameters of this library: hangs on their hooks
 *   brg_reducer  for any trainer: you say when a gradient is ready
 *
 * Both are created and destroyed on every rank alike, are used by one thread
 * at a time (but for brg_reducer_mark_ready), and must go before their group
 * does. Parameters that differ
 * between ranks (count, name, dtype, shape) or options that do fail on every
 * rank alike with BRG_ERR_MISMATCH. */

/* ---- A hand-written backward ------------------------------------------------- */

/* One gradient buffer. `name` (copied; may be NULL) is for messages. */
typedef struct brg_reducer_param {
    const char *name;
    /* Borrowed, count elements that no other parameter shares; NULL: the
     * gradient lives in its slot. */
    void *grad;
    size_t count;
    brg_dtype dtype;
    brg_device device; /* the CPU for now */
    size_t n_rows;     /* of a matrix, for hooks that compress; 0: none */
} brg_reducer_param;

typedef struct brg_reducer_options {
    size_t struct_size;
    /* A bucket closes once it holds so many bytes. 0: 1 MiB for the first,
     * 25 MiB for the others. */
    size_t first_bucket_bytes;
    size_t bucket_bytes;
    bool sum;          /* the sum over ranks instead of the average */
    bool allow_unused; /* a step may leave parameters out on any rank */
    /* Buckets are made once more after the first step, in the order in which
     * rank 0 became ready, unless this is set (or a `grad` is NULL, since
     * slots move with it). */
    bool keep_order;
    /* The results stay in the slots; the buffers are not written. */
    bool keep_in_slots;
    /* May be NULL. brg_reducer_wait calls it for each bucket, in order, as
     * soon as its gradients are final, while later buckets are still on their
     * way: update their parameters there (brg_reducer_get_bucket lists them).
     * With allow_unused it is called after the last bucket, since who used what
     * is known then. A failure stops further calls and is what wait returns on
     * this rank. See brg_reducer_wait_bucket for steps that fail. */
    brg_status (*on_bucket)(brg_reducer *reducer, size_t bucket, void *user);
    void *user;          /* of on_bucket; borrowed */
    brg_comm_hook *hook; /* borrowed; NULL: plain all-reduces */
} brg_reducer_options;

#define BRG_REDUCER_OPTIONS_INIT                                               \
    {                                                                          \
        .struct_size = sizeof(brg_reducer_options)                             \
    }

/* Collective. `options` may be NULL. *out: owned. */
BRG_API BRG_NODISCARD brg_status brg_reducer_create(
    brg_reducer **out, brg_pg *pg, const brg_reducer_param *params,
    size_t n_params, const brg_reducer_options *options);
/* NULL is allowed. Gradients that live in slots are gone afterwards. */
BRG_API void brg_reducer_destroy(brg_reducer *reducer);

/* Gradient i of this step is complete: copied into its slot (nothing is, if
 * it lives there), and every bucket that this completes is started. Fails
 * with BRG_ERR_STATE if it was marked before in this step.
 *
 * Any thread may call it, also several at once for different gradients. The
 * reducer belongs to the thread that last created, polled or waited for it;
 * what another one marks is copied by that thread, and its bucket starts when
 * the owner next marks, polls or waits. All marks of a step must have returned
 * before the wait that ends it is called. */
BRG_API BRG_NODISCARD brg_status brg_reducer_mark_ready(brg_reducer *reducer,
                                                        size_t i);

/* Starts the buckets that other threads have completed and moves messages,
 * without waiting: for the owner, while others compute. */
BRG_API BRG_NODISCARD brg_status brg_reducer_poll(brg_reducer *reducer);

/* Gradient i lies at `grad` from now on. Between steps; not for gradients that
 * live in their slots. Builds with BRG_DEBUG > 0 check that a buffer is still
 * there when it is marked or written, and fail with BRG_ERR_STATE if its
 * memory was given back (under the address sanitizer: always if it was
 * freed). */
BRG_API BRG_NODISCARD brg_status brg_reducer_set_grad(brg_reducer *reducer,
                                                      size_t i, void *grad);

/* Ends the step: every gradient holds the average over ranks. Parameters not
 * marked count as zero on this rank; unless options.allow_unused is set, that
 * makes wait fail with BRG_ERR_STATE on every rank, naming parameters and
 * ranks. A parameter that no rank marked keeps its buffer as it is. */
BRG_API BRG_NODISCARD brg_status brg_reducer_wait(brg_reducer *reducer);

/* Waits until the gradients of buckets 0 to `bucket` hold the average; the
 * step still has to be ended by brg_reducer_wait. Every gradient must have been
 * marked: fails with BRG_ERR_STATE, naming those that were not, and changes
 * nothing. Not with allow_unused. Whether all ranks marked everything is known
 * at the end of a step: if its wait fails, gradients that were handed out
 * before have no meaning, and parameters updated from them may differ between
 * ranks. */
BRG_API BRG_NODISCARD brg_status brg_reducer_wait_bucket(brg_reducer *reducer,
                                                         size_t bucket);

/* Ends the step instead of brg_reducer_wait when this rank cannot complete
 * it: the other ranks' wait fails with BRG_ERR_PEER naming this rank, and all
 * are ready for the next step. */
BRG_API BRG_NODISCARD brg_status brg_reducer_cancel(brg_reducer *reducer);

/* Where gradient i lies in its bucket; borrowed. It stays there for life if
 * some `grad` is NULL or keep_order is set, else until the first wait. NULL
 * if there is no i-th. */
BRG_API void *brg_reducer_slot(const brg_reducer *reducer, size_t i);

/* ---- Looking inside ------------------------------------------------------------ */

typedef struct brg_bucket_info {
    brg_dtype dtype;
    size_t n_params;
    const uint32_t *params; /* borrowed until the first wait: which ones */
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

/* How many ranks marked gradient i in the last step that ended well. */
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
} brg_reducer_stats;

BRG_API void brg_reducer_get_stats(const brg_reducer *reducer,
                                   brg_reducer_stats *filled);

/* The bucket plan as text, as snprintf does. */
BRG_API size_t brg_reducer_describe(const brg_reducer *reducer, char *filled,
                                    size_t size);

/* ---- Parameters of this library ------------------------------------------------ */

/* Which backward fills the buckets. */
typedef enum brg_ddp_mode {
    BRG_DDP_AUTO,    /* whichever there is */
    BRG_DDP_EAGER,   /* an eager one; a compiled one is an error (compile.h),
                        raised before anything runs, is freed or is sent */
    BRG_DDP_CAPTURED /* a compiled one; an eager one is served all the same */
} brg_ddp_mode;

/* In which order gradients are summed. */
typedef enum brg_reduction_kind {
    BRG_REDUCTION_DEFAULT, /* each rank's, in the order of the ranks */
    /* n_leaves of them, in one fixed binary tree: the bits do not depend on
     * the world size, the buckets or the backend (docs/reproducible.md). The
     * global batch is cut into n_leaves micro-batches; a rank has those of
     * brg_leaf_run_of, in order, and each of its backwards is the next one.
     * After the last, .grad is the average over leaves (or their sum). Before
     * each, .grad must be NULL, and is so after all but the last;
     * brg_ddp_set_sync must stay on. */
    BRG_REDUCTION_REPRODUCIBLE
} brg_reduction_kind;

typedef struct brg_ddp_options {
    size_t struct_size;
    size_t first_bucket_bytes; /* as for the reducer */
    size_t bucket_bytes;
    bool sum;
    bool allow_unused;
    bool keep_order;
    brg_ddp_mode mode;
    brg_comm_hook *hook; /* borrowed */
    brg_reduction_kind reduction;
    uint32_t n_leaves; /* world size to 4096; 0 with the default reduction */
} brg_ddp_options;

#define BRG_DDP_OPTIONS_INIT                                                   \
    {                                                                          \
        .struct_size = sizeof(brg_ddp_options)                                 \
    }

/* Collective. From now on a backward leaves the average over ranks in .grad of
 * the parameters, which is a view of their bucket and stays the same tensor.
 * `params`: leaves, retained; those that require no gradient are only
 * broadcast, and a tensor given twice counts once. Their names (brg_tensor_
 * set_name) are used in messages. `buffers`: other state of the model. Rank
 * 0's values of both are sent to all ranks. `options` may be NULL. *out:
 * owned. */
BRG_API BRG_NODISCARD brg_status brg_ddp_create(brg_ddp **out, brg_pg *pg,
                                                brg_tensor *const *params,
                                                size_t n_params,
                                                brg_tensor *const *buffers,
                                                size_t n_buffers,
                                                const brg_ddp_options *options);
/* .grad of the parameters stays, in memory of its own. NULL is allowed. */
BRG_API void brg_ddp_destroy(brg_ddp *ddp);

/* While off, backward only adds to .grad of this rank (accumulation over
 * micro-batches); the next backward with it on reduces the whole sum, once.
 * On at the start; to be switched for the same backwards on every rank.
 * Returns what it was. */
BRG_API bool brg_ddp_set_sync(brg_ddp *ddp, bool is_on);

/* Fills the number, among all leaves, of the one that the next backward counts
 * as; true if it is this rank's last. Under the default reduction false, and
 * nothing is filled. */
BRG_API bool brg_ddp_next_leaf(const brg_ddp *ddp, uint32_t *leaf);

/* Collective: gives every rank the buffers of rank 0. */
BRG_API BRG_NODISCARD brg_status brg_ddp_sync_buffers(brg_ddp *ddp);

/* What brg_backward may return because of a ddp, on every rank alike:
 * BRG_ERR_STATE   a parameter got no gradient on some rank, and allow_unused
 *                 is not set: parameters and ranks are named. With it set, a
 *                 parameter that no rank used keeps its .grad as it is.
 * BRG_ERR_PEER    the backward of a rank failed, which is named; that rank
 *                 gets its own error. All ranks may go on with the next step.
 * Gradients of a failed backward have no meaning. */

/* Its reducer, for the queries above: parameters are counted without those
 * that require no gradient and those given twice. Borrowed from ddp. */
BRG_API const brg_reducer *brg_ddp_reducer(const brg_ddp *ddp);
BRG_API void brg_ddp_get_stats(const brg_ddp *ddp, brg_reducer_stats *filled);
/* Which bucket holds the gradient of `param`, and at which byte. */
BRG_API BRG_NODISCARD brg_status
brg_ddp_gradient_bucket(const brg_ddp *ddp, const brg_tensor *param,
                        size_t *bucket, size_t *offset);

BRG_END_DECLS

#endif
