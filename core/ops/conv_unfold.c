/* SPDX-License-Identifier: Apache-2.0
 * Convolutions of any geometry in f32 and f64: blocks of output rows are
 * unfolded into a matrix that stays in the cache, then multiplied. Uses
 * scratch slot 2 for the block. */
#include <string.h>

#include "core/base/alloc.h"
#include "core/base/progress.h"
#include "core/ops/conv.h"
#include "core/ops/gemm.h"

#define REAL float
#define NAME(x) x##_f32
#include "core/ops/conv_unfold_body.h"
#undef REAL
#undef NAME
#define REAL double
#define NAME(x) x##_f64
#include "core/ops/conv_unfold_body.h"
#undef REAL
#undef NAME

#define BLOCK_BYTES ((int64_t)256 * 1024)

static int64_t item_size(const brg__conv *v)
{
    return v->dtype == BRG_DTYPE_F64 ? 8 : 4;
}

/* Output rows per block. */
static int64_t block_rows(const brg__conv *v)
{
    const int64_t row = brg__conv_depth(v) * v->ow * item_size(v);
    const int64_t rows = row > 0 ? BLOCK_BYTES / row : v->oh;
    return rows < 1 ? 1 : rows < v->oh ? rows : v->oh;
}

static void *block_scratch(const brg__conv *v)
{
    const size_t n = (size_t)(brg__conv_depth(v) * v->ow * block_rows(v));
    return brg__scratch(2, n * (size_t)item_size(v), "an unfolded image");
}

/* One block of one group of one image. */
typedef struct block {
    int64_t n, group;
    int64_t y0, y1;
} block;

static void unfold(const brg__conv *v, const brg__images *x, const block *b,
                   void *to)
{
    const int64_t at =
        b->n * x->stride[0] + b->group * brg__conv_group_c(v) * x->stride[1];
    if (v->dtype == BRG_DTYPE_F64)
        unfold_f64(v, (const double *)x->at + at, x->stride, b->y0, b->y1, to);
    else
        unfold_f32(v, (const float *)x->at + at, x->stride, b->y0, b->y1, to);
}

/* The block's part of a row-major y. */
static void *y_part(const brg__conv *v, const void *y, const block *b)
{
    const int64_t channel = b->n * v->o + b->group * brg__conv_group_o(v);
    return (char *)y + (channel * v->oh + b->y0) * v->ow * item_size(v);
}

static void *weight_part(const brg__conv *v, const void *weight, int64_t group)
{
    return (char *)weight +
           group * brg__conv_group_o(v) * brg__conv_depth(v) * item_size(v);
}

typedef brg_status (*block_fn)(const brg__conv *v, const block *b, void *col,
                               const void *user);

static brg_status each_block(const brg__conv *v, block_fn fn, const void *user)
{
    void *col = block_scratch(v);
    if (!col)
        return BRG_ERR_NOMEM;
    const int64_t rows = block_rows(v);
    block b;
    for (b.n = 0; b.n < v->n; b.n++) {
        for (b.group = 0; b.group < v->groups; b.group++)
            for (b.y0 = 0; b.y0 < v->oh; b.y0 += rows) {
                b.y1 = b.y0 + rows < v->oh ? b.y0 + rows : v->oh;
                BRG_TRY(fn(v, &b, col, user));
            }
        brg__progress_poll();
    }
    return BRG_OK;
}

typedef struct operands {
    const brg__images *x;
    const void *weight;
    void *y;
    void *gx, *gw;
} operands;

static brg_status forward_block(const brg__conv *v, const block *b, void *col,
                                const void *user)
{
    const operands *op = user;
    const int64_t n = (b->y1 - b->y0) * v->ow, k = brg__conv_depth(v);
    unfold(v, op->x, b, col);
    const brg__gemm g = {
        .dtype = v->dtype,
        .accumulate = true,
        .m = brg__conv_group_o(v),
        .n = n,
        .k = k,
        .a = brg__mat_of(weight_part(v, op->weight, b->group), k, 1),
        .b = brg__mat_of(col, n, 1),
        .alpha = 1.0,
        .c = y_part(v, op->y, b),
        .ldc = v->oh * v->ow};
    return brg__gemm_run(&g);
}

brg_status brg__conv_unfold_forward(const brg__conv *v, const brg__images *x,
                                    const void *weight, void *y)
{
    const operands op = {.x = x, .weight = weight, .y = y};
    return each_block(v, forward_block, &op);
}

static brg_status grad_input_block(const brg__conv *v, const block *b,
                                   void *col, const void *user)
{
    const operands *op = user;
    const int64_t n = (b->y1 - b->y0) * v->ow, k = brg__conv_depth(v);
    const brg__gemm g = {
        .dtype = v->dtype,
        .m = k,
        .n = n,
        .k = brg__conv_group_o(v),
        .a = brg__mat_of(weight_part(v, op->weight, b->group), 1, k),
        .b = brg__mat_of(y_part(v, op->y, b), v->oh * v->ow, 1),
        .alpha = 1.0,
        .c = col,
        .ldc = n};
    BRG_TRY(brg__gemm_run(&g));
    const int64_t channel = b->n * v->c + b->group * brg__conv_group_c(v);
    const int64_t at = channel * v->h * v->w;
    if (v->dtype == BRG_DTYPE_F64)
        fold_f64(v, col, b->y0, b->y1, (double *)op->gx + at);
    else
        fold_f32(v, col, b->y0, b->y1, (float *)op->gx + at);
    return BRG_OK;
}

brg_status brg__conv_unfold_grad_input(const brg__conv *v, const void *g,
                                       const void *weight, void *gx)
{
    const operands op = {.weight = weight, .y = (void *)g, .gx = gx};
    memset(gx, 0, (size_t)(v->n * v->c * v->h * v->w * item_size(v)));
    return each_block(v, grad_input_block, &op);
}

static brg_status grad_weight_block(const brg__conv *v, const block *b,
                                    void *col, const void *user)
{
    const operands *op = user;
    const int64_t n = (b->y1 - b->y0) * v->ow, k = brg__conv_depth(v);
    unfold(v, op->x, b, col);
    const brg__gemm g = {.dtype = v->dtype,
                         .accumulate = true,
                         .m = brg__conv_group_o(v),
                         .n = k,
                         .k = n,
                         .a =
                             brg__mat_of(y_part(v, op->y, b), v->oh * v->ow, 1),
                         .b = brg__mat_of(col, 1, n),
                         .alpha = 1.0,
                         .c = weight_part(v, op->gw, b->group),
                         .ldc = k};
    return brg__gemm_run(&g);
}

brg_status brg__conv_unfold_grad_weight(const brg__conv *v, const void *g,
                                        const brg__images *x, void *gw)
{
    const operands op = {.x = x, .y = (void *)g, .gw = gw};
    memset(gw, 0, (size_t)(v->o * brg__conv_depth(v) * item_size(v)));
    return each_block(v, grad_weight_block, &op);
}
