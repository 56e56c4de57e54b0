/* SPDX-License-Identifier: Apache-2.0
 * Tensor ops: reductions.
 *
 * `n_dims` dims (negative ones count from the end) are reduced; BRG_DIMS(0, -1)
 * writes both arguments, n_dims 0 means all. keepdim leaves them with size 1.
 * Sums of f16 and bf16 are rounded once, those of floats carry an error that
 * does not grow with the number of elements. Results depend on values, sizes
 * and strides only. */
#ifndef BRG_OPS_REDUCE_H
#define BRG_OPS_REDUCE_H

#include <brigade/tensor.h>

BRG_BEGIN_DECLS

#define BRG_DIMS(...) BRG_LIST(int, __VA_ARGS__)
#define BRG_ALL_DIMS 0, (const int *)0

/* sum(x). Integers and bool give i64. The sum of nothing is 0. */
BRG_API brg_tensor *brg_sum(brg_tensor *x, int n_dims, const int *dims,
                            bool keepdim);
/* sum(x) / n; float dtypes. The mean of nothing is NaN. */
BRG_API brg_tensor *brg_mean(brg_tensor *x, int n_dims, const int *dims,
                             bool keepdim);
/* The same over all dims, to a tensor of no dims. */
BRG_API brg_tensor *brg_sum_all(brg_tensor *x);
BRG_API brg_tensor *brg_mean_all(brg_tensor *x);

/* sum(x * x) */
BRG_API brg_tensor *brg_sum_squares(brg_tensor *x, int n_dims, const int *dims,
                                    bool keepdim);
/* sqrt(sum(x * x)); its gradient at 0 is NaN. */
BRG_API brg_tensor *brg_norm2(brg_tensor *x, int n_dims, const int *dims,
                              bool keepdim);

/* The largest, the smallest value; NaN if there is one. Of no elements:
 * BRG_ERR_SHAPE. Equal extremes share the gradient equally. */
BRG_API brg_tensor *brg_amax(brg_tensor *x, int n_dims, const int *dims,
                             bool keepdim);
BRG_API brg_tensor *brg_amin(brg_tensor *x, int n_dims, const int *dims,
                             bool keepdim);

/* Where along dim the first largest (smallest) value, or the first NaN,
 * stands: i64. No gradient. */
BRG_API brg_tensor *brg_argmax(brg_tensor *x, int dim, bool keepdim);
BRG_API brg_tensor *brg_argmin(brg_tensor *x, int dim, bool keepdim);

/* sum((x - mean(x))^2) / (n - correction): correction 1 is the unbiased
 * variance, 0 that of the values themselves. Float dtypes. */
BRG_API brg_tensor *brg_var(brg_tensor *x, int n_dims, const int *dims,
                            double correction, bool keepdim);

BRG_END_DECLS

#endif
