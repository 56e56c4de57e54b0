/* SPDX-License-Identifier: Apache-2.0
 * Reductions over any set of dims, in f64 (integers: i64) and in a fixed
 * order, so that results repeat bit for bit.
 *
 * Where the reduced elements are the near ones, a block takes one result;
 * where the kept ones are, each of 32 adjacent results is taken by a column of
 * 8 threads. Few results are cut into splits, joined by a second kernel. */
#include "core/cuda/element.cuh"

#define COLUMNS 32
#define DEPTH 8

static __device__ __forceinline__ int64_t offset_of(int n, const int64_t *shape,
                                                    const int64_t *stride,
                                                    int64_t i)
{
    int64_t at = 0;
    for (int d = n - 1; d > 0; d--) {
        const int64_t rest = i < UINT32_MAX
                                 ? (int64_t)((uint32_t)i / (uint32_t)shape[d])
                                 : i / shape[d];
        at += (i - rest * shape[d]) * stride[d];
        i = rest;
    }
    return n > 0 ? at + i * stride[0] : at;
}

static __device__ __forceinline__ int64_t kept_at(const brg__cu_reduce &r,
                                                  int64_t i)
{
    return offset_of(r.n_kept, r.kept_shape, r.kept_stride, i);
}

static __device__ __forceinline__ int64_t reduced_at(const brg__cu_reduce &r,
                                                     int64_t i)
{
    return offset_of(r.n_reduced, r.reduced_shape, r.reduced_stride, i);
}

/* ---- What is joined -------------------------------------------------------- */

/* Beside sum_of and max_of of element.cuh. */
struct min_of {
    template <typename A> static __device__ A join(A a, A b)
    {
        return a < b || a != a ? a : b;
    }
};

template <typename A>
static __device__ __forceinline__ void finish(const brg__cu_reduce &r,
                                              int64_t k, A v)
{
    if (r.kind == BRG__CU_SUM && r.dtype <= BF16)
        v = (A)((double)v * r.scale);
    store<A>(r.out, r.out_dtype, k, v);
}

/* The elements of a split; the first is always there. */
static __device__ __forceinline__ void
split_of(const brg__cu_reduce &r, int64_t s, int64_t *from, int64_t *to)
{
    *from = r.reduced * s / r.n_splits;
    *to = r.reduced * (s + 1) / r.n_splits;
}

/* ---- Near elements are reduced --------------------------------------------- */

template <typename A, typename Kind>
__global__ void __launch_bounds__(THREADS)
    along_kernel(const __grid_constant__ brg__cu_reduce r)
{
    const int64_t k = blockIdx.x;
    int64_t from, to;
    split_of(r, blockIdx.y, &from, &to);
    const int64_t base = kept_at(r, k);
    A v = 0; /* stays so in a thread without a share, which is not joined */
    if (from + threadIdx.x < to)
        v = load<A>(r.x, r.dtype, base + reduced_at(r, from + threadIdx.x));
    for (int64_t i = from + threadIdx.x + THREADS; i < to; i += THREADS)
        v = Kind::join(v, load<A>(r.x, r.dtype, base + reduced_at(r, i)));
    __shared__ A part[THREADS];
    part[threadIdx.x] = v;
    __syncthreads();
    const int n = to - from < THREADS ? (int)(to - from) : THREADS;
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if ((int)threadIdx.x < half && (int)threadIdx.x + half < n)
            part[threadIdx.x] =
                Kind::join(part[threadIdx.x], part[threadIdx.x + half]);
        __syncthreads();
    }
    if (threadIdx.x != 0)
        return;
    if (r.n_splits > 1)
        ((A *)r.partials)[blockIdx.y * r.kept + k] = part[0];
    else
        finish<A>(r, k, part[0]);
}

/* ---- Near elements are kept ------------------------------------------------- */

template <typename A, typename Kind>
__global__ void __launch_bounds__(COLUMNS *DEPTH)
    across_kernel(const __grid_constant__ brg__cu_reduce r)
{
    const int64_t k = blockIdx.x * (int64_t)COLUMNS + threadIdx.x;
    int64_t from, to;
    split_of(r, blockIdx.y, &from, &to);
    __shared__ A part[DEPTH][COLUMNS];
    const int n = to - from < DEPTH ? (int)(to - from) : DEPTH;
    if (k < r.kept && (int)threadIdx.y < n) {
        const int64_t base = kept_at(r, k);
        A v = load<A>(r.x, r.dtype, base + reduced_at(r, from + threadIdx.y));
        for (int64_t i = from + threadIdx.y + DEPTH; i < to; i += DEPTH)
            v = Kind::join(v, load<A>(r.x, r.dtype, base + reduced_at(r, i)));
        part[threadIdx.y][threadIdx.x] = v;
    }
    __syncthreads();
    if (threadIdx.y != 0 || k >= r.kept)
        return;
    A all = n > 0 ? part[0][threadIdx.x] : (A)0;
    for (int i = 1; i < n; i++)
        all = Kind::join(all, part[i][threadIdx.x]);
    if (r.n_splits > 1)
        ((A *)r.partials)[blockIdx.y * r.kept + k] = all;
    else
        finish<A>(r, k, all);
}

/* ---- Sums of columns, 16 bytes of a row at a time -------------------------------- */

/* Elements of 16 bits are added up in f32 first, so many at a time: it has bits
 * to spare for that, and wide additions are slow. */
template <typename T> struct piece_of {
    typedef float type;
    static constexpr int rows = 8;
};
template <> struct piece_of<float> {
    typedef double type;
    static constexpr int rows = 4;
};

/* Rows of a split, so that no rest is read row by row but in the last one. */
static __host__ __device__ __forceinline__ int64_t
rows_of_split(int64_t rows, int64_t n_splits, int at_once)
{
    const int64_t share = (rows + n_splits - 1) / n_splits;
    return (share + at_once - 1) / at_once * at_once;
}

/* A block takes 32 vectors of a row, 8 rows at a time. */
template <typename T>
__global__ void __launch_bounds__(COLUMNS *DEPTH)
    columns_kernel(const __grid_constant__ brg__cu_reduce r)
{
    constexpr int V = vec<T>::n, ROWS = piece_of<T>::rows;
    typedef typename piece_of<T>::type C;
    const int64_t k = (blockIdx.x * (int64_t)COLUMNS + threadIdx.x) * V;
    const int64_t share = rows_of_split(r.reduced, r.n_splits, ROWS * DEPTH);
    const int64_t from = blockIdx.y * share;
    const int64_t to = from + share < r.reduced ? from + share : r.reduced;
    const T *x = (const T *)r.x + k;
    double sum[V] = {};
    int64_t i = k < r.kept ? from + threadIdx.y : to;
    for (; i + (ROWS - 1) * DEPTH < to; i += ROWS * DEPTH) {
        C some[V] = {};
#pragma unroll
        for (int p = 0; p < ROWS; p++) {
            const vec<T> v =
                *(const vec<T> *)(x + (i + p * DEPTH) * r.reduced_stride[0]);
#pragma unroll
            for (int j = 0; j < V; j++)
                some[j] += get<C>(&v.at[j]);
        }
#pragma unroll
        for (int j = 0; j < V; j++)
            sum[j] += (double)some[j];
    }
    for (; i < to; i += DEPTH) {
        const vec<T> v = *(const vec<T> *)(x + i * r.reduced_stride[0]);
#pragma unroll
        for (int j = 0; j < V; j++)
            sum[j] += get<double>(&v.at[j]);
    }
    __shared__ double part[DEPTH][COLUMNS];
#pragma unroll
    for (int j = 0; j < V; j++) {
        __syncthreads();
        part[threadIdx.y][threadIdx.x] = sum[j];
        __syncthreads();
        if (threadIdx.y != 0 || k >= r.kept)
            continue;
        double all = 0;
        for (int i = 0; i < DEPTH; i++)
            all += part[i][threadIdx.x];
        if (r.n_splits > 1)
            ((double *)r.partials)[blockIdx.y * r.kept + k + j] = all;
        else
            finish<double>(r, k + j, all);
    }
}

/* Elements of a vector if columns_kernel is the one to take it, else 0. */
static int columns_width(const brg__cu_reduce *r)
{
    if (r->kind != BRG__CU_SUM || r->n_kept != 1 || r->n_reduced != 1 ||
        r->kept_stride[0] != 1 || r->dtype < F32 || r->dtype > BF16)
        return 0;
    const int v = r->dtype == F32 ? 4 : 8;
    const bool fits = r->kept % v == 0 && r->reduced_stride[0] % v == 0 &&
                      (uintptr_t)r->x % 16 == 0;
    return fits ? v : 0;
}

template <typename A, typename Kind>
__global__ void join_kernel(const __grid_constant__ brg__cu_reduce r)
{
    FOR_EACH(k, r.kept)
    {
        A all = ((const A *)r.partials)[k];
        for (int s = 1; s < r.n_splits; s++)
            all = Kind::join(all, ((const A *)r.partials)[s * r.kept + k]);
        finish<A>(r, k, all);
    }
}

/* The same for sums of many splits: as columns_kernel. */
__global__ void __launch_bounds__(COLUMNS *DEPTH)
    join_sums_kernel(const __grid_constant__ brg__cu_reduce r)
{
    const int64_t k = blockIdx.x * (int64_t)COLUMNS + threadIdx.x;
    double sum = 0;
    for (int64_t s = threadIdx.y; k < r.kept && s < r.n_splits; s += DEPTH)
        sum += ((const double *)r.partials)[s * r.kept + k];
    __shared__ double part[DEPTH][COLUMNS];
    part[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y != 0 || k >= r.kept)
        return;
    double all = 0;
    for (int i = 0; i < DEPTH; i++)
        all += part[i][threadIdx.x];
    finish<double>(r, k, all);
}

static bool is_across(const brg__cu_reduce *r)
{
    if (r->reduced == 1 || r->n_reduced == 0)
        return true;
    return r->n_kept > 0 && r->kept_stride[r->n_kept - 1] == 1 &&
           r->reduced_stride[r->n_reduced - 1] != 1 && r->kept > 1;
}

template <typename A, typename Kind>
static void launch(const brg__cu_queue *q, const brg__cu_reduce *r)
{
    const unsigned splits = (unsigned)r->n_splits;
    const int v = columns_width(r);
    if (v > 0) {
        const dim3 grid(
            brg__cu_grid((r->kept + COLUMNS * v - 1) / (COLUMNS * v)), splits);
        const dim3 block(COLUMNS, DEPTH);
        if (r->dtype == F32)
            columns_kernel<float><<<grid, block, 0, stream_of(q)>>>(*r);
        else if (r->dtype == F16)
            columns_kernel<f16><<<grid, block, 0, stream_of(q)>>>(*r);
        else
            columns_kernel<bf16><<<grid, block, 0, stream_of(q)>>>(*r);
    } else if (is_across(r)) {
        const dim3 grid(brg__cu_grid((r->kept + COLUMNS - 1) / COLUMNS),
                        splits);
        across_kernel<A, Kind>
            <<<grid, dim3(COLUMNS, DEPTH), 0, stream_of(q)>>>(*r);
    } else {
        const dim3 grid(brg__cu_grid(r->kept), splits);
        along_kernel<A, Kind><<<grid, THREADS, 0, stream_of(q)>>>(*r);
    }
    if (splits > 1 && v > 0)
        join_sums_kernel<<<brg__cu_grid((r->kept + COLUMNS - 1) / COLUMNS),
                           dim3(COLUMNS, DEPTH), 0, stream_of(q)>>>(*r);
    else if (splits > 1)
        join_kernel<A, Kind>
            <<<blocks_for(r->kept, THREADS), THREADS, 0, stream_of(q)>>>(*r);
}

int brg__cu_reduce_splits(const brg__cu_queue *q, const brg__cu_reduce *r)
{
    if (r->kind > BRG__CU_MIN)
        return 1;
    const bool across = is_across(r);
    const int v = columns_width(r);
    const int64_t width = COLUMNS * (v > 0 ? v : 1);
    const int64_t blocks =
        across || v > 0 ? (r->kept + width - 1) / width : r->kept;
    const int64_t least = across || v > 0 ? 16 * DEPTH : 8 * THREADS;
    int64_t splits = 4 * (int64_t)q->n_sm / blocks;
    if (splits > r->reduced / least)
        splits = r->reduced / least;
    if (v > 0 && splits > 1) {
        const int rows =
            (r->dtype == F32 ? piece_of<float>::rows : piece_of<bf16>::rows) *
            DEPTH;
        const int64_t share = rows_of_split(r->reduced, splits, rows);
        splits = (r->reduced + share - 1) / share;
    }
    return splits < 2 ? 1 : splits > 1024 ? 1024 : (int)splits;
}

/* ---- Variance: two passes ---------------------------------------------------- */

__global__ void __launch_bounds__(THREADS)
    var_kernel(const __grid_constant__ brg__cu_reduce r)
{
    const int64_t base = kept_at(r, blockIdx.x);
    double sum = 0, squares = 0;
    for (int64_t i = threadIdx.x; i < r.reduced; i += THREADS)
        sum += load<double>(r.x, r.dtype, base + reduced_at(r, i));
    const double mean = over_block<sum_of>(sum) / (double)r.reduced;
    for (int64_t i = threadIdx.x; i < r.reduced; i += THREADS) {
        const double d =
            load<double>(r.x, r.dtype, base + reduced_at(r, i)) - mean;
        squares += d * d;
    }
    squares = over_block<sum_of>(squares);
    if (threadIdx.x == 0)
        store<double>(r.out, r.out_dtype, blockIdx.x, squares * r.scale);
}

/* ---- Where the extreme is ------------------------------------------------------ */

template <typename A> struct candidate {
    A value;
    int64_t at; /* -1: none */
};

/* True if a is to be taken rather than b. */
template <typename A>
static __device__ bool beats(const candidate<A> &a, const candidate<A> &b,
                             bool smallest)
{
    if (b.at < 0)
        return true;
    if (a.at < 0)
        return false;
    const bool a_nan = a.value != a.value, b_nan = b.value != b.value;
    if (a_nan != b_nan)
        return a_nan;
    if (!a_nan && a.value != b.value)
        return smallest ? a.value < b.value : a.value > b.value;
    return a.at < b.at;
}

template <typename A>
__global__ void __launch_bounds__(THREADS)
    arg_kernel(const __grid_constant__ brg__cu_reduce r)
{
    const int64_t base = kept_at(r, blockIdx.x);
    const bool smallest = r.kind == BRG__CU_ARGMIN;
    candidate<A> best = {0, -1};
    for (int64_t i = threadIdx.x; i < r.reduced; i += THREADS) {
        const candidate<A> c = {load<A>(r.x, r.dtype, base + reduced_at(r, i)),
                                i};
        if (beats(c, best, smallest))
            best = c;
    }
    __shared__ candidate<A> part[THREADS];
    part[threadIdx.x] = best;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if ((int)threadIdx.x < half &&
            beats(part[threadIdx.x + half], part[threadIdx.x], smallest))
            part[threadIdx.x] = part[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0)
        ((int64_t *)r.out)[blockIdx.x] = part[0].at;
}

/* ---- Choosing --------------------------------------------------------------------- */

template <typename A>
static void launch_kind(const brg__cu_queue *q, const brg__cu_reduce *r)
{
    const unsigned grid = brg__cu_grid(r->kept);
    switch (r->kind) {
    case BRG__CU_SUM:
        launch<A, sum_of>(q, r);
        break;
    case BRG__CU_MAX:
        launch<A, max_of>(q, r);
        break;
    case BRG__CU_MIN:
        launch<A, min_of>(q, r);
        break;
    case BRG__CU_VAR:
        var_kernel<<<grid, THREADS, 0, stream_of(q)>>>(*r);
        break;
    default:
        arg_kernel<A><<<grid, THREADS, 0, stream_of(q)>>>(*r);
    }
}

int brg__cu_reduce_launch(const brg__cu_queue *q, const brg__cu_reduce *r)
{
    if (r->dtype <= BF16)
        launch_kind<double>(q, r);
    else
        launch_kind<int64_t>(q, r);
    return (int)cudaGetLastError();
}
