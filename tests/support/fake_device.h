/* SPDX-License-Identifier: Apache-2.0
 * A device made for tests: its memory is the host's, and its kernels are the
 * CPU's, counted. Registered by the test: brg_device_register(BRG_DEVICE_CUDA,
 * &fake). */
#ifndef BRG_TESTS_SUPPORT_FAKE_DEVICE_H
#define BRG_TESTS_SUPPORT_FAKE_DEVICE_H

#include <stdlib.h>
#include <string.h>

#include <brigade/brigade.h>
#include <brigade/ext/device.h>

#include "core/ops/op.h"
#include "core/tensor/device.h"

#define THERE ((brg_device){BRG_DEVICE_CUDA, 0})
#define HOME ((brg_device){BRG_DEVICE_CPU, 0})

static struct {
    int64_t n_blocks; /* in use */
    int64_t n_copies;
    int64_t n_allocs;
    int64_t failing_copy, failing_alloc; /* the n-th fails; 0: none */
    int64_t n_kernels;
    int64_t n_launches; /* of kernels of the test, on its queue */
    size_t n_updates;
    brg_device_update update;
} seen;

static brg_status fake_alloc(brg_device device, void **out, size_t nbytes)
{
    (void)device;
    bool fails = ++seen.n_allocs == seen.failing_alloc;
    *out = nbytes < (1u << 30) && !fails
               ? aligned_alloc(64, (nbytes + 63) / 64 * 64)
               : NULL;
    seen.n_blocks += *out != NULL;
    return *out ? BRG_OK
                : brg_error_set(BRG_ERR_NOMEM, __FILE__, __LINE__,
                                "out of memory on cuda:0: %zu bytes", nbytes);
}

static void fake_free(brg_device device, void *ptr, size_t nbytes)
{
    (void)device;
    (void)nbytes;
    seen.n_blocks--;
    free(ptr);
}

static brg_status fake_copy(brg_device to, void *dst, brg_device from,
                            const void *src, size_t nbytes)
{
    (void)to;
    (void)from;
    if (++seen.n_copies == seen.failing_copy)
        return brg_error_set(BRG_ERR_DEVICE, __FILE__, __LINE__,
                             "copy %lld failed", (long long)seen.n_copies);
    memcpy(dst, src, nbytes);
    return BRG_OK;
}

static brg_status fake_zero(brg_device device, void *ptr, size_t nbytes)
{
    (void)device;
    memset(ptr, 0, nbytes);
    return BRG_OK;
}

/* Those of a device take any strides; the CPU's full_like does not. */
static brg_status run_there(brg_op_call *call)
{
    seen.n_kernels++;
    if (call->op == &brg__op_full_like) {
        brg_tensor out = *call->out[0];
        out.device = HOME;
        return brg__fill_now(&out, call->attrs->f[0]);
    }
    return call->op->run[BRG_DEVICE_CPU](call);
}

static brg_status (*fake_kernel(const brg_op *op))(brg_op_call *call)
{
    return strcmp(op->name, "erf") == 0 ? NULL : run_there;
}

static brg_status fake_update(brg_device device,
                              const brg_device_update *updates, size_t n)
{
    (void)device;
    seen.n_updates = n;
    seen.update = updates[n - 1];
    return BRG_OK;
}

/* Its queue is this table of counts. */
static brg_status fake_stream(brg_device device, void **out)
{
    (void)device;
    *out = &seen;
    return BRG_OK;
}

static const brg_device_vtable fake = {
    .abi = BRG_DEVICE_ABI,
    .struct_size = sizeof(brg_device_vtable),
    .name = "cuda",
    .alloc = fake_alloc,
    .free = fake_free,
    .copy = fake_copy,
    .fill_zero = fake_zero,
    .kernel = fake_kernel,
    .update = fake_update,
    .stream = fake_stream,
};

#endif
