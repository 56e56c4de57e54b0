/* SPDX-License-Identifier: Apache-2.0
 * Tensors on the GPU of fake_gpu.h: its memory, the CPU's kernels. They run in
 * the calling thread, when what the GPU's queue holds has ended. */
#ifndef BRG_TESTS_NCCL_FAKE_TENSORS_H
#define BRG_TESTS_NCCL_FAKE_TENSORS_H

#include "tests/nccl/forked.h"
#include "tests/support/fake_device.h"

static forked_rank *fake_tensors_rank;       /* whose GPU it is */
static void (*fake_tensors_at_kernel)(void); /* before each; or NULL */

static brg_status gpu_alloc(brg_device device, void **out, size_t nbytes)
{
    (void)device;
    return cudaMalloc(out, nbytes) == cudaSuccess ? BRG_OK : BRG_ERR_NOMEM;
}

static void gpu_free(brg_device device, void *ptr, size_t nbytes)
{
    (void)device;
    (void)nbytes;
    (void)cudaFree(ptr);
}

static brg_status gpu_copy(brg_device to, void *dst, brg_device from,
                           const void *src, size_t nbytes)
{
    forked_synchronize(fake_tensors_rank);
    return fake_copy(to, dst, from, src, nbytes);
}

static brg_status gpu_zero(brg_device device, void *ptr, size_t nbytes)
{
    forked_synchronize(fake_tensors_rank);
    return fake_zero(device, ptr, nbytes);
}

static brg_status gpu_run(brg_op_call *call)
{
    forked_synchronize(fake_tensors_rank);
    if (fake_tensors_at_kernel)
        fake_tensors_at_kernel();
    return run_there(call);
}

static brg_status (*gpu_kernel(const brg_op *op))(brg_op_call *call)
{
    return fake_kernel(op) ? gpu_run : NULL;
}

static int gpu_count(void)
{
    return FORKED_MAX_RANKS;
}

static brg_status gpu_stream(brg_device device, void **out)
{
    (void)device;
    *out = fake_tensors_rank->stream;
    return BRG_OK;
}

/* SGD with momentum, of f32. */
static brg_status gpu_update(brg_device device,
                             const brg_device_update *updates, size_t n)
{
    (void)device;
    forked_synchronize(fake_tensors_rank);
    for (size_t i = 0; i < n; i++) {
        const brg_device_update *u = &updates[i];
        const float *g = u->grad;
        float *p = u->param, *b = u->state[0];
        if (u->rule != BRG_UPDATE_SGD || u->dtype != BRG_DTYPE_F32 || !b)
            return brg_error_set(BRG_ERR_UNSUPPORTED, __FILE__, __LINE__,
                                 "an update of slot %zu", u->slot);
        for (size_t k = 0; k < u->numel; k++) {
            b[k] = (float)u->f[1] * b[k] +
                   (float)u->f[2] * (g[k] + (float)u->f[3] * p[k]);
            p[k] -= (float)u->f[0] * b[k];
        }
    }
    return BRG_OK;
}

/* Tensors are made there from now on. */
static inline brg_status fake_tensors_begin(forked_rank *me)
{
    static brg_device_vtable there;
    there = fake;
    there.alloc = gpu_alloc;
    there.free = gpu_free;
    there.copy = gpu_copy;
    there.fill_zero = gpu_zero;
    there.count = gpu_count;
    there.kernel = gpu_kernel;
    there.stream = gpu_stream;
    there.update = gpu_update;
    fake_tensors_rank = me;
    BRG_TRY(brg_device_register(BRG_DEVICE_CUDA, &there));
    return brg_device_set(me->device);
}

#endif
