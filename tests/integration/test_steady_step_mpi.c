/* SPDX-License-Identifier: Apache-2.0
 * A steady training step of several ranks asks for no memory: on one node,
 * and on nodes of one rank, of two and uneven ones, which exchange messages. */
#include "tests/support/mpi_ranks.h"
#include "tests/support/small_models.h"

static brg_status check(brg_pg *pg)
{
    for (int kind = 0; kind < N_SMALL_KINDS; kind++)
        for (int i = 0; i < 4; i++)
            BRG_TRY(
                small_model_check_steady((small_kind)kind, pg, i & 1, i & 2));
    return BRG_OK;
}

static void test_steady_step_mpi__on_any_nodes(void **state)
{
    (void)state;
#if defined(__SANITIZE_ADDRESS__)
    skip(); /* objects are not cached, so that each is seen */
#endif
    mpi_on_shapes(check);
}

int main(int argc, char **argv)
{
    if (!mpi_begin(&argc, &argv))
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_steady_step_mpi__on_any_nodes),
    };
    int n_failed = cmocka_run_group_tests(tests, NULL, NULL);
    MPI_Finalize();
    return n_failed;
}
