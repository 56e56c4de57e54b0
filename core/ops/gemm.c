/* SPDX-License-Identifier: Apache-2.0
 * Matrix products by the matrix library, whose number of threads is owned
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
#include "core/ops/op.h"

/* Between row blocks of about this much work the progress hook is called;
 * some 2 ms on one core. */
#define FLOPS_PER_POLL 4e8

static pthread_once_t threads_once = PTHREAD_ONCE_INIT;

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

/* The library's names for a product's operands. */
typedef struct blas_operands {
    CBLAS_TRANSPOSE ta, tb;
    int lda, ldb;
} blas_operands;

static void call_gemm(const brg__gemm *g, const blas_operands *o)
{
    const int m = (int)g->m, n = (int)g->n, k = (int)g->k, ldc = (int)g->ldc;
    const double beta = g->accumulate ? 1.0 : 0.0;
    if (g->dtype == BRG_DTYPE_F64)
        cblas_dgemm(CblasRowMajor, o->ta, o->tb, m, n, k, g->alpha, g->a.at,
                    o->lda, g->b.at, o->ldb, beta, g->c, ldc);
    else
        cblas_sgemm(CblasRowMajor, o->ta, o->tb, m, n, k, (float)g->alpha,
                    g->a.at, o->lda, g->b.at, o->ldb, (float)beta, g->c, ldc);
}

static CBLAS_TRANSPOSE flip(CBLAS_TRANSPOSE trans)
{
    return trans == CblasTrans ? CblasNoTrans : CblasTrans;
}

/* A matrix by a vector, which is several times faster than a product of one
 * row or column: y (rows of c) += alpha * matrix * x. */
static void call_gemv(const brg__gemm *g, const blas_operands *o)
{
    const bool is_row = g->m == 1;
    const void *matrix = is_row ? g->b.at : g->a.at;
    const void *x = is_row ? g->a.at : g->b.at;
    const CBLAS_TRANSPOSE trans = is_row ? flip(o->tb) : o->ta;
    const int n_y = (int)(is_row ? g->n : g->m), k = (int)g->k;
    const int rows = trans == CblasNoTrans ? n_y : k;
    const int cols = trans == CblasNoTrans ? k : n_y;
    const int ld = is_row ? o->ldb : o->lda;
    const int step_x = !is_row ? o->ldb : o->ta == CblasTrans ? o->lda : 1;
    const int step_y = is_row ? 1 : (int)g->ldc;
    if (g->dtype == BRG_DTYPE_F64)
        cblas_dgemv(CblasRowMajor, trans, rows, cols, g->alpha, matrix, ld, x,
                    step_x, 1.0, g->c, step_y);
    else
        cblas_sgemv(CblasRowMajor, trans, rows, cols, (float)g->alpha, matrix,
                    ld, x, step_x, 1.0f, g->c, step_y);
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

static void call_blas(const brg__gemm *g, const blas_operands *o)
{
    const bool is_vector = g->m == 1 || g->n == 1;
    brg__gemm h = *g;
    if (h.m == 1)
        h.ldc = h.n;
    if (is_vector || h.bias) {
        start(&h);
        h.accumulate = true;
    }
    pthread_once(&threads_once, threads_init);
    if (is_vector)
        call_gemv(&h, o);
    else
        call_gemm(&h, o);
}

static _Thread_local const brg__gemm_maker *other_maker;

const brg__gemm_maker *brg__gemm_swap(const brg__gemm_maker *maker)
{
    const brg__gemm_maker *before = other_maker;
    other_maker = maker;
    return before;
}

/* Operands that cannot be described to the library are copied. */
static brg_status run_part(const brg__gemm *g)
{
    brg__gemm h = *g;
    if (other_maker && other_maker->run(other_maker, g))
        return BRG_OK;
    blas_operands o;
    const bool has_a = blas_layout(&h.a, h.m, h.k, &o.ta, &o.lda);
    const bool has_b = blas_layout(&h.b, h.k, h.n, &o.tb, &o.ldb);
    if (!has_a || !has_b) {
        const size_t item = brg_dtype_size(g->dtype);
        const size_t n_a = has_a ? 0 : (size_t)(h.m * h.k);
        const size_t n_b = has_b ? 0 : (size_t)(h.k * h.n);
        char *space = brg__scratch(1, (n_a + n_b) * item, "a matrix product");
        if (!space)
            return BRG_ERR_NOMEM;
        if (!has_a) {
            unpack(space, g->dtype, &h.a, h.m, h.k);
            h.a = brg__mat_of(space, h.k, 1);
            blas_layout(&h.a, h.m, h.k, &o.ta, &o.lda);
        }
        if (!has_b) {
            space += n_a * item;
            unpack(space, g->dtype, &h.b, h.k, h.n);
            h.b = brg__mat_of(space, h.n, 1);
            blas_layout(&h.b, h.k, h.n, &o.tb, &o.ldb);
        }
    }
    call_blas(&h, &o);
    return BRG_OK;
}

brg_status brg__gemm_run(const brg__gemm *g)
{
    if (g->m == 0 || g->n == 0)
        return BRG_OK;
    if (g->m > INT_MAX || g->n > INT_MAX || g->k > INT_MAX || g->ldc > INT_MAX)
        return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                        "a matrix product with a dim of more than %d", INT_MAX);
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
