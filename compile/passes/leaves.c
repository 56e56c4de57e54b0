/* SPDX-License-Identifier: Apache-2.0
 * A rule that makes the gradients of an input and of a weight makes that of the
 * weight first: its bucket leaves sooner by the time of the other, which
 * nothing but later rules waits for. What that gains is less than the noise of a
 * step over a slow link (docs/benchmarks.md).
 *
 * Only nodes without effects change places, within stretches that have none
 * between them: for each gradient of a leaf, in their order, what it still needs,
 * then it; then what no leaf needs. */
#include "compile/passes/passes.h"
#include "core/base/error.h"

typedef struct in_turn {
    const brg__ir *ir;
    bool *is_leaf;    /* of each visit: it accumulates */
    bool *is_grad;    /* of each value: it goes into a leaf, straight or through
                         the leaf's hooks and checks */
    bool *is_needed;  /* of each node: by the gradient in turn */
    bool *is_emitted; /* of each node */
    int *order;
    size_t n;
} in_turn;

static void find_grads(in_turn *t)
{
    const brg__ir *ir = t->ir;
    for (size_t at = 0; at < ir->nodes.n; at++)
        if (ir->nodes.at[at].kind == BRG__IR_ACCUMULATE)
            t->is_leaf[ir->nodes.at[at].visit] = true;
    for (size_t at = 0; at < ir->nodes.n; at++) {
        const brg__ir_node *node = &ir->nodes.at[at];
        bool is_step = !brg__ir_is_pure(node) && node->visit != BRG__IR_NONE &&
                       t->is_leaf[node->visit];
        for (int i = 0; is_step && i < node->n_in; i++)
            if (brg__ir_in(ir, node)[i] != BRG__IR_NONE)
                t->is_grad[brg__ir_in(ir, node)[i]] = true;
    }
}

static bool makes_grad(const in_turn *t, size_t at)
{
    const brg__ir_node *node = &t->ir->nodes.at[at];
    for (int j = 0; j < node->n_out; j++)
        if (t->is_grad[node->first_out + j])
            return true;
    return false;
}

static void need_operands(in_turn *t, size_t at)
{
    const brg__ir_node *node = &t->ir->nodes.at[at];
    for (int i = 0; i < node->n_in; i++) {
        int made = brg__ir_maker(t->ir, brg__ir_in(t->ir, node)[i]);
        if (made != BRG__IR_NONE)
            t->is_needed[made] = true;
    }
}

static void put(in_turn *t, size_t at)
{
    t->is_emitted[at] = true;
    t->order[t->n++] = (int)at;
}

/* The node, behind those of [from, at) that it needs and are still to come. */
static void put_with_operands(in_turn *t, size_t from, size_t at)
{
    for (size_t k = from; k < at; k++)
        t->is_needed[k] = false;
    need_operands(t, at);
    for (size_t k = at; k-- > from;)
        if (t->is_needed[k] && !t->is_emitted[k])
            need_operands(t, k);
    for (size_t k = from; k < at; k++)
        if (t->is_needed[k] && !t->is_emitted[k])
            put(t, k);
    put(t, at);
}

static void schedule(in_turn *t)
{
    const brg__ir *ir = t->ir;
    for (size_t from = 0, to; from < ir->nodes.n; from = to + 1) {
        for (to = from; to < ir->nodes.n; to++)
            if (!brg__ir_is_pure(&ir->nodes.at[to]))
                break;
        for (size_t at = from; at < to; at++)
            if (!t->is_emitted[at] && makes_grad(t, at))
                put_with_operands(t, from, at);
        for (size_t at = from; at < to; at++)
            if (!t->is_emitted[at])
                put(t, at);
        if (to < ir->nodes.n)
            put(t, to);
    }
}

brg_status brg__pass_leaves(brg__ir *ir)
{
    size_t n = ir->nodes.n, n_visits = brg__ir_count_visits(ir);
    in_turn t = {.ir = ir};
    t.order = brg__mem_alloc_array(n + 1, sizeof *t.order, "an order of nodes");
    bool *flags = brg__mem_alloc_array(2 * n + n_visits + ir->values.n + 1,
                                       sizeof *flags, "flags of nodes");
    brg_status status = t.order && flags ? BRG_OK : BRG_ERR_NOMEM;
    if (status == BRG_OK) {
        t.is_emitted = flags;
        t.is_needed = flags + n;
        t.is_leaf = flags + 2 * n;
        t.is_grad = flags + 2 * n + n_visits;
        find_grads(&t);
        schedule(&t);
        status = brg__ir_arrange(ir, t.order, t.n);
    }
    brg__mem_free(t.order);
    brg__mem_free(flags);
    return status;
}
