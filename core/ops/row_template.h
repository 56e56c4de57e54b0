/* SPDX-License-Identifier: Apache-2.0
 * The row kernels for one compute type: included by row_kernels.c with
 *     ROW_T        float or double
 *     ROW(name)    the name of a function for that type
 *     ROW_EXP(x)   exp that a loop can be vectorised around
 * Has no guard: it may be included for both types.
 *
 * Floats are summed in blocks, four partial sums of a vector each, and block
 * totals in f64: the error of a sum does not grow with its length. */

#define BLOCK 512
#define QUARTER (BLOCK / 4)
#define PRAGMA(text) _Pragma(#text)
#define SIMD PRAGMA(omp simd)
#define SIMD_SUM(...) PRAGMA(omp simd reduction(+ : __VA_ARGS__))

/* total += the sum of TERM(i) over 0 <= i < n. */
#define SUM_TERMS(total, n, TERM)                                              \
    do {                                                                       \
        size_t at = 0;                                                         \
        for (; at + BLOCK <= (n); at += BLOCK) {                               \
            ROW_T s0 = 0, s1 = 0, s2 = 0, s3 = 0;                              \
            SIMD_SUM(s0, s1, s2, s3)                                           \
            for (size_t i = at; i < at + QUARTER; i++) {                       \
                s0 += TERM(i);                                                 \
                s1 += TERM(i + QUARTER);                                       \
                s2 += TERM(i + 2 * QUARTER);                                   \
                s3 += TERM(i + 3 * QUARTER);                                   \
            }                                                                  \
            (total) += (double)(s0 + s1) + (double)(s2 + s3);                  \
        }                                                                      \
        ROW_T rest = 0;                                                        \
        SIMD_SUM(rest)                                                         \
        for (size_t i = at; i < (n); i++)                                      \
            rest += TERM(i);                                                   \
        (total) += (double)rest;                                               \
    } while (0)

/* ---- Reductions ------------------------------------------------------ */

static double ROW(sum)(const void *px, size_t n)
{
    const ROW_T *x = px;
    double total = 0;
#define TERM(i) x[i]
    SUM_TERMS(total, n, TERM);
#undef TERM
    return total;
}

static double ROW(sum_sq)(const void *px, double pshift, size_t n)
{
    const ROW_T *x = px, shift = (ROW_T)pshift;
    double total = 0;
#define TERM(i) (x[i] - shift) * (x[i] - shift)
    SUM_TERMS(total, n, TERM);
#undef TERM
    return total;
}

static double ROW(dot)(const void *pa, const void *pb, double pshift, size_t n)
{
    const ROW_T *a = pa, *b = pb, shift = (ROW_T)pshift;
    double total = 0;
#define TERM(i) a[i] * (b[i] - shift)
    SUM_TERMS(total, n, TERM);
#undef TERM
    return total;
}

static double ROW(sum_sq_diff)(const void *pa, const void *pb, size_t n)
{
    const ROW_T *a = pa, *b = pb;
    double total = 0;
#define TERM(i) (a[i] - b[i]) * (a[i] - b[i])
    SUM_TERMS(total, n, TERM);
#undef TERM
    return total;
}

static double ROW(max)(const void *px, size_t n)
{
    const ROW_T *x = px;
    ROW_T most = x[0];
    int has_nan = 0;
    PRAGMA(omp simd reduction(max : most) reduction(| : has_nan))
    for (size_t i = 0; i < n; i++) {
        most = x[i] > most ? x[i] : most;
        has_nan |= x[i] != x[i];
    }
    return has_nan ? (double)NAN : (double)most;
}

static double ROW(min)(const void *px, size_t n)
{
    const ROW_T *x = px;
    ROW_T least = x[0];
    int has_nan = 0;
    PRAGMA(omp simd reduction(min : least) reduction(| : has_nan))
    for (size_t i = 0; i < n; i++) {
        least = x[i] < least ? x[i] : least;
        has_nan |= x[i] != x[i];
    }
    return has_nan ? (double)NAN : (double)least;
}

static void ROW(col_add)(void *psum, const void *px, size_t ld, size_t rows,
                         size_t n)
{
    const ROW_T *x = px;
    ROW_T *sum = psum;
    size_t i = 0;
    for (; i + 4 <= rows; i += 4) {
        const ROW_T *a = x + i * ld, *b = a + ld, *c = b + ld, *d = c + ld;
        SIMD for (size_t j = 0; j < n; j++) sum[j] +=
            (a[j] + b[j]) + (c[j] + d[j]);
    }
    for (; i < rows; i++)
        SIMD for (size_t j = 0; j < n; j++) sum[j] += x[i * ld + j];
}

static void ROW(col_flush)(double *total, void *psum, size_t n)
{
    ROW_T *sum = psum;
    SIMD for (size_t j = 0; j < n; j++)
    {
        total[j] += (double)sum[j];
        sum[j] = 0;
    }
}

static void ROW(col_sum)(double *total, const void *px, size_t ld, size_t rows,
                         size_t n)
{
    ROW_T sum[BRG__COLS];
    for (size_t j = 0; j < n; j++)
        sum[j] = 0;
    ROW(col_add)(sum, px, ld, rows, n);
    ROW(col_flush)(total, sum, n);
}

/* The extreme so far stays unless v passes it; a NaN wins and stays. */
static void ROW(col_max)(double *total, const void *px, size_t ld, size_t rows,
                         size_t n)
{
    const ROW_T *x = px;
    for (size_t i = 0; i < rows; i++, x += ld)
        SIMD for (size_t j = 0; j < n; j++)
        {
            const double v = (double)x[j], t = total[j];
            total[j] = ((v > t) | (v != v)) ? v : t;
        }
}

static void ROW(col_min)(double *total, const void *px, size_t ld, size_t rows,
                         size_t n)
{
    const ROW_T *x = px;
    for (size_t i = 0; i < rows; i++, x += ld)
        SIMD for (size_t j = 0; j < n; j++)
        {
            const double v = (double)x[j], t = total[j];
            total[j] = ((v < t) | (v != v)) ? v : t;
        }
}

/* ---- Softmax --------------------------------------------------------- */

static double ROW(exp_sum)(const ROW_T *x, ROW_T shift, size_t n)
{
    double total = 0;
    for (size_t at = 0; at < n; at += 2 * BLOCK) {
        const size_t end = n - at < 2 * BLOCK ? n : at + 2 * BLOCK;
        ROW_T sum = 0;
        SIMD_SUM(sum)
        for (size_t i = at; i < end; i++)
            sum += ROW_EXP(x[i] - shift);
        total += (double)sum;
    }
    return total;
}

static void ROW(softmax)(void *py, const void *px, size_t n)
{
    const ROW_T *x = px;
    ROW_T *y = py;
    const ROW_T shift = (ROW_T)ROW(max)(x, n);
    SIMD for (size_t i = 0; i < n; i++) y[i] = ROW_EXP(x[i] - shift);
    const ROW_T scale = (ROW_T)(1.0 / ROW(sum)(y, n));
    SIMD for (size_t i = 0; i < n; i++) y[i] *= scale;
}

static void ROW(log_softmax)(void *py, const void *px, size_t n)
{
    const ROW_T *x = px;
    ROW_T *y = py;
    const ROW_T shift = (ROW_T)ROW(max)(x, n);
    const ROW_T log_sum = (ROW_T)log(ROW(exp_sum)(x, shift, n));
    SIMD for (size_t i = 0; i < n; i++) y[i] = (x[i] - shift) - log_sum;
}

static void ROW(softmax_grad)(void *pgx, const void *pg, const void *py,
                              size_t n)
{
    const ROW_T *g = pg, *y = py;
    ROW_T *gx = pgx;
    const ROW_T dot = (ROW_T)ROW(dot)(g, y, 0, n);
    SIMD for (size_t i = 0; i < n; i++) gx[i] = (g[i] - dot) * y[i];
}

static void ROW(log_softmax_grad)(void *pgx, const void *pg, const void *py,
                                  size_t n)
{
    const ROW_T *g = pg, *y = py;
    ROW_T *gx = pgx;
    const ROW_T sum = (ROW_T)ROW(sum)(g, n);
    SIMD for (size_t i = 0; i < n; i++) gx[i] = g[i] - ROW_EXP(y[i]) * sum;
}

static double ROW(log_sum_exp)(const void *px, size_t n)
{
    const ROW_T *x = px;
    const ROW_T shift = (ROW_T)ROW(max)(x, n);
    return (double)shift + log(ROW(exp_sum)(x, shift, n));
}

static void ROW(soft_targets)(void *py, const void *px, double plse,
                              double pbase, double pscale, size_t n)
{
    const ROW_T *x = px;
    ROW_T *y = py;
    const ROW_T lse = (ROW_T)plse, base = (ROW_T)pbase, scale = (ROW_T)pscale;
    SIMD for (size_t i = 0; i < n; i++) y[i] =
        (ROW_EXP(x[i] - lse) - base) * scale;
}

/* ---- Normalisation --------------------------------------------------- */

static void ROW(normalize)(void *py, const void *px, brg__row_moments m,
                           const void *pw, const void *pb, size_t n)
{
    const ROW_T *x = px, *w = pw, *b = pb;
    ROW_T *y = py;
    const ROW_T mean = (ROW_T)m.mean, rstd = (ROW_T)m.rstd;
    if (w && b) {
        SIMD for (size_t i = 0; i < n; i++) y[i] =
            (x[i] - mean) * rstd * w[i] + b[i];
        return;
    }
    SIMD for (size_t i = 0; i < n; i++) y[i] = (x[i] - mean) * rstd;
    for (size_t i = 0; w && i < n; i++)
        y[i] *= w[i];
    for (size_t i = 0; b && i < n; i++)
        y[i] += b[i];
}

static void ROW(normalize_sums)(double s[2], void *pgw, void *pgb,
                                const void *pg, const void *px,
                                brg__row_moments m, const void *pw, size_t n)
{
    const ROW_T *g = pg, *x = px, *w = pw;
    ROW_T *gw = pgw, *gb = pgb;
    const ROW_T mean = (ROW_T)m.mean, rstd = (ROW_T)m.rstd;
    ROW_T s0 = 0, s1 = 0;
    if (w) {
        SIMD_SUM(s0, s1)
        for (size_t i = 0; i < n; i++) {
            const ROW_T h = (x[i] - mean) * rstd;
            gw[i] += g[i] * h;
            gb[i] += g[i];
            s0 += g[i] * w[i];
            s1 += g[i] * w[i] * h;
        }
    } else {
        SIMD_SUM(s0, s1)
        for (size_t i = 0; i < n; i++) {
            s0 += g[i];
            s1 += g[i] * ((x[i] - mean) * rstd);
        }
    }
    s[0] = (double)s0;
    s[1] = (double)s1;
}

static void ROW(normalize_grad)(void *pgx, const double s[2], const void *pg,
                                const void *px, brg__row_moments m,
                                const void *pw, size_t n)
{
    const ROW_T *g = pg, *x = px, *w = pw;
    ROW_T *gx = pgx;
    const ROW_T mean = (ROW_T)m.mean, rstd = (ROW_T)m.rstd;
    const ROW_T s0 = (ROW_T)s[0], s1 = (ROW_T)s[1];
    if (w) {
        SIMD for (size_t i = 0; i < n; i++) gx[i] =
            rstd * (g[i] * w[i] - s0 - (x[i] - mean) * rstd * s1);
    } else {
        SIMD for (size_t i = 0; i < n; i++) gx[i] =
            rstd * (g[i] - s0 - (x[i] - mean) * rstd * s1);
    }
}

static void ROW(affine)(void *py, const void *px, double pshift, double pa,
                        const void *pg, double pb, double pc, size_t n)
{
    const ROW_T *x = px, *g = pg;
    ROW_T *y = py;
    const ROW_T shift = (ROW_T)pshift, a = (ROW_T)pa, b = (ROW_T)pb;
    const ROW_T c = (ROW_T)pc;
    if (g) {
        SIMD for (size_t i = 0; i < n; i++) y[i] =
            a * (x[i] - shift) + b * g[i] + c;
    } else {
        SIMD for (size_t i = 0; i < n; i++) y[i] = a * (x[i] - shift) + c;
    }
}

static void ROW(scaled_diff)(void *py, const void *pa, const void *pb,
                             double pscale, size_t n)
{
    const ROW_T *a = pa, *b = pb, scale = (ROW_T)pscale;
    ROW_T *y = py;
    SIMD for (size_t i = 0; i < n; i++) y[i] = (a[i] - b[i]) * scale;
}

static void ROW(add_to)(void *pto, const void *pfrom, size_t n)
{
    ROW_T *to = pto;
    const ROW_T *from = pfrom;
    SIMD for (size_t i = 0; i < n; i++) to[i] += from[i];
}

#define ROW_KERNELS                                                            \
    .item = sizeof(ROW_T), .sum = ROW(sum), .sum_sq = ROW(sum_sq),             \
    .dot = ROW(dot), .sum_sq_diff = ROW(sum_sq_diff), .max = ROW(max),         \
    .min = ROW(min), .col_sum = ROW(col_sum), .col_add = ROW(col_add),         \
    .col_flush = ROW(col_flush), .col_max = ROW(col_max),                      \
    .col_min = ROW(col_min), .softmax = ROW(softmax),                          \
    .log_softmax = ROW(log_softmax), .softmax_grad = ROW(softmax_grad),        \
    .log_softmax_grad = ROW(log_softmax_grad),                                 \
    .log_sum_exp = ROW(log_sum_exp), .soft_targets = ROW(soft_targets),        \
    .normalize = ROW(normalize), .normalize_sums = ROW(normalize_sums),        \
    .normalize_grad = ROW(normalize_grad), .affine = ROW(affine),              \
    .add_to = ROW(add_to), .scaled_diff = ROW(scaled_diff)
