/* SPDX-License-Identifier: Apache-2.0
 * Groups over NCCL whose ranks have met in a folder, without MPI: on made-up
 * GPUs. The folder's own tests: comm/test_file. */
#include <brigade/cuda.h>
#include <brigade/file.h>

#include "tests/nccl/forked.h"
#include "tests/support/backend_suite.h"
#include "tests/support/temp_dir.h"

static char folder[300];

static brg_status begin(void)
{
    brg_device_type type;
    const brg_device_vtable *table;
    BRG_TRY(brg_device_cuda(brg_device_host_get(), &type, &table));
    return brg_device_register(type, table);
}

/* As docs/gpu.md has it. */
static brg_status meet(const forked_rank *me, brg_pg **pg)
{
    brg_pg *over;
    brg_file_options file = BRG_FILE_OPTIONS_INIT;
    brg_pg_options options = BRG_PG_OPTIONS_INIT;
    file.folder = folder;
    file.rank = me->rank;
    file.world_size = me->n;
    options.backend_data = &file;
    options.timeout_s = 40;
    BRG_TRY(brg_pg_create(&over, "file", &options));
    brg_status status = brg_nccl_create(pg, over, me->device);
    brg_pg_destroy(over);
    return status;
}

static brg_status run_suite(forked_rank *me)
{
    brg_pg *pg;
    BRG_TRY(begin());
    BRG_TRY(meet(me, &pg));
    BRG_TRY(brg_suite_run_on_host(pg));
    brg_pg_destroy(pg);
    return BRG_OK;
}

static void test_file__the_ranks_of_a_group_over_nccl(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "%s", temp_path("ranks"));
    for (int n = 1; n <= 3; n++)
        forked_check(n, run_suite, NULL);
}

/* It has met the others, and is gone before NCCL is asked. */
static brg_status run_lost(forked_rank *me)
{
    brg_pg *pg;
    BRG_TRY(begin());
    if (me->rank == 1)
        fake_nccl_set_fault(FAKE_INIT, true);
    return meet(me, &pg);
}

static void test_file__a_rank_is_lost_on_the_way(void **state)
{
    forked_result results[2];
    (void)state;
    snprintf(folder, sizeof folder, "%s", temp_path("lost"));
    forked_run(2, run_lost, NULL, results);
    assert_true(results[1].is_killed);
    forked_expect(&results[0], BRG_ERR_PEER, "rank 1 has died");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_file__the_ranks_of_a_group_over_nccl),
        cmocka_unit_test(test_file__a_rank_is_lost_on_the_way),
    };
    return cmocka_run_group_tests_name("nccl_file", tests, NULL, NULL);
}
