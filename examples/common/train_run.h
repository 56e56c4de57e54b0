/* SPDX-License-Identifier: Apache-2.0
 * Inside of train.h: a run, and its steps. */
#ifndef EXAMPLES_COMMON_TRAIN_RUN_H
#define EXAMPLES_COMMON_TRAIN_RUN_H

#include <stdio.h>

#include <brigade/compile.h>

#include "common/metrics.h"
#include "common/progress.h"
#include "common/train.h"

typedef struct run {
    const train_task *task;
    const train_options *options;
    world *w;
    brg_optim *optim;
    brg_ddp *ddp;
    brg_sampler *sampler;
    brg_compiled *compiled; /* the step; NULL: it is eager */
    double *losses;         /* of this step, one per rank or leaf */
    int n_losses;
    FILE *log;        /* rank 0 only */
    metrics *metrics; /* the same */
    progress progress;
    int64_t step;
    int64_t n_steps;
    bool is_saved;       /* the checkpoint holds this step */
    bool is_queued;      /* on a GPU: steps run while the host goes on */
    bool is_timed;       /* there, with a reducer: by the GPU's clock */
    uint64_t exposed_ns; /* of the last step that was looked at */
    double last_loss;
    eval_sums test;
    double first_launch; /* of backward, sums over the steps */
} run;

/* Forward, backward and update of a batch; what was measured of them goes to the
 * log and the metrics. */
brg_status train_step(run *r, const brg_batch *batch);
/* Makes r->compiled of the step. */
brg_status train_compile_step(run *r, const brg_compile_options *options);

#endif
