/* SPDX-License-Identifier: Apache-2.0
 * Random numbers with the bits of the CPU's. Compiled without contraction of a
 * product and a sum, as those are. A thread takes the four words of a counter. */
#include "core/cuda/element.cuh"
#include "core/cuda/philox.cuh"

#include <brigade/ext/random.h>

#include "core/ops/normal.h"

/* a + b u, of f32 and what is rounded from it. */
typedef struct unit {
    float a, b, end, step;
    int shift;
} unit;

static __device__ __forceinline__ float uniform(const unit &u, uint32_t word)
{
    const float v = u.a + u.b * ((float)(int32_t)(word >> u.shift) * u.step);
    return v >= u.end ? u.a : v;
}

template <typename T>
static __device__ __forceinline__ void put(const brg_draw &d, int64_t i, T v)
{
    if (i < (int64_t)d.numel)
        store<T>(d.out, d.dtype, i, v);
}

__global__ void uniform_kernel(const __grid_constant__ brg_draw d, unit u)
{
    FOR_EACH(j, ((int64_t)d.numel + 3) / 4)
    {
        const uint4 words = philox(d.offset + (uint64_t)j, d.seed);
        const uint32_t w[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
        for (int k = 0; k < 4; k++) {
            if (d.dtype == BRG_DTYPE_F64)
                put<double>(d, 4 * j + k, d.a + d.b * (w[k] * 0x1p-32));
            else
                put<float>(d, 4 * j + k, uniform(u, w[k]));
        }
    }
}

__global__ void normal_kernel(const __grid_constant__ brg_draw d, unit u)
{
    FOR_EACH(j, ((int64_t)d.numel + 3) / 4)
    {
        const uint4 words = philox(d.offset + (uint64_t)j, d.seed);
        float z[4];
        brg__normal_pair(words.x, words.y, &z[0], &z[1]);
        brg__normal_pair(words.z, words.w, &z[2], &z[3]);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            if (d.dtype == BRG_DTYPE_F64)
                put<double>(d, 4 * j + k, d.a + d.b * (double)z[k]);
            else
                put<float>(d, 4 * j + k, u.a + u.b * z[k]);
        }
    }
}

__global__ void integers_kernel(const __grid_constant__ brg_draw d)
{
    FOR_EACH(j, ((int64_t)d.numel + 3) / 4)
    {
        const uint4 words = philox(d.offset + (uint64_t)j, d.seed);
        const uint32_t w[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
        for (int k = 0; k < 4; k++)
            put<int64_t>(d, 4 * j + k,
                         d.low + (int64_t)((w[k] * d.range) >> 32));
    }
}

int brg__cu_draw(const brg__cu_queue *q, const struct brg_draw *d)
{
    const unsigned grid = blocks_for(((int64_t)d->numel + 3) / 4, THREADS);
    const float a = (float)d->a, b = (float)d->b;
    const unit u = {a, b, b > 0.0f ? a + b : INFINITY,
                    1.0f / (float)(1 << d->n_bits), 32 - d->n_bits};
    if (d->kind == BRG_DRAW_UNIFORM)
        uniform_kernel<<<grid, THREADS, 0, stream_of(q)>>>(*d, u);
    else if (d->kind == BRG_DRAW_NORMAL)
        normal_kernel<<<grid, THREADS, 0, stream_of(q)>>>(*d, u);
    else
        integers_kernel<<<grid, THREADS, 0, stream_of(q)>>>(*d);
    return (int)cudaGetLastError();
}
