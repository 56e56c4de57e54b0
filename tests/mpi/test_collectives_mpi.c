/* SPDX-License-Identifier: Apache-2.0
 * Collectives of a step, counted under mpirun, in shared memory and between
 * nodes. */
#include "tests/reducer/collectives_checks.h"
#include "tests/support/mpi_ranks.h"

static void test_collectives_mpi__as_many_as_buckets_in_every_mode(void **state)
{
    (void)state;
    brg_pg *pg = mpi_group(0, 60);
    assert_brg_ok(check_collectives(pg));
    brg_pg_destroy(pg);
    pg = mpi_group(1, 60); /* each rank a node */
    assert_brg_ok(check_modes(pg, 1));
    brg_pg_destroy(pg);
}

static void test_collectives_mpi__buffers_ride_with_all_their_bits(void **state)
{
    (void)state;
    mpi_on_shapes(check_riders);
}

int main(int argc, char **argv)
{
    if (!mpi_begin(&argc, &argv))
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(
            test_collectives_mpi__as_many_as_buckets_in_every_mode),
        cmocka_unit_test(
            test_collectives_mpi__buffers_ride_with_all_their_bits),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    MPI_Finalize();
    return failed;
}
