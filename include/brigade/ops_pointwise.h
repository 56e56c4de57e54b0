/* SPDX-License-Identifier: Apache-2.0
 * Tensor ops: pointwise. y[k] depends on the inputs' elements k only. */
#ifndef BRG_OPS_POINTWISE_H
#define BRG_OPS_POINTWISE_H

#include <brigade/tensor.h>

BRG_BEGIN_DECLS

/* Inputs of a binary op must have the same dtype (BRG_ERR_DTYPE names both;
 * use brg_cast) and shapes that broadcast, aligned at the last dim. f16 and
 * bf16 are computed in f32 and rounded once, i32, u8 and bool in i64. Results
 * do not depend on layout, position or length of the data, only on values. */

/* ---- Arithmetic, all dtypes ---------------------------------------------- */

BRG_API brg_tensor *brg_add(brg_tensor *a, brg_tensor *b); /* a + b */
BRG_API brg_tensor *brg_sub(brg_tensor *a, brg_tensor *b); /* a - b */
BRG_API brg_tensor *brg_mul(brg_tensor *a, brg_tensor *b); /* a * b */
/* a / b; integers: towards zero, and 0 where b is 0. */
BRG_API brg_tensor *brg_div(brg_tensor *a, brg_tensor *b);
BRG_API brg_tensor *brg_neg(brg_tensor *a);    /* -a */
BRG_API brg_tensor *brg_abs(brg_tensor *a);    /* |a| */
BRG_API brg_tensor *brg_sign(brg_tensor *a);   /* -1, 0 or 1 */
BRG_API brg_tensor *brg_square(brg_tensor *a); /* a * a */

/* With a number, which must be whole and in range if x is of an integer dtype (u8:
 * -255 to 255); what does not fit of results wraps. */
BRG_API brg_tensor *brg_add_scalar(brg_tensor *x, double s);  /* x + s */
BRG_API brg_tensor *brg_mul_scalar(brg_tensor *x, double s);  /* x * s */
BRG_API brg_tensor *brg_rsub_scalar(brg_tensor *x, double s); /* s - x */
/* min(max(x, lo), hi), which must fit into an integer dtype; gradient 1 inside and at the ends, else 0. */
BRG_API brg_tensor *brg_clamp(brg_tensor *x, double lo, double hi);

/* The larger, the smaller; NaN if either is. Equal values share the gradient
 * half and half. */
BRG_API brg_tensor *brg_maximum(brg_tensor *a, brg_tensor *b);
BRG_API brg_tensor *brg_minimum(brg_tensor *a, brg_tensor *b);

/* ---- Functions, float dtypes --------------------------------------------- */

BRG_API brg_tensor *brg_reciprocal(brg_tensor *a); /* 1 / a */
BRG_API brg_tensor *brg_exp(brg_tensor *a);
BRG_API brg_tensor *brg_expm1(brg_tensor *a); /* exp(a) - 1 */
BRG_API brg_tensor *brg_log(brg_tensor *a);   /* natural logarithm */
BRG_API brg_tensor *brg_log1p(brg_tensor *a); /* log(1 + a) */
BRG_API brg_tensor *brg_sqrt(brg_tensor *a);
BRG_API brg_tensor *brg_rsqrt(brg_tensor *a); /* 1 / sqrt(a) */
BRG_API brg_tensor *brg_sin(brg_tensor *a);   /* accurate for |a| <= 1e6 */
BRG_API brg_tensor *brg_cos(brg_tensor *a);
BRG_API brg_tensor *brg_tanh(brg_tensor *a);
BRG_API brg_tensor *brg_erf(brg_tensor *a);
BRG_API brg_tensor *brg_pow_scalar(brg_tensor *x, double exponent);
BRG_API brg_tensor *brg_floor(brg_tensor *a);
BRG_API brg_tensor *brg_ceil(brg_tensor *a);
BRG_API brg_tensor *brg_round(brg_tensor *a); /* halves to even */

/* ---- Activations, float dtypes ------------------------------------------- */

BRG_API brg_tensor *brg_sigmoid(brg_tensor *x); /* 1 / (1 + exp(-x)) */
BRG_API brg_tensor *brg_relu(brg_tensor *x);    /* max(x, 0) */
BRG_API brg_tensor *brg_leaky_relu(brg_tensor *x,
                                   double slope); /* x > 0 ? x : slope * x */
/* x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) */
BRG_API brg_tensor *brg_gelu(brg_tensor *x);
BRG_API brg_tensor *brg_silu(brg_tensor *x);     /* x * sigmoid(x) */
BRG_API brg_tensor *brg_softplus(brg_tensor *x); /* log(1 + exp(x)) */

/* ---- Comparing: bool results, no gradients ------------------------------- */

BRG_API brg_tensor *brg_eq(brg_tensor *a, brg_tensor *b); /* a == b */
BRG_API brg_tensor *brg_ne(brg_tensor *a, brg_tensor *b); /* a != b */
BRG_API brg_tensor *brg_lt(brg_tensor *a, brg_tensor *b); /* a < b */
BRG_API brg_tensor *brg_le(brg_tensor *a, brg_tensor *b); /* a <= b */
BRG_API brg_tensor *brg_gt(brg_tensor *a, brg_tensor *b); /* a > b */
BRG_API brg_tensor *brg_ge(brg_tensor *a, brg_tensor *b); /* a >= b */
BRG_API brg_tensor *brg_logical_not(brg_tensor *a);       /* a == 0 */
/* a != 0 && b != 0; a != 0 || b != 0 */
BRG_API brg_tensor *brg_logical_and(brg_tensor *a, brg_tensor *b);
BRG_API brg_tensor *brg_logical_or(brg_tensor *a, brg_tensor *b);
BRG_API brg_tensor *brg_is_finite(brg_tensor *a); /* neither infinite nor NaN */
BRG_API brg_tensor *brg_is_nan(brg_tensor *a);
/* cond ? a : b; cond is bool. */
BRG_API brg_tensor *brg_where(brg_tensor *cond, brg_tensor *a, brg_tensor *b);

/* ---- Copies -------------------------------------------------------------- */

/* The values in another dtype; x itself if it has it already. Floats go to
 * integers towards zero, to bool as "not zero". Gradients flow between float
 * dtypes. */
BRG_API brg_tensor *brg_cast(brg_tensor *x, brg_dtype dtype);
/* x itself if it is row-major, else a copy that is. */
BRG_API brg_tensor *brg_contiguous(brg_tensor *x);
/* A row-major copy, always. */
BRG_API brg_tensor *brg_copy(brg_tensor *x);

/* ---- In place ---------------------------------------------------------------
 * Change dst's memory and its version. `src` broadcasts to dst's shape. They
 * are not recorded: while gradients are recorded they fail with BRG_ERR_STATE
 * if dst or src requires gradients; use brg_grad_mode_set(false). */

/* dst = src, converted to dst's dtype. */
BRG_API BRG_NODISCARD brg_status brg_copy_(brg_tensor *dst, brg_tensor *src);
/* dst = value, as brg_full. */
BRG_API BRG_NODISCARD brg_status brg_fill_(brg_tensor *dst, double value);
BRG_API BRG_NODISCARD brg_status brg_zero_(brg_tensor *dst);
/* dst += alpha * src; same dtype. */
BRG_API BRG_NODISCARD brg_status brg_add_(brg_tensor *dst, brg_tensor *src,
                                          double alpha);
/* dst *= s */
BRG_API BRG_NODISCARD brg_status brg_mul_scalar_(brg_tensor *dst, double s);

BRG_END_DECLS

#endif
