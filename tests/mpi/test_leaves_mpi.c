/* SPDX-License-Identifier: Apache-2.0
 * The reproducible reduction over MPI, through shared memory and between nodes
 * of one rank: the hash of a simulated world of one, which every rank runs
 * beside. */
#include "tests/support/leaf_train.h"
#include "tests/support/mpi_ranks.h"
#include "tests/support/raw_train.h"

static void check(leaf_train how, const size_t *caps, size_t n_caps)
{
    uint64_t expected, hash;
    assert_brg_ok(leaf_train_sim(1, 0, &how, &expected));
    for (int node_size = 0; node_size < mpi_n_shapes(); node_size++)
        for (size_t i = 0; i < n_caps; i++) {
            brg_pg *pg = mpi_group(node_size, 60);
            how.cap = caps[i];
            assert_brg_ok(leaf_train_run(pg, &how, &hash));
            assert_int_equal(hash, expected);
            brg_pg_destroy(pg);
        }
}

static void test_leaves_mpi__hash_of_the_simulated_world(void **state)
{
    (void)state;
    static const size_t caps[] = {1, 4096, 0};
    leaf_train how = {
        .n_steps = 100, .batch = 24, .n_leaves = 8, .n_hidden = 24};
    check(how, caps, 3);
    how.n_leaves = 24;
    how.adamw = how.compiled = true;
    check(how, caps, 1);
}

static void test_leaves_mpi__hash_with_large_buckets(void **state)
{
    (void)state;
    static const size_t caps[] = {(size_t)64 << 10, (size_t)1 << 20, SIZE_MAX};
    leaf_train how = {
        .n_steps = 4, .batch = 16, .n_leaves = 8, .n_hidden = 496};
    check(how, caps, 3);
}

static void test_leaves_mpi__raw_buffers_have_the_bits_of_the_tree(void **state)
{
    (void)state;
    static const size_t caps[] = {1, 300, 0};
    uint64_t hash;
    for (int way = 0; way < 3; way++)
        for (int node_size = 0; node_size < mpi_n_shapes(); node_size++) {
            raw_train how = {.n_steps = 100,
                             .n_leaves = way == 2 ? 13 : 8,
                             .cap = caps[way],
                             .in_slots = way == 1};
            brg_pg *pg = mpi_group(node_size, 60);
            assert_brg_ok(raw_train_run(pg, &how, &hash));
            assert_int_equal(hash, raw_train_expected(&how));
            brg_pg_destroy(pg);
        }
}

int main(int argc, char **argv)
{
    if (!mpi_begin(&argc, &argv))
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_leaves_mpi__hash_of_the_simulated_world),
        cmocka_unit_test(test_leaves_mpi__hash_with_large_buckets),
        cmocka_unit_test(
            test_leaves_mpi__raw_buffers_have_the_bits_of_the_tree),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    MPI_Finalize();
    return failed;
}
