/* SPDX-License-Identifier: Apache-2.0
 * The reducer's front end for leaves of this library.
 *
 *     hook(leaf)     the first one of a backward joins it: a final callback
 *                    is queued, and one for the case that backward fails
 *                    gradient -> slot, .grad = view of the slot, arrive
 *     (a compiled backward does without the hook: brg__ddp_describe)
 *     finish         settles what got no gradient, completes the step
 *     on_failure     the backward failed: ends the step for all ranks
 *
 * Each parameter has one view tensor over a storage of its own, whose memory
 * is the slot. When slots move (rebuild) or go (destroy), the storage is
 * pointed elsewhere, so .grad and whoever holds it keep the same tensor. */
#ifndef BRG_REDUCER_DDP_H
#define BRG_REDUCER_DDP_H

#include <brigade/autograd.h>

#include "comm/pg.h"
#include "core/autograd/reduction.h"
#include "core/base/map.h"
#include "core/tensor/tensor.h"
#include "reducer/reducer.h"

/* First what each gradient touches. */
typedef struct brg__ddp_param {
    brg_ddp *ddp;
    size_t index;
    brg_tensor *leaf; /* one of ddp->tensors */
    brg_tensor *view; /* owned: its gradient in the bucket */
    brg_tensor *home; /* owned: where a backward puts it; often the view */
    bool has_sum;     /* `sum` holds some */
    bool is_used;     /* got a gradient since the last reduction */
    bool is_coming; /* a plan makes it; of the last brg__reduction_ops.expect */
    bool is_written;  /* a plan has said that the result is there */
    uint32_t n_fires; /* of its hook in a step; see ddp->graph */
    uint32_t n_left;  /* in this step */
    uint32_t group;   /* of the user's; 0: none */
    brg_tensor *kept; /* owned: what was in the slot of an unused one */
    brg_hook *hook;
    float *sum; /* owned, on the leaf's device: of micro-batches (ddp_sum.c);
                       NULL: in .grad */
} brg__ddp_param;

/* What is known of how often each hook runs in a step. */
typedef enum brg__ddp_graph {
    BRG__GRAPH_FREE,      /* once, or not at all */
    BRG__GRAPH_RECORDING, /* static_graph: the first step counts */
    BRG__GRAPH_FIXED      /* and later ones are held to it */
} brg__ddp_graph;

/* With options.shard: parameters in the layout of the buckets (shard.c). */
typedef struct brg__ddp_weights {
    char *arena;      /* the group's memory; NULL: not moved there */
    brg_work **works; /* of each bucket; owned */
    struct brg__stranded *stranded; /* owned; for want of memory at the end */
    size_t n_in_flight;
    brg__map indices; /* of the parameters, by leaf: layers wait one by one */
} brg__ddp_weights;

struct brg_ddp {
    brg_pg *pg; /* borrowed */
    brg_reducer *reducer;
    brg__ddp_param *params; /* those that are reduced */
    size_t n_params;
    brg_tensor **tensors; /* retained: all parameters, once each */
    size_t n_tensors;
    uint32_t *groups;     /* by tensor: of options.bucket_groups; 0: none */
    brg_tensor **buffers; /* retained */
    size_t n_buffers;
    brg_device_cargo *cargo; /* owned: n_buffers; NULL: none ride */
    uint32_t *late; /* parameters of this step whose .grad is no view yet */
    size_t n_late;
    brg_ddp_options options; /* complete */
    brg__ddp_weights weights;
    brg__ddp_graph graph;
    /* On a device: how many steps had been queued, and the versions of all
     * parameters, when the last backward ended (regroup.c). */
    uint64_t n_queued;
    uint64_t versions;
    bool has_leaves; /* the reproducible reduction */
    bool is_sync;
    bool has_joined; /* a backward is under way */
};

/* ---- ddp_state.c: what the ranks have in common ------------------------------ */

/* All ranks gave the same tensors. Collective; `status`: how far this rank
 * came. */
brg_status brg__ddp_verify(brg_pg *pg, const brg_ddp *ddp,
                           const brg_ddp_options *options, brg_status status);

/* Rank 0's values to all. Collective. */
brg_status brg__ddp_broadcast_params(brg_ddp *ddp);
brg_status brg__ddp_broadcast_buffers(brg_ddp *ddp);
/* What options.sync_buffers says, unless buffers ride. Collective. */
brg_status brg__ddp_sync_buffers(brg_ddp *ddp);

/* ---- ddp.c --------------------------------------------------------------------- */

/* A ddp over these tensors, `is_fresh`: values go from rank 0 to all. */
brg_status brg__ddp_make(brg_ddp **out, brg_pg *pg, brg_tensor *const *params,
                         size_t n_params, brg_tensor *const *buffers,
                         size_t n_buffers, const brg_ddp_options *options,
                         bool is_fresh);

/* ---- ddp_more.c ---------------------------------------------------------------- */

/* Buckets anew, over this group; values stay. Collective. On failure
 * everything is as before. */
brg_status brg__ddp_remake(brg_ddp *ddp, brg_pg *pg);

/* ---- cargo.c: buffers on the last bucket ------------------------------------------ */

/* What options.sync_buffers takes there, for the reducer; nothing if buffers are
 * sent by themselves (brg__ddp_sync_buffers). */
brg_status brg__cargo_prepare(brg_ddp *ddp);
brg_status brg__cargo_load(const brg_ddp *ddp, float *row);
/* After a good step; collectives have not been started since. */
brg_status brg__cargo_unload(const brg_ddp *ddp);

/* ---- compare.c ------------------------------------------------------------------ */

/* Adds the bits of the tensors, row by row, to the hash. */
brg_status brg__ddp_hash(uint64_t *hash, brg_tensor *const *tensors, size_t n);

/* ---- ddp_view.c: gradients in buckets ------------------------------------------ */

/* Makes the view, and a home apart from it; their memory comes with
 * brg__ddp_view_place. */
brg_status brg__ddp_view_make(brg__ddp_param *p, bool has_leaves);
/* The view shows the parameter's slot. */
void brg__ddp_view_place(brg__ddp_param *p);
/* Gives .grad and other holders memory of their own; releases both. */
void brg__ddp_view_drop(brg__ddp_param *p);

/* dst = src, without history. Same sizes. */
brg_status brg__ddp_copy(brg_tensor *dst, brg_tensor *src);
/* The same where the caller touches dst later. */
brg_status brg__ddp_write(brg_tensor *dst, brg_tensor *src);

/* ---- ddp_staged.c: a group on the host, parameters on a device ------------------ */

/* Nothing is, if the group's memory is where the leaf is. */
bool brg__ddp_is_staged(const brg__ddp_param *p);
/* Before the ranks meet; the reducer is there. */
brg_status brg__ddp_staged_prepare(brg_ddp *ddp);
/* A gradient that is complete, `from` the home or the view, to its slot. Waits
 * for the device. */
brg_status brg__ddp_stage(const brg__ddp_param *p, brg_tensor *from,
                          void *slot);
/* The slot into the view. */
brg_status brg__ddp_unstage(const brg__ddp_param *p);
/* After a good step: what went wrong on the way back, on this rank alone. */
brg_status brg__ddp_staged_end(brg_ddp *ddp);

/* May the group not touch the memory of t? */
bool brg__is_staged(const brg_pg *pg, const brg_tensor *t);
/* A row-major copy where the group's memory is, owned. */
brg_status brg__copy_for(brg_tensor **out, const brg_pg *pg, brg_tensor *t);

/* ---- regroup.c ----------------------------------------------------------------------- */

/* A backward has ended, well or not. */
void brg__ddp_note_end(brg_ddp *ddp);

/* ---- ddp_step.c: one backward ------------------------------------------------------ */

brg_status brg__ddp_on_gradient(brg_tensor *leaf, void *param);

/* This backward is one of the ddp's: however it goes on, its end is seen to. */
brg_status brg__ddp_join(brg_ddp *ddp);
/* The parameter's gradient is complete: into its slot, and .grad a view of
 * that. */
brg_status brg__ddp_take(brg__ddp_param *p);

/* Results to .grad, new buckets, buffers: what every rank does after a good
 * step. */
brg_status brg__ddp_hand_over_all(brg_ddp *ddp);
/* A step of the other ranks, of which this one has no data. */
brg_status brg__ddp_shadow_step(brg_ddp *ddp);

/* The leaf's gradient (NULL: zeros) into the home. */
brg_status brg__ddp_pack(brg__ddp_param *p, brg_tensor *grad);
/* And, with the sum of micro-batches, to the slot. */
brg_status brg__ddp_fill(brg__ddp_param *p, brg_tensor *grad);
/* .grad is no view yet: see to it at the end of the step. */
void brg__ddp_remember_late(brg__ddp_param *p);

/* ---- ddp_plan.c: the same as steps of a plan ------------------------------------ */

/* Which part of the reduction a plan may carry out for this parameter; none
 * while reductions are off, or of a leaf. */
void brg__ddp_describe(const brg__ddp_param *p, brg__reduction_part *part);

/* ---- ddp_leaves.c: one backward of several that make a step ------------------------- */

/* A hook ran; none ran in this backward. */
brg_status brg__ddp_leaf_gradient(brg__ddp_param *p, brg_tensor *grad);
brg_status brg__ddp_leaf_settle(brg__ddp_param *p);
/* Homes show the slots of the leaf that comes next. */
void brg__ddp_leaf_place(brg_ddp *ddp);

/* ---- ddp_sum.c: micro-batches of 16-bit gradients in f32 ----------------------------- */

/* With options.accumulate_f32. */
brg_status brg__ddp_sum_make(brg__ddp_param *p);
void brg__ddp_sum_drop(brg__ddp_param *p);
/* .grad of a backward that is not reduced goes into the sum. */
brg_status brg__ddp_sum_add(brg__ddp_param *p);
/* The sum and what is in the home, rounded, into the home. */
brg_status brg__ddp_sum_finish(brg__ddp_param *p);
/* Those of parameters that both have. */
void brg__ddp_sums_move(brg_ddp *to, brg_ddp *from);

#endif
