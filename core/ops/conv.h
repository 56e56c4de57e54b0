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

/* f32 elements `step` apart, one per filter; at NULL: no bias. */
typedef struct brg__conv_bias {
    const float *at;
    int64_t step;
} brg__conv_bias;

/* ---- Stride 1 in f32 (conv_direct.c): false, and nothing done, for another
 * geometry. y, gx and gw are set. ------------------------------------------ */

bool brg__conv_direct_forward(const brg__conv *v, const brg__images *x,
                              const void *weight, const brg__conv_bias *bias,
                              void *y, brg_status *status);
bool brg__conv_direct_grad_input(const brg__conv *v, const void *g,
                                 const void *weight, void *gx,
                                 brg_status *status);
bool brg__conv_direct_grad_weight(const brg__conv *v, const void *g,
                                  const brg__images *x, void *gw,
                                  brg_status *status);

/* ---- Any geometry, f32 and f64: unfolded blocks and matrix products
 * (conv_unfold.c). Weights, y and gradients are row-major. ---------------- */

/* y, which holds the bias or zeros, += x * weight. */
brg_status brg__conv_unfold_forward(const brg__conv *v, const brg__images *x,
                                    const void *weight, void *y);
/* gx, row-major, is set. */
brg_status brg__conv_unfold_grad_input(const brg__conv *v, const void *g,
                                       const void *weight, void *gx);
/* gw is set. */
brg_status brg__conv_unfold_grad_weight(const brg__conv *v, const void *g,
                                        const brg__images *x, void *gw);

#endif
