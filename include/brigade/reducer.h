/* SPDX-License-Identifier: Apache-2.0
 * Gradient reduction: buckets that are all-reduced while backward runs. */
#ifndef BRG_REDUCER_H
#define BRG_REDUCER_H

#include <brigade/comm.h>
#include <brigade/comm_hook.h>
#include <brigade/reducer_info.h>
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
 * at a time (but for brg_reducer_mark_ready), and keep their group until they
 * go. Parameters that differ between ranks (count, name, dtype, shape) or
 * options that do fail on every rank alike with BRG_ERR_MISMATCH. */

/* ---- A hand-written backward ------------------------------------------------- */

/* One gradient buffer. `name` (copied; may be NULL) is for messages. */
typedef struct brg_reducer_param {
    const char *name;
    /* Borrowed, count elements that no other parameter shares; NULL: the
     * gradient lives in its slot. */
    void *grad;
    size_t count;
    brg_dtype dtype;
    /* Where the group reduces: its GPU, or the CPU. Of a group that reduces on
     * the CPU also a GPU: the gradient is copied to its slot and back, for which
     * the host waits. */
    brg_device device;
    size_t n_rows; /* of a matrix, for hooks that compress; 0: none */
} brg_reducer_param;

/* One in host memory; set what else it has. */
static inline brg_reducer_param brg_reducer_raw(const char *name, void *grad,
                                                size_t count, brg_dtype dtype)
{
    brg_reducer_param p = {name, grad, count, dtype, {BRG_DEVICE_CPU, 0}, 0};
    return p;
}

/* Which gradients travel together. */
typedef enum brg_bucket_choice {
    /* MEASURED where the ranks are on several machines, no size of buckets is
     * given and nothing that it does not go with; otherwise BY_SIZE. */
    BRG_BUCKETS_DEFAULT,
    BRG_BUCKETS_BY_SIZE, /* a bucket closes once it holds so many bytes */
    /* After the sixth step: the cut of the order that leaves least exposed, by
     * when gradients were ready in steps two to six on the slowest rank and by
     * what all-reduces of this group take (schedule.h), measured there, once;
     * rank 0 chooses for all. If sizes are predicted to be as good, they
     * decide. Results have the same bits. Not with a hook, leaves, shards,
     * keep_order, bucket_groups, gradients that live in slots of a brg_reducer, or
     * on a GPU. */
    BRG_BUCKETS_MEASURED
} brg_bucket_choice;

/* In which order gradients are summed. */
typedef enum brg_reduction_kind {
    BRG_REDUCTION_DEFAULT, /* each rank's, in the order of the ranks */
    /* n_leaves of them, in one fixed binary tree: the bits do not depend on
     * the world size, the buckets or the backend (docs/reproducible.md). The
     * global batch is cut into n_leaves micro-batches, its leaves; a rank has
     * those of brg_leaf_run_of, in order, and one backward for each. The
     * result is the average over leaves (or their sum). */
    BRG_REDUCTION_REPRODUCIBLE
} brg_reduction_kind;

typedef struct brg_reducer_options {
    size_t struct_size;
    /* A bucket closes once it holds so many bytes. 0: 1 MiB for the first,
     * 25 MiB for the others, 60 MiB where the group reduces on a device. */
    size_t first_bucket_bytes;
    size_t bucket_bytes;
    bool sum;          /* the sum over ranks instead of the average */
    bool allow_unused; /* a step may leave parameters out on any rank */
    /* Buckets are made once more after the first step (the sixth if they are
     * measured), in the order in which rank 0 became ready, unless this is set (or a `grad` is NULL, since
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
    bool measure_norm;   /* for brg_reducer_grad_norm */
    brg_bucket_choice buckets;
    brg_reduction_kind reduction; /* REPRODUCIBLE: brg_reducer_end_leaf */
    uint32_t n_leaves; /* world size to 4096; 0 with the default reduction */
    bool check_finite; /* for brg_reducer_grads_finite */
    /* Parameter i is in group bucket_groups[i], of 1 to n_bucket_groups; 0: in
     * none. A group shares one bucket of whatever size (one for each dtype),
     * which holds nothing else; all others are cut by size. Each group has a
     * parameter. Not with BRG_BUCKETS_MEASURED. NULL: no groups. Borrowed for
     * the call. */
    const uint32_t *bucket_groups;
    size_t n_bucket_groups;
} brg_reducer_options;

#define BRG_REDUCER_OPTIONS_INIT BRG_INIT(brg_reducer_options)

/* Collective. `options` may be NULL. *out: owned. */
BRG_API BRG_NODISCARD brg_status brg_reducer_create(
    brg_reducer **out, brg_pg *pg, const brg_reducer_param *params,
    size_t n_params, const brg_reducer_options *options);
/* NULL is allowed. Gradients that live in slots are gone afterwards. */
BRG_API void brg_reducer_destroy(brg_reducer *reducer);

/* Gradient i of this step is complete: copied into its slot (nothing is, if
 * it lives there), and every bucket that this completes is started. Fails
 * with BRG_ERR_STATE if it was marked before in this step. If it cannot be
 * copied it is marked all the same and the step is lost: brg_reducer_wait says
 * why on this rank, the others hear of it as of brg_reducer_cancel.
 *
 * Any thread may call it, also several at once for different gradients. The
 * reducer belongs to the thread that last created, polled or waited for it;
 * what another one marks is copied by that thread, and its bucket starts when
 * the owner next marks, polls or waits (one that goes from a GPU through the host
 * is copied then, too: it must not change before). All marks of a step must have returned
 * before the wait that ends it is called. On a GPU the gradient is read behind
 * what brg_device_stream holds by then, and the result is written there. */
BRG_API BRG_NODISCARD brg_status brg_reducer_mark_ready(brg_reducer *reducer,
                                                        size_t i);

/* The same for a gradient that a stream of your own writes: it is read behind
 * `event` as well (CUDA: a cudaEvent_t of that GPU, recorded there once the
 * gradient was queued; yours again when the call returns). The host does not
 * wait; what brg_device_stream gets from now on does. After brg_reducer_wait
 * let your streams wait for an event recorded in brg_device_stream. Fails with
 * BRG_ERR_UNSUPPORTED on a CPU, and marks nothing. */
BRG_API BRG_NODISCARD brg_status
brg_reducer_mark_ready_after(brg_reducer *reducer, size_t i, void *event);

/* Starts the buckets that other threads have completed and moves messages,
 * without waiting: for the owner, while others compute. */
BRG_API BRG_NODISCARD brg_status brg_reducer_poll(brg_reducer *reducer);

/* Gradient i lies at `grad` from now on. Between steps; not for gradients that
 * live in their slots. Builds with BRG_DEBUG > 0 check that a buffer is still
 * there when it is marked or written: BRG_ERR_STATE if it was freed or moved
 * (free, realloc, munmap, mremap), with the place of that call, where the
 * program stands on libbrigade_watch.so, as one that links the shared library
 * of a debug build by CMake does, and any other with LD_PRELOAD. Without it: if
 * its pages are gone (of malloc: blocks above 32 MiB, some from 128 KiB on).
 * Also under the address sanitizer if it was freed, and if CUDA no longer knows
 * it as memory of the GPU. */
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

/* Gradients on a GPU: a step is queued, and what it came to on all ranks (a
 * gradient missing, a rank that gave up) is the status of the next step's end,
 * on every rank alike, in which parameters have been updated already: they may
 * differ between ranks then, so go back to a checkpoint. This waits until it is
 * known, before a checkpoint is written for example. In host memory steps have
 * said it themselves: returns BRG_OK at once. */
BRG_API BRG_NODISCARD brg_status brg_reducer_confirm(brg_reducer *reducer);

/* Ends the step instead of brg_reducer_wait when this rank cannot complete
 * it: the other ranks' wait fails with BRG_ERR_PEER naming this rank, and all
 * are ready for the next step. */
BRG_API BRG_NODISCARD brg_status brg_reducer_cancel(brg_reducer *reducer);

/* For a rank that has no more data while others have: one step of theirs, in
 * which this rank's gradients are zero and missing ones are not held against
 * it. Afterwards the gradients hold what the others have (averages count all
 * ranks): update the parameters as they do. *is_over: no rank had data, so
 * nothing was done; all ranks leave their loops here.
 *
 *     for (bool over = false; ; ) {
 *         BRG_TRY(brg_reducer_join(reducer, &over));
 *         if (over) break;
 *         update();
 *     }
 *
 * Even steps pay nothing for it. */
BRG_API BRG_NODISCARD brg_status brg_reducer_join(brg_reducer *reducer,
                                                  bool *is_over);

/* Where gradient i lies in its bucket; borrowed. It stays there for life if
 * some `grad` is NULL or keep_order is set, else until buckets are made once
 * more: by the first wait, or the sixth if they are measured (brg_bucket_choice,
 * between machines the default). NULL
 * if there is no i-th. With leaves: where that of the leaf under way goes, to
 * be asked for each leaf; between steps where the result is. */
BRG_API void *brg_reducer_slot(const brg_reducer *reducer, size_t i);

/* ---- Leaves ---------------------------------------------------------------------- */

/* With BRG_REDUCTION_REPRODUCIBLE a step has several backwards on each rank:
 *
 *     bool is_last;
 *     do {
 *         uint32_t leaf;
 *         is_last = brg_reducer_next_leaf(reducer, &leaf);
 *         ...the gradients of micro-batch `leaf`, and of it alone, are marked
 *         BRG_TRY(is_last ? brg_reducer_wait(reducer)
 *                         : brg_reducer_end_leaf(reducer));
 *     } while (!is_last);
 *
 * Buckets start in the last leaf. `grad` is overwritten from leaf to leaf, and
 * holds the result after the wait. brg_reducer_join and hooks do not go with
 * leaves; the cost is that of n_slots (brg_leaf_run) arenas. */

/* Fills the number, among all leaves, of the one that the next mark belongs
 * to; true if it is this rank's last. Under the default reduction false, and
 * nothing is filled. */
BRG_API bool brg_reducer_next_leaf(const brg_reducer *reducer, uint32_t *leaf);

/* Ends a leaf that is not the last, all marks of which have returned: a
 * gradient that was not marked is zero in it (one marked in no leaf of this
 * rank is missing, see brg_reducer_wait). Fails with BRG_ERR_STATE in the last
 * leaf, as brg_reducer_wait does in another, and changes nothing then. */
BRG_API BRG_NODISCARD brg_status brg_reducer_end_leaf(brg_reducer *reducer);

/* ---- Norm, finite or not ------------------------------------------------------ */

/* With measure_norm: the Euclidean norm of all gradients after the last step,
 * of those that some rank used; each bucket was measured when it came, while
 * later ones were on their way. The same bits on every rank. 0 before the
 * first step. On a GPU: waits for it; NaN if that fails. */
BRG_API double brg_reducer_grad_norm(const brg_reducer *reducer);

typedef struct brg_finite_info {
    bool all_finite;
    size_t n_ranks; /* with gradients that are not; 0: a hook made them */
    int rank;       /* if it is one; else -1 */
    size_t param;   /* its first to become ready; if they are several, this
                       rank's own; SIZE_MAX: not known, or all are finite */
} brg_finite_info;

/* With check_finite: no gradient of any rank was NaN or infinite in the last
 * step that ended well, nor so large that their sum may overflow (the largest
 * number of its dtype over the world size, or the leaves; averages of f16: the
 * largest number), and no communication hook has made such a one. For loss
 * scaling: if false, skip the update and halve the scale.
 *
 * The same on every rank, at no message: each gradient is looked at when it is
 * packed, and what was found rides on the last bucket. `filled` (may be NULL)
 * says where. True before the first step and without the option.
 *
 * On a GPU this waits until the step is known, as brg_reducer_confirm does; if
 * that fails it is false, n_ranks 0, and the next step or confirm says why.
 * Averages of f16 are held there to the largest number less two units in its
 * last place for each rank, whose part is rounded. */
BRG_API bool brg_reducer_grads_finite(const brg_reducer *reducer,
                                      brg_finite_info *filled);

/* The same as one f32 where the gradients are, 0 if they were finite, set without
 * a wait: for brg_optim_set_found_inf. Borrowed; NULL without check_finite. */
BRG_API brg_tensor *brg_reducer_found_inf(const brg_reducer *reducer);

BRG_END_DECLS

#include <brigade/ddp.h>

#endif
