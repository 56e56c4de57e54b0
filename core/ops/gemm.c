/* SPDX-License-Identifier: Apache-2.0
 * Which way a matrix product goes: f32 on AVX-512 through the kernels of this
 * library, which need no tuning to the processor at hand and add a bias on the
 * way; all else through the matrix library, whose number of threads is owned
 * here. */
#include "core/ops/gemm.h"

#include <cblas.h>
#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include <brigade/runtime.h>

#include "core/base/alloc.h"
#include "core/base/progress.h"
#include "core/ops/gemm_kernels.h"
#include "core/ops/isa.h"
#include "core/ops/op.h"

/* Between row blocks of about this much work the progress hook is called;
 * some 2 ms on one core. */
#define FLOPS_PER_POLL 4e8

static pthread_once_t threads_once = PTHREAD_ONCE_INIT;
static _Atomic int n_threads_set; /* 0: not by brg_set_num_threads */

static void threads_init(void)
{
    if (!getenv("OPENBLAS_NUM_THREADS") && !getenv("OMP_NUM_THREADS"))
        openblas_set_num_threads(1);
}

brg_status brg_set_num_threads(int n_threads)
{
    BRG_CHECK_ARG(n_threads >= 1, "set_num_threads: %d threads", n_threads);
    pthread_once(&threads_once, threads_init);
    openblas_set_num_threads(n_threads);
    n_threads_set = n_threads;
    return BRG_OK;
}

/* How the matrix library reads a (rows,cols) operand: its leading dimension
 * and whether it is stored transposed; false if it cannot. */
static bool blas_layout(const brg__mat *a, int64_t rows, int64_t cols,
                        CBLAS_TRANSPOSE *trans, int *ld)
{
    const bool has_rows = a->col == 1 || cols == 1;
    const bool has_cols = a->row == 1 || rows == 1;
    int64_t lead;
    if (has_rows && (rows == 1 || a->row >= cols)) {
        *trans = CblasNoTrans;
        lead = rows == 1 ? cols : a->row;
    } else if (has_cols && (cols == 1 || a->col >= rows)) {
        *trans = CblasTrans;
        lead = cols == 1 ? rows : a->col;
    } else {
        return false;
    }
    *ld = (int)lead;
    return lead <= INT_MAX;
}

static void copy_f32(float *to, const brg__mat *a, int64_t rows, int64_t cols)
{
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++)
            *to++ = ((const float *)a->at)[i * a->row + j * a->col];
}

static void copy_f64(double *to, const brg__mat *a, int64_t rows, int64_t cols)
{
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++)
            *to++ = ((const double *)a->at)[i * a->row + j * a->col];
}

/* Row-major elements. */
static void unpack(void *to, brg_dtype dtype, const brg__mat *a, int64_t rows,
                   int64_t cols)
{
    if (dtype == BRG_DTYPE_F64)
        copy_f64(to, a, rows, cols);
    else
        copy_f32(to, a, rows, cols);
}

static void blas_call(const brg__gemm *g, CBLAS_TRANSPOSE ta, int lda,
                      CBLAS_TRANSPOSE tb, int ldb)
{
    const int m = (int)g->m, n = (int)g->n, k = (int)g->k;
    const int ldc = g->m == 1 ? (int)g->n : (int)g->ldc;
    const double beta = g->accumulate ? 1.0 : 0.0;
    if (g->dtype == BRG_DTYPE_F64)
        cblas_dgemm(CblasRowMajor, ta, tb, m, n, k, g->alpha, g->a.at, lda,
                    g->b.at, ldb, beta, g->c, ldc);
    else
        cblas_sgemm(CblasRowMajor, ta, tb, m, n, k, (float)g->alpha, g->a.at,
                    lda, g->b.at, ldb, (float)beta, g->c, ldc);
}

/* Operands that cannot be described to the library are copied. */
static brg_status run_blas(const brg__gemm *g)
{
    brg__gemm h = *g;
    CBLAS_TRANSPOSE ta, tb;
    int lda, ldb;
    const bool has_a = blas_layout(&h.a, h.m, h.k, &ta, &lda);
    const bool has_b = blas_layout(&h.b, h.k, h.n, &tb, &ldb);
    if (!has_a || !has_b) {
        const size_t item = g->dtype == BRG_DTYPE_F64 ? 8 : 4;
        const size_t n_a = has_a ? 0 : (size_t)(h.m * h.k);
        const size_t n_b = has_b ? 0 : (size_t)(h.k * h.n);
        char *space = brg__scratch(1, (n_a + n_b) * item, "a matrix product");
        if (!space)
            return BRG_ERR_NOMEM;
        if (!has_a) {
            unpack(space, g->dtype, &h.a, h.m, h.k);
            h.a = brg__mat_of(space, h.k, 1);
            blas_layout(&h.a, h.m, h.k, &ta, &lda);
        }
        if (!has_b) {
            space += n_a * item;
            unpack(space, g->dtype, &h.b, h.k, h.n);
            h.b = brg__mat_of(space, h.n, 1);
            blas_layout(&h.b, h.k, h.n, &tb, &ldb);
        }
    }
    pthread_once(&threads_once, threads_init);
    blas_call(&h, ta, lda, tb, ldb);
    return BRG_OK;
}

/* c starts as zeros or as rows of bias, unless it is added to. */
static void start(const brg__gemm *g)
{
    const size_t item = brg_dtype_size(g->dtype);
    const size_t nbytes = (size_t)g->n * item;
    for (int64_t i = 0; i < g->m && !g->accumulate; i++) {
        char *row = (char *)g->c + (size_t)(i * g->ldc) * item;
        if (g->bias)
            memcpy(row, g->bias, nbytes);
        else
            memset(row, 0, nbytes);
    }
}

static bool use_own_kernels(const brg__gemm *g)
{
    return g->dtype == BRG_DTYPE_F32 && g->m > 1 && g->n > 1 &&
           n_threads_set <= 1 && brg__isa() == BRG__ISA_AVX512;
}

static brg_status run_own(const brg__gemm *g)
{
    const brg__product p = {.m = g->m,
                            .n = g->n,
                            .k = g->k,
                            .a = g->a.at,
                            .a_row = g->a.row,
                            .a_col = g->a.col,
                            .b = g->b.at,
                            .b_row = g->b.row,
                            .b_col = g->b.col,
                            .mode = g->accumulate ? BRG__GEMM_ADD
                                    : g->bias     ? BRG__GEMM_BIAS
                                                  : BRG__GEMM_SET,
                            .alpha = (float)g->alpha,
                            .bias = g->bias,
                            .c = g->c,
                            .ldc = g->ldc};
    return brg__product_run(&p);
}

static brg_status run_part(const brg__gemm *g)
{
    if (use_own_kernels(g))
        return run_own(g);
    if (!g->bias || g->accumulate)
        return run_blas(g);
    brg__gemm h = *g;
    start(g);
    h.accumulate = true;
    return run_blas(&h);
}

brg_status brg__gemm_run(const brg__gemm *g)
{
    if (g->m == 0 || g->n == 0)
        return BRG_OK;
    if (g->k == 0) {
        start(g);
        return BRG_OK;
    }
    const double flops = 2.0 * (double)g->m * (double)g->n * (double)g->k;
    if (brg__progress_n == 0 || flops < 1.5 * FLOPS_PER_POLL)
        return run_part(g);
    const size_t item = brg_dtype_size(g->dtype);
    const int64_t n_parts = (int64_t)(flops / FLOPS_PER_POLL) + 1;
    const int64_t rows = ((g->m + n_parts - 1) / n_parts + 63) & ~(int64_t)63;
    for (int64_t i = 0; i < g->m; i += rows) {
        brg__gemm part = *g;
        part.m = g->m - i < rows ? g->m - i : rows;
        part.a.at =
            (const char *)g->a.at + (ptrdiff_t)(i * g->a.row) * (ptrdiff_t)item;
        part.c = (char *)g->c + (size_t)(i * g->ldc) * item;
        BRG_TRY(run_part(&part));
        brg__progress_poll();
    }
    return BRG_OK;
}
