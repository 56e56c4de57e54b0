/* SPDX-License-Identifier: Apache-2.0
 * One end of a group over NCCL.
 *
 *     compute stream   kernels .. E1 ........................ W2 .. kernels
 *     own stream                  W1 .. collective .. E2
 *
 * start records E1 and queues W1, the collective and E2; wait queues W2. Host
 * buffers are copied on a third stream, so that a copy never waits for a later
 * collective. */
#ifndef BRG_COMM_NCCL_GROUP_H
#define BRG_COMM_NCCL_GROUP_H

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <brigade/ext/backend.h>

typedef struct brg__nccl_event {
    struct brg__nccl_event *next;
    cudaEvent_t event;
} brg__nccl_event;

typedef struct brg__nccl_group {
    const brg_host *host;
    int rank, n_ranks, device;
    uint64_t timeout_ns;
    ncclComm_t comm;
    cudaStream_t compute; /* borrowed */
    cudaStream_t own, copies;
    cudaEvent_t ready;      /* E1, recorded anew by each start */
    brg__nccl_event *spare; /* E2 of calls to come */
    void *byte;             /* on the device: what a barrier sums */
    brg_call *first;        /* in flight, oldest first */
    brg_call **last;
    brg_call *held; /* send and recv not yet given to NCCL, oldest first */
    brg_call **held_last;
} brg__nccl_group;

#define BRG__NCCL_TRY(expr)                                                    \
    do {                                                                       \
        brg_status nccl_try_ = (expr);                                         \
        if (nccl_try_ != BRG_OK)                                               \
            return nccl_try_;                                                  \
    } while (0)

brg_status brg__nccl_check_cuda(brg__nccl_group *g, cudaError_t error,
                                const char *what);
brg_status brg__nccl_check(brg__nccl_group *g, ncclResult_t result,
                           const char *what);

/* The slots of brg_group_ops (calls.c). */
brg_status brg__nccl_start(void *group, brg_call *call);
brg_status brg__nccl_progress(void *group);
brg_status brg__nccl_wait(void *group, brg_call *call);
/* Gives events and copies of all calls in flight back; nothing is reported. */
void brg__nccl_forget(brg__nccl_group *g);

#endif
