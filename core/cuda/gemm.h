/* SPDX-License-Identifier: Apache-2.0
 * Matrix products through cuBLASLt. */
#ifndef BRG_CORE_CUDA_GEMM_H
#define BRG_CORE_CUDA_GEMM_H

#include "core/cuda/cu.h"

/* Element (i, j) is at[i * row + j * col]. */
typedef struct brg__cu_mat {
    const void *at;
    int64_t row, col;
    int64_t batch; /* from one product to the next */
} brg__cu_mat;

/* What is done to the product y before it is written. */
typedef enum brg__cu_epilogue {
    BRG__CU_PLAIN,    /* c = y */
    BRG__CU_GELU,     /* c = gelu(y), aux = y */
    BRG__CU_GELU_GRAD /* c = gelu_grad(y, aux) */
} brg__cu_epilogue;

/* c (m,n), row-major, = a (m,k) b (k,n) + bias (n) + add; `n_batch` of them,
 * those of c one after the other. Of each matrix one stride must be 1 and the
 * other no smaller than the rows it skips (brg__cu_mat_is_usable). */
typedef struct brg__cu_gemm {
    int dtype;
    int64_t m, n, k, n_batch;
    brg__cu_mat a, b;
    void *c;
    int64_t ldc;      /* from row to row of c; 0: n */
    int64_t c_batch;  /* from one c to the next; 0: m * n */
    bool c_is_wide;   /* c is f32 although a and b have 16 bits */
    const void *bias; /* NULL: none */
    const void *add;  /* (m,n) as c; or NULL */
    brg__cu_epilogue epilogue;
    void *aux; /* (m,n) row-major */
} brg__cu_gemm;

bool brg__cu_mat_is_usable(const brg__cu_mat *mat, int64_t rows, int64_t cols);
brg_status brg__cu_gemm_run(brg__cu *cu, const brg__cu_gemm *g);
/* The same if the library has such a product; else *is_done is false and
 * nothing was queued. */
brg_status brg__cu_gemm_try(brg__cu *cu, const brg__cu_gemm *g, bool *is_done);

#endif
