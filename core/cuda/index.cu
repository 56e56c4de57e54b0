/* SPDX-License-Identifier: Apache-2.0
 * Picking by index. The gradients add up in a fixed order: ids are sorted
 * (stable), then each row of the result is summed by the threads that own its
 * elements, so that a result has the same bits each time. An id out of
 * range is noted and left out. */
#include <cub/device/device_radix_sort.cuh>

#include "core/cuda/element.cuh"

/* The id at k; -1 if it is out of range. */
static __device__ __forceinline__ int64_t id_at(const brg__cu_index &a,
                                                int64_t k,
                                                brg__cu_fault *fault)
{
    const int64_t id = load_id(a.ids, a.id_dtype, k);
    if (id >= 0 && id < a.size)
        return id;
    report(fault, a.op, id, k, a.size);
    return -1;
}

static int item_size(int dtype)
{
    static const int sizes[] = {8, 4, 2, 2, 8, 4, 1, 1};
    return sizes[dtype];
}

/* ---- Taking -------------------------------------------------------------------- */

/* W: as many bytes as divide a slice. `inner` counts them. */
template <typename W>
__global__ void take_slices_kernel(const __grid_constant__ brg__cu_index a,
                                   int64_t inner, brg__cu_fault *fault)
{
    FOR_EACH(i, a.outer * a.n * inner)
    {
        const int64_t slice = i / inner, at = i - slice * inner;
        const int64_t o = slice / a.n, k = slice - o * a.n;
        const int64_t id = id_at(a, k, fault);
        W v = {};
        if (id >= 0)
            v = ((const W *)a.x)[(o * a.size + id) * inner + at];
        ((W *)a.y)[i] = v;
    }
}

int brg__cu_take_slices(const brg__cu_queue *q, const brg__cu_index *a)
{
    const int64_t bytes = a->inner * item_size(a->dtype);
    const uint64_t all = (uint64_t)bytes | (uint64_t)(uintptr_t)a->x |
                         (uint64_t)(uintptr_t)a->y;
#define LAUNCH(W)                                                              \
    take_slices_kernel<W>                                                      \
        <<<blocks_for(a->outer * a->n * (bytes / (int64_t)sizeof(W)),          \
                      THREADS),                                                \
           THREADS, 0, stream_of(q)>>>(*a, bytes / (int64_t)sizeof(W),         \
                                       q->fault)
    if (all % 16 == 0)
        LAUNCH(uint4);
    else if (all % 4 == 0)
        LAUNCH(uint32_t);
    else
        LAUNCH(uint8_t);
#undef LAUNCH
    return (int)cudaGetLastError();
}

template <typename W>
__global__ void take_elements_kernel(const __grid_constant__ brg__cu_index a,
                                     brg__cu_fault *fault)
{
    FOR_EACH(i, a.outer * a.n * a.inner)
    {
        const int64_t o = i / (a.n * a.inner), at = i % a.inner;
        const int64_t id = id_at(a, i, fault);
        W v = {};
        if (id >= 0)
            v = ((const W *)a.x)[(o * a.size + id) * a.inner + at];
        ((W *)a.y)[i] = v;
    }
}

int brg__cu_take_elements(const brg__cu_queue *q, const brg__cu_index *a)
{
    const unsigned grid = blocks_for(a->outer * a->n * a->inner, THREADS);
#define LAUNCH(W)                                                              \
    take_elements_kernel<W><<<grid, THREADS, 0, stream_of(q)>>>(*a, q->fault)
    switch (item_size(a->dtype)) {
    case 8:
        LAUNCH(uint64_t);
        break;
    case 4:
        LAUNCH(uint32_t);
        break;
    case 2:
        LAUNCH(uint16_t);
        break;
    default:
        LAUNCH(uint8_t);
    }
#undef LAUNCH
    return (int)cudaGetLastError();
}

/* ---- Adding slices ---------------------------------------------------------------- */

/* Where in the scratch: keys and positions, unsorted and sorted; first[id] is
 * the first sorted place of the id; then the sort's own. */
typedef struct plan {
    uint64_t keys[2], places[2], first, sort, nbytes;
    size_t sort_bytes;
} plan;

static uint64_t take(uint64_t *at, uint64_t nbytes)
{
    const uint64_t from = *at;
    *at += (nbytes + 255) / 256 * 256;
    return from;
}

static int bits_for(int64_t size)
{
    int bits = 1;
    while (bits < 32 && ((int64_t)1 << bits) <= size)
        bits++;
    return bits;
}

static plan plan_of(const brg__cu_index *a)
{
    plan p = {};
    uint64_t at = 0, n = (uint64_t)a->n * sizeof(uint32_t);
    for (int i = 0; i < 2; i++) {
        p.keys[i] = take(&at, n);
        p.places[i] = take(&at, n);
    }
    p.first = take(&at, ((uint64_t)a->size + 2) * sizeof(uint32_t));
    (void)cub::DeviceRadixSort::SortPairs(
        NULL, p.sort_bytes, (const uint32_t *)NULL, (uint32_t *)NULL,
        (const uint32_t *)NULL, (uint32_t *)NULL, (int)a->n, 0,
        bits_for(a->size));
    p.sort = take(&at, p.sort_bytes);
    p.nbytes = at;
    return p;
}

uint64_t brg__cu_add_slices_scratch(const brg__cu_index *a)
{
    return plan_of(a).nbytes;
}

/* Ids out of range sort behind all others. */
__global__ void keys_kernel(const __grid_constant__ brg__cu_index a,
                            uint32_t *keys, uint32_t *places,
                            brg__cu_fault *fault)
{
    FOR_EACH(k, a.n)
    {
        const int64_t id = id_at(a, k, fault);
        keys[k] = (uint32_t)(id < 0 ? a.size : id);
        places[k] = (uint32_t)k;
    }
}

/* first[id] = the number of keys below id. */
__global__ void first_kernel(const uint32_t *keys, int64_t n, int64_t size,
                             uint32_t *first)
{
    FOR_EACH(k, n + 1)
    {
        const int64_t before = k == 0 ? -1 : (int64_t)keys[k - 1];
        const int64_t now = k == n ? size + 1 : (int64_t)keys[k];
        for (int64_t id = before + 1; id <= now; id++)
            first[id] = (uint32_t)k;
    }
}

#define TALL 8

/* A block makes one row; its warps take every eighth of the row's slices and
 * are then added up in their order. */
template <typename T, typename C>
__global__ void __launch_bounds__(32 * TALL)
    add_rows_kernel(const __grid_constant__ brg__cu_index a,
                    const uint32_t *places, const uint32_t *first)
{
    constexpr int V = vec<T>::n;
    const int64_t row = blockIdx.x, o = row / a.size, id = row - o * a.size;
    const uint32_t from = first[id], to = first[id + 1];
    const T *x = (const T *)a.x + o * a.n * a.inner;
    T *y = (T *)a.y + row * a.inner;
    if (to - from <= 1) { /* of no or one slice */
        const T *only = x + (to > from ? places[from] : 0) * a.inner;
        for (int64_t i = (threadIdx.y * 32 + threadIdx.x) * V; i < a.inner;
             i += 32 * TALL * V)
            *(vec<T> *)(y + i) =
                to > from ? *(const vec<T> *)(only + i) : vec<T>{};
        return;
    }
    __shared__ C part[TALL][32][V];
    for (int64_t c = 0; c < a.inner; c += 32 * V) {
        const int64_t i = c + threadIdx.x * V;
        C sum[V] = {};
#pragma unroll 4
        for (uint32_t k = from + threadIdx.y; k < to; k += TALL) {
            if (i >= a.inner)
                break;
            const vec<T> v = *(const vec<T> *)(x + places[k] * a.inner + i);
#pragma unroll
            for (int j = 0; j < V; j++)
                sum[j] += get<C>(&v.at[j]);
        }
        __syncthreads();
#pragma unroll
        for (int j = 0; j < V; j++)
            part[threadIdx.y][threadIdx.x][j] = sum[j];
        __syncthreads();
        if (threadIdx.y != 0 || i >= a.inner)
            continue;
        vec<T> out;
#pragma unroll
        for (int j = 0; j < V; j++) {
            C all = 0;
            for (int k = 0; k < TALL; k++)
                all += part[k][threadIdx.x][j];
            out.at[j] = as<T>::of(all);
        }
        *(vec<T> *)(y + i) = out;
    }
}

static bool is_by_rows(const brg__cu_index *a)
{
    return a->inner * item_size(a->dtype) % 16 == 0 &&
           (uintptr_t)a->x % 16 == 0 && (uintptr_t)a->y % 16 == 0 &&
           a->outer * a->size <= INT32_MAX;
}

template <typename T, typename C>
__global__ void add_slices_kernel(const __grid_constant__ brg__cu_index a,
                                  const uint32_t *places,
                                  const uint32_t *first)
{
    FOR_EACH(i, a.outer * a.size * a.inner)
    {
        const int64_t row = i / a.inner, at = i - row * a.inner;
        const int64_t o = row / a.size, id = row - o * a.size;
        const uint32_t to = first[id + 1];
        C sum = 0;
        for (uint32_t k = first[id]; k < to; k++)
            sum += get<C>((const T *)a.x +
                          (o * a.n + places[k]) * a.inner + at);
        ((T *)a.y)[i] = as<T>::of(sum);
    }
}

int brg__cu_add_slices(const brg__cu_queue *q, const brg__cu_index *a,
                       void *scratch)
{
    plan p = plan_of(a);
    char *base = (char *)scratch;
    uint32_t *keys = (uint32_t *)(base + p.keys[0]);
    uint32_t *sorted = (uint32_t *)(base + p.keys[1]);
    uint32_t *from = (uint32_t *)(base + p.places[0]);
    uint32_t *places = (uint32_t *)(base + p.places[1]);
    uint32_t *first = (uint32_t *)(base + p.first);
    if (a->n > 0) {
        keys_kernel<<<blocks_for(a->n, THREADS), THREADS, 0, stream_of(q)>>>(
            *a, keys, from, q->fault);
        cudaError_t error = cub::DeviceRadixSort::SortPairs(
            base + p.sort, p.sort_bytes, keys, sorted, from, places,
            (int)a->n, 0, bits_for(a->size), stream_of(q));
        if (error != cudaSuccess)
            return (int)error;
    }
    first_kernel<<<blocks_for(a->n + 1, THREADS), THREADS, 0,
                   stream_of(q)>>>(sorted, a->n, a->size, first);
    if (is_by_rows(a)) {
#define LAUNCH(T, C)                                                           \
    add_rows_kernel<T, C>                                                      \
        <<<(unsigned)(a->outer * a->size), dim3(32, TALL), 0, stream_of(q)>>>( \
            *a, places, first)
        WITH_FLOAT(a->dtype, LAUNCH);
#undef LAUNCH
        return (int)cudaGetLastError();
    }
    const unsigned grid = blocks_for(a->outer * a->size * a->inner, THREADS);
#define LAUNCH(T, C)                                                           \
    add_slices_kernel<T, C>                                                    \
        <<<grid, THREADS, 0, stream_of(q)>>>(*a, places, first)
    WITH_FLOAT(a->dtype, LAUNCH);
#undef LAUNCH
    return (int)cudaGetLastError();
}

/* ---- Adding elements: a thread per line, in order ------------------------------------ */

template <typename T, typename C>
__global__ void add_elements_kernel(const __grid_constant__ brg__cu_index a,
                                    C *sums, brg__cu_fault *fault)
{
    FOR_EACH(line, a.outer * a.inner)
    {
        const int64_t o = line / a.inner, at = line - o * a.inner;
        C *to = sums + o * a.size * a.inner + at;
        for (int64_t i = 0; i < a.size; i++)
            to[i * a.inner] = 0;
        for (int64_t k = 0; k < a.n; k++) {
            const int64_t from = (o * a.n + k) * a.inner + at;
            const int64_t id = id_at(a, from, fault);
            if (id >= 0)
                to[id * a.inner] += get<C>((const T *)a.x + from);
        }
        if (sizeof(T) == sizeof(C))
            continue;
        T *y = (T *)a.y + o * a.size * a.inner + at;
        for (int64_t i = 0; i < a.size; i++)
            y[i * a.inner] = as<T>::of(to[i * a.inner]);
    }
}

int brg__cu_add_elements(const brg__cu_queue *q, const brg__cu_index *a,
                         void *scratch)
{
    const unsigned grid = blocks_for(a->outer * a->inner, 64);
#define LAUNCH(T, C)                                                           \
    add_elements_kernel<T, C><<<grid, 64, 0, stream_of(q)>>>(                  \
        *a, (C *)(scratch ? scratch : a->y), q->fault)
    WITH_FLOAT(a->dtype, LAUNCH);
#undef LAUNCH
    return (int)cudaGetLastError();
}

/* ---- One hot ---------------------------------------------------------------------------- */

__global__ void one_hot_kernel(const __grid_constant__ brg__cu_index a,
                               brg__cu_fault *fault)
{
    FOR_EACH(i, a.n * a.size)
    {
        const int64_t k = i / a.size;
        store<int64_t>(a.y, a.dtype, i,
                       id_at(a, k, fault) == i - k * a.size ? 1 : 0);
    }
}

int brg__cu_one_hot(const brg__cu_queue *q, const brg__cu_index *a)
{
    one_hot_kernel<<<blocks_for(a->n * a->size, THREADS), THREADS, 0,
                     stream_of(q)>>>(*a, q->fault);
    return (int)cudaGetLastError();
}
