/* SPDX-License-Identifier: Apache-2.0
 * Saving and loading of checkpoints. */
#include "common/state.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define N_ITEMS 4

static void fill_items(brg_checkpoint_item items[N_ITEMS],
                       const train_task *task, const train_options *options)
{
    size_t size = sizeof items[0].value;
    items[0].key = "model";
    snprintf(items[0].value, size, "%s", task->model);
    items[1].key = "optimizer";
    snprintf(items[1].value, size, "%s", options->optimizer);
    items[2].key = "seed";
    snprintf(items[2].value, size, "%" PRId64, options->seed);
    items[3].key = "batch";
    snprintf(items[3].value, size, "%" PRId64, options->batch);
}

brg_status state_save(const char *path, const train_task *task,
                      const train_options *options, brg_optim *optim,
                      int64_t step, brg_sampler_position position)
{
    brg_checkpoint_item items[N_ITEMS];
    fill_items(items, task, options);
    return brg_checkpoint_save(
        path, &(brg_checkpoint){.struct_size = sizeof(brg_checkpoint),
                                .params = task->params,
                                .optim = optim,
                                .step = step,
                                .position = position,
                                .items = items,
                                .n_items = N_ITEMS});
}

brg_status state_load(const char *path, const train_task *task,
                      const train_options *options, brg_optim *optim,
                      int64_t *step, brg_sampler_position *position)
{
    brg_checkpoint_item wanted[N_ITEMS], found[N_ITEMS];
    fill_items(wanted, task, options);
    fill_items(found, task, options);
    brg_checkpoint checkpoint = {.struct_size = sizeof checkpoint,
                                 .params = task->params,
                                 .optim = optim,
                                 .items = found,
                                 .n_items = N_ITEMS};
    BRG_TRY(brg_checkpoint_load(&checkpoint, path));
    for (size_t i = 0; i < N_ITEMS; i++) {
        if (strcmp(wanted[i].value, found[i].value) != 0)
            return brg_error_set(BRG_ERR_ARG, __FILE__, __LINE__,
                                 "%s was written with %s %s, this run has %s",
                                 path, wanted[i].key, found[i].value,
                                 wanted[i].value);
    }
    *step = checkpoint.step;
    *position = checkpoint.position;
    return BRG_OK;
}
