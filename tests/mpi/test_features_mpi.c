/* SPDX-License-Identifier: Apache-2.0
 * Features of a ddp over MPI, with shared memory and with messages. */
#include <mpi.h>

#include <brigade/mpi.h>

#include "tests/reducer/ddp_feature_checks.h"

static void run(brg_status (*check)(brg_pg *pg))
{
    for (int node_size = 0; node_size < 2; node_size++) {
        char text[16];
        brg_pg *pg;
        brg_pg_options options = BRG_PG_OPTIONS_INIT;
        options.timeout_s = 60;
        snprintf(text, sizeof text, "%d", node_size);
        setenv("BRG_MPI_NODE_SIZE", text, 1);
        assert_brg_ok(brg_pg_create(&pg, "mpi", &options));
        assert_brg_ok(check(pg));
        brg_pg_destroy(pg);
    }
}

#define MPI_TEST(check)                                                        \
    static void test_features_mpi__##check(void **state)                       \
    {                                                                          \
        (void)state;                                                           \
        run(check_##check);                                                    \
    }

MPI_TEST(grads_apart)
MPI_TEST(static_graph)
MPI_TEST(join)
MPI_TEST(buffers)
MPI_TEST(freezing)
MPI_TEST(clipping)
MPI_TEST(measured)

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
        cmocka_unit_test(test_features_mpi__grads_apart),
        cmocka_unit_test(test_features_mpi__static_graph),
        cmocka_unit_test(test_features_mpi__join),
        cmocka_unit_test(test_features_mpi__buffers),
        cmocka_unit_test(test_features_mpi__freezing),
        cmocka_unit_test(test_features_mpi__clipping),
        cmocka_unit_test(test_features_mpi__measured),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    MPI_Finalize();
    return failed;
}
