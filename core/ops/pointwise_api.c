/* SPDX-License-Identifier: Apache-2.0
 * The public functions of the pointwise ops. */
#include <brigade/ops_pointwise.h>

#include "core/ops/op.h"

#define UNARY(name)                                                            \
    brg_tensor *brg_##name(brg_tensor *a)                                      \
    {                                                                          \
        return brg__call1(&brg__op_##name, a, NULL);                           \
    }
#define BINARY(name)                                                           \
    brg_tensor *brg_##name(brg_tensor *a, brg_tensor *b)                       \
    {                                                                          \
        return brg__call2(&brg__op_##name, a, b, NULL);                        \
    }
#define WITH_SCALAR(name)                                                      \
    brg_tensor *brg_##name(brg_tensor *x, double s)                            \
    {                                                                          \
        return brg__call1(&brg__op_##name, x, &(brg_attrs){.f = {s}});         \
    }

BINARY(add)
BINARY(sub)
BINARY(mul)
BINARY(div)
BINARY(maximum)
BINARY(minimum)
UNARY(neg)
UNARY(abs)
UNARY(sign)
UNARY(square)
WITH_SCALAR(add_scalar)
WITH_SCALAR(mul_scalar)
WITH_SCALAR(rsub_scalar)

UNARY(reciprocal)
UNARY(exp)
UNARY(expm1)
UNARY(log)
UNARY(log1p)
UNARY(sqrt)
UNARY(rsqrt)
UNARY(sin)
UNARY(cos)
UNARY(tanh)
UNARY(erf)
UNARY(floor)
UNARY(ceil)
UNARY(round)

UNARY(sigmoid)
UNARY(relu)
WITH_SCALAR(leaky_relu)
UNARY(gelu)
UNARY(silu)
UNARY(softplus)

BINARY(eq)
BINARY(ne)
BINARY(lt)
BINARY(le)
BINARY(gt)
BINARY(ge)
UNARY(logical_not)
BINARY(logical_and)
BINARY(logical_or)
UNARY(is_finite)
UNARY(is_nan)

UNARY(copy)

brg_tensor *brg_clamp(brg_tensor *x, double lo, double hi)
{
    BRG_CHECK_ARG_NULL(!x || lo <= hi, "clamp: lo is %g, above hi, %g", lo, hi);
    return brg__call1(&brg__op_clamp, x, &(brg_attrs){.f = {lo, hi}});
}

brg_tensor *brg_pow_scalar(brg_tensor *x, double exponent)
{
    if (exponent == 2.0)
        return brg_square(x);
    return brg__call1(&brg__op_pow_scalar, x, &(brg_attrs){.f = {exponent}});
}

brg_tensor *brg_where(brg_tensor *cond, brg_tensor *a, brg_tensor *b)
{
    return brg__call3(&brg__op_where, cond, a, b, NULL);
}

brg_tensor *brg_cast(brg_tensor *x, brg_dtype dtype)
{
    BRG_CHECK_ARG_NULL((unsigned)dtype < BRG_N_DTYPES,
                       "cast: %d is not a dtype", (int)dtype);
    if (!x || (brg_dtype)x->dtype == dtype)
        return x;
    return brg__call1(&brg__op_cast, x, &(brg_attrs){.i = {dtype}});
}

brg_tensor *brg_contiguous(brg_tensor *x)
{
    return !x || x->is_contiguous ? x : brg_copy(x);
}
