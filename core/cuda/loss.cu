/* SPDX-License-Identifier: Apache-2.0
 * Losses. Cross entropy reads the logits once forward and once backward, and
 * keeps nothing of their size: the gradient is made from the log-sum-exp. */
#include "core/cuda/element.cuh"

/* ---- Cross entropy ------------------------------------------------------------- */

/* The row's target; -1 if it is ignored or out of range, which is noted. */
static __device__ __forceinline__ int64_t target_of(const brg__cu_entropy &a,
                                                    int64_t row,
                                                    brg__cu_fault *fault)
{
    const int64_t t = load_id(a.targets, a.target_dtype, row);
    if (t == a.ignored)
        return -1;
    if (t >= 0 && t < a.classes)
        return t;
    report(fault, BRG__CU_FAULT_CROSS_ENTROPY, t, row, a.classes);
    return -1;
}

/* exp(x - from), which may be prepared. Elements of 16 bits have no use for the
 * last bits of an exponential: 2^(x log2 e - from log2 e), by the GPU's own. */
template <typename T> struct grown {
    static __device__ __forceinline__ float prepare(float from)
    {
        return from * 1.4426950408889634f;
    }
    static __device__ __forceinline__ float of(float x, float prepared)
    {
        float y;
        asm("ex2.approx.ftz.f32 %0, %1;"
            : "=f"(y)
            : "f"(fmaf(x, 1.4426950408889634f, -prepared)));
        return y;
    }
};
template <> struct grown<float> {
    static __device__ __forceinline__ float prepare(float from)
    {
        return from;
    }
    static __device__ __forceinline__ float of(float x, float from)
    {
        return expf(x - from);
    }
};
template <> struct grown<double> {
    static __device__ __forceinline__ double prepare(double from)
    {
        return from;
    }
    static __device__ __forceinline__ double of(double x, double from)
    {
        return exp(x - from);
    }
};

/* V elements at once: 1, or as many as 16 bytes hold. */
template <typename T, int V> struct alignas(V * sizeof(T)) pack {
    T at[V];
};

/* The largest of some numbers, the sum of exp(x - top), and the plain sum. */
template <typename C> struct running {
    C top, sum, plain;
};

/* Vectors that a thread has on their way at once. */
#define AHEAD 2

static __device__ __forceinline__ float larger(float a, float b)
{
    return fmaxf(a, b);
}

static __device__ __forceinline__ double larger(double a, double b)
{
    return fmax(a, b);
}

/* The largest of x and of `top`; NaNs are passed over. */
template <typename C, typename T, int V>
static __device__ __forceinline__ C top_of(const pack<T, V> &x, C top)
{
#pragma unroll
    for (int k = 0; k < V; k++)
        top = larger(top, get<C>(&x.at[k]));
    return top;
}

/* Two at once: V is 8. */
template <typename C>
static __device__ __forceinline__ float top_of(const pack<bf16, 8> &x,
                                               float top)
{
    const __nv_bfloat162 *two = (const __nv_bfloat162 *)x.at;
    const __nv_bfloat162 all =
        __hmax2(__hmax2(two[0], two[1]), __hmax2(two[2], two[3]));
    return fmaxf(top, fmaxf(__low2float(all), __high2float(all)));
}

template <typename C>
static __device__ __forceinline__ float top_of(const pack<f16, 8> &x, float top)
{
    const __half2 *two = (const __half2 *)x.at;
    const __half2 all =
        __hmax2(__hmax2(two[0], two[1]), __hmax2(two[2], two[3]));
    return fmaxf(top, fmaxf(__low2float(all), __high2float(all)));
}

/* x; a NaN gets into the sum. */
template <bool IS_SMOOTH, typename T, typename C, int V>
static __device__ __forceinline__ void take(running<C> &r, const pack<T, V> &x)
{
    const C top = top_of<C>(x, r.top);
    C sum[2] = {0, 0};
    const C shift = grown<T>::prepare(top == -INFINITY ? (C)0 : top);
    if (top > r.top) /* the sum is 0 at first */
        r.sum *= grown<T>::of(r.top, shift);
    r.top = top;
#pragma unroll
    for (int k = 0; k < V; k++) {
        const C v = get<C>(&x.at[k]);
        sum[k % 2] += grown<T>::of(v, shift);
        if (IS_SMOOTH)
            r.plain += v;
    }
    r.sum += sum[0] + sum[1];
}

/* One read of the row. scratch[row]: the row's loss; scratch[rows + row]: 1 if
 * it counts. */
template <bool IS_SMOOTH, typename T, typename C, int V>
__global__ void __launch_bounds__(512, 3)
    entropy_kernel(const __grid_constant__ brg__cu_entropy a,
                   brg__cu_fault *fault)
{
    const int64_t row = blockIdx.x;
    const T *x = (const T *)a.logits + row * a.width;
    const int64_t t = target_of(a, row, fault);
    if (t < 0) {
        if (threadIdx.x == 0) {
            a.scratch[row] = a.scratch[a.rows + row] = 0.0;
            ((C *)a.lse)[row] = 0;
        }
        return;
    }
    running<C> r = {-INFINITY, 0, 0};
    const int step = blockDim.x * V, n = (int)a.classes;
    int i = threadIdx.x * V;
    for (; i + (AHEAD - 1) * step + V <= n; i += AHEAD * step) {
        pack<T, V> ahead[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; k++)
            ahead[k] = *(const pack<T, V> *)(x + i + k * step);
#pragma unroll
        for (int k = 0; k < AHEAD; k++)
            take<IS_SMOOTH, T, C, V>(r, ahead[k]);
    }
    for (; i + V <= n; i += step)
        take<IS_SMOOTH, T, C, V>(r, *(const pack<T, V> *)(x + i));
    for (int k = i; k < n && k < i + V;
         k++) /* the last V are not all classes */
        take<IS_SMOOTH, T, C, 1>(r, {{x[k]}});
    const C top = over_block<max_of>(r.top);
    if (top != -INFINITY)
        r.sum *= grown<T>::of(r.top, grown<T>::prepare(top));
    const C sum = over_block<sum_of>(r.sum);
    const C plain = over_block<sum_of>(r.plain);
    if (threadIdx.x != 0)
        return;
    const double lse = (double)top + log((double)sum), e = a.smoothing;
    a.scratch[row] =
        (1.0 - e) * (lse - get<double>(x + t)) +
        (e != 0 ? e * (lse - (double)plain / (double)a.classes) : 0.0);
    a.scratch[a.rows + row] = 1.0;
    ((C *)a.lse)[row] = (C)lse;
}

__global__ void __launch_bounds__(1024)
    entropy_join_kernel(const __grid_constant__ brg__cu_entropy a)
{
    double sum = 0, count = 0;
    for (int64_t i = threadIdx.x; i < a.rows; i += blockDim.x) {
        sum += a.scratch[i];
        count += a.scratch[a.rows + i];
    }
    sum = over_block<sum_of>(sum);
    count = over_block<sum_of>(count);
    if (threadIdx.x == 0)
        store<double>(a.loss, a.loss_dtype, 0, sum / count);
}

static int threads_for(int64_t n)
{
    return n <= 64 ? 32 : n <= 1024 ? 128 : n <= 8192 ? 256 : 512;
}

/* Rows are read 16 bytes at a time where they lie on such bounds. */
static bool is_wide(const brg__cu_entropy *a)
{
    const uint64_t all = (uint64_t)(uintptr_t)a->logits |
                         (uint64_t)(uintptr_t)a->out |
                         (uint64_t)a->width * (a->dtype == F64   ? 8
                                               : a->dtype == F32 ? 4
                                                                 : 2);
    return all % 16 == 0;
}

#define WITH_ENTROPY(a, LAUNCH)                                                \
    do {                                                                       \
        if ((a)->dtype == F64) {                                               \
            LAUNCH(double, double, 1);                                         \
        } else if (!is_wide(a)) {                                              \
            WITH_FLOAT((a)->dtype, LAUNCH##_1);                                \
        } else if ((a)->dtype == F32) {                                        \
            LAUNCH(float, float, 4);                                           \
        } else if ((a)->dtype == BF16) {                                       \
            LAUNCH(bf16, float, 8);                                            \
        } else {                                                               \
            LAUNCH(f16, float, 8);                                             \
        }                                                                      \
    } while (0)

int brg__cu_cross_entropy(const brg__cu_queue *q, const brg__cu_entropy *a)
{
#define LAUNCH(T, C, V)                                                        \
    (a->smoothing != 0 ? entropy_kernel<true, T, C, V>                         \
                       : entropy_kernel<false, T, C, V>)<<<                    \
        (unsigned)a->rows, threads_for(a->classes), 0, stream_of(q)>>>(        \
        *a, q->fault)
#define LAUNCH_1(T, C) LAUNCH(T, C, 1)
    if (a->rows > 0)
        WITH_ENTROPY(a, LAUNCH);
#undef LAUNCH
#undef LAUNCH_1
    entropy_join_kernel<<<1, 1024, 0, stream_of(q)>>>(*a);
    return (int)cudaGetLastError();
}

/* scratch[0]: how many rows count. */
__global__ void __launch_bounds__(1024)
    count_kernel(const __grid_constant__ brg__cu_entropy a,
                 brg__cu_fault *fault)
{
    double count = 0;
    for (int64_t i = threadIdx.x; i < a.rows; i += blockDim.x)
        count += target_of(a, i, fault) >= 0;
    count = over_block<sum_of>(count);
    if (threadIdx.x == 0)
        a.scratch[0] = count;
}

template <typename T, typename C, int V>
__global__ void entropy_grad_kernel(const __grid_constant__ brg__cu_entropy a,
                                    brg__cu_fault *fault)
{
    const int64_t row = blockIdx.x;
    const T *x = (const T *)a.logits + row * a.width;
    T *out = (T *)a.out + row * a.width;
    const int64_t t = target_of(a, row, fault);
    const double scale = load<double>(a.g, a.loss_dtype, 0) / a.scratch[0];
    const C lse = grown<T>::prepare(((const C *)a.lse)[row]);
    const C factor = (C)scale;
    const C base = (C)(a.smoothing / (double)a.classes);
    const C taken = (C)((1.0 - a.smoothing) * scale);
    for (int64_t i = threadIdx.x * V; i < a.width; i += blockDim.x * V) {
        const pack<T, V> from = *(const pack<T, V> *)(x + i);
        pack<T, V> to;
#pragma unroll
        for (int k = 0; k < V; k++) {
            C v = (grown<T>::of(get<C>(&from.at[k]), lse) - base) * factor;
            v = i + k == t ? v - taken : v;
            to.at[k] = as<T>::of(t < 0 || i + k >= a.classes ? (C)0 : v);
        }
        *(pack<T, V> *)(out + i) = to;
    }
}

int brg__cu_cross_entropy_grad(const brg__cu_queue *q, const brg__cu_entropy *a)
{
    count_kernel<<<1, 1024, 0, stream_of(q)>>>(*a, q->fault);
#define LAUNCH(T, C, V)                                                        \
    entropy_grad_kernel<T, C, V>                                               \
        <<<(unsigned)a->rows, threads_for(a->width), 0, stream_of(q)>>>(       \
            *a, q->fault)
#define LAUNCH_1(T, C) LAUNCH(T, C, 1)
    WITH_ENTROPY(a, LAUNCH);
#undef LAUNCH
#undef LAUNCH_1
    return (int)cudaGetLastError();
}

__global__ void targets_kernel(const __grid_constant__ brg__cu_entropy a,
                               brg__cu_fault *fault)
{
    FOR_EACH(i, a.rows * a.width)
    {
        const int64_t row = i / a.width, c = i % a.width;
        const int64_t t = target_of(a, row, fault);
        const double w = t < 0 ? 0.0 : 1.0 / a.scratch[0];
        const double rest = w * a.smoothing / (double)a.classes;
        store<double>(a.out, a.dtype, i,
                      c >= a.classes ? 0.0
                      : c == t       ? rest + w * (1.0 - a.smoothing)
                                     : rest);
        if (c == 0)
            store<double>(a.weight, a.dtype, row, w);
    }
}

int brg__cu_cross_entropy_targets(const brg__cu_queue *q,
                                  const brg__cu_entropy *a)
{
    count_kernel<<<1, 1024, 0, stream_of(q)>>>(*a, q->fault);
    targets_kernel<<<blocks_for(a->rows * a->width, THREADS), THREADS, 0,
                     stream_of(q)>>>(*a, q->fault);
    return (int)cudaGetLastError();
}

/* ---- Mean of squared differences --------------------------------------------------- */

__global__ void __launch_bounds__(THREADS)
    mse_kernel(const __grid_constant__ brg__cu_mse m)
{
    double sum = 0;
    FOR_EACH(i, m.n)
    {
        const double d =
            load<double>(m.a, m.dtype, i) - load<double>(m.b, m.dtype, i);
        sum += d * d;
    }
    sum = over_block<sum_of>(sum);
    if (threadIdx.x == 0)
        m.scratch[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(BRG__CU_MSE_BLOCKS)
    mse_join_kernel(const __grid_constant__ brg__cu_mse m, unsigned n)
{
    const double sum =
        over_block<sum_of>(threadIdx.x < n ? m.scratch[threadIdx.x] : 0.0);
    if (threadIdx.x == 0)
        store<double>(m.out, m.dtype, 0, sum / (double)m.n);
}

int brg__cu_mse_launch(const brg__cu_queue *q, const brg__cu_mse *m)
{
    unsigned n = m->n > 0 ? blocks_for(m->n, 4 * THREADS) : 0;
    n = n > BRG__CU_MSE_BLOCKS ? BRG__CU_MSE_BLOCKS : n;
    if (n > 0)
        mse_kernel<<<n, THREADS, 0, stream_of(q)>>>(*m);
    mse_join_kernel<<<1, BRG__CU_MSE_BLOCKS, 0, stream_of(q)>>>(*m, n);
    return (int)cudaGetLastError();
}

__global__ void mse_grad_kernel(const __grid_constant__ brg__cu_mse m)
{
    const double scale = load<double>(m.g, m.dtype, 0) * 2.0 / (double)m.n;
    FOR_EACH(i, m.n)
    store<double>(
        m.out, m.dtype, i,
        (load<double>(m.a, m.dtype, i) - load<double>(m.b, m.dtype, i)) *
            scale);
}

int brg__cu_mse_grad_launch(const brg__cu_queue *q, const brg__cu_mse *m)
{
    mse_grad_kernel<<<blocks_for(m->n, THREADS), THREADS, 0, stream_of(q)>>>(
        *m);
    return (int)cudaGetLastError();
}
