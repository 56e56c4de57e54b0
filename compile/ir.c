/* SPDX-License-Identifier: Apache-2.0
 * The captured backward: building, verifying. */
#include "compile/ir.h"

#include "core/base/error.h"
#include "core/base/tracer.h"

void brg__ir_deinit(brg__ir *ir)
{
    for (size_t i = 0; i < ir->values.n; i++)
        brg_release(ir->values.at[i].constant);
    for (size_t i = 0; i < ir->groups.n; i++)
        brg__mem_free(ir->groups.at[i]);
    brg__array_deinit(&ir->groups);
    brg__array_deinit(&ir->nodes);
    brg__array_deinit(&ir->values);
    brg__array_deinit(&ir->operands);
    brg__array_deinit(&ir->traced);
    brg__array_deinit(&ir->functions);
}

brg_status brg__ir_add_value(brg__ir *ir, const brg__ir_value *value, int *id)
{
    *id = (int)ir->values.n;
    return brg__array_push(&ir->values, *value);
}

brg_status brg__ir_add_node(brg__ir *ir, const brg__ir_node *node,
                            const int *in, int n_in)
{
    brg__ir_node fresh = *node;
    fresh.first_in = (int)ir->operands.n;
    fresh.n_in = n_in;
    fresh.first_out = (int)ir->values.n;
    BRG_TRY(brg__array_reserve(&ir->operands, (size_t)n_in));
    BRG_TRY(brg__array_push(&ir->nodes, fresh));
    for (int i = 0; i < n_in; i++)
        ir->operands.at[ir->operands.n++] = in[i];
    return BRG_OK;
}

static brg_status add_token(brg__ir *ir, const brg__ir_node *node, int *token)
{
    brg__ir_value value = {.source = BRG__IR_FROM_NODE,
                           .node = (int)ir->nodes.n,
                           .is_token = true};
    BRG_TRY(brg__ir_add_node(ir, node, token, *token != BRG__IR_NONE));
    return brg__ir_add_value(ir, &value, token);
}

brg_status brg__ir_add_reduction(brg__ir *ir, int visit, int reduction,
                                 const brg__reduction_part *part)
{
    static const brg__ir_kind kinds[] = {BRG__IR_PACK, BRG__IR_START,
                                         BRG__IR_WAIT, BRG__IR_WRITE_BACK};
    int token = BRG__IR_NONE;
    for (int k = 0; k < 4; k++) {
        bool is_of_leaf = k == 0 || k == 3;
        brg__ir_node node = {.kind = kinds[k],
                             .lifted = BRG__IR_NONE,
                             .visit = is_of_leaf ? visit : BRG__IR_NONE,
                             .slot = (int)part->member,
                             .bucket = {.reduction = reduction,
                                        .number = (int)part->bucket,
                                        .n_members = (int)part->n_in_bucket,
                                        .divisor = (int)part->divisor},
                             .n_out = 1};
        BRG_TRY(add_token(ir, &node, &token));
    }
    return BRG_OK;
}

/* ---- Pieces ----------------------------------------------------------------------- */

static bool computes(const brg__ir_node *n)
{
    return n->kind == BRG__IR_OP || n->kind == BRG__IR_ADD ||
           n->kind == BRG__IR_FUSED || n->kind == BRG__IR_ACCUMULATE;
}

brg__ir_pieces brg__ir_count_pieces(const brg__ir *ir)
{
    brg__ir_pieces p = {.first_split = BRG__IR_NONE};
    bool is_empty = true, is_cut = false;
    for (size_t at = 0; at < ir->nodes.n; at++) {
        const brg__ir_node *n = &ir->nodes.at[at];
        if (n->is_split) {
            p.n_splits += !is_cut;
            if (p.first_split == BRG__IR_NONE)
                p.first_split = (int)at;
            p.n_pieces += n->is_stretch;
            is_cut = is_empty = true;
        } else if (computes(n)) {
            p.n_pieces += is_empty;
            is_cut = is_empty = false;
        }
    }
    return p;
}

/* ---- Verification ---------------------------------------------------------------- */

static brg_status verify_operands(const brg__ir *ir, size_t at)
{
    const brg__ir_node *n = &ir->nodes.at[at];
    for (int i = 0; i < n->n_in; i++) {
        int id = brg__ir_in(ir, n)[i];
        if (id == BRG__IR_NONE)
            continue;
        if (id < 0 || (size_t)id >= ir->values.n)
            return BRG_FAIL(BRG_ERR_INTERNAL,
                            "plan: node %zu reads value %d of %zu", at, id,
                            ir->values.n);
        const brg__ir_value *v = &ir->values.at[id];
        if (v->source == BRG__IR_FROM_NODE && v->node == BRG__IR_NONE)
            return BRG_FAIL(BRG_ERR_INTERNAL,
                            "plan: node %zu reads value %d, whose node is gone",
                            at, id);
        if (v->source == BRG__IR_FROM_NODE && (size_t)v->node >= at)
            return BRG_FAIL(BRG_ERR_INTERNAL,
                            "plan: node %zu reads value %d before node %d "
                            "makes it",
                            at, id, v->node);
    }
    return BRG_OK;
}

static brg_status verify_group(const brg__ir *ir, size_t at)
{
    const brg__ir_node *n = &ir->nodes.at[at];
    if (n->group < 0 || (size_t)n->group >= ir->groups.n)
        return BRG_FAIL(BRG_ERR_INTERNAL, "plan: node %zu runs group %d of %zu",
                        at, n->group, ir->groups.n);
    const brg__group *group = ir->groups.at[n->group];
    if (n->n_in != group->n_in || n->n_out != group->n_out)
        return BRG_FAIL(BRG_ERR_INTERNAL,
                        "plan: node %zu has %d operands and %d results, its "
                        "group %d and %d",
                        at, n->n_in, n->n_out, group->n_in, group->n_out);
    return brg__group_verify(group);
}

/* A reduction's nodes follow each other, of one bucket: pack, start, wait,
 * write-back. Its tokens are nothing to compute with. */
static brg_status verify_tokens(const brg__ir *ir, size_t at)
{
    const brg__ir_node *n = &ir->nodes.at[at];
    for (int i = 0; i < n->n_in; i++) {
        int id = brg__ir_in(ir, n)[i];
        if (id == BRG__IR_NONE || !ir->values.at[id].is_token)
            continue;
        const brg__ir_node *maker = &ir->nodes.at[brg__ir_maker(ir, id)];
        if (brg__ir_is_pure(n))
            return BRG_FAIL(BRG_ERR_INTERNAL,
                            "plan: node %zu computes with token %d", at, id);
        if (brg__ir_is_reduction(n) &&
            (maker->kind + 1 != n->kind ||
             maker->bucket.reduction != n->bucket.reduction ||
             maker->bucket.number != n->bucket.number))
            return BRG_FAIL(BRG_ERR_INTERNAL,
                            "plan: node %zu, of bucket %d of reduction %d, "
                            "follows a node of bucket %d of reduction %d",
                            at, n->bucket.number, n->bucket.reduction,
                            maker->bucket.number, maker->bucket.reduction);
    }
    return BRG_OK;
}

brg_status brg__ir_verify(const brg__ir *ir)
{
    for (size_t at = 0; at < ir->nodes.n; at++) {
        const brg__ir_node *n = &ir->nodes.at[at];
        BRG_TRY(verify_operands(ir, at));
        BRG_TRY(verify_tokens(ir, at));
        if (n->kind == BRG__IR_OP &&
            (n->n_in != n->op->n_in || n->n_out != n->op->n_out))
            return BRG_FAIL(BRG_ERR_INTERNAL,
                            "plan: node %zu calls %s with %d operands and %d "
                            "results, its row says %d and %d",
                            at, n->op->name, n->n_in, n->n_out, n->op->n_in,
                            n->op->n_out);
        if (n->kind == BRG__IR_FUSED)
            BRG_TRY(verify_group(ir, at));
        if (n->kind == BRG__IR_FINAL && at + 1 < ir->nodes.n)
            return BRG_FAIL(BRG_ERR_INTERNAL,
                            "plan: final callbacks at node %zu of %zu, "
                            "expected at the end",
                            at, ir->nodes.n);
        if (n->kind == BRG__IR_VALIDATE && (n->n_in != 1 || n->n_out != 1))
            return BRG_FAIL(BRG_ERR_INTERNAL,
                            "plan: node %zu validates %d gradients into %d, "
                            "expected one into one",
                            at, n->n_in, n->n_out);
        if ((size_t)(n->first_out + n->n_out) > ir->values.n)
            return BRG_FAIL(BRG_ERR_INTERNAL,
                            "plan: node %zu makes values that are not there",
                            at);
        for (int j = 0; j < n->n_out; j++)
            if (ir->values.at[n->first_out + j].node != (int)at)
                return BRG_FAIL(BRG_ERR_INTERNAL,
                                "plan: value %d is not of node %zu",
                                n->first_out + j, at);
    }
    return BRG_OK;
}
