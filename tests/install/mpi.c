/* SPDX-License-Identifier: Apache-2.0
 * A program outside the project, linked to the installed mpi component. */
#include <stdio.h>

#include <brigade/comm.h>
#include <brigade/mpi.h>

int main(void)
{
    brg_pg *pg = NULL;
    brg_work *work = NULL;
    float x = 1;
    if (brg_backend_register(brg_comm_mpi()) != BRG_OK ||
        brg_pg_create(&pg, "mpi", NULL) != BRG_OK ||
        brg_all_reduce(pg, &work, &x, 1, BRG_DTYPE_F32, BRG_REDUCE_SUM) !=
            BRG_OK ||
        brg_work_wait(work) != BRG_OK) {
        fprintf(stderr, "%s\n", brg_error_message());
        return 1;
    }
    int n = brg_pg_world_size(pg);
    brg_pg_destroy(pg);
    printf("%d ranks counted %g\n", n, (double)x);
    return x == (float)n ? 0 : 1;
}
