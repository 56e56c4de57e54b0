/* SPDX-License-Identifier: Apache-2.0
 * A training step captured once and replayed: forward, backward and optimizer
 * are one plan. The function runs in C a single time. */
#include <stdio.h>
#include <stdlib.h>

#include <brigade/autograd.h>
#include <brigade/compile.h>
#include <brigade/nn.h>
#include <brigade/optim.h>
#include <brigade/ops.h>
#include <brigade/random.h>

#define N_STEPS 300

typedef struct trainer {
    brg_params *params;
    brg_nn_linear layers[2];
    brg_optim *optim;
    int n_calls;
} trainer;

/* What changes from step to step is an input or lives in tensors; the rest is
 * as it was in the first call. */
static brg_status train_step(brg_tensor *const *in, size_t n_in,
                             brg_tensor **out, size_t n_out, void *user)
{
    trainer *t = user;
    (void)n_in;
    (void)n_out;
    t->n_calls++;
    brg_tensor *h = brg_tanh(brg_nn_linear_forward(&t->layers[0], in[0]));
    out[0] = brg_mse(brg_nn_linear_forward(&t->layers[1], h), in[1]);
    BRG_TRY(brg_backward(out[0]));
    BRG_TRY(brg_optim_step(t->optim));
    return brg_optim_zero_grad(t->optim, false);
}

static brg_status create(trainer *t)
{
    brg_nn_options nn = BRG_NN_OPTIONS_INIT;
    brg_adamw_options adamw = BRG_ADAMW_OPTIONS_INIT;
    adamw.lr = 0.02;
    brg_seed(1);
    BRG_TRY(brg_params_create(&t->params));
    nn.params = t->params;
    BRG_TRY(brg_nn_linear_init(&t->layers[0], &nn, "fc1", 1, 32));
    BRG_TRY(brg_nn_linear_init(&t->layers[1], &nn, "fc2", 32, 1));
    return brg_optim_create_adamw(&t->optim, t->params, &adamw);
}

static brg_status train(brg_compiled *step, double *loss)
{
    for (int i = 0; i < N_STEPS; i++) {
        brg_scope *scope = brg_scope_begin();
        brg_tensor *x = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(64, 1));
        brg_tensor *in[2] = {x, brg_sin(x)}, *out;
        brg_status status = brg_compiled_call(step, in, 2, &out, 1);
        if (status == BRG_OK)
            status = brg_tensor_item(out, loss);
        brg_scope_end(scope);
        BRG_TRY(status);
    }
    return BRG_OK;
}

int main(void)
{
    trainer t = {0};
    brg_compiled *step = NULL;
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    options.whole = true;     /* the function, not only backwards in it */
    options.fullgraph = true; /* or fail, saying why not */
    double loss = 1;
    brg_status status = create(&t);
    if (status == BRG_OK)
        status = brg_compiled_create(&step, train_step, &t, &options);
    if (status == BRG_OK)
        status = train(step, &loss);
    if (status != BRG_OK)
        fprintf(stderr, "%s\n", brg_error_message());
    printf("loss %.5f after %d steps; train_step was called %d time\n", loss,
           N_STEPS, t.n_calls);
    brg_compiled_destroy(step);
    brg_optim_destroy(t.optim);
    brg_params_destroy(t.params);
    return status == BRG_OK && loss < 0.01 && t.n_calls == 1 ? EXIT_SUCCESS
                                                             : EXIT_FAILURE;
}
