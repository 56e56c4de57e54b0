/* SPDX-License-Identifier: Apache-2.0
 * The two ways a pointwise row is launched. */
#ifndef BRG_CORE_CUDA_POINTWISE_LAUNCH_CUH
#define BRG_CORE_CUDA_POINTWISE_LAUNCH_CUH

#include "core/cuda/kernels.h"

typedef void (*pointwise_fn)(const brg__cu_queue *q,
                             const brg__cu_pointwise *w);

/* False if the row or the problem has no such kernel. */
bool launch_packed(const brg__cu_queue *q, const brg__cu_pointwise *w);

#endif
