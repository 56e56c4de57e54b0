/* SPDX-License-Identifier: Apache-2.0
 * Activation checkpointing of a chain of layers: the same gradient with less
 * memory; autocast inside it; anomaly mode, which names the op that first gave
 * a value that is no number. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BRG_TRACE_CALLS /* errors of backward name the line of the call */
#include <brigade/brigade.h>

#define N 128
#define LAYERS 36

static brg_status layer(size_t i, brg_tensor *x, brg_tensor **y, void *user)
{
    (void)i;
    *y = brg_tanh(brg_matmul(x, user));
    return *y ? BRG_OK : brg_error_code();
}

typedef enum manner { PLAIN, CHECKPOINTED, LOW_PRECISION } manner;

static brg_tensor *forward(manner how, brg_tensor *x, brg_tensor *w)
{
    if (how == CHECKPOINTED)
        x = brg_recompute_chain(layer, w, LAYERS, 0, x);
    for (size_t i = 0; i < LAYERS && how != CHECKPOINTED; i++)
        if (layer(i, x, &x, w) != BRG_OK)
            return NULL;
    return brg_mean_all(brg_square(x));
}

/* The gradient of w, and the most memory in use on the way. */
static brg_status gradient(manner how, brg_tensor *x, brg_tensor *w,
                           float *filled, double *mebibytes)
{
    brg_autocast before = brg_autocast_get();
    brg_autocast low = {how == LOW_PRECISION, BRG_DTYPE_BF16};
    BRG_TRY(brg_tensor_set_grad(w, NULL));
    brg_memory_reset_peak();
    brg_scope *scope = brg_scope_begin();
    brg_status status = brg_autocast_set(low, NULL);
    brg_tensor *loss = status == BRG_OK ? forward(how, x, w) : NULL;
    if (status == BRG_OK)
        status = brg_autocast_set(before, NULL);
    if (status == BRG_OK)
        status = brg_backward(loss);
    if (status == BRG_OK)
        status =
            brg_tensor_read(brg_tensor_grad(w), filled, N * N * sizeof(float));
    brg_scope_end(scope);
    brg_memory_stats stats;
    brg_memory_get_stats(&stats);
    *mebibytes = (double)stats.peak / (1 << 20);
    return status;
}

static double distance(const float *a, const float *b)
{
    double sum = 0, norm = 0;
    for (int i = 0; i < N * N; i++) {
        sum += (a[i] - b[i]) * (a[i] - b[i]);
        norm += b[i] * b[i];
    }
    return sqrt(sum / norm);
}

static bool find_the_nan(void)
{
    brg_tensor *x = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(2));
    if (brg_set_requires_grad(x, true) != BRG_OK)
        return false;
    bool mode = brg_anomaly_mode_set(true);
    brg_tensor *y = brg_mul(brg_sqrt(x), brg_zeros_like(x));
    brg_status status = brg_backward(brg_sum_all(y)); /* 0 * inf */
    brg_anomaly_mode_set(mode);
    printf("%s\n", brg_error_message());
    return status == BRG_ERR_NAN && strstr(brg_error_message(), "sqrt");
}

int main(void)
{
    static float plain[N * N], again[N * N], low[N * N];
    double plain_size, again_size, low_size;
    brg_scope *scope = brg_scope_begin();
    brg_seed(1);
    brg_tensor *x = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(N, N));
    brg_tensor *w =
        brg_mul_scalar(brg_randn(BRG_DTYPE_F32, BRG_SHAPE(N, N)), 0.1);
    brg_status status = brg_set_requires_grad(w, true);
    if (status == BRG_OK)
        status = gradient(PLAIN, x, w, plain, &plain_size);
    if (status == BRG_OK)
        status = gradient(CHECKPOINTED, x, w, again, &again_size);
    if (status == BRG_OK)
        status = gradient(LOW_PRECISION, x, w, low, &low_size);
    bool is_right = status == BRG_OK && distance(again, plain) < 1e-6 &&
                    again_size < 0.6 * plain_size && distance(low, plain) < 0.2;
    if (status == BRG_OK)
        printf("plain %.1f MiB, checkpointed %.1f MiB; bf16 is %.3f away\n",
               plain_size, again_size, distance(low, plain));
    else
        fprintf(stderr, "%s\n", brg_error_message());
    is_right = is_right && find_the_nan();
    brg_scope_end(scope);
    return is_right ? EXIT_SUCCESS : EXIT_FAILURE;
}
