/* SPDX-License-Identifier: Apache-2.0
 * Passes of communication hooks over the gradients of a bucket: each launch
 * takes up to MANY parameters in its arguments, a block one piece of one of
 * them, or in two rules of low rank all of it. Sums in a fixed order. */
#include "core/cuda/element.cuh"

#include <brigade/ext/compress.h>

#include "core/base/q8_block.cuh"

#define MANY 32 /* arguments may have 4 KB */
#define PIECE ((int64_t)4096) /* elements of a block */
#define N_WARPS (THREADS / 32)
#define Q8_BLOCKS 64 /* that a block of threads takes */
#define WIDE_BLOCK 1024

typedef struct batch {
    int n;
    int64_t first[MANY + 1]; /* block at which the parameter begins */
    brg_compress_part part[MANY];
    const int64_t *steps;
    float share;
    int dtype, wire_dtype, rank;
    bool is_kept;
} batch;

static __device__ __forceinline__ int64_t piece_of(const batch &b, int k)
{
    return (int64_t)blockIdx.x - b.first[k];
}

/* The gradient and what was left of it before. */
static __device__ __forceinline__ float
gradient(const batch &b, const brg_compress_part &p, int64_t i)
{
    const float x = b.dtype == F64 ? (float)((const double *)p.data)[i]
                                   : ((const float *)p.data)[i];
    return p.error ? x + p.error[i] : x;
}

static __device__ __forceinline__ float left_over(float x, float rounded)
{
    const float left = x - rounded;
    return isfinite(left) ? left : 0;
}

/* ---- Element by element --------------------------------------------------------- */

template <typename H>
static __device__ __forceinline__ void to_half(const batch &b,
                                               const brg_compress_part &p,
                                               int64_t i)
{
    H *wire = (H *)p.wire;
    if (i >= (int64_t)p.count) {
        wire[i] = as<H>::of(0.0f);
        return;
    }
    const float x = gradient(b, p, i);
    const H rounded = as<H>::of(x);
    wire[i] = rounded;
    if (p.error)
        p.error[i] = left_over(x, get<float>(&rounded));
}

static __device__ __forceinline__ float z_of(uint64_t seed, int64_t i)
{
    uint64_t z = seed + (uint64_t)(i + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return (float)((double)(z ^ (z >> 31)) * 0x1p-63 - 1.0);
}

static __device__ __forceinline__ void
add(const batch &b, const brg_compress_part &p, int64_t i)
{
    const float x = ((const float *)p.data)[i];
    if (p.n == 0)
        ((float *)p.wire)[i] = x;
    else
        p.error[i] = b.is_kept ? x + p.error[i] : x;
}

static __device__ __forceinline__ void
expand(const batch &b, const brg_compress_part &p, int64_t i)
{
    if (p.n == 0) {
        ((float *)p.data)[i] = ((const float *)p.wire)[i];
        return;
    }
    const bool is_short = p.count <= 0xFFFFFFFFu;
    const int64_t row = is_short ? (int64_t)((uint32_t)i / (uint32_t)p.m)
                                 : i / (int64_t)p.m;
    const float *left = p.left + row * b.rank;
    const float *right = p.right + (i - row * (int64_t)p.m) * b.rank;
    float sum = 0;
    for (int j = 0; j < b.rank; j++)
        sum += left[j] * right[j];
    ((float *)p.data)[i] = sum;
    p.error[i] = *p.finite != 0 ? p.error[i] - b.share * sum : 0;
}

static __device__ __forceinline__ void
warm(const batch &b, const brg_compress_part &p, int64_t i)
{
    if (*p.finite == 0)
        p.q[i] = z_of(p.seed, i);
    else if (b.is_kept)
        p.q[i] = b.share * p.right[i];
}

/* Elements that a rule walks over. */
static __host__ __device__ __forceinline__ int64_t
elements_of(brg_compress_rule rule, const brg_compress_part &p, int rank)
{
    switch (rule) {
    case BRG_COMPRESS_TO_HALF:
        return (int64_t)(p.room > p.count ? p.room : p.count);
    case BRG_COMPRESS_DRAW:
    case BRG_COMPRESS_WARM:
        return (int64_t)p.m * rank;
    default:
        return (int64_t)p.count;
    }
}

template <int RULE>
__global__ void __launch_bounds__(THREADS)
    element_kernel(const __grid_constant__ batch b)
{
    const int k = array_of_block(b);
    const brg_compress_part &p = b.part[k];
    const int64_t from = piece_of(b, k) * PIECE;
    const int64_t n = elements_of((brg_compress_rule)RULE, p, b.rank);
    const int64_t to = from + PIECE < n ? from + PIECE : n;
    for (int64_t i = from + threadIdx.x; i < to; i += THREADS) {
        if (RULE == BRG_COMPRESS_ADD)
            add(b, p, i);
        else if (RULE == BRG_COMPRESS_DRAW)
            p.q[i] = z_of(p.seed, i);
        else if (RULE == BRG_COMPRESS_EXPAND)
            expand(b, p, i);
        else if (RULE == BRG_COMPRESS_WARM)
            warm(b, p, i);
        else if (b.wire_dtype == F16)
            to_half<f16>(b, p, i);
        else
            to_half<bf16>(b, p, i);
    }
}

/* ---- 8 bits ------------------------------------------------------------------------ */

/* A warp takes every eighth of the piece's blocks. */
template <typename Each>
static __device__ __forceinline__ void
each_q8_block(const batch &b, const brg_compress_part &p, int64_t piece,
              Each each)
{
    const int64_t n = ((int64_t)p.count + BRG__Q8_N - 1) / BRG__Q8_N;
    const int64_t from = piece * Q8_BLOCKS;
    const int64_t to = from + Q8_BLOCKS < n ? from + Q8_BLOCKS : n;
    for (int64_t i = from + threadIdx.x / 32; i < to; i += N_WARPS)
        each((unsigned char *)p.wire + i * BRG__Q8_NBYTES,
             i * (int64_t)BRG__Q8_N);
}

/* Is there an element k of this lane behind `at`? */
static __device__ __forceinline__ bool has(const brg_compress_part &p,
                                           int64_t at, int k)
{
    const int i = (int)(threadIdx.x & 31) + 32 * k;
    return i < (int)BRG__Q8_N && at + i < (int64_t)p.count;
}

__global__ void __launch_bounds__(THREADS)
    to_q8_kernel(const __grid_constant__ batch b)
{
    const int which = array_of_block(b);
    const brg_compress_part &p = b.part[which];
    const uint16_t round = (uint16_t)*b.steps;
    const int lane = threadIdx.x & 31;
    each_q8_block(
        b, p, piece_of(b, which), [&](unsigned char *block, int64_t at) {
            const float half[2] = {0.5f, 0.5f};
            float x[2] = {0, 0};
            int code[2];
            for (int k = 0; k < 2; k++)
                if (has(p, at, k))
                    x[k] = gradient(b, p, at + lane + 32 * k);
            const float scale =
                brg__q8_put(block, lane, x, half, round, code);
            for (int k = 0; k < 2; k++)
                if (p.error && has(p, at, k))
                    p.error[at + lane + 32 * k] =
                        left_over(x[k], brg__q8_value(scale, code[k]));
        });
}

__global__ void __launch_bounds__(THREADS)
    from_q8_kernel(const __grid_constant__ batch b)
{
    const int which = array_of_block(b);
    const brg_compress_part &p = b.part[which];
    const int lane = threadIdx.x & 31;
    each_q8_block(b, p, piece_of(b, which),
                  [&](const unsigned char *block, int64_t at) {
                      const float scale = brg__q8_scale_of(block);
                      for (int k = 0; k < 2; k++) {
                          const int i = lane + 32 * k;
                          if (!has(p, at, k))
                              continue;
                          const float x =
                              brg__q8_value(scale, brg__q8_code(block, i));
                          if (b.dtype == F64)
                              ((double *)p.data)[at + i] = x;
                          else
                              ((float *)p.data)[at + i] = x;
                      }
                  });
}

/* ---- Whole matrices ------------------------------------------------------------------- */

/* Column j less d times column k (none: -1), in one walk with the dot product
 * of column j, as it is then, and column `next`. */
static __device__ double walk(float *at, int64_t n, int r, int j, int k,
                              double d, int next)
{
    double sum = 0;
    for (int64_t i = threadIdx.x; i < n; i += WIDE_BLOCK) {
        float *row = at + i * r;
        float x = row[j];
        if (k >= 0) {
            x -= (float)(d * (double)row[k]);
            row[j] = x;
        }
        sum += (double)x * (double)(next == j ? x : row[next]);
    }
    return over_block<sum_of>(sum);
}

/* Column j without its parts along the columns before; the square of what is
 * left. */
static __device__ double project(float *at, int64_t n, int r, int j,
                                 double square)
{
    double d = j > 0 ? walk(at, n, r, j, -1, 0, 0) : square;
    for (int k = 0; k < j; k++)
        d = walk(at, n, r, j, k, d, k + 1);
    return d;
}

__global__ void __launch_bounds__(WIDE_BLOCK)
    ortho_kernel(const __grid_constant__ batch b)
{
    const brg_compress_part &p = b.part[blockIdx.x];
    const int64_t n = (int64_t)p.n;
    const int r = b.rank;
    for (int j = 0; j < r; j++) {
        const double before = walk(p.left, n, r, j, -1, 0, j);
        double square = project(p.left, n, r, j, before);
        const bool is_noise = square <= 1e-8 * before;
        square = project(p.left, n, r, j, square);
        const double scale =
            !is_noise && square > 0 ? 1.0 / sqrt(square) : 0.0;
        for (int64_t i = threadIdx.x; i < n; i += WIDE_BLOCK)
            p.left[i * r + j] = (float)((double)p.left[i * r + j] * scale);
    }
}

__global__ void __launch_bounds__(WIDE_BLOCK)
    judge_kernel(const __grid_constant__ batch b)
{
    const brg_compress_part &p = b.part[blockIdx.x];
    const int64_t n = (int64_t)p.n * b.rank, m = (int64_t)p.m * b.rank;
    int is_bad = 0;
    for (int64_t i = threadIdx.x; i < n; i += WIDE_BLOCK)
        is_bad |= !isfinite(p.left[i]);
    for (int64_t i = threadIdx.x; i < m; i += WIDE_BLOCK)
        is_bad |= !isfinite(p.right[i]);
    is_bad = __syncthreads_or(is_bad);
    if (threadIdx.x == 0)
        *p.finite = is_bad ? 0.0f : 1.0f;
}

/* ---- Launches --------------------------------------------------------------------------- */

static bool is_of_matrices(brg_compress_rule rule)
{
    return rule == BRG_COMPRESS_ORTHO || rule == BRG_COMPRESS_JUDGE;
}

static int64_t blocks_of(const brg_compress_job *job,
                         const brg_compress_part &p)
{
    if (is_of_matrices(job->rule))
        return p.n > 0;
    if (job->rule == BRG_COMPRESS_TO_Q8 || job->rule == BRG_COMPRESS_FROM_Q8)
        return ((int64_t)brg__q8_blocks(p.count) + Q8_BLOCKS - 1) / Q8_BLOCKS;
    return (elements_of(job->rule, p, job->rank) + PIECE - 1) / PIECE;
}

/* Parts from *done on, as many as one launch takes. */
static void next_batch(batch *b, const brg_compress_job *job, size_t *done)
{
    b->n = 0;
    b->first[0] = 0;
    b->steps = job->steps;
    b->share = job->share;
    b->dtype = job->dtype;
    b->wire_dtype = job->wire_dtype;
    b->rank = job->rank;
    b->is_kept = job->is_kept;
    for (; b->n < MANY && *done < job->n_parts; ++*done) {
        const brg_compress_part &p = job->parts[*done];
        const int64_t blocks = blocks_of(job, p);
        if (blocks == 0)
            continue;
        b->part[b->n] = p;
        b->first[b->n + 1] = b->first[b->n] + blocks;
        b->n++;
    }
}

static void launch(const batch &b, brg_compress_rule rule, cudaStream_t stream)
{
    const unsigned blocks = (unsigned)b.first[b.n];
#define ELEMENTS(RULE)                                                         \
    case RULE:                                                                 \
        element_kernel<RULE><<<blocks, THREADS, 0, stream>>>(b);               \
        return
    switch (rule) {
        ELEMENTS(BRG_COMPRESS_TO_HALF);
        ELEMENTS(BRG_COMPRESS_ADD);
        ELEMENTS(BRG_COMPRESS_DRAW);
        ELEMENTS(BRG_COMPRESS_EXPAND);
        ELEMENTS(BRG_COMPRESS_WARM);
    case BRG_COMPRESS_TO_Q8:
        to_q8_kernel<<<blocks, THREADS, 0, stream>>>(b);
        return;
    case BRG_COMPRESS_FROM_Q8:
        from_q8_kernel<<<blocks, THREADS, 0, stream>>>(b);
        return;
    case BRG_COMPRESS_ORTHO:
        ortho_kernel<<<blocks, WIDE_BLOCK, 0, stream>>>(b);
        return;
    case BRG_COMPRESS_JUDGE:
        judge_kernel<<<blocks, WIDE_BLOCK, 0, stream>>>(b);
        return;
    }
#undef ELEMENTS
}

int brg__cu_compress(const brg__cu_queue *q, const struct brg_compress_job *job)
{
    for (size_t done = 0; done < job->n_parts;) {
        batch b;
        next_batch(&b, job, &done);
        if (b.n > 0)
            launch(b, job->rule, stream_of(q));
    }
    return (int)cudaGetLastError();
}
