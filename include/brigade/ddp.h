/* SPDX-License-Identifier: Apache-2.0
 * Data-parallel training of parameters of this library. The first words of
 * reducer.h hold here too. */
#ifndef BRG_DDP_H
#define BRG_DDP_H

#include <brigade/reducer.h>
#include <brigade/tensor.h>

BRG_BEGIN_DECLS

/* ---- Parameters of this library ------------------------------------------------ */

/* Which backward fills the buckets. */
typedef enum brg_ddp_mode {
    BRG_DDP_AUTO,    /* whichever there is */
    BRG_DDP_EAGER,   /* an eager one; a compiled one is an error (compile.h),
                        raised before anything runs, is freed or is sent */
    BRG_DDP_CAPTURED /* a compiled one; an eager one is served all the same */
} brg_ddp_mode;

/* What happens to buffers, besides brg_ddp_sync_buffers. */
typedef enum brg_ddp_buffers {
    BRG_DDP_BUFFERS_LEAVE,     /* nothing */
    BRG_DDP_BUFFERS_BROADCAST, /* every rank gets those of rank 0 */
    BRG_DDP_BUFFERS_AVERAGE    /* floats are averaged, the rest broadcast */
} brg_ddp_buffers;

typedef struct brg_ddp_options {
    size_t struct_size;
    size_t first_bucket_bytes; /* as for the reducer */
    size_t bucket_bytes;
    bool sum;
    bool allow_unused;
    bool keep_order;
    brg_ddp_mode mode;
    brg_comm_hook *hook; /* borrowed */
    /* REPRODUCIBLE: each backward of a rank is its next leaf. Before each, .grad
     * must be NULL, and is so after all but the last; brg_ddp_set_sync must
     * stay on. */
    brg_reduction_kind reduction;
    uint32_t n_leaves; /* world size to 4096; 0 with the default reduction */
    bool measure_norm; /* for brg_ddp_clip_grad_norm */
    /* .grad keeps memory of its own; the result is copied there. */
    bool grads_apart;
    /* Each step's backward uses the same parameters, each in as many of its
     * (nested) backwards, as the first one on this rank: nothing is sent before
     * the end of the first, then each parameter is ready after its last
     * gradient, and unused ones at once. Another count is an error. */
    bool static_graph;
    /* After each reduced backward, as they are when its last gradient is
     * there. They ride on the last bucket (docs/tail.md); if they take more
     * than 2 MiB of it, each is sent by itself. */
    brg_ddp_buffers sync_buffers;
    bool shard;                /* sharded optimizer state: shard.h */
    brg_bucket_choice buckets; /* as for the reducer */
    bool check_finite;         /* for brg_ddp_grads_finite */
    /* As for the reducer, by place in `params`. A frozen parameter keeps its
     * group for the time when it is unfrozen (brg_ddp_refresh). */
    const uint32_t *bucket_groups;
    size_t n_bucket_groups;
    /* 16-bit gradients of backwards with reductions off (brg_ddp_set_sync) are
     * added up in f32, in memory of the ddp, and rounded once when they are
     * reduced: .grad is NULL in between (so brg_optim_zero_grad drops nothing),
     * and the average afterwards. One f32 an element. Not with grads_apart. */
    bool accumulate_f32;
} brg_ddp_options;

#define BRG_DDP_OPTIONS_INIT BRG_INIT(brg_ddp_options)

/* Collective. From now on a backward leaves the average over ranks in .grad of
 * the parameters, which is a view of their bucket and stays the same tensor.
 * `params`: leaves, retained; those that require no gradient are only
 * broadcast, and a tensor given twice counts once. Their names (brg_tensor_
 * set_name) are used in messages. `buffers`: other state of the model. Rank
 * 0's values of both are sent to all ranks. They are where the group reduces, or
 * on a GPU while it reduces on the host: .grad is memory of that GPU then, its
 * gradients go to their buckets and back, for which the host waits, and a step
 * tells at once what it came to. A parameter that is not given, made
 * later for instance, is not averaged: its copies drift apart unseen. `options`
 * may be NULL. *out: owned. */
BRG_API BRG_NODISCARD brg_status brg_ddp_create(brg_ddp **out, brg_pg *pg,
                                                brg_tensor *const *params,
                                                size_t n_params,
                                                brg_tensor *const *buffers,
                                                size_t n_buffers,
                                                const brg_ddp_options *options);
/* .grad of the parameters stays, in memory of its own: one for which there is
 * none becomes NULL, and the log says so. NULL is allowed. */
BRG_API void brg_ddp_destroy(brg_ddp *ddp);

/* While off, backward only adds to .grad of this rank (accumulation over
 * micro-batches); the next backward with it on reduces the whole sum, once.
 * On at the start; to be switched for the same backwards on every rank.
 * Returns what it was. */
BRG_API bool brg_ddp_set_sync(brg_ddp *ddp, bool is_on);

/* Parameters on a GPU: what the last backward came to on all ranks; see
 * brg_reducer_confirm. Call it before a checkpoint is written. */
BRG_API BRG_NODISCARD brg_status brg_ddp_confirm(brg_ddp *ddp);

/* Fills the number, among all leaves, of the one that the next backward counts
 * as; true if it is this rank's last. Under the default reduction false, and
 * nothing is filled. */
BRG_API bool brg_ddp_next_leaf(const brg_ddp *ddp, uint32_t *leaf);

/* Collective: gives every rank the buffers of rank 0. */
BRG_API BRG_NODISCARD brg_status brg_ddp_sync_buffers(brg_ddp *ddp);

/* For a rank that has no more data, as brg_reducer_join: between backwards. */
BRG_API BRG_NODISCARD brg_status brg_ddp_join(brg_ddp *ddp, bool *is_over);

/* Collective: parameters were frozen or unfrozen (brg_set_requires_grad), the
 * same on every rank: makes the buckets anew for those that require gradients
 * now, and verifies that all ranks agree. Gradients keep their values. On
 * failure everything is as before. */
BRG_API BRG_NODISCARD brg_status brg_ddp_refresh(brg_ddp *ddp);

/* Needs measure_norm: scales all gradients by min(1, max_norm / (norm + 1e-6))
 * with the norm of the last reduced backward, filled into *norm (may be NULL);
 * a norm that is not finite leaves them as they are. It is not measured again:
 * where the loss is scaled, call this with max_norm times the scale, before
 * brg_scale_grad. One pass over memory where brg_clip_grad_norm takes two. With
 * shard: collective; each rank scales what it owns, and brg_reducer_grad_norm
 * is the norm of that. On a GPU nothing waits if `norm` is NULL. */
BRG_API BRG_NODISCARD brg_status brg_ddp_clip_grad_norm(brg_ddp *ddp,
                                                        double max_norm,
                                                        double *norm);

/* Needs check_finite: brg_reducer_grads_finite of the last reduced backward. */
BRG_API bool brg_ddp_grads_finite(const brg_ddp *ddp, brg_finite_info *filled);
/* brg_reducer_found_inf; the same tensor for the life of the ddp. */
BRG_API brg_tensor *brg_ddp_found_inf(const brg_ddp *ddp);

/* What brg_backward may return because of a ddp, on every rank alike:
 * BRG_ERR_STATE   a parameter got no gradient on some rank, and allow_unused
 *                 is not set: parameters and ranks are named. With it set, a
 *                 parameter that no rank used keeps its .grad as it is.
 * BRG_ERR_PEER    the backward of a rank failed, which is named; that rank
 *                 gets its own error. All ranks may go on with the next step.
 *                 With several ddps in one backward, a rank that fails before
 *                 all their buckets have started may give the others
 *                 BRG_ERR_MISMATCH instead, which names it and says that its
 *                 backward has failed, and the group is over.
 * Gradients of a failed backward have no meaning. */

/* Its reducer, for the queries above: parameters are counted without those
 * that require no gradient and those given twice. Borrowed from ddp. */
BRG_API const brg_reducer *brg_ddp_reducer(const brg_ddp *ddp);
BRG_API void brg_ddp_get_stats(const brg_ddp *ddp, brg_reducer_stats *filled);
/* Which bucket holds the gradient of `param`, and at which byte. */
BRG_API BRG_NODISCARD brg_status
brg_ddp_gradient_bucket(const brg_ddp *ddp, const brg_tensor *param,
                        size_t *bucket, size_t *offset);

/* Gradients on a GPU, where the host waits for nothing: from the next step on the
 * GPU's clock is read where its queue begins to wait for the buckets and where it
 * goes on (two small kernels). To be called before steps are recorded. Other
 * devices: BRG_ERR_UNSUPPORTED. */
BRG_API BRG_NODISCARD brg_status
brg_reducer_measure_exposed(brg_reducer *reducer);
/* Between the two in the last step, in ns: communication that the backward did
 * not hide, with other ranks that came later, and norms if they are measured; with
 * brg_reducer_wait_bucket from its first call on, with what was queued since.
 * Waits until the step is done; 0 before the first. BRG_ERR_STATE: it is not
 * measured. A clock that cannot be read fails no step but this call, until
 * measuring is asked for again. */
BRG_API BRG_NODISCARD brg_status
brg_reducer_exposed_ns(const brg_reducer *reducer, uint64_t *ns);
/* The same of its reducer. */
BRG_API BRG_NODISCARD brg_status brg_ddp_measure_exposed(brg_ddp *ddp);
BRG_API BRG_NODISCARD brg_status brg_ddp_exposed_ns(const brg_ddp *ddp,
                                                    uint64_t *ns);

BRG_END_DECLS

#endif
