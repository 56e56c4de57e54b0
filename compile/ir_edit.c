/* SPDX-License-Identifier: Apache-2.0
 * Editing a plan: other operands, another order, fewer nodes. Value ids stay
 * what they are; those of a node that is left out belong to no node. */
#include <string.h>

#include "compile/ir.h"
#include "core/base/assert.h"
#include "core/base/error.h"

static const bool is_pure[] = {
#define KIND_IS_PURE(name, text, is_pure) is_pure,
    BRG__IR_KINDS(KIND_IS_PURE)
#undef KIND_IS_PURE
};

bool brg__ir_is_pure(const brg__ir_node *node)
{
    return is_pure[node->kind] &&
           !(node->kind == BRG__IR_OP &&
             (node->op->flags & (BRG_OP_IMPURE | BRG_OP_INPLACE)));
}

size_t brg__ir_count(const brg__ir *ir, brg__ir_kind kind)
{
    size_t n = 0;
    for (size_t at = 0; at < ir->nodes.n; at++)
        n += ir->nodes.at[at].kind == kind;
    return n;
}

bool brg__ir_runs_user_code(const brg__ir_node *node)
{
    switch (node->kind) {
    case BRG__IR_UNPACK:
    case BRG__IR_TENSOR_HOOKS:
    case BRG__IR_PRE_HOOKS:
    case BRG__IR_POST_HOOKS:
    case BRG__IR_POST_ACCUMULATE:
    case BRG__IR_CALL:
    case BRG__IR_LEAF:
    case BRG__IR_REGION:
        return true;
    default:
        return false;
    }
}

bool brg__ir_is_closed(const brg__ir *ir)
{
    for (size_t at = 0; at < ir->nodes.n; at++)
        if (brg__ir_runs_user_code(&ir->nodes.at[at]))
            return false;
    return true;
}

/* May keep or change what it is given. */
static bool hands_out(const brg__ir_node *node)
{
    return node->kind != BRG__IR_OP && node->kind != BRG__IR_ADD &&
           node->kind != BRG__IR_FUSED;
}

/* Views and hooks pass memory on. */
void brg__ir_find_roots(const brg__ir *ir, int *root, bool *is_handed)
{
    for (size_t v = 0; v < ir->values.n; v++) {
        root[v] = (int)v;
        /* A tensor from outside, which effects change without naming it. */
        is_handed[v] = ir->values.at[v].source == BRG__IR_FROM_CONST;
    }
    for (size_t at = 0; at < ir->nodes.n; at++) {
        const brg__ir_node *node = &ir->nodes.at[at];
        const int *in = brg__ir_in(ir, node);
        bool is_view =
            node->kind == BRG__IR_OP && (node->op->flags & BRG_OP_VIEW);
        for (int j = 0; j < node->n_out && (is_view || hands_out(node)); j++)
            if (j < node->n_in && in[j] != BRG__IR_NONE)
                root[node->first_out + j] = root[in[j]];
        for (int j = 0; j < node->n_out && hands_out(node); j++)
            is_handed[root[node->first_out + j]] = true;
        for (int i = 0; i < node->n_in && hands_out(node); i++)
            if (in[i] != BRG__IR_NONE)
                is_handed[root[in[i]]] = true;
    }
}

bool brg__ir_reads_exposed(const brg__ir *ir, const brg__ir_node *node,
                           const int *root, const bool *is_handed)
{
    for (int i = 0; i < node->n_in; i++) {
        int id = brg__ir_in(ir, node)[i];
        if (id != BRG__IR_NONE &&
            (is_handed[root[id]] ||
             ir->values.at[root[id]].source == BRG__IR_FROM_INPUT))
            return true;
    }
    return false;
}

size_t brg__ir_count_visits(const brg__ir *ir)
{
    int most = BRG__IR_NONE;
    for (size_t at = 0; at < ir->nodes.n; at++)
        most = ir->nodes.at[at].visit > most ? ir->nodes.at[at].visit : most;
    return (size_t)(most + 1);
}

void brg__ir_count_uses(const brg__ir *ir, int *n_uses)
{
    for (size_t id = 0; id < ir->values.n; id++)
        n_uses[id] = 0;
    for (size_t at = 0; at < ir->nodes.n; at++) {
        const brg__ir_node *node = &ir->nodes.at[at];
        for (int i = 0; i < node->n_in; i++)
            if (brg__ir_in(ir, node)[i] != BRG__IR_NONE)
                n_uses[brg__ir_in(ir, node)[i]]++;
    }
}

int brg__ir_maker(const brg__ir *ir, int id)
{
    if (id == BRG__IR_NONE || ir->values.at[id].source != BRG__IR_FROM_NODE)
        return BRG__IR_NONE;
    return ir->values.at[id].node;
}

int brg__ir_maker_of_checked(const brg__ir *ir, int id)
{
    int made = brg__ir_maker(ir, id);
    while (made != BRG__IR_NONE && ir->nodes.at[made].kind == BRG__IR_VALIDATE)
        made = brg__ir_maker(ir, brg__ir_in(ir, &ir->nodes.at[made])[0]);
    return made;
}

void brg__ir_rename(brg__ir *ir, const int *to)
{
    for (size_t at = 0; at < ir->nodes.n; at++) {
        const brg__ir_node *node = &ir->nodes.at[at];
        int *in = ir->operands.at + node->first_in;
        for (int i = 0; i < node->n_in; i++)
            if (in[i] != BRG__IR_NONE)
                in[i] = to[in[i]];
    }
}

brg_status brg__ir_arrange(brg__ir *ir, const int *order, size_t n)
{
    brg_assert(n <= ir->nodes.n);
    brg__ir_node *nodes =
        brg__mem_alloc_array(n + 1, sizeof *nodes, "a plan's nodes");
    if (!nodes)
        return BRG_ERR_NOMEM;
    for (size_t id = 0; id < ir->values.n; id++)
        if (ir->values.at[id].source == BRG__IR_FROM_NODE)
            ir->values.at[id].node = BRG__IR_NONE;
    for (size_t at = 0; at < n; at++) {
        nodes[at] = ir->nodes.at[order[at]];
        for (int j = 0; j < nodes[at].n_out; j++)
            ir->values.at[nodes[at].first_out + j].node = (int)at;
    }
    if (n > 0)
        memcpy(ir->nodes.at, nodes, n * sizeof *nodes);
    ir->nodes.n = n;
    brg__mem_free(nodes);
    return BRG_OK;
}
