/* SPDX-License-Identifier: Apache-2.0
 * The component loaded by name into a program that holds libbrigade as a
 * static library, and a rank whose process ends while others wait for it. */
#include <unistd.h>

#include <brigade/comm.h>

#include "tests/support/mpi_ranks.h"

/* The build's top folder, where the component lies. */
static void find_component(void)
{
    char path[4096];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 8);
    assert_true(n > 0);
    path[n] = '\0';
    strcpy(strrchr(path, '/'), "/..");
    setenv("BRG_BACKEND_PATH", path, 1);
}

static void test_exit__ending_without_destroy_fails_the_others(void **state)
{
    (void)state;
    brg_pg *pg;
    brg_work *work;
    int32_t x = 1;
    find_component();
    assert_brg_ok(brg_pg_create(&pg, "mpi", NULL));
    int n = brg_pg_world_size(pg);
    assert_brg_ok(
        brg_all_reduce(pg, &work, &x, 1, BRG_DTYPE_I32, BRG_REDUCE_SUM));
    assert_brg_ok(brg_work_wait(work));
    assert_int_equal(x, n);
    if (n > 1 && brg_pg_rank(pg) == n - 1)
        return; /* and main returns, and exit finalises MPI */
    if (n > 1) {
        assert_brg_ok(brg_barrier(pg, &work));
        assert_brg_fails_with(brg_work_wait(work), BRG_ERR_PEER, "has ended");
    }
    brg_pg_destroy(pg);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exit__ending_without_destroy_fails_the_others),
    };
    if (!mpi_silence(mpi_rank_of_environment()))
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
