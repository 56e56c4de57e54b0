/* SPDX-License-Identifier: Apache-2.0
 * The matrix products of one training step, as plain BLAS calls. */
#include "bench/gemm_shapes.h"

#include <stdlib.h>
#include <string.h>

#include <cblas.h>

#include "bench/bench.h"

static float *matrix(size_t rows, size_t cols)
{
    const size_t nbytes = rows * cols * sizeof(float);
    float *p = aligned_alloc(64, (nbytes + 63) / 64 * 64);
    if (p == NULL)
        bench_fail("out of memory");
    bench_fill(p, rows * cols, 1, rows);
    return p;
}

static void add_call(gemm_list *list, gemm_call call)
{
    if (list->n == sizeof(list->calls) / sizeof(list->calls[0]))
        bench_fail("too many matrix products");
    const size_t m = (size_t)call.m, n = (size_t)call.n, k = (size_t)call.k;
    call.a = matrix(m, k);
    call.b = matrix(k, n);
    call.c = matrix(m, n);
    list->calls[list->n++] = call;
}

/* y (batch,out) = x weight^T, and its two gradients. */
static void add_linear(gemm_list *list, int batch, int n_in, int n_out,
                       bool has_input_gradient)
{
    add_call(list, (gemm_call){false, true, batch, n_out, n_in, 1, 0, 0, 0});
    add_call(list, (gemm_call){true, false, n_out, n_in, batch, 1, 0, 0, 0});
    if (has_input_gradient)
        add_call(list,
                 (gemm_call){false, false, batch, n_in, n_out, 1, 0, 0, 0});
}

/* A 3x3 convolution, unfolded: weight (out,9 in) columns (9 in,pixels). */
static void add_conv(gemm_list *list, int batch, int n_in, int n_out,
                     int n_pixels, bool has_input_gradient)
{
    const int k = 9 * n_in;
    add_call(list,
             (gemm_call){false, false, n_out, n_pixels, k, batch, 0, 0, 0});
    add_call(list,
             (gemm_call){false, true, n_out, k, n_pixels, batch, 0, 0, 0});
    if (has_input_gradient)
        add_call(list,
                 (gemm_call){true, false, k, n_pixels, n_out, batch, 0, 0, 0});
}

static void add_attention(gemm_list *list, bool has_backward)
{
    enum { N = 8 * 4, T = 64, D = 32 };
    const gemm_call scores = {false, true, T, T, D, N, 0, 0, 0};
    const gemm_call values = {false, false, T, D, T, N, 0, 0, 0};
    const gemm_call turned = {true, false, T, D, T, N, 0, 0, 0};
    add_call(list, scores);
    add_call(list, values);
    if (has_backward) {
        add_call(list, scores); /* of the softmax: dy v^T */
        add_call(list, values); /* q */
        add_call(list, turned); /* k */
        add_call(list, turned); /* v */
    }
}

static void add_gpt(gemm_list *list)
{
    enum { ROWS = 8 * 64, WIDTH = 128, N_BLOCKS = 4, N_TOKENS = 256 };
    for (int i = 0; i < N_BLOCKS; i++) {
        add_linear(list, ROWS, WIDTH, 3 * WIDTH, true);
        add_attention(list, true);
        add_linear(list, ROWS, WIDTH, WIDTH, true);
        add_linear(list, ROWS, WIDTH, 4 * WIDTH, true);
        add_linear(list, ROWS, 4 * WIDTH, WIDTH, true);
    }
    add_linear(list, ROWS, WIDTH, N_TOKENS, true);
}

static void add_mlp(gemm_list *list, int batch, int hidden)
{
    add_linear(list, batch, 784, hidden, false);
    add_linear(list, batch, hidden, hidden, true);
    add_linear(list, batch, hidden, 10, true);
}

void gemm_list_init_model(gemm_list *list, const char *model)
{
    list->n = 0;
    if (strcmp(model, "mlp-a") == 0)
        add_mlp(list, 64, 512);
    if (strcmp(model, "mlp-b") == 0)
        add_mlp(list, 128, 2048);
    if (strcmp(model, "gpt") == 0)
        add_gpt(list);
    if (strcmp(model, "cnn") == 0) {
        add_conv(list, 64, 1, 32, 26 * 26, false);
        add_conv(list, 64, 32, 64, 24 * 24, true);
        add_linear(list, 64, 9216, 128, true);
        add_linear(list, 64, 128, 10, true);
    }
}

void gemm_list_init_attention(gemm_list *list, bool has_backward)
{
    list->n = 0;
    add_attention(list, has_backward);
}

void gemm_list_deinit(gemm_list *list)
{
    for (size_t i = 0; i < list->n; i++) {
        free(list->calls[i].a);
        free(list->calls[i].b);
        free(list->calls[i].c);
    }
}

static void run_call(const gemm_call *g)
{
    const CBLAS_TRANSPOSE ta = g->is_a_transposed ? CblasTrans : CblasNoTrans;
    const CBLAS_TRANSPOSE tb = g->is_b_transposed ? CblasTrans : CblasNoTrans;
    cblas_sgemm(CblasRowMajor, ta, tb, g->m, g->n, g->k, 1.0f, g->a,
                g->is_a_transposed ? g->m : g->k, g->b,
                g->is_b_transposed ? g->k : g->n, 0.0f, g->c, g->n);
}

void gemm_list_run(const gemm_list *list)
{
    for (size_t i = 0; i < list->n; i++)
        for (int k = 0; k < list->calls[i].n_times; k++)
            run_call(&list->calls[i]);
}

double gemm_list_flop(const gemm_list *list)
{
    double flop = 0;
    for (size_t i = 0; i < list->n; i++) {
        const gemm_call *g = &list->calls[i];
        flop += 2.0 * g->m * g->n * g->k * g->n_times;
    }
    return flop;
}
