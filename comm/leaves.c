/* SPDX-License-Identifier: Apache-2.0
 * Adding up the leaves of one rank as they come. */
#include "comm/leaves.h"

#include "comm/patterns/tree.h"
#include "comm/reduce_kernels.h"
#include "core/base/assert.h"
#include "core/base/error.h"

brg_status brg__leaves_check(uint32_t n_leaves, int rank, int world_size)
{
    BRG_CHECK_ARG(n_leaves >= (uint32_t)world_size &&
                      n_leaves <= BRG__TREE_MAX_LEAVES,
                  "rank %d: %u leaves, expected %d (the world size) to %d",
                  rank, n_leaves, world_size, BRG__TREE_MAX_LEAVES);
    return BRG_OK;
}

brg_status brg_leaf_run_of(brg_leaf_run *filled, uint32_t n_leaves, int rank,
                           int world_size)
{
    BRG_CHECK_ARG(filled, "brg_leaf_run_of: filled is NULL");
    BRG_CHECK_ARG(world_size >= 1 && rank >= 0 && rank < world_size,
                  "brg_leaf_run_of: rank %d of %d", rank, world_size);
    BRG_TRY(brg__leaves_check(n_leaves, rank, world_size));
    *filled = (brg_leaf_run){.n_leaves = n_leaves};
    for (int r = 0; r < world_size; r++) {
        brg__run run = brg__run_of(n_leaves, world_size, r);
        brg__tree_stack stack = brg__tree_sum_run(n_leaves, run);
        if (stack.max > filled->n_slots)
            filled->n_slots = stack.max;
        if (r != rank)
            continue;
        filled->first = run.begin;
        filled->n = run.end - run.begin;
        filled->n_parts = stack.n;
    }
    return BRG_OK;
}

/* The stack when the first i leaves of the run have been added. */
static brg__tree_stack stack_at(const brg_leaf_run *run, uint32_t i)
{
    return brg__tree_parts(run->n_leaves,
                           (brg__run){run->first, run->first + i});
}

uint32_t brg_leaf_slot(const brg_leaf_run *run, uint32_t i)
{
    return stack_at(run, i).n;
}

uint32_t brg__leaf_n_adds(const brg_leaf_run *run, uint32_t i, uint32_t *top)
{
    brg__tree_stack stack = stack_at(run, i);
    uint32_t leaf = run->first + i;
    brg_assert(i < run->n);
    *top = stack.n;
    return brg__tree_push(&stack, (brg__run){leaf, leaf + 1});
}

void brg_leaf_add(const brg_leaf_run *run, uint32_t i, void *slots,
                  size_t stride, size_t count, brg_dtype dtype)
{
    uint32_t top;
    uint32_t n = brg__leaf_n_adds(run, i, &top);
    for (; n > 0 && count > 0; n--, top--) {
        void *older = (char *)slots + (top - 1) * stride;
        const void *src[2] = {older, (char *)slots + top * stride};
        brg__reduce(&(brg_reduction){.src = src,
                                     .dst = &older,
                                     .n_src = 2,
                                     .n_dst = 1,
                                     .count = count,
                                     .dtype = dtype,
                                     .op = BRG_REDUCE_SUM,
                                     .src_partial = true,
                                     .dst_partial = true});
    }
}
