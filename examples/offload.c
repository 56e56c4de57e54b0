/* SPDX-License-Identifier: Apache-2.0
 * Saved-tensor offload: a chain of layers whose activations wait on a disk
 * between forward and backward. The gradient is the same, bit for bit. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <brigade/brigade.h>

#define N 64
#define LAYERS 12

static brg_tensor *forward(brg_tensor *x, brg_tensor *w)
{
    for (int i = 0; i < LAYERS; i++)
        x = brg_tanh(brg_matmul(x, w));
    return brg_mean_all(brg_square(x));
}

static brg_status gradient(brg_tensor *x, brg_tensor *w, bool is_offloaded,
                           float *filled)
{
    BRG_TRY(brg_tensor_set_grad(w, NULL));
    brg_scope *scope = brg_scope_begin();
    brg_status status = BRG_OK;
    if (is_offloaded) {
        brg_offload_options options = BRG_OFFLOAD_OPTIONS_INIT;
        options.kind = BRG_OFFLOAD_DISK; /* a file without a name in /tmp */
        options.min_bytes = 1024;
        status = brg_offload_begin(&options);
    }
    if (status == BRG_OK) {
        brg_tensor *loss = forward(x, w);
        if (is_offloaded)
            status = brg_offload_end();
        if (status == BRG_OK)
            status = brg_backward(loss); /* reads the file, last layer first */
    }
    if (status == BRG_OK)
        status =
            brg_tensor_read(brg_tensor_grad(w), filled, N * N * sizeof(float));
    brg_scope_end(scope);
    return status;
}

int main(void)
{
    static float plain[N * N], offloaded[N * N];
    brg_scope *scope = brg_scope_begin();
    brg_seed(1);
    brg_tensor *x = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(N, N));
    brg_tensor *w =
        brg_mul_scalar(brg_randn(BRG_DTYPE_F32, BRG_SHAPE(N, N)), 0.125);
    brg_status status = brg_set_requires_grad(w, true);
    if (status == BRG_OK)
        status = gradient(x, w, false, plain);
    if (status == BRG_OK)
        status = gradient(x, w, true, offloaded);
    brg_scope_end(scope);
    if (status != BRG_OK) {
        fprintf(stderr, "%s\n", brg_error_message());
        return EXIT_FAILURE;
    }
    bool is_equal = memcmp(plain, offloaded, sizeof plain) == 0;
    printf("gradients are %s\n", is_equal ? "equal" : "NOT equal");
    return is_equal ? EXIT_SUCCESS : EXIT_FAILURE;
}
