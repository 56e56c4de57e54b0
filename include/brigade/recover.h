/* SPDX-License-Identifier: Apache-2.0
 * Going on after a rank was lost, and noticing that one has gone astray. See
 * docs/failures.md. */
#ifndef BRG_RECOVER_H
#define BRG_RECOVER_H

#include <brigade/ddp.h>
#include <brigade/optim.h>

BRG_BEGIN_DECLS

/* Training goes on over the ranks that are left:
 *
 *     status = step(ddp, ...);               // BRG_ERR_PEER: a rank is gone
 *     if (brg_pg_shrink(&left, pg) == BRG_OK &&
 *         brg_ddp_regroup(ddp, left, optim, &n_steps) == BRG_OK) {
 *         brg_pg_destroy(pg);
 *         pg = left;                         // a new rank and world size:
 *         ...                                // take shares of batches anew
 *     }
 *
 * from the step that was under way, with the bits of a run that had the
 * smaller world from that step on. */

/* Collective over `pg`, which brg_pg_shrink made of the group of `ddp`; between
 * backwards. The ddp makes its buckets anew, over `pg`. n_steps: how many
 * updates this rank has made; ranks may differ by one, since some may have had
 * their gradients before the failure. Every rank gets parameters, buffers and
 * the state and rate of `optim` (on every rank, or NULL on all) from one that
 * has made most, and *n_steps becomes its number. .grad becomes NULL. What the
 * lost step has drawn from the random generator stays drawn.
 *
 * On a GPU a lost step shows only when it is waited for, and an update that was
 * queued behind it has used sums without a meaning: call brg_ddp_confirm after
 * each backward, before the update. It costs the wait.
 *
 * Fails with BRG_ERR_UNSUPPORTED for a ddp with shard: the state of the lost
 * rank is lost; on a GPU where an update was queued behind a step that was not
 * confirmed; with BRG_ERR_MISMATCH where those with most steps have states
 * that differ, and no more than half of them one. After another loss
 * (BRG_ERR_PEER) parameters, state and *n_steps are as they were: shrink `pg` in
 * turn and call it again. */
BRG_API BRG_NODISCARD brg_status brg_ddp_regroup(brg_ddp *ddp, brg_pg *pg,
                                                 brg_optim *optim,
                                                 int64_t *n_steps);

/* Collective: whether all ranks have the same parameters, by a hash of their
 * bits; reads them once and sends some 100 bytes. If not, ranks that
 * differ from more than half of all get BRG_ERR_MISMATCH and the others
 * BRG_ERR_PEER, which names those ranks; without such a majority all get
 * BRG_ERR_MISMATCH. The group stays usable. */
BRG_API BRG_NODISCARD brg_status brg_ddp_compare(brg_ddp *ddp);

BRG_END_DECLS

#endif
