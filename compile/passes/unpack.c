/* SPDX-License-Identifier: Apache-2.0
 * Unpacking right before the first use: until then the tensor may stay where it
 * was packed to, and what runs before (a hook, a function) finds it there. */
#include "compile/passes/passes.h"
#include "core/base/error.h"

/* Unpacking that is put off, in order. */
typedef struct put_off {
    const brg__ir *ir;
    int *pending;
    size_t n_pending;
    int *order;
    size_t n;
} put_off;

static bool is_result(const brg__ir_node *node, int id)
{
    return id >= node->first_out && id < node->first_out + node->n_out;
}

static bool reads(const put_off *p, const brg__ir_node *user, size_t k)
{
    const brg__ir_node *unpack = &p->ir->nodes.at[p->pending[k]];
    for (int i = 0; i < user->n_in; i++)
        if (is_result(unpack, brg__ir_in(p->ir, user)[i]))
            return true;
    return false;
}

/* One that cuts the plan comes before those that follow it: it does the work
 * for all of them. */
static void emit_what_it_reads(put_off *p, const brg__ir_node *user)
{
    size_t n_left = 0, n_reached = 0;
    for (size_t k = 0; k < p->n_pending; k++)
        if (reads(p, user, k))
            n_reached = k + 1;
    for (size_t k = 0; k < p->n_pending; k++) {
        bool is_split = p->ir->nodes.at[p->pending[k]].is_split;
        if (reads(p, user, k) || (is_split && k < n_reached))
            p->order[p->n++] = p->pending[k];
        else
            p->pending[n_left++] = p->pending[k];
    }
    p->n_pending = n_left;
}

brg_status brg__pass_unpack(brg__ir *ir)
{
    put_off p = {.ir = ir};
    size_t n = ir->nodes.n;
    p.order = brg__mem_alloc_array(n + 1, sizeof *p.order, "nodes");
    p.pending = brg__mem_alloc_array(n + 1, sizeof *p.pending, "nodes");
    int *n_uses =
        brg__mem_alloc_array(ir->values.n + 1, sizeof *n_uses, "uses");
    brg_status status = p.order && p.pending && n_uses ? BRG_OK : BRG_ERR_NOMEM;
    if (status == BRG_OK)
        brg__ir_count_uses(ir, n_uses);
    for (size_t at = 0; status == BRG_OK && at < n; at++) {
        const brg__ir_node *node = &ir->nodes.at[at];
        if (node->kind == BRG__IR_UNPACK && n_uses[node->first_out] > 0) {
            p.pending[p.n_pending++] = (int)at;
            continue;
        }
        if (p.n_pending > 0)
            emit_what_it_reads(&p, node);
        p.order[p.n++] = (int)at;
    }
    if (status == BRG_OK)
        status = brg__ir_arrange(ir, p.order, p.n);
    brg__mem_free(p.order);
    brg__mem_free(p.pending);
    brg__mem_free(n_uses);
    return status;
}
