/* SPDX-License-Identifier: Apache-2.0
 * Products by a kernel of their own: see products.h. */
#include "compile/fuse/products.h"

#include <string.h>

#include <compile/fuse/product_source.h>

#include "core/base/error.h"

/* As product_text.h has it; a change of either is a change of both. */
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

static bool run(const brg__gemm_maker *self, const brg__gemm *g)
{
    const brg__products *p = (const brg__products *)self;
    if (g->dtype != BRG_DTYPE_F32)
        return false;
    brg_product product = {.m = (long)g->m,
                           .n = (long)g->n,
                           .k = (long)g->k,
                           .a = g->a.at,
                           .b = g->b.at,
                           .bias = g->bias,
                           .a_row = (long)g->a.row,
                           .a_col = (long)g->a.col,
                           .b_row = (long)g->b.row,
                           .b_col = (long)g->b.col,
                           .c = g->c,
                           .ldc = (long)g->ldc,
                           .alpha = (float)g->alpha,
                           .is_added = g->accumulate};
    product.space = brg__scratch(1, p->space * sizeof(float), "a product");
    if (!product.space) {
        brg_error_clear(); /* the matrix library may do with less */
        return false;
    }
    return p->run(&product) != 0;
}

brg_status brg__products_load(brg__products *p)
{
    const long *space = NULL;
    *p = (brg__products){.maker = {run}};
    BRG_TRY(brg__kernels_load_text(&p->kernels, brg__product_source));
    if (!p->kernels)
        return BRG_OK;
    void *symbol = brg__kernels_symbol(p->kernels, "brg_product_run");
    memcpy(&p->run, &symbol, sizeof symbol);
    space = brg__kernels_symbol(p->kernels, "brg_product_space");
    if (p->run && space) {
        p->space = (size_t)*space;
        return BRG_OK;
    }
    brg__products_release(p);
    return BRG_FAIL(BRG_ERR_INTERNAL, "the products' file lacks a symbol");
}

void brg__products_release(brg__products *p)
{
    brg__kernels_release(p->kernels);
    *p = (brg__products){0};
}
