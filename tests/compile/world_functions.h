/* SPDX-License-Identifier: Apache-2.0
 * Functions of worlds (worlds.h) that more than one suite compiles: as segments,
 * with the backward behind them, and as parts of whole steps. */
#ifndef BRG_TESTS_COMPILE_WORLD_FUNCTIONS_H
#define BRG_TESTS_COMPILE_WORLD_FUNCTIONS_H

#include <brigade/control.h>
#include <brigade/recompute.h>

#include "tests/compile/worlds.h"

#define SHARED(name) __attribute__((unused)) FUNCTION(name)

/* ---- Gradients and parameters that change between calls -------------------- */

static inline void x_is_w(world *w, int i)
{
    w->x[0] = i % 2 ? w->w[0] : w->x[1];
}

static inline void freezes(world *w, int i)
{
    assert_brg_ok(brg_set_requires_grad(w->w[1], i % 2));
}

static inline void grows(world *w, int i)
{
    brg_tensor *x = leaf_from(i, BRG_SHAPE(3 + i, 4));
    w->x[0] = brg_detach(brg_mul_scalar(x, 0.0625));
    assert_brg_ok(brg_set_requires_grad(w->x[0], true));
}

SHARED(freeze_inside)
{
    brg_tensor *a = brg_mul(in[0], W->w[0]);
    BRG_TRY(brg_set_requires_grad(W->w[0], false));
    brg_tensor *b = brg_mul(brg_mul(in[0], W->w[0]), W->w[0]);
    BRG_TRY(brg_set_requires_grad(W->w[0], true));
    out[0] = brg_add(a, b);
    DONE(out[0]);
}

/* ---- Ops ------------------------------------------------------------------- */

SHARED(linear)
{
    out[0] = brg_linear(in[0], W->w[2], W->w[1]);
    DONE(out[0]);
}

SHARED(step_simple)
{
    out[0] = brg_mean_all(brg_sin(brg_mul(in[0], W->w[1])));
    return brg_backward(out[0]);
}

SHARED(nothing)
{
    brg_tensor *none = brg_narrow(in[0], 0, 1, 0);
    brg_tensor *h = brg_matmul(none, W->w[2]);
    out[0] = brg_add(brg_sum_all(brg_mul(h, h)), brg_sum_all(W->w[1]));
    out[1] = h;
    out[2] = brg_cat((brg_tensor *[]){h, in[0]}, 2, 0);
    DONE(out[2]);
}

SHARED(dtypes)
{
    brg_tensor *h = brg_mul(brg_cast(in[0], BRG_DTYPE_F16),
                            brg_cast(W->w[0], BRG_DTYPE_F16));
    brg_tensor *b = brg_matmul(brg_cast(in[0], BRG_DTYPE_BF16),
                               brg_cast(W->w[2], BRG_DTYPE_BF16));
    out[0] = brg_sin(h);
    out[1] = brg_gelu(brg_sum(b, 1, (int[]){0}, false));
    out[2] = brg_exp(
        brg_cast(brg_add(brg_cast(h, BRG_DTYPE_F32), in[0]), BRG_DTYPE_F64));
    DONE(out[2]);
}

SHARED(sparse_embedding)
{
    brg_embedding_options o = BRG_EMBEDDING_OPTIONS_INIT;
    o.sparse_grad = true;
    out[0] = brg_mul(brg_embedding_with(W->w[3], W->ids, &o), W->w[1]);
    DONE(out[0]);
}

SHARED(autocast)
{
    brg_autocast before, low = {true, BRG_DTYPE_BF16};
    BRG_TRY(brg_autocast_set(low, &before));
    brg_tensor *h = brg_linear(in[0], W->w[2], W->w[1]);
    h = brg_linear(brg_relu(h), W->w[2], W->w[1]);
    BRG_TRY(brg_autocast_set(before, NULL));
    out[0] = brg_cast(h, BRG_DTYPE_F32);
    out[1] = h;
    DONE(out[0]);
}

SHARED(sines)
{
    out[0] = brg_sin(brg_mul(in[0], W->w[1]));
    DONE(out[0]);
}

/* ---- Hooks ----------------------------------------------------------------- */

static inline brg_status count_hook(brg_tensor *grad, brg_tensor **replacement,
                                    void *user)
{
    (void)grad;
    (void)replacement;
    bool mode = brg_grad_mode_set(false);
    brg_status s = brg_add_(user, brg_ones(BRG_DTYPE_F32, BRG_SHAPE(3, 4)), 1);
    brg_grad_mode_set(mode);
    return s;
}

static inline brg_status pre_hook(brg_tensor **grads, size_t n, void *user)
{
    (void)n;
    (void)user;
    grads[0] = brg_mul_scalar(grads[0], 2);
    DONE(grads[0]);
}

/* ---- Gradients inside, branches -------------------------------------------- */

SHARED(grad_double)
{
    brg_tensor *y = brg_sum_all(brg_sin(brg_mul(in[0], W->w[0]))), *g[2];
    brg_tensor *wrt[2] = {in[0], W->w[0]};
    brg_backward_options o = BRG_BACKWARD_OPTIONS_INIT;
    o.create_graph = true;
    BRG_TRY(brg_grad(g, &y, 1, wrt, 2, &o));
    out[0] =
        brg_add(brg_mean_all(brg_square(g[0])), brg_mean_all(brg_square(g[1])));
    DONE(out[0]);
}

static inline brg_status then_fn(brg_tensor *const *in, size_t n,
                                 brg_tensor **out, size_t m, void *user)
{
    (void)n, (void)m, (void)user;
    out[0] = brg_mul(brg_sin(in[0]), in[1]);
    DONE(out[0]);
}

static inline brg_status else_fn(brg_tensor *const *in, size_t n,
                                 brg_tensor **out, size_t m, void *user)
{
    (void)n, (void)m, (void)user;
    out[0] = brg_mul(brg_exp(in[0]), in[1]);
    DONE(out[0]);
}

SHARED(branches)
{
    brg_tensor *p = brg_gt(brg_sum_all(in[0]), brg_sum_all(W->buffer));
    brg_tensor *a[2] = {in[0], W->w[0]};
    BRG_TRY(brg_cond(out, 1, p, (brg_region){then_fn, NULL},
                     (brg_region){else_fn, NULL}, a, 2));
    bool mode = brg_grad_mode_set(false);
    brg_status s = brg_mul_scalar_(W->buffer, 0.5);
    brg_grad_mode_set(mode);
    BRG_TRY(s);
    out[0] = brg_mul_scalar(out[0], 2);
    DONE(out[0]);
}

/* ---- Checkpoints ----------------------------------------------------------- */

static inline brg_status stretch(brg_tensor *const *in, brg_tensor **out,
                                 void *user)
{
    out[0] = brg_dropout(brg_sin(brg_mul(brg_matmul(in[0], W->w[2]), W->w[1])),
                         0.25, true);
    DONE(out[0]);
}

SHARED(recompute)
{
    BRG_TRY(brg_recompute(out, stretch, user, in, 1, NULL));
    out[0] = brg_exp(out[0]);
    DONE(out[0]);
}

static inline brg_recompute_choice policy(const brg_op *op, void *user)
{
    (void)user;
    return op->name[0] == 'm' ? BRG_RECOMPUTE_SAVE : BRG_RECOMPUTE_AGAIN;
}

SHARED(selective)
{
    brg_recompute_options o = BRG_RECOMPUTE_OPTIONS_INIT;
    o.policy = policy;
    BRG_TRY(brg_recompute(out, stretch, user, in, 1, &o));
    out[0] = brg_exp(out[0]);
    DONE(out[0]);
}

SHARED(reentrant)
{
    brg_recompute_options o = BRG_RECOMPUTE_OPTIONS_INIT;
    o.is_reentrant = true;
    BRG_TRY(brg_recompute(out, stretch, user, in, 1, &o));
    out[0] = brg_exp(out[0]);
    DONE(out[0]);
}

static inline brg_status item_stretch(brg_tensor *const *in, brg_tensor **out,
                                      void *user)
{
    double v;
    brg_tensor *h = brg_mul(in[0], W->w[1]);
    BRG_TRY(brg_tensor_item(brg_mean_all(brg_detach(h)), &v));
    out[0] = brg_mul_scalar(brg_sin(h), v);
    DONE(out[0]);
}

#endif
