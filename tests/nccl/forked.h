/* SPDX-License-Identifier: Apache-2.0
 * Forked ranks on the GPUs of fake_gpu.h. */
#ifndef BRG_TESTS_NCCL_FORKED_H
#define BRG_TESTS_NCCL_FORKED_H

#include <cuda_runtime_api.h>

#include "tests/nccl/fake_gpu.h"
#include "tests/support/forked.h"

static bool forked_prepare(void)
{
    return fake_gpu_init();
}

static brg_status forked_begin(forked_rank *me)
{
    cudaStream_t stream;
    me->device = (brg_device){BRG_DEVICE_CUDA, (int16_t)me->rank};
    RANK_CHECK(cudaStreamCreateWithFlags(&stream, 0) == cudaSuccess,
               "no stream");
    me->stream = (void *)stream;
    return brg_backend_register(brg_comm_nccl());
}

/* The host waits for the GPU. */
static inline void forked_synchronize(const forked_rank *me)
{
    (void)cudaStreamSynchronize((cudaStream_t)me->stream);
}

#endif
