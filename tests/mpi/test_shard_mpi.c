/* SPDX-License-Identifier: Apache-2.0
 * Sharded optimizer state over MPI, with shared memory and with messages. */
#include "tests/reducer/shard_checks.h"
#include "tests/support/mpi_ranks.h"

#define MPI_TEST(check)                                                        \
    static void test_shard_mpi__##check(void **state)                          \
    {                                                                          \
        (void)state;                                                           \
        mpi_on_shapes(check_shard_##check);                                    \
    }

MPI_TEST(bits)
MPI_TEST(clipping)
MPI_TEST(memory)
MPI_TEST(errors)

int main(int argc, char **argv)
{
    if (!mpi_begin(&argc, &argv))
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shard_mpi__bits),
        cmocka_unit_test(test_shard_mpi__clipping),
        cmocka_unit_test(test_shard_mpi__memory),
        cmocka_unit_test(test_shard_mpi__errors),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    MPI_Finalize();
    return failed;
}
