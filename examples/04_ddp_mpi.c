/* SPDX-License-Identifier: Apache-2.0
 * Data-parallel training, the lines of README.md:
 *
 *     mpirun -n 2 04_ddp_mpi
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include <brigade/brigade.h>

#define N_STEPS 400
#define BATCH 32

/* Every rank draws data of its own: y = |x|, for x from -2 to 2. */
static brg_tensor *draw_batch(brg_pg *pg, int step, brg_tensor **y)
{
    float x[BATCH];
    for (int i = 0; i < BATCH; i++)
        x[i] =
            2 * sinf((float)(i + BATCH * (step + N_STEPS * brg_pg_rank(pg))));
    brg_tensor *t = brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(BATCH, 1), x);
    *y = brg_abs(t);
    return t;
}

typedef struct model {
    brg_params *params;
    brg_nn_linear fc1, fc2;
    brg_optim *optim;
} model;

static brg_status make_model(model *m)
{
    brg_nn_options nn = BRG_NN_OPTIONS_INIT;
    brg_adamw_options adamw = BRG_ADAMW_OPTIONS_INIT;
    BRG_TRY(brg_params_create(&m->params));
    nn.params = m->params;
    adamw.lr = 0.01;
    BRG_TRY(brg_nn_linear_init(&m->fc1, &nn, "fc1", 1, 64));
    BRG_TRY(brg_nn_linear_init(&m->fc2, &nn, "fc2", 64, 1));
    return brg_optim_create_adamw(&m->optim, m->params, &adamw);
}

/* shown begin */
static brg_status train(brg_pg *pg, model *m, brg_ddp **ddp, double *last_loss)
{
    size_t n;
    brg_tensor *const *all =
        brg_params_tensors(m->params, BRG_PARAM_TRAINED, &n);
    BRG_TRY(brg_ddp_create(ddp, pg, all, n, NULL, 0, NULL));
    for (int step = 0; step < N_STEPS; step++) {
        brg_scope *scope = brg_scope_begin();
        brg_tensor *y, *x = draw_batch(pg, step, &y);
        brg_tensor *h = brg_relu(brg_nn_linear_forward(&m->fc1, x));
        brg_tensor *loss = brg_mse(brg_nn_linear_forward(&m->fc2, h), y);
        BRG_TRY(brg_backward(loss)); /* gradients are averaged meanwhile */
        BRG_TRY(brg_optim_step(m->optim));
        BRG_TRY(brg_optim_zero_grad(m->optim, false));
        BRG_TRY(brg_tensor_item(loss, last_loss));
        brg_scope_end(scope); /* frees all tensors of the step */
    }
    return BRG_OK;
}
/* shown end */

int main(void)
{
    brg_pg *pg = NULL;
    brg_ddp *ddp = NULL;
    model m = {0};
    double loss = NAN;
    brg_status status = brg_pg_create(&pg, "auto", NULL);
    if (status == BRG_OK)
        status = make_model(&m);
    if (status == BRG_OK)
        status = train(pg, &m, &ddp, &loss);
    if (status != BRG_OK)
        fprintf(stderr, "%s\n", brg_error_message());
    else if (brg_pg_rank(pg) == 0)
        printf("%d ranks learned |x|: loss %.6f\n", brg_pg_world_size(pg),
               loss);
    brg_ddp_destroy(ddp);
    brg_optim_destroy(m.optim);
    brg_params_destroy(m.params);
    brg_pg_destroy(pg);
    return loss < 0.01 ? EXIT_SUCCESS : EXIT_FAILURE;
}
