/* SPDX-License-Identifier: Apache-2.0
 * Losses. Cross entropy reads the logits once forward and once backward, or once
 * for both, and keeps nothing of their size: the gradient is made from the
 * log-sum-exp. */
#include "core/cuda/element.cuh"

/* ---- Cross entropy ------------------------------------------------------------- */

/* The row's target t; -1 if it is ignored or out of range, which is noted. */
static __device__ __forceinline__ int64_t checked(const brg__cu_entropy &a,
                                                  int64_t t, int64_t row,
                                                  brg__cu_fault *fault)
{
    if (t == a.ignored)
        return -1;
    if (t >= 0 && t < a.classes)
        return t;
    report(fault, BRG__CU_FAULT_CROSS_ENTROPY, t, row, a.classes);
    return -1;
}

static __device__ __forceinline__ int64_t target_of(const brg__cu_entropy &a,
                                                    int64_t row,
                                                    brg__cu_fault *fault)
{
    return checked(a, load_id(a.targets, a.target_dtype, row), row, fault);
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

/* What the threads have of a row comes to; the same in every thread. */
template <bool IS_SMOOTH, typename T, typename C>
static __device__ __forceinline__ running<C> over_row(running<C> r)
{
    const C top = over_block<max_of>(r.top);
    if (top != -INFINITY)
        r.sum *= grown<T>::of(r.top, grown<T>::prepare(top));
    return {top, over_block<sum_of>(r.sum),
            IS_SMOOTH ? over_block<sum_of>(r.plain) : (C)0};
}

template <bool IS_SMOOTH, typename T, typename C, int V>
static __device__ __forceinline__ running<C> walk(const brg__cu_entropy &a,
                                                  const T *x)
{
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
    return over_row<IS_SMOOTH, T>(r);
}

/* One thread's: scratch[row]: the row's loss; scratch[rows + row]: 1 if it
 * counts. Returns its log-sum-exp. */
template <typename T, typename C>
static __device__ __forceinline__ C note_row(const brg__cu_entropy &a,
                                             int64_t row, int64_t t,
                                             const running<C> &r)
{
    const T *x = (const T *)a.logits + row * a.width;
    const double lse = (double)r.top + log((double)r.sum), e = a.smoothing;
    a.scratch[row] =
        (1.0 - e) * (lse - get<double>(x + t)) +
        (e != 0 ? e * (lse - (double)r.plain / (double)a.classes) : 0.0);
    a.scratch[a.rows + row] = 1.0;
    return ((C *)a.lse)[row] = (C)lse;
}

/* The same of a row that is ignored. */
template <typename C>
static __device__ __forceinline__ void note_none(const brg__cu_entropy &a,
                                                 int64_t row)
{
    a.scratch[row] = a.scratch[a.rows + row] = 0.0;
    ((C *)a.lse)[row] = 0;
}

/* One read of the row. */
template <bool IS_SMOOTH, typename T, typename C, int V>
__global__ void __launch_bounds__(512, 3)
    entropy_kernel(const __grid_constant__ brg__cu_entropy a,
                   brg__cu_fault *fault)
{
    const int64_t row = blockIdx.x;
    const int64_t t = target_of(a, row, fault);
    if (t < 0) {
        if (threadIdx.x == 0)
            note_none<C>(a, row);
        return;
    }
    const running<C> r =
        walk<IS_SMOOTH, T, C, V>(a, (const T *)a.logits + row * a.width);
    if (threadIdx.x == 0)
        note_row<T>(a, row, t, r);
}

/* Numbers that a thread of a single block has on their way at once. */
constexpr int rows_at_once = 8;

__global__ void __launch_bounds__(1024)
    entropy_join_kernel(const __grid_constant__ brg__cu_entropy a)
{
    double sum = 0, count = 0;
#pragma unroll rows_at_once
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
        brg__cu_grid(a->rows), threads_for(a->classes), 0, stream_of(q)>>>(    \
        *a, q->fault)
#define LAUNCH_1(T, C) LAUNCH(T, C, 1)
    if (a->rows > 0)
        WITH_ENTROPY(a, LAUNCH);
#undef LAUNCH
#undef LAUNCH_1
    entropy_join_kernel<<<1, 1024, 0, stream_of(q)>>>(*a);
    return (int)cudaGetLastError();
}

/* scratch[2 rows]: how many rows count. */
__global__ void __launch_bounds__(1024)
    count_kernel(const __grid_constant__ brg__cu_entropy a,
                 brg__cu_fault *fault)
{
    double count = 0;
    for (int64_t i = threadIdx.x; i < a.rows; i += rows_at_once * blockDim.x) {
        int64_t t[rows_at_once]; /* before any of them may be reported */
#pragma unroll
        for (int k = 0; k < rows_at_once; k++) {
            const int64_t at = i + k * blockDim.x;
            t[k] = at < a.rows ? load_id(a.targets, a.target_dtype, at)
                               : a.ignored;
        }
#pragma unroll
        for (int k = 0; k < rows_at_once; k++)
            count += checked(a, t[k], i + k * blockDim.x, fault) >= 0;
    }
    count = over_block<sum_of>(count);
    if (threadIdx.x == 0)
        a.scratch[2 * a.rows] = count;
}

/* Multiplied and subtracted apart, wherever it is compiled into. */
static __device__ __forceinline__ float less(float a, float factor, float b)
{
    return __fsub_rn(__fmul_rn(a, factor), b);
}

static __device__ __forceinline__ double less(double a, double factor, double b)
{
    return __dsub_rn(__dmul_rn(a, factor), b);
}

/* What the elements of a row's gradient are made from; scratch[2 rows] is
 * there. */
template <typename T, typename C> struct slope {
    C lse, factor, base, taken;

    /* Divides twice in f64: once for all rows. */
    __device__ explicit slope(const brg__cu_entropy &a)
        : lse(0), base((C)(a.smoothing / (double)a.classes))
    {
        const double g = a.g ? load<double>(a.g, a.loss_dtype, 0) : a.seed;
        const double scale = g / a.scratch[2 * a.rows];
        factor = (C)scale;
        taken = (C)((1.0 - a.smoothing) * scale);
    }
    /* For a row of this log-sum-exp. */
    __device__ __forceinline__ void begin(C log_sum_exp)
    {
        lse = grown<T>::prepare(log_sum_exp);
    }
    __device__ __forceinline__ T at(const T &x) const
    {
        return as<T>::of((grown<T>::of(get<C>(&x), lse) - base) * factor);
    }
    /* The same where nothing is smoothed: base is 0. */
    __device__ __forceinline__ T rising(const T &x) const
    {
        return as<T>::of(grown<T>::of(get<C>(&x), lse) * factor);
    }
    __device__ __forceinline__ T at_target(const T &x) const
    {
        return as<T>::of(
            less(grown<T>::of(get<C>(&x), lse) - base, factor, taken));
    }
};

/* V elements of a row from i on; t < 0: of one that is ignored. */
template <typename T, typename C, int V>
static __device__ __forceinline__ pack<T, V>
slope_at(const brg__cu_entropy &a, const slope<T, C> &s, const pack<T, V> &x,
         int64_t i, int64_t t)
{
    pack<T, V> to;
    if (t >= 0 && i + V <= a.classes && (t < i || t >= i + V)) {
#pragma unroll
        for (int k = 0; k < V; k++)
            to.at[k] = s.at(x.at[k]);
        return to;
    }
#pragma unroll
    for (int k = 0; k < V; k++)
        to.at[k] = t < 0 || i + k >= a.classes ? as<T>::of((C)0)
                   : i + k == t                ? s.at_target(x.at[k])
                                               : s.at(x.at[k]);
    return to;
}

template <typename T, typename C, int V>
__global__ void entropy_grad_kernel(const __grid_constant__ brg__cu_entropy a,
                                    brg__cu_fault *fault)
{
    const int64_t row = blockIdx.x;
    const T *x = (const T *)a.logits + row * a.width;
    T *out = (T *)a.out + row * a.width;
    const int64_t t = target_of(a, row, fault);
    slope<T, C> s(a);
    s.begin(((const C *)a.lse)[row]);
    for (int64_t i = threadIdx.x * V; i < a.width; i += blockDim.x * V)
        *(pack<T, V> *)(out + i) =
            slope_at<T, C, V>(a, s, *(const pack<T, V> *)(x + i), i, t);
}

int brg__cu_cross_entropy_grad(const brg__cu_queue *q, const brg__cu_entropy *a)
{
    count_kernel<<<1, 1024, 0, stream_of(q)>>>(*a, q->fault);
#define LAUNCH(T, C, V)                                                        \
    entropy_grad_kernel<T, C, V>                                               \
        <<<brg__cu_grid(a->rows), threads_for(a->width), 0, stream_of(q)>>>(   \
            *a, q->fault)
#define LAUNCH_1(T, C) LAUNCH(T, C, 1)
    WITH_ENTROPY(a, LAUNCH);
#undef LAUNCH
#undef LAUNCH_1
    return (int)cudaGetLastError();
}

/* ---- Both at once --------------------------------------------------------------- */

/* Reads and writes what is not read again soon, to leave the caches to what is. */
template <typename P> static __device__ __forceinline__ P load_past(const P *at)
{
    P v;
    if constexpr (sizeof(P) == sizeof(int4))
        *(int4 *)&v = __ldcs((const int4 *)at);
    else
        v = *at;
    return v;
}

template <typename P>
static __device__ __forceinline__ void store_past(P *at, const P &v)
{
    if constexpr (sizeof(P) == sizeof(int4))
        __stcs((int4 *)at, *(const int4 *)&v);
    else
        *at = v;
}

/* The row's log-sum-exp, noted, for all threads. */
template <typename T, typename C>
static __device__ __forceinline__ C lse_of(const brg__cu_entropy &a,
                                           int64_t row, int64_t t,
                                           const running<C> &r)
{
    __shared__ C lse;
    if (threadIdx.x == 0) {
        if (t < 0)
            note_none<C>(a, row);
        lse = t < 0 ? (C)0 : note_row<T>(a, row, t, r);
    }
    __syncthreads();
    return lse;
}

/* The row is read twice, the second time from the cache and backwards: what was
 * read last is there for certain. */
template <bool IS_SMOOTH, typename T, typename C, int V>
__global__ void __launch_bounds__(512, 2)
    entropy_with_grad_kernel(const __grid_constant__ brg__cu_entropy a,
                             brg__cu_fault *fault)
{
    const int64_t row = blockIdx.x;
    const T *x = (const T *)a.logits + row * a.width;
    T *out = (T *)a.out + row * a.width;
    const int64_t t = target_of(a, row, fault);
    slope<T, C> s(a);
    running<C> r = {};
    if (t >= 0)
        r = walk<IS_SMOOTH, T, C, V>(a, x);
    s.begin(lse_of<T>(a, row, t, r));
    const int step = blockDim.x * V, n = (int)a.width;
    for (int i = (n - 1) / step * step + threadIdx.x * V; i >= 0; i -= step)
        if (i < n)
            store_past((pack<T, V> *)(out + i),
                       slope_at<T, C, V>(
                           a, s, load_past((const pack<T, V> *)(x + i)), i, t));
}

extern __shared__ __align__(16) char row_bytes[];

static __device__ __forceinline__ void copy_ahead(void *to, const void *from)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                     (unsigned)__cvta_generic_to_shared(to)),
                 "l"(from)
                 : "memory");
}

#define HELD_THREADS 512
constexpr int held_at_once = 4; /* vectors of a thread */

/* The vectors of a row that a thread works on lie in shared memory. As one is used
 * for the last time, that of the block's next row takes its place; nobody else reads
 * it, so nobody waits. They come in two halves. */
template <typename T, int V> struct held_row {
    static constexpr int step = HELD_THREADS * V;
    pack<T, V> *mine;
    int n;    /* vectors of classes only, */
    int all;  /* and with the last of the classes or of the padding */
    int half; /* of all */

    __device__ __forceinline__ explicit held_row(const brg__cu_entropy &a)
        : mine((pack<T, V> *)row_bytes + threadIdx.x)
    {
        const int i = threadIdx.x * V, classes = (int)a.classes;
        n = i + V <= classes ? (classes - i - V) / step + 1 : 0;
        all = i < a.width ? ((int)a.width - i - 1) / step + 1 : 0;
        half = (classes / step + 1) / 2;
    }
    __device__ __forceinline__ pack<T, V> &at(int k) const
    {
        return mine[k * HELD_THREADS];
    }
    /* Vector k of the row that begins at x. */
    __device__ __forceinline__ void fetch(const T *x, int k) const
    {
        copy_ahead(&at(k), x + k * step + threadIdx.x * V);
    }
    __device__ __forceinline__ void fetch_done() const
    {
        asm volatile("cp.async.commit_group;" ::: "memory");
    }
    /* Which one has element t; one that is not there: it is not this thread's. */
    __device__ __forceinline__ int vector_of(int64_t t) const
    {
        const bool is_mine = t >= 0 && t / V % HELD_THREADS == threadIdx.x;
        return is_mine ? (int)(t / step) : -1;
    }
};

template <bool IS_SMOOTH, typename T, typename C, int V>
static __device__ __forceinline__ running<C> walk_held(const brg__cu_entropy &a,
                                                       const held_row<T, V> &h)
{
    running<C> r = {-INFINITY, 0, 0};
    int k = 0;
    asm volatile("cp.async.wait_group 1;" ::: "memory");
#pragma unroll held_at_once
    for (; k < h.half && k < h.n; k++)
        take<IS_SMOOTH, T, C, V>(r, h.at(k));
    asm volatile("cp.async.wait_group 0;" ::: "memory");
#pragma unroll held_at_once
    for (; k < h.n; k++)
        take<IS_SMOOTH, T, C, V>(r, h.at(k));
    const int rest = (int)a.classes - (k * h.step + (int)threadIdx.x * V);
    for (int j = 0; j < V && j < rest; j++)
        take<IS_SMOOTH, T, C, 1>(r, {{h.at(k).at[j]}});
    return over_row<IS_SMOOTH, T>(r);
}

/* The gradient of vectors from k to `to` of a row that counts, to `out`; those of
 * the row at x take their places. */
template <bool IS_SMOOTH, typename T, typename C, int V>
static __device__ __forceinline__ void
spend_held(const brg__cu_entropy &a, const held_row<T, V> &h,
           const slope<T, C> &s, T *out, const T *x, int64_t t, int &k, int to)
{
    const int special = h.vector_of(t), full = to < h.n ? to : h.n;
#pragma unroll held_at_once
    for (; k < full; k++) {
        const int i = k * h.step + threadIdx.x * V;
        pack<T, V> made;
        if (k == special) {
            made = slope_at<T, C, V>(a, s, h.at(k), i, t);
        } else {
            const pack<T, V> from = h.at(k);
#pragma unroll
            for (int j = 0; j < V; j++)
                made.at[j] =
                    IS_SMOOTH ? s.at(from.at[j]) : s.rising(from.at[j]);
        }
        store_past((pack<T, V> *)(out + i), made);
        if (x)
            h.fetch(x, k);
    }
    for (; k < to && k < h.all; k++) {
        const int i = k * h.step + threadIdx.x * V;
        store_past((pack<T, V> *)(out + i),
                   slope_at<T, C, V>(a, s, h.at(k), i, t));
        if (x && i < a.classes)
            h.fetch(x, k);
    }
    h.fetch_done();
}

/* The same of one that does not. */
template <typename T, int V>
static __device__ __forceinline__ void
pass_held(const brg__cu_entropy &a, const held_row<T, V> &h, T *out, const T *x,
          int &k, int to)
{
    for (; k < to && k < h.all; k++) {
        const int i = k * h.step + threadIdx.x * V;
        store_past((pack<T, V> *)(out + i), pack<T, V>{});
        if (x && i < a.classes)
            h.fetch(x, k);
    }
    h.fetch_done();
}

/* A block takes rows one after the other. */
template <bool IS_SMOOTH, typename T, typename C, int V>
__global__ void __launch_bounds__(HELD_THREADS, 2)
    entropy_held_kernel(const __grid_constant__ brg__cu_entropy a,
                        brg__cu_fault *fault)
{
    const held_row<T, V> held(a);
    int64_t row = blockIdx.x;
    const T *x = (const T *)a.logits + row * a.width;
    for (int k = 0; k < held.all; k++) {
        if (k * held.step + (int)threadIdx.x * V < a.classes)
            held.fetch(x, k);
        if (k == held.half - 1)
            held.fetch_done();
    }
    held.fetch_done();
    slope<T, C> s(a);
    for (; row < a.rows; row += gridDim.x) {
        T *out = (T *)a.out + row * a.width;
        const int64_t t = target_of(a, row, fault), next = row + gridDim.x;
        s.begin(lse_of<T>(a, row, t, walk_held<IS_SMOOTH, T, C, V>(a, held)));
        x = next < a.rows ? (const T *)a.logits + next * a.width : NULL;
        const int ends[] = {held.half, held.all};
        int k = 0;
#pragma unroll
        for (int part = 0; part < 2; part++)
            if (t >= 0)
                spend_held<IS_SMOOTH>(a, held, s, out, x, t, k, ends[part]);
            else
                pass_held(a, held, out, x, k, ends[part]);
    }
}

/* Long rows, of which at least two fit into a multiprocessor. Others: *is_done is
 * false. */
template <bool IS_SMOOTH, typename T, typename C, int V>
static int launch_held(const brg__cu_queue *q, const brg__cu_entropy *a,
                       bool *is_done)
{
    const int threads = threads_for(a->classes), step = threads * V;
    const int64_t bytes = (a->width + step - 1) / step * step * sizeof(T);
    int n_blocks = 0;
    *is_done = false;
    void (*kernel)(brg__cu_entropy, brg__cu_fault *) =
        entropy_held_kernel<IS_SMOOTH, T, C, V>;
    if (threads != HELD_THREADS || bytes > INT32_MAX ||
        cudaFuncSetAttribute((const void *)kernel,
                             cudaFuncAttributeMaxDynamicSharedMemorySize,
                             (int)bytes) != cudaSuccess ||
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(
            &n_blocks, kernel, threads, (size_t)bytes) != cudaSuccess ||
        n_blocks < 2) {
        (void)cudaGetLastError();
        return 0;
    }
    int64_t blocks = n_blocks * (int64_t)q->n_sm;
    blocks = blocks < a->rows ? blocks : a->rows;
    kernel<<<(unsigned)blocks, threads, (size_t)bytes, stream_of(q)>>>(
        *a, q->fault);
    *is_done = true;
    return (int)cudaGetLastError();
}

template <bool IS_SMOOTH, typename T, typename C, int V>
static int launch_both(const brg__cu_queue *q, const brg__cu_entropy *a)
{
    if constexpr (sizeof(pack<T, V>) == 16) {
        bool is_done;
        const int error = launch_held<IS_SMOOTH, T, C, V>(q, a, &is_done);
        if (is_done)
            return error;
    }
    entropy_with_grad_kernel<IS_SMOOTH, T, C, V>
        <<<brg__cu_grid(a->rows), threads_for(a->classes), 0, stream_of(q)>>>(
            *a, q->fault);
    return (int)cudaGetLastError();
}

int brg__cu_cross_entropy_with_grad(const brg__cu_queue *q,
                                    const brg__cu_entropy *a)
{
    count_kernel<<<1, 1024, 0, stream_of(q)>>>(*a, q->fault);
    int error = (int)cudaGetLastError();
    if (error != 0)
        return error;
#define LAUNCH(T, C, V)                                                        \
    error = a->smoothing != 0 ? launch_both<true, T, C, V>(q, a)               \
                              : launch_both<false, T, C, V>(q, a)
#define LAUNCH_1(T, C) LAUNCH(T, C, 1)
    WITH_ENTROPY(a, LAUNCH);
#undef LAUNCH
#undef LAUNCH_1
    if (error != 0)
        return error;
    entropy_join_kernel<<<1, 1024, 0, stream_of(q)>>>(*a);
    return (int)cudaGetLastError();
}

__global__ void targets_kernel(const __grid_constant__ brg__cu_entropy a,
                               brg__cu_fault *fault)
{
    FOR_EACH(i, a.rows * a.width)
    {
        const int64_t row = i / a.width, c = i % a.width;
        const int64_t t = target_of(a, row, fault);
        const double w = t < 0 ? 0.0 : 1.0 / a.scratch[2 * a.rows];
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
