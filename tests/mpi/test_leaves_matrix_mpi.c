/* SPDX-License-Identifier: Apache-2.0
 * brg-test: slow
 * brg-test: ranks 1 2 3 4 6 8
 * One hash of the weights after 100 steps, for all worlds and the bucket sizes
 * of real models (1.1 MB of gradients), through shared memory and between nodes
 * of one rank and of two: that of a simulated world of one, as
 * reducer/test_leaves_matrix.c has it for simulated worlds. */
#include "tests/support/leaf_train.h"
#include "tests/support/mpi_ranks.h"

/* Rank 0 trains beside, while the others wait. */
static uint64_t expect(const leaf_train *how)
{
    uint64_t hash = 0;
    if (mpi_rank() == 0)
        assert_brg_ok(leaf_train_sim(1, 0, how, &hash));
    MPI_Bcast(&hash, 1, MPI_UINT64_T, 0, MPI_COMM_WORLD);
    return hash;
}

static void test_leaves_mpi__one_hash_after_100_steps(void **state)
{
    (void)state;
    static const size_t caps[] = {(size_t)64 << 10, (size_t)1 << 20,
                                  (size_t)25 << 20, SIZE_MAX};
    leaf_train how = {
        .n_steps = 100, .batch = 16, .n_leaves = 8, .n_hidden = 496};
    how.cap = caps[0];
    uint64_t expected = expect(&how), hash;
    for (int node_size = 0; node_size < 3 && node_size < mpi_n_shapes();
         node_size++)
        for (size_t c = 0; c < 4; c++) {
            how.cap = caps[c];
            brg_pg *pg = mpi_group(node_size, 60);
            assert_brg_ok(leaf_train_run(pg, &how, &hash));
            print_message("%d ranks, nodes of %d, buckets of %zu: %016llx\n",
                          mpi_n_ranks(), node_size, caps[c],
                          (unsigned long long)hash);
            assert_int_equal(hash, expected);
            brg_pg_destroy(pg);
        }
}

int main(int argc, char **argv)
{
    if (!mpi_begin(&argc, &argv))
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_leaves_mpi__one_hash_after_100_steps),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    MPI_Finalize();
    return failed;
}
