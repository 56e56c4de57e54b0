/* SPDX-License-Identifier: Apache-2.0
 * Products by libxsmm: see products.h. Its matrices are column-major, so a
 * row-major c (m,n) = a b is its c^T (n,m) = b^T a^T: what lies there is the
 * same memory. It reads a stored either way, and b by rows; of a b stored by
 * columns, as the weight of a linear layer, either a copy is turned, or, for few
 * rows, a and c are. Uses scratch slot 1. */
#include "compile/products.h"

#include <stddef.h>

#ifdef BRG_HAVE_XSMM

#include <libxsmm.h>
#include <limits.h>
#include <string.h>

#include "core/base/error.h"

#define FEW_ROWS 32
#define LEAST_COLS 16                  /* a vector */
#define MOST_HELD ((int64_t)1 << 19)   /* of a, b, c, unless rows are few */
#define MOST_TURNED ((int64_t)1 << 16) /* of b */
#define FILLED_ROWS 64 /* of c that a bias is written to at once */

typedef struct side {
    const float *at;
    int64_t ld;
} side;

/* Column-major: c (m,n) = or += a (m,k) b (k,n), b stored as (n,k) if it is
 * turned. */
typedef struct kernel_call {
    int64_t m, n, k;
    side a, b;
    bool is_b_turned, is_added;
    float *c;
    int64_t ldc;
} kernel_call;

static bool call_kernel(const kernel_call *x)
{
    const libxsmm_blasint lda = (libxsmm_blasint)x->a.ld;
    const libxsmm_blasint ldb = (libxsmm_blasint)x->b.ld;
    const libxsmm_blasint ldc = (libxsmm_blasint)x->ldc;
    const float alpha = 1, beta = x->is_added;
    const int flags = x->is_b_turned ? LIBXSMM_GEMM_FLAG_TRANS_B : 0;
    libxsmm_smmfunction run = libxsmm_smmdispatch(
        (libxsmm_blasint)x->m, (libxsmm_blasint)x->n, (libxsmm_blasint)x->k,
        &lda, &ldb, &ldc, &alpha, &beta, &flags, NULL);
    if (!run)
        return false;
    run(x->a.at, x->b.at, x->c);
    return true;
}

static float *take_scratch(int64_t n)
{
    float *space = brg__scratch(1, (size_t)n * sizeof *space, "a product");
    if (!space)
        brg_error_clear(); /* the matrix library may do with less */
    return space;
}

/* ---- Whatever the rows: c^T = b^T a^T ------------------------------------------ */

static void fill_bias(const brg__gemm *g, int64_t first, int64_t rows)
{
    for (int64_t i = first; i < first + rows; i++)
        memcpy((float *)g->c + i * g->ldc, g->bias,
               (size_t)g->n * sizeof(float));
}

/* A bias is written rows ahead of the product that is added to it. */
static bool run_rows(const brg__gemm *g, side b)
{
    const bool has_rows = g->a.col == 1;
    const int64_t step = g->bias ? FILLED_ROWS : g->m;
    for (int64_t i = 0; i < g->m; i += step) {
        const int64_t rows = g->m - i < step ? g->m - i : step;
        const kernel_call x = {.m = g->n,
                               .n = rows,
                               .k = g->k,
                               .a = b,
                               .b = {(const float *)g->a.at + i * g->a.row,
                                     has_rows ? g->a.row : g->a.col},
                               .is_b_turned = !has_rows,
                               .is_added = g->bias || g->accumulate,
                               .c = (float *)g->c + i * g->ldc,
                               .ldc = g->ldc};
        if (g->bias)
            fill_bias(g, i, rows);
        if (!call_kernel(&x))
            return false;
    }
    return true;
}

/* b by columns: a copy of it by rows, times alpha. */
static bool run_turned(const brg__gemm *g)
{
    float *turned = take_scratch(g->k * g->n);
    if (!turned)
        return false;
    libxsmm_otrans(turned, g->b.at, sizeof *turned, (libxsmm_blasint)g->k,
                   (libxsmm_blasint)g->n, (libxsmm_blasint)g->b.col,
                   (libxsmm_blasint)g->n);
    const float alpha = (float)g->alpha;
    for (int64_t i = 0; alpha != 1 && i < g->k * g->n; i++)
        turned[i] *= alpha;
    return run_rows(g, (side){turned, g->n});
}

/* ---- Few rows, b by columns: c (m,n) column-major ------------------------------- */

static void put_columns(const brg__gemm *g, const float *from)
{
    const float *bias = g->bias;
    for (int64_t i = 0; i < g->m; i++) {
        float *to = (float *)g->c + i * g->ldc;
        for (int64_t j = 0; j < g->n; j++) {
            const float y = from[j * g->m + i] + (bias ? bias[j] : 0);
            to[j] = g->accumulate ? to[j] + y : y;
        }
    }
}

static bool run_few(const brg__gemm *g)
{
    float *a = take_scratch(g->m * (g->k + g->n));
    if (!a)
        return false;
    float *c = a + g->m * g->k;
    for (int64_t i = 0; i < g->m; i++)
        for (int64_t l = 0; l < g->k; l++)
            a[l * g->m + i] =
                (float)g->alpha * ((const float *)g->a.at)[i * g->a.row + l];
    const kernel_call x = {.m = g->m,
                           .n = g->n,
                           .k = g->k,
                           .a = {a, g->m},
                           .b = {g->b.at, g->b.col},
                           .c = c,
                           .ldc = g->m};
    if (!call_kernel(&x))
        return false;
    put_columns(g, c);
    return true;
}

/* ---- Which ------------------------------------------------------------------------ */

/* Its rows, or its columns, are adjacent elements and do not overlap. */
static bool is_stored(const brg__mat *x, int64_t rows, int64_t cols)
{
    return (x->col == 1 && x->row >= cols && x->row <= INT_MAX) ||
           (x->row == 1 && x->col >= rows && x->col <= INT_MAX);
}

/* Beyond, the matrix library's blocking is better. */
static bool is_small(const brg__gemm *g)
{
    return g->m * g->k + g->k * g->n + g->m * g->n <= MOST_HELD;
}

static bool run(const brg__gemm_maker *self, const brg__gemm *g)
{
    (void)self;
    const bool is_few = g->m <= FEW_ROWS;
    if (g->dtype != BRG_DTYPE_F32 || g->m < 2 || g->n < LEAST_COLS ||
        !is_stored(&g->a, g->m, g->k) || !is_stored(&g->b, g->k, g->n))
        return false;
    if (g->b.col == 1)
        return g->alpha == 1.0 && (is_few || is_small(g)) &&
               run_rows(g, (side){g->b.at, g->b.row});
    if (is_few && g->a.col == 1 && g->k * g->n > MOST_TURNED / 16)
        return run_few(g);
    return g->k * g->n <= MOST_TURNED && is_small(g) && run_turned(g);
}

const brg__gemm_maker *brg__products(void)
{
    static const brg__gemm_maker maker = {run};
    libxsmm_init();
    return libxsmm_get_target_archid() >= LIBXSMM_X86_AVX2 ? &maker : NULL;
}

#else

const brg__gemm_maker *brg__products(void)
{
    return NULL;
}

#endif
