/* SPDX-License-Identifier: Apache-2.0
 * A steady training step of several ranks asks for no memory: on one node,
 * and on nodes of one rank, which exchange messages. */
#include <mpi.h>

#include <brigade/mpi.h>

#include "tests/support/brg_test.h"
#include "tests/support/small_models.h"

static void check(const char *node_size)
{
#if defined(__SANITIZE_ADDRESS__)
    skip(); /* objects are not cached, so that each is seen */
#endif
    brg_pg *pg;
    brg_pg_options options = BRG_PG_OPTIONS_INIT;
    options.timeout_s = 60;
    setenv("BRG_MPI_NODE_SIZE", node_size, 1);
    assert_brg_ok(brg_pg_create(&pg, "mpi", &options));
    for (int kind = 0; kind < N_SMALL_KINDS; kind++)
        for (int i = 0; i < 4; i++)
            assert_brg_ok(
                small_model_check_steady((small_kind)kind, pg, i & 1, i & 2));
    brg_pg_destroy(pg);
}

static void test_steady_step_mpi__on_one_node(void **state)
{
    (void)state;
    check("0");
}

static void test_steady_step_mpi__on_nodes_of_one(void **state)
{
    (void)state;
    check("1");
}

int main(int argc, char **argv)
{
    int rank;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    if (rank > 0 && !freopen("/dev/null", "w", stdout))
        return 1;
    if (brg_backend_register(brg_comm_mpi()) != BRG_OK) {
        fprintf(stderr, "%s\n", brg_error_message());
        return 1;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_steady_step_mpi__on_one_node),
        cmocka_unit_test(test_steady_step_mpi__on_nodes_of_one),
    };
    int n_failed = cmocka_run_group_tests(tests, NULL, NULL);
    MPI_Finalize();
    return n_failed;
}
