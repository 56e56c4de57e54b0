/* SPDX-License-Identifier: Apache-2.0
 * Which of many arrays hold an element beyond a limit: each launch takes up to
 * MANY of them in its arguments, a block takes one piece of one array. Bits are
 * compared as integers (reducer/finite.c says why). */
#include "core/cuda/element.cuh"

#include <brigade/ext/device.h>

/* Arguments may have 4 KB, or 32 KB from CUDA 12.1 on. */
#if CUDART_VERSION >= 12010
#define MANY 200
#else
#define MANY 80
#endif
#define PIECE BRG_DEVICE_PIECE /* elements of a block */

typedef struct batch {
    int n;
    const void *at[MANY];
    int64_t numel[MANY];
    int64_t first[MANY + 1]; /* block at which the array begins */
    uint64_t limit[MANY];
    uint64_t mark[MANY];
    int item[MANY]; /* bytes of an element */
} batch;

/* T: an unsigned integer as large as an element. */
template <typename T>
static __device__ __forceinline__ int is_beyond(const batch &b, int k)
{
    const int64_t from = ((int64_t)blockIdx.x - b.first[k]) * PIECE;
    const int64_t left = b.numel[k] - from, n = left < PIECE ? left : PIECE;
    const T *at = (const T *)b.at[k] + from;
    const T limit = (T)b.limit[k], magnitude = (T)((T) ~(T)0 >> 1);
    const int64_t n_vecs = (uintptr_t)at % 16 == 0 ? n / vec<T>::n : 0;
    int over = 0;
    for (int64_t i = threadIdx.x; i < n_vecs; i += THREADS) {
        const vec<T> v = ((const vec<T> *)at)[i];
#pragma unroll
        for (int j = 0; j < vec<T>::n; j++)
            over |= (T)(v.at[j] & magnitude) > limit;
    }
    for (int64_t i = n_vecs * vec<T>::n + threadIdx.x; i < n; i += THREADS)
        over |= (T)(at[i] & magnitude) > limit;
    return over;
}

__global__ void __launch_bounds__(THREADS)
    look_kernel(const __grid_constant__ batch b, unsigned long long *found)
{
    const int k = array_of_block(b);
    const int over = b.item[k] == 2   ? is_beyond<uint16_t>(b, k)
                     : b.item[k] == 4 ? is_beyond<uint32_t>(b, k)
                                      : is_beyond<uint64_t>(b, k);
    if (__syncthreads_or(over) && threadIdx.x == 0)
        atomicMax(found, (unsigned long long)b.mark[k]);
}

__global__ void tell_kernel(const uint64_t *found, float rank, float *to)
{
    const uint64_t mark = *found;
    to[0] = mark ? 1.0f : 0.0f;
    to[1] = mark ? rank : 0.0f;
    to[2] = mark ? (float)((uint32_t)mark - 1) : 0.0f;
}

static int item_of(int dtype)
{
    return dtype == F64 ? 8 : dtype == F32 ? 4 : 2;
}

int brg__cu_look(const brg__cu_queue *q, const struct brg_device_array *arrays,
                 uint64_t n, uint64_t *found)
{
    for (uint64_t done = 0; done < n;) {
        batch b;
        b.n = 0;
        b.first[0] = 0;
        for (; b.n < MANY && done < n; done++) {
            const struct brg_device_array *a = &arrays[done];
            if (a->numel == 0)
                continue;
            b.at[b.n] = a->data;
            b.numel[b.n] = (int64_t)a->numel;
            b.limit[b.n] = a->limit;
            b.mark[b.n] = a->mark;
            b.item[b.n] = item_of(a->dtype);
            b.first[b.n + 1] =
                b.first[b.n] + ((int64_t)a->numel + PIECE - 1) / PIECE;
            b.n++;
        }
        if (b.n > 0)
            look_kernel<<<(unsigned)b.first[b.n], THREADS, 0, stream_of(q)>>>(
                b, (unsigned long long *)found);
    }
    return (int)cudaGetLastError();
}

int brg__cu_look_tell(const brg__cu_queue *q, const uint64_t *found, int rank,
                      float *to)
{
    tell_kernel<<<1, 1, 0, stream_of(q)>>>(found, (float)rank, to);
    return (int)cudaGetLastError();
}

/* ns; the host's clock is another. */
__global__ void clock_kernel(uint64_t *to)
{
    uint64_t now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    *to = now;
}

int brg__cu_clock(const brg__cu_queue *q, uint64_t *to)
{
    clock_kernel<<<1, 1, 0, stream_of(q)>>>(to);
    return (int)cudaGetLastError();
}
