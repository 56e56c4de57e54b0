/* SPDX-License-Identifier: Apache-2.0
 * Forked ranks whose GPUs of fake_gpu.h are devices of the library: tensors are
 * there, in the memory and the queue of core/cuda. */
#ifndef BRG_TESTS_NCCL_FORKED_DEVICE_H
#define BRG_TESTS_NCCL_FORKED_DEVICE_H

#include <brigade/cuda.h>

#include "tests/nccl/forked.h"

/* The rank's stream is that of the device from now on. */
static inline brg_status forked_device(forked_rank *me)
{
    brg_device_type type;
    const brg_device_vtable *table;
    void *stream = NULL;
    BRG_TRY(brg_device_cuda(brg_device_host_get(), &type, &table));
    BRG_TRY(brg_device_register(type, table));
    me->device = (brg_device){BRG_DEVICE_CUDA, (int16_t)me->rank};
    BRG_TRY(table->stream(me->device, &stream));
    me->stream = stream;
    return BRG_OK;
}

/* And a group; new tensors are there. */
static inline brg_status forked_device_group(forked_rank *me, double timeout_s,
                                             brg_pg **pg)
{
    BRG_TRY(forked_device(me));
    BRG_TRY(forked_group(me, timeout_s, pg));
    return brg_device_set(me->device);
}

#endif
