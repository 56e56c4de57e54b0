/* SPDX-License-Identifier: Apache-2.0
 * Memory, from the driver's stream-ordered pool: what is freed may be handed
 * out again at once, since all work of a GPU is in one stream. */
#include "core/cuda/cu.h"

static brg_status fail_memory(const brg__cu *cu, size_t nbytes)
{
    size_t free_bytes = 0, total = 0;
    (void)cudaGetLastError();
    (void)cudaMemGetInfo(&free_bytes, &total);
    return BRG__CU_FAIL(BRG_ERR_NOMEM,
                        "out of memory on cuda:%d: %zu bytes for a tensor, %zu "
                        "of %zu are free outside the pool",
                        cu->index, nbytes, free_bytes, total);
}

brg_status brg__cu_alloc(brg_device device, void **out, size_t nbytes)
{
    brg__cu *cu;
    *out = NULL;
    BRG__CU_TRY(brg__cu_enter(device, &cu));
    int error = cudaMallocAsync(out, nbytes, cu->stream);
    if (error == cudaSuccess)
        return BRG_OK;
    *out = NULL;
    return error == cudaErrorMemoryAllocation
               ? fail_memory(cu, nbytes)
               : brg__cu_check(error, "cuda: memory");
}

void brg__cu_free(brg_device device, void *ptr, size_t nbytes)
{
    brg__cu *cu;
    (void)nbytes;
    if (ptr && brg__cu_enter(device, &cu) == BRG_OK)
        (void)cudaFreeAsync(ptr, cu->stream);
}

brg_status brg__cu_temp(brg__cu_temps *temps, void **out, size_t nbytes)
{
    *out = NULL;
    if (nbytes == 0)
        return BRG_OK;
    if (temps->n == BRG__CU_MAX_TEMPS)
        return BRG__CU_FAIL(BRG_ERR_INTERNAL, "cuda: too many temporaries");
    BRG__CU_TRY(brg__cu_alloc(brg__cu_device(temps->cu), out, nbytes));
    temps->at[temps->n++] = *out;
    return BRG_OK;
}

void brg__cu_temps_free(brg__cu_temps *temps)
{
    for (int i = 0; i < temps->n; i++)
        (void)cudaFreeAsync(temps->at[i], temps->cu->stream);
    temps->n = 0;
}
