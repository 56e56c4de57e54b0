/* SPDX-License-Identifier: Apache-2.0
 * One step of many parameters: each launch takes up to MANY of them in its
 * arguments, and a block takes one piece of one parameter. */
#include "core/cuda/element.cuh"

#include <brigade/ext/device.h>

#define MANY 24
#define PIECE 4096 /* elements of a block */

typedef struct batch {
    int n;
    int64_t first[MANY + 1]; /* block at which the parameter begins */
    brg_device_update update[MANY];
    const double *f[MANY]; /* on the device, in the place of update[].f */
} batch;

template <typename C> static __device__ __forceinline__ C root(C x)
{
    return (C)sqrt(x);
}

template <> __device__ __forceinline__ float root<float>(float x)
{
    return sqrtf(x);
}

template <typename C>
static __device__ __forceinline__ C step(const brg_device_update &u,
                                         const double *f, int64_t i, C p, C g)
{
    C *m = (C *)u.state[0], *v = (C *)u.state[1];
    if (u.rule == BRG_UPDATE_ADAMW) {
        const C b1 = (C)f[1], b2 = (C)f[2];
        const C first = b1 * m[i] + (C)(1.0 - f[1]) * g;
        const C second = b2 * v[i] + (C)(1.0 - f[2]) * g * g;
        m[i] = first;
        v[i] = second;
        return (C)f[0] * p -
               (C)f[3] * first / (root(second) * (C)f[4] + (C)f[5]);
    }
    const C lr = (C)f[0], d = g + (C)f[3] * p;
    if (!m)
        return p - lr * d;
    const C b = (C)f[1] * m[i] + (C)f[2] * d;
    m[i] = b;
    return p - lr * (u.rule == BRG_UPDATE_SGD ? b : d + (C)f[1] * b);
}

/* The parameter itself, or its master copy. */
template <typename T, typename C>
static __device__ __forceinline__ void update(const brg_device_update &u,
                                              const double *f, int64_t i)
{
    T *param = (T *)u.param;
    const C g = get<C>((const T *)u.grad + i);
    if (sizeof(T) == sizeof(C)) {
        param[i] = as<T>::of(step<C>(u, f, i, get<C>(param + i), g));
        return;
    }
    C *master = (C *)u.master;
    C p = master[i];
    const T rounded = as<T>::of(p);
    if (u.follows && get<C>(&rounded) != get<C>(param + i))
        p = get<C>(param + i);
    p = step<C>(u, f, i, p, g);
    master[i] = p;
    param[i] = as<T>::of(p);
}

__global__ void __launch_bounds__(THREADS)
    update_kernel(const __grid_constant__ batch b)
{
    int k = 0;
    while (k + 1 < b.n && (int64_t)blockIdx.x >= b.first[k + 1])
        k++;
    const brg_device_update &u = b.update[k];
    const double *f = b.f[k] ? b.f[k] : u.f;
    const int64_t from = ((int64_t)blockIdx.x - b.first[k]) * PIECE;
    const int64_t n = (int64_t)u.numel;
    const int64_t to = from + PIECE < n ? from + PIECE : n;
    for (int64_t i = from + threadIdx.x; i < to; i += THREADS) {
        if (u.dtype == BRG_DTYPE_F32)
            update<float, float>(u, f, i);
        else if (u.dtype == BRG_DTYPE_BF16)
            update<bf16, float>(u, f, i);
        else if (u.dtype == BRG_DTYPE_F16)
            update<f16, float>(u, f, i);
        else
            update<double, double>(u, f, i);
    }
}

int brg__cu_update(const brg__cu_queue *q,
                   const struct brg_device_update *updates, uint64_t n,
                   const double *numbers)
{
    for (uint64_t done = 0; done < n;) {
        batch b = {};
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
