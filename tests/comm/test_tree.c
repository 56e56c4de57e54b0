/* SPDX-License-Identifier: Apache-2.0
 * The tree of the reproducible sum: the same tree for every number of ranks,
 * against one that is built from its definition. */
#include <brigade/comm.h>

#include "comm/patterns/tree.h"
#include "tests/support/brg_test.h"

#define MAX_LEAVES 70

static float leaves[MAX_LEAVES];
static float slots[BRG__TREE_MAX_DEPTH];

/* The definition: a node of 2^l leaves is its left half plus its right half,
 * if that has a leaf. */
static float sum_node(uint32_t n_leaves, uint32_t level, uint32_t begin)
{
    uint32_t half = level ? 1u << (level - 1) : 0;
    if (level == 0)
        return leaves[begin];
    float left = sum_node(n_leaves, level - 1, begin);
    if (begin + half >= n_leaves)
        return left;
    return left + sum_node(n_leaves, level - 1, begin + half);
}

static float sum_tree(uint32_t n_leaves)
{
    uint32_t level = 0;
    while (1u << level < n_leaves)
        level++;
    return sum_node(n_leaves, level, 0);
}

static void fill(uint64_t *seed)
{
    for (size_t i = 0; i < MAX_LEAVES; i++)
        leaves[i] = (float)brg_test_uniform(seed, -1, 1);
}

/* The parts of rank r of n, as the rank makes them. */
static uint32_t add_run(uint32_t n_leaves, int r, int n, float *parts)
{
    brg_leaf_run run;
    assert_brg_ok(brg_leaf_run_of(&run, n_leaves, r, n));
    for (uint32_t i = 0; i < run.n; i++) {
        uint32_t slot = brg_leaf_slot(&run, i);
        assert_in_range(slot, 0, run.n_slots - 1);
        slots[slot] = leaves[run.first + i];
        brg_leaf_add(&run, i, slots, sizeof(float), 1, BRG_DTYPE_F32);
    }
    memcpy(parts, slots, run.n_parts * sizeof *parts);
    return run.n_parts;
}

static float sum_ranks(uint32_t n_leaves, int n)
{
    float parts[MAX_LEAVES], stack[BRG__TREE_MAX_DEPTH];
    uint8_t n_parts[MAX_LEAVES], merges[MAX_LEAVES];
    size_t n_src = 0, top = 0;
    for (int r = 0; r < n; r++)
        n_src += add_run(n_leaves, r, n, parts + n_src);
    assert_int_equal(brg__tree_plan(n_leaves, n, n_parts, merges), n_src);
    for (size_t k = 0; k < n_src; k++) {
        stack[top++] = parts[k];
        for (; merges[k] > 0; merges[k]--, top--)
            stack[top - 2] += stack[top - 1];
    }
    assert_int_equal(top, 1);
    return stack[0];
}

static void test_tree__same_bits_for_every_world(void **state)
{
    (void)state;
    uint64_t seed = brg_test_seed(1);
    for (uint32_t n_leaves = 1; n_leaves <= MAX_LEAVES; n_leaves++) {
        fill(&seed);
        float expected = sum_tree(n_leaves);
        for (int n = 1; n <= (int)n_leaves; n++) {
            float found = sum_ranks(n_leaves, n);
            assert_memory_equal(&found, &expected, sizeof found);
        }
    }
}

static void test_tree__runs_cover_the_leaves_once(void **state)
{
    (void)state;
    for (uint32_t n_leaves = 1; n_leaves <= 40; n_leaves++)
        for (int n = 1; n <= (int)n_leaves; n++) {
            uint32_t at = 0;
            for (int r = 0; r < n; r++) {
                brg__run run = brg__run_of(n_leaves, n, r);
                assert_int_equal(run.begin, at);
                assert_in_range(run.end - run.begin, n_leaves / (uint32_t)n,
                                (n_leaves + (uint32_t)n - 1) / (uint32_t)n);
                at = run.end;
            }
            assert_int_equal(at, n_leaves);
        }
}

static void test_tree__parts_are_those_of_adding_one_by_one(void **state)
{
    (void)state;
    for (uint32_t n_leaves = 1; n_leaves <= 40; n_leaves++)
        for (uint32_t begin = 0; begin < n_leaves; begin++)
            for (uint32_t end = begin + 1; end <= n_leaves; end++) {
                brg__run run = {begin, end};
                brg__tree_stack a = brg__tree_sum_run(n_leaves, run);
                brg__tree_stack b = brg__tree_parts(n_leaves, run);
                assert_int_equal(a.n, b.n);
                assert_memory_equal(a.at, b.at, a.n * sizeof a.at[0]);
            }
}

static void test_tree__bounds_hold_for_the_largest(void **state)
{
    (void)state;
    uint32_t n = BRG__TREE_MAX_LEAVES, n_parts = 0, depth = 0;
    for (uint32_t begin = 0; begin < n; begin += 61)
        for (uint32_t end = begin + 1; end <= n; end += 127) {
            brg__tree_stack s = brg__tree_sum_run(n, (brg__run){begin, end});
            n_parts = s.n > n_parts ? s.n : n_parts;
            depth = s.max > depth ? s.max : depth;
        }
    brg__tree_stack worst = brg__tree_sum_run(n, (brg__run){1, n - 1});
    assert_int_equal(worst.n, 22);
    assert_in_range(n_parts, 1, BRG__TREE_MAX_PARTS);
    assert_in_range(depth, 1, BRG__TREE_MAX_DEPTH);
    assert_in_range(worst.max, 1, BRG__TREE_MAX_DEPTH);
}

/* Where ranks divide the leaves into nodes, nobody sends more than one. */
static void test_tree__aligned_runs_are_one_part(void **state)
{
    (void)state;
    static const int worlds[] = {1, 2, 4, 8};
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(brg__tree_max_parts(64, worlds[i]), 1);
        assert_in_range(brg__tree_max_parts(24, worlds[i]), 1, 2);
    }
    assert_int_equal(brg__tree_max_parts(24, 3), 1);
    assert_int_equal(brg__tree_max_parts(24, 6), 1);
}

static void test_leaf_run__checks_arguments(void **state)
{
    (void)state;
    brg_leaf_run run;
    assert_brg_fails_with(brg_leaf_run_of(&run, 3, 0, 4), BRG_ERR_ARG,
                          "3 leaves, expected 4 (the world size) to 4096");
    assert_brg_fails_with(brg_leaf_run_of(&run, 5000, 0, 4), BRG_ERR_ARG,
                          "5000 leaves");
    assert_brg_fails_with(brg_leaf_run_of(&run, 8, 4, 4), BRG_ERR_ARG,
                          "rank 4 of 4");
    assert_brg_fails_with(brg_leaf_run_of(NULL, 8, 0, 4), BRG_ERR_ARG, "NULL");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tree__same_bits_for_every_world),
        cmocka_unit_test(test_tree__runs_cover_the_leaves_once),
        cmocka_unit_test(test_tree__parts_are_those_of_adding_one_by_one),
        cmocka_unit_test(test_tree__bounds_hold_for_the_largest),
        cmocka_unit_test(test_tree__aligned_runs_are_one_part),
        cmocka_unit_test(test_leaf_run__checks_arguments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
