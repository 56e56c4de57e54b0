/* SPDX-License-Identifier: Apache-2.0
 * Forked ranks on real GPUs, one each. */
#ifndef BRG_TESTS_CUDA_FORKED_GPU_H
#define BRG_TESTS_CUDA_FORKED_GPU_H

#include <brigade/device.h>

#include "tests/support/forked.h"

static bool forked_prepare(void)
{
    return true; /* nothing of CUDA before the fork */
}

static brg_status forked_begin(forked_rank *me)
{
    me->device = (brg_device){BRG_DEVICE_CUDA, (int16_t)me->rank};
    BRG_TRY(brg_device_load("cuda"));
    if (brg_device_count(BRG_DEVICE_CUDA) <= me->rank)
        return brg_error_set(BRG_ERR_DEVICE, __FILE__, __LINE__,
                             "%d GPUs for %d ranks",
                             brg_device_count(BRG_DEVICE_CUDA), me->n);
    BRG_TRY(brg_device_set(me->device));
    return brg_device_stream(me->device, &me->stream);
}

static inline brg_status do_nothing(forked_rank *me)
{
    (void)me;
    return BRG_OK;
}

/* Says that nothing is tested without a second one; 0, or the exit status. */
static inline int require_two_gpus(void)
{
    forked_result results[2];
    forked_run(2, do_nothing, NULL, results);
    for (int r = 0; r < 2; r++)
        if (results[r].status != BRG_OK) {
            printf("SKIPPED, nothing was tested: %s\n", results[r].text);
            return results[r].status == BRG_ERR_DEVICE ? BRG_TEST_SKIPPED : 1;
        }
    return 0;
}

#endif
