/* SPDX-License-Identifier: Apache-2.0
 * Which numbers a dtype can hold. */
#include <math.h>

#include "core/base/dtype.h"
#include "core/ops/op.h"

typedef struct range {
    double min, max;
} range;

static range range_of(brg_dtype dtype)
{
    switch (dtype) {
    case BRG_DTYPE_I64: /* the doubles beside 2^63 */
        return (range){-0x1p63, 0x1p63 - 1024};
    case BRG_DTYPE_I32:
        return (range){INT32_MIN, INT32_MAX};
    case BRG_DTYPE_U8:
        return (range){0, UINT8_MAX};
    case BRG_DTYPE_F32:
        return (range){-0x1.fffffep127, 0x1.fffffep127};
    case BRG_DTYPE_F16:
        return (range){-65504, 65504};
    case BRG_DTYPE_BF16:
        return (range){-0x1.fep127, 0x1.fep127};
    default: /* f64; bool: true is what is not 0 */
        return (range){-INFINITY, INFINITY};
    }
}

static brg_status fail(const char *what, brg_dtype dtype, double value)
{
    range r = range_of(dtype);
    return BRG_FAIL(BRG_ERR_ARG,
                    "%s: %g does not fit into %s, expected %g to %g", what,
                    value, brg_dtype_name(dtype), r.min, r.max);
}

/* Does the number round to an infinity? */
static bool is_too_large(brg_dtype dtype, double value)
{
    float x = (float)value;
    if (dtype == BRG_DTYPE_F16)
        x = brg__f16_to_f32(brg__f32_to_f16(x));
    if (dtype == BRG_DTYPE_BF16)
        x = brg__bf16_to_f32(brg__f32_to_bf16(x));
    return isfinite(value) && !isfinite(x);
}

brg_status brg__check_value(const char *what, brg_dtype dtype, double value)
{
    range r = range_of(dtype);
    double whole = trunc(value);
    if (dtype == BRG_DTYPE_F64 || dtype == BRG_DTYPE_BOOL)
        return BRG_OK;
    bool fits = brg_dtype_is_float(dtype) ? !is_too_large(dtype, value)
                                          : whole >= r.min && whole <= r.max;
    return fits ? BRG_OK : fail(what, dtype, value);
}

static brg_status check_whole(const char *what, brg_dtype dtype, double value)
{
    if (floor(value) == value)
        return BRG_OK;
    return BRG_FAIL(BRG_ERR_DTYPE,
                    "%s: the number %g is not whole, but the input is of dtype "
                    "%s",
                    what, value, brg_dtype_name(dtype));
}

brg_status brg__check_operand(const char *what, brg_dtype dtype, double value)
{
    if (brg_dtype_is_float(dtype))
        return BRG_OK;
    BRG_TRY(check_whole(what, dtype, value));
    return brg__check_value(what, dtype,
                            dtype == BRG_DTYPE_U8 ? fabs(value) : value);
}

brg_status brg__check_bounds(const char *what, brg_dtype dtype, double lo,
                             double hi)
{
    range r = range_of(dtype);
    if (brg_dtype_is_float(dtype))
        return BRG_OK;
    BRG_TRY(check_whole(what, dtype, lo));
    BRG_TRY(check_whole(what, dtype, hi));
    if (lo > r.max)
        return fail(what, dtype, lo);
    return hi < r.min ? fail(what, dtype, hi) : BRG_OK;
}
