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

static __device__ __forceinline__ float exp_of(float x)
{
    return expf(x);
}

static __device__ __forceinline__ double exp_of(double x)
{
    return exp(x);
}

/* scratch[row]: the row's loss; scratch[rows + row]: 1 if it counts. */
template <typename T, typename C>
__global__ void entropy_kernel(const __grid_constant__ brg__cu_entropy a,
                               brg__cu_fault *fault)
{
    const int64_t row = blockIdx.x;
    const T *x = (const T *)a.logits + row * a.classes;
    const int64_t t = target_of(a, row, fault);
    if (t < 0) {
        if (threadIdx.x == 0) {
            a.scratch[row] = a.scratch[a.rows + row] = 0.0;
            ((C *)a.lse)[row] = 0;
        }
        return;
    }
    C top = -INFINITY, sum = 0, plain = 0;
    for (int64_t i = threadIdx.x; i < a.classes; i += blockDim.x)
        top = max_of::join(top, get<C>(x + i));
    top = over_block<max_of>(top);
    for (int64_t i = threadIdx.x; i < a.classes; i += blockDim.x) {
        const C v = get<C>(x + i);
        sum += exp_of(v - top);
        plain += v;
    }
    sum = over_block<sum_of>(sum);
    plain = over_block<sum_of>(plain);
    if (threadIdx.x != 0)
        return;
    const double lse = (double)top + log((double)sum), e = a.smoothing;
    a.scratch[row] = (1.0 - e) * (lse - get<double>(x + t)) +
                     (e != 0 ? e * (lse - (double)plain / (double)a.classes)
                             : 0.0);
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
        store<double>(a.loss, a.dtype, 0, sum / count);
}

static int threads_for(int64_t n)
{
    return n <= 64 ? 32 : n <= 1024 ? 128 : n <= 8192 ? 256 : 512;
}

int brg__cu_cross_entropy(const brg__cu_queue *q, const brg__cu_entropy *a)
{
#define LAUNCH(T, C)                                                           \
    entropy_kernel<T, C><<<(unsigned)a->rows, threads_for(a->classes), 0,      \
                           stream_of(q)>>>(*a, q->fault)
    if (a->rows > 0)
        WITH_FLOAT(a->dtype, LAUNCH);
#undef LAUNCH
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

template <typename T, typename C>
__global__ void entropy_grad_kernel(const __grid_constant__ brg__cu_entropy a,
                                    brg__cu_fault *fault)
{
    const int64_t row = blockIdx.x;
    const T *x = (const T *)a.logits + row * a.classes;
    T *out = (T *)a.out + row * a.classes;
    const int64_t t = target_of(a, row, fault);
    const double scale = load<double>(a.g, a.dtype, 0) / a.scratch[0];
    const C lse = ((const C *)a.lse)[row];
    const C base = (C)(a.smoothing / (double)a.classes);
    const C taken = (C)((1.0 - a.smoothing) * scale);
    for (int64_t i = threadIdx.x; i < a.classes; i += blockDim.x) {
        C v = t < 0 ? (C)0 : (exp_of(get<C>(x + i) - lse) - base) * (C)scale;
        out[i] = as<T>::of(i == t ? v - taken : v);
    }
}

int brg__cu_cross_entropy_grad(const brg__cu_queue *q,
                               const brg__cu_entropy *a)
{
    count_kernel<<<1, 1024, 0, stream_of(q)>>>(*a, q->fault);
#define LAUNCH(T, C)                                                           \
    entropy_grad_kernel<T, C>                                                  \
        <<<(unsigned)a->rows, threads_for(a->classes), 0, stream_of(q)>>>(     \
            *a, q->fault)
    WITH_FLOAT(a->dtype, LAUNCH);
#undef LAUNCH
    return (int)cudaGetLastError();
}

__global__ void targets_kernel(const __grid_constant__ brg__cu_entropy a,
                               brg__cu_fault *fault)
{
    FOR_EACH(i, a.rows * a.classes)
    {
        const int64_t row = i / a.classes, c = i % a.classes;
        const int64_t t = target_of(a, row, fault);
        const double w = t < 0 ? 0.0 : 1.0 / a.scratch[0];
        const double rest = w * a.smoothing / (double)a.classes;
        store<double>(a.out, a.dtype, i,
                      rest + (c == t ? w * (1.0 - a.smoothing) : 0.0));
        if (c == 0)
            store<double>(a.weight, a.dtype, row, w);
    }
}

int brg__cu_cross_entropy_targets(const brg__cu_queue *q,
                                  const brg__cu_entropy *a)
{
    count_kernel<<<1, 1024, 0, stream_of(q)>>>(*a, q->fault);
    targets_kernel<<<blocks_for(a->rows * a->classes, THREADS), THREADS, 0,
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
    store<double>(m.out, m.dtype, i,
                  (load<double>(m.a, m.dtype, i) -
                   load<double>(m.b, m.dtype, i)) *
                      scale);
}

int brg__cu_mse_grad_launch(const brg__cu_queue *q, const brg__cu_mse *m)
{
    mse_grad_kernel<<<blocks_for(m->n, THREADS), THREADS, 0, stream_of(q)>>>(
        *m);
    return (int)cudaGetLastError();
}
