/* SPDX-License-Identifier: Apache-2.0
 * Features of a ddp over MPI, with shared memory and with messages. */
#include "tests/reducer/ddp_feature_checks.h"
#include "tests/reducer/finite_checks.h"
#include "tests/reducer/group_checks.h"
#include "tests/reducer/q8_checks.h"
#include "tests/reducer/sum_checks.h"
#include "tests/reducer/sync_norm_checks.h"
#include "tests/support/mpi_ranks.h"

#define MPI_TEST(check)                                                        \
    static void test_features_mpi__##check(void **state)                       \
    {                                                                          \
        (void)state;                                                           \
        mpi_on_shapes(check_##check);                                          \
    }

MPI_TEST(grads_apart)
MPI_TEST(unused_params)
MPI_TEST(accumulation)
MPI_TEST(static_graph)
MPI_TEST(static_accumulation)
MPI_TEST(join)
MPI_TEST(buffers)
MPI_TEST(freezing)
MPI_TEST(clipping)
MPI_TEST(measured)
MPI_TEST(groups)
MPI_TEST(sums)
MPI_TEST(finite_raw)
MPI_TEST(finite_ddp)
MPI_TEST(finite_compiled)
MPI_TEST(loss_scaling)
MPI_TEST(q8)
MPI_TEST(not_finite)
MPI_TEST(sync_norm_whole_batch)
MPI_TEST(sync_norm_evaluation)
MPI_TEST(sync_norm_training)
MPI_TEST(sync_norm_compiled)

/* With a group of their own for the statistics the others wait until the
 * time-out; the rank that joins hears when they give up. */
static void test_features_mpi__sync_norm_beside_a_join(void **state)
{
    (void)state;
    if (mpi_n_ranks() == 1)
        return;
    brg_pg *pg = mpi_group(0, 60), *norms = mpi_group(0, 0.3);
    assert_brg_ok(check_sync_norm_join(pg, norms));
    brg_pg_destroy(pg);
    brg_pg_destroy(norms);
}

int main(int argc, char **argv)
{
    if (!mpi_begin(&argc, &argv))
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_features_mpi__grads_apart),
        cmocka_unit_test(test_features_mpi__unused_params),
        cmocka_unit_test(test_features_mpi__accumulation),
        cmocka_unit_test(test_features_mpi__static_graph),
        cmocka_unit_test(test_features_mpi__static_accumulation),
        cmocka_unit_test(test_features_mpi__join),
        cmocka_unit_test(test_features_mpi__buffers),
        cmocka_unit_test(test_features_mpi__freezing),
        cmocka_unit_test(test_features_mpi__clipping),
        cmocka_unit_test(test_features_mpi__measured),
        cmocka_unit_test(test_features_mpi__groups),
        cmocka_unit_test(test_features_mpi__sums),
        cmocka_unit_test(test_features_mpi__finite_raw),
        cmocka_unit_test(test_features_mpi__finite_ddp),
        cmocka_unit_test(test_features_mpi__finite_compiled),
        cmocka_unit_test(test_features_mpi__loss_scaling),
        cmocka_unit_test(test_features_mpi__q8),
        cmocka_unit_test(test_features_mpi__not_finite),
        cmocka_unit_test(test_features_mpi__sync_norm_whole_batch),
        cmocka_unit_test(test_features_mpi__sync_norm_evaluation),
        cmocka_unit_test(test_features_mpi__sync_norm_training),
        cmocka_unit_test(test_features_mpi__sync_norm_compiled),
        cmocka_unit_test(test_features_mpi__sync_norm_beside_a_join),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    MPI_Finalize();
    return failed;
}
