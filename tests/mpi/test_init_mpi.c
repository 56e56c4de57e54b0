/* SPDX-License-Identifier: Apache-2.0
 * A program that knows nothing of MPI: the backend initialises it, several
 * groups come and go, and the process just exits. */
#include <brigade/mpi.h>

#include "tests/support/brg_test.h"

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_init__groups_come_and_go),
    };
    const char *rank = getenv("OMPI_COMM_WORLD_RANK");
    if (rank && atoi(rank) > 0 && !freopen("/dev/null", "w", stdout))
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
