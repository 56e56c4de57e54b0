/* SPDX-License-Identifier: Apache-2.0
 * Matrix products for the machine that compiles this: text that plans with
 * kernels of their own compile once (products.c), no header of the library.
 *
 * c is made tile by tile, ROWS rows by two vectors, whose sums stay in
 * registers. Columns of b lie packed in the first cache, rows of a in the
 * second. A few rows times a transposed matrix are inner products instead:
 * nothing is packed, for the matrix is read only once. */
#include <stddef.h>

#if defined(__AVX512F__)
#define LANES 16
#define ROWS 12
#elif defined(__AVX2__)
#define LANES 8
#define ROWS 6
#else
#define LANES 4
#define ROWS 6
#endif
#define COLS (2 * LANES)
#define K_BLOCK 512
#define B_BLOCK 131072 /* elements of b in the second cache */
#define SPACE (B_BLOCK + K_BLOCK * ROWS)
#define FEW_ROWS 32           /* inner products up to here, */
#define LONG_ROWS (8 * LANES) /* of rows no shorter than this */
#define DIRECT_ROWS 24        /* b is read where it is up to here */

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef float vec_at
    __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float four __attribute__((vector_size(16)));
typedef float four_at __attribute__((vector_size(16), aligned(4), may_alias));
typedef int picks __attribute__((vector_size(16)));

#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#define PICK(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define UNROLL _Pragma("GCC unroll 16")
#define PICK(a, b, i, j, k, l) __builtin_shuffle(a, b, (picks){i, j, k, l})
#endif

/* c (m,n) = alpha * a (m,k) b (k,n) + bias (n), or added to c. Elements of a
 * and b lie a_row and a_col, b_row and b_col apart; one of b_row, b_col is 1.
 * space: floats, as many as brg_product_space says, at a cache line. */
typedef struct brg_product {
    long m, n, k;
    const float *a, *b, *bias;
    long a_row, a_col, b_row, b_col;
    float *c;
    long ldc;
    float alpha;
    int is_added;
    float *space;
} brg_product;

/* ---- Tiles ----------------------------------------------------------------- */

/* Where a tile's part of the product ends up. */
typedef struct target {
    float *c;
    long ldc;
    const float *bias;
    float alpha;
    int is_added;
} target;

INLINE void put_vec(const target *to, long r, int v, vec sum)
{
    vec_at *c = (vec_at *)(to->c + r * to->ldc + v * LANES);
    sum *= to->alpha - (vec){0};
    if (to->bias)
        sum += *(const vec_at *)(to->bias + v * LANES);
    if (to->is_added)
        sum += *c;
    *c = sum;
}

INLINE void tile(int rows, int cols, long k, const float *a, long a_row,
                 long a_col, const float *b, long b_row, const target *to)
{
    vec sum[ROWS][2];
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int v = 0; v < cols; v++)
        sum[r][v] = (vec){0};
    for (long l = 0; l < k; l++, a += a_col, b += b_row) {
        vec x[2];
        UNROLL for (int v = 0; v < cols; v++) x[v] =
            *(const vec_at *)(b + v * LANES);
        UNROLL for (int r = 0; r < rows; r++)
        {
            const vec s = a[r * a_row] - (vec){0};
            UNROLL for (int v = 0; v < cols; v++) sum[r][v] += s * x[v];
        }
    }
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int v = 0; v < cols; v++)
        put_vec(to, r, v, sum[r][v]);
}

/* ---- Packing --------------------------------------------------------------- */

static void turn_four(const float *b, long b_col, float *to)
{
    four r0 = *(const four_at *)b, r1 = *(const four_at *)(b + b_col);
    four r2 = *(const four_at *)(b + 2 * b_col);
    four r3 = *(const four_at *)(b + 3 * b_col);
    const four s0 = PICK(r0, r1, 0, 4, 1, 5), s1 = PICK(r0, r1, 2, 6, 3, 7);
    const four s2 = PICK(r2, r3, 0, 4, 1, 5), s3 = PICK(r2, r3, 2, 6, 3, 7);
    *(four_at *)to = PICK(s0, s2, 0, 1, 4, 5);
    *(four_at *)(to + COLS) = PICK(s0, s2, 2, 3, 6, 7);
    *(four_at *)(to + 2 * COLS) = PICK(s1, s3, 0, 1, 4, 5);
    *(four_at *)(to + 3 * COLS) = PICK(s1, s3, 2, 3, 6, 7);
}

/* A panel of b, (k,n) with n at most COLS, rows COLS apart. */
static void pack_b(long k, long n, const float *b, long b_row, long b_col,
                   float *to)
{
    if (b_col == 1) {
        for (long l = 0; l < k; l++)
            for (long j = 0; j < n; j += LANES)
                *(vec_at *)(to + l * COLS + j) =
                    *(const vec_at *)(b + l * b_row + j);
        return;
    }
    long l = 0;
    for (; l + 4 <= k; l += 4)
        for (long j = 0; j < n; j += 4)
            turn_four(b + l + j * b_col, b_col, to + l * COLS + j);
    for (; l < k; l++)
        for (long j = 0; j < n; j++)
            to[l * COLS + j] = b[l + j * b_col];
}

/* ---- Inner products -------------------------------------------------------- */

INLINE float total(vec x)
{
    four part[LANES / 4];
    *(vec_at *)part = x;
    UNROLL for (int h = LANES / 8; h > 0; h /= 2)
        UNROLL for (int i = 0; i < h; i++) part[i] += part[i + h];
    four s = part[0];
    s += PICK(s, s, 2, 3, 0, 1);
    s += PICK(s, s, 1, 0, 3, 2);
    return s[0];
}

INLINE void inner(int rows, int cols, long i, long j, const brg_product *p)
{
    const float *a = p->a + i * p->a_row, *b = p->b + j * p->b_col;
    vec sum[8][3];
    long l = 0;
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int v = 0; v < cols; v++)
        sum[r][v] = (vec){0};
    for (; l + LANES <= p->k; l += LANES) {
        vec y[3];
        UNROLL for (int v = 0; v < cols; v++) y[v] =
            *(const vec_at *)(b + v * p->b_col + l);
        UNROLL for (int r = 0; r < rows; r++)
        {
            const vec x = *(const vec_at *)(a + r * p->a_row + l);
            UNROLL for (int v = 0; v < cols; v++) sum[r][v] += x * y[v];
        }
    }
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int v = 0; v < cols; v++)
    {
        float s = total(sum[r][v]);
        for (long t = l; t < p->k; t++)
            s += a[r * p->a_row + t] * b[v * p->b_col + t];
        float *c = p->c + (i + r) * p->ldc + j + v;
        s = p->alpha * s + (p->bias ? p->bias[j + v] : 0);
        *c = p->is_added ? *c + s : s;
    }
}

static void inner_products(const brg_product *p)
{
    long j = 0;
#define STRIP(cols)                                                            \
    {                                                                          \
        long i = 0;                                                            \
        for (; i + 8 <= p->m; i += 8)                                          \
            inner(8, cols, i, j, p);                                           \
        for (; i + 4 <= p->m; i += 4)                                          \
            inner(4, cols, i, j, p);                                           \
        for (; i < p->m; i++)                                                  \
            inner(1, cols, i, j, p);                                           \
    }
    for (; j + 3 <= p->n; j += 3)
        STRIP(3)
    for (; j < p->n; j++)
        STRIP(1)
}

/* ---- The whole ------------------------------------------------------------- */

/* All rows by columns [j, j + n) over k [l, l + k). */
typedef struct sweep {
    const brg_product *p;
    long j, n, l, k;
    long i; /* the next row */
    int is_direct;
    float *panels; /* of b, k * COLS each; behind them room for rows of a */
} sweep;

INLINE void sweep_rows(int rows, sweep *s)
{
    const brg_product *p = s->p;
    for (; s->i + rows <= p->m; s->i += rows) {
        const float *a = p->a + s->i * p->a_row + s->l * p->a_col;
        long a_row = p->a_row, a_col = p->a_col;
        if (a_row == 1 && a_col != rows && s->n > 8 * COLS) {
            float *to = p->space + B_BLOCK;
            for (long l = 0; l < s->k; l++)
                UNROLL for (int r = 0; r < rows; r++) to[l * rows + r] =
                    a[l * a_col + r];
            a = to;
            a_col = rows;
        }
        for (long j = 0; j < s->n; j += COLS) {
            const target to = {p->c + s->i * p->ldc + s->j + j, p->ldc,
                               p->bias && s->l == 0 ? p->bias + s->j + j : NULL,
                               p->alpha, p->is_added || s->l > 0};
            const float *b = s->is_direct ? p->b + s->l * p->b_row + s->j + j
                                          : s->panels + j * s->k;
            const long b_row = s->is_direct ? p->b_row : COLS;
            if (s->n - j >= COLS)
                tile(rows, 2, s->k, a, a_row, a_col, b, b_row, &to);
            else
                tile(rows, 1, s->k, a, a_row, a_col, b, b_row, &to);
        }
    }
}

static void run_sweep(sweep *s)
{
    const brg_product *p = s->p;
    for (long j = 0; j < s->n && !s->is_direct; j += COLS)
        pack_b(s->k, s->n - j < COLS ? s->n - j : COLS,
               p->b + s->l * p->b_row + (s->j + j) * p->b_col, p->b_row,
               p->b_col, s->panels + j * s->k);
    sweep_rows(ROWS, s);
    if (ROWS > 8)
        sweep_rows(8, s);
    sweep_rows(4, s);
    sweep_rows(2, s);
    sweep_rows(1, s);
}

const long brg_product_space = SPACE;

/* 0: not one of these. */
int brg_product_run(const brg_product *p)
{
    if (p->m < 2 || p->n < LANES || p->k < 1 ||
        (p->b_row != 1 && p->b_col != 1))
        return 0;
    if (p->b_row == 1 && p->b_col != 1 && p->m <= FEW_ROWS && p->a_col == 1 &&
        p->k >= LONG_ROWS) {
        inner_products(p);
        return 1;
    }
    if (p->n % LANES != 0)
        return 0;
    for (long l = 0; l < p->k; l += K_BLOCK) {
        const long k = p->k - l < K_BLOCK ? p->k - l : K_BLOCK;
        const long cols = B_BLOCK / k / COLS * COLS;
        for (long j = 0; j < p->n; j += cols) {
            sweep s = {.p = p,
                       .j = j,
                       .n = p->n - j < cols ? p->n - j : cols,
                       .l = l,
                       .k = k,
                       .is_direct = p->b_col == 1 && p->m <= DIRECT_ROWS,
                       .panels = p->space};
            run_sweep(&s);
        }
    }
    return 1;
}
