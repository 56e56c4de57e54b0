/* SPDX-License-Identifier: Apache-2.0
 * The inside of attention through cuDNN: sdpa_graph.c describes a problem,
 * sdpa.c keeps what came of it and runs it. */
#ifndef BRG_CORE_CUDA_SDPA_H
#define BRG_CORE_CUDA_SDPA_H

#include <cudnn.h>

#include "core/cuda/dnn.h"

#define BRG__SDPA_MAX_MADE 128

/* X(function): what is taken from libcudnn. */
#define BRG__SDPA_FUNCTIONS(X)                                                 \
    X(cudnnGetVersion)                                                         \
    X(cudnnBackendCreateDescriptor)                                            \
    X(cudnnBackendDestroyDescriptor)                                           \
    X(cudnnBackendSetAttribute)                                                \
    X(cudnnBackendGetAttribute)                                                \
    X(cudnnBackendFinalize)                                                    \
    X(cudnnBackendExecute)

#define BRG__SDPA_DECLARE(name) __typeof__(name) *name##_;
typedef struct brg__sdpa_functions {
    BRG__SDPA_FUNCTIONS(BRG__SDPA_DECLARE)
} brg__sdpa_functions;
#undef BRG__SDPA_DECLARE

/* Set once brg__sdpa_load has succeeded. */
extern brg__sdpa_functions brg__sdpa_dnn;
bool brg__sdpa_load(void);

/* The tensors that have memory, or a value of the host. */
enum {
    BRG__UID_Q = 1,
    BRG__UID_K,
    BRG__UID_V,
    BRG__UID_OUT,
    BRG__UID_STATS,
    BRG__UID_G,
    BRG__UID_GQ,
    BRG__UID_GK,
    BRG__UID_GV,
    BRG__UID_DELTA,
    BRG__UID_GQ_SUM,
    BRG__UID_SCALE,
    BRG__UID_ONE,
    BRG__UID_LOWEST,
    BRG__UID_OTHERS
};

/* A problem as cuDNN will run it. */
typedef struct brg__sdpa_graph {
    bool adds_up;                 /* dq in memory of its own */
    cudnnBackendDescriptor_t run; /* the execution plan */
    int64_t workspace;
    int n_made;
    /* What it is made from. */
    cudnnBackendDescriptor_t made[BRG__SDPA_MAX_MADE];
} brg__sdpa_graph;

/* graph->adds_up is set before. False if cuDNN declines. */
bool brg__sdpa_describe(brg__sdpa_graph *graph, cudnnHandle_t handle,
                        const brg__cu_attention *a, bool is_backward);
void brg__sdpa_forget(brg__sdpa_graph *graph);

#endif
