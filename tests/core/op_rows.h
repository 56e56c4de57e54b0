/* SPDX-License-Identifier: Apache-2.0
 * The words that rows of op_cases*.def are written in: see README.md. */
#ifndef BRG_TESTS_CORE_OP_ROWS_H
#define BRG_TESTS_CORE_OP_ROWS_H

#include "tests/support/op_case.h"

#define S(...)                                                                 \
    {                                                                          \
        (int)(sizeof((const int64_t[]){__VA_ARGS__}) / sizeof(int64_t)),       \
        {                                                                      \
            __VA_ARGS__                                                        \
        }                                                                      \
    }
#define SCALAR                                                                 \
    {                                                                          \
        0,                                                                     \
        {                                                                      \
            0                                                                  \
        }                                                                      \
    }
#define N_SHAPES(...)                                                          \
    (int)(sizeof((const op_shape[]){__VA_ARGS__}) / sizeof(op_shape))

#define IN(...) .n_in = N_SHAPES(__VA_ARGS__), .in = {__VA_ARGS__}
#define ZERO(...) .n_zero = N_SHAPES(__VA_ARGS__), .zero = {__VA_ARGS__}
#define BAD(...) .n_bad = N_SHAPES(__VA_ARGS__), .bad = {__VA_ARGS__}
#define RANGE(l, h) .has_range = true, .low = (l), .high = (h)
#define RANGE_OF(i, l, h) .in_low[i] = (l), .in_high[i] = (h)
#define FIXED(i, t, l, h)                                                      \
    .is_fixed[i] = true, .fixed[i] = BRG_DTYPE_##t, .in_low[i] = (l),          \
    .in_high[i] = (h)
#define INDEX(i, n) FIXED(i, I64, 0, n)
#define DTYPES(...) .dtypes = (__VA_ARGS__)
#define TOL(x) .tolerance = (x)
#define NO_GRADIENT .no_gradient = true
#define NO_SECOND .no_second = true
#define NO_LAYOUTS .no_layouts = true
#define MIXED .allows_mixed = true
#define OTHERS .allows_others = true

#define F64 (1u << BRG_DTYPE_F64)
#define F32 (1u << BRG_DTYPE_F32)
#define F16 (1u << BRG_DTYPE_F16)
#define BF16 (1u << BRG_DTYPE_BF16)
#define I64 (1u << BRG_DTYPE_I64)
#define I32 (1u << BRG_DTYPE_I32)
#define U8 (1u << BRG_DTYPE_U8)
#define BOOL (1u << BRG_DTYPE_BOOL)
#define FLOATS (F64 | F32 | F16 | BF16)
#define INTEGERS (I64 | I32 | U8)
#define ANY (FLOATS | INTEGERS | BOOL)

#endif
