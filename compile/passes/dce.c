/* SPDX-License-Identifier: Apache-2.0
 * Dead code: a pure node goes if no node that stays reads a result of it. What
 * has an effect stays: hooks, custom functions, unpacking, accumulation, ops
 * that draw random numbers. */
#include "compile/passes/passes.h"
#include "core/base/error.h"

static bool is_used(const brg__ir_node *node, const int *n_uses)
{
    for (int j = 0; j < node->n_out; j++)
        if (n_uses[node->first_out + j] > 0)
            return true;
    return false;
}

/* The nodes that stay, in order; from the last, whose users are known. */
static size_t choose(const brg__ir *ir, int *n_uses, int *order)
{
    size_t n = 0;
    for (size_t at = ir->nodes.n; at-- > 0;) {
        const brg__ir_node *node = &ir->nodes.at[at];
        if (!brg__ir_is_pure(node) || is_used(node, n_uses)) {
            order[n++] = (int)at;
            continue;
        }
        for (int i = 0; i < node->n_in; i++)
            if (brg__ir_in(ir, node)[i] != BRG__IR_NONE)
                n_uses[brg__ir_in(ir, node)[i]]--;
    }
    for (size_t i = 0; i < n / 2; i++) {
        int last = order[n - 1 - i];
        order[n - 1 - i] = order[i];
        order[i] = last;
    }
    return n;
}

brg_status brg__pass_dce(brg__ir *ir)
{
    int *n_uses =
        brg__mem_alloc_array(ir->values.n + 1, sizeof *n_uses, "uses");
    int *order = brg__mem_alloc_array(ir->nodes.n + 1, sizeof *order, "nodes");
    brg_status status = n_uses && order ? BRG_OK : BRG_ERR_NOMEM;
    if (status == BRG_OK) {
        brg__ir_count_uses(ir, n_uses);
        size_t n = choose(ir, n_uses, order);
        ir->n_dropped += ir->nodes.n - n;
        if (n < ir->nodes.n)
            status = brg__ir_arrange(ir, order, n);
    }
    brg__mem_free(n_uses);
    brg__mem_free(order);
    return status;
}
