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

#endif
