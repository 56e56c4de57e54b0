/* SPDX-License-Identifier: Apache-2.0
 * Groups whose kernels for devices are compared with ops, and by how much they
 * differ. */
#ifndef BRG_TESTS_COMPILE_CUDA_GROUPS_H
#define BRG_TESTS_COMPILE_CUDA_GROUPS_H

#include <math.h>

#include "compile/fuse/cuda_group.h"
#include "tests/compile/groups.h"

/* ---- By how much ------------------------------------------------------------- */

static inline double element(const brg_tensor *t, int64_t i)
{
    return brg__get_f64(brg__storage_base(t), (brg_dtype)t->dtype,
                        t->offset + i);
}

/* In units of the dtype's last place, of 0.25 for smaller values: eager kernels
 * contract a + p b. */
static inline double units_off(const brg_tensor *got, const brg_tensor *want)
{
    static const double unit[BRG_N_DTYPES] = {
        [BRG_DTYPE_F64] = 0x1p-52,
        [BRG_DTYPE_F32] = 0x1p-23,
        [BRG_DTYPE_F16] = 0x1p-10,
        [BRG_DTYPE_BF16] = 0x1p-7,
    };
    double most = 0;
    for (int64_t i = 0; i < want->numel; i++) {
        const double x = element(got, i), y = element(want, i);
        if (x == y || (x != x && y != y))
            continue;
        if (want->dtype == BRG_DTYPE_BOOL || x != x || y != y || isinf(x) ||
            isinf(y))
            return INFINITY;
        const double size = fmax(fmax(fabs(x), fabs(y)), 0.25);
        most = fmax(most, fabs(x - y) / (unit[want->dtype] * size));
    }
    return most;
}

/* ---- Which ops have the same bits ---------------------------------------------- */

/* Of all that the value of op k is made of. */
static inline bool is_exact(const brg__group *g, int k)
{
    if (!is_exact_op(g->ops[k].op))
        return false;
    for (int i = 0; i < g->ops[k].n_in; i++)
        if (g->ops[k].in[i] >= g->n_in &&
            !is_exact(g, g->ops[k].in[i] - g->n_in))
            return false;
    return true;
}

/* ---- A product, a sum with a number, and the sums of its columns ---------------- */

static inline void bias_group(group_case *c, brg_dtype dtype)
{
    *c = (group_case){.dtype = dtype, .ndim = 2, .shape = {48, 64}};
    c->group = (brg__group){.n_in = 3, .n_ops = 3, .n_out = 2, .ops = c->ops};
    c->in[0] = random_values(dtype, 2, c->shape);
    c->in[1] = random_values(dtype, 2, c->shape);
    c->in[2] = random_values(dtype, 1, c->shape + 1);
    c->group.ops[0] = (brg__group_op){&brg__op_mul, .n_in = 2, .in = {0, 1},
                                      .out = BRG__GROUP_NONE};
    c->group.ops[1] = (brg__group_op){&brg__op_add_scalar, .n_in = 1, .in = {3},
                                      .attrs.f = {1.5}, .out = 0};
    c->group.ops[2] = (brg__group_op){&brg__op_sum_to_like, .is_sum = true,
                                      .n_in = 2, .in = {4, 2}, .out = 1};
    for (int k = 0; k < 3; k++)
        call_op(c, k);
}

/* ---- An op with a copy of its result, which is output 0, of op 1 ------------------ */

static inline bool copied_op(group_case *c, const brg_op *op, brg_dtype dtype)
{
    const brg__pw_row *row = op->pointwise;
    if (!brg__group_takes(op) || row->cls == BRG__PW_COND ||
        row->cls == BRG__PW_CAST || !brg__pw_kernel(op, BRG__F32) ||
        strstr(op->name, "logical"))
        return false;
    *c = (group_case){.dtype = dtype, .ndim = 1, .shape = {1001}};
    c->group =
        (brg__group){.n_in = op->n_in, .n_ops = 2, .n_out = 1, .ops = c->ops};
    for (int k = 0; k < op->n_in; k++)
        c->in[k] = random_values(dtype, 1, c->shape);
    c->group.ops[0] =
        (brg__group_op){op, .n_in = op->n_in, .in = {0, 1, 2},
                        .attrs.f = {0.75, 1.25}, .out = BRG__GROUP_NONE};
    call_op(c, 0);
    bool is_float = brg__tensor_is_float(c->want[0]);
    c->group.ops[1] =
        (brg__group_op){is_float ? &brg__op_copy : &brg__op_keep_if,
                        .n_in = 2 - is_float, .in = {op->n_in, 0}, .out = 0};
    call_op(c, 1);
    return true;
}

#endif
