/* SPDX-License-Identifier: Apache-2.0
 * One element in an optimizer's step. */
#ifndef BRG_CORE_CUDA_OPTIM_CUH
#define BRG_CORE_CUDA_OPTIM_CUH

#include "core/cuda/element.cuh"

#include <brigade/ext/device.h>

template <typename C> static __device__ __forceinline__ C root(C x)
{
    return (C)sqrt(x);
}

template <> __device__ __forceinline__ float root<float>(float x)
{
    return sqrtf(x);
}

/* Rounded: not one half of a fused multiply-add. */
static __device__ __forceinline__ float product(float a, float b)
{
    return __fmul_rn(a, b);
}

static __device__ __forceinline__ double product(double a, double b)
{
    return __dmul_rn(a, b);
}

/* The numbers of AdamW's step. */
template <typename C> struct adamw {
    C decay, b1, b2, rest1, rest2, size, root, eps;

    __device__ __forceinline__ explicit adamw(const double *f)
        : decay((C)f[0]), b1((C)f[1]), b2((C)f[2]), rest1((C)(1.0 - f[1])),
          rest2((C)(1.0 - f[2])), size((C)f[3]), root((C)f[4]), eps((C)f[5])
    {
    }

    __device__ __forceinline__ C step(C p, C g, C *m, C *v) const
    {
        *m = b1 * *m + rest1 * g;
        *v = b2 * *v + rest2 * g * g;
        return decay * p - size * *m / (::root(*v) * root + eps);
    }
};

template <typename C>
static __device__ __forceinline__ C step(const brg_device_update &u,
                                         const double *f, int64_t i, C p, C g)
{
    C *m = (C *)u.state[0], *v = (C *)u.state[1];
    if (u.rule == BRG_UPDATE_ADAMW)
        return adamw<C>(f).step(p, g, m + i, v + i);
    const C lr = (C)f[0], d = g + (C)f[3] * p;
    if (!m)
        return p - lr * d;
    const C b = (C)f[1] * m[i] + (C)f[2] * d;
    m[i] = b;
    return p - lr * (u.rule == BRG_UPDATE_SGD ? b : d + (C)f[1] * b);
}

/* The parameter itself, or its master copy. */
template <typename T, typename C>
static __device__ __forceinline__ void update(const brg_device_update &u,
                                              const double *f, int64_t i, C g)
{
    T *param = (T *)u.param;
    if (sizeof(T) == sizeof(C)) {
        param[i] = as<T>::of(step<C>(u, f, i, get<C>(param + i), g));
        return;
    }
    C *master = (C *)u.master;
    C p = master[i];
    const T rounded = as<T>::of(p);
    if (u.follows && get<C>(&rounded) != get<C>(param + i))
        p = get<C>(param + i);
    p = step<C>(u, f, i, p, g);
    master[i] = p;
    param[i] = as<T>::of(p);
}

#endif
