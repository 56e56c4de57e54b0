/* SPDX-License-Identifier: Apache-2.0
 * The matrix products of one training step, as plain BLAS calls. */
#ifndef BRG_BENCH_GEMM_SHAPES_H
#define BRG_BENCH_GEMM_SHAPES_H

#include <stdbool.h>
#include <stddef.h>

/* c (m,n) = a (m,k) b (k,n), either stored transposed; n_times in a row. */
typedef struct gemm_call {
    bool is_a_transposed, is_b_transposed;
    int m, n, k;
    int n_times;
    float *a, *b, *c; /* owned */
} gemm_call;

typedef struct gemm_list {
    gemm_call calls[96];
    size_t n;
} gemm_list;

/* Those of a model of models.h: forward, and backward to weights and inputs.
 * A convolution is the products of its unfolded form, one per image. */
void gemm_list_init_model(gemm_list *list, const char *model);
/* Those of one attention: (batch * heads) times softmax(q k^T) v. */
void gemm_list_init_attention(gemm_list *list, bool has_backward);
void gemm_list_deinit(gemm_list *list);

void gemm_list_run(const gemm_list *list);
double gemm_list_flop(const gemm_list *list);

#endif
