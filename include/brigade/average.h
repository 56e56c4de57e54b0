/* SPDX-License-Identifier: Apache-2.0
 * Periodic averaging of parameters (local SGD). */
#ifndef BRG_AVERAGE_H
#define BRG_AVERAGE_H

#include <brigade/comm.h>
#include <brigade/tensor.h>

BRG_BEGIN_DECLS

/* Ranks train on their own and average their parameters every `period` steps
 * (S. U. Stich, "Local SGD Converges Fast and Communicates Little", 2019,
 * algorithm 1), in place of averaging gradients in each. After averaging step
 * t, with x_r the parameters of rank r: x = (1/N) sum over r of x_r. */
typedef struct brg_averager brg_averager;

typedef struct brg_averager_options {
    size_t struct_size;
    int64_t period;      /* at least 1 */
    int64_t warm_up;     /* every step of the first so many averages */
    size_t bucket_bytes; /* of a message; 0: as for the reducer */
} brg_averager_options;

#define BRG_AVERAGER_OPTIONS_INIT                                              \
    BRG_INIT_WITH(brg_averager_options, BRG_SET(period, 1))

/* Collective: rank 0's values go to all. `tensors`: float, row-major, on the
 * device that the group reduces on, or on a GPU under a group that reduces on
 * the host, which waits for the copies then; retained. Options must be the same
 * on every rank. *out: owned. Errors as for brg_ddp_create. */
BRG_API BRG_NODISCARD brg_status
brg_averager_create(brg_averager **out, brg_pg *pg, brg_tensor *const *tensors,
                    size_t n_tensors, const brg_averager_options *options);
BRG_API void brg_averager_destroy(brg_averager *averager);

/* After each step of the optimizer, on every rank: counts it, and averages if
 * it is one of those (collective then). *averaged may be NULL. On a GPU the
 * averages are queued; what went wrong is the status of the next averaging. */
BRG_API BRG_NODISCARD brg_status brg_averager_step(brg_averager *averager,
                                                   bool *averaged);

/* Averages now, whatever the count; the period starts anew. Collective. */
BRG_API BRG_NODISCARD brg_status brg_averager_now(brg_averager *averager);

/* Waits until it is known how the last averaging went, and says so, once: on a
 * GPU, before a checkpoint is written. BRG_OK in host memory. */
BRG_API BRG_NODISCARD brg_status brg_averager_confirm(brg_averager *averager);

/* Steps counted so far, for checkpoints: with a period, a run that goes on
 * must go on from here. */
BRG_API int64_t brg_averager_count(const brg_averager *averager);
BRG_API void brg_averager_set_count(brg_averager *averager, int64_t n_steps);

BRG_END_DECLS

#endif
