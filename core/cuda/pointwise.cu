/* SPDX-License-Identifier: Apache-2.0
 * Pointwise rows over any strides and dtypes, one kernel per row and compute
 * type; and filling. */
#include "core/cuda/pointwise.cuh"
#include "core/cuda/pointwise_launch.cuh"

template <int N>
static __device__ __forceinline__ void locate(const brg__cu_pointwise &w,
                                              int64_t i, int64_t *at)
{
    for (int k = 0; k <= N; k++)
        at[k] = 0;
    for (int d = w.ndim - 1; d >= 0; d--) {
        int64_t index;
        if (d == 0) {
            index = i;
        } else if (w.n <= UINT32_MAX) {
            const uint32_t rest = (uint32_t)i / (uint32_t)w.shape[d];
            index = (uint32_t)i - rest * (uint32_t)w.shape[d];
            i = rest;
        } else {
            index = i % w.shape[d];
            i /= w.shape[d];
        }
        for (int k = 0; k <= N; k++)
            at[k] += index * w.operand[k].stride[d];
    }
}

template <typename C> static __device__ __noinline__ C
load_any(const void *p, int dtype, int64_t i)
{
    return load<C>(p, dtype, i);
}

template <typename C> static __device__ __noinline__ void
store_any(void *p, int dtype, int64_t i, C v)
{
    store<C>(p, dtype, i, v);
}

template <typename C> static __device__ __forceinline__ C scalar(double x)
{
    return (C)x;
}

/* Infinite bounds of clamp become the type's. */
template <> __device__ __forceinline__ int64_t scalar<int64_t>(double x)
{
    return x >= 9223372036854775808.0    ? INT64_MAX
           : x >= -9223372036854775808.0 ? (int64_t)x
                                         : INT64_MIN;
}

template <typename C, typename Row, int N>
__global__ void __launch_bounds__(THREADS)
    strided_kernel(const __grid_constant__ brg__cu_pointwise w)
{
    const C p[2] = {scalar<C>(w.p[0]), scalar<C>(w.p[1])};
    FOR_EACH(i, w.n)
    {
        int64_t at[4];
        C v[3] = {0, 0, 0};
        locate<N>(w, i, at);
        for (int k = 0; k < N; k++)
            v[k] = load_any<C>(w.operand[k + 1].at, w.operand[k + 1].dtype,
                               at[k + 1]);
        store_any<C>(w.operand[0].at, w.operand[0].dtype, at[0],
                     Row::template of<C>(v[0], v[1], v[2], p));
    }
}

template <typename C, typename Row, int N>
static void launch(const brg__cu_queue *q, const brg__cu_pointwise *w)
{
    strided_kernel<C, Row, N>
        <<<blocks_for(w->n, THREADS), THREADS, 0, stream_of(q)>>>(*w);
}

#define ALL(name, n)                                                           \
    {launch<float, row_##name, n>, launch<double, row_##name, n>,              \
     launch<int64_t, row_##name, n>},
#define REAL(name, n)                                                          \
    {launch<float, row_##name, n>, launch<double, row_##name, n>, NULL},
#define SLOT_FLT REAL
#define SLOT_FLT_BOOL REAL
#define SLOT_ANY ALL
#define SLOT_ANY_BOOL ALL
#define SLOT_COND ALL
#define SLOT_CAST ALL
#define BRG_UNARY(cls, name, ...) SLOT_##cls(name, 1)
#define BRG_BINARY(cls, name, ...) SLOT_##cls(name, 2)
#define BRG_TERNARY(cls, name, ...) SLOT_##cls(name, 3)
#define BRG_KERNEL(name, ...)
#define BRG_KERNEL_NOGRAD(name, ...)
#define BRG_VIEW(name, ...)
static const pointwise_fn table[][3] = {
#include "core/ops/ops.def"
#include "core/ops/ops_undef.h"
};

int brg__cu_pointwise_launch(const brg__cu_queue *q,
                             const brg__cu_pointwise *w)
{
    if (!launch_packed(q, w))
        table[w->row][w->ctype](q, w);
    return (int)cudaGetLastError();
}

__global__ void __launch_bounds__(THREADS)
    fill_kernel(const __grid_constant__ brg__cu_pointwise w, double value)
{
    FOR_EACH(i, w.n)
    {
        int64_t at[1];
        locate<0>(w, i, at);
        store_any<double>(w.operand[0].at, w.operand[0].dtype, at[0], value);
    }
}

int brg__cu_fill(const brg__cu_queue *q, const brg__cu_pointwise *w,
                 double value)
{
    fill_kernel<<<blocks_for(w->n, THREADS), THREADS, 0, stream_of(q)>>>(
        *w, value);
    return (int)cudaGetLastError();
}
