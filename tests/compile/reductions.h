/* SPDX-License-Identifier: Apache-2.0
 * Plans with reductions, put together by hand. */
#ifndef BRG_TESTS_COMPILE_REDUCTIONS_H
#define BRG_TESTS_COMPILE_REDUCTIONS_H

#include "tests/compile/ir_build.h"

/* Leaves 0..n-1, whose gradients come in this order; bucket[k] of leaf k. */
static inline IR_UNUSED void make(brg__ir *ir, int reduction, int n,
                                  const int *bucket, const int *n_members)
{
    int g = ir_input(ir);
    for (int k = 0; k < n; k++) {
        g = ir_op(ir, "sin", IN(g));
        ir_of(ir, BRG__IR_ACCUMULATE, k, 0, IN(g));
        ir_reduction(ir, k, k,
                     (brg__ir_bucket){.reduction = reduction,
                                      .number = bucket[k],
                                      .n_members = n_members[bucket[k]],
                                      .divisor = 4});
    }
}

/* The kinds of the reduction nodes, by first letter and bucket. */
static inline IR_UNUSED void expect_sequence(const brg__ir *ir,
                                             const char *expected)
{
    char got[128];
    size_t n = 0;
    for (size_t at = 0; at < ir->nodes.n; at++) {
        const brg__ir_node *node = &ir->nodes.at[at];
        if (node->kind == BRG__IR_START || node->kind == BRG__IR_WAIT)
            n += (size_t)snprintf(got + n, sizeof got - n, "%c%d.%d ",
                                  node->kind == BRG__IR_START ? 's' : 'w',
                                  node->bucket.reduction, node->bucket.number);
        else if (node->kind == BRG__IR_PACK)
            n += (size_t)snprintf(got + n, sizeof got - n, "p%d ", node->slot);
    }
    assert_string_equal(got, expected);
}

#endif
