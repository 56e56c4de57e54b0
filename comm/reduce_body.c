/* SPDX-License-Identifier: Apache-2.0
 * The loops of the reduction, compiled once per instruction set (BRG_ISA).
 * Each is one line of arithmetic over a block that fits the first cache; the
 * walk over sources, blocks and destinations is in reduce_kernels.c. */
#include "comm/q8.h"
#include "comm/reduce_kernels.h"
#include "core/base/dtype.h"

#define PASTE2(a, b) a##b
#define PASTE(a, b) PASTE2(a, b)
#define TABLE PASTE(brg__reduce_, BRG_ISA)

/* `out` may be `a`, element by element. */
#if defined(__clang__)
#define SAME_INDEX_ONLY _Pragma("clang loop vectorize(assume_safety)")
#else
#define SAME_INDEX_ONLY _Pragma("GCC ivdep")
#endif

#define FOLD_SUM(a, b) ((a) + (b))
#define FOLD_PROD(a, b) ((a) * (b))
/* Written so that a NaN on either side stays. */
#define FOLD_MIN(a, b) (((a) < (b) || (a) != (a)) ? (a) : (b))
#define FOLD_MAX(a, b) (((a) > (b) || (a) != (a)) ? (a) : (b))

#define DEFINE_FOLD(name, TYPE, FOLD)                                          \
    static void name(void *out_, const void *a_, const void *b_, size_t n)     \
    {                                                                          \
        TYPE *out = out_;                                                      \
        const TYPE *a = a_, *b = b_;                                           \
        SAME_INDEX_ONLY                                                        \
        for (size_t i = 0; i < n; i++)                                         \
            out[i] = (TYPE)FOLD(a[i], b[i]);                                   \
    }

/* Sums and products of integers are unsigned, so that they wrap; those of
 * bytes are products of small ints that cannot overflow. */
#define DEFINE_FOLDS(lane, TYPE, WRAPPING)                                     \
    DEFINE_FOLD(sum_##lane, WRAPPING, FOLD_SUM)                                \
    DEFINE_FOLD(min_##lane, TYPE, FOLD_MIN)                                    \
    DEFINE_FOLD(max_##lane, TYPE, FOLD_MAX)                                    \
    DEFINE_FOLD(prod_##lane, WRAPPING, FOLD_PROD)

DEFINE_FOLDS(f64, double, double)
DEFINE_FOLDS(f32, float, float)
DEFINE_FOLDS(i64, int64_t, uint64_t)
DEFINE_FOLDS(i32, int32_t, uint32_t)
DEFINE_FOLDS(u8, uint8_t, uint8_t)

#define DEFINE_SCALE(name, TYPE)                                               \
    static void name(void *data, double factor, size_t n)                      \
    {                                                                          \
        TYPE *x = data, by = (TYPE)factor;                                     \
        for (size_t i = 0; i < n; i++)                                         \
            x[i] *= by;                                                        \
    }

DEFINE_SCALE(scale_f64, double)
DEFINE_SCALE(scale_f32, float)

#define DEFINE_HALF(half)                                                      \
    static void load_##half(float *restrict out, const uint16_t *restrict in,  \
                            size_t n)                                          \
    {                                                                          \
        for (size_t i = 0; i < n; i++)                                         \
            out[i] = brg__##half##_to_f32(in[i]);                              \
    }                                                                          \
    static void store_##half(uint16_t *restrict out, const float *restrict in, \
                             size_t n)                                         \
    {                                                                          \
        for (size_t i = 0; i < n; i++)                                         \
            out[i] = brg__f32_to_##half(in[i]);                                \
    }

DEFINE_HALF(f16)
DEFINE_HALF(bf16)

#define FOLDS(lane)                                                            \
    {                                                                          \
        sum_##lane, min_##lane, max_##lane, prod_##lane                        \
    }

const brg__reduce_table TABLE = {
    .q8 = &PASTE(brg__q8_, BRG_ISA),
    .rows[BRG_DTYPE_F64] = {.fold = FOLDS(f64), .scale = scale_f64},
    .rows[BRG_DTYPE_F32] = {.fold = FOLDS(f32), .scale = scale_f32},
    .rows[BRG_DTYPE_F16] = {.fold = FOLDS(f32),
                            .scale = scale_f32,
                            .load = load_f16,
                            .store = store_f16},
    .rows[BRG_DTYPE_BF16] = {.fold = FOLDS(f32),
                             .scale = scale_f32,
                             .load = load_bf16,
                             .store = store_bf16},
    .rows[BRG_DTYPE_I64] = {.fold = FOLDS(i64)},
    .rows[BRG_DTYPE_I32] = {.fold = FOLDS(i32)},
    .rows[BRG_DTYPE_U8] = {.fold = FOLDS(u8)},
    .rows[BRG_DTYPE_BOOL] = {.fold = FOLDS(u8)},
};
