/* SPDX-License-Identifier: Apache-2.0
 * The conversion loops, compiled once per instruction set. */
#include "core/base/dtype.h"
#include "core/ops/convert.h"
#include "core/ops/isa.h"

/* Three loops each: a row, one element repeated, any stride. */
#define LOAD(name, S, T, value)                                                \
    static void name(void *to, const void *from, int64_t stride, size_t n)     \
    {                                                                          \
        T *out = to;                                                           \
        const S *in = from;                                                    \
        if (stride == 1) {                                                     \
            BRG__INDEPENDENT for (size_t i = 0; i < n; i++)                    \
            {                                                                  \
                S v = in[i];                                                   \
                out[i] = value;                                                \
            }                                                                  \
        } else if (stride == 0) {                                              \
            S v = in[0];                                                       \
            T same = value;                                                    \
            for (size_t i = 0; i < n; i++)                                     \
                out[i] = same;                                                 \
        } else {                                                               \
            for (size_t i = 0; i < n; i++) {                                   \
                S v = in[(int64_t)i * stride];                                 \
                out[i] = value;                                                \
            }                                                                  \
        }                                                                      \
    }

#define STORE(name, S, T, value)                                               \
    static void name(void *to, int64_t stride, const void *from, size_t n)     \
    {                                                                          \
        T *out = to;                                                           \
        const S *in = from;                                                    \
        if (stride == 1) {                                                     \
            BRG__INDEPENDENT for (size_t i = 0; i < n; i++)                    \
            {                                                                  \
                S v = in[i];                                                   \
                out[i] = value;                                                \
            }                                                                  \
        } else {                                                               \
            for (size_t i = 0; i < n; i++) {                                   \
                S v = in[i];                                                   \
                out[(int64_t)i * stride] = value;                              \
            }                                                                  \
        }                                                                      \
    }

LOAD(load_f64, double, double, v)
LOAD(load_f32, float, float, v)
LOAD(load_f16, uint16_t, float, brg__f16_to_f32(v))
LOAD(load_bf16, uint16_t, float, brg__bf16_to_f32(v))
LOAD(load_i64, int64_t, int64_t, v)
LOAD(load_i32, int32_t, int64_t, v)
LOAD(load_u8, uint8_t, int64_t, v)
LOAD(load_u8_f32, uint8_t, float, (float)v)
LOAD(load_u8_f64, uint8_t, double, (double)v)

#define STORES(S, type)                                                        \
    STORE(store_##type##_f64, S, double, (double)v)                            \
    STORE(store_##type##_f32, S, float, (float)v)                              \
    STORE(store_##type##_f16, S, uint16_t, brg__f32_to_f16((float)v))          \
    STORE(store_##type##_bf16, S, uint16_t, brg__f32_to_bf16((float)v))        \
    STORE(store_##type##_i64, S, int64_t, (int64_t)v)                          \
    STORE(store_##type##_i32, S, int32_t, (int32_t)v)                          \
    STORE(store_##type##_u8, S, uint8_t, (uint8_t)(int32_t)v)                  \
    STORE(store_##type##_bool, S, uint8_t, v != 0)
STORES(float, f32)
STORES(double, f64)
STORES(int64_t, i64)

#define STORE_ROW(type)                                                        \
    {                                                                          \
        [BRG_DTYPE_F64] = store_##type##_f64,                                  \
        [BRG_DTYPE_F32] = store_##type##_f32,                                  \
        [BRG_DTYPE_F16] = store_##type##_f16,                                  \
        [BRG_DTYPE_BF16] = store_##type##_bf16,                                \
        [BRG_DTYPE_I64] = store_##type##_i64,                                  \
        [BRG_DTYPE_I32] = store_##type##_i32,                                  \
        [BRG_DTYPE_U8] = store_##type##_u8,                                    \
        [BRG_DTYPE_BOOL] = store_##type##_bool,                                \
    }

const brg__convert_kernels BRG__ISA_NAME(brg__convert) = {
    .load =
        {
            [BRG_DTYPE_F64] = {[BRG__F64] = load_f64},
            [BRG_DTYPE_F32] = {[BRG__F32] = load_f32},
            [BRG_DTYPE_F16] = {[BRG__F32] = load_f16},
            [BRG_DTYPE_BF16] = {[BRG__F32] = load_bf16},
            [BRG_DTYPE_I64] = {[BRG__I64] = load_i64},
            [BRG_DTYPE_I32] = {[BRG__I64] = load_i32},
            [BRG_DTYPE_U8] = {[BRG__I64] = load_u8},
            [BRG_DTYPE_BOOL] = {[BRG__F32] = load_u8_f32,
                                [BRG__F64] = load_u8_f64,
                                [BRG__I64] = load_u8},
        },
    .store =
        {
            [BRG__F32] = STORE_ROW(f32),
            [BRG__F64] = STORE_ROW(f64),
            [BRG__I64] = STORE_ROW(i64),
        },
};
