/* SPDX-License-Identifier: Apache-2.0
 * Parameters on a device whose memory the host may not touch, under groups over
 * MPI, with shared memory and with messages.
 *
 * brg-test: ranks 1 2 3 */
#include "tests/support/mpi_ranks.h"

#include "tests/reducer/staged_checks.h"
#include "tests/reducer/made_up_device.h"

static void on_device(brg_status (*body)(brg_pg *pg))
{
    assert_brg_ok(brg_device_set(THERE(mpi_rank())));
    brg_scope *scope = brg_scope_begin();
    mpi_on_shapes(body);
    brg_scope_end(scope);
    assert_brg_ok(brg_device_set(HOME));
    if (n_blocks == 0)
        n_taken = 0;
}

#define STAGED_TEST(name)                                                      \
    static void test_staged_mpi__##name(void **state)                          \
    {                                                                          \
        (void)state;                                                           \
        on_device(check_##name);                                               \
    }

STAGED_LIST(STAGED_TEST)

#define LISTED(name) TEST(test_staged_mpi__##name),

int main(int argc, char **argv)
{
    if (!mpi_begin(&argc, &argv))
        return 1;
    const struct CMUnitTest tests[] = {STAGED_LIST(LISTED)};
    int n_failed = cmocka_run_group_tests(tests, NULL, NULL);
    MPI_Finalize();
    return n_failed;
}
