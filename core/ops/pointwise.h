/* SPDX-License-Identifier: Apache-2.0
 * Pointwise rows of ops.def inside the library: their kernels and the run
 * function that they share.
 *
 * A kernel computes n contiguous elements of one compute type. It may write
 * over one of its inputs, element for element. Whatever the layout of a call,
 * each value comes from the same expression, so its bits depend on the
 * elements and the instruction set only. */
#ifndef BRG_CORE_OPS_POINTWISE_H
#define BRG_CORE_OPS_POINTWISE_H

#include "core/ops/convert.h"
#include "core/ops/op.h"

typedef void (*brg__pw_fn)(size_t n, void *out, const void *const *in,
                           const double *p);

/* Which dtypes a row takes and gives. */
typedef enum brg__pw_class {
    BRG__PW_FLT,      /* floats */
    BRG__PW_ANY,      /* all dtypes */
    BRG__PW_FLT_BOOL, /* floats to bool */
    BRG__PW_ANY_BOOL, /* all to bool */
    BRG__PW_COND,     /* bool, then all of one dtype, which it gives */
    BRG__PW_CAST      /* all to the dtype attrs->i[0] */
} brg__pw_class;

/* The rows in order, for the tables of kernels. */
typedef enum brg__pw_index {
#define BRG_UNARY(cls, name, ...) BRG__PW_##name,
#define BRG_BINARY(cls, name, ...) BRG__PW_##name,
#define BRG_TERNARY(cls, name, ...) BRG__PW_##name,
#define BRG_KERNEL(name, ...)
#define BRG_KERNEL_NOGRAD(name, ...)
#define BRG_VIEW(name, ...)
#include "core/ops/ops.def"
#include "core/ops/ops_undef.h"
    BRG__PW_N
} brg__pw_index;

/* What a row's brg_op.pointwise points to. */
typedef struct brg__pw_row {
    brg__pw_index index;
    brg__pw_class cls;
} brg__pw_row;

/* Tables of kernels, made in pointwise_kernels.c: f32 for each instruction
 * set, f64 up to avx2, i64 for base only. */
typedef brg__pw_fn brg__pw_table[BRG__PW_N];
extern const brg__pw_table brg__pw_f32_base, brg__pw_f32_avx2,
    brg__pw_f32_avx512;
extern const brg__pw_table brg__pw_f64_base, brg__pw_f64_avx2;
extern const brg__pw_table brg__pw_i64_base;

/* The type that a call on these inputs computes in. */
brg__ctype brg__pw_ctype(const brg_op *op, const brg_tensor *const *in);

/* The kernel of a pointwise row for this processor; NULL if the row has none
 * of that type. */
brg__pw_fn brg__pw_kernel(const brg_op *op, brg__ctype type);

/* out = op(in...), any strides and dtypes. `out` is not the memory of an
 * input, unless it has the same strides. */
void brg__pw_apply(const brg_op *op, const brg_tensor *const *in,
                   const brg_tensor *out, const double *p);

brg_status brg__pw_infer(brg_op_call *call);
brg_status brg__pw_run(brg_op_call *call);

#endif
