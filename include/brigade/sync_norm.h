/* SPDX-License-Identifier: Apache-2.0
 * Batch norm with the statistics of all ranks' batches. */
#ifndef BRG_SYNC_NORM_H
#define BRG_SYNC_NORM_H

#include <brigade/comm.h>
#include <brigade/nn.h>
#include <brigade/ops_nn.h>

BRG_BEGIN_DECLS

/* What synchronised batch norms share: the group that they speak through. It
 * may be that of the ddp. All its collectives must then come in one order on
 * all ranks: where backwards differ between ranks (unused parameters), give
 * batch norms a group of their own. */
typedef struct brg_sync_norm brg_sync_norm;

/* *out: owned. `pg`: borrowed, outlives it and the backwards of its calls. */
BRG_API BRG_NODISCARD brg_status brg_sync_norm_create(brg_sync_norm **out,
                                                      brg_pg *pg);
/* Recorded calls can still go backward. NULL is allowed. */
BRG_API void brg_sync_norm_destroy(brg_sync_norm *sync);

/* brg_batch_norm of the batches of all ranks as if they were one:
 *
 *     N = sum of n_r   mean = sum of n_r mean_r / N
 *     var = (sum of m_r + n_r (mean_r - mean)^2) / N
 *
 * over ranks r with n_r values per channel, their mean mean_r and their sum of
 * squared distances from it m_r; all in f64. Ranks may have batches of
 * different sizes, and empty ones. One value per channel in all has variance
 * 0. Training is collective: one all_gather of 2 C + 1 numbers forward, one
 * all_reduce of 2 C backward if x wants a gradient. That of x is the one of the
 * sum of the ranks' losses; those of weight and bias are this rank's part of
 * it, which a ddp adds up with the others'. running_mean and running_var stay
 * alike on all ranks. Without options.training: brg_batch_norm itself.
 * Not differentiable twice. A compiled backward calls it (opaque). x may be on
 * the GPU that the group reduces on, or on any if it reduces on the host, which
 * waits for copies then. Errors: those of brg_batch_norm and of the
 * collectives. */
BRG_API brg_tensor *brg_sync_batch_norm(brg_sync_norm *sync, brg_tensor *x,
                                        brg_tensor *weight, brg_tensor *bias,
                                        brg_tensor *running_mean,
                                        brg_tensor *running_var,
                                        const brg_batch_norm_options *options);

/* The same for a layer of nn.h. */
BRG_API brg_tensor *
brg_nn_sync_batch_norm_forward(const brg_nn_batch_norm *layer,
                               brg_sync_norm *sync, brg_tensor *x,
                               bool is_training);

BRG_END_DECLS

#endif
