/* SPDX-License-Identifier: Apache-2.0
 * Checkpoints of a training run: what brg_checkpoint keeps, and the options
 * that a run must share with the one it goes on from. */
#ifndef EXAMPLES_COMMON_STATE_H
#define EXAMPLES_COMMON_STATE_H

#include "common/train.h"

BRG_NODISCARD brg_status state_save(const char *path, const train_task *task,
                                    const train_options *options,
                                    brg_optim *optim, int64_t step,
                                    brg_sampler_position position);

/* Refuses the checkpoint of another model, seed, batch or optimizer. */
BRG_NODISCARD brg_status state_load(const char *path, const train_task *task,
                                    const train_options *options,
                                    brg_optim *optim, int64_t *step,
                                    brg_sampler_position *position);

#endif
