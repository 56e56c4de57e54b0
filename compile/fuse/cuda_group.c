/* SPDX-License-Identifier: Apache-2.0
 * What is known of a group without sizes: see cuda_group.h. */
#include "compile/fuse/cuda_group.h"

#include <string.h>

#include "compile/fuse/fused.h"
#include "core/base/dtype.h"
#include "core/base/error.h"
#include "core/ops/reduce.h"

#define NONE BRG__GROUP_NONE

static const brg_tensor *tensor_of(const brg__group *g, brg_tensor *const *in,
                                   const brg_tensor *results, int number)
{
    return number < g->n_in ? in[number] : &results[number - g->n_in];
}

static void add_load(brg__cuda_group *g, int operand, brg_dtype dtype)
{
    g->operand[operand] = dtype;
    for (int i = 0; i < g->n_loads; i++)
        if (g->load[i] == operand)
            return;
    g->load[g->n_loads++] = operand;
}

static bool add_store(brg__cuda_group *g, int op)
{
    for (int i = 0; i < g->n_stores; i++)
        if (g->store[i] == op)
            return true;
    if (g->n_stores == BRG__CUDA_MAX_STORES)
        return false;
    g->store[g->n_stores++] = op;
    return true;
}

/* Operands that ops read, values that leave the kernel, scalars. */
static bool list_parts(brg__cuda_group *g, brg_tensor *const *in,
                       const brg_tensor *results)
{
    const brg__group *group = g->group;
    bool fits = true;
    for (int k = 0; k < group->n_ops; k++) {
        const brg__group_op *op = &group->ops[k];
        const int n_in = op->is_sum ? 1 : op->n_in;
        g->result[k] = (brg_dtype)results[k].dtype;
        g->scalars[k] = NONE;
        for (int i = 0; i < n_in; i++)
            if (op->in[i] < group->n_in)
                add_load(g, op->in[i], (brg_dtype)in[op->in[i]]->dtype);
        if (op->is_sum) {
            if (op->in[0] >= group->n_in)
                fits &= add_store(g, op->in[0] - group->n_in);
            continue;
        }
        if (op->out != NONE)
            fits &= add_store(g, k);
        if (strstr(op->op->expr, "p[")) {
            g->scalars[k] = g->n_scalars;
            g->n_scalars += 2;
        }
    }
    return fits;
}

static bool is_16_bit(brg_dtype dtype)
{
    return dtype == BRG_DTYPE_F16 || dtype == BRG_DTYPE_BF16;
}

/* 16 bytes of the smallest floats. */
static int width_of(const brg__cuda_group *g)
{
    bool has_16_bits = false;
    for (int i = 0; i < g->n_loads; i++)
        has_16_bits |= is_16_bit(g->operand[g->load[i]]);
    for (int i = 0; i < g->n_stores; i++)
        has_16_bits |= is_16_bit(g->result[g->store[i]]);
    return g->type == BRG__F64 ? 2 : has_16_bits ? 8 : 4;
}

/* Sums over rows that keep columns, in as many registers as there are. */
static bool may_sum(const brg__cuda_group *g, brg_tensor *const *in,
                    const brg_tensor *results)
{
    const brg__group *group = g->group;
    for (int s = 0; s < g->n_sums; s++) {
        const brg__group_op *op = &group->ops[g->sum[s]];
        int cut;
        uint32_t dims;
        uint8_t ones = 0;
        double scale;
        brg_tensor *operands[2] = {0};
        for (int i = 0; i < op->n_in; i++)
            operands[i] = (brg_tensor *)(uintptr_t)tensor_of(group, in, results,
                                                             op->in[i]);
        brg_op_call call = {.op = op->op,
                            .n_in = op->n_in,
                            .in = operands,
                            .attrs = &op->attrs};
        for (int d = 0; d < operands[0]->ndim; d++)
            ones |= (uint8_t)((operands[0]->shape[d] == 1) << d);
        brg__sum_of_call(&call, &dims, &scale);
        if (brg__sum_of_dims(operands[0]->ndim, ones, dims, &cut) !=
            BRG__SUM_COLUMNS)
            return false;
    }
    return g->n_sums > 0 && g->n_sums * g->width <= 16;
}

brg_status brg__cuda_group_init(brg__cuda_group *g, const brg__group *group,
                                brg_tensor *const *in, const char **why)
{
    brg_tensor results[BRG__GROUP_MAX_OPS];
    bool is_uniform;
    int n_pointwise = 0;
    *why = NULL;
    *g = (brg__cuda_group){.group = group};
    BRG_TRY(brg__fused_infer(group, BRG_CPU, in, results, &is_uniform));
    for (int k = 0; k < group->n_ops; k++) {
        n_pointwise += !group->ops[k].is_sum;
        if (group->ops[k].is_sum && group->ops[k].out != NONE)
            g->sum[g->n_sums++] = k;
    }
    if (n_pointwise == 0 || !is_uniform) {
        *why = is_uniform ? "it holds sums only" : "its shapes differ";
        return BRG_OK;
    }
    const brg__group_op *first = &group->ops[0];
    brg_tensor *operands[BRG__GROUP_OP_MAX_IN];
    for (int i = 0; i < first->n_in; i++)
        operands[i] = (brg_tensor *)(uintptr_t)tensor_of(group, in, results,
                                                         first->in[i]);
    g->type =
        first->is_sum
            ? brg__ctype_of((brg_dtype)operands[0]->dtype)
            : brg__pw_ctype(first->op, (const brg_tensor *const *)operands);
    if (!list_parts(g, in, results)) {
        *why = "it gives too many values";
        return BRG_OK;
    }
    g->width = width_of(g);
    g->has_columns = may_sum(g, in, results);
    return BRG_OK;
}
