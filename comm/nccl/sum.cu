/* SPDX-License-Identifier: Apache-2.0
 * Sums in a fixed order: each thread takes whole elements, so that the bits are
 * those of the loops of the CPU (comm/reduce_kernels.c). */
#include "comm/nccl/sum.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <brigade/types.h>

#include "comm/patterns/tree.h"
#include "core/base/dtype.h"
#include "core/base/q8_block.cuh"

#define THREADS 256
#define MAX_BLOCKS 1024
#define PUSH_THREADS 512

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
    if (mine >= 0 && mine < j.own_n)
        return (const S *)(j.own + mine * j.own_stride);
    return (const S *)(j.room + (mine < 0 ? k : k - j.own_n) * j.room_stride);
}

/* ---- Lots: N elements that are read and written as one --------------------- */

/* 16 bytes of sources, or one element where something is not aligned. */
template <typename S> static constexpr int lot_of = (int)(16 / sizeof(S));

template <int NBYTES> struct word;
template <> struct word<1> {
    typedef unsigned char type;
};
template <> struct word<2> {
    typedef unsigned short type;
};
template <> struct word<4> {
    typedef unsigned int type;
};
template <> struct word<8> {
    typedef unsigned long long type;
};
template <> struct word<16> {
    typedef uint4 type;
};

template <typename S, int N> struct alignas(N * sizeof(S)) lot {
    S at[N];
};

/* Not through the first-level cache: other GPUs write there. */
template <typename S, int N>
static __device__ __forceinline__ lot<S, N> read(const S *from)
{
    typedef typename word<sizeof(lot<S, N>)>::type as;
    union both {
        as all;
        lot<S, N> each;
        __device__ both()
        {
        }
    } x;
    x.all = __ldcg((const as *)from);
    return x.each;
}

template <typename A, typename D, int N>
static __device__ __forceinline__ void write(D *to, const A *sums, int divisor)
{
    lot<D, N> out;
#pragma unroll
    for (int e = 0; e < N; e++)
        write(&out.at[e], sums[e], divisor);
    *(lot<D, N> *)to = out;
}

/* U lots, `step` elements apart. */
template <typename S, typename A, typename D, int N, int U>
static __device__ __forceinline__ void sum_in_order(const brg__nccl_sum_job &j,
                                                    size_t i, size_t step)
{
    A sums[U][N];
    for (int k = 0; k < j.n_src; k++) {
        const S *from = source<S>(j, k) + i;
        lot<S, N> x[U];
#pragma unroll
        for (int u = 0; u < U; u++)
            x[u] = read<S, N>(from + u * step);
#pragma unroll
        for (int u = 0; u < U; u++)
#pragma unroll
            for (int e = 0; e < N; e++)
                sums[u][e] =
                    k ? sums[u][e] + wide(x[u].at[e]) : wide(x[u].at[e]);
    }
#pragma unroll
    for (int u = 0; u < U; u++)
        write<A, D, N>((D *)j.dst + i + u * step, sums[u], j.divisor);
}

template <typename S, typename A, typename D, int N>
static __device__ __forceinline__ void sum_in_tree(const brg__nccl_sum_job &j,
                                                   size_t i)
{
    A stack[BRG__TREE_MAX_DEPTH][N];
    int n = 0;
    for (int k = 0; k < j.n_src; k++) {
        const lot<S, N> x = read<S, N>(source<S>(j, k) + i);
#pragma unroll
        for (int e = 0; e < N; e++)
            stack[n][e] = wide(x.at[e]);
        for (int m = j.merges[k]; m > 0; m--, n--)
#pragma unroll
            for (int e = 0; e < N; e++)
                stack[n - 1][e] = stack[n - 1][e] + stack[n][e];
        n++;
    }
    write<A, D, N>((D *)j.dst + i, stack[0], j.divisor);
}

/* Elements [begin, end) by n_threads threads, of which this is number t. */
template <typename S, typename A, typename D, bool IS_TREE, int N>
static __device__ __forceinline__ void sum_lots(const brg__nccl_sum_job &j,
                                                size_t begin, size_t end,
                                                size_t t, size_t n_threads)
{
    constexpr int U = 4;
    const size_t step = n_threads * N;
    size_t i = begin + t * N;
    if constexpr (IS_TREE) {
        for (; i + N <= end; i += step)
            sum_in_tree<S, A, D, N>(j, i);
    } else {
        for (; i + (U - 1) * step + N <= end; i += U * step)
            sum_in_order<S, A, D, N, U>(j, i, step);
        for (; i + N <= end; i += step)
            sum_in_order<S, A, D, N, 1>(j, i, step);
    }
}

/* `begin` is a whole number of lots. */
template <typename S, typename A, typename D, bool IS_TREE>
static __device__ __forceinline__ void sum_range(const brg__nccl_sum_job &j,
                                                 size_t begin, size_t end,
                                                 size_t t, size_t n_threads)
{
    constexpr int N = lot_of<S>;
    if (j.is_aligned) {
        const size_t whole = begin + (end - begin) / N * N;
        sum_lots<S, A, D, IS_TREE, N>(j, begin, whole, t, n_threads);
        begin = whole;
    }
    sum_lots<S, A, D, IS_TREE, 1>(j, begin, end, t, n_threads);
}

template <typename S, typename A, typename D, bool IS_TREE>
static __global__ void __launch_bounds__(THREADS)
    sum_all(const __grid_constant__ brg__nccl_sum_job j)
{
    if (j.stop && __ldcg(j.stop))
        return;
    sum_range<S, A, D, IS_TREE>(j, 0, j.count,
                                blockIdx.x * (size_t)THREADS + threadIdx.x,
                                (size_t)gridDim.x * THREADS);
}

/* ---- Launches -------------------------------------------------------------------- */

static bool is_whole(const void *at, size_t stride, size_t nbytes)
{
    return ((uintptr_t)at | stride) % nbytes == 0;
}

/* Two have one order. */
static bool is_tree(const brg__nccl_sum_job *j)
{
    return j->is_tree && j->n_src > 2;
}

template <typename S, typename D>
static bool is_aligned(const brg__nccl_sum_job *j)
{
    return is_whole(j->own, j->own_stride, 16) &&
           is_whole(j->room, j->room_stride, 16) &&
           is_whole(j->dst, 0, lot_of<S> * sizeof(D));
}

template <typename S, typename A, typename D>
static int launch(const brg__nccl_sum_job *given, void *stream)
{
    brg__nccl_sum_job j = *given;
    j.is_aligned = is_aligned<S, D>(&j);
    const size_t each = (size_t)THREADS * (j.is_aligned ? lot_of<S> : 1);
    size_t n_blocks = (j.count + each - 1) / each;
    if (n_blocks > MAX_BLOCKS)
        n_blocks = MAX_BLOCKS;
    if (is_tree(&j))
        sum_all<S, A, D, true>
            <<<(unsigned)n_blocks, THREADS, 0, (cudaStream_t)stream>>>(j);
    else
        sum_all<S, A, D, false>
            <<<(unsigned)n_blocks, THREADS, 0, (cudaStream_t)stream>>>(j);
    return (int)cudaGetLastError();
}

/* ---- Blocks of 8-bit numbers: a warp takes a block ------------------------------- */

/* The same sequence as the CPU's (comm/q8_body.c). */
static __device__ __forceinline__ float dither(uint16_t round, int i)
{
    const uint32_t turn = round * 49471u + (uint32_t)i * 40503u;
    return (float)(turn & 0xFFFFu) * 0x1p-16f;
}

static __global__ void __launch_bounds__(THREADS)
    sum_blocks(const __grid_constant__ brg__nccl_sum_job j)
{
    const int lane = threadIdx.x & 31;
    const size_t step = (size_t)gridDim.x * (THREADS / 32);
    const float factor =
        j.divisor ? __fdiv_rn(1.0f, (float)j.divisor) : 1.0f;
    for (size_t i = blockIdx.x * (size_t)(THREADS / 32) + threadIdx.x / 32;
         i < j.count; i += step) {
        float total[2] = {0, 0}, up[2];
        bool is_bad[2] = {false, false};
        int code[2];
        const uint16_t round = (uint16_t)(
            *(const uint32_t *)(source<char>(j, 0) + i * BRG__Q8_NBYTES) >> 16);
        for (int s = 0; s < j.n_src; s++) {
            const unsigned char *block =
                source<unsigned char>(j, s) + i * BRG__Q8_NBYTES;
            const float scale = brg__q8_scale_of(block);
            for (int k = 0; k < 2; k++) {
                if (lane + 32 * k >= (int)BRG__Q8_N)
                    continue;
                const int one = brg__q8_code(block, lane + 32 * k);
                total[k] += __fmul_rn(scale, (float)one);
                is_bad[k] |= one == BRG__Q8_NOT_FINITE;
            }
        }
        for (int k = 0; k < 2; k++) {
            up[k] = dither(round, lane + 32 * k);
            total[k] = is_bad[k] ? __uint_as_float(0x7F800000u)
                                 : __fmul_rn(total[k], factor);
        }
        __syncwarp(); /* the result may be a source */
        (void)brg__q8_put((unsigned char *)j.dst + i * BRG__Q8_NBYTES, lane,
                          total, up, round, code);
    }
}

/* A block alone is its own sum, which is in its place: nothing to round. */
static int launch_blocks(const brg__nccl_sum_job *j, void *stream)
{
    if (j->n_src == 1)
        return (int)cudaSuccess;
    size_t n_blocks = (j->count + THREADS / 32 - 1) / (THREADS / 32);
    if (n_blocks > MAX_BLOCKS)
        n_blocks = MAX_BLOCKS;
    sum_blocks<<<(unsigned)n_blocks, THREADS, 0, (cudaStream_t)stream>>>(*j);
    return (int)cudaGetLastError();
}

/* ---- Sent and summed by one kernel --------------------------------------------------- */

static __device__ __forceinline__ uint64_t now_ns(void)
{
    uint64_t ns;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(ns));
    return ns;
}

static __device__ __forceinline__ uint64_t load_acquire(const uint64_t *at)
{
    uint64_t x;
    asm volatile("ld.acquire.sys.u64 %0, [%1];" : "=l"(x) : "l"(at) : "memory");
    return x;
}

static __device__ __forceinline__ void store_release(uint64_t *at, uint64_t x)
{
    asm volatile("st.release.sys.u64 [%0], %1;" ::"l"(at), "l"(x) : "memory");
}

/* False: told to stop, or the limit has passed. */
static __device__ bool await_turn(const brg__nccl_push_job &j,
                                  const uint64_t *at, uint64_t turn)
{
    uint64_t start = 0;
    for (unsigned n = 1; load_acquire(at) < turn; n++) {
        if (n % 256 != 0)
            continue;
        const uint64_t now = now_ns();
        start = start ? start : now;
        if (*(const volatile uint32_t *)j.stop)
            return false;
        if (now - start > j.limit_ns) {
            *(volatile uint32_t *)j.gave_up = 1;
            return false;
        }
    }
    return true;
}

/* Bytes of own sources [begin, end), by all threads of the block. */
static __device__ void push_range(const brg__nccl_push_job &j, size_t skip,
                                  size_t begin, size_t end)
{
    for (int r = 0; r < j.n_ranks; r++) {
        char *to = j.rooms[r] + skip + j.places[r] * j.sum.room_stride;
        const char *from = j.sum.own;
        for (int k = 0; r != j.rank && k < j.sum.own_n; k++) {
            size_t i = begin;
            if (j.sum.is_aligned) {
                const size_t whole = begin + (end - begin) / 16 * 16;
                for (i += threadIdx.x * 16; i < whole; i += PUSH_THREADS * 16)
                    *(uint4 *)(to + i) = *(const uint4 *)(from + i);
                i = whole;
            }
            for (i += threadIdx.x; i < end; i += PUSH_THREADS)
                to[i] = from[i];
            to += j.sum.room_stride;
            from += j.sum.own_stride;
        }
    }
}

/* Block b of every rank does the same range of elements. What is written for
 * turn t may still be read in turn t + 1 by a slower rank, but not in t + 2:
 * that this rank is in t + 2 means that all have been in t + 1. */
template <typename S, typename A, typename D, bool IS_TREE>
static __global__ void __launch_bounds__(PUSH_THREADS)
    push_then_sum(const __grid_constant__ brg__nccl_push_job j)
{
    constexpr size_t N = lot_of<S>;
    const uint64_t turn = j.turns->turn + 1;
    const size_t skip = turn % 2 * j.turn_stride;
    const size_t n_lots = (j.sum.count + N - 1) / N;
    const size_t each = (n_lots + gridDim.x - 1) / gridDim.x * N;
    const size_t begin = min(blockIdx.x * each, j.sum.count);
    const size_t end = min(begin + each, j.sum.count);
    const int r = (int)threadIdx.x;
    bool is_here = true;
    push_range(j, skip, begin * sizeof(S), end * sizeof(S));
    __syncthreads();
    if (r < j.n_ranks && r != j.rank) {
        __threadfence_system();
        store_release(j.flags[r] + j.rank * BRG__NCCL_PUSH_BLOCKS + blockIdx.x,
                      turn);
        is_here = await_turn(
            j, j.flags[j.rank] + r * BRG__NCCL_PUSH_BLOCKS + blockIdx.x, turn);
    }
    if (__syncthreads_and(is_here)) {
        brg__nccl_sum_job sum = j.sum;
        sum.room += skip;
        sum_range<S, A, D, IS_TREE>(sum, begin, end, threadIdx.x, PUSH_THREADS);
    }
    __syncthreads();
    if (r == 0 && atomicAdd(&j.turns->n_done, 1u) == gridDim.x - 1) {
        j.turns->n_done = 0;
        j.turns->turn = turn;
    }
}

template <typename S, typename A, typename D>
static int launch(const brg__nccl_push_job *given, void *stream)
{
    brg__nccl_push_job j = *given;
    j.sum.is_aligned = is_aligned<S, D>(&j.sum);
    if (is_tree(&j.sum))
        push_then_sum<S, A, D, true>
            <<<(unsigned)j.n_blocks, PUSH_THREADS, 0, (cudaStream_t)stream>>>(
                j);
    else
        push_then_sum<S, A, D, false>
            <<<(unsigned)j.n_blocks, PUSH_THREADS, 0, (cudaStream_t)stream>>>(
                j);
    return (int)cudaGetLastError();
}

/* ---- By dtype ------------------------------------------------------------------------ */

static const brg__nccl_sum_job *sum_of(const brg__nccl_sum_job *j)
{
    return j;
}

static const brg__nccl_sum_job *sum_of(const brg__nccl_push_job *j)
{
    return &j->sum;
}

template <typename J> static int launch_by_dtype(const J *j, void *stream)
{
    const bool is_partial = sum_of(j)->is_partial;
    switch (sum_of(j)->dtype) {
    case BRG_DTYPE_F64:
        return launch<double, double, double>(j, stream);
    case BRG_DTYPE_F32:
        return launch<float, float, float>(j, stream);
    case BRG_DTYPE_F16:
        return is_partial ? launch<float, float, __half>(j, stream)
                          : launch<__half, float, __half>(j, stream);
    case BRG_DTYPE_BF16:
        return is_partial
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

int brg__nccl_sum_launch(const brg__nccl_sum_job *j, void *stream)
{
    return j->dtype == BRG__DTYPE_Q8 ? launch_blocks(j, stream)
                                     : launch_by_dtype(j, stream);
}

int brg__nccl_push_launch(const brg__nccl_push_job *j, void *stream)
{
    return launch_by_dtype(j, stream);
}
