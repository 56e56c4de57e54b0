/* SPDX-License-Identifier: Apache-2.0
 * Sums in a fixed order: each thread takes whole elements, so that the bits are
 * those of the loops of the CPU (comm/reduce_kernels.c). */
#include "comm/nccl/sum.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <brigade/types.h>

#include "comm/patterns/tree.h"

#define THREADS 256
#define MAX_BLOCKS 1024

/* How a source is read, what is added, how the result is written. */
static __device__ __forceinline__ float wide(float x)
{
    return x;
}
static __device__ __forceinline__ double wide(double x)
{
    return x;
}
static __device__ __forceinline__ uint64_t wide(uint64_t x)
{
    return x;
}
static __device__ __forceinline__ uint32_t wide(uint32_t x)
{
    return x;
}
static __device__ __forceinline__ uint32_t wide(uint8_t x)
{
    return x;
}
static __device__ __forceinline__ float wide(__nv_bfloat16 x)
{
    return __bfloat162float(x);
}
static __device__ __forceinline__ float wide(__half x)
{
    return __half2float(x);
}

static __device__ __forceinline__ void write(float *to, float x, int n)
{
    *to = n ? __fmul_rn(x, __fdiv_rn(1.0f, (float)n)) : x;
}
static __device__ __forceinline__ void write(double *to, double x, int n)
{
    *to = n ? __dmul_rn(x, __ddiv_rn(1.0, (double)n)) : x;
}
static __device__ __forceinline__ void write(__nv_bfloat16 *to, float x, int n)
{
    write(&x, x, n);
    *to = __float2bfloat16_rn(x);
}
static __device__ __forceinline__ void write(__half *to, float x, int n)
{
    write(&x, x, n);
    *to = __float2half_rn(x);
}
/* Wrapped, then divided towards zero. */
static __device__ __forceinline__ void write(uint64_t *to, uint64_t x, int n)
{
    *to = n ? (uint64_t)((int64_t)x / n) : x;
}
static __device__ __forceinline__ void write(uint32_t *to, uint32_t x, int n)
{
    *to = n ? (uint32_t)((int32_t)x / n) : x;
}
static __device__ __forceinline__ void write(uint8_t *to, uint32_t x, int n)
{
    *to = (uint8_t)(n ? (uint8_t)x / n : x);
}

template <typename S>
static __device__ __forceinline__ const S *source(const brg__nccl_sum_job &j,
                                                  int k)
{
    const int mine = k - j.own_first;
    return (const S *)(mine >= 0 && mine < j.own_n
                           ? j.own + mine * j.own_stride
                           : j.room + k * j.room_stride);
}

/* S: of the sources; A: of sums; D: of the result. */
template <typename S, typename A, typename D>
static __global__ void __launch_bounds__(THREADS)
    sum_in_order(const __grid_constant__ brg__nccl_sum_job j)
{
    const size_t step = (size_t)gridDim.x * THREADS;
    D *dst = (D *)j.dst;
    for (size_t i = blockIdx.x * (size_t)THREADS + threadIdx.x; i < j.count;
         i += step) {
        A sum = wide(source<S>(j, 0)[i]);
        for (int k = 1; k < j.n_src; k++)
            sum = sum + wide(source<S>(j, k)[i]);
        write(dst + i, sum, j.divisor);
    }
}

template <typename S, typename A, typename D>
static __global__ void __launch_bounds__(THREADS)
    sum_in_tree(const __grid_constant__ brg__nccl_sum_job j)
{
    const size_t step = (size_t)gridDim.x * THREADS;
    D *dst = (D *)j.dst;
    for (size_t i = blockIdx.x * (size_t)THREADS + threadIdx.x; i < j.count;
         i += step) {
        A stack[BRG__TREE_MAX_DEPTH];
        int n = 0;
        for (int k = 0; k < j.n_src; k++) {
            A sum = wide(source<S>(j, k)[i]);
            for (int m = j.merges[k]; m > 0; m--)
                sum = stack[--n] + sum;
            stack[n++] = sum;
        }
        write(dst + i, stack[0], j.divisor);
    }
}

template <typename S, typename A, typename D>
static int launch(const brg__nccl_sum_job *j, void *stream)
{
    size_t n_blocks = (j->count + THREADS - 1) / THREADS;
    if (n_blocks > MAX_BLOCKS)
        n_blocks = MAX_BLOCKS;
    if (j->is_tree && j->n_src > 2) /* two have one order */
        sum_in_tree<S, A, D>
            <<<(unsigned)n_blocks, THREADS, 0, (cudaStream_t)stream>>>(*j);
    else
        sum_in_order<S, A, D>
            <<<(unsigned)n_blocks, THREADS, 0, (cudaStream_t)stream>>>(*j);
    return (int)cudaGetLastError();
}

int brg__nccl_sum_launch(const brg__nccl_sum_job *j, void *stream)
{
    switch (j->dtype) {
    case BRG_DTYPE_F64:
        return launch<double, double, double>(j, stream);
    case BRG_DTYPE_F32:
        return launch<float, float, float>(j, stream);
    case BRG_DTYPE_F16:
        return j->is_partial ? launch<float, float, __half>(j, stream)
                             : launch<__half, float, __half>(j, stream);
    case BRG_DTYPE_BF16:
        return j->is_partial
                   ? launch<float, float, __nv_bfloat16>(j, stream)
                   : launch<__nv_bfloat16, float, __nv_bfloat16>(j, stream);
    case BRG_DTYPE_I64:
        return launch<uint64_t, uint64_t, uint64_t>(j, stream);
    case BRG_DTYPE_I32:
        return launch<uint32_t, uint32_t, uint32_t>(j, stream);
    default:
        return launch<uint8_t, uint32_t, uint8_t>(j, stream);
    }
}
