/* SPDX-License-Identifier: Apache-2.0
 * The kernels of all pointwise rows, compiled once per instruction set. */
#include "core/ops/isa.h"
#include "core/ops/pointwise.h"
#include "core/ops/vmath.h"

#define PW_PASTE2(a, b) a##b
#define PW_PASTE(a, b) PW_PASTE2(a, b)

#define LOOP_FLT PW_LOOP
#define LOOP_ANY PW_LOOP
#define LOOP_FLT_BOOL PW_LOOP
#define LOOP_ANY_BOOL PW_LOOP
#define LOOP_COND PW_LOOP
#define LOOP_CAST PW_LOOP
#define SLOT_FLT PW_SLOT
#define SLOT_ANY PW_SLOT
#define SLOT_FLT_BOOL PW_SLOT
#define SLOT_ANY_BOOL PW_SLOT
#define SLOT_COND PW_SLOT
#define SLOT_CAST PW_SLOT

#define K(x) ((T)(x))

#define T float
#define FN(name) brg__f32_##name
#define PW_NAME(name) name##_f32
#define PW_TABLE BRG__ISA_NAME(brg__pw_f32)
#define PW_SCALAR(x) ((T)(x))
#include "core/ops/pointwise_loops.h"
#undef T
#undef FN
#undef PW_NAME
#undef PW_TABLE

/* Twice the width brings f64 little: it calls the C library or waits for
 * memory. */
#ifndef BRG_ISA_AVX512
#define T double
#define FN(name) brg__f64_##name
#define PW_NAME(name) name##_f64
#define PW_TABLE BRG__ISA_NAME(brg__pw_f64)
#include "core/ops/pointwise_loops.h"
#undef T
#undef FN
#undef PW_NAME
#undef PW_TABLE
#endif
#undef PW_SCALAR

#ifdef BRG_ISA_BASE
/* Infinite bounds of clamp become the type's. */
static int64_t whole_scalar(double x)
{
    return x >= 0x1p63 ? INT64_MAX : x >= -0x1p63 ? (int64_t)x : INT64_MIN;
}

#undef LOOP_FLT
#undef LOOP_FLT_BOOL
#undef SLOT_FLT
#undef SLOT_FLT_BOOL
#define LOOP_FLT PW_SKIP
#define LOOP_FLT_BOOL PW_SKIP
#define SLOT_FLT PW_SKIP
#define SLOT_FLT_BOOL PW_SKIP
#define T int64_t
#define FN(name) brg__i64_##name
#define PW_NAME(name) name##_i64
#define PW_TABLE BRG__ISA_NAME(brg__pw_i64)
#define PW_SCALAR(x) whole_scalar(x)
#include "core/ops/pointwise_loops.h"
#endif
