/* SPDX-License-Identifier: Apache-2.0
 * The inner kernels of f32 products, compiled once per instruction set. All
 * are written with the compiler's vectors: two of them are a panel row, and
 * mr times two accumulators fill the registers. */
#include "core/ops/gemm_kernels.h"

#include <string.h>

#include "core/ops/isa.h"
#include "core/ops/vectors.h"

#if defined(BRG_ISA_AVX512)
#define MR 8
#else
#define MR 6
#endif
#define NR (2 * LANES)

/* ---- Transposition -------------------------------------------------------- */

/* One perfect shuffle of n vectors; log2(n) of them put the elements of lane
 * 0 of all vectors first, then those of lane 1, and so on. */
INLINE void shuffle_step(vec *x, int n)
{
    vec y[LANES];
    for (int i = 0; i < n / 2; i++) {
        y[2 * i] = zip_low(x[i], x[i + n / 2]);
        y[2 * i + 1] = zip_high(x[i], x[i + n / 2]);
    }
    for (int i = 0; i < n; i++)
        x[i] = y[i];
}

INLINE void transpose_block(vec x[LANES])
{
    for (int n = 1; n < LANES; n *= 2)
        shuffle_step(x, LANES);
}

static void transpose_edge(float *to, int64_t ldt, const float *from,
                           int64_t ldf, int64_t rows, int64_t cols)
{
    for (int64_t j = 0; j < cols; j++)
        for (int64_t i = 0; i < rows; i++)
            to[j * ldt + i] = from[i * ldf + j];
}

INLINE void transpose_at(float *to, int64_t ldt, const float *from, int64_t ldf)
{
    vec x[LANES];
    for (int r = 0; r < LANES; r++)
        x[r] = load(from + r * ldf);
    transpose_block(x);
    for (int r = 0; r < LANES; r++)
        store(to + r * ldt, x[r]);
}

/* By square blocks, of which the last of a row or column overlaps the one
 * before it. */
static void transpose(float *to, int64_t ldt, const float *from, int64_t ldf,
                      int64_t rows, int64_t cols)
{
    if (rows < LANES || cols < LANES) {
        transpose_edge(to, ldt, from, ldf, rows, cols);
        return;
    }
    for (int64_t i = 0; i < rows; i += LANES) {
        const int64_t row = i + LANES <= rows ? i : rows - LANES;
        for (int64_t j = 0; j < cols; j += LANES) {
            const int64_t col = j + LANES <= cols ? j : cols - LANES;
            transpose_at(to + col * ldt + row, ldt, from + row * ldf + col,
                         ldf);
        }
    }
}

/* ---- Packing ---------------------------------------------------------------- */

static void pack_panel(float *panel, const float *b, int64_t row, int64_t col,
                       int64_t k, int cols)
{
    if (row == 1 && col != 1) {
        transpose(panel, NR, b, col, cols, k);
    } else {
        for (int64_t i = 0; i < k; i++)
            for (int j = 0; j < cols; j++)
                panel[i * NR + j] = b[i * row + j * col];
    }
    if (cols < NR)
        for (int64_t i = 0; i < k; i++)
            for (int j = cols; j < NR; j++)
                panel[i * NR + j] = 0;
}

static void pack_rows(float *to, const float *a, int64_t row, int64_t col,
                      int64_t k, int rows)
{
    if (row == 1 && rows == MR)
        for (int64_t i = 0; i < k; i++)
            memcpy(to + i * MR, a + i * col, MR * sizeof *to);
    else
        for (int64_t i = 0; i < k; i++)
            for (int j = 0; j < rows; j++)
                to[i * MR + j] = a[i * col + j * row];
}

/* ---- The tile ------------------------------------------------------------------ */

/* A tile that is cut off at an edge, from a whole one in `whole`. */
static void merge_edge(const brg__tile *t, const float *whole)
{
    const int64_t to_i = t->is_flipped ? 1 : t->ldc;
    const int64_t to_j = t->is_flipped ? t->ldc : 1;
    for (int i = 0; i < t->rows; i++)
        for (int j = 0; j < t->cols; j++) {
            float *c = t->c + i * to_i + j * to_j;
            float x = t->alpha * whole[i * NR + j];
            if (t->mode == BRG__GEMM_ADD)
                x += *c;
            else if (t->mode == BRG__GEMM_BIAS)
                x += t->bias[t->is_flipped ? i : j];
            *c = x;
        }
}

#if MR == 8
typedef float vec8 __attribute__((vector_size(32), aligned(4), may_alias));

/* nv times LANES columns of 8 rows, each column a row of c. */
INLINE void merge_flipped(const brg__tile *t, vec acc[MR][2], int nv)
{
    float columns[NR * MR] __attribute__((aligned(64)));
    for (int v = 0; v < nv; v++) {
        vec x[MR];
        for (int i = 0; i < MR; i++)
            x[i] = acc[i][v];
        for (int n = 1; n < MR; n *= 2)
            shuffle_step(x, MR);
        for (int i = 0; i < MR; i++)
            store(columns + v * LANES * MR + i * LANES, x[i]);
    }
    for (int j = 0; j < t->cols; j++) {
        vec8 *c = (vec8 *)(t->c + j * t->ldc);
        vec8 x = t->alpha * *(const vec8 *)(columns + j * MR);
        if (t->mode == BRG__GEMM_ADD)
            x += *c;
        else if (t->mode == BRG__GEMM_BIAS)
            x += *(const vec8 *)t->bias;
        *c = x;
    }
}
#endif

INLINE void merge_rows(const brg__tile *t, vec acc[MR][2], int rows, int nv)
{
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < nv; v++) {
            float *c = t->c + i * t->ldc + v * LANES;
            vec x = t->alpha * acc[i][v];
            if (t->mode == BRG__GEMM_ADD)
                x += load(c);
            else if (t->mode == BRG__GEMM_BIAS)
                x += load(t->bias + v * LANES);
            store(c, x);
        }
}

INLINE void merge(const brg__tile *t, vec acc[MR][2], int rows, int nv)
{
    if (!t->is_flipped && t->cols == nv * LANES) {
        merge_rows(t, acc, rows, nv);
        return;
    }
#if MR == 8
    if (t->is_flipped && rows == MR) {
        merge_flipped(t, acc, nv);
        return;
    }
#endif
    float whole[MR * NR];
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < nv; v++)
            store(whole + i * NR + v * LANES, acc[i][v]);
    merge_edge(t, whole);
}

/* `rows`, `nv` (vectors per panel row) and `packs` are constants where this
 * is called, so that the accumulators are registers. */
INLINE void tile_of(const brg__tile *t, int rows, int nv, bool packs)
{
    vec acc[MR][2] = {0};
    const float *a[MR];
    for (int i = 0; i < rows; i++)
        a[i] = t->a[i];
    const int64_t step = t->a_step, end = t->k * step;
    float *panel = t->panel;
    const int64_t *b_row = t->b_rows;
    for (int64_t at = 0; at < end; at += step, panel += NR) {
        vec b[2];
        if (packs) {
            const float *from = t->b + *b_row++;
            for (int v = 0; v < 2; v++) {
                b[v] = load(from + v * LANES);
                __builtin_prefetch(from + NR + v * LANES);
                store(panel + v * LANES, b[v]);
            }
        } else {
            for (int v = 0; v < nv; v++)
                b[v] = load(panel + v * LANES);
        }
        for (int i = 0; i < rows; i++) {
            const float x = a[i][at];
            for (int v = 0; v < nv; v++)
                acc[i][v] += x * b[v];
        }
    }
    merge(t, acc, rows, nv);
}

#define TILE(rows)                                                             \
    static void tile_##rows(const brg__tile *t)                                \
    {                                                                          \
        if (t->b)                                                              \
            tile_of(t, rows, 2, true);                                         \
        else if (t->cols > LANES)                                              \
            tile_of(t, rows, 2, false);                                        \
        else                                                                   \
            tile_of(t, rows, 1, false);                                        \
    }

TILE(1)
TILE(2)
TILE(3)
TILE(4)
TILE(5)
TILE(6)
#if MR > 6
TILE(7)
TILE(8)
#endif

static void tile(const brg__tile *t)
{
    static void (*const by_rows[])(const brg__tile *) = {
        tile_1,
        tile_2,
        tile_3,
        tile_4,
        tile_5,
        tile_6,
#if MR > 6
        tile_7,
        tile_8,
#endif
    };
    by_rows[t->rows - 1](t);
}

extern const brg__gemm_kernels BRG__ISA_NAME(brg__gemm_f32);
const brg__gemm_kernels BRG__ISA_NAME(brg__gemm_f32) = {
    .mr = MR,
    .nr = NR,
    .tile = tile,
    .pack_panel = pack_panel,
    .pack_rows = pack_rows,
    .transpose = transpose};
