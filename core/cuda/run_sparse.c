/* SPDX-License-Identifier: Apache-2.0
 * Work on the entries of sparse tensors: the slot of the table. */
#include "core/cuda/cu.h"

/* What the launches take: numbers of entries fit an int in the sort. */
static brg_status check_job(brg__cu *cu, const brg_sparse_job *job)
{
    if (job->rule == BRG_SPARSE_ORDER && job->nnz > INT32_MAX)
        return BRG__CU_FAIL(BRG_ERR_UNSUPPORTED,
                            "a sparse tensor of %lld entries on a GPU, which "
                            "sorts at most %d",
                            (long long)job->nnz, INT32_MAX);
    if (job->rule == BRG_SPARSE_UPDATE) /* its numbers change */
        return brg__cu_graph_give_up(cu, "a sparse gradient");
    return BRG_OK;
}

brg_status brg__cu_run_sparse(brg_device device, const brg_sparse_job *job)
{
    brg__cu_temps temps = {0};
    void *scratch;
    BRG__CU_TRY(brg__cu_enter(device, &temps.cu));
    BRG__CU_TRY(check_job(temps.cu, job));
    brg_status status =
        brg__cu_temp(&temps, &scratch, brg__cu_sparse_scratch(job));
    if (status == BRG_OK)
        status = brg__cu_check(brg__cu_sparse(&temps.cu->queue, job, scratch),
                               "a sparse tensor");
    return brg__cu_temps_end(&temps, status);
}
