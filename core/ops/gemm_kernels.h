/* SPDX-License-Identifier: Apache-2.0
 * The inner kernels of f32 products, one table per instruction set, and the
 * blocked product made of them (gemm_blocked.c).
 *
 * A tile is `mr` rows by `nr` columns of c, held in registers over a run of k.
 * Its rows of a are read in place, through one pointer each; its columns of b
 * come from a *panel*: k rows of nr adjacent floats, zero past the edge. */
#ifndef BRG_CORE_OPS_GEMM_KERNELS_H
#define BRG_CORE_OPS_GEMM_KERNELS_H

#include <stdbool.h>
#include <stdint.h>

#include <brigade/status.h>

#define BRG__GEMM_MAX_MR 8
#define BRG__GEMM_MAX_NR 32

/* What c becomes: the sum, c + the sum, bias + the sum (an element of bias
 * per column of c). */
typedef enum brg__gemm_mode {
    BRG__GEMM_SET,
    BRG__GEMM_ADD,
    BRG__GEMM_BIAS
} brg__gemm_mode;

typedef struct brg__tile {
    int64_t k;
    const float *a[BRG__GEMM_MAX_MR]; /* first element of each row */
    int64_t a_step;                   /* from one k to the next */
    float *panel;
    /* Not NULL: rows of b, at b + b_rows[k], which are copied to the panel on
     * the way. All nr columns can be read. */
    const float *b;
    const int64_t *b_rows;
    int rows, cols;  /* <= mr, nr */
    bool is_flipped; /* c is stored transposed: its row j is column j here */
    brg__gemm_mode mode;
    float alpha;
    const float *bias;
    float *c;
    int64_t ldc;
} brg__tile;

typedef struct brg__gemm_kernels {
    int mr, nr;
    void (*tile)(const brg__tile *tile);
    /* A panel of `cols` columns from b (k,cols) with any strides. */
    void (*pack_panel)(float *panel, const float *b, int64_t row, int64_t col,
                       int64_t k, int cols);
    /* `rows` rows of a (rows,k) as k groups of mr floats. */
    void (*pack_rows)(float *to, const float *a, int64_t row, int64_t col,
                      int64_t k, int rows);
    /* to (cols,rows) = from (rows,cols) transposed; leading dims in floats. */
    void (*transpose)(float *to, int64_t ldt, const float *from, int64_t ldf,
                      int64_t rows, int64_t cols);
} brg__gemm_kernels;

const brg__gemm_kernels *brg__gemm_kernels_get(void);

/* c (m,n) of a (m,k) and b (k,n). a_rows and b_rows, if not NULL, say where
 * each row of a starts and each row of b; then a_col, b_col are 1. */
typedef struct brg__product {
    int64_t m, n, k;
    const float *a;
    const int64_t *a_rows;
    int64_t a_row, a_col;
    const float *b;
    const int64_t *b_rows;
    int64_t b_row, b_col;
    /* Columns that can be read past the last of b. */
    int64_t b_slack;
    brg__gemm_mode mode;
    float alpha;
    const float *bias;
    float *c;
    int64_t ldc;
} brg__product;

/* All sizes positive. Uses scratch slot 0. */
brg_status brg__product_run(const brg__product *p);

#endif
