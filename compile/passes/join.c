/* SPDX-License-Identifier: Apache-2.0
 * Two calls that are done at once. What they change is seen by whatever runs
 * between or behind them, so they stand next to each other, and so does the call
 * that ends what they leave. */
#include "compile/passes/passes.h"
#include "core/base/error.h"
#include "core/base/tracer.h"

static brg__effect *effect_at(const brg__ir *ir, size_t at)
{
    const bool is_there =
        at < ir->nodes.n && ir->nodes.at[at].kind == BRG__IR_EFFECT;
    return is_there ? ir->nodes.at[at].effect : NULL;
}

static bool joins(const brg__ir *ir, size_t at)
{
    const brg__effect *first = effect_at(ir, at);
    brg__effect *next = effect_at(ir, at + 1);
    const brg__effect *last = effect_at(ir, at + 2);
    return first && first->joins && next && last &&
           first->joins(first, next, last);
}

brg_status brg__pass_join(brg__ir *ir)
{
    size_t n = 0;
    int *order = brg__mem_alloc_array(ir->nodes.n + 1, sizeof *order, "nodes");
    if (!order)
        return BRG_ERR_NOMEM;
    for (size_t at = 0; at < ir->nodes.n; at++)
        if (!joins(ir, at))
            order[n++] = (int)at;
    const brg_status status =
        n < ir->nodes.n ? brg__ir_arrange(ir, order, n) : BRG_OK;
    brg__mem_free(order);
    return status;
}
