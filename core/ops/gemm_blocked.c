/* SPDX-License-Identifier: Apache-2.0
 * Blocked f32 products. After K. Goto and R. van de Geijn, "Anatomy of
 * High-Performance Matrix Multiplication" (2008), with three differences that
 * small products want: rows of a are read in place if they are runs of
 * adjacent elements, a row-major b is packed by the first tile that uses it,
 * and a product whose b is cheaper to read as rows is computed transposed.
 *
 *   for each block of n columns, of k, of m rows:
 *     for each panel of b:          kc * nr floats
 *       for each tile of rows:      mr * kc floats */
#include "core/ops/gemm_kernels.h"

#include <string.h>

#include "core/base/alloc.h"
#include "core/ops/isa.h"
#include "core/ops/op.h"

/* Sizes found by measurement. Panels are longer than the first cache: they
 * are read in order, which the second is fast enough for, and c is visited
 * less often. */
#define KC 768
#define MC 64
#define NC 512

extern const brg__gemm_kernels brg__gemm_f32_base;
extern const brg__gemm_kernels brg__gemm_f32_avx2;
extern const brg__gemm_kernels brg__gemm_f32_avx512;

const brg__gemm_kernels *brg__gemm_kernels_get(void)
{
    return BRG__ISA_PICK(brg__gemm_f32);
}

static int64_t min_of(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* n cut into equal pieces of at most `most`, rounded up to `unit`. */
static int64_t piece(int64_t n, int64_t most, int64_t unit)
{
    const int64_t n_pieces = (n + most - 1) / most;
    const int64_t size = (n + n_pieces - 1) / n_pieces;
    return (size + unit - 1) / unit * unit;
}

/* A product under way. */
typedef struct run {
    brg__product p;
    const brg__gemm_kernels *kernels;
    bool is_flipped; /* c is to be stored transposed */
    bool packs_rows; /* rows of a are packed first */
    int64_t kc, mc, nc;
    float *panels, *rows;
    int64_t *b_rows; /* where the kc rows of b start, if read in place */
} run;

/* The part [i, i + m) x [j, j + n), over [k0, k0 + k). */
typedef struct block {
    int64_t i, m, j, n, k0, k;
} block;

static void aim_rows(const run *r, const block *b, int64_t i, brg__tile *t)
{
    const brg__product *p = &r->p;
    const int mr = r->kernels->mr;
    t->rows = (int)min_of(mr, b->m - i);
    if (r->packs_rows) {
        for (int j = 0; j < t->rows; j++)
            t->a[j] = r->rows + i * b->k + j;
        t->a_step = mr;
        return;
    }
    for (int j = 0; j < t->rows; j++) {
        const int64_t row = b->i + i + j;
        const int64_t at = p->a_rows ? p->a_rows[row] : row * p->a_row;
        t->a[j] = p->a + at + b->k0 * p->a_col;
    }
    t->a_step = p->a_col;
}

static void aim_output(const run *r, const block *b, int64_t i, int64_t j,
                       brg__tile *t)
{
    const brg__product *p = &r->p;
    const int64_t row = b->i + i, col = b->j + j;
    t->c = p->c + (r->is_flipped ? col * p->ldc + row : row * p->ldc + col);
    t->bias = p->bias ? p->bias + (r->is_flipped ? row : col) : NULL;
}

/* All rows of the block by one panel, which the first tile packs if b can be
 * read in place and it has not been yet. */
static void run_panel(const run *r, const block *b, int64_t j, brg__tile *t)
{
    const brg__product *p = &r->p;
    const bool is_first = b->i == 0;
    const int nr = r->kernels->nr;
    t->cols = (int)min_of(nr, b->n - j);
    t->panel = r->panels + j * b->k;
    t->b = NULL;
    const int64_t col = b->j + j;
    if (is_first && p->b_col == 1 && col + nr <= p->n + p->b_slack) {
        t->b = p->b + col;
    } else if (is_first) {
        const float *from = p->b + b->k0 * p->b_row + col * p->b_col;
        r->kernels->pack_panel(t->panel, from, p->b_row, p->b_col, b->k,
                               t->cols);
    }
    for (int64_t i = 0; i < b->m; i += r->kernels->mr) {
        aim_rows(r, b, i, t);
        aim_output(r, b, i, j, t);
        r->kernels->tile(t);
        t->b = NULL;
    }
}

static void pack_rows(const run *r, const block *b)
{
    const brg__product *p = &r->p;
    const int mr = r->kernels->mr;
    for (int64_t i = 0; i < b->m; i += mr)
        r->kernels->pack_rows(
            r->rows + i * b->k, p->a + (b->i + i) * p->a_row + b->k0 * p->a_col,
            p->a_row, p->a_col, b->k, (int)min_of(mr, b->m - i));
}

static void run_block(const run *r, const block *b)
{
    const brg__product *p = &r->p;
    brg__tile t = {.k = b->k,
                   .b_rows = p->b_rows ? p->b_rows + b->k0 : r->b_rows,
                   .is_flipped = r->is_flipped,
                   .mode = b->k0 > 0 ? BRG__GEMM_ADD : p->mode,
                   .alpha = p->alpha,
                   .ldc = p->ldc};
    if (r->packs_rows)
        pack_rows(r, b);
    for (int64_t j = 0; j < b->n; j += r->kernels->nr)
        run_panel(r, b, j, &t);
}

static void run_blocks(run *r)
{
    const brg__product *p = &r->p;
    block b;
    for (b.j = 0; b.j < p->n; b.j += r->nc) {
        b.n = min_of(r->nc, p->n - b.j);
        for (b.k0 = 0; b.k0 < p->k; b.k0 += r->kc) {
            b.k = min_of(r->kc, p->k - b.k0);
            if (!p->b_rows)
                for (int64_t k = 0; k < b.k; k++)
                    r->b_rows[k] = (b.k0 + k) * p->b_row;
            for (b.i = 0; b.i < p->m; b.i += r->mc) {
                b.m = min_of(r->mc, p->m - b.i);
                run_block(r, &b);
            }
        }
    }
}

static brg_status make_scratch(run *r)
{
    const int64_t mr = r->kernels->mr, nr = r->kernels->nr;
    const int64_t mc = (r->mc + mr - 1) / mr * mr;
    const int64_t n_panels = r->kc * ((r->nc + nr - 1) / nr * nr);
    const int64_t n_rows = r->packs_rows ? mc * r->kc : 0;
    const int64_t n_floats = n_panels + n_rows;
    const size_t nbytes =
        (size_t)n_floats * sizeof(float) + (size_t)r->kc * sizeof(int64_t);
    r->b_rows = brg__scratch(0, nbytes, "a matrix product");
    if (!r->b_rows)
        return BRG_ERR_NOMEM;
    r->panels = (float *)(r->b_rows + r->kc);
    r->rows = r->panels + n_panels;
    return BRG_OK;
}

/* Cycles, roughly: the tiles' own, and those of packing and of storing. */
static double cost(const brg__product *p, const brg__gemm_kernels *kernels,
                   bool is_flipped)
{
    const double m = (double)piece(p->m, p->m, kernels->mr);
    const double n = (double)piece(p->n, p->n, kernels->nr / 2);
    const double k = (double)p->k;
    double cycles = m * n * k / kernels->nr;
    cycles += (double)p->n * k * (p->b_col == 1 ? 0.05 : 0.25);
    cycles += (double)p->m * k * (p->a_col == 1 ? 0.0 : 0.1);
    if (is_flipped)
        cycles += m * n * (kernels->mr == 8 ? 0.2 : 1.0);
    return cycles;
}

static brg__product flip(const brg__product *p)
{
    brg__product f = *p;
    f.m = p->n;
    f.n = p->m;
    f.a = p->b;
    f.a_row = p->b_col;
    f.a_col = p->b_row;
    f.b = p->a;
    f.b_row = p->a_col;
    f.b_col = p->a_row;
    f.b_slack = 0;
    return f;
}

/* Rows of a that lie a multiple of a page apart fall into the same lines of
 * the first cache, which pays for packing where they are used often. */
static bool packs_rows(const brg__product *p)
{
    if (p->a_rows)
        return false;
    return p->a_col != 1 || (p->a_row % 1024 == 0 && p->n >= 512);
}

brg_status brg__product_run(const brg__product *p)
{
    run r = {.p = *p, .kernels = brg__gemm_kernels_get()};
    if (!p->a_rows && !p->b_rows) {
        const brg__product flipped = flip(p);
        if (cost(&flipped, r.kernels, true) < cost(p, r.kernels, false)) {
            r.p = flipped;
            r.is_flipped = true;
        }
    }
    r.packs_rows = packs_rows(&r.p);
    r.kc = piece(r.p.k, KC, 8);
    r.mc = piece(r.p.m, MC, r.kernels->mr);
    r.nc = piece(r.p.n, NC, r.kernels->nr);
    BRG_TRY(make_scratch(&r));
    run_blocks(&r);
    return BRG_OK;
}
