/* SPDX-License-Identifier: Apache-2.0
 * The kernels of the example, as one writes them without Brigade. */
#include "softcap.h"

#define THREADS 256

static __global__ void forward(const float *x, float *y, size_t n, float cap)
{
    const size_t i = blockIdx.x * (size_t)THREADS + threadIdx.x;
    if (i < n)
        y[i] = cap * tanhf(x[i] / cap);
}

static __global__ void backward(const float *g, const float *y, float *gx,
                                size_t n, float cap)
{
    const size_t i = blockIdx.x * (size_t)THREADS + threadIdx.x;
    if (i < n)
        gx[i] = g[i] * (1.0f - y[i] / cap * (y[i] / cap));
}

static unsigned blocks_for(size_t n)
{
    return (unsigned)((n + THREADS - 1) / THREADS);
}

int softcap_forward(void *stream, const float *x, float *y, size_t n, float cap)
{
    if (n > 0)
        forward<<<blocks_for(n), THREADS, 0, (cudaStream_t)stream>>>(x, y, n,
                                                                     cap);
    return (int)cudaGetLastError();
}

int softcap_backward(void *stream, const float *g, const float *y, float *gx,
                     size_t n, float cap)
{
    if (n > 0)
        backward<<<blocks_for(n), THREADS, 0, (cudaStream_t)stream>>>(
            g, y, gx, n, cap);
    return (int)cudaGetLastError();
}
