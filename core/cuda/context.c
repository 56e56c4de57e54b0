/* SPDX-License-Identifier: Apache-2.0
 * GPUs: finding them, a context for each, errors with names, the table of the
 * device. */
#include "core/cuda/cu.h"

#include <brigade/cuda.h>

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#ifndef BRG__CU_ARCHITECTURES /* the build says */
#define BRG__CU_ARCHITECTURES "other GPUs"
#endif

const brg_device_host *brg__cu_host;

static struct {
    pthread_mutex_t lock;
    int n; /* GPUs there are */
    brg__cu devices[BRG__CU_MAX_DEVICES];
    _Atomic bool is_ready[BRG__CU_MAX_DEVICES];
} known = {.lock = PTHREAD_MUTEX_INITIALIZER};

bool brg__cu_repeats(void)
{
    const char *text = getenv("BRG_CUDA_REPEATABLE");
    return !text || atoi(text) != 0;
}

/* ---- Errors ------------------------------------------------------------------- */

brg_status brg__cu_check(int error, const char *what)
{
    if (error == cudaSuccess)
        return BRG_OK;
    (void)cudaGetLastError(); /* told now, not again by the next call */
    if (error == cudaErrorInvalidConfiguration) /* brg__cu_grid */
        return BRG__CU_FAIL(
            BRG_ERR_UNSUPPORTED,
            "%s: a launch of a size that the GPU does not take; "
            "tensors may have up to %d rows",
            what, INT32_MAX);
    brg_status code =
        error == cudaErrorMemoryAllocation ? BRG_ERR_NOMEM : BRG_ERR_DEVICE;
    return BRG__CU_FAIL(code, "%s: %s (%s)", what,
                        cudaGetErrorString((cudaError_t)error),
                        cudaGetErrorName((cudaError_t)error));
}

static const char *const fault_names[] = {
    [BRG__CU_FAULT_INDEX_SELECT] = "index_select",
    [BRG__CU_FAULT_EMBEDDING] = "embedding",
    [BRG__CU_FAULT_GATHER] = "gather",
    [BRG__CU_FAULT_ONE_HOT] = "one_hot",
    [BRG__CU_FAULT_SPARSE_COO] = "sparse_coo",
    [BRG__CU_FAULT_EMBEDDING_GRAD] = "embedding_sparse_grad",
    [BRG__CU_FAULT_CROSS_ENTROPY] = "cross_entropy",
};

/* What kernels noted since the last look; the stream has been waited for. */
static brg_status check_fault(brg__cu *cu)
{
    brg__cu_fault *fault = cu->fault;
    if (*(volatile int *)&fault->is_set == 0)
        return BRG_OK;
    brg__cu_fault seen = *fault;
    fault->is_set = 0;
    BRG__CU_TRY(brg__cu_check(
        cudaMemsetAsync(fault->claim, 0, sizeof *fault->claim, cu->stream),
        "cuda: the fault record"));
    const char *what = "id", *where = "at position";
    if (seen.op == BRG__CU_FAULT_CROSS_ENTROPY)
        what = "target", where = "of row";
    else if (seen.op == BRG__CU_FAULT_SPARSE_COO)
        what = "index", where = "of entry";
    return BRG__CU_FAIL(BRG_ERR_ARG,
                        "%s: %s %lld %s %lld is out of range [0, %lld)",
                        fault_names[seen.op], what, (long long)seen.id, where,
                        (long long)seen.at, (long long)seen.size);
}

/* ---- Contexts ------------------------------------------------------------------- */

/* Memory that was freed stays in the pool: a steady step asks the driver for
 * none. */
static brg_status keep_pool(int index)
{
    cudaMemPool_t pool;
    uint64_t all = UINT64_MAX;
    BRG__CU_TRY(brg__cu_check(cudaDeviceGetDefaultMemPool(&pool, index),
                              "cuda: the memory pool"));
    return brg__cu_check(
        cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &all),
        "cuda: the memory pool");
}

/* Said now, once, and not by the first op. */
static brg_status check_kernels(int index)
{
    int major = 0, minor = 0;
    const int error = brg__cu_try_kernels();
    if (error != cudaErrorNoKernelImageForDevice &&
        error != cudaErrorInvalidDeviceFunction &&
        error != cudaErrorUnsupportedPtxVersion)
        return brg__cu_check(error, "cuda: the kernels of this library");
    (void)cudaGetLastError();
    (void)cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor,
                                 index);
    (void)cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor,
                                 index);
    return BRG__CU_FAIL(
        BRG_ERR_DEVICE,
        "cuda:%d has compute capability %d.%d, this library was built for %s: "
        "build it with -DBRG_CUDA_ARCHITECTURES=%d%d (several: "
        "\"80;90\")",
        index, major, minor, BRG__CU_ARCHITECTURES, major, minor);
}

static brg_status make_ready(brg__cu *cu, int index)
{
    int n_sm = 0;
    void *seen = NULL;
    cu->index = index;
    BRG__CU_TRY(check_kernels(index));
    BRG__CU_TRY(keep_pool(index));
    if (!cu->stream)
        BRG__CU_TRY(brg__cu_check(
            cudaStreamCreateWithFlags(&cu->stream, cudaStreamNonBlocking),
            "cuda: a stream"));
    BRG__CU_TRY(brg__cu_check(
        cudaDeviceGetAttribute(&n_sm, cudaDevAttrMultiProcessorCount, index),
        "cuda: the device"));
    if (!cu->fault) {
        BRG__CU_TRY(brg__cu_check(
            cudaHostAlloc((void **)&cu->fault, sizeof *cu->fault,
                          cudaHostAllocMapped | cudaHostAllocPortable),
            "cuda: pinned memory"));
        *cu->fault = (brg__cu_fault){0};
    }
    if (!cu->fault->claim) {
        BRG__CU_TRY(brg__cu_check(
            cudaMalloc((void **)&cu->fault->claim, sizeof *cu->fault->claim),
            "cuda: the fault record"));
        BRG__CU_TRY(brg__cu_check(
            cudaMemset(cu->fault->claim, 0, sizeof *cu->fault->claim),
            "cuda: the fault record"));
    }
    BRG__CU_TRY(brg__cu_check(cudaHostGetDevicePointer(&seen, cu->fault, 0),
                              "cuda: pinned memory"));
    cu->queue = (brg__cu_queue){cu->stream, seen, n_sm};
    (void)pthread_mutex_init(&cu->lock, NULL);
    (void)pthread_mutex_init(&cu->graphs.lock, NULL);
    return BRG_OK;
}

/* Asked each time: the program, or a group, may have chosen another. A thread
 * that never chose has a current GPU, but no context of the driver's. */
static brg_status make_current(int index)
{
    static _Thread_local bool has_chosen;
    int current = -1;
    BRG__CU_TRY(
        brg__cu_check(cudaGetDevice(&current), "cuda: choosing the GPU"));
    if (has_chosen && current == index)
        return BRG_OK;
    BRG__CU_TRY(brg__cu_check(cudaSetDevice(index), "cuda: choosing the GPU"));
    has_chosen = true;
    return BRG_OK;
}

brg_status brg__cu_enter(brg_device device, brg__cu **out)
{
    int i = device.index;
    *out = NULL;
    if (i < 0 || i >= known.n)
        return BRG__CU_FAIL(BRG_ERR_DEVICE, "there is no cuda:%d, only %d GPUs",
                            i, known.n);
    BRG__CU_TRY(make_current(i));
    *out = &known.devices[i];
    if (atomic_load_explicit(&known.is_ready[i], memory_order_acquire))
        return BRG_OK;
    pthread_mutex_lock(&known.lock);
    brg_status status = BRG_OK;
    if (!atomic_load(&known.is_ready[i])) {
        status = make_ready(*out, i);
        atomic_store(&known.is_ready[i], status == BRG_OK);
    }
    pthread_mutex_unlock(&known.lock);
    return status;
}

/* ---- Copies ------------------------------------------------------------------------ */

/* The side that is a GPU; the destination if both are. */
static brg_device gpu_of(brg_device to, brg_device from)
{
    return to.type == BRG_DEVICE_CUDA ? to : from;
}

/* Pageable memory is read before the call returns; pinned is not. */
static bool is_pinned(const void *host)
{
    struct cudaPointerAttributes a;
    if (cudaPointerGetAttributes(&a, host) != cudaSuccess) {
        (void)cudaGetLastError();
        return false;
    }
    return a.type == cudaMemoryTypeHost;
}

/* Two GPUs: the destination's stream waits for what the source has queued, and
 * the source for the copy, so that the memory may be reused. */
static brg_status copy_between(brg_device to, void *dst, brg_device from,
                               const void *src, size_t nbytes)
{
    brg__cu *a, *b;
    cudaEvent_t event = NULL;
    BRG__CU_TRY(brg__cu_enter(to, &b));
    BRG__CU_TRY(brg__cu_enter(from, &a));
    BRG__CU_TRY(brg__cu_graph_give_up(a, "a copy between GPUs"));
    BRG__CU_TRY(brg__cu_graph_give_up(b, "a copy between GPUs"));
    int error = cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
    if (error == cudaSuccess)
        error = cudaEventRecord(event, a->stream);
    if (error == cudaSuccess)
        error = cudaStreamWaitEvent(b->stream, event, 0);
    if (error == cudaSuccess)
        error = cudaMemcpyPeerAsync(dst, b->index, src, a->index, nbytes,
                                    b->stream);
    (void)cudaEventDestroy(event);
    BRG__CU_TRY(brg__cu_check(error, "cuda: a copy between GPUs"));
    BRG__CU_TRY(brg__cu_begin_wait(b));
    return brg__cu_check(cudaStreamSynchronize(b->stream),
                         "cuda: a copy between GPUs");
}

static brg_status cu_copy(brg_device to, void *dst, brg_device from,
                          const void *src, size_t nbytes)
{
    brg__cu *cu;
    if (to.type == from.type && to.index != from.index)
        return copy_between(to, dst, from, src, nbytes);
    BRG__CU_TRY(brg__cu_enter(gpu_of(to, from), &cu));
    if (to.type != from.type)
        BRG__CU_TRY(brg__cu_graph_give_up(cu, "a copy to or from the host"));
    const bool reads = to.type != BRG_DEVICE_CUDA;
    const bool brings = !reads && from.type != BRG_DEVICE_CUDA;
    if (brings && nbytes <= BRG__CU_BY_VALUE) /* in a kernel's arguments */
        return brg__cu_check(brg__cu_store_bytes(&cu->queue, dst, src, nbytes),
                             "cuda: a copy");
    const bool is_pageable = brings && !is_pinned(src);
    if (is_pageable)
        return brg__cu_stage(cu, dst, src, nbytes);
    BRG__CU_TRY(brg__cu_check(
        cudaMemcpyAsync(dst, src, nbytes, cudaMemcpyDefault, cu->stream),
        "cuda: a copy"));
    if (!reads && from.type == BRG_DEVICE_CUDA)
        return BRG_OK;
    BRG__CU_TRY(brg__cu_begin_wait(cu));
    BRG__CU_TRY(
        brg__cu_check(cudaStreamSynchronize(cu->stream), "cuda: queued work"));
    return reads ? check_fault(cu) : BRG_OK;
}

brg_status brg__cu_read(brg__cu *cu, void *host, const void *src, size_t nbytes)
{
    return cu_copy((brg_device){BRG_DEVICE_CPU, 0}, host, brg__cu_device(cu),
                   src, nbytes);
}

static brg_status cu_fill_zero(brg_device device, void *ptr, size_t nbytes)
{
    brg__cu *cu;
    BRG__CU_TRY(brg__cu_enter(device, &cu));
    return brg__cu_check(cudaMemsetAsync(ptr, 0, nbytes, cu->stream),
                         "cuda: filling with zeros");
}

/* ---- Waiting ------------------------------------------------------------------------- */

static brg_status cu_synchronize(brg_device device)
{
    brg__cu *cu;
    BRG__CU_TRY(brg__cu_enter(device, &cu));
    BRG__CU_TRY(brg__cu_begin_wait(cu));
    BRG__CU_TRY(
        brg__cu_check(cudaStreamSynchronize(cu->stream), "cuda: queued work"));
    return check_fault(cu);
}

static brg_status cu_event_record(brg_device device, void **event)
{
    brg__cu *cu;
    BRG__CU_TRY(brg__cu_enter(device, &cu));
    BRG__CU_TRY(brg__cu_graph_give_up(cu, "an event"));
    if (!*event)
        BRG__CU_TRY(
            brg__cu_check(cudaEventCreateWithFlags((cudaEvent_t *)event,
                                                   cudaEventDisableTiming),
                          "cuda: an event"));
    return brg__cu_check(cudaEventRecord(*event, cu->stream), "cuda: an event");
}

static brg_status cu_event_wait(brg_device device, void *event)
{
    brg__cu *cu;
    BRG__CU_TRY(brg__cu_enter(device, &cu));
    BRG__CU_TRY(brg__cu_graph_give_up(cu, "an event"));
    return brg__cu_check(cudaStreamWaitEvent(cu->stream, event, 0),
                         "cuda: an event");
}

static void cu_event_free(brg_device device, void *event)
{
    (void)device;
    if (event)
        (void)cudaEventDestroy(event);
}

static brg_status cu_stream(brg_device device, void **out)
{
    brg__cu *cu;
    *out = NULL;
    BRG__CU_TRY(brg__cu_enter(device, &cu));
    *out = cu->stream;
    return BRG_OK;
}

static bool is_here(const void *at, int index)
{
    struct cudaPointerAttributes a;
    if (cudaPointerGetAttributes(&a, at) != cudaSuccess) {
        (void)cudaGetLastError();
        return false;
    }
    return (a.type == cudaMemoryTypeDevice && a.device == index) ||
           a.type == cudaMemoryTypeManaged;
}

static bool cu_holds(brg_device device, const void *ptr, size_t nbytes)
{
    brg__cu *cu;
    return brg__cu_enter(device, &cu) != BRG_OK || nbytes == 0 ||
           (is_here(ptr, device.index) &&
            is_here((const char *)ptr + nbytes - 1, device.index));
}

/* ---- The table ------------------------------------------------------------------------- */

static int cu_count(void)
{
    return known.n;
}

static brg_status cu_update(brg_device device, const brg_device_update *updates,
                            size_t n)
{
    brg__cu *cu;
    BRG__CU_TRY(brg__cu_enter(device, &cu));
    if (brg__cu_recording(cu))
        return brg__cu_graph_update(cu, updates, n);
    return brg__cu_check(brg__cu_update(&cu->queue, updates, n, NULL),
                         "optimizer");
}

static brg_status cu_compress(brg_device device, const brg_compress_job *job)
{
    brg__cu *cu;
    BRG__CU_TRY(brg__cu_enter(device, &cu));
    return brg__cu_check(brg__cu_compress(&cu->queue, job),
                         "a communication hook");
}

/* A launch would draw the recorded numbers again. */
static brg_status cu_draw(brg_device device, const brg_draw *draw)
{
    brg__cu *cu;
    BRG__CU_TRY(brg__cu_enter(device, &cu));
    BRG__CU_TRY(brg__cu_graph_give_up(cu, "random numbers"));
    return brg__cu_check(brg__cu_draw(&cu->queue, draw), "random numbers");
}

/* Memory of the pool counts as reserved also while nothing uses it. */
static brg_status cu_counts(brg_device device, brg_device_counts *filled)
{
    brg__cu *cu;
    cudaMemPool_t pool;
    uint64_t reserved = 0;
    BRG__CU_TRY(brg__cu_enter(device, &cu));
    BRG__CU_TRY(brg__cu_check(cudaDeviceGetDefaultMemPool(&pool, cu->index),
                              "cuda: the memory pool"));
    BRG__CU_TRY(
        brg__cu_check(cudaMemPoolGetAttribute(
                          pool, cudaMemPoolAttrReservedMemCurrent, &reserved),
                      "cuda: the memory pool"));
    *filled = (brg_device_counts){atomic_load(&cu->n_waits),
                                  atomic_load(&cu->n_allocs),
                                  atomic_load(&cu->n_launches),
                                  (size_t)reserved + brg__cu_graph_bytes(cu)};
    return BRG_OK;
}

static const brg_device_vtable table = {
    .abi = BRG_DEVICE_ABI,
    .struct_size = sizeof(brg_device_vtable),
    .name = "cuda",
    .alloc = brg__cu_alloc,
    .free = brg__cu_free,
    .copy = cu_copy,
    .fill_zero = cu_fill_zero,
    .synchronize = cu_synchronize,
    .event_record = cu_event_record,
    .event_wait = cu_event_wait,
    .event_free = cu_event_free,
    .count = cu_count,
    .kernel = brg__cu_kernel,
    .update = cu_update,
    .clip = brg__cu_run_clip,
    .clip_factor = brg__cu_run_clip_factor,
    .cargo_load = brg__cu_run_cargo_load,
    .cargo_unload = brg__cu_run_cargo_unload,
    .stream = cu_stream,
    .holds = cu_holds,
    .fetch = brg__cu_fetch,
    .fetched = brg__cu_fetched,
    .fetch_free = brg__cu_fetch_free,
    .graph_record = brg__cu_graph_record,
    .graph_recorded = brg__cu_graph_recorded,
    .graph_updates = brg__cu_graph_updates,
    .graph_launch = brg__cu_graph_launch,
    .graph_free = brg__cu_graph_free,
    .kernel_compiler = brg__cu_kernel_compiler,
    .kernel_compile = brg__cu_kernel_compile,
    .kernel_load = brg__cu_kernel_load,
    .kernel_find = brg__cu_kernel_find,
    .kernel_launch = brg__cu_kernel_launch,
    .kernel_unload = brg__cu_kernel_unload,
    .look = brg__cu_run_look,
    .look_tell = brg__cu_run_look_tell,
    .norm_squares = brg__cu_run_norm_squares,
    .norm_add = brg__cu_run_norm_add,
    .norm_clip = brg__cu_run_norm_clip,
    .clock = brg__cu_run_clock,
    .compress = cu_compress,
    .draw = cu_draw,
    .sparse = brg__cu_run_sparse,
    .counts = cu_counts,
};

/* A driver of the same major version will do. */
static brg_status fail_too_old(int driver)
{
    const int major = CUDART_VERSION / 1000;
    const int minor = CUDART_VERSION % 1000 / 10;
    if (driver == 0)
        return BRG__CU_FAIL(BRG_ERR_DEVICE,
                            "cuda: no NVIDIA driver was found (libcuda.so.1): "
                            "expected one that supports CUDA %d; install it, "
                            "or stay on the CPU",
                            major);
    return BRG__CU_FAIL(BRG_ERR_DEVICE,
                        "cuda: the driver is too old: it supports CUDA %d.%d, "
                        "this library was built with %d.%d; install a driver "
                        "that supports CUDA %d, or build with an older CUDA",
                        driver / 1000, driver % 1000 / 10, major, minor, major);
}

/* What the driver can do, and what this was built for. */
static brg_status fail_driver(int error)
{
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    int driver = 0;
    (void)cudaDriverGetVersion(&driver);
    (void)cudaGetLastError();
    if (error == cudaErrorInsufficientDriver)
        return fail_too_old(driver);
    if (error == cudaErrorNoDevice || error == cudaSuccess)
        return BRG__CU_FAIL(BRG_ERR_DEVICE,
                            "cuda: the driver finds no GPU%s%s%s; expected at "
                            "least one: nvidia-smi lists those there are",
                            visible ? " (CUDA_VISIBLE_DEVICES is \"" : "",
                            visible ? visible : "", visible ? "\")" : "");
    return brg__cu_check(error, "cuda: looking for GPUs");
}

brg_status brg_device_cuda(const brg_device_host *host, brg_device_type *type,
                           const brg_device_vtable **out)
{
    *out = NULL;
    *type = BRG_DEVICE_CUDA;
    if (host->abi != BRG_DEVICE_ABI || host->struct_size < sizeof *host)
        return host->fail(BRG_ERR_ABI, __FILE__, __LINE__,
                          "cuda: built for device interface %d, the library "
                          "has %u",
                          BRG_DEVICE_ABI, host->abi);
    brg__cu_host = host;
    int n = 0;
    int error = cudaGetDeviceCount(&n);
    if (error != cudaSuccess || n == 0)
        return fail_driver(error);
    known.n = n < BRG__CU_MAX_DEVICES ? n : BRG__CU_MAX_DEVICES;
    *out = &table;
    return BRG_OK;
}
