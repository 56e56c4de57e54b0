/* SPDX-License-Identifier: Apache-2.0
 * How a reducer and a compiled backward meet without knowing each other.
 *
 * The hook of a leaf that reduces gradients tells the backward that finds it
 * which part of which reduction the leaf's gradient is. Its plan then does not
 * call the hook, but carries the reduction out in steps of its own:
 *
 *     begin      before the first step: from here on the reducer ends the
 *                backward, well or not, with the other ranks
 *     expect     the plan is known: these gradients it makes, and no others
 *     pack       the leaf's gradient is complete: into its slot of the bucket
 *     start      the bucket's collective, scaled by 1/divisor, begins; or its
 *                communication hook
 *     wait       it is over
 *     write_back .grad holds the result
 *
 * A bucket that is not started or waited for in the plan is when it ends. */
#ifndef BRG_CORE_AUTOGRAD_REDUCTION_H
#define BRG_CORE_AUTOGRAD_REDUCTION_H

#include <brigade/status.h>
#include <brigade/types.h>

#include "core/base/array.h"

/* A gradient that a backward makes, of one of its reductions. */
typedef struct brg__reduction_member {
    int reduction;
    uint32_t member;
} brg__reduction_member;

typedef struct brg__reduction_ops {
    brg_status (*begin)(void *self);
    /* Those of `all` that are of this reduction. Not called where code of the
     * user may bring more. */
    void (*expect)(void *self, const brg__reduction_member *all, size_t n,
                   int reduction);
    brg_status (*pack)(void *self, size_t member);
    /* Buckets before it have started. */
    brg_status (*start)(void *self, size_t bucket);
    brg_status (*wait)(void *self, size_t bucket);
    brg_status (*write_back)(void *self, size_t member);
} brg__reduction_ops;

/* Of a reducer whose work is all queued on a device, so that what a step has
 * queued can be launched again (compile/relaunch.h). */
typedef struct brg__reduction_relaunch {
    /* All that the work depends on. BRG_ERR_UNSUPPORTED: it has to be done by
     * the host each time; the message says why. */
    brg_status (*note)(void *self, brg__words *state);
    /* The same of what the step finds and uses up: sums of micro-batches. */
    brg_status (*find)(void *self, brg__words *state);
    /* Before a recording or a launch: numbers that differ from step to step go
     * to where the work reads them. */
    brg_status (*ready)(void *self);
    /* Behind a launch, in the place of all that the hooks do: what the step
     * before came to. */
    brg_status (*launched)(void *self);
} brg__reduction_relaunch;

/* What a plan depends on, but for `self`, which comes with each backward. */
typedef struct brg__reduction_part {
    const brg__reduction_ops *ops;
    void *self;
    uint64_t version;     /* of the reducer's buckets */
    uint32_t member;      /* which of the reducer's gradients this is */
    uint32_t bucket;      /* that it lies in */
    uint32_t n_in_bucket; /* gradients there */
    uint32_t divisor;     /* 1: a sum; 0: a communication hook decides */
    const brg__reduction_relaunch *relaunch; /* or NULL; of relaunch_self */
    void *relaunch_self;
} brg__reduction_part;

#endif
