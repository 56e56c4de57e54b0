/* SPDX-License-Identifier: Apache-2.0
 * Softmax and batch norm: a block per line, three reads of it at most, the
 * later ones from the cache. 16-bit floats are computed in f32; sums over rows
 * (weights' gradients) in f64 and a fixed order. */
#include "core/cuda/element.cuh"

/* Short lines need no large block. */
static int threads_for(int64_t n)
{
    return n <= 64 ? 32 : n <= 512 ? 64 : n <= 1024 ? 128 : 256;
}

static __device__ __forceinline__ float exp_of(float x)
{
    return expf(x);
}

static __device__ __forceinline__ double exp_of(double x)
{
    return exp(x);
}

static __device__ __forceinline__ float log_of(float x)
{
    return logf(x);
}

static __device__ __forceinline__ double log_of(double x)
{
    return log(x);
}

/* ---- Softmax ------------------------------------------------------------------ */

/* The first element of the block's line. */
static __device__ __forceinline__ int64_t line_at(const brg__cu_lines &l)
{
    return blockIdx.x / l.inner * l.n * l.inner + blockIdx.x % l.inner;
}

template <typename T, typename C>
__global__ void softmax_kernel(const brg__cu_lines l, const T *x, T *y)
{
    const int64_t at = line_at(l);
    C top = -INFINITY, sum = 0;
    for (int64_t i = threadIdx.x; i < l.n; i += blockDim.x)
        top = max_of::join(top, get<C>(x + at + i * l.inner));
    top = over_block<max_of>(top);
    for (int64_t i = threadIdx.x; i < l.n; i += blockDim.x)
        sum += exp_of(get<C>(x + at + i * l.inner) - top);
    sum = over_block<sum_of>(sum);
    const C log_sum = log_of(sum), factor = 1 / sum;
    for (int64_t i = threadIdx.x; i < l.n; i += blockDim.x) {
        const C v = get<C>(x + at + i * l.inner) - top;
        y[at + i * l.inner] =
            as<T>::of(l.is_log ? v - log_sum : exp_of(v) * factor);
    }
}

template <typename T, typename C>
__global__ void softmax_grad_kernel(const brg__cu_lines l, const T *g,
                                    const T *y, T *gx)
{
    const int64_t at = line_at(l);
    C dot = 0;
    for (int64_t i = threadIdx.x; i < l.n; i += blockDim.x) {
        const int64_t k = at + i * l.inner;
        dot += get<C>(g + k) * (l.is_log ? (C)1 : get<C>(y + k));
    }
    dot = over_block<sum_of>(dot);
    for (int64_t i = threadIdx.x; i < l.n; i += blockDim.x) {
        const int64_t k = at + i * l.inner;
        const C v = get<C>(g + k), p = get<C>(y + k);
        gx[k] = as<T>::of(l.is_log ? v - exp_of(p) * dot : (v - dot) * p);
    }
}

int brg__cu_softmax(const brg__cu_queue *q, const brg__cu_lines *l,
                    const void *x, void *y)
{
#define LAUNCH(T, C)                                                           \
    softmax_kernel<T, C>                                                       \
        <<<brg__cu_grid(l->outer * l->inner), threads_for(l->n), 0,            \
           stream_of(q)>>>(*l, (const T *)x, (T *)y)
    WITH_FLOAT(l->dtype, LAUNCH);
#undef LAUNCH
    return (int)cudaGetLastError();
}

int brg__cu_softmax_grad(const brg__cu_queue *q, const brg__cu_lines *l,
                         const void *g, const void *y, void *gx)
{
#define LAUNCH(T, C)                                                           \
    softmax_grad_kernel<T, C>                                                  \
        <<<brg__cu_grid(l->outer * l->inner), threads_for(l->n), 0,            \
           stream_of(q)>>>(*l, (const T *)g, (const T *)y, (T *)gx)
    WITH_FLOAT(l->dtype, LAUNCH);
#undef LAUNCH
    return (int)cudaGetLastError();
}

/* ---- Batch norm --------------------------------------------------------------------- */

/* Element j of the block's channel. */
static __device__ __forceinline__ int64_t in_channel(
    const brg__cu_batch_norm &a, int64_t j)
{
    return (j / a.inner * a.channels + blockIdx.x) * a.inner + j % a.inner;
}

template <typename T>
static __device__ __forceinline__ double sum_channel(
    const brg__cu_batch_norm &a, const T *x, double shift, bool is_squared)
{
    double sum = 0;
    for (int64_t j = threadIdx.x; j < a.n * a.inner; j += blockDim.x) {
        const double v = get<double>(x + in_channel(a, j)) - shift;
        sum += is_squared ? v * v : v;
    }
    return over_block<sum_of>(sum);
}

static __device__ __forceinline__ void move_to(void *running, int dtype,
                                               double value, double momentum)
{
    if (!running || threadIdx.x != 0)
        return;
    const double old = load<double>(running, dtype, blockIdx.x);
    store<double>(running, dtype, blockIdx.x,
                  (1.0 - momentum) * old + momentum * value);
}

template <typename T, typename C>
__global__ void batch_norm_kernel(const __grid_constant__ brg__cu_batch_norm a)
{
    const T *x = (const T *)a.x;
    const int64_t c = blockIdx.x, count = a.n * a.inner;
    double mean, var;
    if (a.is_training) {
        mean = sum_channel(a, x, 0.0, false) / (double)count;
        var = sum_channel(a, x, mean, true) / (double)count;
        move_to(a.running_mean, a.stats_dtype[0], mean, a.momentum);
        move_to(a.running_var, a.stats_dtype[1],
                var * (double)count / ((double)count - 1.0), a.momentum);
    } else {
        mean = load<double>(a.running_mean, a.stats_dtype[0], c);
        var = load<double>(a.running_var, a.stats_dtype[1], c);
    }
    const double rstd = 1.0 / sqrt(var + a.eps);
    const C scale = (C)(rstd * (a.w ? get<double>((const T *)a.w + c) : 1.0));
    const C add = a.b ? get<C>((const T *)a.b + c) : (C)0;
    for (int64_t j = threadIdx.x; j < count; j += blockDim.x) {
        const int64_t i = in_channel(a, j);
        ((T *)a.y)[i] = as<T>::of((get<C>(x + i) - (C)mean) * scale + add);
    }
    if (threadIdx.x == 0) {
        ((C *)a.mean)[c] = (C)mean;
        ((C *)a.rstd)[c] = (C)rstd;
    }
}

int brg__cu_batch_norm_launch(const brg__cu_queue *q,
                              const brg__cu_batch_norm *a)
{
#define LAUNCH(T, C)                                                           \
    batch_norm_kernel<T, C>                                                    \
        <<<brg__cu_grid(a->channels), 256, 0, stream_of(q)>>>(*a)
    WITH_FLOAT(a->dtype, LAUNCH);
#undef LAUNCH
    return (int)cudaGetLastError();
}

template <typename T, typename C>
__global__ void
batch_norm_grad_kernel(const __grid_constant__ brg__cu_batch_norm a)
{
    const T *x = (const T *)a.x, *g = (const T *)a.g;
    const int64_t c = blockIdx.x, count = a.n * a.inner;
    const double mean = (double)((const C *)a.mean)[c];
    const double rstd = (double)((const C *)a.rstd)[c];
    double sum = 0, dot = 0;
    for (int64_t j = threadIdx.x; j < count; j += blockDim.x) {
        const int64_t i = in_channel(a, j);
        sum += get<double>(g + i);
        dot += get<double>(g + i) * (get<double>(x + i) - mean);
    }
    sum = over_block<sum_of>(sum);
    dot = over_block<sum_of>(dot) * rstd;
    const double scale = rstd * (a.w ? get<double>((const T *)a.w + c) : 1.0);
    const double back = a.is_training ? scale / (double)count : 0.0;
    const C by_x = (C)(-back * rstd * dot), add = (C)(-back * sum);
    for (int64_t j = threadIdx.x; j < count; j += blockDim.x) {
        const int64_t i = in_channel(a, j);
        ((T *)a.gx)[i] = as<T>::of(by_x * (get<C>(x + i) - (C)mean) +
                                   (C)scale * get<C>(g + i) + add);
    }
    if (threadIdx.x == 0) {
        ((T *)a.gw)[c] = as<T>::of((C)dot);
        ((T *)a.gb)[c] = as<T>::of((C)sum);
    }
}

int brg__cu_batch_norm_grad_launch(const brg__cu_queue *q,
                                   const brg__cu_batch_norm *a)
{
#define LAUNCH(T, C)                                                           \
    batch_norm_grad_kernel<T, C>                                               \
        <<<brg__cu_grid(a->channels), 256, 0, stream_of(q)>>>(*a)
    WITH_FLOAT(a->dtype, LAUNCH);
#undef LAUNCH
    return (int)cudaGetLastError();
}
