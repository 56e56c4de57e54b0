/* SPDX-License-Identifier: Apache-2.0
 * Plain attention over operands of any strides: a warp per query forward, a
 * warp per query (gq) and per key (gk, gv) backward, with the running maximum
 * and sum of the scores, so that no score is kept. For sizes and types that
 * cuDNN does not take, and where it is absent. */
#include "core/cuda/element.cuh"

#define WARPS 4
/* Kernels are made for rows of up to 32 PARTS elements, PARTS to a lane. Short
 * ones take AT_ONCE rows of the other side at a time, whose loads and sums over
 * the warp are on their way together. */
#define MOST_PARTS (BRG__CU_HEAD_MAX / 32)
#define AT_ONCE (PARTS > 2 || sizeof(C) > 4 ? 1 : 8 / PARTS)

/* The warp's row: batch, head, row; false past the last. */
typedef struct row_at {
    int64_t b, h, r;
} row_at;

static __device__ __forceinline__ bool row_of(const brg__cu_attention &a,
                                              int64_t n_rows, row_at *at)
{
    const int64_t i = blockIdx.x * (int64_t)WARPS + threadIdx.x / 32;
    at->r = i % n_rows;
    at->h = i / n_rows % a.n_heads;
    at->b = i / (n_rows * a.n_heads);
    return at->b < a.n_batch;
}

template <typename T>
static __device__ __forceinline__ T *row_ptr(const brg__cu_heads &h,
                                             const row_at &at, int64_t r)
{
    return (T *)h.at + at.b * h.batch + at.h * h.head + r * h.row;
}

/* Lane l holds elements l, l + 32, ... of a row. */
template <int PARTS, typename T, typename C>
static __device__ __forceinline__ void
load_row(C *v, const brg__cu_heads &h, const row_at &at, int64_t r, int n)
{
    const T *p = row_ptr<T>(h, at, r);
#pragma unroll
    for (int k = 0; k < PARTS; k++) {
        const int i = k * 32 + (threadIdx.x & 31);
        v[k] = i < n ? get<C>(p + i * h.col) : (C)0;
    }
}

template <int PARTS, typename T, typename C>
static __device__ __forceinline__ void
store_row(const C *v, const brg__cu_heads &h, const row_at &at, int64_t r,
          int n)
{
    T *p = row_ptr<T>(h, at, r);
#pragma unroll
    for (int k = 0; k < PARTS; k++) {
        const int i = k * 32 + (threadIdx.x & 31);
        if (i < n)
            p[i * h.col] = as<T>::of(v[k]);
    }
}

template <int PARTS, typename C>
static __device__ __forceinline__ C dot(const C *u, const C *v)
{
    C sum = 0;
#pragma unroll
    for (int k = 0; k < PARTS; k++)
        sum += u[k] * v[k];
    return over_warp<sum_of>(sum);
}

static __device__ __forceinline__ float exp_of(float x)
{
    return expf(x);
}

static __device__ __forceinline__ double exp_of(double x)
{
    return exp(x);
}

template <int PARTS, typename T, typename C>
__global__ void __launch_bounds__(32 * WARPS)
    forward_kernel(const __grid_constant__ brg__cu_attention a)
{
    row_at at;
    if (!row_of(a, a.t, &at))
        return;
    C q[PARTS], k[AT_ONCE][PARTS], v[AT_ONCE][PARTS], out[PARTS] = {0};
    load_row<PARTS, T, C>(q, a.q, at, at.r, (int)a.d);
    C top = -INFINITY, sum = 0;
    const int64_t n = a.is_causal ? min(at.r + 1, a.s) : a.s;
    for (int64_t j = 0; j < n; j += AT_ONCE) {
        C score[AT_ONCE], higher = top;
#pragma unroll
        for (int u = 0; u < AT_ONCE; u++) {
            const int64_t at_key = min(j + u, n - 1);
            load_row<PARTS, T, C>(k[u], a.k, at, at_key, (int)a.d);
            load_row<PARTS, T, C>(v[u], a.v, at, at_key, (int)a.d_out);
        }
#pragma unroll
        for (int u = 0; u < AT_ONCE; u++) {
            score[u] = dot<PARTS>(q, k[u]) * (C)a.scale;
            higher = j + u < n ? max_of::join(score[u], higher) : higher;
        }
        const C keep = exp_of(top - higher);
        sum *= keep;
        for (int i = 0; i < PARTS; i++)
            out[i] *= keep;
#pragma unroll
        for (int u = 0; u < AT_ONCE; u++) {
            if (j + u >= n)
                break;
            const C p = exp_of(score[u] - higher);
            sum += p;
            for (int i = 0; i < PARTS; i++)
                out[i] += p * v[u][i];
        }
        top = higher;
    }
    for (int i = 0; i < PARTS; i++)
        out[i] /= sum;
    store_row<PARTS, T, C>(out, a.out, at, at.r, (int)a.d_out);
    if ((threadIdx.x & 31) == 0)
        ((C *)a.lse)[(at.b * a.n_heads + at.h) * a.t + at.r] =
            top + (C)log((double)sum);
}

/* RUN(PARTS, T, C) */
#define WITH_PARTS(a, RUN, T, C)                                               \
    do {                                                                       \
        const int64_t n_ = (a)->d > (a)->d_out ? (a)->d : (a)->d_out;          \
        if (n_ <= 32)                                                          \
            RUN(1, T, C);                                                      \
        else if (n_ <= 64)                                                     \
            RUN(2, T, C);                                                      \
        else if (n_ <= 128)                                                    \
            RUN(4, T, C);                                                      \
        else                                                                   \
            RUN(MOST_PARTS, T, C);                                             \
    } while (0)

static unsigned grid_of(const brg__cu_attention *a, int64_t n_rows)
{
    return brg__cu_grid((a->n_batch * a->n_heads * n_rows + WARPS - 1) / WARPS);
}

int brg__cu_attention_forward(const brg__cu_queue *q,
                              const brg__cu_attention *a)
{
#define RUN(PARTS, T, C)                                                       \
    do {                                                                       \
        forward_kernel<PARTS, T, C>                                            \
            <<<grid_of(a, a->t), 32 * WARPS, 0, stream_of(q)>>>(*a);           \
    } while (0)
#define LAUNCH(T, C) WITH_PARTS(a, RUN, T, C)
    WITH_FLOAT(a->dtype, LAUNCH);
#undef RUN
#undef LAUNCH
    return (int)cudaGetLastError();
}

/* gq, and delta = g . out of the query for the second kernel. */
template <int PARTS, typename T, typename C>
__global__ void __launch_bounds__(32 * WARPS)
    query_kernel(const __grid_constant__ brg__cu_attention a)
{
    row_at at;
    if (!row_of(a, a.t, &at))
        return;
    const int64_t row = (at.b * a.n_heads + at.h) * a.t + at.r;
    C q[PARTS], g[PARTS], out[PARTS], gq[PARTS] = {0};
    C k[AT_ONCE][PARTS], v[AT_ONCE][PARTS];
    load_row<PARTS, T, C>(q, a.q, at, at.r, (int)a.d);
    load_row<PARTS, T, C>(g, a.g, at, at.r, (int)a.d_out);
    load_row<PARTS, T, C>(out, a.out, at, at.r, (int)a.d_out);
    const C delta = dot<PARTS>(g, out), lse = ((const C *)a.lse)[row];
    const int64_t n = a.is_causal ? min(at.r + 1, a.s) : a.s;
    for (int64_t j = 0; j < n; j += AT_ONCE) {
        C ds[AT_ONCE];
#pragma unroll
        for (int u = 0; u < AT_ONCE; u++) {
            const int64_t at_key = min(j + u, n - 1);
            load_row<PARTS, T, C>(k[u], a.k, at, at_key, (int)a.d);
            load_row<PARTS, T, C>(v[u], a.v, at, at_key, (int)a.d_out);
        }
#pragma unroll
        for (int u = 0; u < AT_ONCE; u++) {
            const C p = exp_of(dot<PARTS>(q, k[u]) * (C)a.scale - lse);
            ds[u] = p * (dot<PARTS>(g, v[u]) - delta) * (C)a.scale;
        }
#pragma unroll
        for (int u = 0; u < AT_ONCE; u++) {
            if (j + u >= n)
                break;
            for (int i = 0; i < PARTS; i++)
                gq[i] += ds[u] * k[u][i];
        }
    }
    store_row<PARTS, T, C>(gq, a.gq, at, at.r, (int)a.d);
    if ((threadIdx.x & 31) == 0)
        ((C *)a.delta)[row] = delta;
}

template <int PARTS, typename T, typename C>
__global__ void __launch_bounds__(32 * WARPS)
    key_kernel(const __grid_constant__ brg__cu_attention a)
{
    row_at at;
    if (!row_of(a, a.s, &at))
        return;
    const int64_t rows = (at.b * a.n_heads + at.h) * a.t;
    C k[PARTS], v[PARTS], gk[PARTS] = {0}, gv[PARTS] = {0};
    C q[AT_ONCE][PARTS], g[AT_ONCE][PARTS];
    load_row<PARTS, T, C>(k, a.k, at, at.r, (int)a.d);
    load_row<PARTS, T, C>(v, a.v, at, at.r, (int)a.d_out);
    for (int64_t i = a.is_causal ? at.r : 0; i < a.t; i += AT_ONCE) {
        C p[AT_ONCE], ds[AT_ONCE], lse[AT_ONCE], delta[AT_ONCE];
#pragma unroll
        for (int u = 0; u < AT_ONCE; u++) {
            const int64_t at_query = min(i + u, a.t - 1);
            load_row<PARTS, T, C>(q[u], a.q, at, at_query, (int)a.d);
            load_row<PARTS, T, C>(g[u], a.g, at, at_query, (int)a.d_out);
            lse[u] = ((const C *)a.lse)[rows + at_query];
            delta[u] = ((const C *)a.delta)[rows + at_query];
        }
#pragma unroll
        for (int u = 0; u < AT_ONCE; u++) {
            p[u] = exp_of(dot<PARTS>(q[u], k) * (C)a.scale - lse[u]);
            ds[u] = p[u] * (dot<PARTS>(g[u], v) - delta[u]) * (C)a.scale;
        }
#pragma unroll
        for (int u = 0; u < AT_ONCE; u++) {
            if (i + u >= a.t)
                break;
            for (int c = 0; c < PARTS; c++) {
                gk[c] += ds[u] * q[u][c];
                gv[c] += p[u] * g[u][c];
            }
        }
    }
    store_row<PARTS, T, C>(gk, a.gk, at, at.r, (int)a.d);
    store_row<PARTS, T, C>(gv, a.gv, at, at.r, (int)a.d_out);
}

int brg__cu_attention_backward(const brg__cu_queue *q,
                               const brg__cu_attention *a)
{
#define RUN(PARTS, T, C)                                                       \
    do {                                                                       \
        query_kernel<PARTS, T, C>                                              \
            <<<grid_of(a, a->t), 32 * WARPS, 0, stream_of(q)>>>(*a);           \
        key_kernel<PARTS, T, C>                                                \
            <<<grid_of(a, a->s), 32 * WARPS, 0, stream_of(q)>>>(*a);           \
    } while (0)
#define LAUNCH(T, C) WITH_PARTS(a, RUN, T, C)
    WITH_FLOAT(a->dtype, LAUNCH);
#undef RUN
#undef LAUNCH
    return (int)cudaGetLastError();
}

/* ---- Scores as matrices: what lies between the products ---------------------- */

/* A block per row of scores: p = softmax(scale * scores), zero where masked. */
template <typename T, typename C>
__global__ void scores_kernel(const __grid_constant__ brg__cu_scores a)
{
    const int64_t row = blockIdx.x, at = row * a.s;
    const int64_t n = a.is_causal ? min(row % a.t + 1, a.s) : a.s;
    const C *x = (const C *)a.scores + at;
    T *p = (T *)a.p + at;
    const C scale = (C)a.scale;
    C top = -INFINITY, sum = 0;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x)
        top = max_of::join(top, x[i] * scale);
    top = over_block<max_of>(top);
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x)
        sum += exp_of(x[i] * scale - top);
    sum = over_block<sum_of>(sum);
    const C factor = 1 / sum;
    for (int64_t i = threadIdx.x; i < a.s; i += blockDim.x)
        p[i] = as<T>::of(i < n ? exp_of(x[i] * scale - top) * factor : (C)0);
    if (threadIdx.x == 0)
        ((C *)a.lse)[row] = top + (C)log((double)sum);
}

/* p again from lse, and ds = p (dp - delta) scale. */
template <typename T, typename C>
__global__ void scores_grad_kernel(const __grid_constant__ brg__cu_scores a)
{
    const int64_t row = blockIdx.x, at = row * a.s;
    const int64_t n = a.is_causal ? min(row % a.t + 1, a.s) : a.s;
    const C *x = (const C *)a.scores + at, *dp = (const C *)a.dp + at;
    const C scale = (C)a.scale, lse = ((const C *)a.lse)[row];
    const C delta = ((const C *)a.delta)[row];
    for (int64_t i = threadIdx.x; i < a.s; i += blockDim.x) {
        const C v = i < n ? exp_of(x[i] * scale - lse) : (C)0;
        ((T *)a.p)[at + i] = as<T>::of(v);
        ((T *)a.ds)[at + i] =
            as<T>::of(i < n ? v * (dp[i] - delta) * scale : (C)0);
    }
}

/* delta = g . out of every query. */
template <int PARTS, typename T, typename C>
__global__ void __launch_bounds__(32 * WARPS)
    delta_kernel(const __grid_constant__ brg__cu_attention a)
{
    row_at at;
    if (!row_of(a, a.t, &at))
        return;
    C g[PARTS], out[PARTS];
    load_row<PARTS, T, C>(g, a.g, at, at.r, (int)a.d_out);
    load_row<PARTS, T, C>(out, a.out, at, at.r, (int)a.d_out);
    const C delta = dot<PARTS>(g, out);
    if ((threadIdx.x & 31) == 0)
        ((C *)a.delta)[(at.b * a.n_heads + at.h) * a.t + at.r] = delta;
}

static int threads_for(int64_t n)
{
    return n <= 256 ? 64 : n <= 1024 ? 128 : 256;
}

int brg__cu_scores_softmax(const brg__cu_queue *q, const brg__cu_scores *a)
{
#define LAUNCH(T, C)                                                           \
    scores_kernel<T, C>                                                        \
        <<<brg__cu_grid(a->rows), threads_for(a->s), 0, stream_of(q)>>>(*a)
    WITH_FLOAT(a->dtype, LAUNCH);
#undef LAUNCH
    return (int)cudaGetLastError();
}

int brg__cu_scores_grad(const brg__cu_queue *q, const brg__cu_scores *a)
{
#define LAUNCH(T, C)                                                           \
    scores_grad_kernel<T, C>                                                   \
        <<<brg__cu_grid(a->rows), threads_for(a->s), 0, stream_of(q)>>>(*a)
    WITH_FLOAT(a->dtype, LAUNCH);
#undef LAUNCH
    return (int)cudaGetLastError();
}

int brg__cu_attention_delta(const brg__cu_queue *q, const brg__cu_attention *a)
{
#define RUN(PARTS, T, C)                                                       \
    do {                                                                       \
        delta_kernel<PARTS, T, C>                                              \
            <<<grid_of(a, a->t), 32 * WARPS, 0, stream_of(q)>>>(*a);           \
    } while (0)
#define LAUNCH(T, C) WITH_PARTS(a, RUN, T, C)
    WITH_FLOAT(a->dtype, LAUNCH);
#undef RUN
#undef LAUNCH
    return (int)cudaGetLastError();
}
