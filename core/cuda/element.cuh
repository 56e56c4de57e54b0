/* SPDX-License-Identifier: Apache-2.0
 * Elements of any dtype in device code, and small helpers of kernels. */
#ifndef BRG_CORE_CUDA_ELEMENT_CUH
#define BRG_CORE_CUDA_ELEMENT_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "core/cuda/kernels.h"

typedef __nv_bfloat16 bf16;
typedef __half f16;

/* As in brg_dtype. */
enum { F64, F32, F16, BF16, I64, I32, U8, BOOL };

/* Of one type, to and from the compute type C. */
template <typename C> __device__ __forceinline__ C get(const double *p)
{
    return (C)*p;
}
template <typename C> __device__ __forceinline__ C get(const float *p)
{
    return (C)*p;
}
template <typename C> __device__ __forceinline__ C get(const f16 *p)
{
    return (C)__half2float(*p);
}
template <typename C> __device__ __forceinline__ C get(const bf16 *p)
{
    return (C)__bfloat162float(*p);
}

template <typename T> struct as {
    template <typename C> static __device__ __forceinline__ T of(C v)
    {
        return (T)v;
    }
};
template <> struct as<f16> {
    template <typename C> static __device__ __forceinline__ f16 of(C v)
    {
        return __float2half_rn((float)v);
    }
};
template <> struct as<bf16> {
    template <typename C> static __device__ __forceinline__ bf16 of(C v)
    {
        return __float2bfloat16_rn((float)v);
    }
};

/* Of a dtype known at run time. */
template <typename C>
__device__ __forceinline__ C load(const void *p, int dtype, int64_t i)
{
    switch (dtype) {
    case F64:
        return (C)((const double *)p)[i];
    case F32:
        return (C)((const float *)p)[i];
    case F16:
        return (C)__half2float(((const f16 *)p)[i]);
    case BF16:
        return (C)__bfloat162float(((const bf16 *)p)[i]);
    case I64:
        return (C)((const int64_t *)p)[i];
    case I32:
        return (C)((const int32_t *)p)[i];
    case U8:
        return (C)((const uint8_t *)p)[i];
    default:
        return (C)(((const uint8_t *)p)[i] != 0);
    }
}

template <typename C>
__device__ __forceinline__ void store(void *p, int dtype, int64_t i, C v)
{
    switch (dtype) {
    case F64:
        ((double *)p)[i] = (double)v;
        break;
    case F32:
        ((float *)p)[i] = (float)v;
        break;
    case F16:
        ((f16 *)p)[i] = __float2half_rn((float)v);
        break;
    case BF16:
        ((bf16 *)p)[i] = __float2bfloat16_rn((float)v);
        break;
    case I64:
        ((int64_t *)p)[i] = (int64_t)v;
        break;
    case I32:
        ((int32_t *)p)[i] = (int32_t)(int64_t)v;
        break;
    case U8:
        ((uint8_t *)p)[i] = (uint8_t)(int64_t)v;
        break;
    default:
        ((uint8_t *)p)[i] = v != (C)0;
    }
}

__device__ __forceinline__ int64_t load_id(const void *p, int dtype, int64_t i)
{
    return dtype == I32 ? ((const int32_t *)p)[i] : ((const int64_t *)p)[i];
}

/* Notes the first id out of range. */
__device__ __forceinline__ void report(brg__cu_fault *fault, int op, int64_t id,
                                       int64_t at, int64_t size)
{
    if (atomicCAS(fault->claim, 0, 1) != 0)
        return;
    fault->op = op;
    fault->id = id;
    fault->at = at;
    fault->size = size;
    __threadfence_system();
    *(volatile int *)&fault->is_set = 1;
}

/* What a thread reads or writes at once: 16 bytes. */
template <typename T> struct alignas(16) vec {
    static constexpr int n = 16 / sizeof(T);
    static constexpr int warp = 32 * n; /* elements that a warp takes at once */
    T at[n];
};

/* Of kernels for many arrays: which one the block belongs to. Block first[k] is
 * the first of array k. */
template <typename Batch>
static __device__ __forceinline__ int array_of_block(const Batch &b)
{
    int low = 0, high = b.n - 1;
    while (low < high) {
        const int middle = (low + high + 1) / 2;
        if ((int64_t)blockIdx.x >= b.first[middle])
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

/* What a thread of a one-dimensional grid walks over. */
#define FOR_EACH(i, n)                                                         \
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;           \
         i < (n); i += (int64_t)gridDim.x * blockDim.x)

#define THREADS 256

static inline unsigned blocks_for(int64_t n, int per_block)
{
    int64_t blocks = (n + per_block - 1) / per_block;
    return (unsigned)(blocks < 1 ? 1 : blocks > 65535 * 8 ? 65535 * 8 : blocks);
}

static inline cudaStream_t stream_of(const brg__cu_queue *q)
{
    return (cudaStream_t)q->stream;
}

/* ---- Sums and maxima over a block ------------------------------------------ */

struct sum_of {
    template <typename T> static __device__ T join(T a, T b)
    {
        return a + b;
    }
};

/* A NaN wins. */
struct max_of {
    template <typename T> static __device__ T join(T a, T b)
    {
        return a > b || a != a ? a : b;
    }
};

template <typename Op, typename T> __device__ __forceinline__ T over_warp(T v)
{
    for (int k = 16; k > 0; k /= 2)
        v = Op::join(v, __shfl_xor_sync(0xFFFFFFFFu, v, k));
    return v;
}

/* The same in every thread; blockDim.x is a multiple of 32. In a fixed order,
 * so that results repeat. */
template <typename Op, typename T> __device__ __forceinline__ T over_block(T v)
{
    __shared__ T part[32];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int n_warps = blockDim.x >> 5;
    v = over_warp<Op>(v);
    __syncthreads(); /* an earlier use is over */
    if (lane == 0)
        part[warp] = v;
    __syncthreads();
    T all = part[0];
    for (int i = 1; i < n_warps; i++)
        all = Op::join(all, part[i]);
    return all;
}

/* Calls LAUNCH(T, C) with the element and compute type of a float dtype. */
#define WITH_FLOAT(dtype, LAUNCH)                                              \
    do {                                                                       \
        if ((dtype) == F32) {                                                  \
            LAUNCH(float, float);                                              \
        } else if ((dtype) == BF16) {                                          \
            LAUNCH(bf16, float);                                               \
        } else if ((dtype) == F16) {                                           \
            LAUNCH(f16, float);                                                \
        } else {                                                               \
            LAUNCH(double, double);                                            \
        }                                                                      \
    } while (0)

#endif
