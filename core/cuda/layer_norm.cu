/* SPDX-License-Identifier: Apache-2.0
 * Layer norm. Rows of up to 2048 16-bit (1024 32-bit) elements stay in the
 * registers of a warp, those of the gradient up to half of that in shared memory,
 * so that each element is read once; the gradient adds up those of weight and bias
 * on the way. Other rows: a block per row, read two or
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

/* The sums of the block's warps to `out`, added up in the order of the warps.
 * all: N_WARPS * AT_ONCE chunks of 32 V floats. */
template <int N_WARPS, int CHUNKS, int AT_ONCE, int V>
static __device__ __forceinline__ void
join_in(float *all, const float sums[CHUNKS][V], int64_t n, float *out)
{
    constexpr int WIDTH = AT_ONCE * 32 * V;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#pragma unroll
    for (int from = 0; from < CHUNKS; from += AT_ONCE) {
        __syncthreads();
#pragma unroll
        for (int c = 0; c < AT_ONCE; c++)
#pragma unroll
            for (int k = 0; k < V; k++)
                all[warp * WIDTH + (c * V + k) * 32 + lane] = sums[from + c][k];
        __syncthreads();
        for (int at = threadIdx.x; at < WIDTH; at += blockDim.x) {
            const int64_t i = from * 32 * V + (at / (32 * V)) * 32 * V +
                              (at & 31) * V + (at >> 5) % V;
            float sum = all[at];
            for (int w = 1; w < N_WARPS; w++)
                sum += all[w * WIDTH + at];
            if (i < n)
                out[i] = sum;
        }
    }
}

template <int CHUNKS, int V>
static __device__ __forceinline__ void join_warps(const float sums[CHUNKS][V],
                                                  int64_t n, float *out)
{
    constexpr int AT_ONCE = CHUNKS * V > 48 ? CHUNKS / 2 : CHUNKS;
    __shared__ float all[WARPS * AT_ONCE * 32 * V];
    join_in<WARPS, CHUNKS, AT_ONCE, V>(all, sums, n, out);
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
    asm volatile(""
                 : "+r"(bits->x), "+r"(bits->y), "+r"(bits->z), "+r"(bits->w));
}

template <typename T> static __device__ __forceinline__ vec<T> all_of(float v)
{
    vec<T> all;
#pragma unroll
    for (int k = 0; k < vec<T>::n; k++)
        all.at[k] = as<T>::of(v);
    return all;
}

/* From the nearest cache: registers are for what differs from row to row. Ones,
 * where there are none, change nothing, and cost less than to ask each time. */
template <typename T>
static __device__ __forceinline__ vec<T> weights_at(const brg__cu_norm &a,
                                                    int64_t i)
{
    return a.w && i < a.n ? *(const vec<T> *)((const T *)a.w + i)
                          : all_of<T>(1);
}

/* What a row, or a chunk of it, is worked on with. */
struct row_of {
    float mean, rstd;
    float s0, s1; /* the means of g w and of g w xhat */
};

/* Adds a chunk to s0 and s1 and to the sums of g xhat and of g. */
template <typename T>
static __device__ __forceinline__ void
take(row_of &row, const vec<T> &x, const vec<T> &g, const vec<T> &w,
     float gw[vec<T>::n], float gb[vec<T>::n])
{
#pragma unroll
    for (int k = 0; k < vec<T>::n; k++) {
        const float h = (get<float>(&x.at[k]) - row.mean) * row.rstd;
        const float v = get<float>(&g.at[k]);
        const float vw = __fmul_rn(v, get<float>(&w.at[k]));
        row.s0 += vw;
        row.s1 += vw * h;
        gw[k] += v * h;
        gb[k] += v;
    }
}

/* rstd (g w - s0 - xhat s1), and r; -0 is nothing. Products are rounded before
 * they are added to: with r it has the bits of the two after each other. */
template <typename T>
static __device__ __forceinline__ vec<T>
slope_of(const row_of &row, const vec<T> &x, const vec<T> &g, const vec<T> &w,
         const vec<T> &r)
{
    vec<T> out;
#pragma unroll
    for (int k = 0; k < vec<T>::n; k++) {
        const float h = (get<float>(&x.at[k]) - row.mean) * row.rstd;
        const float v = get<float>(&g.at[k]);
        const float vw = __fmul_rn(v, get<float>(&w.at[k]));
        const float made = __fmul_rn(row.rstd, vw - row.s0 - h * row.s1);
        out.at[k] = plus<T>(made, r.at[k]);
    }
    return out;
}

static __device__ __forceinline__ row_of row_at(const brg__cu_norm &a,
                                                int64_t row)
{
    if (row >= a.rows)
        return {};
    return {((const float *)a.mean)[row], ((const float *)a.rstd)[row], 0, 0};
}

static __device__ __forceinline__ void finish_sums(row_of &row, int64_t n)
{
    row.s0 = over_warp<sum_of>(row.s0) / (float)n;
    row.s1 = over_warp<sum_of>(row.s1) / (float)n;
}

/* gx; the block's sums of g xhat and of g go to its partials. */
template <typename T, int CHUNKS>
__global__ void __launch_bounds__(32 * WARPS, CHUNKS <= 3 ? 2 : 1)
    norm_grad_in_registers(const __grid_constant__ brg__cu_norm a)
{
    constexpr int V = vec<T>::n;
    const int lane = threadIdx.x & 31;
    float gw[CHUNKS][V] = {}, gb[CHUNKS][V] = {};
    for (int64_t at = blockIdx.x * (int64_t)WARPS + (threadIdx.x >> 5);
         at < a.rows; at += (int64_t)gridDim.x * WARPS) {
        row_of row = row_at(a, at);
        vec<T> x[CHUNKS], g[CHUNKS], r[CHUNKS];
        load_row<T, CHUNKS>(x, (const T *)a.x + at * a.n, a.n, lane);
        load_row<T, CHUNKS>(g, (const T *)a.g + at * a.n, a.n, lane);
        if (a.add)
            load_row<T, CHUNKS>(r, (const T *)a.add + at * a.n, a.n, lane);
#pragma unroll
        for (int c = 0; c < CHUNKS && !a.add; c++)
            r[c] = all_of<T>(-0.0f);
#pragma unroll
        for (int c = 0; c < CHUNKS; c++)
            take<T>(row, x[c], g[c],
                    weights_at<T>(a, c * vec<T>::warp + lane * V), gw[c],
                    gb[c]);
        finish_sums(row, a.n);
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            const int64_t i = c * vec<T>::warp + lane * V;
            if (i >= a.n)
                continue;
            forget(x[c]);
            forget(g[c]);
            *(vec<T> *)((T *)a.gx + at * a.n + i) =
                slope_of<T>(row, x[c], g[c], weights_at<T>(a, i), r[c]);
        }
    }
    float *partials = (float *)a.partials + 2 * blockIdx.x * a.n;
    join_warps<CHUNKS, V>(gw, a.n, partials);
    join_warps<CHUNKS, V>(gb, a.n, partials + a.n);
}

/* ---- The gradient of rows that are read ahead ------------------------------------------- */

/* Few warps to a multiprocessor, so that few blocks' sums are left to be joined. */
#define AHEAD_WARPS 12
#define STAGES 2 /* rows of a warp that are on their way at once */

extern __shared__ __align__(16) char staged_bytes[];

static __device__ __forceinline__ void copy_ahead(void *to, const void *from)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                     (unsigned)__cvta_generic_to_shared(to)),
                 "l"(from)
                 : "memory");
}

/* A lane reads what it has copied itself, so nobody waits for others. */
template <typename T, int CHUNKS>
static __device__ __forceinline__ void fetch(const brg__cu_norm &a, int64_t row,
                                             vec<T> *to)
{
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        const int64_t i = c * vec<T>::warp + (threadIdx.x & 31) * vec<T>::n;
        if (row >= a.rows || i >= a.n)
            continue;
        const int64_t at = row * a.n + i;
        copy_ahead(to + c * 32, (const T *)a.x + at);
        copy_ahead(to + (CHUNKS + c) * 32, (const T *)a.g + at);
        if (a.add)
            copy_ahead(to + (2 * CHUNKS + c) * 32, (const T *)a.add + at);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* The same as norm_grad_in_registers, and the sums of gx. */
template <typename T, int CHUNKS, bool HAS_SUM>
__global__ void __launch_bounds__(32 * AHEAD_WARPS, 1)
    norm_grad_ahead(const __grid_constant__ brg__cu_norm a)
{
    constexpr int V = vec<T>::n, ROW = 3 * CHUNKS * 32, SUMS = 2 + HAS_SUM;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int64_t step = (int64_t)gridDim.x * AHEAD_WARPS;
    vec<T> *mine = (vec<T> *)staged_bytes + warp * STAGES * ROW + lane;
    float gw[CHUNKS][V] = {}, gb[CHUNKS][V] = {}, sum[CHUNKS][V] = {};
    vec<T> w[CHUNKS];
#pragma unroll
    for (int c = 0; c < CHUNKS; c++)
        w[c] = weights_at<T>(a, c * vec<T>::warp + lane * V);
    int64_t at = blockIdx.x * (int64_t)AHEAD_WARPS + warp;
    for (int k = 0; k < STAGES; k++)
        fetch<T, CHUNKS>(a, at + k * step, mine + k * ROW);
    row_of row = row_at(a, at);
    for (int stage = 0; at < a.rows; at += step) {
        const row_of next = row_at(a, at + step);
        vec<T> *from = mine + stage * ROW;
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 1) : "memory");
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            const int64_t i = c * vec<T>::warp + lane * V;
            if (i < a.n)
                take<T>(row, from[c * 32], from[(CHUNKS + c) * 32], w[c], gw[c],
                        gb[c]);
        }
        finish_sums(row, a.n);
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            const int64_t i = c * vec<T>::warp + lane * V;
            if (i >= a.n)
                continue;
            vec<T> x = from[c * 32], g = from[(CHUNKS + c) * 32];
            forget(x);
            forget(g);
            const vec<T> r =
                a.add ? from[(2 * CHUNKS + c) * 32] : all_of<T>(-0.0f);
            const vec<T> out = slope_of<T>(row, x, g, w[c], r);
            *(vec<T> *)((T *)a.gx + at * a.n + i) = out;
            if (HAS_SUM)
#pragma unroll
                for (int k = 0; k < V; k++)
                    sum[c][k] += get<float>(&out.at[k]);
        }
        fetch<T, CHUNKS>(a, at + STAGES * step, from);
        stage = (stage + 1) % STAGES;
        row = next;
    }
    asm volatile("cp.async.wait_group 0;" ::: "memory");
    float *partials = (float *)a.partials + SUMS * blockIdx.x * a.n;
    float *all = (float *)staged_bytes;
    join_in<AHEAD_WARPS, CHUNKS, CHUNKS, V>(all, gw, a.n, partials);
    join_in<AHEAD_WARPS, CHUNKS, CHUNKS, V>(all, gb, a.n, partials + a.n);
    if (HAS_SUM)
        join_in<AHEAD_WARPS, CHUNKS, CHUNKS, V>(all, sum, a.n,
                                                partials + 2 * a.n);
}

/* Bytes of shared memory of a block. */
static size_t ahead_bytes(int chunks)
{
    return (size_t)AHEAD_WARPS * STAGES * 3 * chunks * 32 * sizeof(int4);
}

/* Rows of up to 4 chunks, where a block may have so much. */
static bool is_read_ahead(const brg__cu_norm *a)
{
    const int chunks = chunks_of(a);
    int device, most;
    if (chunks == 0 || chunks > 4 || cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                               device) != cudaSuccess)
        return false;
    return ahead_bytes(chunks) <= (size_t)most;
}

bool brg__cu_layer_norm_has_sum(const brg__cu_norm *a)
{
    return is_read_ahead(a);
}

template <typename T, int CHUNKS>
static int launch_ahead(const brg__cu_queue *q, const brg__cu_norm *a)
{
    const size_t bytes = ahead_bytes(CHUNKS);
    void (*kernel)(brg__cu_norm) = a->sum ? norm_grad_ahead<T, CHUNKS, true>
                                          : norm_grad_ahead<T, CHUNKS, false>;
    const cudaError_t error = cudaFuncSetAttribute(
        (const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
        (int)bytes);
    if (error != cudaSuccess)
        return (int)error;
    kernel<<<(unsigned)a->n_splits, 32 * AHEAD_WARPS, bytes, stream_of(q)>>>(
        *a);
    return (int)cudaGetLastError();
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

#define WITH_WIDE(T, n, LAUNCH)                                                \
    if ((n) <= 6)                                                              \
        LAUNCH(T, 6);                                                          \
    else                                                                       \
        LAUNCH(T, MOST_CHUNKS);

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
    norm_in_registers<T, N><<<brg__cu_grid((a->rows + WARPS - 1) / WARPS),     \
                              32 * WARPS, 0, stream_of(q)>>>(*a)
        WITH_TYPE(a->dtype, chunks, LAUNCH)
#undef LAUNCH
        return (int)cudaGetLastError();
    }
#define LAUNCH(T, C)                                                           \
    layer_norm_kernel<T, C>                                                    \
        <<<brg__cu_grid(a->rows), threads_for(a->n), 0, stream_of(q)>>>(*a)
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

#define JOINED 32 /* partial sums that are read at once */

/* Of partial sums of type P; blockIdx.y: 0 for gw, 1 for gb, 2 for the sum of gx. */
template <typename T, typename C, typename P>
__global__ void __launch_bounds__(COLUMNS *JOINED)
    layer_norm_join_kernel(const __grid_constant__ brg__cu_norm a)
{
    const int64_t i = blockIdx.x * (int64_t)COLUMNS + threadIdx.x;
    const P *from = (const P *)a.partials + blockIdx.y * a.n + i;
    double sum = 0;
    for (int64_t s = threadIdx.y; i < a.n && s < a.n_splits; s += JOINED)
        sum += (double)from[gridDim.y * s * a.n];
    __shared__ double part[JOINED][COLUMNS];
    part[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0 || i >= a.n)
        return;
    double all = 0;
    for (int k = 0; k < JOINED; k++)
        all += part[k][threadIdx.x];
    void *to = blockIdx.y == 0 ? a.gw : blockIdx.y == 1 ? a.gb : a.sum;
    ((T *)to)[i] = as<T>::of((C)all);
}

int brg__cu_layer_norm_splits(const brg__cu_queue *q, const brg__cu_norm *a)
{
    if (chunks_of(a) > 0) {
        const bool is_ahead = is_read_ahead(a);
        const int at_once = 4 * (is_ahead ? AHEAD_WARPS : WARPS);
        const int64_t blocks = (a->rows + at_once - 1) / at_once;
        const int64_t most = (is_ahead ? 1 : 2) * (int64_t)q->n_sm;
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
    const unsigned columns = brg__cu_grid((a->n + COLUMNS - 1) / COLUMNS);
    const dim3 grid(columns, (unsigned)a->n_splits);
    const dim3 all(columns, a->sum ? 3 : 2);
    const dim3 block(COLUMNS, DEPTH), joined(COLUMNS, JOINED);
    const int chunks = chunks_of(a);
    int error = 0;
    if (is_read_ahead(a)) {
#define AHEAD(T)                                                               \
    error = chunks == 1   ? launch_ahead<T, 1>(q, a)                           \
            : chunks == 2 ? launch_ahead<T, 2>(q, a)                           \
            : chunks == 3 ? launch_ahead<T, 3>(q, a)                           \
                          : launch_ahead<T, 4>(q, a)
        if (a->dtype == F32)
            AHEAD(float);
        else if (a->dtype == BF16)
            AHEAD(bf16);
        else
            AHEAD(f16);
#undef AHEAD
    } else if (chunks > 0) {
#define LAUNCH(T, N)                                                           \
    norm_grad_in_registers<T, N>                                               \
        <<<(unsigned)a->n_splits, 32 * WARPS, 0, stream_of(q)>>>(*a)
        if (a->dtype == F32) {
            WITH_WIDE(float, chunks, LAUNCH)
        } else if (a->dtype == BF16) {
            WITH_WIDE(bf16, chunks, LAUNCH)
        } else {
            WITH_WIDE(f16, chunks, LAUNCH)
        }
#undef LAUNCH
    } else {
#define LAUNCH(T, C)                                                           \
    do {                                                                       \
        if (a->rows > 0)                                                       \
            layer_norm_grad_kernel<T, C>                                       \
                <<<brg__cu_grid(a->rows), threads_for(a->n), 0,                \
                   stream_of(q)>>>(*a);                                        \
        layer_norm_sums_kernel<T, C><<<grid, block, 0, stream_of(q)>>>(*a);    \
    } while (0)
        WITH_FLOAT(a->dtype, LAUNCH);
#undef LAUNCH
    }
    if (error != 0)
        return error;
#define LAUNCH(T, C)                                                           \
    (chunks > 0 ? layer_norm_join_kernel<T, C, float>                          \
                : layer_norm_join_kernel<                                      \
                      T, C, double>)<<<all, joined, 0, stream_of(q)>>>(*a)
    WITH_FLOAT(a->dtype, LAUNCH);
#undef LAUNCH
    return (int)cudaGetLastError();
}
