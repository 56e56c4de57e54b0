/* SPDX-License-Identifier: Apache-2.0
 * Parameters on GPUs, one per rank, under a group over MPI, which reduces on the
 * host: the features of a ddp, and averages with the bits of the host. */
#include "tests/reducer/staged_checks.h"

#include "tests/cuda/gpu_ranks.h"

static void on_gpus(brg_status (*check)(brg_pg *pg))
{
    assert_brg_ok(brg_device_set(mine()));
    brg_scope *scope = brg_scope_begin();
    assert_brg_ok(check(over));
    brg_scope_end(scope);
    assert_brg_ok(brg_device_set(CPU));
}

#define GPU_TEST(name)                                                         \
    static void test_staged__##name(void **state)                              \
    {                                                                          \
        (void)state;                                                           \
        on_gpus(check_##name);                                                 \
    }

STAGED_LIST(GPU_TEST)

#define LISTED(name) cmocka_unit_test(test_staged__##name),

int main(int argc, char **argv)
{
    int status = gpu_ranks_begin(argc, argv);
    if (status)
        return status;
    const struct CMUnitTest tests[] = {STAGED_LIST(LISTED)};
    return gpu_ranks_end(
        cmocka_run_group_tests_name("staged", tests, NULL, NULL));
}
