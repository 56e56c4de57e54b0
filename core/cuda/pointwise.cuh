/* SPDX-License-Identifier: Apache-2.0
 * The pointwise rows of ops.def as device functions: row_<name>::of<T>. */
#ifndef BRG_CORE_CUDA_POINTWISE_CUH
#define BRG_CORE_CUDA_POINTWISE_CUH

#include <math.h>
#include <string.h>

#include "core/cuda/element.cuh"
#include "core/cuda/rows.h"
#include "core/ops/vmath.h"

/* FN(name) for the type at hand. */
template <typename T> struct fn;

#define FN_1(name)                                                             \
    static __device__ __forceinline__ T name(T x)                              \
    {                                                                          \
        return P(name)(x);                                                     \
    }
#define FN_2(name)                                                             \
    static __device__ __forceinline__ T name(T x, T y)                         \
    {                                                                          \
        return P(name)(x, y);                                                  \
    }
#define FN_FLOATS                                                              \
    FN_1(abs) FN_1(exp) FN_1(expm1) FN_1(log) FN_1(log1p) FN_1(sqrt)           \
    FN_1(sin) FN_1(cos) FN_1(tanh) FN_1(erf) FN_1(floor) FN_1(ceil)            \
    FN_1(rint) FN_1(sigmoid) FN_1(gelu) FN_1(softplus) FN_2(div) FN_2(max)     \
    FN_2(min) FN_2(pow) FN_2(gelu_grad) FN_2(silu_grad)

template <> struct fn<float> {
    typedef float T;
#define P(name) brg__f32_##name
    FN_FLOATS
#undef P
};
template <> struct fn<double> {
    typedef double T;
#define P(name) brg__f64_##name
    FN_FLOATS
#undef P
};
template <> struct fn<int64_t> {
    typedef int64_t T;
#define P(name) brg__i64_##name
    FN_1(abs) FN_2(div) FN_2(max) FN_2(min)
#undef P
};

#define FN(name) fn<T>::name
#define K(x) ((T)(x))
#define FWD(...) __VA_ARGS__
#define ROW(name, value)                                                       \
    struct row_##name {                                                        \
        template <typename T>                                                  \
        static __device__ __forceinline__ T of(T a, T b, T c, const T *p)      \
        {                                                                      \
            return (T)(value);                                                 \
        }                                                                      \
    };
#define BRG_UNARY(cls, name, fwd, ...) ROW(name, fwd)
#define BRG_BINARY(cls, name, fwd, ...) ROW(name, fwd)
#define BRG_TERNARY(cls, name, fwd, ...) ROW(name, fwd)
#define BRG_KERNEL(name, ...)
#define BRG_KERNEL_NOGRAD(name, ...)
#define BRG_VIEW(name, ...)
#include "core/ops/ops.def"
#include "core/ops/ops_undef.h"
#undef ROW
#undef FWD
#undef FN
#undef K

#endif
