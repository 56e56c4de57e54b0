/* SPDX-License-Identifier: Apache-2.0
 * One step of many parameters: each launch takes up to MANY of them in its
 * arguments, and a block takes one piece of one parameter. */
#include "core/cuda/optim.cuh"

#include <string.h>

/* Arguments may have 4 KB, or 32 KB from CUDA 12.1 on. */
#if CUDART_VERSION >= 12010
#define MANY 200
#else
#define MANY 24
#endif
#define PIECE 4096 /* elements of a block */

typedef struct batch {
    int n;
    int64_t first[MANY + 1]; /* block at which the parameter begins */
    brg_device_update update[MANY];
    const double *f[MANY]; /* on the device, in the place of update[].f */
} batch;

/* Four elements at once. */
template <typename T> struct alignas(4 * sizeof(T)) quad {
    T at[4];
};

static __device__ __forceinline__ bool are_quads(const brg_device_update &u)
{
    const uint64_t all =
        (uint64_t)(uintptr_t)u.param | (uint64_t)(uintptr_t)u.grad |
        (uint64_t)(uintptr_t)u.state[0] | (uint64_t)(uintptr_t)u.state[1] |
        (uint64_t)(uintptr_t)u.master;
    return u.rule == BRG_UPDATE_ADAMW && u.dtype != BRG_DTYPE_F64 &&
           all % 16 == 0;
}

/* The gradient of a step that clips: rounded, as if it had been written. */
template <typename T, typename C>
static __device__ __forceinline__ C clipped(C g, C by)
{
    const T rounded = as<T>::of(product(g, by));
    return get<C>(&rounded);
}

/* AdamW of the whole quads of a piece; where the rest begins. */
template <typename T>
static __device__ __forceinline__ int64_t
update_quads(const brg_device_update &u, const double *f, double by,
             int64_t from, int64_t to)
{
    const float scale = (float)by;
    const adamw<float> rule(f);
    const bool has_master = sizeof(T) != sizeof(float);
    const int64_t end = from + (to - from) / 4 * 4;
#pragma unroll 2
    for (int64_t i = from + 4 * threadIdx.x; i < end; i += 4 * THREADS) {
        quad<float> m = *(const quad<float> *)((const float *)u.state[0] + i);
        quad<float> v = *(const quad<float> *)((const float *)u.state[1] + i);
        const quad<T> g = *(const quad<T> *)((const T *)u.grad + i);
        quad<T> param = {};
        quad<float> p = {};
        if (has_master)
            p = *(const quad<float> *)((const float *)u.master + i);
        if (!has_master || u.follows)
            param = *(const quad<T> *)((const T *)u.param + i);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const T rounded = as<T>::of(p.at[j]);
            if (!has_master ||
                (u.follows && get<float>(&rounded) != get<float>(&param.at[j])))
                p.at[j] = get<float>(&param.at[j]);
            p.at[j] =
                rule.step(p.at[j], clipped<T>(get<float>(&g.at[j]), scale),
                          &m.at[j], &v.at[j]);
            param.at[j] = as<T>::of(p.at[j]);
        }
        *(quad<float> *)((float *)u.state[0] + i) = m;
        *(quad<float> *)((float *)u.state[1] + i) = v;
        *(quad<T> *)((T *)u.param + i) = param;
        if (has_master)
            *(quad<float> *)((float *)u.master + i) = p;
    }
    return end;
}

template <typename T, typename C>
static __device__ __forceinline__ void
update_at(const brg_device_update &u, const double *f, double by, int64_t i)
{
    update<T, C>(u, f, i, clipped<T>(get<C>((const T *)u.grad + i), (C)by));
}

__global__ void __launch_bounds__(THREADS)
    update_kernel(const __grid_constant__ batch b)
{
    const int k = array_of_block(b);
    const brg_device_update &u = b.update[k];
    if (u.found_inf && *u.found_inf != 0.0f)
        return;
    const double *f = b.f[k] ? b.f[k] : u.f;
    const double by = u.factor ? *u.factor : 1.0;
    int64_t from = ((int64_t)blockIdx.x - b.first[k]) * PIECE;
    const int64_t n = (int64_t)u.numel;
    const int64_t to = from + PIECE < n ? from + PIECE : n;
    if (are_quads(u))
        from =
            u.dtype == BRG_DTYPE_F32 ? update_quads<float>(u, f, by, from, to)
            : u.dtype == BRG_DTYPE_BF16 ? update_quads<bf16>(u, f, by, from, to)
                                        : update_quads<f16>(u, f, by, from, to);
    for (int64_t i = from + threadIdx.x; i < to; i += THREADS) {
        if (u.dtype == BRG_DTYPE_F32)
            update_at<float, float>(u, f, by, i);
        else if (u.dtype == BRG_DTYPE_BF16)
            update_at<bf16, float>(u, f, by, i);
        else if (u.dtype == BRG_DTYPE_F16)
            update_at<f16, float>(u, f, by, i);
        else
            update_at<double, double>(u, f, by, i);
    }
}

int brg__cu_update(const brg__cu_queue *q,
                   const struct brg_device_update *updates, uint64_t n,
                   const double *numbers)
{
    for (uint64_t done = 0; done < n;) {
        batch b;
        b.n = 0;
        b.first[0] = 0;
        for (; b.n < MANY && done < n; done++) {
            const brg_device_update *u = &updates[done];
            if (u->numel == 0)
                continue;
            b.update[b.n] = *u;
            b.f[b.n] = numbers ? numbers + 6 * done : NULL;
            b.first[b.n + 1] =
                b.first[b.n] + ((int64_t)u->numel + PIECE - 1) / PIECE;
            b.n++;
        }
        if (b.n > 0)
            update_kernel<<<(unsigned)b.first[b.n], THREADS, 0, stream_of(q)>>>(
                b);
    }
    return (int)cudaGetLastError();
}

/* ---- Numbers of the host --------------------------------------------------------- */

#define AT_ONCE 448 /* below the limit of a kernel's arguments */

typedef struct numbers {
    int n;
    double at[AT_ONCE];
} numbers;

__global__ void __launch_bounds__(AT_ONCE)
    store_kernel(const __grid_constant__ numbers from, double *to)
{
    if ((int)threadIdx.x < from.n)
        to[threadIdx.x] = from.at[threadIdx.x];
}

int brg__cu_store(const brg__cu_queue *q, double *to, const double *from,
                  uint64_t n)
{
    for (uint64_t done = 0; done < n; done += AT_ONCE) {
        numbers some;
        some.n = (int)(n - done < AT_ONCE ? n - done : AT_ONCE);
        for (int i = 0; i < some.n; i++)
            some.at[i] = from[done + i];
        store_kernel<<<1, AT_ONCE, 0, stream_of(q)>>>(some, to + done);
    }
    return (int)cudaGetLastError();
}

typedef struct bytes {
    unsigned char at[BRG__CU_BY_VALUE];
} bytes;

__global__ void __launch_bounds__(BRG__CU_BY_VALUE)
    store_bytes_kernel(const __grid_constant__ bytes from, unsigned char *to)
{
    to[threadIdx.x] = from.at[threadIdx.x];
}

int brg__cu_store_bytes(const brg__cu_queue *q, void *to, const void *from,
                        uint64_t n)
{
    bytes some;
    memcpy(some.at, from, n);
    store_bytes_kernel<<<1, (unsigned)n, 0, stream_of(q)>>>(
        some, (unsigned char *)to);
    return (int)cudaGetLastError();
}
