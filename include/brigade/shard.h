/* SPDX-License-Identifier: Apache-2.0
 * Sharded optimizer state (ZeRO, stage 1). */
#ifndef BRG_SHARD_H
#define BRG_SHARD_H

#include <brigade/optim.h>
#include <brigade/reducer.h>

BRG_BEGIN_DECLS

/* Each rank keeps optimizer state for 1/N of the elements and updates those
 * alone (S. Rajbhandari, J. Rasley, O. Ruwase, Y. He, "ZeRO: Memory
 * Optimizations Toward Training Trillion Parameter Models", 2020, section 5.1).
 * A bucket is cut into N equal shards: backward reduce-scatters it, the
 * optimizer updates the rank's ranges, and the new parameters are
 * all-gathered, bucket by bucket, while the next forward begins:
 *
 *     brg_ddp_options.shard = true;          // before brg_ddp_create
 *     brg_ddp_shard(ddp, params, ranges, n); // once
 *     adamw.ranges = ranges;                 // brg_optim_create_adamw
 *     for each step
 *         brg_ddp_wait_params(ddp, NULL);    // or each layer's, before it runs
 *         forward, brg_backward, [brg_ddp_clip_grad_norm]
 *         brg_optim_step(optim);
 *         brg_ddp_gather_params(ddp);
 *         brg_optim_zero_grad(optim, false);
 *
 * Elements get the same bits as from an optimizer that has all state. What
 * such a ddp is like:
 * - After a reduced backward .grad holds the average (or sum) in the rank's
 *   ranges; what is elsewhere has no meaning. Remove gradients, or fill them
 *   with zeros, before the next backward.
 * - Parameters move into memory of the group, and back when the ddp goes: each
 *   must be row-major, alone in its storage, and the library's own memory.
 * - No hook, no reproducible reduction, no grads_apart, no brg_ddp_refresh;
 *   buckets keep the order of the parameters.
 * One thread at a time; all but brg_ddp_shard and brg_ddp_wait_params are
 * collective, in the same order on every rank. */

/* Fills the range of elements that this rank owns of each trained tensor of
 * `params`, in their order; n: their number. Those that the ddp does not
 * reduce get an empty one. */
BRG_API BRG_NODISCARD brg_status brg_ddp_shard(const brg_ddp *ddp,
                                               const brg_params *params,
                                               brg_optim_range *filled,
                                               size_t n);

/* Starts sending what this rank owns of every parameter to all ranks, last
 * buckets first: a forward needs them in that order. Until waited for,
 * parameters must not be used, and a backward fails with BRG_ERR_STATE. */
BRG_API BRG_NODISCARD brg_status brg_ddp_gather_params(brg_ddp *ddp);
/* Waits until `param` is whole (with all others of its bucket); NULL: all.
 * Costs next to nothing if nothing is on its way. */
BRG_API BRG_NODISCARD brg_status brg_ddp_wait_params(brg_ddp *ddp,
                                                     const brg_tensor *param);

/* State, rate and counts of steps between the ranks' optimizers, `part`, made
 * with the ranges of this ddp, and one that has all of it, `full`, of the same
 * kind over the same parameters: on rank 0, NULL (ignored) elsewhere. So a
 * checkpoint holds the whole state, and is read at any world size, sharded or
 * not. If the two do not match, the rank that sees it fails with BRG_ERR_ARG,
 * the others with BRG_ERR_PEER, and nothing was changed. */
BRG_API BRG_NODISCARD brg_status brg_ddp_gather_optim(brg_ddp *ddp,
                                                      brg_optim *full,
                                                      brg_optim *part);
BRG_API BRG_NODISCARD brg_status brg_ddp_scatter_optim(brg_ddp *ddp,
                                                       brg_optim *part,
                                                       brg_optim *full);

BRG_END_DECLS

#endif
