/* SPDX-License-Identifier: Apache-2.0
 * Groups: text, verification, what may be part of one. */
#include "compile/fuse/group.h"

#include "core/base/error.h"
#include "core/ops/pointwise.h"

/* ---- What fits --------------------------------------------------------------- */

bool brg__group_takes(const brg_op *op)
{
    return (op->flags & BRG_OP_POINTWISE) && op->pointwise && op->expr &&
           !(op->flags & (BRG_OP_IMPURE | BRG_OP_INPLACE)) &&
           op->n_in <= BRG__GROUP_OP_MAX_IN && op->n_out == 1;
}

brg__sum_kind brg__sum_of_dims(int ndim, uint8_t ones, uint32_t dims, int *cut)
{
    /* the sides of the dims that matter, in order: s summed, k kept */
    int n_changes = 0, last = -1, first_kind = -1;
    *cut = 0;
    for (int d = 0; d < ndim; d++) {
        if (ones >> d & 1u)
            continue;
        int kind = (int)(dims >> d & 1u);
        if (first_kind < 0)
            first_kind = kind;
        if (last >= 0 && kind != last) {
            n_changes++;
            *cut = d;
        }
        last = kind;
    }
    if (n_changes > 1)
        return BRG__SUM_NOT;
    if (n_changes == 1)
        return first_kind == 1 ? BRG__SUM_COLUMNS : BRG__SUM_ROWS;
    /* all of it into one, or nothing is summed: one row for each column */
    return last == 0 ? BRG__SUM_COLUMNS : BRG__SUM_ROWS;
}

brg__group *brg__group_create(int n_ops)
{
    brg__group *g = brg__mem_alloc(
        sizeof *g + (size_t)n_ops * sizeof(brg__group_op), "a group");
    if (!g)
        return NULL;
    g->n_ops = n_ops;
    g->ops = (brg__group_op *)(void *)(g + 1);
    return g;
}

/* ---- Text --------------------------------------------------------------------- */

void brg__group_print(const brg__group *group, brg__text *t)
{
    brg__text_add(t, "{");
    for (int k = 0; k < group->n_ops; k++) {
        const brg__group_op *op = &group->ops[k];
        brg__text_add(t, "%st%d = %s(", k ? "; " : "", k, op->op->name);
        for (int i = 0; i < op->n_in; i++) {
            bool is_operand = op->in[i] < group->n_in;
            brg__text_add(t, "%s%c%d", i ? ", " : "", is_operand ? 'a' : 't',
                          is_operand ? op->in[i] : op->in[i] - group->n_in);
        }
        brg__text_add(t, ")");
        if (op->out != BRG__GROUP_NONE)
            brg__text_add(t, " -> o%d", op->out);
    }
    brg__text_add(t, "}");
}

/* ---- Verification -------------------------------------------------------------- */

static brg_status verify_op(const brg__group *group, int k)
{
    const brg__group_op *op = &group->ops[k];
    if (op->n_in != op->op->n_in || op->n_in > BRG__GROUP_OP_MAX_IN)
        return BRG_FAIL(BRG_ERR_INTERNAL,
                        "group: op %d, %s, has %d operands instead of %d", k,
                        op->op->name, op->n_in, op->op->n_in);
    for (int i = 0; i < op->n_in; i++) {
        int made_by = op->in[i] - group->n_in;
        if (op->in[i] < 0 || made_by >= k)
            return BRG_FAIL(BRG_ERR_INTERNAL,
                            "group: op %d, %s, reads %d before it is made", k,
                            op->op->name, op->in[i]);
        if (made_by >= 0 && group->ops[made_by].is_sum)
            return BRG_FAIL(BRG_ERR_INTERNAL,
                            "group: op %d, %s, reads a sum of its own group", k,
                            op->op->name);
    }
    return BRG_OK;
}

brg_status brg__group_verify(const brg__group *group)
{
    uint32_t made = 0;
    if (group->n_ops > BRG__GROUP_MAX_OPS || group->n_in > BRG__GROUP_MAX_IN ||
        group->n_out > BRG__GROUP_MAX_OUT)
        return BRG_FAIL(BRG_ERR_INTERNAL,
                        "group: %d ops, %d operands, %d outputs are too many",
                        group->n_ops, group->n_in, group->n_out);
    for (int k = 0; k < group->n_ops; k++) {
        BRG_TRY(verify_op(group, k));
        int out = group->ops[k].out;
        if (out == BRG__GROUP_NONE)
            continue;
        if (out < 0 || out >= group->n_out || (made >> out & 1u))
            return BRG_FAIL(BRG_ERR_INTERNAL, "group: op %d gives output %d", k,
                            out);
        made |= 1u << out;
    }
    if (made != (1u << group->n_out) - 1u)
        return BRG_FAIL(BRG_ERR_INTERNAL, "group: outputs are missing");
    return BRG_OK;
}
