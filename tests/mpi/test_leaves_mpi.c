/* SPDX-License-Identifier: Apache-2.0
 * The reproducible reduction over MPI, through shared memory and between nodes
 * of one rank: the hash of a simulated world of one, which every rank runs
 * beside. */
#include <mpi.h>

#include <brigade/mpi.h>

#include "tests/support/brg_test.h"
#include "tests/support/leaf_train.h"

static brg_pg *make_group(int node_size)
{
    char text[16];
    brg_pg *pg;
    brg_pg_options options = BRG_PG_OPTIONS_INIT;
    options.timeout_s = 60;
    snprintf(text, sizeof text, "%d", node_size);
    setenv("BRG_MPI_NODE_SIZE", text, 1);
    assert_brg_ok(brg_pg_create(&pg, "mpi", &options));
    return pg;
}

static void check(leaf_train how, const size_t *caps, size_t n_caps)
{
    uint64_t expected, hash;
    assert_brg_ok(leaf_train_sim(1, 0, &how, &expected));
    for (int node_size = 0; node_size < 2; node_size++)
        for (size_t i = 0; i < n_caps; i++) {
            brg_pg *pg = make_group(node_size);
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

int main(int argc, char **argv)
{
    int rank;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    if (rank > 0 && !freopen("/dev/null", "w", stdout))
        return 1;
    if (brg_backend_register(brg_comm_mpi()) != BRG_OK)
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_leaves_mpi__hash_of_the_simulated_world),
        cmocka_unit_test(test_leaves_mpi__hash_with_large_buckets),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    MPI_Finalize();
    return failed;
}
