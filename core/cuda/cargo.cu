/* SPDX-License-Identifier: Apache-2.0
 * Tensors among numbers that ranks add (ext/device.h): each launch takes up to
 * MANY of them in its arguments, a block takes one piece of one tensor. */
#include "core/cuda/element.cuh"

#include <brigade/ext/device.h>

/* Arguments may have 4 KB, or 32 KB from CUDA 12.1 on; the library holds room for
 * them. */
#if CUDART_VERSION >= 12010
#define MANY 64
#else
#define MANY 20
#endif
#define PIECE 1024 /* elements of a block */

typedef struct batch {
    int n;
    bool is_load;
    int64_t first[MANY + 1]; /* block at which the tensor begins */
    brg_device_cargo cargo[MANY];
} batch;

/* Of element i in row-major order, in elements. */
static __device__ int64_t offset_of(const brg_device_cargo &c, int64_t i)
{
    if (c.ndim == 1)
        return i * c.stride[0];
    int64_t offset = 0;
#pragma unroll 1
    for (int d = c.ndim - 1; d >= 0; d--) {
        offset += i % c.shape[d] * c.stride[d];
        i /= c.shape[d];
    }
    return offset;
}

static __device__ __forceinline__ int size_of(int dtype)
{
    switch (dtype) {
    case F64:
    case I64:
        return 8;
    case F32:
    case I32:
        return 4;
    case F16:
    case BF16:
        return 2;
    default:
        return 1;
    }
}

/* The bits of elements, from low to high. */
static __device__ __forceinline__ uint64_t bits_of(const void *at, int size,
                                                   int64_t i)
{
    return size == 8   ? ((const uint64_t *)at)[i]
           : size == 4 ? ((const uint32_t *)at)[i]
           : size == 2 ? ((const uint16_t *)at)[i]
                       : ((const uint8_t *)at)[i];
}

static __device__ __forceinline__ void put_bits(void *at, int size, int64_t i,
                                                uint64_t bits)
{
    if (size == 8)
        ((uint64_t *)at)[i] = bits;
    else if (size == 4)
        ((uint32_t *)at)[i] = (uint32_t)bits;
    else if (size == 2)
        ((uint16_t *)at)[i] = (uint16_t)bits;
    else
        ((uint8_t *)at)[i] = (uint8_t)bits;
}

static __device__ uint64_t join_pieces(const float *from, int n, float scale)
{
    uint64_t bits = 0;
#pragma unroll 1
    for (int k = 0; k < n; k++)
        bits |= (uint64_t)__float2uint_rn(from[k] * scale) << (16 * k);
    return bits;
}

/* The average of the sets of one element, in the order of the sets. */
static __device__ void average_sets(const brg_device_cargo &c,
                                    const float *from, int n, int64_t offset)
{
    double wide = 0;
    float narrow = 0;
#pragma unroll 1
    for (uint32_t k = 0; k < c.n_sets; k++, from += c.numel * n) {
        const uint64_t bits = join_pieces(from, n, c.scale);
        if (c.dtype == BRG_DTYPE_F64) {
            const double x = __longlong_as_double((long long)bits);
            wide = k > 0 ? wide + x : x;
        } else {
            const uint32_t low = (uint32_t)bits;
            const float x = load<float>(&low, c.dtype, 0);
            narrow = k > 0 ? narrow + x : x;
        }
    }
    if (c.dtype == BRG_DTYPE_F64)
        store(c.at, c.dtype, offset, wide * (1.0 / c.n_sets));
    else
        store(c.at, c.dtype, offset, narrow * (1.0f / (float)c.n_sets));
}

static __device__ void load_element(const brg_device_cargo &c, int64_t i)
{
    const int size = size_of(c.dtype), n = (size + 1) / 2;
    const int64_t offset = offset_of(c, i);
    if (c.n_sets == 0) {
        c.row[i] = load<float>(c.at, c.dtype, offset);
        return;
    }
    const uint64_t bits = bits_of(c.at, size, offset);
#pragma unroll 1
    for (int k = 0; k < n; k++)
        c.row[i * n + k] = (float)(bits >> (16 * k) & 0xFFFF);
}

static __device__ void unload_element(const brg_device_cargo &c, int64_t i)
{
    const int size = size_of(c.dtype), n = (size + 1) / 2;
    const int64_t offset = offset_of(c, i);
    if (c.n_sets == 0)
        store(c.at, c.dtype, offset, c.row[i] * c.scale);
    else if (c.n_sets == 1)
        put_bits(c.at, size, offset, join_pieces(c.row + i * n, n, c.scale));
    else
        average_sets(c, c.row + i * n, n, offset);
}

__global__ void __launch_bounds__(THREADS)
    cargo_kernel(const __grid_constant__ batch b)
{
    const int k = array_of_block(b);
    const brg_device_cargo &c = b.cargo[k];
    const int64_t from = ((int64_t)blockIdx.x - b.first[k]) * PIECE;
    const int64_t n = (int64_t)c.numel;
    const int64_t to = from + PIECE < n ? from + PIECE : n;
#pragma unroll 1
    for (int64_t i = from + threadIdx.x; i < to; i += THREADS) {
        if (b.is_load)
            load_element(c, i);
        else
            unload_element(c, i);
    }
}

/* Tensors from *done on, as many as one launch takes. */
static void fill_batch(batch *b, const brg_device_cargo *cargo, uint64_t n,
                       uint64_t *done)
{
    b->n = 0;
    b->first[0] = 0;
    for (; b->n < MANY && *done < n; ++*done) {
        const int64_t numel = (int64_t)cargo[*done].numel;
        if (numel == 0)
            continue;
        b->cargo[b->n] = cargo[*done];
        b->first[b->n + 1] = b->first[b->n] + (numel + PIECE - 1) / PIECE;
        b->n++;
    }
}

int brg__cu_cargo(const brg__cu_queue *q, const struct brg_device_cargo *cargo,
                  uint64_t n, bool is_load)
{
    for (uint64_t done = 0; done < n;) {
        batch b;
        fill_batch(&b, cargo, n, &done);
        if (b.n == 0)
            break;
        b.is_load = is_load;
        cargo_kernel<<<(unsigned)b.first[b.n], THREADS, 0, stream_of(q)>>>(b);
    }
    return (int)cudaGetLastError();
}
