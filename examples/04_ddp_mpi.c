/* SPDX-License-Identifier: Apache-2.0
 * Data-parallel training in twenty lines (those of README.md):
 *
 *     mpirun -n 2 04_ddp_mpi
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include <brigade/autograd.h>
#include <brigade/ops.h>
#include <brigade/reducer.h>

#define N_STEPS 200
#define BATCH 16

/* Every rank draws data of its own: y = 3 x + 1. */
static brg_tensor *draw_batch(brg_pg *pg, int step, brg_tensor **y)
{
    float x[BATCH];
    for (int i = 0; i < BATCH; i++)
        x[i] = sinf((float)(i + BATCH * (step + N_STEPS * brg_pg_rank(pg))));
    brg_tensor *t = brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(BATCH, 1), x);
    *y = brg_add_scalar(brg_mul_scalar(t, 3), 1);
    return t;
}

/* README begin */
#include <brigade/optim.h>

static brg_status train(brg_pg *pg, brg_params *params)
{
    brg_tensor *y, *w = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(1, 1));
    brg_tensor *b = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(1));
    brg_sgd_options sgd = {.struct_size = sizeof sgd, .lr = 0.1};
    brg_optim *optim;
    brg_ddp *ddp;
    BRG_TRY(brg_params_add(params, "w", w, BRG_PARAM_TRAINED));
    BRG_TRY(brg_params_add(params, "b", b, BRG_PARAM_TRAINED));
    BRG_TRY(brg_optim_create_sgd(&optim, params, &sgd));
    BRG_TRY(brg_ddp_create(&ddp, pg, (brg_tensor *[]){w, b}, 2, NULL, 0, NULL));
    for (int step = 0; step < N_STEPS; step++) {
        brg_scope *scope = brg_scope_begin();
        brg_tensor *x = draw_batch(pg, step, &y);
        brg_tensor *loss = brg_mse(brg_linear(x, w, b), y);
        BRG_TRY(brg_backward(loss)); /* gradients are summed meanwhile */
        BRG_TRY(brg_optim_step(optim));
        BRG_TRY(brg_optim_zero_grad(optim, false));
        brg_scope_end(scope); /* frees all tensors of the step */
    }
    brg_ddp_destroy(ddp);
    brg_optim_destroy(optim);
    return BRG_OK;
}
/* README end */

static double value(const brg_params *params, const char *name)
{
    double number = NAN;
    return brg_tensor_item(brg_params_find(params, name), &number) == BRG_OK
               ? number
               : NAN;
}

int main(void)
{
    brg_pg *pg = NULL;
    brg_params *params = NULL;
    bool has_ranks = getenv("OMPI_COMM_WORLD_SIZE") || getenv("PMI_SIZE");
    brg_scope *scope = brg_scope_begin();
    brg_status status = brg_pg_create(&pg, has_ranks ? "mpi" : "self", NULL);
    if (status == BRG_OK)
        status = brg_params_create(&params);
    if (status == BRG_OK)
        status = train(pg, params);
    if (status != BRG_OK) {
        fprintf(stderr, "%s\n", brg_error_message());
        return EXIT_FAILURE;
    }
    double w = value(params, "w"), b = value(params, "b");
    if (brg_pg_rank(pg) == 0)
        printf("%d ranks learned y = %.4f x + %.4f\n", brg_pg_world_size(pg), w,
               b);
    brg_params_destroy(params);
    brg_scope_end(scope);
    brg_pg_destroy(pg);
    return fabs(w - 3) + fabs(b - 1) < 0.01 ? EXIT_SUCCESS : EXIT_FAILURE;
}
