/* SPDX-License-Identifier: Apache-2.0
 * brg-test: slow
 * brg-test: ranks 1 2 3 4 6 8
 * One hash of the weights, for all worlds and bucket sizes, through shared memory
 * and between nodes of one rank and of two: that of a simulated world of one,
 * as reducer/test_leaves_matrix.c has it for simulated worlds. */
#include "tests/support/leaf_matrix.h"
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

static void check(const leaf_train *network, int n_shapes)
{
    leaf_train how = *network;
    uint64_t expected = expect(&how), hash;
    for (int node_size = 0; node_size < n_shapes; node_size++) {
        int n_buckets[N_LEAF_CAPS] = {0};
        for (size_t c = 0; c < N_LEAF_CAPS; c++) {
            how.cap = leaf_caps[c];
            how.n_buckets = &n_buckets[c];
            brg_pg *pg = mpi_group(node_size, 60);
            assert_brg_ok(leaf_train_run(pg, &how, &hash));
            print_message("%d ranks, nodes of %d, buckets of %zu (%d): "
                          "%016llx\n",
                          mpi_n_ranks(), node_size, how.cap, n_buckets[c],
                          (unsigned long long)hash);
            assert_int_equal(hash, expected);
            brg_pg_destroy(pg);
        }
        if (network == &leaf_large && mpi_rank() == 0)
            leaf_assert_plans(n_buckets);
    }
}

static void test_leaves_mpi__one_hash_after_100_steps(void **state)
{
    (void)state;
    check(&leaf_small, mpi_n_shapes() < 3 ? mpi_n_shapes() : 3);
}

static void test_leaves_mpi__one_hash_of_four_plans(void **state)
{
    (void)state;
    check(&leaf_large, mpi_n_shapes() < 2 ? mpi_n_shapes() : 2);
}

int main(int argc, char **argv)
{
    if (!mpi_begin(&argc, &argv))
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_leaves_mpi__one_hash_after_100_steps),
        cmocka_unit_test(test_leaves_mpi__one_hash_of_four_plans),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    MPI_Finalize();
    return failed;
}
