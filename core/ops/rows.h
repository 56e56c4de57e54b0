/* SPDX-License-Identifier: Apache-2.0
 * Rows: what reductions, norms and losses are made of.
 *
 * Kernels work on rows of adjacent elements of a compute type: f32 for f32,
 * f16 and bf16, f64 for f64. A *line* is the elements of a tensor along one
 * dim; lines of another dtype or stride pass through a buffer. The f32
 * kernels exist once per instruction set (row_kernels.c), those of f64 once.
 * Sums run over several accumulators and end in f64, in an order that depends
 * on the sizes only. */
#ifndef BRG_CORE_OPS_ROWS_H
#define BRG_CORE_OPS_ROWS_H

#include "core/base/progress.h"
#include "core/ops/op.h"

/* Scalars of layer_norm's rows. */
typedef struct brg__row_moments {
    double mean;
    double rstd;
} brg__row_moments;

/* All pointers are to elements of the compute type; results may not overlap
 * arguments, except that y may be x. */
typedef struct brg__row_kernels {
    size_t item; /* bytes of the compute type */

    /* Of n >= 0 (extremes: n >= 1) elements; a NaN makes max and min NaN. */
    double (*sum)(const void *x, size_t n);
    double (*sum_sq)(const void *x, double shift, size_t n); /* (x - shift)^2 */
    double (*dot)(const void *a, const void *b, double shift_b, size_t n);
    double (*sum_sq_diff)(const void *a, const void *b, size_t n);
    double (*max)(const void *x, size_t n);
    double (*min)(const void *x, size_t n);
    /* total[j] (+)= x[i ld + j] over `rows` (at most 256) rows and n columns
     * (at most BRG__COLS). */
    void (*col_sum)(double *total, const void *x, size_t ld, size_t rows,
                    size_t n);
    /* Its two halves: sum[j] += the rows, of which all but the last call give a
     * multiple of BRG__COL_STEP; then total[j] += sum[j] and sum[j] = 0, after
     * each block of rows. sum is of the compute type, n is free. */
    void (*col_add)(void *sum, const void *x, size_t ld, size_t rows, size_t n);
    void (*col_flush)(double *total, void *sum, size_t n);
    void (*col_max)(double *total, const void *x, size_t ld, size_t rows,
                    size_t n);
    void (*col_min)(double *total, const void *x, size_t ld, size_t rows,
                    size_t n);

    void (*softmax)(void *y, const void *x, size_t n);
    void (*log_softmax)(void *y, const void *x, size_t n);
    void (*softmax_grad)(void *gx, const void *g, const void *y, size_t n);
    void (*log_softmax_grad)(void *gx, const void *g, const void *y, size_t n);
    /* log(sum(exp(x))) */
    double (*log_sum_exp)(const void *x, size_t n);
    /* y = (exp(x - lse) - base) * scale */
    void (*soft_targets)(void *y, const void *x, double lse, double base,
                         double scale, size_t n);

    /* y = (x - mean) * rstd * w + b; w, b may be NULL. */
    void (*normalize)(void *y, const void *x, brg__row_moments m, const void *w,
                      const void *b, size_t n);
    /* s[0] = sum(g w), s[1] = sum(g w xhat); gw += g xhat, gb += g. */
    void (*normalize_sums)(double s[2], void *gw, void *gb, const void *g,
                           const void *x, brg__row_moments m, const void *w,
                           size_t n);
    /* gx = rstd (g w - s[0] - xhat s[1]) */
    void (*normalize_grad)(void *gx, const double s[2], const void *g,
                           const void *x, brg__row_moments m, const void *w,
                           size_t n);
    /* y = a (x - shift) + b g + c; g may be NULL. */
    void (*affine)(void *y, const void *x, double shift, double a,
                   const void *g, double b, double c, size_t n);
    /* y = (a - b) scale */
    void (*scaled_diff)(void *y, const void *a, const void *b, double scale,
                        size_t n);
    /* to += from */
    void (*add_to)(void *to, const void *from, size_t n);
} brg__row_kernels;

#define BRG__COLS 512
#define BRG__COL_STEP 4

/* The kernels for tensors of a float dtype. */
const brg__row_kernels *brg__row_kernels_of(brg_dtype dtype);

/* The dtype in which sums and moments of such tensors are kept. */
static inline brg_dtype brg__row_compute_dtype(brg_dtype dtype)
{
    return dtype == BRG_DTYPE_F64 ? BRG_DTYPE_F64 : BRG_DTYPE_F32;
}

/* ---- Lines ----------------------------------------------------------- */

/* n elements of dtype `dtype`, `stride` apart, from element `at` on. */
typedef struct brg__lines {
    char *base; /* of the storage */
    brg_dtype dtype;
    size_t item;
    int64_t n;
    int64_t stride;
    int64_t at;
    int64_t count; /* of lines */
    /* the dims that are not the line's */
    int n_outer;
    int64_t size[BRG_MAX_DIMS];
    int64_t step[BRG_MAX_DIMS];
    int64_t index[BRG_MAX_DIMS];
} brg__lines;

/* The lines of t along dim (none: a scalar is one line of one element), in
 * row-major order of the other dims. t has memory. */
void brg__lines_init(brg__lines *lines, const brg_tensor *t, int dim);
void brg__lines_next(brg__lines *lines);

/* n elements from element `at`, `stride` apart, as a row of the compute type:
 * in place if they are one, else in buffer. */
const void *brg__row_load(const brg__row_kernels *k, const char *base,
                          brg_dtype dtype, int64_t at, int64_t stride, size_t n,
                          void *buffer);
/* Where to compute such a row: in place if possible, else buffer. */
void *brg__row_target(const brg__row_kernels *k, char *base, brg_dtype dtype,
                      int64_t at, int64_t stride, void *buffer);
/* Brings a row computed in `row` to its place, unless it is there. */
void brg__row_store(const brg__row_kernels *k, char *base, brg_dtype dtype,
                    int64_t at, int64_t stride, size_t n, const void *row);

static inline const void *brg__line_load(const brg__row_kernels *k,
                                         const brg__lines *l, void *buffer)
{
    return brg__row_load(k, l->base, l->dtype, l->at, l->stride, (size_t)l->n,
                         buffer);
}

static inline void *brg__line_target(const brg__row_kernels *k,
                                     const brg__lines *l, void *buffer)
{
    return brg__row_target(k, l->base, l->dtype, l->at, l->stride, buffer);
}

static inline void brg__line_store(const brg__row_kernels *k,
                                   const brg__lines *l, const void *row)
{
    brg__row_store(k, l->base, l->dtype, l->at, l->stride, (size_t)l->n, row);
}

/* ---- Bands --------------------------------------------------------------
 * Lines that do not lie densely in memory but side by side: BRG__BAND of them
 * are gathered together, so that each cache line is read once. Line c of a
 * band is at row c * brg__band_row(n) of its buffer. */

#define BRG__BAND 16

/* Padded, so that the lines do not fall into the same cache sets. */
static inline size_t brg__band_row(size_t n)
{
    return n + 16;
}

static inline size_t brg__band_nbytes(const brg__row_kernels *k, size_t n)
{
    return BRG__BAND * brg__band_row(n) * k->item;
}

/* `width` (at most BRG__BAND) lines of n elements: line c from element at + c,
 * its elements `stride` apart. */
void brg__band_load(const brg__row_kernels *k, const char *base,
                    brg_dtype dtype, int64_t at, int64_t stride, size_t n,
                    size_t width, void *buffer);
void brg__band_store(const brg__row_kernels *k, char *base, brg_dtype dtype,
                     int64_t at, int64_t stride, size_t n, size_t width,
                     const void *buffer);

/* ---- Single elements ------------------------------------------------- */

double brg__get_f64(const char *base, brg_dtype dtype, int64_t at);
/* Rounds once; not for integers beyond 2^53. */
void brg__put_f64(char *base, brg_dtype dtype, int64_t at, double value);
int64_t brg__get_i64(const char *base, brg_dtype dtype, int64_t at);
void brg__put_i64(char *base, brg_dtype dtype, int64_t at, int64_t value);

static inline char *brg__storage_base(const brg_tensor *t)
{
    return t->storage->data;
}

/* ---- Progress -------------------------------------------------------- */

/* Polls once per 64 Ki elements: call with the elements just processed. */
static inline void brg__poll_after(int64_t *left, int64_t n)
{
    *left -= n;
    if (*left <= 0) {
        brg__progress_poll();
        *left = 65536;
    }
}

#endif
