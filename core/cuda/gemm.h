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

/* c (m,n), row-major, = a (m,k) b (k,n) + bias (n); `n_batch` of them, those
 * of c one after the other. Of each matrix one stride must be 1 and the other
 * no smaller than the rows it skips (brg__cu_mat_is_usable). */
typedef struct brg__cu_gemm {
    int dtype;
    int64_t m, n, k, n_batch;
    brg__cu_mat a, b;
    void *c;
    int64_t ldc;      /* from row to row of c; 0: n */
    int64_t c_batch;  /* from one c to the next; 0: m * n */
    bool c_is_wide;   /* c is f32 although a and b have 16 bits */
    const void *bias; /* NULL: none */
} brg__cu_gemm;

bool brg__cu_mat_is_usable(const brg__cu_mat *mat, int64_t rows, int64_t cols);
brg_status brg__cu_gemm_run(brg__cu *cu, const brg__cu_gemm *g);

#endif
