/* SPDX-License-Identifier: Apache-2.0
 * The functions that FN(name) stands for in pointwise rows: brg__f32_name,
 * brg__f64_name, brg__i64_name.
 *
 * Rules of this text: it is included by the kernels and pasted into generated C
 * and CUDA C, so it is self-contained; the f32 functions are free of branches
 * and of library calls, so that a compiler turns a loop over them into vector
 * code whose values are those of the scalar code, bit for bit; the f64
 * functions call the C library. tests/core/test_vmath.c holds the f32 ones to
 * the errors stated here, in units in the last place (ulp).
 *
 * Sources: argument reductions after W. J. Cody and W. Waite, "Software Manual
 * for the Elementary Functions" (1980), and S. L. Moshier, "Cephes" (constants
 * of the split logarithm of 2); tanh and expm1 after N. Beebe, "The
 * Mathematical-Function Computation Handbook" (2017). The coefficients are
 * Chebyshev fits made for this file. */
#ifndef BRG_CORE_OPS_VMATH_H
#define BRG_CORE_OPS_VMATH_H

#ifdef __CUDACC__
#define BRG__VM static __device__ __forceinline__
#else
#include <math.h>
#include <stdint.h>
#include <string.h>
#define BRG__VM static inline __attribute__((always_inline, unused))
#endif

/* ---- Bits ---------------------------------------------------------------- */

BRG__VM uint32_t brg__vm_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

BRG__VM float brg__vm_float(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

BRG__VM uint64_t brg__vm_bits64(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

BRG__VM double brg__vm_double(uint64_t bits)
{
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* 2^n for n in [-126, 127]. */
BRG__VM float brg__vm_pow2(int32_t n)
{
    return brg__vm_float(((uint32_t)n + 127u) << 23);
}

BRG__VM float brg__vm_with_sign(float magnitude, float sign)
{
    return brg__vm_float((brg__vm_bits(magnitude) & 0x7FFFFFFFu) |
                         (brg__vm_bits(sign) & 0x80000000u));
}

/* Adding and taking away 1.5 * 2^23 rounds to an integer, which then stands in
 * the low bits of the sum. */
#define BRG__VM_MAGIC 12582912.0f
#define BRG__VM_MAGIC64 6755399441055744.0

/* ---- Exponentials -----------------------------------------------------------
 * x = n log(2) + r with |r| <= log(2) / 2. */

/* (exp(r) - 1 - r) / r^2. */
BRG__VM float brg__vm_exp_tail(float r)
{
    float p = 1.9891981e-4f;
    p = p * r + 1.3934542e-3f;
    p = p * r + 8.3333100e-3f;
    p = p * r + 4.1666457e-2f;
    p = p * r + 1.6666667e-1f;
    return p * r + 5.0000000e-1f;
}

/* Error <= 1 ulp; subnormal results included. */
BRG__VM float brg__f32_exp(float x)
{
    x = x > 89.0f ? 89.0f : x; /* written so that a NaN stays */
    x = x < -105.0f ? -105.0f : x;
    float t = x * 1.44269504f + BRG__VM_MAGIC;
    float n = t - BRG__VM_MAGIC;
    int32_t k = (int32_t)(brg__vm_bits(t) - brg__vm_bits(BRG__VM_MAGIC));
    float r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    float y = brg__vm_exp_tail(r) * (r * r) + r + 1.0f;
    int32_t half = k >> 1; /* two steps: 2^k may be no normal number */
    return y * brg__vm_pow2(half) * brg__vm_pow2(k - half);
}

/* Error <= 2 ulp. */
BRG__VM float brg__f32_expm1(float x)
{
    float z = x > 89.0f ? 89.0f : x;
    z = z < -30.0f ? -30.0f : z;
    float t = z * 1.44269504f + BRG__VM_MAGIC;
    float n = t - BRG__VM_MAGIC;
    int32_t k = (int32_t)(brg__vm_bits(t) - brg__vm_bits(BRG__VM_MAGIC));
    float r = z - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    float y = brg__vm_exp_tail(r) * (r * r) + r;
    int32_t half = k >> 1;
    float a = brg__vm_pow2(half), b = brg__vm_pow2(k - half);
    /* y 2^k + (2^k - 1), with the overflow left to the last step */
    float m = (y * a + (a - brg__vm_pow2(half - k))) * b;
    return x == 0.0f ? x : m;
}

/* ---- Logarithms -------------------------------------------------------------
 * x = 2^k m with m in [sqrt(1/2), sqrt(2)). */

/* Error <= 1 ulp; subnormal arguments included. */
BRG__VM float brg__f32_log(float x)
{
    float scaled = x < 1.17549435e-38f ? x * 8388608.0f : x;
    uint32_t u = brg__vm_bits(scaled) - 0x3F3504F3u;
    float k = (float)((int32_t)u >> 23);
    k = x < 1.17549435e-38f ? k - 23.0f : k;
    float f = brg__vm_float((u & 0x007FFFFFu) + 0x3F3504F3u) - 1.0f;
    float p = 6.9716115e-2f;
    p = p * f - 1.1479734e-1f;
    p = p * f + 1.1685420e-1f;
    p = p * f - 1.2425687e-1f;
    p = p * f + 1.4249058e-1f;
    p = p * f - 1.6667802e-1f;
    p = p * f + 2.0000716e-1f;
    p = p * f - 2.4999997e-1f;
    p = p * f + 3.3333331e-1f;
    float z = f * f;
    float y = p * (z * f);
    y = y + k * -2.12194440e-4f;
    y = y - 0.5f * z;
    y = f + y;
    y = y + k * 0.693359375f;
    y = x == 0.0f ? -INFINITY : y;
    y = x < 0.0f ? NAN : y;
    return x < INFINITY ? y : x; /* infinity and NaN */
}

/* log(u) of the rounded u = 1 + x, and what the rounding lost. Error <= 2. */
BRG__VM float brg__f32_log1p(float x)
{
    float u = 1.0f + x;
    float lost = (x - (u - 1.0f)) / u;
    float y = brg__f32_log(u);
    y = u > 0.0f && u < INFINITY ? y + lost : y;
    return x == 0.0f ? x : y;
}

/* ---- Hyperbolic and friends ---------------------------------------------- */

/* e / (e + 2) with e = exp(2|x|) - 1. Error <= 3. */
BRG__VM float brg__f32_tanh(float x)
{
    float ax = brg__vm_with_sign(x, 1.0f);
    ax = ax > 10.0f ? 10.0f : ax;
    float e = brg__f32_expm1(2.0f * ax);
    return brg__vm_with_sign(e / (e + 2.0f), x);
}

/* From exp(-|x|), which does not overflow. Error <= 3. */
BRG__VM float brg__f32_sigmoid(float x)
{
    float e = brg__f32_exp(-brg__vm_with_sign(x, 1.0f));
    float s = 1.0f / (1.0f + e);
    return x < 0.0f ? e * s : s;
}

/* x P(x^2), or 1 - exp(t Q(t)) where Q = log(erfc(t)) / t. Error <= 2. */
BRG__VM float brg__f32_erf(float x)
{
    float s = x * x;
    float p = 8.3476866e-5f;
    p = p * s - 8.1377938e-4f;
    p = p * s + 5.2006415e-3f;
    p = p * s - 2.6859262e-2f;
    p = p * s + 1.1283694e-1f;
    p = p * s - 3.7612634e-1f;
    p = p * s + 1.28379167e-1f;
    float near_zero = p * x + x;
    float t = brg__vm_with_sign(x, 1.0f);
    t = t > 4.0f ? 4.0f : t;
    float q = 1.0460657e-6f;
    q = q * t - 3.4388509e-5f;
    q = q * t + 4.9882501e-4f;
    q = q * t - 4.3037893e-3f;
    q = q * t + 2.5139550e-2f;
    q = q * t - 1.0785565e-1f;
    q = q * t - 6.3414818e-1f;
    q = q * t - 1.2890280e-1f; /* and -1, below, kept apart for its digits */
    float far = 1.0f - brg__f32_exp(q * t - t);
    return t < 0.92f ? near_zero : brg__vm_with_sign(far, x);
}

/* ---- Circular ---------------------------------------------------------------
 * x = n pi/2 + r, reduced in f64 with pi/2 in three parts. Error <= 2 for
 * |x| <= 10^6; beyond that the result stays in [-1, 1] and loses digits. */

/* sin(x + quadrant pi/2). */
BRG__VM float brg__vm_sin(float x, int64_t quadrant)
{
    double d = (double)x;
    double t = d * 0.63661977236758134 + BRG__VM_MAGIC64;
    double n = t - BRG__VM_MAGIC64;
    double rest = d - n * 1.57079632673412561417;
    rest = rest - n * 6.07710050630396597660e-11;
    rest = rest - n * 2.02226624879595063154e-21;
    rest = rest > 0.7854 ? 0.7854 : rest;
    rest = rest < -0.7854 ? -0.7854 : rest;
    uint64_t k = brg__vm_bits64(t) + (uint64_t)quadrant;
    float r = (float)rest;
    float z = r * r;
    float s = -1.9585373e-4f;
    s = s * z + 8.3327366e-3f;
    s = s * z - 1.6666665e-1f;
    s = s * (z * r) + r;
    float c = 2.4545419e-5f;
    c = c * z - 1.3888291e-3f;
    c = c * z + 4.1666664e-2f;
    c = c * (z * z) - 0.5f * z + 1.0f;
    float y = (k & 1u) ? c : s;
    return (k & 2u) ? -y : y;
}

BRG__VM float brg__f32_sin(float x)
{
    float y = brg__vm_sin(x, 0);
    return x == 0.0f ? x : y;
}

BRG__VM float brg__f32_cos(float x)
{
    return brg__vm_sin(x, 1);
}

/* ---- Powers -------------------------------------------------------------- */

/* log(x) of a positive float, to f64's ten digits. */
BRG__VM double brg__vm_log64(float x)
{
    uint64_t u = brg__vm_bits64((double)x) - 0x3FE6A09E667F3BCDu;
    int32_t k = (int32_t)(u >> 32) >> 20;
    double m = brg__vm_double((u & 0x000FFFFFFFFFFFFFu) + 0x3FE6A09E667F3BCDu);
    double s = (m - 1.0) / (m + 1.0), z = s * s;
    double p = 0.193753646993;
    p = p * z + 0.221907432541;
    p = p * z + 0.285717649466;
    p = p * z + 0.399999987461;
    p = p * z + 0.666666666674;
    return (double)k * 0.69314718055994531 + (2.0 * s + p * (z * s));
}

/* exp(x) for |x| <= 700, to ten digits. */
BRG__VM double brg__vm_exp64(double x)
{
    double t = x * 1.4426950408889634 + BRG__VM_MAGIC64;
    double n = t - BRG__VM_MAGIC64;
    uint64_t k = brg__vm_bits64(t) - brg__vm_bits64(BRG__VM_MAGIC64);
    double r = x - n * 0.69314718055994531;
    double p = 2.76187770298e-6;
    p = p * r + 2.48692041665e-5;
    p = p * r + 1.98412227614e-4;
    p = p * r + 1.38888370877e-3;
    p = p * r + 8.33333334487e-3;
    p = p * r + 4.16666667936e-2;
    p = p * r + 1.66666666667e-1;
    p = p * r + 0.5;
    p = p * (r * r) + r + 1.0;
    return p * brg__vm_double((k + 1023u) << 52);
}

/* exp(y log|x|) in f64, and the special cases of C's pow. Error <= 1. */
BRG__VM float brg__f32_pow(float x, float y)
{
    float ax = brg__vm_with_sign(x, 1.0f);
    float ay = brg__vm_with_sign(y, 1.0f);
    double l = brg__vm_log64(ax);
    l = ax == 0.0f ? -(double)INFINITY : l;
    l = ax < INFINITY ? l : (double)ax;
    double t = l * (double)y;
    t = t > 200.0 ? 200.0 : t;
    t = t < -200.0 ? -200.0 : t;
    float m = (float)brg__vm_exp64(t);
    /* y is an integer if adding 2^23 and taking it away changes nothing; all
     * floats >= 2^23 are, and all >= 2^24 are even. */
    float whole = (ay + 8388608.0f) - 8388608.0f;
    float half = 0.5f * ay;
    float half_whole = (half + 8388608.0f) - 8388608.0f;
    int is_integer = (ay >= 8388608.0f) | (whole == ay);
    int is_even = (half >= 8388608.0f) | (half_whole == half);
    int is_odd = is_integer & (is_even ^ 1);
    int is_negative = (int)(brg__vm_bits(x) >> 31);
    float sign = (is_negative & is_odd) ? -1.0f : 1.0f;
    m = m * sign;
    m = ((x < 0.0f) & (x > -INFINITY) & (is_integer ^ 1)) ? NAN : m;
    m = ((ax == 1.0f) & (ay == INFINITY)) ? 1.0f : m;
    return ((x == 1.0f) | (y == 0.0f)) ? 1.0f : m;
}

/* ---- What the processor does, in each type ------------------------------- */

BRG__VM float brg__f32_sqrt(float x)
{
    return sqrtf(x);
}

BRG__VM float brg__f32_floor(float x)
{
    return floorf(x);
}

BRG__VM float brg__f32_ceil(float x)
{
    return ceilf(x);
}

BRG__VM float brg__f32_rint(float x)
{
    return rintf(x);
}

BRG__VM float brg__f32_abs(float x)
{
    return brg__vm_with_sign(x, 1.0f);
}

/* ---- f64: the C library -------------------------------------------------- */

#define BRG__VM_F64(name, call)                                                \
    BRG__VM double brg__f64_##name(double x)                                   \
    {                                                                          \
        return call;                                                           \
    }
BRG__VM_F64(exp, exp(x))
BRG__VM_F64(expm1, expm1(x))
BRG__VM_F64(log, log(x))
BRG__VM_F64(log1p, log1p(x))
BRG__VM_F64(tanh, tanh(x))
BRG__VM_F64(sigmoid, 1.0 / (1.0 + exp(-x)))
BRG__VM_F64(erf, erf(x))
BRG__VM_F64(sin, sin(x))
BRG__VM_F64(cos, cos(x))
BRG__VM_F64(sqrt, sqrt(x))
BRG__VM_F64(floor, floor(x))
BRG__VM_F64(ceil, ceil(x))
BRG__VM_F64(rint, rint(x))
BRG__VM_F64(abs, fabs(x))
#undef BRG__VM_F64

BRG__VM double brg__f64_pow(double x, double y)
{
    return pow(x, y);
}

/* ---- The same text for both float types ---------------------------------- */

/* gelu(x) = x s(u), u = 2 sqrt(2/pi) (x + 0.044715 x^3), s the sigmoid:
 * the tanh form, free of its cancellation. */
#define BRG__VM_BOTH(T, P)                                                     \
    BRG__VM T P##div(T a, T b)                                                 \
    {                                                                          \
        return a / b;                                                          \
    }                                                                          \
    /* NaN in either gives NaN. */                                             \
    BRG__VM T P##max(T a, T b)                                                 \
    {                                                                          \
        return ((a > b) | (a != a)) ? a : b;                                   \
    }                                                                          \
    BRG__VM T P##min(T a, T b)                                                 \
    {                                                                          \
        return ((a < b) | (a != a)) ? a : b;                                   \
    }                                                                          \
    BRG__VM T P##softplus(T x)                                                 \
    {                                                                          \
        return (x > 0 ? x : 0) + P##log1p(P##exp(-P##abs(x)));                 \
    }                                                                          \
    BRG__VM T P##gelu(T x)                                                     \
    {                                                                          \
        return x * P##sigmoid((T)1.5957691216057308 * x *                      \
                              (1 + (T)0.044715 * x * x));                      \
    }                                                                          \
    BRG__VM T P##gelu_grad(T g, T x)                                           \
    {                                                                          \
        T s =                                                                  \
            P##sigmoid((T)1.5957691216057308 * x * (1 + (T)0.044715 * x * x)); \
        T du = (T)1.5957691216057308 * (1 + (T)0.134145 * x * x);              \
        return g * (s + x * s * (1 - s) * du);                                 \
    }                                                                          \
    BRG__VM T P##silu_grad(T g, T x)                                           \
    {                                                                          \
        T s = P##sigmoid(x);                                                   \
        return g * s * (1 + x * (1 - s));                                      \
    }
BRG__VM_BOTH(float, brg__f32_)
BRG__VM_BOTH(double, brg__f64_)
#undef BRG__VM_BOTH

/* ---- i64 ----------------------------------------------------------------- */

BRG__VM int64_t brg__i64_abs(int64_t x)
{
    return x < 0 ? (int64_t)(0 - (uint64_t)x) : x;
}

/* Towards zero; x / 0 is 0. */
BRG__VM int64_t brg__i64_div(int64_t a, int64_t b)
{
    if (b == 0)
        return 0;
    return b == -1 ? (int64_t)(0 - (uint64_t)a) : a / b;
}

BRG__VM int64_t brg__i64_max(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

BRG__VM int64_t brg__i64_min(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

#endif
