/* SPDX-License-Identifier: Apache-2.0
 * Pointwise rows over row-major memory of one float dtype: 16 bytes at a
 * time, computed in f32. */
#include "core/cuda/pointwise.cuh"
#include "core/cuda/pointwise_launch.cuh"

struct packed {
    const void *in[3];
    void *out;
    int64_t n;
    int64_t period[3]; /* vectors after which an input begins again; 0: none */
    float p[2];
};

/* A row on elements of T. Those of 16 bits have no use for the last bits of an
 * exponential. */
template <typename T, typename Row> struct row_on : Row {
};

static __device__ __forceinline__ float quick_sigmoid(float x)
{
    return __fdividef(1.0f, 1.0f + __expf(-x));
}

struct quick_gelu {
    template <typename C>
    static __device__ __forceinline__ C of(C a, C, C, const C *)
    {
        return a * quick_sigmoid(1.5957691216057308f * a *
                                 (1 + 0.044715f * a * a));
    }
};

struct quick_gelu_grad {
    template <typename C>
    static __device__ __forceinline__ C of(C g, C a, C, const C *)
    {
        const C s = quick_sigmoid(1.5957691216057308f * a *
                                  (1 + 0.044715f * a * a));
        const C du = 1.5957691216057308f * (1 + 0.134145f * a * a);
        return g * (s + a * s * (1 - s) * du);
    }
};

template <> struct row_on<bf16, row_gelu> : quick_gelu {
};
template <> struct row_on<f16, row_gelu> : quick_gelu {
};
template <> struct row_on<bf16, row_gelu_grad> : quick_gelu_grad {
};
template <> struct row_on<f16, row_gelu_grad> : quick_gelu_grad {
};

/* Where vector i of input k lies. */
static __device__ __forceinline__ int64_t place(const packed &k, int input,
                                                int64_t i)
{
    return k.period[input] ? i % k.period[input] : i;
}

template <typename T, typename Row, int N>
__global__ void __launch_bounds__(THREADS) packed_kernel(const packed k)
{
    constexpr int V = 16 / sizeof(T);
    const T *a = (const T *)k.in[0], *b = (const T *)k.in[1];
    const T *c = (const T *)k.in[2];
    T *y = (T *)k.out;
    const int64_t whole = k.n / V;
    FOR_EACH(i, whole)
    {
        vec<T> va = ((const vec<T> *)a)[place(k, 0, i)], vb, vc, vy;
        if (N > 1)
            vb = ((const vec<T> *)b)[place(k, 1, i)];
        if (N > 2)
            vc = ((const vec<T> *)c)[place(k, 2, i)];
        for (int j = 0; j < V; j++)
            vy.at[j] = as<T>::of(row_on<T, Row>::template of<float>(
                get<float>(&va.at[j]), N > 1 ? get<float>(&vb.at[j]) : 0.0f,
                N > 2 ? get<float>(&vc.at[j]) : 0.0f, k.p));
        ((vec<T> *)y)[i] = vy;
    }
    const int64_t rest = whole * V + threadIdx.x;
    if (blockIdx.x == 0 && rest < k.n)
        y[rest] = as<T>::of(row_on<T, Row>::template of<float>(
            get<float>(a + rest), N > 1 ? get<float>(b + rest) : 0.0f,
            N > 2 ? get<float>(c + rest) : 0.0f, k.p));
}

template <typename Row, int N>
static void launch(const brg__cu_queue *q, const brg__cu_pointwise *w)
{
    packed k = {{w->operand[1].at, w->operand[2].at, w->operand[3].at},
                w->operand[0].at,
                w->n,
                {0, 0, 0},
                {(float)w->p[0], (float)w->p[1]}};
    const int dtype = w->operand[0].dtype;
    for (int i = 0; i < N && w->ndim == 2; i++)
        if (w->operand[i + 1].stride[0] == 0)
            k.period[i] = w->shape[1] / (dtype == F32 ? 4 : 8);
    const int per_block = THREADS * (dtype == F32 ? 4 : 8);
    const unsigned grid = blocks_for(w->n, per_block);
    if (dtype == F32)
        packed_kernel<float, Row, N><<<grid, THREADS, 0, stream_of(q)>>>(k);
    else if (dtype == BF16)
        packed_kernel<bf16, Row, N><<<grid, THREADS, 0, stream_of(q)>>>(k);
    else
        packed_kernel<f16, Row, N><<<grid, THREADS, 0, stream_of(q)>>>(k);
}

/* Rows whose output is bool, or whose inputs differ, have none. */
#define SLOT_FLT(name, n) launch<row_##name, n>,
#define SLOT_ANY(name, n) launch<row_##name, n>,
#define SLOT_FLT_BOOL(name, n) NULL,
#define SLOT_ANY_BOOL(name, n) NULL,
#define SLOT_COND(name, n) NULL,
#define SLOT_CAST(name, n) NULL,
#define BRG_UNARY(cls, name, ...) SLOT_##cls(name, 1)
#define BRG_BINARY(cls, name, ...) SLOT_##cls(name, 2)
#define BRG_TERNARY(cls, name, ...) SLOT_##cls(name, 3)
#define BRG_KERNEL(name, ...)
#define BRG_KERNEL_NOGRAD(name, ...)
#define BRG_VIEW(name, ...)
static const pointwise_fn table[] = {
#include "core/ops/ops.def"
#include "core/ops/ops_undef.h"
};

bool launch_packed(const brg__cu_queue *q, const brg__cu_pointwise *w)
{
    if (!w->is_packed || !table[w->row])
        return false;
    table[w->row](q, w);
    return true;
}
