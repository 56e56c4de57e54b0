/* SPDX-License-Identifier: Apache-2.0
 * A custom function whose forward and backward are CUDA kernels of one's own:
 * they go to Brigade's queue of the GPU, so that nothing waits for them. The
 * result and the gradient are compared with the same made of Brigade's ops. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include <brigade/brigade.h>

#include "softcap.h"

#define N 100003
#define CAP 2.0

static brg_status check(int error)
{
    return error == 0 ? BRG_OK
                      : brg_error_set(BRG_ERR_DEVICE, __FILE__, __LINE__,
                                      "softcap: CUDA error %d", error);
}

/* Of one dim, as all tensors of this example. */
static brg_tensor *empty_like(const brg_tensor *x)
{
    return brg_empty(brg_tensor_dtype(x), BRG_SHAPE(brg_tensor_numel(x)));
}

static brg_status forward(brg_context *ctx, const brg_value *args,
                          size_t n_args, brg_value *outputs)
{
    (void)n_args;
    void *stream;
    brg_tensor *x = brg_contiguous(args[0].as.tensor);
    brg_tensor *y = x ? empty_like(x) : NULL;
    if (!y)
        return brg_error_code();
    BRG_TRY(brg_device_stream(brg_tensor_device(x), &stream));
    BRG_TRY(
        check(softcap_forward(stream, brg_tensor_data(x), brg_tensor_data(y),
                              (size_t)brg_tensor_numel(x), (float)CAP)));
    outputs[0] = brg_value_tensor(y);
    return brg_context_save(ctx, &y, 1);
}

static brg_status backward(brg_context *ctx, brg_tensor *const *grad_out,
                           brg_tensor **grad_in, size_t *n_grad_in)
{
    (void)n_grad_in;
    void *stream;
    brg_tensor *y, *g = brg_contiguous(grad_out[0]);
    BRG_TRY(brg_context_saved(ctx, 0, &y));
    if (!g || !(grad_in[0] = empty_like(y)))
        return brg_error_code();
    BRG_TRY(brg_device_stream(brg_tensor_device(y), &stream));
    return check(softcap_backward(
        stream, brg_tensor_data(g), brg_tensor_data(y),
        brg_tensor_data(grad_in[0]), (size_t)brg_tensor_numel(y), (float)CAP));
}

/* The mean of softcap(x)^2 by the function, or by ops if it is NULL; and what
 * it gives x as gradient, summed up with weights. */
static brg_status results(const brg_function *f, brg_tensor *x, double out[2])
{
    const brg_value arg = brg_value_tensor(x);
    brg_tensor *y =
        f ? brg_function_call(f, &arg, 1)
          : brg_mul_scalar(brg_tanh(brg_mul_scalar(x, 1 / CAP)), CAP);
    brg_tensor *loss = brg_mean_all(brg_square(y));
    BRG_TRY(brg_backward(loss));
    BRG_TRY(brg_tensor_item(loss, &out[0]));
    brg_tensor *sum = brg_sum_all(brg_mul(brg_tensor_grad(x), brg_detach(x)));
    BRG_TRY(brg_tensor_item(sum, &out[1]));
    return brg_tensor_set_grad(x, NULL);
}

static brg_status run(double mine[2], double ops[2])
{
    brg_function_def def = BRG_FUNCTION_DEF_INIT;
    brg_function *f;
    def.name = "softcap";
    def.n_outputs = 1;
    def.forward = forward;
    def.backward = backward;
    BRG_TRY(brg_device_load("cuda"));
    BRG_TRY(brg_device_set((brg_device){BRG_DEVICE_CUDA, 0}));
    BRG_TRY(brg_function_create(&f, &def));
    brg_seed(1);
    brg_tensor *x = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(N));
    brg_status status = brg_set_requires_grad(x, true);
    if (status == BRG_OK)
        status = results(f, x, mine);
    if (status == BRG_OK)
        status = results(NULL, x, ops);
    brg_function_release(f);
    return status;
}

int main(void)
{
    double mine[2] = {0}, ops[2] = {0};
    brg_scope *scope = brg_scope_begin();
    brg_status status = run(mine, ops);
    bool is_right = status == BRG_OK && fabs(mine[0] - ops[0]) < 1e-5 &&
                    fabs(mine[1] - ops[1]) < 1e-5;
    printf("by kernels %.7f %.7f, by ops %.7f %.7f %s\n", mine[0], mine[1],
           ops[0], ops[1], status == BRG_OK ? "" : brg_error_message());
    brg_scope_end(scope);
    if (status == BRG_ERR_DEVICE && mine[0] == 0)
        return 77; /* no GPU */
    return is_right ? EXIT_SUCCESS : EXIT_FAILURE;
}
