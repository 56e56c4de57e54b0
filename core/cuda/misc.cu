/* SPDX-License-Identifier: Apache-2.0
 * Triangles, dropout, pooling, and plain convolution. One thread per element
 * of the result, which gathers what it needs: nothing depends on the order of
 * threads. */
#include "core/cuda/element.cuh"
#include "core/cuda/philox.cuh"

/* ---- tril and triu ---------------------------------------------------------------- */

template <typename W>
__global__ void tril_kernel(const __grid_constant__ brg__cu_tril a)
{
    FOR_EACH(i, a.n)
    {
        const int64_t c = i % a.cols, r = i / a.cols % a.rows;
        const bool keeps =
            a.is_upper ? c >= r + a.diagonal : c <= r + a.diagonal;
        ((W *)a.y)[i] = keeps ? ((const W *)a.x)[i] : (W)0;
    }
}

int brg__cu_tril_launch(const brg__cu_queue *q, const brg__cu_tril *a)
{
    const unsigned grid = blocks_for(a->n, THREADS);
    switch (a->item) {
    case 8:
        tril_kernel<uint64_t><<<grid, THREADS, 0, stream_of(q)>>>(*a);
        break;
    case 4:
        tril_kernel<uint32_t><<<grid, THREADS, 0, stream_of(q)>>>(*a);
        break;
    case 2:
        tril_kernel<uint16_t><<<grid, THREADS, 0, stream_of(q)>>>(*a);
        break;
    default:
        tril_kernel<uint8_t><<<grid, THREADS, 0, stream_of(q)>>>(*a);
    }
    return (int)cudaGetLastError();
}

/* All files are compiled for the same GPUs. */
int brg__cu_try_kernels(void)
{
    cudaFuncAttributes found;
    return (int)cudaFuncGetAttributes(&found, tril_kernel<uint8_t>);
}

/* ---- Dropout: one counter for four elements ---------------------------------------- */

template <typename T, typename C>
__global__ void dropout_kernel(const __grid_constant__ brg__cu_dropout a,
                               uint32_t threshold, C scale)
{
    const uint64_t seed = a.from ? a.from[0] : a.seed;
    const uint64_t first = a.offset + (a.from ? a.from[1] : 0);
    FOR_EACH(j, (a.n + 3) / 4)
    {
        const uint4 words = philox(first + (uint64_t)j, seed);
        const uint32_t w[4] = {words.x, words.y, words.z, words.w};
        for (int k = 0; k < 4 && 4 * j + k < a.n; k++) {
            const int64_t i = 4 * j + k;
            const C v = get<C>((const T *)a.x + i);
            ((T *)a.y)[i] = as<T>::of(w[k] < threshold ? (C)0 : v * scale);
        }
    }
}

int brg__cu_dropout_launch(const brg__cu_queue *q, const brg__cu_dropout *a)
{
    const uint32_t threshold =
        a->p >= 1.0 ? UINT32_MAX : (uint32_t)(a->p * 4294967296.0);
    const double scale = a->p >= 1.0 ? 0.0 : 1.0 / (1.0 - a->p);
    const unsigned grid = blocks_for((a->n + 3) / 4, THREADS);
#define LAUNCH(T, C)                                                           \
    dropout_kernel<T, C>                                                       \
        <<<grid, THREADS, 0, stream_of(q)>>>(*a, threshold, (C)scale)
    WITH_FLOAT(a->dtype, LAUNCH);
#undef LAUNCH
    return (int)cudaGetLastError();
}

/* ---- Pooling -------------------------------------------------------------------------- */

/* A window: its plane, its corner, and the part inside the image. */
typedef struct window {
    int64_t plane, top, left;
    int64_t y0, y1, x0, x1;
} window;

static __device__ __forceinline__ window window_of(const brg__cu_pool &p,
                                                   int64_t plane, int64_t oy,
                                                   int64_t ox)
{
    window w = {plane, oy * p.stride[0] - p.padding[0],
                ox * p.stride[1] - p.padding[1]};
    w.y0 = max(w.top, (int64_t)0);
    w.x0 = max(w.left, (int64_t)0);
    w.y1 = min(w.top + p.kernel[0], p.h);
    w.x1 = min(w.left + p.kernel[1], p.w);
    return w;
}

static __device__ __forceinline__ window nth_window(const brg__cu_pool &p,
                                                    int64_t i)
{
    return window_of(p, i / (p.oh * p.ow), i / p.ow % p.oh, i % p.ow);
}

static __device__ __forceinline__ int64_t which_at(const brg__cu_pool &p,
                                                   int64_t i)
{
    return p.is_wide ? ((const int32_t *)p.which)[i]
                     : ((const uint8_t *)p.which)[i];
}

template <typename T, typename C>
__global__ void pool_max_kernel(const __grid_constant__ brg__cu_pool p)
{
    FOR_EACH(i, p.planes * p.oh * p.ow)
    {
        const window w = nth_window(p, i);
        const T *x = (const T *)p.x + w.plane * p.h * p.w;
        C best = 0;
        int64_t at = -1;
        for (int64_t r = w.y0; r < w.y1; r++)
            for (int64_t c = w.x0; c < w.x1; c++) {
                const C v = get<C>(x + r * p.w + c);
                if (at >= 0 && (best != best || (!(v > best) && v == v)))
                    continue;
                best = v;
                at = (r - w.top) * p.kernel[1] + c - w.left;
            }
        ((T *)p.y)[i] = as<T>::of(best);
        if (p.is_wide)
            ((int32_t *)p.which)[i] = (int32_t)at;
        else
            ((uint8_t *)p.which)[i] = (uint8_t)at;
    }
}

template <typename T, typename C>
__global__ void pool_take_kernel(const __grid_constant__ brg__cu_pool p)
{
    FOR_EACH(i, p.planes * p.oh * p.ow)
    {
        const window w = nth_window(p, i);
        const int64_t at = which_at(p, i);
        const int64_t r = w.top + at / p.kernel[1];
        const int64_t c = w.left + at % p.kernel[1];
        ((T *)p.y)[i] = ((const T *)p.x)[(w.plane * p.h + r) * p.w + c];
    }
}

template <typename T, typename C>
static __device__ __forceinline__ C weight_of(const brg__cu_pool &p,
                                              const window &w)
{
    const int64_t n = p.exclude_padding ? (w.y1 - w.y0) * (w.x1 - w.x0)
                                        : p.kernel[0] * p.kernel[1];
    return (C)1 / (C)n;
}

template <typename T, typename C>
__global__ void pool_avg_kernel(const __grid_constant__ brg__cu_pool p)
{
    FOR_EACH(i, p.planes * p.oh * p.ow)
    {
        const window w = nth_window(p, i);
        const T *x = (const T *)p.x + w.plane * p.h * p.w;
        C sum = 0;
        for (int64_t r = w.y0; r < w.y1; r++)
            for (int64_t c = w.x0; c < w.x1; c++)
                sum += get<C>(x + r * p.w + c);
        ((T *)p.y)[i] = as<T>::of(sum * weight_of<T, C>(p, w));
    }
}

/* The windows over pixel v along one axis. */
static __device__ __forceinline__ void covering(int64_t v, int64_t kernel,
                                                int64_t stride, int64_t padding,
                                                int64_t n, int64_t *from,
                                                int64_t *to)
{
    const int64_t first = v + padding - kernel + 1;
    *from = first <= 0 ? 0 : (first + stride - 1) / stride;
    *to = min((v + padding) / stride + 1, n);
}

/* Each pixel gathers from the windows over it: x is g, y the image. */
template <typename T, typename C, bool is_max>
__global__ void pool_back_kernel(const __grid_constant__ brg__cu_pool p)
{
    FOR_EACH(i, p.planes * p.h * p.w)
    {
        const int64_t plane = i / (p.h * p.w), r = i / p.w % p.h, c = i % p.w;
        int64_t y0, y1, x0, x1;
        covering(r, p.kernel[0], p.stride[0], p.padding[0], p.oh, &y0, &y1);
        covering(c, p.kernel[1], p.stride[1], p.padding[1], p.ow, &x0, &x1);
        C sum = 0;
        for (int64_t oy = y0; oy < y1; oy++)
            for (int64_t ox = x0; ox < x1; ox++) {
                const window w = window_of(p, plane, oy, ox);
                const int64_t k = (plane * p.oh + oy) * p.ow + ox;
                const C g = get<C>((const T *)p.x + k);
                if (!is_max)
                    sum += g * weight_of<T, C>(p, w);
                else if (which_at(p, k) ==
                         (r - w.top) * p.kernel[1] + c - w.left)
                    sum += g;
            }
        ((T *)p.y)[i] = as<T>::of(sum);
    }
}

#define GRID(n) <<<blocks_for((n), THREADS), THREADS, 0, stream_of(q)>>>

#define POOL(name, kernel)                                                  \
    int name(const brg__cu_queue *q, const brg__cu_pool *p)                    \
    {                                                                          \
        WITH_FLOAT(p->dtype, kernel);                                          \
        return (int)cudaGetLastError();                                        \
    }
#define MAX_(T, C) pool_max_kernel<T, C> GRID(p->planes * p->oh * p->ow)(*p)
#define TAKE(T, C) pool_take_kernel<T, C> GRID(p->planes * p->oh * p->ow)(*p)
#define AVG(T, C) pool_avg_kernel<T, C> GRID(p->planes * p->oh * p->ow)(*p)
#define PUT(T, C)                                                              \
    pool_back_kernel<T, C, true> GRID(p->planes * p->h * p->w)(*p)
#define SPREAD(T, C)                                                           \
    pool_back_kernel<T, C, false> GRID(p->planes * p->h * p->w)(*p)
POOL(brg__cu_pool_max, MAX_)
POOL(brg__cu_pool_take, TAKE)
POOL(brg__cu_pool_avg, AVG)
POOL(brg__cu_pool_put, PUT)
POOL(brg__cu_pool_avg_grad, SPREAD)

/* ---- Plain convolution ------------------------------------------------------------------ */

template <typename T, typename C>
__global__ void conv_kernel(const __grid_constant__ brg__cu_conv v)
{
    const int64_t cg = v.c / v.groups, og = v.o / v.groups;
    FOR_EACH(i, v.n * v.o * v.oh * v.ow)
    {
        const int64_t ox = i % v.ow, oy = i / v.ow % v.oh;
        const int64_t o = i / (v.ow * v.oh) % v.o, n = i / (v.ow * v.oh * v.o);
        const T *w = (const T *)v.weight + o * cg * v.kh * v.kw;
        C sum = v.bias ? get<C>((const T *)v.bias + o) : (C)0;
        for (int64_t c = 0; c < cg; c++)
            for (int64_t ky = 0; ky < v.kh; ky++) {
                const int64_t y =
                    oy * v.stride[0] - v.padding[0] + ky * v.dilation[0];
                if (y < 0 || y >= v.h)
                    continue;
                const T *row =
                    (const T *)v.x +
                    ((n * v.c + o / og * cg + c) * v.h + y) * v.w;
                for (int64_t kx = 0; kx < v.kw; kx++) {
                    const int64_t x =
                        ox * v.stride[1] - v.padding[1] + kx * v.dilation[1];
                    if (x >= 0 && x < v.w)
                        sum += get<C>(row + x) *
                               get<C>(w + (c * v.kh + ky) * v.kw + kx);
                }
            }
        ((T *)v.y)[i] = as<T>::of(sum);
    }
}

/* The output that meets pixel v at tap k, or -1. */
static __device__ __forceinline__ int64_t meets(int64_t v, int64_t k,
                                                int64_t stride, int64_t padding,
                                                int64_t dilation, int64_t n)
{
    const int64_t at = v + padding - k * dilation;
    return at >= 0 && at % stride == 0 && at / stride < n ? at / stride : -1;
}

template <typename T, typename C>
__global__ void conv_input_kernel(const __grid_constant__ brg__cu_conv v)
{
    const int64_t cg = v.c / v.groups, og = v.o / v.groups;
    FOR_EACH(i, v.n * v.c * v.h * v.w)
    {
        const int64_t x = i % v.w, y = i / v.w % v.h;
        const int64_t c = i / (v.w * v.h) % v.c, n = i / (v.w * v.h * v.c);
        C sum = 0;
        for (int64_t o = c / cg * og; o < (c / cg + 1) * og; o++)
            for (int64_t ky = 0; ky < v.kh; ky++) {
                const int64_t oy = meets(y, ky, v.stride[0], v.padding[0],
                                         v.dilation[0], v.oh);
                if (oy < 0)
                    continue;
                const T *g = (const T *)v.y + ((n * v.o + o) * v.oh + oy) * v.ow;
                const T *w = (const T *)v.weight +
                             ((o * cg + c % cg) * v.kh + ky) * v.kw;
                for (int64_t kx = 0; kx < v.kw; kx++) {
                    const int64_t ox = meets(x, kx, v.stride[1], v.padding[1],
                                             v.dilation[1], v.ow);
                    if (ox >= 0)
                        sum += get<C>(g + ox) * get<C>(w + kx);
                }
            }
        ((T *)v.x)[i] = as<T>::of(sum);
    }
}

/* A block per weight: its threads share the images and outputs. */
template <typename T, typename C>
__global__ void __launch_bounds__(THREADS)
    conv_weight_kernel(const __grid_constant__ brg__cu_conv v)
{
    const int64_t cg = v.c / v.groups, og = v.o / v.groups, i = blockIdx.x;
    const int64_t kx = i % v.kw, ky = i / v.kw % v.kh;
    const int64_t c = i / (v.kw * v.kh) % cg, o = i / (v.kw * v.kh * cg);
    double sum = 0;
    for (int64_t j = threadIdx.x; j < v.n * v.oh * v.ow; j += THREADS) {
        const int64_t ox = j % v.ow, oy = j / v.ow % v.oh;
        const int64_t n = j / (v.ow * v.oh);
        const int64_t y = oy * v.stride[0] - v.padding[0] + ky * v.dilation[0];
        const int64_t x = ox * v.stride[1] - v.padding[1] + kx * v.dilation[1];
        if (y < 0 || y >= v.h || x < 0 || x >= v.w)
            continue;
        const int64_t at = ((n * v.c + o / og * cg + c) * v.h + y) * v.w + x;
        sum += (double)(get<C>((const T *)v.x + at) *
                        get<C>((const T *)v.y +
                               ((n * v.o + o) * v.oh + oy) * v.ow + ox));
    }
    sum = over_block<sum_of>(sum);
    if (threadIdx.x == 0)
        ((T *)v.weight)[i] = as<T>::of((C)sum);
}

int brg__cu_conv_forward(const brg__cu_queue *q, const brg__cu_conv *v)
{
#define LAUNCH(T, C) conv_kernel<T, C> GRID(v->n *v->o *v->oh *v->ow)(*v)
    WITH_FLOAT(v->dtype, LAUNCH);
#undef LAUNCH
    return (int)cudaGetLastError();
}

int brg__cu_conv_grad_input(const brg__cu_queue *q, const brg__cu_conv *v)
{
#define LAUNCH(T, C) conv_input_kernel<T, C> GRID(v->n *v->c *v->h *v->w)(*v)
    WITH_FLOAT(v->dtype, LAUNCH);
#undef LAUNCH
    return (int)cudaGetLastError();
}

int brg__cu_conv_grad_weight(const brg__cu_queue *q, const brg__cu_conv *v)
{
    const unsigned n =
        (unsigned)(v->o * (v->c / v->groups) * v->kh * v->kw);
#define LAUNCH(T, C)                                                           \
    conv_weight_kernel<T, C><<<n, THREADS, 0, stream_of(q)>>>(*v)
    WITH_FLOAT(v->dtype, LAUNCH);
#undef LAUNCH
    return (int)cudaGetLastError();
}
