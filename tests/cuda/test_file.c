/* SPDX-License-Identifier: Apache-2.0
 * Two GPUs whose ranks meet in a folder, without MPI: the contract of backends,
 * coalesced sums in the GPUs' memory among it. The ranks are forked: see
 * tests/support/forked.h. */
#include <brigade/brigade.h>

#include "tests/cuda/forked_gpu.h"
#include "tests/support/backend_suite.h"
#include "tests/support/temp_dir.h"

enum { N_CALLS = 16, N = 1000 };

static char folder[300];

/* Sums of k over the ranks, all launched as one. */
static brg_status check_coalesced(const forked_rank *me, brg_pg *pg)
{
    brg_work *works[N_CALLS];
    brg_tensor *x[N_CALLS];
    for (int k = 0; k < N_CALLS; k++) {
        x[k] = brg_full(BRG_DTYPE_F32, BRG_SHAPE(N), k * (me->rank + 1));
        RANK_CHECK(x[k], "no tensor: %s", brg_error_message());
    }
    BRG_TRY(brg_coalesce_begin(pg));
    for (int k = 0; k < N_CALLS; k++)
        BRG_TRY(brg_all_reduce(pg, &works[k], brg_tensor_data(x[k]), N,
                               BRG_DTYPE_F32, BRG_REDUCE_SUM));
    BRG_TRY(brg_coalesce_end(pg));
    for (int k = 0; k < N_CALLS; k++)
        BRG_TRY(brg_work_wait(works[k]));
    for (int k = 0; k < N_CALLS; k++) {
        double sum;
        BRG_TRY(brg_tensor_item(brg_sum_all(x[k]), &sum));
        RANK_CHECK(sum == 1.0 * N * k * me->n * (me->n + 1) / 2,
                   "rank %d: sum %d is %g", me->rank, k, sum);
    }
    return BRG_OK;
}

static brg_status run(forked_rank *me)
{
    brg_pg *over, *pg;
    brg_file_options file = BRG_FILE_OPTIONS_INIT;
    brg_pg_options options = BRG_PG_OPTIONS_INIT;
    file.folder = folder;
    file.rank = me->rank;
    file.world_size = me->n;
    options.backend_data = &file;
    options.timeout_s = 40;
    BRG_TRY(brg_pg_create(&over, "file", &options));
    BRG_TRY(brg_nccl_create(&pg, over, me->device));
    brg_pg_destroy(over);
    BRG_TRY(brg_suite_run_on_host(pg));
    brg_scope *scope = brg_scope_begin();
    brg_status status = check_coalesced(me, pg);
    brg_scope_end(scope);
    brg_pg_destroy(pg);
    return status;
}

static void test_file__two_gpus_without_mpi(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "%s", temp_path("ranks"));
    forked_check(2, run, NULL);
}

int main(void)
{
    int missing = require_two_gpus();
    if (missing)
        return missing;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_file__two_gpus_without_mpi),
    };
    return cmocka_run_group_tests_name("cuda_file", tests, NULL, NULL);
}
