/* SPDX-License-Identifier: Apache-2.0
 * Validation that cannot fail goes. A capture writes a check behind each gradient
 * that a node makes; it is not needed where the IR says that the gradient fits
 * whatever the sizes: an op's gradient rule made it, which refers to sizes (of
 * what was saved, of slots) and never states them, with the dtype, the number of
 * dims and the dims of size 1 that the slot has. What a custom function makes is
 * checked by every run, if the plan calls it, or by every executable. */
#include "compile/passes/passes.h"
#include "core/base/error.h"

static bool is_known_to_fit(const brg__ir *ir, const brg__ir_node *node)
{
    const brg__ir_value *grad = &ir->values.at[brg__ir_in(ir, node)[0]];
    const brg__ir_value *slot = &ir->values.at[node->first_out];
    return node->is_by_rule && grad->dtype == slot->dtype &&
           grad->ndim == slot->ndim && grad->ones == slot->ones;
}

/* The nodes that stay, in order; readers of the others read what they let
 * pass. */
static size_t choose(const brg__ir *ir, int *order, int *to)
{
    size_t n = 0;
    for (size_t id = 0; id < ir->values.n; id++)
        to[id] = (int)id;
    for (size_t at = 0; at < ir->nodes.n; at++) {
        const brg__ir_node *node = &ir->nodes.at[at];
        if (node->kind == BRG__IR_VALIDATE && is_known_to_fit(ir, node))
            to[node->first_out] = to[brg__ir_in(ir, node)[0]];
        else
            order[n++] = (int)at;
    }
    return n;
}

brg_status brg__pass_validate(brg__ir *ir)
{
    int *order = brg__mem_alloc_array(ir->nodes.n + 1, sizeof *order, "nodes");
    int *to = brg__mem_alloc_array(ir->values.n + 1, sizeof *to, "values");
    brg_status status = order && to ? BRG_OK : BRG_ERR_NOMEM;
    if (status == BRG_OK) {
        size_t n = choose(ir, order, to);
        if (n < ir->nodes.n) {
            brg__ir_rename(ir, to);
            status = brg__ir_arrange(ir, order, n);
        }
    }
    brg__mem_free(order);
    brg__mem_free(to);
    return status;
}
