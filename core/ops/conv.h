/* SPDX-License-Identifier: Apache-2.0
 * The geometry of a 2-D convolution, and its kernels. Tensors are x (n,c,h,w),
 * weight (o,c/groups,kh,kw), y (n,o,oh,ow); [0] is the vertical axis. */
#ifndef BRG_CORE_OPS_CONV_H
#define BRG_CORE_OPS_CONV_H

#include "core/ops/op.h"

typedef struct brg__conv {
    brg_dtype dtype;
    int64_t n, c, h, w;
    int64_t o, kh, kw;
    int64_t oh, ow;
    int64_t stride[2], padding[2], dilation[2];
    int64_t groups;
} brg__conv;

static inline int64_t brg__conv_group_c(const brg__conv *v)
{
    return v->c / v->groups;
}

static inline int64_t brg__conv_group_o(const brg__conv *v)
{
    return v->o / v->groups;
}

/* Terms of one output element's sum. */
static inline int64_t brg__conv_depth(const brg__conv *v)
{
    return brg__conv_group_c(v) * v->kh * v->kw;
}

/* An image batch by address; the element (n,c,h,w) is at
 * at[n * stride[0] + .. + w * stride[3]]. */
typedef struct brg__images {
    void *at;
    const int64_t *stride;
} brg__images;

/* Elements `step` apart, one per filter. */
typedef struct brg__conv_bias {
    const void *at;
    int64_t step;
} brg__conv_bias;

/* Output rows [y0, y1) of one group of one image. */
typedef struct brg__conv_block {
    int64_t n, group;
    int64_t y0, y1;
} brg__conv_block;

/* ---- Loops over a block, per element type (conv_kernels.c). Unfolded, it is
 * a matrix with a row per tap (channel, ky, kx) and a column per output. ---- */

typedef struct brg__conv_kernels {
    /* From the image's planes of the group, with the strides of its batch. */
    void (*unfold)(const brg__conv *v, const void *image, const int64_t *stride,
                   const brg__conv_block *b, void *to);
    /* Adds it back to row-major planes. */
    void (*fold)(const brg__conv *v, const void *from, const brg__conv_block *b,
                 void *image);
    /* The block's part of y, of which the first element is given, becomes
     * the bias. */
    void (*fill)(const brg__conv *v, const brg__conv_bias *bias,
                 const brg__conv_block *b, void *y);
} brg__conv_kernels;

/* ---- f32 and f64 of any geometry (conv_unfold.c). Weights, y, gx and
 * gradients are row-major; y, gx and gw are set; n > 0. -------------------- */

/* bias may be NULL. */
brg_status brg__conv_forward(const brg__conv *v, const brg__images *x,
                             const void *weight, const brg__conv_bias *bias,
                             void *y);
brg_status brg__conv_grad_input(const brg__conv *v, const void *g,
                                const void *weight, void *gx);
brg_status brg__conv_grad_weight(const brg__conv *v, const void *g,
                                 const brg__images *x, void *gw);

#endif
