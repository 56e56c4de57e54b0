/* SPDX-License-Identifier: Apache-2.0
 * Memory, from the driver's stream-ordered pool: what is freed may be handed
 * out again at once, since all work of a GPU is in one stream. */
#include "core/cuda/cu.h"

/* op: whose temporary it would be; NULL: a tensor, which the caller names. */
static brg_status fail_memory(const brg__cu *cu, size_t nbytes, const char *op)
{
    size_t free_bytes = 0, total = 0;
    (void)cudaGetLastError();
    (void)cudaMemGetInfo(&free_bytes, &total);
    return BRG__CU_FAIL(BRG_ERR_NOMEM,
                        "out of memory on cuda:%d: %zu bytes for a %s%s, %zu "
                        "of %zu are free outside the pool",
                        cu->index, nbytes, op ? "temporary of " : "tensor",
                        op ? op : "", free_bytes, total);
}

void brg__cu_pool_trim(const brg__cu *cu)
{
    cudaMemPool_t pool;
    if (cudaDeviceGetDefaultMemPool(&pool, cu->index) == cudaSuccess)
        (void)cudaMemPoolTrimTo(pool, 0);
    (void)cudaGetLastError();
}

static brg_status alloc(brg_device device, void **out, size_t nbytes,
                        const char *op)
{
    brg__cu *cu;
    *out = NULL;
    BRG__CU_TRY(brg__cu_enter(device, &cu));
    if (brg__cu_recording(cu))
        BRG__CU_TRY(brg__cu_graph_alloc(cu, out, nbytes));
    if (*out)
        return BRG_OK;
    atomic_fetch_add_explicit(&cu->n_allocs, 1, memory_order_relaxed);
    int error = cudaMallocAsync(out, nbytes, cu->stream);
    if (error == cudaSuccess)
        return BRG_OK;
    *out = NULL;
    return error == cudaErrorMemoryAllocation
               ? fail_memory(cu, nbytes, op)
               : brg__cu_check(error, "cuda: memory");
}

brg_status brg__cu_alloc(brg_device device, void **out, size_t nbytes)
{
    return alloc(device, out, nbytes, NULL);
}

void brg__cu_free(brg_device device, void *ptr, size_t nbytes)
{
    brg__cu *cu;
    (void)nbytes;
    if (ptr && brg__cu_enter(device, &cu) == BRG_OK &&
        !brg__cu_graph_take_back(cu, ptr))
        (void)cudaFreeAsync(ptr, cu->stream);
}

brg_status brg__cu_temp(brg__cu_temps *temps, void **out, size_t nbytes)
{
    *out = NULL;
    if (nbytes == 0)
        return BRG_OK;
    if (temps->n == BRG__CU_MAX_TEMPS)
        return BRG__CU_FAIL(BRG_ERR_INTERNAL, "cuda: too many temporaries");
    BRG__CU_TRY(alloc(brg__cu_device(temps->cu), out, nbytes,
                      temps->op ? temps->op : "the library"));
    temps->at[temps->n++] = *out;
    return BRG_OK;
}

void brg__cu_temps_free(brg__cu_temps *temps)
{
    for (int i = 0; i < temps->n; i++)
        brg__cu_free(brg__cu_device(temps->cu), temps->at[i], 0);
    temps->n = 0;
}

/* ---- Values that the host looks at later ------------------------------------------ */

typedef struct fetch_state {
    cudaEvent_t event;
    void *host; /* pinned */
} fetch_state;

void brg__cu_fetch_free(brg_device device, void *fetch)
{
    brg__cu *cu;
    fetch_state *f = fetch;
    if (!f || brg__cu_enter(device, &cu) != BRG_OK)
        return;
    if (f->event) {
        (void)cudaEventSynchronize(f->event);
        (void)cudaEventDestroy(f->event);
    }
    if (f->host)
        (void)cudaFreeHost(f->host);
    brg__cu_host->free(f);
}

static brg_status make_fetch(brg_device device, void **out, size_t nbytes)
{
    fetch_state *f = brg__cu_host->alloc(sizeof *f, "a copy for the host");
    if (!f)
        return BRG_ERR_NOMEM;
    int error = cudaEventCreateWithFlags(&f->event, cudaEventDisableTiming);
    if (error == cudaSuccess)
        error = cudaHostAlloc(&f->host, nbytes, cudaHostAllocDefault);
    brg_status status = brg__cu_check(error, "cuda: a copy for the host");
    if (status == BRG_OK)
        *out = f;
    else
        brg__cu_fetch_free(device, f);
    return status;
}

brg_status brg__cu_fetch(brg_device device, void **fetch, const void *src,
                         size_t nbytes)
{
    brg__cu *cu;
    BRG__CU_TRY(brg__cu_enter(device, &cu));
    if (!*fetch)
        BRG__CU_TRY(make_fetch(device, fetch, nbytes));
    if (brg__cu_recording(cu))
        return brg__cu_graph_fetch(cu, *fetch, src, nbytes);
    fetch_state *f = *fetch;
    int error = cudaMemcpyAsync(f->host, src, nbytes, cudaMemcpyDeviceToHost,
                                cu->stream);
    if (error == cudaSuccess)
        error = cudaEventRecord(f->event, cu->stream);
    return brg__cu_check(error, "cuda: a copy for the host");
}

brg_status brg__cu_fetched(brg_device device, void *fetch, const void **out)
{
    brg__cu *cu;
    fetch_state *f = fetch;
    *out = NULL;
    BRG__CU_TRY(brg__cu_enter(device, &cu));
    if (brg__cu_recording(cu) &&
        brg__cu_graph_is_later(brg__cu_recording(cu), fetch))
        BRG__CU_TRY(brg__cu_graph_give_up(cu, "a value is waited for"));
    int state = cudaEventQuery(f->event);
    if (state == cudaErrorNotReady) {
        (void)cudaGetLastError();
        return BRG_OK;
    }
    BRG__CU_TRY(brg__cu_check(state, "cuda: queued work"));
    *out = f->host;
    return BRG_OK;
}

brg_status brg__cu_temps_begin(brg__cu_temps *temps, const brg_op_call *call)
{
    *temps = (brg__cu_temps){.op = call->op->name};
    return brg__cu_enter(call->out[0]->device, &temps->cu);
}

brg_status brg__cu_temps_end(brg__cu_temps *temps, brg_status status)
{
    brg__cu_temps_free(temps);
    return status;
}

brg_status brg__cu_zero(brg__cu *cu, const brg_tensor *t)
{
    if (t->numel == 0)
        return BRG_OK;
    return brg__cu_check(
        cudaMemsetAsync(brg__tensor_ptr(t), 0,
                        (size_t)t->numel * brg__tensor_item_size(t),
                        cu->stream),
        "cuda: filling with zeros");
}
