/* SPDX-License-Identifier: Apache-2.0
 * A custom function: rounding with a straight-through gradient, with which a
 * linear model learns whole numbers as weights. And one whose gradient is
 * checked against differences. */
#include <stdio.h>
#include <stdlib.h>

#include <brigade/brigade.h>

/* Rounding: the gradient passes as if it were not there. */
static brg_status round_forward(brg_context *ctx, const brg_value *args,
                                size_t n_args, brg_value *outputs)
{
    (void)ctx, (void)n_args;
    outputs[0] = brg_value_tensor(brg_round(args[0].as.tensor));
    return BRG_OK; /* a NULL output fails with its own error */
}

static brg_status round_backward(brg_context *ctx, brg_tensor *const *grad_out,
                                 brg_tensor **grad_in, size_t *n_grad_in)
{
    (void)ctx, (void)n_grad_in;
    grad_in[0] = grad_out[0];
    return BRG_OK;
}

/* x^p, p a plain number. */
static brg_status power_forward(brg_context *ctx, const brg_value *args,
                                size_t n_args, brg_value *outputs)
{
    (void)n_args;
    brg_tensor *x = args[0].as.tensor;
    outputs[0] = brg_value_tensor(brg_pow_scalar(x, args[1].as.real));
    BRG_TRY(brg_context_set(ctx, "exponent", args[1]));
    return brg_context_save(ctx, &x, 1);
}

static brg_status power_backward(brg_context *ctx, brg_tensor *const *grad_out,
                                 brg_tensor **grad_in, size_t *n_grad_in)
{
    (void)n_grad_in; /* two, one per argument; the number's stays NULL */
    brg_tensor *x;
    BRG_TRY(brg_context_saved(ctx, 0, &x));
    const double p = brg_context_get(ctx, "exponent").as.real;
    brg_tensor *slope = brg_mul_scalar(brg_pow_scalar(x, p - 1), p);
    grad_in[0] = brg_mul(grad_out[0], slope);
    return grad_in[0] ? BRG_OK : brg_error_code();
}

static brg_status power_of(brg_tensor *const *inputs, brg_tensor **outputs,
                           void *user)
{
    const brg_value args[] = {brg_value_tensor(inputs[0]),
                              brg_value_float(2.5)};
    outputs[0] = brg_function_call(user, args, 2);
    return outputs[0] ? BRG_OK : brg_error_code();
}

static brg_status step(const brg_function *round, brg_tensor *x, brg_tensor *y,
                       brg_tensor *w, double *loss)
{
    brg_scope *scope = brg_scope_begin();
    const brg_value arg = brg_value_tensor(w);
    brg_tensor *error =
        brg_sub(brg_matmul(x, brg_function_call(round, &arg, 1)), y);
    brg_tensor *l = brg_mean_all(brg_square(error));
    brg_status status = brg_backward(l);
    bool mode = brg_grad_mode_set(false);
    if (status == BRG_OK)
        status = brg_add_(w, brg_tensor_grad(w), -0.05);
    brg_grad_mode_set(mode);
    if (status == BRG_OK)
        status = brg_tensor_set_grad(w, NULL);
    if (status == BRG_OK)
        status = brg_tensor_item(l, loss);
    brg_scope_end(scope);
    return status;
}

static brg_status run(brg_function *round, brg_function *power, double *loss)
{
    const float whole[3] = {2, -1, 3};
    brg_seed(1);
    brg_tensor *x = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(64, 3));
    brg_tensor *y =
        brg_matmul(x, brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(3, 1), whole));
    brg_tensor *w = brg_full(BRG_DTYPE_F32, BRG_SHAPE(3, 1), 0.3);
    BRG_TRY(brg_set_requires_grad(w, true));
    for (int i = 0; i < 200; i++)
        BRG_TRY(step(round, x, y, w, loss));
    brg_tensor *z = brg_rand(BRG_DTYPE_F64, BRG_SHAPE(4));
    BRG_TRY(brg_set_requires_grad(z, true));
    return brg_gradcheck(power_of, power, &z, 1, NULL);
}

static brg_function *function_of(const char *name, bool is_round)
{
    brg_function_def def = BRG_FUNCTION_DEF_INIT;
    def.name = name;
    def.n_outputs = 1;
    def.forward = is_round ? round_forward : power_forward;
    def.backward = is_round ? round_backward : power_backward;
    brg_function *f;
    return brg_function_create(&f, &def) == BRG_OK ? f : NULL;
}

int main(void)
{
    double loss = 1;
    brg_function *round = function_of("round", true);
    brg_function *power = function_of("power", false);
    brg_scope *scope = brg_scope_begin();
    bool is_right = round && power && run(round, power, &loss) == BRG_OK;
    brg_scope_end(scope);
    brg_function_release(round);
    brg_function_release(power);
    printf("loss %g %s\n", loss, is_right ? "" : brg_error_message());
    return is_right && loss < 1e-10 ? EXIT_SUCCESS : EXIT_FAILURE;
}
