/* SPDX-License-Identifier: Apache-2.0
 * Plans put together by hand, and compared as text. */
#ifndef BRG_TESTS_COMPILE_IR_BUILD_H
#define BRG_TESTS_COMPILE_IR_BUILD_H

#include "compile/passes/passes.h"
#include "tests/support/brg_test.h"

#define IR_UNUSED __attribute__((unused))
#define NO BRG__IR_NONE
/* A list of operands. */
#define IN(...)                                                                \
    (const int[]){__VA_ARGS__},                                                \
        (int)(sizeof((int[]){__VA_ARGS__}) / sizeof(int))

static inline IR_UNUSED int ir_value(brg__ir *ir, brg__ir_value value)
{
    int id;
    value.dtype = BRG_DTYPE_F32;
    value.ndim = 2;
    assert_brg_ok(brg__ir_add_value(ir, &value, &id));
    return id;
}

static inline IR_UNUSED int ir_input(brg__ir *ir)
{
    return ir_value(ir, (brg__ir_value){.source = BRG__IR_FROM_INPUT,
                                        .index = ir->n_inputs++});
}

/* A node with n_out results; the first of them, or NONE. */
static inline IR_UNUSED int ir_node(brg__ir *ir, brg__ir_node node, int n_out,
                                    const int *in, int n_in)
{
    node.n_out = n_out;
    assert_brg_ok(brg__ir_add_node(ir, &node, in, n_in));
    int first = BRG__IR_NONE, at = (int)ir->nodes.n - 1;
    for (int j = 0; j < n_out; j++) {
        int id = ir_value(
            ir, (brg__ir_value){.source = BRG__IR_FROM_NODE, .node = at});
        first = j == 0 ? id : first;
    }
    return first;
}

/* An op of the library, by name. */
static inline IR_UNUSED int ir_op(brg__ir *ir, const char *name, const int *in,
                                  int n_in)
{
    const brg_op *op = brg_op_find(name);
    assert_non_null(op);
    return ir_node(ir,
                   (brg__ir_node){.kind = BRG__IR_OP,
                                  .op = op,
                                  .lifted = BRG__IR_NONE,
                                  .visit = BRG__IR_NONE},
                   op->n_out, in, n_in);
}

/* A node that speaks of a node of the graph. */
static inline IR_UNUSED int ir_of(brg__ir *ir, brg__ir_kind kind, int visit,
                                  int n_out, const int *in, int n_in)
{
    return ir_node(
        ir,
        (brg__ir_node){.kind = kind, .lifted = BRG__IR_NONE, .visit = visit},
        n_out, in, n_in);
}

/* The four nodes of a gradient's reduction, as a capture writes them; gradient
 * `member` of visit `visit`, in a bucket. Returns the write-back's token. */
static inline IR_UNUSED int ir_reduction(brg__ir *ir, int visit, int member,
                                         brg__ir_bucket bucket)
{
    int token = BRG__IR_NONE;
    const brg__ir_kind kinds[] = {BRG__IR_PACK, BRG__IR_START, BRG__IR_WAIT,
                                  BRG__IR_WRITE_BACK};
    for (int k = 0; k < 4; k++) {
        bool is_of_leaf = k == 0 || k == 3;
        brg__ir_node node = {.kind = kinds[k],
                             .lifted = BRG__IR_NONE,
                             .visit = is_of_leaf ? visit : BRG__IR_NONE,
                             .slot = member,
                             .bucket = bucket};
        token = ir_node(ir, node, 1, &token, k > 0);
        ir->values.at[token].is_token = true;
    }
    return token;
}

/* The plan is sound and reads so. */
static inline IR_UNUSED void expect_plan(const brg__ir *ir, const char *text)
{
    char got[4096];
    assert_brg_ok(brg__ir_verify(ir));
    size_t n = brg__ir_print(ir, got, sizeof got);
    assert_true(n < sizeof got);
    assert_string_equal(got, text);
}

#endif
