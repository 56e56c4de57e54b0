/* SPDX-License-Identifier: Apache-2.0
 * Convolution and attention through cuDNN, which is looked for when it is first
 * needed. */
#ifndef BRG_CORE_CUDA_DNN_H
#define BRG_CORE_CUDA_DNN_H

#include "core/cuda/cu.h"

typedef enum brg__cu_conv_kind {
    BRG__CU_CONV_FORWARD,
    BRG__CU_CONV_INPUT,
    BRG__CU_CONV_WEIGHT
} brg__cu_conv_kind;

/* *is_done is false where cuDNN is absent or has no way of doing it; then
 * nothing was queued. */
brg_status brg__cu_dnn_conv(brg__cu *cu, brg__cu_conv_kind kind,
                            const brg__cu_conv *v, bool *is_done);

/* The same for attention of 16-bit floats, the gradient too (sdpa.c). */
brg_status brg__cu_dnn_attention(brg__cu *cu, const brg__cu_attention *a,
                                 bool is_backward, bool *is_done);

/* Of the numbers that tell problems apart. */
static inline size_t brg__cu_dnn_hash(const int64_t *at, int n)
{
    uint64_t hash = 1469598103934665603u;
    for (int i = 0; i < n; i++)
        hash = (hash ^ (uint64_t)at[i]) * 1099511628211u;
    return (size_t)(hash >> 32);
}

/* The GPU's cudnnHandle_t, which works in its queue; NULL without cuDNN. Under
 * the GPU's lock. */
void *brg__cu_dnn_handle(brg__cu *cu);
/* A function of the library; NULL if it has none of that name. */
void *brg__cu_dnn_symbol(const char *name);

#endif
