/* SPDX-License-Identifier: Apache-2.0
 * Data parallelism in one process: four simulated ranks, each with a quarter
 * of the batch, end up with the gradient of the whole batch. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include <brigade/autograd.h>
#include <brigade/comm.h>
#include <brigade/ops.h>
#include <brigade/reducer.h>

#define N_RANKS 4
#define BATCH 32
#define N_IN 8

/* Rows first..first + n of the batch. */
static brg_tensor *batch_rows(int first, int n)
{
    float x[BATCH * N_IN];
    for (int i = 0; i < n * N_IN; i++)
        x[i] = sinf((float)(first * N_IN + i));
    return brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(n, N_IN), x);
}

/* The gradient of mean(tanh(x w)) for those rows; w is the same on all. */
static brg_status gradient(brg_pg *pg, int first, int n, float grad[N_IN])
{
    brg_ddp *ddp = NULL;
    brg_scope *scope = brg_scope_begin();
    brg_tensor *w = brg_full(BRG_DTYPE_F32, BRG_SHAPE(N_IN), 0.1);
    brg_status status = brg_set_requires_grad(w, true);
    if (status == BRG_OK)
        status = brg_ddp_create(&ddp, pg, &w, 1, NULL, 0, NULL);
    if (status == BRG_OK)
        status = brg_backward(
            brg_mean_all(brg_tanh(brg_matmul(batch_rows(first, n), w))));
    if (status == BRG_OK)
        status =
            brg_tensor_read(brg_tensor_grad(w), grad, N_IN * sizeof grad[0]);
    brg_ddp_destroy(ddp);
    brg_scope_end(scope);
    return status;
}

/* What each rank runs; `user` has a row of gradients for each. */
static brg_status rank_main(brg_pg *pg, void *user)
{
    float(*grads)[N_IN] = user;
    int rank = brg_pg_rank(pg), n = BATCH / N_RANKS;
    return gradient(pg, rank * n, n, grads[rank]);
}

static brg_status run(float grads[N_RANKS][N_IN], float whole[N_IN])
{
    brg_pg *self = NULL;
    BRG_TRY(brg_sim_run(N_RANKS, NULL, rank_main, grads));
    BRG_TRY(brg_pg_create_self(&self));
    brg_status status = gradient(self, 0, BATCH, whole);
    brg_pg_destroy(self);
    return status;
}

int main(void)
{
    static float grads[N_RANKS][N_IN], whole[N_IN];
    if (run(grads, whole) != BRG_OK) {
        fprintf(stderr, "%s\n", brg_error_message());
        return EXIT_FAILURE;
    }
    double largest = 0;
    for (int rank = 0; rank < N_RANKS; rank++) {
        for (int i = 0; i < N_IN; i++)
            largest = fmax(largest, fabs((double)(grads[rank][i] - whole[i])));
        printf("rank %d: gradient %.6f %.6f ...\n", rank,
               (double)grads[rank][0], (double)grads[rank][1]);
    }
    printf("one rank: gradient %.6f %.6f ...\nlargest difference %.2g\n",
           (double)whole[0], (double)whole[1], largest);
    return largest < 1e-6 ? EXIT_SUCCESS : EXIT_FAILURE;
}
