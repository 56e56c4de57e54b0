/* SPDX-License-Identifier: Apache-2.0
 * The training loop that all trainers share: what differs between them is a
 * task. */
#ifndef EXAMPLES_COMMON_TRAIN_H
#define EXAMPLES_COMMON_TRAIN_H

#include <brigade/io.h>
#include <brigade/optim.h>
#include <brigade/params.h>

#include "common/options.h"
#include "common/world.h"

/* Sums over the samples that one rank evaluated. */
typedef struct eval_sums {
    double loss;
    double n_correct;
    double n;
} eval_sums;

typedef struct train_task {
    const char *model; /* a checkpoint of another one is refused */
    void *user;
    brg_params *params;
    int64_t n_samples; /* to train on */
    bool has_accuracy;
    double clip_norm; /* of the gradients; 0: not */
    double weight_decay;
    /* A rank's part of a batch: what goes in, what should come out. */
    brg_status (*load)(void *user, const brg_batch *batch, brg_tensor *data[2]);
    /* The mean loss on it. */
    brg_tensor *(*loss)(void *user, brg_tensor *const data[2]);
    /* Adds the sums of rank's part of the test data. */
    brg_status (*evaluate)(void *user, const world *w, eval_sums *sums);
    /* The learning rate: a schedule over steps, or a factor from one epoch to
     * the next. 0: not. */
    brg_lr_cosine schedule;
    double epoch_decay;
} train_task;

typedef struct train_result {
    double accuracy;
    double loss; /* of the test data */
    int64_t n_steps;
    double step_ms;
    double wait_share;           /* of a step, waiting for other ranks; on GPUs
                                    the GPU's, in steps whose loss is read */
    double overlap_first_launch; /* part of backward done when the first
                                    bucket started */
    double seconds;              /* of training, evaluation left out */
    uint64_t params_hash;
} train_result;

/* Trains, evaluates, writes checkpoints. Collective. */
BRG_NODISCARD brg_status train(train_result *out, const train_task *task,
                               const train_options *options, world *w);

/* Adds the sums of samples first .. first + n. */
typedef brg_status (*eval_chunk_fn)(const void *user, int64_t first, int64_t n,
                                    eval_sums *sums);

/* This rank's part of n samples, so many at a time, each chunk in a scope of
 * its own. */
BRG_NODISCARD brg_status train_evaluate(eval_chunk_fn chunk, const void *user,
                                        int64_t n, int64_t chunk_size,
                                        const world *w, eval_sums *sums);

/* The last line of a trainer: "result: <first> ranks=... params_hash=...";
 * rank 0 prints it. */
void train_print_result(const train_result *result, const world *w,
                        const char *first);

#endif
