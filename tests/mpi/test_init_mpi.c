/* SPDX-License-Identifier: Apache-2.0
 * A program that knows nothing of MPI: the backend initialises it, several
 * groups come and go, and the process just exits. */
#include <unistd.h>

#include "tests/support/mpi_ranks.h"

static void test_init__groups_come_and_go(void **state)
{
    (void)state;
    assert_brg_ok(brg_backend_register(brg_comm_mpi()));
    for (int i = 0; i < 3; i++) {
        brg_pg *a, *b;
        brg_work *work;
        assert_brg_ok(brg_pg_create(&a, "mpi", NULL));
        assert_brg_ok(brg_pg_create(&b, "mpi", NULL));
        int32_t x = 1;
        assert_brg_ok(
            brg_all_reduce(b, &work, &x, 1, BRG_DTYPE_I32, BRG_REDUCE_SUM));
        assert_brg_ok(brg_work_wait(work));
        assert_int_equal(x, brg_pg_world_size(a));
        brg_pg_destroy(a);
        brg_pg_destroy(b);
    }
}

/* After what the library has left for the end of the process. */
static void check_finalized(void)
{
    int is_over = 0;
    if (MPI_Finalized(&is_over) != MPI_SUCCESS || !is_over)
        _exit(1);
}

int main(void)
{
    if (atexit(check_finalized) != 0)
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_init__groups_come_and_go),
    };
    if (!mpi_silence(mpi_rank_of_environment()))
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
