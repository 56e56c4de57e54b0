/* SPDX-License-Identifier: Apache-2.0
 * The pointwise rows of ops.def as descriptors: gradient rules made from VJP,
 * the text of FWD, the private record. */
#include <brigade/ops_pointwise.h>

#include "core/ops/pointwise.h"

/* ---- Gradients too long for a row ---------------------------------------- */

/* g s x^(s-1); 0 for s = 0, also at x = 0. */
static brg_tensor *pow_vjp(brg_tensor *g, brg_tensor *x, double s)
{
    if (s == 0.0)
        return brg_mul_scalar(g, 0.0);
    return brg_mul(g, brg_mul_scalar(brg_pow_scalar(x, s - 1.0), s));
}

/* g (s + x s (1 - s) u'), s = sigmoid(u), u = k (x + 0.044715 x^3). */
static brg_tensor *gelu_vjp(brg_tensor *g, brg_tensor *x)
{
    const double k = 1.5957691216057308; /* 2 sqrt(2 / pi) */
    brg_tensor *xx = brg_square(x);
    brg_tensor *cubic = brg_add_scalar(brg_mul_scalar(xx, 0.044715 * k), k);
    brg_tensor *slope = brg_add_scalar(brg_mul_scalar(xx, 3 * 0.044715 * k), k);
    brg_tensor *s = brg_sigmoid(brg_mul(x, cubic));
    brg_tensor *ds = brg_mul(s, brg_rsub_scalar(s, 1.0));
    return brg_mul(g, brg_add(s, brg_mul(brg_mul(x, ds), slope)));
}

/* g s (1 + x (1 - s)), s = sigmoid(x). */
static brg_tensor *silu_vjp(brg_tensor *g, brg_tensor *x)
{
    brg_tensor *s = brg_sigmoid(x);
    brg_tensor *rest = brg_mul(x, brg_rsub_scalar(s, 1.0));
    return brg_mul(g, brg_mul(s, brg_add_scalar(rest, 1.0)));
}

/* ---- Gradient rules from the rows ---------------------------------------- */

static brg_tensor *fused(const brg_op *op, const brg_vjp *v, brg_tensor *a,
                         brg_tensor *b, brg_tensor *c)
{
    return brg__call(op, op->n_in, (brg_tensor *[]){a, b, c}, v->attrs);
}

#define FUSED(row, ...) FUSED_(row, __VA_ARGS__, NULL, NULL)
#define FUSED_(row, a, b, c, ...) fused(&brg__op_##row, v, a, b, c)

/* One expression, or one for first order and one to differentiate again. */
#define EXPR(...) EXPR_(__VA_ARGS__, EXPR_2, EXPR_1, )(__VA_ARGS__)
#define EXPR_(x1, x2, pick, ...) pick
#define EXPR_1(value) (value)
#define EXPR_2(first, again) (v->is_differentiable ? (again) : (first))
#define SET(i, ...)                                                            \
    (void)(status == BRG_OK && brg_vjp_needs(v, i) &&                          \
                   !(v->grad_in[i] = EXPR(__VA_ARGS__))                        \
               ? (status = brg_error_code())                                   \
               : 0)

#define FWD(...)
#define IN_F32 (void)0
#define SAVES(...) (void)0
#define SAVES_FOR(...) (void)0
#define VJP(...) SET(0, __VA_ARGS__)
#define VJP_A(...) SET(0, __VA_ARGS__)
#define VJP_B(...) SET(1, __VA_ARGS__)
#define VJP_C(...) SET(2, __VA_ARGS__)
#define NO_GRAD (void)0
#define NO_GRAD_IN(...) (void)0
#define RULE(name, n_in_, ...)                                                 \
    __attribute__((unused)) static brg_status vjp_##name(brg_vjp *v)           \
    {                                                                          \
        brg_status status = BRG_OK;                                            \
        const double *p = v->attrs->f;                                         \
        brg_tensor *g = v->grad_out[0], *y = v->out[0], *a = v->in[0];         \
        brg_tensor *b = (n_in_) > 1 ? v->in[1] : NULL;                         \
        brg_tensor *c = (n_in_) > 2 ? v->in[2] : NULL;                         \
        (void)p, (void)g, (void)y, (void)a, (void)b, (void)c;                  \
        __VA_ARGS__;                                                           \
        return status;                                                         \
    }
#define BRG_UNARY(cls, name, fwd, ...) RULE(name, 1, __VA_ARGS__)
#define BRG_BINARY(cls, name, fwd, ...) RULE(name, 2, __VA_ARGS__)
#define BRG_TERNARY(cls, name, fwd, ...) RULE(name, 3, __VA_ARGS__)
#define BRG_KERNEL(name, ...)
#define BRG_KERNEL_NOGRAD(name, ...)
#define BRG_VIEW(name, ...)
#include "core/ops/ops.def"
#include "core/ops/ops_undef.h"
#undef FUSED
#undef FWD
#undef IN_F32
#undef SAVES
#undef SAVES_FOR
#undef VJP
#undef VJP_A
#undef VJP_B
#undef VJP_C
#undef NO_GRAD
#undef NO_GRAD_IN

/* ---- Descriptors --------------------------------------------------------- */

/* What a row states comes last, so that it wins over the defaults. */
#pragma GCC diagnostic ignored "-Woverride-init"

#define FWD(...) #__VA_ARGS__
#define IN_F32 .autocast = BRG_AUTOCAST_F32
#define SAVES(mask) .saves = (mask)
#define SAVES_FOR(...) .saves_for = {__VA_ARGS__}
#define VJP(...) .n_out = 1
#define VJP_A(...) .n_out = 1
#define VJP_B(...) .n_out = 1
#define VJP_C(...) .n_out = 1
#define NO_GRAD .vjp = NULL
#define NO_GRAD_IN(...) NO_GRAD_IN_(__VA_ARGS__, __VA_ARGS__, )
#define NO_GRAD_IN_(i, k, ...) .no_grad_in = 1u << (i) | 1u << (k)
#define ROW(cls_, name_, n_in_, fwd, ...)                                      \
    static const brg__pw_row row_##name_ = {.index = BRG__PW_##name_,          \
                                            .cls = BRG__PW_##cls_};            \
    const brg_op brg__op_##name_ = {.abi = BRG_OP_ABI,                         \
                                    .struct_size = sizeof(brg_op),             \
                                    .name = #name_,                            \
                                    .n_in = n_in_,                             \
                                    .n_out = 1,                                \
                                    .n_diff_out = 1,                           \
                                    .flags = BRG_OP_POINTWISE,                 \
                                    .infer = brg__pw_infer,                    \
                                    .run = {[BRG_DEVICE_CPU] = brg__pw_run},   \
                                    .vjp = vjp_##name_,                        \
                                    .expr = fwd,                               \
                                    .pointwise = &row_##name_,                 \
                                    .slot = &brg__slot_##name_,                \
                                    __VA_ARGS__};
#define BRG_UNARY(cls, name, ...) ROW(cls, name, 1, __VA_ARGS__)
#define BRG_BINARY(cls, name, ...) ROW(cls, name, 2, __VA_ARGS__)
#define BRG_TERNARY(cls, name, ...) ROW(cls, name, 3, __VA_ARGS__)
#define BRG_KERNEL(name, ...)
#define BRG_KERNEL_NOGRAD(name, ...)
#define BRG_VIEW(name, ...)
#include "core/ops/ops.def"
#include "core/ops/ops_undef.h"
