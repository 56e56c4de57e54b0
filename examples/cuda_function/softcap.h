/* SPDX-License-Identifier: Apache-2.0
 * The kernels: plain pointers, queued on the stream. Each returns the
 * cudaError_t of its launch. */
#ifndef EXAMPLES_CUDA_FUNCTION_SOFTCAP_H
#define EXAMPLES_CUDA_FUNCTION_SOFTCAP_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* y = cap tanh(x / cap) */
int softcap_forward(void *stream, const float *x, float *y, size_t n,
                    float cap);
/* gx = g (1 - (y / cap)^2) */
int softcap_backward(void *stream, const float *g, const float *y, float *gx,
                     size_t n, float cap);

#ifdef __cplusplus
}
#endif

#endif
