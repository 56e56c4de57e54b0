/* SPDX-License-Identifier: Apache-2.0
 * Convolutions as matrix products (docs/adr/0004-convolution-by-openblas.md):
 * blocks of output rows are unfolded into a matrix that stays in the cache,
 * then multiplied. Kernels of one pixel need no unfolding. Uses scratch slot 2
 * for the block. */
#include <string.h>

#include "core/base/progress.h"
#include "core/ops/conv.h"
#include "core/ops/gemm.h"
#include "core/ops/isa.h"

#define BLOCK_BYTES ((int64_t)256 * 1024)

extern const brg__conv_kernels brg__conv_kernels_base[2];
extern const brg__conv_kernels brg__conv_kernels_avx2[2];
extern const brg__conv_kernels brg__conv_kernels_avx512[2];

static const brg__conv_kernels *kernels_of(const brg__conv *v)
{
    return *BRG__ISA_PICK(brg__conv_kernels) + (v->dtype == BRG_DTYPE_F64);
}

static int64_t item_size(const brg__conv *v)
{
    return v->dtype == BRG_DTYPE_F64 ? 8 : 4;
}

/* Output rows per block, so that all blocks are of about one size. */
static int64_t block_rows(const brg__conv *v)
{
    const int64_t row = brg__conv_depth(v) * v->ow * item_size(v);
    int64_t rows = row > 0 ? BLOCK_BYTES / row : v->oh;
    rows = rows < 1 ? 1 : rows < v->oh ? rows : v->oh;
    const int64_t n_blocks = (v->oh + rows - 1) / rows;
    return (v->oh + n_blocks - 1) / n_blocks;
}

typedef struct operands {
    const brg__images *x;
    const void *weight;
    const brg__conv_bias *bias;
    void *y;
    void *gx, *gw;
} operands;

typedef brg_status (*block_fn)(const brg__conv *v, const brg__conv_block *b,
                               void *col, const operands *op);

static brg_status each_block(const brg__conv *v, block_fn fn,
                             const operands *op)
{
    const int64_t rows = block_rows(v);
    const size_t n = (size_t)(brg__conv_depth(v) * v->ow * rows);
    void *col = brg__scratch(2, n * (size_t)item_size(v), "an unfolded image");
    if (!col)
        return BRG_ERR_NOMEM;
    brg__conv_block b;
    for (b.n = 0; b.n < v->n; b.n++) {
        for (b.group = 0; b.group < v->groups; b.group++)
            for (b.y0 = 0; b.y0 < v->oh; b.y0 += rows) {
                b.y1 = b.y0 + rows < v->oh ? b.y0 + rows : v->oh;
                BRG_TRY(fn(v, &b, col, op));
            }
        brg__progress_poll();
    }
    return BRG_OK;
}

/* ---- The operands of a block's product ----------------------------------- */

/* The block's part of a row-major y. */
static void *y_part(const brg__conv *v, const void *y, const brg__conv_block *b)
{
    const int64_t channel = b->n * v->o + b->group * brg__conv_group_o(v);
    return (char *)y + (channel * v->oh + b->y0) * v->ow * item_size(v);
}

static void *weight_part(const brg__conv *v, const void *weight, int64_t group)
{
    return (char *)weight +
           group * brg__conv_group_o(v) * brg__conv_depth(v) * item_size(v);
}

/* The planes of the block's group in a row-major gx. */
static void *gx_part(const brg__conv *v, void *gx, const brg__conv_block *b)
{
    const int64_t channel = b->n * v->c + b->group * brg__conv_group_c(v);
    return (char *)gx + channel * v->h * v->w * item_size(v);
}

/* Outputs are made of single pixels in order: planes are unfolded as they
 * are. */
static bool is_pointwise(const brg__conv *v)
{
    return v->kh == 1 && v->kw == 1 && v->stride[0] == 1 && v->stride[1] == 1 &&
           v->padding[0] == 0 && v->padding[1] == 0;
}

/* The taps by pixels of the block: in place, or unfolded to col. */
static brg__mat unfolded(const brg__conv *v, const brg__images *x,
                         const brg__conv_block *b, void *col)
{
    const int64_t *stride = x->stride;
    const int64_t at =
        b->n * stride[0] + b->group * brg__conv_group_c(v) * stride[1];
    const char *image = (const char *)x->at + at * item_size(v);
    if (is_pointwise(v) && stride[3] == 1 && stride[2] == v->w)
        return brg__mat_of(image + b->y0 * v->w * item_size(v), stride[1], 1);
    kernels_of(v)->unfold(v, image, stride, b, col);
    return brg__mat_of(col, (b->y1 - b->y0) * v->ow, 1);
}

/* ---- The three products ------------------------------------------------------ */

static brg_status forward_block(const brg__conv *v, const brg__conv_block *b,
                                void *col, const operands *op)
{
    const int64_t k = brg__conv_depth(v);
    void *y = y_part(v, op->y, b);
    if (op->bias)
        kernels_of(v)->fill(v, op->bias, b, y);
    const brg__gemm g = {
        .dtype = v->dtype,
        .accumulate = op->bias != NULL,
        .m = brg__conv_group_o(v),
        .n = (b->y1 - b->y0) * v->ow,
        .k = k,
        .a = brg__mat_of(weight_part(v, op->weight, b->group), k, 1),
        .b = unfolded(v, op->x, b, col),
        .alpha = 1.0,
        .c = y,
        .ldc = v->oh * v->ow};
    return brg__gemm_run(&g);
}

brg_status brg__conv_forward(const brg__conv *v, const brg__images *x,
                             const void *weight, const brg__conv_bias *bias,
                             void *y)
{
    const operands op = {.x = x, .weight = weight, .bias = bias, .y = y};
    return each_block(v, forward_block, &op);
}

static brg_status grad_input_block(const brg__conv *v, const brg__conv_block *b,
                                   void *col, const operands *op)
{
    const int64_t n = (b->y1 - b->y0) * v->ow, k = brg__conv_depth(v);
    void *gx = gx_part(v, op->gx, b);
    brg__gemm g = {.dtype = v->dtype,
                   .m = k,
                   .n = n,
                   .k = brg__conv_group_o(v),
                   .a = brg__mat_of(weight_part(v, op->weight, b->group), 1, k),
                   .b = brg__mat_of(y_part(v, op->y, b), v->oh * v->ow, 1),
                   .alpha = 1.0,
                   .c = col,
                   .ldc = n};
    if (is_pointwise(v)) {
        g.c = (char *)gx + b->y0 * v->w * item_size(v);
        g.ldc = v->h * v->w;
        return brg__gemm_run(&g);
    }
    BRG_TRY(brg__gemm_run(&g));
    if (b->y0 == 0)
        memset(gx, 0,
               (size_t)(brg__conv_group_c(v) * v->h * v->w * item_size(v)));
    kernels_of(v)->fold(v, col, b, gx);
    return BRG_OK;
}

brg_status brg__conv_grad_input(const brg__conv *v, const void *g,
                                const void *weight, void *gx)
{
    const operands op = {.weight = weight, .y = (void *)g, .gx = gx};
    return each_block(v, grad_input_block, &op);
}

static brg_status grad_weight_block(const brg__conv *v,
                                    const brg__conv_block *b, void *col,
                                    const operands *op)
{
    const brg__mat taps = unfolded(v, op->x, b, col);
    const int64_t k = brg__conv_depth(v);
    const brg__gemm g = {.dtype = v->dtype,
                         .accumulate = b->n > 0 || b->y0 > 0,
                         .m = brg__conv_group_o(v),
                         .n = k,
                         .k = (b->y1 - b->y0) * v->ow,
                         .a =
                             brg__mat_of(y_part(v, op->y, b), v->oh * v->ow, 1),
                         .b = brg__mat_of(taps.at, taps.col, taps.row),
                         .alpha = 1.0,
                         .c = weight_part(v, op->gw, b->group),
                         .ldc = k};
    return brg__gemm_run(&g);
}

brg_status brg__conv_grad_weight(const brg__conv *v, const void *g,
                                 const brg__images *x, void *gw)
{
    const operands op = {.x = x, .y = (void *)g, .gw = gw};
    return each_block(v, grad_weight_block, &op);
}
