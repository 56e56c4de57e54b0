/* SPDX-License-Identifier: Apache-2.0
 * The norm of many gradients, and scaling them by it: each launch takes up to
 * MANY of them in its arguments, a block takes one piece of one gradient. Sums
 * in f64 and a fixed order. */
#include "core/cuda/element.cuh"

#include <brigade/ext/device.h>

/* Arguments may have 4 KB, or 32 KB from CUDA 12.1 on. */
#if CUDART_VERSION >= 12010
#define MANY 200
#else
#define MANY 96
#endif
#define PIECE BRG_DEVICE_PIECE /* elements of a block */

typedef struct batch {
    int n;
    void *at[MANY];
    int64_t numel[MANY];
    int64_t first[MANY + 1]; /* block at which the gradient begins */
    int64_t place[MANY];     /* of its first partial sum */
    int dtype[MANY];
} batch;

/* The piece of the block. */
template <typename T> struct piece {
    T *at;
    int64_t n, n_vecs; /* 0 vectors where the memory is not aligned */
};

template <typename T>
static __device__ __forceinline__ piece<T> piece_of(const batch &b, int k)
{
    const int64_t from = ((int64_t)blockIdx.x - b.first[k]) * PIECE;
    const int64_t left = b.numel[k] - from;
    piece<T> p = {(T *)b.at[k] + from, left < PIECE ? left : PIECE, 0};
    if ((uintptr_t)p.at % 16 == 0)
        p.n_vecs = p.n / vec<T>::n;
    return p;
}

template <typename T>
static __device__ __forceinline__ double squares_of(const batch &b, int k)
{
    const piece<T> p = piece_of<T>(b, k);
    double sum = 0;
    for (int64_t i = threadIdx.x; i < p.n_vecs; i += THREADS) {
        const vec<T> v = ((const vec<T> *)p.at)[i];
#pragma unroll
        for (int j = 0; j < vec<T>::n; j++) {
            const double x = get<double>(&v.at[j]);
            sum += x * x;
        }
    }
    for (int64_t i = p.n_vecs * vec<T>::n + threadIdx.x; i < p.n;
         i += THREADS) {
        const double x = get<double>(p.at + i);
        sum += x * x;
    }
    return sum;
}

/* Of integers, as they are converted. */
static __device__ __noinline__ double squares_of_any(const batch &b, int k)
{
    const int64_t from = ((int64_t)blockIdx.x - b.first[k]) * PIECE;
    const int64_t left = b.numel[k] - from, n = left < PIECE ? left : PIECE;
    double sum = 0;
    for (int64_t i = threadIdx.x; i < n; i += THREADS) {
        const double x = load<double>(b.at[k], b.dtype[k], from + i);
        sum += x * x;
    }
    return sum;
}

#define BY_DTYPE(dtype, DO)                                                    \
    ((dtype) == F32    ? DO(float)                                             \
     : (dtype) == BF16 ? DO(bf16)                                              \
     : (dtype) == F16  ? DO(f16)                                               \
     : (dtype) == F64  ? DO(double)                                            \
                       : squares_of_any(b, k))

__global__ void __launch_bounds__(THREADS)
    squares_kernel(const __grid_constant__ batch b, double *partials)
{
    const int k = array_of_block(b);
#define SQUARES(T) squares_of<T>(b, k)
    const double sum = over_block<sum_of>(BY_DTYPE(b.dtype[k], SQUARES));
#undef SQUARES
    if (threadIdx.x == 0)
        partials[b.place[k] + (int64_t)blockIdx.x - b.first[k]] = sum;
}

static __device__ __forceinline__ double sum_partials(const double *partials,
                                                      int64_t n)
{
    double sum = 0;
    for (int64_t i = threadIdx.x; i < n; i += 1024)
        sum += partials[i];
    return over_block<sum_of>(sum);
}

static __device__ __forceinline__ double factor_of(double norm, double max_norm)
{
    const double factor = max_norm / (norm + 1e-6);
    return isfinite(norm) && factor < 1.0 ? factor : 1.0;
}

__global__ void __launch_bounds__(1024)
    total_kernel(const double *partials, int64_t n, double *total)
{
    const double sum = sum_partials(partials, n);
    if (threadIdx.x == 0)
        *total = sum;
}

/* out[0] = the norm, out[1] = the factor. */
__global__ void __launch_bounds__(1024)
    factor_kernel(const double *partials, int64_t n, double max_norm,
                  double *out)
{
    const double sum = sum_partials(partials, n);
    if (threadIdx.x != 0)
        return;
    out[0] = sqrt(sum);
    out[1] = factor_of(sqrt(sum), max_norm);
}

template <typename T, typename C>
static __device__ __forceinline__ int scale(const batch &b, int k,
                                            double factor)
{
    const piece<T> p = piece_of<T>(b, k);
    const C by = (C)factor;
    for (int64_t i = threadIdx.x; i < p.n_vecs; i += THREADS) {
        vec<T> v = ((const vec<T> *)p.at)[i];
#pragma unroll
        for (int j = 0; j < vec<T>::n; j++)
            v.at[j] = as<T>::of(get<C>(&v.at[j]) * by);
        ((vec<T> *)p.at)[i] = v;
    }
    for (int64_t i = p.n_vecs * vec<T>::n + threadIdx.x; i < p.n; i += THREADS)
        p.at[i] = as<T>::of(get<C>(p.at + i) * by);
    return 0;
}

static __device__ __forceinline__ void scale_piece(const batch &b, double by)
{
    if (by == 1.0)
        return;
    const int k = array_of_block(b);
    if (b.dtype[k] == F32)
        scale<float, float>(b, k, by);
    else if (b.dtype[k] == BF16)
        scale<bf16, float>(b, k, by);
    else if (b.dtype[k] == F16)
        scale<f16, float>(b, k, by);
    else
        scale<double, double>(b, k, by);
}

__global__ void __launch_bounds__(THREADS)
    scale_kernel(const __grid_constant__ batch b, const double *factor)
{
    scale_piece(b, *factor);
}

__global__ void __launch_bounds__(THREADS)
    scale_by_total_kernel(const __grid_constant__ batch b, const double *total,
                          double max_norm)
{
    scale_piece(b, factor_of(sqrt(*total), max_norm));
}

static int64_t blocks_of(const brg_device_update *u)
{
    return ((int64_t)u->numel + PIECE - 1) / PIECE;
}

uint64_t brg__cu_clip_scratch(const struct brg_device_update *grads, uint64_t n)
{
    int64_t blocks = 0;
    for (uint64_t i = 0; i < n; i++)
        blocks += blocks_of(&grads[i]);
    return ((uint64_t)blocks + 2) * sizeof(double);
}

/* Gradients from *done on, as many as one launch takes. */
static batch next_batch(const brg_device_update *grads, uint64_t n,
                        uint64_t *done)
{
    batch b;
    b.n = 0;
    b.first[0] = 0;
    for (; b.n < MANY && *done < n; ++*done) {
        const brg_device_update *u = &grads[*done];
        if (u->numel == 0)
            continue;
        b.at[b.n] = (void *)(uintptr_t)u->grad;
        b.numel[b.n] = (int64_t)u->numel;
        b.dtype[b.n] = u->dtype;
        b.place[b.n] = b.first[b.n];
        b.first[b.n + 1] = b.first[b.n] + blocks_of(u);
        b.n++;
    }
    return b;
}

int brg__cu_clip_factor(const brg__cu_queue *q,
                        const struct brg_device_update *grads, uint64_t n,
                        double max_norm, double *partials, double *to)
{
    int64_t n_partials = 0;
    for (uint64_t done = 0; done < n;) {
        const batch b = next_batch(grads, n, &done);
        if (b.n > 0)
            squares_kernel<<<(unsigned)b.first[b.n], THREADS, 0,
                             stream_of(q)>>>(b, partials + n_partials);
        n_partials += b.first[b.n];
    }
    factor_kernel<<<1, 1024, 0, stream_of(q)>>>(partials, n_partials, max_norm,
                                                to);
    return (int)cudaGetLastError();
}

int brg__cu_clip(const brg__cu_queue *q, const struct brg_device_update *grads,
                 uint64_t n, double max_norm, double *scratch)
{
    const int error =
        brg__cu_clip_factor(q, grads, n, max_norm, scratch + 2, scratch);
    if (error != 0)
        return error;
    for (uint64_t done = 0; done < n;) {
        const batch b = next_batch(grads, n, &done);
        if (b.n > 0)
            scale_kernel<<<(unsigned)b.first[b.n], THREADS, 0, stream_of(q)>>>(
                b, scratch + 1);
    }
    return (int)cudaGetLastError();
}

/* ---- Gradients of a reducer --------------------------------------------------- */

static batch next_arrays(const struct brg_device_array *arrays, uint64_t n,
                         uint64_t *done)
{
    batch b;
    b.n = 0;
    b.first[0] = 0;
    for (; b.n < MANY && *done < n; ++*done) {
        const struct brg_device_array *a = &arrays[*done];
        const int64_t numel = (int64_t)a->numel;
        if (numel == 0)
            continue;
        b.at[b.n] = a->data;
        b.numel[b.n] = numel;
        b.dtype[b.n] = a->dtype;
        b.place[b.n] = (int64_t)a->place;
        b.first[b.n + 1] = b.first[b.n] + (numel + PIECE - 1) / PIECE;
        b.n++;
    }
    return b;
}

int brg__cu_norm_squares(const brg__cu_queue *q,
                         const struct brg_device_array *arrays, uint64_t n,
                         double *partials)
{
    for (uint64_t done = 0; done < n;) {
        const batch b = next_arrays(arrays, n, &done);
        if (b.n > 0)
            squares_kernel<<<(unsigned)b.first[b.n], THREADS, 0,
                             stream_of(q)>>>(b, partials);
    }
    return (int)cudaGetLastError();
}

int brg__cu_norm_add(const brg__cu_queue *q, const double *partials, uint64_t n,
                     double *total)
{
    total_kernel<<<1, 1024, 0, stream_of(q)>>>(partials, (int64_t)n, total);
    return (int)cudaGetLastError();
}

int brg__cu_norm_clip(const brg__cu_queue *q,
                      const struct brg_device_array *arrays, uint64_t n,
                      const double *total, double max_norm)
{
    for (uint64_t done = 0; done < n;) {
        const batch b = next_arrays(arrays, n, &done);
        if (b.n > 0)
            scale_by_total_kernel<<<(unsigned)b.first[b.n], THREADS, 0,
                                    stream_of(q)>>>(b, total, max_norm);
    }
    return (int)cudaGetLastError();
}
