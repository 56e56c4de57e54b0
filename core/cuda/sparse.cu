/* SPDX-License-Identifier: Apache-2.0
 * Sparse tensors: their entries sorted by place (stable), then one thread for
 * each element of each place, which goes through the entries in their order,
 * as the CPU does: the sums have its bits. */
#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>

#include "core/cuda/optim.cuh"

#include <brigade/sparse.h>

#define PER_THREAD(n) <<<blocks_for((n), THREADS), THREADS, 0, stream_of(q)>>>

/* ---- Places --------------------------------------------------------------------- */

/* Of entry k; -1: nowhere. */
static __device__ __forceinline__ int64_t place_of(const brg_sparse_job &j,
                                                   int64_t k)
{
    int64_t place = 0;
    for (int d = 0; d < j.n_dims; d++) {
        const int64_t i = j.indices[d * j.nnz + k];
        if (i < 0 || i >= j.shape[d])
            return -1;
        place = place * j.shape[d] + i;
    }
    return place;
}

static int64_t places_in(const brg_sparse_job *j)
{
    int64_t n = 1;
    for (int d = 0; d < j->n_dims; d++)
        n *= j->shape[d];
    return n;
}

__global__ void check_kernel(const __grid_constant__ brg_sparse_job j,
                             brg__cu_fault *fault)
{
    FOR_EACH(at, j.n_dims * j.nnz)
    {
        const int64_t d = at / j.nnz, i = j.indices[at];
        if ((i < 0 && i != BRG_SPARSE_NO_PLACE) || i >= j.shape[d])
            report(fault, BRG__CU_FAULT_SPARSE_COO, i, at - d * j.nnz,
                   j.shape[d]);
    }
}

__global__ void places_kernel(const __grid_constant__ brg_sparse_job j,
                              brg__cu_fault *fault)
{
    FOR_EACH(k, j.nnz)
    {
        const int64_t id = load_id(j.from, j.id_dtype, k);
        const bool is_in = id >= 0 && id < j.shape[0];
        if (!is_in)
            report(fault, BRG__CU_FAULT_EMBEDDING_GRAD, id, k, j.shape[0]);
        ((int64_t *)j.to)[k] =
            is_in && id != j.padding ? id : BRG_SPARSE_NO_PLACE;
    }
}

/* ---- Taking ----------------------------------------------------------------------- */

template <typename T>
__global__ void take_kernel(const __grid_constant__ brg_sparse_job j)
{
    FOR_EACH(i, j.nnz * j.size)
    {
        const int64_t k = i / j.size, place = place_of(j, k);
        const int64_t at = place * j.size + (i - k * j.size);
        ((T *)j.to)[i] = place < 0 ? as<T>::of(0.0f) : ((const T *)j.from)[at];
    }
}

/* ---- Order -------------------------------------------------------------------------- */

/* Where in the scratch: keys and numbers before they are sorted; then what the
 * sort and, later, the sum over the heads need. */
typedef struct plan {
    uint64_t keys, entries, more, nbytes;
    size_t sort_bytes, scan_bytes;
    int n_bits;
} plan;

static plan plan_of(const brg_sparse_job *j)
{
    plan p = {};
    const uint64_t row =
        ((uint64_t)j->nnz * sizeof(int64_t) + 255) / 256 * 256;
    const int64_t n_places = places_in(j);
    p.n_bits = 1; /* of n_places: nowhere */
    while (p.n_bits < 63 && n_places >> p.n_bits > 0)
        p.n_bits++;
    (void)cub::DeviceRadixSort::SortPairs(
        NULL, p.sort_bytes, (const uint64_t *)NULL, (uint64_t *)NULL,
        (const int64_t *)NULL, (int64_t *)NULL, (int)j->nnz, 0, p.n_bits);
    (void)cub::DeviceScan::InclusiveSum(NULL, p.scan_bytes, (int64_t *)NULL,
                                        (int64_t *)NULL, (int)j->nnz);
    p.entries = row;
    p.more = 2 * row;
    p.nbytes = p.more +
               (p.sort_bytes > p.scan_bytes ? p.sort_bytes : p.scan_bytes);
    return p;
}

uint64_t brg__cu_sparse_scratch(const struct brg_sparse_job *job)
{
    return job->rule == BRG_SPARSE_ORDER ? plan_of(job).nbytes : 0;
}

__global__ void keys_kernel(const __grid_constant__ brg_sparse_job j,
                            int64_t n_places, uint64_t *keys, int64_t *entries)
{
    FOR_EACH(k, j.nnz)
    {
        const int64_t place = place_of(j, k);
        keys[k] = (uint64_t)(place < 0 ? n_places : place);
        entries[k] = k;
    }
}

/* The first entry of a place, in the order. */
static __device__ __forceinline__ bool is_head(const int64_t *places,
                                               int64_t n_places, int64_t k)
{
    return places[k] < n_places && (k == 0 || places[k] != places[k - 1]);
}

__global__ void heads_kernel(int64_t nnz, int64_t n_places,
                             const int64_t *places, int64_t *heads)
{
    FOR_EACH(k, nnz)
        heads[k] = is_head(places, n_places, k);
}

static int order(const brg__cu_queue *q, const brg_sparse_job *j, void *scratch)
{
    plan p = plan_of(j);
    char *base = (char *)scratch;
    uint64_t *keys = (uint64_t *)base;
    int64_t *entries = (int64_t *)(base + p.entries);
    int64_t *to = (int64_t *)j->to, n_places = places_in(j);
    keys_kernel PER_THREAD(j->nnz)(*j, n_places, keys, entries);
    cudaError_t error = cub::DeviceRadixSort::SortPairs(
        base + p.more, p.sort_bytes, keys, (uint64_t *)to, entries,
        to + j->nnz, (int)j->nnz, 0, p.n_bits, stream_of(q));
    if (error != cudaSuccess)
        return (int)error;
    heads_kernel PER_THREAD(j->nnz)(j->nnz, n_places, to, entries);
    error = cub::DeviceScan::InclusiveSum(base + p.more, p.scan_bytes, entries,
                                          to + 2 * j->nnz, (int)j->nnz,
                                          stream_of(q));
    return (int)(error != cudaSuccess ? error : cudaGetLastError());
}

/* ---- Sums ----------------------------------------------------------------------------- */

/* The place whose entries begin at k of the order; -1: none. */
static __device__ __forceinline__ int64_t begins_at(const brg_sparse_job &j,
                                                    int64_t n_places, int64_t k)
{
    if (!j.order)
        return place_of(j, k);
    return is_head(j.order, n_places, k) ? j.order[k] : -1;
}

static __device__ __forceinline__ int64_t entry_at(const brg_sparse_job &j,
                                                   int64_t k)
{
    return j.order ? j.order[j.nnz + k] : k;
}

/* The next of the same place is at k. */
static __device__ __forceinline__ bool goes_on(const brg_sparse_job &j,
                                               int64_t k)
{
    return j.order && k < j.nnz && j.order[k] == j.order[k - 1];
}

/* Element `at` of the sum of the entries from k of the order on, as T holds
 * it. */
template <typename T, typename C>
static __device__ __forceinline__ C sum_at(const brg_sparse_job &j, int64_t k,
                                           int64_t at)
{
    const T *from = (const T *)j.from + at;
    C sum = get<C>(from + entry_at(j, k) * j.size);
    while (goes_on(j, ++k))
        sum += get<C>(from + entry_at(j, k) * j.size);
    const T rounded = as<T>::of(sum);
    return get<C>(&rounded);
}

template <typename T, typename C>
__global__ void sum_kernel(const __grid_constant__ brg_sparse_job j,
                           int64_t n_places)
{
    FOR_EACH(i, j.nnz * j.size)
    {
        const int64_t k = i / j.size, at = i - k * j.size;
        if (begins_at(j, n_places, k) >= 0)
            ((T *)j.to)[(j.order[2 * j.nnz + k] - 1) * j.size + at] =
                as<T>::of(sum_at<T, C>(j, k, at));
    }
}

__global__ void indices_kernel(const __grid_constant__ brg_sparse_job j,
                               int64_t n_places)
{
    FOR_EACH(k, j.nnz)
    {
        if (begins_at(j, n_places, k) < 0)
            continue;
        const int64_t row = j.order[2 * j.nnz + k] - 1;
        for (int d = 0; d < j.n_dims; d++)
            j.to_indices[d * j.n + row] =
                j.indices[d * j.nnz + entry_at(j, k)];
    }
}

template <typename T, typename C>
__global__ void add_kernel(const __grid_constant__ brg_sparse_job j,
                           int64_t n_places)
{
    const C alpha = (C)j.alpha;
    FOR_EACH(i, j.nnz * j.size)
    {
        int64_t k = i / j.size;
        const int64_t at = i - k * j.size, place = begins_at(j, n_places, k);
        if (place < 0)
            continue;
        T *to = (T *)j.to + place * j.size + at;
        C sum = get<C>(to);
        if (sizeof(T) < sizeof(C)) {
            sum += alpha * sum_at<T, C>(j, k, at);
        } else {
            const T *from = (const T *)j.from + at;
            do
                sum += alpha * get<C>(from + entry_at(j, k) * j.size);
            while (goes_on(j, ++k));
        }
        *to = as<T>::of(sum);
    }
}

/* ---- Steps ------------------------------------------------------------------------------ */

/* Where a master does not round to its parameter, it takes that. */
template <typename T, typename C>
__global__ void follow_kernel(const T *param, C *master, int64_t n)
{
    FOR_EACH(i, n)
    {
        const T rounded = as<T>::of(master[i]);
        if (get<C>(&rounded) != get<C>(param + i))
            master[i] = get<C>(param + i);
    }
}

template <typename T, typename C>
__global__ void step_kernel(const __grid_constant__ brg_sparse_job j,
                            const __grid_constant__ brg_device_update u,
                            int64_t n_places)
{
    if (u.found_inf && *u.found_inf != 0.0f)
        return;
    FOR_EACH(i, j.nnz * j.size)
    {
        const int64_t k = i / j.size, at = i - k * j.size;
        const int64_t place = begins_at(j, n_places, k);
        const int64_t to = place * j.size + at - j.first;
        if (place >= 0 && to >= 0 && to < (int64_t)u.numel)
            update<T, C>(u, u.f, to, sum_at<T, C>(j, k, at));
    }
}

static int step_rows(const brg__cu_queue *q, const brg_sparse_job *j)
{
    brg_device_update u = *j->update;
    u.follows = false;
#define FOLLOW(T, C)                                                           \
    follow_kernel<T, C> PER_THREAD((int64_t)u.numel)(                          \
        (const T *)u.param, (C *)u.master, (int64_t)u.numel)
#define STEP(T, C)                                                             \
    step_kernel<T, C> PER_THREAD(j->nnz *j->size)(*j, u, places_in(j))
    if (j->update->follows && u.master)
        WITH_FLOAT((int)u.dtype, FOLLOW);
    WITH_FLOAT((int)u.dtype, STEP);
    return (int)cudaGetLastError();
}

/* ---- Launching -------------------------------------------------------------------------- */

static void take(const brg__cu_queue *q, const brg_sparse_job *j)
{
#define TAKE(T, C) take_kernel<T> PER_THREAD(j->nnz *j->size)(*j)
    WITH_FLOAT((int)j->dtype, TAKE);
}

static void sum(const brg__cu_queue *q, const brg_sparse_job *j)
{
    const int64_t n_places = places_in(j);
#define SUM(T, C) sum_kernel<T, C> PER_THREAD(j->nnz *j->size)(*j, n_places)
    indices_kernel PER_THREAD(j->nnz)(*j, n_places);
    if (j->size > 0)
        WITH_FLOAT((int)j->dtype, SUM);
}

static void add(const brg__cu_queue *q, const brg_sparse_job *j)
{
#define ADD(T, C) add_kernel<T, C> PER_THREAD(j->nnz *j->size)(*j, places_in(j))
    WITH_FLOAT((int)j->dtype, ADD);
}

int brg__cu_sparse(const brg__cu_queue *q, const struct brg_sparse_job *job,
                   void *scratch)
{
    switch (job->rule) {
    case BRG_SPARSE_CHECK:
        check_kernel PER_THREAD(job->n_dims *job->nnz)(*job, q->fault);
        break;
    case BRG_SPARSE_PLACES:
        places_kernel PER_THREAD(job->nnz)(*job, q->fault);
        break;
    case BRG_SPARSE_TAKE:
        take(q, job);
        break;
    case BRG_SPARSE_ORDER:
        return order(q, job, scratch);
    case BRG_SPARSE_SUM:
        sum(q, job);
        break;
    case BRG_SPARSE_ADD:
        add(q, job);
        break;
    case BRG_SPARSE_UPDATE:
        return step_rows(q, job);
    }
    return (int)cudaGetLastError();
}
