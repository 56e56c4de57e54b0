/* SPDX-License-Identifier: Apache-2.0
 * Features of a ddp over NCCL, parameters on made-up GPUs: the contexts, memory
 * and queues of core/cuda and the groups of comm/nccl with the checks that GPUs
 * run in tests/cuda/test_features_mpi.c. */
#include "tests/nccl/forked_device.h"
#include "tests/reducer/feature_list.h"

#define TIMEOUT_S 20

#define NCCL_TEST(name)                                                        \
    static brg_status name##_on_rank(forked_rank *me)                          \
    {                                                                          \
        brg_pg *pg;                                                            \
        BRG_TRY(forked_device_group(me, TIMEOUT_S, &pg));                      \
        BRG_TRY(check_##name(pg));                                             \
        brg_pg_destroy(pg);                                                    \
        return BRG_OK;                                                         \
    }                                                                          \
    static void test_features__##name(void **state)                            \
    {                                                                          \
        (void)state;                                                           \
        for (int n = 1; n <= 4; n++)                                           \
            forked_check(n, name##_on_rank, NULL);                             \
    }

FEATURE_LIST(NCCL_TEST)

#define LISTED(name) cmocka_unit_test(test_features__##name),

int main(void)
{
    const struct CMUnitTest tests[] = {FEATURE_LIST(LISTED)};
    return cmocka_run_group_tests_name("features", tests, NULL, NULL);
}
