/* SPDX-License-Identifier: Apache-2.0
 * Gradients: a perceptron of two layers learns the sine, with gradient descent
 * written out. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include <brigade/autograd.h>
#include <brigade/ops.h>
#include <brigade/tensor.h>

#define N_SAMPLES 64
#define N_HIDDEN 32
#define N_STEPS 4000

/* w1 (32, 1), b1 (32), w2 (1, 32), b2 (1) */
static brg_tensor *params[4];

static brg_status create_params(void)
{
    float w1[N_HIDDEN], b1[N_HIDDEN], w2[N_HIDDEN], b2[1] = {0};
    srand(1);
    for (int i = 0; i < N_HIDDEN; i++) {
        w1[i] = 2 * (float)rand() / (float)RAND_MAX - 1;
        b1[i] = 6 * (float)rand() / (float)RAND_MAX - 3;
        w2[i] = 0.5f * (float)rand() / (float)RAND_MAX - 0.25f;
    }
    params[0] = brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(N_HIDDEN, 1), w1);
    params[1] = brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(N_HIDDEN), b1);
    params[2] = brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(1, N_HIDDEN), w2);
    params[3] = brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(1), b2);
    for (int i = 0; i < 4; i++)
        BRG_TRY(brg_set_requires_grad(params[i], true));
    return BRG_OK;
}

/* p -= lr * grad; not recorded. */
static brg_status descend(double lr)
{
    bool mode = brg_grad_mode_set(false);
    brg_status status = BRG_OK;
    for (int i = 0; i < 4 && status == BRG_OK; i++) {
        status = brg_add_(params[i], brg_tensor_grad(params[i]), -lr);
        if (status == BRG_OK)
            status = brg_tensor_set_grad(params[i], NULL);
    }
    brg_grad_mode_set(mode);
    return status;
}

static brg_status train(double *loss, brg_tensor *x, brg_tensor *y)
{
    for (int step = 0; step < N_STEPS; step++) {
        brg_scope *scope = brg_scope_begin();
        brg_tensor *h = brg_tanh(brg_linear(x, params[0], params[1]));
        brg_tensor *error = brg_mse(brg_linear(h, params[2], params[3]), y);
        brg_status status = brg_backward(error); /* fails if error is NULL */
        if (status == BRG_OK)
            status = brg_tensor_item(error, loss);
        if (status == BRG_OK)
            status = descend(0.03);
        brg_scope_end(scope);
        BRG_TRY(status);
        if (step % 800 == 0)
            printf("step %4d: loss %.5f\n", step, *loss);
    }
    return BRG_OK;
}

int main(void)
{
    float inputs[N_SAMPLES], outputs[N_SAMPLES];
    for (int i = 0; i < N_SAMPLES; i++) {
        inputs[i] = 6.0f * (float)i / (N_SAMPLES - 1) - 3.0f;
        outputs[i] = sinf(inputs[i]);
    }
    double loss = 0;
    brg_scope *scope = brg_scope_begin();
    brg_tensor *x =
        brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(N_SAMPLES, 1), inputs);
    brg_tensor *y =
        brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(N_SAMPLES, 1), outputs);
    brg_status status = create_params();
    if (status == BRG_OK)
        status = train(&loss, x, y);
    if (status != BRG_OK)
        fprintf(stderr, "%s\n", brg_error_message());
    brg_scope_end(scope); /* parameters, their gradients, the data */
    printf("loss %.5f\n", loss);
    return status == BRG_OK && loss < 0.01 ? EXIT_SUCCESS : EXIT_FAILURE;
}
