/* SPDX-License-Identifier: Apache-2.0
 * Layer norm. Rows of up to 2048 16-bit (1024 32-bit) elements stay in the
 * registers of a warp, so that each element is read once; the gradient adds up
 * those of weight and bias on the way. Other rows: a block per row, read two or
 * three times, mostly from the cache. 16-bit floats are computed in f32; sums
 * over rows in a fixed order, those of many rows in f64. */
#include "core/cuda/element.cuh"

#define COLUMNS 32
#define DEPTH 8

/* ---- Rows in registers ------------------------------------------------------------ */

#define WARPS 8
#define MOST_CHUNKS 8

static bool is_aligned(const void *p)
{
    return (uintptr_t)p % 16 == 0;
}

/* How many chunks a row has; 0 if it is not to be kept in registers. */
static int chunks_of(const brg__cu_norm *a)
{
    if (a->dtype == F64)
        return 0;
    const int64_t v = a->dtype == F32 ? 4 : 8;
    const bool fits =
        a->n % v == 0 && a->n <= MOST_CHUNKS * 32 * v && is_aligned(a->x) &&
        is_aligned(a->w) && is_aligned(a->b) && is_aligned(a->g) &&
        is_aligned(a->y) && is_aligned(a->gx) && is_aligned(a->add);
    return fits ? (int)((a->n + 32 * v - 1) / (32 * v)) : 0;
}

template <typename T, int CHUNKS>
static __device__ __forceinline__ void
load_row(vec<T> row[CHUNKS], const void *base, int64_t n, int lane)
{
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        const int64_t i = c * vec<T>::warp + lane * vec<T>::n;
        if (i < n)
            row[c] = *(const vec<T> *)((const T *)base + i);
        else
            row[c] = {};
    }
}

template <typename T, int CHUNKS>
__global__ void __launch_bounds__(32 * WARPS)
    norm_in_registers(const __grid_constant__ brg__cu_norm a)
{
    constexpr int V = vec<T>::n;
    const int lane = threadIdx.x & 31;
    const int64_t row = blockIdx.x * (int64_t)WARPS + (threadIdx.x >> 5);
    if (row >= a.rows)
        return;
    vec<T> x[CHUNKS];
    load_row<T, CHUNKS>(x, (const T *)a.x + row * a.n, a.n, lane);
    float sum = 0, squares = 0;
#pragma unroll
    for (int c = 0; c < CHUNKS; c++)
#pragma unroll
        for (int k = 0; k < V; k++)
            sum += get<float>(&x[c].at[k]);
    const float mean = over_warp<sum_of>(sum) / (float)a.n;
#pragma unroll
    for (int c = 0; c < CHUNKS; c++)
#pragma unroll
        for (int k = 0; k < V; k++) {
            const float d = get<float>(&x[c].at[k]) - mean;
            if (c * vec<T>::warp + lane * V < a.n)
                squares += d * d;
        }
    const float var = over_warp<sum_of>(squares) / (float)a.n;
    const float rstd = 1.0f / sqrtf(var + (float)a.eps);
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        const int64_t i = c * vec<T>::warp + lane * V;
        if (i >= a.n)
            continue;
        vec<T> w, b, y;
        if (a.w)
            w = *(const vec<T> *)((const T *)a.w + i);
        if (a.b)
            b = *(const vec<T> *)((const T *)a.b + i);
#pragma unroll
        for (int k = 0; k < V; k++) {
            float v = (get<float>(&x[c].at[k]) - mean) * rstd;
            v = a.w ? v * get<float>(&w.at[k]) : v;
            y.at[k] = as<T>::of(a.b ? v + get<float>(&b.at[k]) : v);
        }
        *(vec<T> *)((T *)a.y + row * a.n + i) = y;
    }
    if (lane == 0) {
        ((float *)a.mean)[row] = mean;
        ((float *)a.rstd)[row] = rstd;
    }
}

/* The sums of the block's warps to `out`, added up in the order of the warps. */
template <int CHUNKS, int V>
static __device__ __forceinline__ void
join_warps(const float sums[CHUNKS][V], int64_t n, double *out)
{
    constexpr int AT_ONCE = CHUNKS * V > 48 ? CHUNKS / 2 : CHUNKS;
    constexpr int WIDTH = AT_ONCE * 32 * V;
    __shared__ float all[WARPS][WIDTH];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#pragma unroll
    for (int from = 0; from < CHUNKS; from += AT_ONCE) {
        __syncthreads();
#pragma unroll
        for (int c = 0; c < AT_ONCE; c++)
#pragma unroll
            for (int k = 0; k < V; k++)
                all[warp][(c * V + k) * 32 + lane] = sums[from + c][k];
        __syncthreads();
        for (int at = threadIdx.x; at < WIDTH; at += blockDim.x) {
            const int64_t i = from * 32 * V + (at / (32 * V)) * 32 * V +
                              (at & 31) * V + (at >> 5) % V;
            float sum = all[0][at];
            for (int w = 1; w < WARPS; w++)
                sum += all[w][at];
            if (i < n)
                out[i] = (double)sum;
        }
    }
}

/* The gradient of an element, rounded, plus r. */
template <typename T, typename C>
static __device__ __forceinline__ T plus(C gx, T r)
{
    const T rounded = as<T>::of(gx);
    return as<T>::of(get<C>(&rounded) + get<C>(&r));
}

/* Keeps the compiler from holding on to what it has made of v. */
template <typename T> static __device__ __forceinline__ void forget(vec<T> &v)
{
    uint4 *bits = (uint4 *)&v;
    asm volatile("" : "+r"(bits->x), "+r"(bits->y), "+r"(bits->z),
                      "+r"(bits->w));
}

/* From the nearest cache: registers are for what differs from row to row. */
template <typename T>
static __device__ __forceinline__ vec<T> weights_at(const brg__cu_norm &a,
                                                    int64_t i)
{
    return a.w && i < a.n ? *(const vec<T> *)((const T *)a.w + i) : vec<T>{};
}

/* gx = rstd (g w - s0 - xhat s1), and `add`; the block's sums of g xhat and of g
 * go to its partials. */
template <typename T, int CHUNKS>
__global__ void __launch_bounds__(32 * WARPS, CHUNKS <= 3 ? 2 : 1)
    norm_grad_in_registers(const __grid_constant__ brg__cu_norm a)
{
    constexpr int V = vec<T>::n;
    const int lane = threadIdx.x & 31;
    float gw[CHUNKS][V] = {}, gb[CHUNKS][V] = {};
    for (int64_t row = blockIdx.x * (int64_t)WARPS + (threadIdx.x >> 5);
         row < a.rows; row += (int64_t)gridDim.x * WARPS) {
        const float mean = ((const float *)a.mean)[row];
        const float rstd = ((const float *)a.rstd)[row];
        vec<T> x[CHUNKS], g[CHUNKS], r[CHUNKS];
        load_row<T, CHUNKS>(x, (const T *)a.x + row * a.n, a.n, lane);
        load_row<T, CHUNKS>(g, (const T *)a.g + row * a.n, a.n, lane);
        if (a.add)
            load_row<T, CHUNKS>(r, (const T *)a.add + row * a.n, a.n, lane);
        float s0 = 0, s1 = 0;
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            const vec<T> w = weights_at<T>(a, c * vec<T>::warp + lane * V);
#pragma unroll
            for (int k = 0; k < V; k++) {
                const float h = (get<float>(&x[c].at[k]) - mean) * rstd;
                const float v = get<float>(&g[c].at[k]);
                const float vw = a.w ? v * get<float>(&w.at[k]) : v;
                s0 += vw;
                s1 += vw * h;
                gw[c][k] += v * h;
                gb[c][k] += v;
            }
        }
        s0 = over_warp<sum_of>(s0) / (float)a.n;
        s1 = over_warp<sum_of>(s1) / (float)a.n;
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            const int64_t i = c * vec<T>::warp + lane * V;
            if (i >= a.n)
                continue;
            const vec<T> w = weights_at<T>(a, i);
            forget(x[c]);
            forget(g[c]);
            vec<T> out;
#pragma unroll
            for (int k = 0; k < V; k++) {
                const float h = (get<float>(&x[c].at[k]) - mean) * rstd;
                const float v = get<float>(&g[c].at[k]);
                const float vw = a.w ? v * get<float>(&w.at[k]) : v;
                const float made = rstd * (vw - s0 - h * s1);
                out.at[k] =
                    a.add ? plus<T>(made, r[c].at[k]) : as<T>::of(made);
            }
            *(vec<T> *)((T *)a.gx + row * a.n + i) = out;
        }
    }
    double *partials = (double *)a.partials + 2 * blockIdx.x * a.n;
    join_warps<CHUNKS, V>(gw, a.n, partials);
    join_warps<CHUNKS, V>(gb, a.n, partials + a.n);
}

#define WITH_CHUNKS(T, n, LAUNCH)                                              \
    switch (n) {                                                               \
    case 1:                                                                    \
        LAUNCH(T, 1);                                                          \
        break;                                                                 \
    case 2:                                                                    \
        LAUNCH(T, 2);                                                          \
        break;                                                                 \
    case 3:                                                                    \
        LAUNCH(T, 3);                                                          \
        break;                                                                 \
    case 4:                                                                    \
        LAUNCH(T, 4);                                                          \
        break;                                                                 \
    case 5:                                                                    \
    case 6:                                                                    \
        LAUNCH(T, 6);                                                          \
        break;                                                                 \
    default:                                                                   \
        LAUNCH(T, MOST_CHUNKS);                                                \
    }

#define WITH_TYPE(dtype, n, LAUNCH)                                            \
    if ((dtype) == F32) {                                                      \
        WITH_CHUNKS(float, n, LAUNCH)                                          \
    } else if ((dtype) == BF16) {                                              \
        WITH_CHUNKS(bf16, n, LAUNCH)                                           \
    } else {                                                                   \
        WITH_CHUNKS(f16, n, LAUNCH)                                            \
    }

/* ---- Other rows ----------------------------------------------------------------------- */

/* Short rows need no large block. */
static int threads_for(int64_t n)
{
    return n <= 64 ? 32 : n <= 512 ? 64 : n <= 1024 ? 128 : 256;
}

template <typename T, typename C>
__global__ void layer_norm_kernel(const __grid_constant__ brg__cu_norm a)
{
    const T *x = (const T *)a.x + blockIdx.x * a.n;
    const T *w = (const T *)a.w, *b = (const T *)a.b;
    T *y = (T *)a.y + blockIdx.x * a.n;
    C sum = 0, squares = 0;
    for (int64_t i = threadIdx.x; i < a.n; i += blockDim.x)
        sum += get<C>(x + i);
    const C mean = over_block<sum_of>(sum) / (C)a.n;
    for (int64_t i = threadIdx.x; i < a.n; i += blockDim.x) {
        const C d = get<C>(x + i) - mean;
        squares += d * d;
    }
    const C var = over_block<sum_of>(squares) / (C)a.n;
    const C rstd = (C)1 / (C)sqrt(var + (C)a.eps);
    for (int64_t i = threadIdx.x; i < a.n; i += blockDim.x) {
        C v = (get<C>(x + i) - mean) * rstd;
        v = w ? v * get<C>(w + i) : v;
        y[i] = as<T>::of(b ? v + get<C>(b + i) : v);
    }
    if (threadIdx.x == 0) {
        ((C *)a.mean)[blockIdx.x] = mean;
        ((C *)a.rstd)[blockIdx.x] = rstd;
    }
}

int brg__cu_layer_norm(const brg__cu_queue *q, const brg__cu_norm *a)
{
    const int chunks = chunks_of(a);
    if (chunks > 0) {
#define LAUNCH(T, N)                                                           \
    norm_in_registers<T, N><<<(unsigned)((a->rows + WARPS - 1) / WARPS),       \
                              32 * WARPS, 0, stream_of(q)>>>(*a)
        WITH_TYPE(a->dtype, chunks, LAUNCH)
#undef LAUNCH
        return (int)cudaGetLastError();
    }
#define LAUNCH(T, C)                                                           \
    layer_norm_kernel<T, C>                                                    \
        <<<(unsigned)a->rows, threads_for(a->n), 0, stream_of(q)>>>(*a)
    WITH_FLOAT(a->dtype, LAUNCH);
#undef LAUNCH
    return (int)cudaGetLastError();
}

/* gx = rstd (g w - s0 - xhat s1), and `add`. */
template <typename T, typename C>
__global__ void layer_norm_grad_kernel(const __grid_constant__ brg__cu_norm a)
{
    const int64_t row = blockIdx.x * a.n;
    const T *x = (const T *)a.x + row, *g = (const T *)a.g + row;
    const T *w = (const T *)a.w;
    T *gx = (T *)a.gx + row;
    const C mean = ((const C *)a.mean)[blockIdx.x];
    const C rstd = ((const C *)a.rstd)[blockIdx.x];
    C s0 = 0, s1 = 0;
    for (int64_t i = threadIdx.x; i < a.n; i += blockDim.x) {
        const C gw = get<C>(g + i) * (w ? get<C>(w + i) : (C)1);
        s0 += gw;
        s1 += gw * (get<C>(x + i) - mean) * rstd;
    }
    s0 = over_block<sum_of>(s0) / (C)a.n;
    s1 = over_block<sum_of>(s1) / (C)a.n;
    for (int64_t i = threadIdx.x; i < a.n; i += blockDim.x) {
        const C gw = get<C>(g + i) * (w ? get<C>(w + i) : (C)1);
        const C h = (get<C>(x + i) - mean) * rstd;
        const C made = rstd * (gw - s0 - h * s1);
        gx[i] = a.add ? plus<T>(made, ((const T *)a.add)[row + i])
                      : as<T>::of(made);
    }
}

#define COLUMNS 32
#define DEPTH 8

/* Sums of g xhat and g over a share of the rows. */
template <typename T, typename C>
__global__ void __launch_bounds__(COLUMNS *DEPTH)
    layer_norm_sums_kernel(const __grid_constant__ brg__cu_norm a)
{
    const int64_t i = blockIdx.x * (int64_t)COLUMNS + threadIdx.x;
    const int64_t from = a.rows * blockIdx.y / a.n_splits;
    const int64_t to = a.rows * (blockIdx.y + 1) / a.n_splits;
    double sum_w = 0, sum_b = 0;
    for (int64_t r = from + threadIdx.y; i < a.n && r < to; r += DEPTH) {
        const C g = get<C>((const T *)a.g + r * a.n + i);
        const C x = get<C>((const T *)a.x + r * a.n + i);
        sum_w +=
            (double)(g * (x - ((const C *)a.mean)[r]) * ((const C *)a.rstd)[r]);
        sum_b += (double)g;
    }
    __shared__ double part[2][DEPTH][COLUMNS];
    part[0][threadIdx.y][threadIdx.x] = sum_w;
    part[1][threadIdx.y][threadIdx.x] = sum_b;
    __syncthreads();
    if (threadIdx.y > 1 || i >= a.n)
        return;
    double all = 0;
    for (int k = 0; k < DEPTH; k++)
        all += part[threadIdx.y][k][threadIdx.x];
    ((double *)a.partials)[(2 * (int64_t)blockIdx.y + threadIdx.y) * a.n + i] =
        all;
}

/* blockIdx.y: 0 for gw, 1 for gb. */
template <typename T, typename C>
__global__ void __launch_bounds__(COLUMNS *DEPTH)
    layer_norm_join_kernel(const __grid_constant__ brg__cu_norm a)
{
    const int64_t i = blockIdx.x * (int64_t)COLUMNS + threadIdx.x;
    const double *from = (const double *)a.partials + blockIdx.y * a.n + i;
    double sum = 0;
    for (int64_t s = threadIdx.y; i < a.n && s < a.n_splits; s += DEPTH)
        sum += from[2 * s * a.n];
    __shared__ double part[DEPTH][COLUMNS];
    part[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0 || i >= a.n)
        return;
    double all = 0;
    for (int k = 0; k < DEPTH; k++)
        all += part[k][threadIdx.x];
    (blockIdx.y == 0 ? (T *)a.gw : (T *)a.gb)[i] = as<T>::of((C)all);
}

int brg__cu_layer_norm_splits(const brg__cu_queue *q, const brg__cu_norm *a)
{
    if (chunks_of(a) > 0) {
        const int64_t blocks = (a->rows + 4 * WARPS - 1) / (4 * WARPS);
        const int64_t most = 2 * (int64_t)q->n_sm;
        return (int)(blocks < 1 ? 1 : blocks > most ? most : blocks);
    }
    const int64_t blocks = (a->n + COLUMNS - 1) / COLUMNS;
    int64_t splits = 4 * (int64_t)q->n_sm / blocks;
    if (splits > a->rows / (4 * DEPTH))
        splits = a->rows / (4 * DEPTH);
    return splits < 1 ? 1 : (int)splits;
}

int brg__cu_layer_norm_grad(const brg__cu_queue *q, const brg__cu_norm *a)
{
    const unsigned columns = (unsigned)((a->n + COLUMNS - 1) / COLUMNS);
    const dim3 grid(columns, (unsigned)a->n_splits), both(columns, 2);
    const dim3 block(COLUMNS, DEPTH);
    const int chunks = chunks_of(a);
    if (chunks > 0) {
#define LAUNCH(T, N)                                                           \
    do {                                                                       \
        norm_grad_in_registers<T, N>                                           \
            <<<(unsigned)a->n_splits, 32 * WARPS, 0, stream_of(q)>>>(*a);      \
        layer_norm_join_kernel<T, float>                                       \
            <<<both, block, 0, stream_of(q)>>>(*a);                            \
    } while (0)
        WITH_TYPE(a->dtype, chunks, LAUNCH)
#undef LAUNCH
        return (int)cudaGetLastError();
    }
#define LAUNCH(T, C)                                                           \
    do {                                                                       \
        if (a->rows > 0)                                                       \
            layer_norm_grad_kernel<T, C>                                       \
                <<<(unsigned)a->rows, threads_for(a->n), 0, stream_of(q)>>>(   \
                    *a);                                                       \
        layer_norm_sums_kernel<T, C><<<grid, block, 0, stream_of(q)>>>(*a);    \
        layer_norm_join_kernel<T, C><<<both, block, 0, stream_of(q)>>>(*a);    \
    } while (0)
    WITH_FLOAT(a->dtype, LAUNCH);
#undef LAUNCH
    return (int)cudaGetLastError();
}
