/* SPDX-License-Identifier: Apache-2.0
 * Features of a ddp over NCCL, parameters on GPUs, one per rank, the ranks
 * started by mpirun: the checks that run on the CPU, of every dtype, with
 * strides and gaps. */
#include "tests/reducer/feature_list.h"

#include "tests/cuda/gpu_ranks.h"

static void on_gpus(brg_status (*check)(brg_pg *pg))
{
    brg_pg *pg;
    assert_brg_ok(brg_nccl_create(&pg, over, mine()));
    assert_brg_ok(brg_device_set(mine()));
    brg_scope *scope = brg_scope_begin();
    assert_brg_ok(check(pg));
    brg_scope_end(scope);
    assert_brg_ok(brg_device_set(CPU));
    brg_pg_destroy(pg);
}

#define GPU_TEST(name)                                                         \
    static void test_features__##name(void **state)                            \
    {                                                                          \
        (void)state;                                                           \
        on_gpus(check_##name);                                                 \
    }

FEATURE_LIST(GPU_TEST)

#define LISTED(name) cmocka_unit_test(test_features__##name),

int main(int argc, char **argv)
{
    int status = gpu_ranks_begin(argc, argv);
    if (status)
        return status;
    const struct CMUnitTest tests[] = {FEATURE_LIST(LISTED)};
    return gpu_ranks_end(
        cmocka_run_group_tests_name("features", tests, NULL, NULL));
}
