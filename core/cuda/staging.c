/* SPDX-License-Identifier: Apache-2.0
 * Copies of pageable memory to the GPU: through pinned memory of our own, since
 * the driver may wait for the whole queue before it copies pageable memory. A
 * copy of more than all slots hold waits for its own beginning, which is
 * counted. */
#include "core/cuda/cu.h"

#include <string.h>

#define SLOT_BYTES ((size_t)1 << 20)

static brg_status make_slot(brg__cu *cu, brg__cu_slot *slot)
{
    if (!slot->at)
        BRG__CU_TRY(brg__cu_check(
            cudaHostAlloc(&slot->at, SLOT_BYTES, cudaHostAllocDefault),
            "cuda: pinned memory"));
    if (!slot->event)
        return brg__cu_check(
            cudaEventCreateWithFlags(&slot->event, cudaEventDisableTiming),
            "cuda: an event");
    if (cudaEventQuery(slot->event) == cudaSuccess)
        return BRG_OK;
    BRG__CU_TRY(brg__cu_begin_wait(cu));
    return brg__cu_check(cudaEventSynchronize(slot->event),
                         "cuda: an earlier copy");
}

static brg_status stage(brg__cu *cu, void *dst, const void *src, size_t nbytes)
{
    brg__cu_slot *slot = &cu->slots[cu->next_slot];
    BRG__CU_TRY(make_slot(cu, slot));
    cu->next_slot = (cu->next_slot + 1) % BRG__CU_N_SLOTS;
    memcpy(slot->at, src, nbytes);
    BRG__CU_TRY(
        brg__cu_check(cudaMemcpyAsync(dst, slot->at, nbytes,
                                      cudaMemcpyHostToDevice, cu->stream),
                      "cuda: a copy"));
    return brg__cu_check(cudaEventRecord(slot->event, cu->stream),
                         "cuda: an event");
}

brg_status brg__cu_stage(brg__cu *cu, void *dst, const void *src, size_t nbytes)
{
    brg_status status = BRG_OK;
    pthread_mutex_lock(&cu->lock);
    for (size_t at = 0; at < nbytes && status == BRG_OK; at += SLOT_BYTES) {
        const size_t left = nbytes - at;
        status = stage(cu, (char *)dst + at, (const char *)src + at,
                       left < SLOT_BYTES ? left : SLOT_BYTES);
    }
    pthread_mutex_unlock(&cu->lock);
    return status;
}
