/* SPDX-License-Identifier: Apache-2.0
 * Tensor ops: shapes, views, joining, picking by index.
 *
 * Dims may be negative (from the end). "View" results share the storage of x;
 * writes through one are seen by the other. All ops take every dtype and
 * strides; wrong shapes fail with BRG_ERR_SHAPE, wrong dtypes with
 * BRG_ERR_DTYPE, both naming the op and the tensor. */
#ifndef BRG_OPS_SHAPE_H
#define BRG_OPS_SHAPE_H

#include <brigade/tensor.h>

BRG_BEGIN_DECLS

/* ---- Views ----------------------------------------------------------- */

/* The elements of x, in row-major order, under another shape; one size may be
 * -1: what is left. A view if the strides allow it, else a copy. */
BRG_API brg_tensor *brg_reshape(brg_tensor *x, int ndim, const int64_t *shape);
BRG_API brg_tensor *brg_reshape_like(brg_tensor *x, brg_tensor *like);
/* Dims first..last (inclusive) as one. */
BRG_API brg_tensor *brg_flatten(brg_tensor *x, int first, int last);

/* y[i_dims[0], i_dims[1], ..] = x[i_0, i_1, ..]: dim k of y is dim dims[k] of
 * x. View. */
BRG_API brg_tensor *brg_permute(brg_tensor *x, int n_dims, const int *dims);
/* Swaps two dims. View. */
BRG_API brg_tensor *brg_transpose(brg_tensor *x, int dim0, int dim1);

/* Removes dim, whose size must be 1; puts a dim of size 1 before dim (in
 * [-ndim - 1, ndim]). Views. */
BRG_API brg_tensor *brg_squeeze(brg_tensor *x, int dim);
BRG_API brg_tensor *brg_unsqueeze(brg_tensor *x, int dim);

/* Repeats dims of size 1, and new dims in front, without copying; -1 keeps
 * the size of x. View with strides 0: do not write to it. */
BRG_API brg_tensor *brg_expand(brg_tensor *x, int ndim, const int64_t *shape);
BRG_API brg_tensor *brg_expand_like(brg_tensor *x, brg_tensor *like);

#define BRG_TO_END INT64_MAX
/* x[.., start:end:step, ..]. Negative start and end count from the end of the
 * dim; both are clipped to it; step >= 1. View. */
BRG_API brg_tensor *brg_slice(brg_tensor *x, int dim, int64_t start,
                              int64_t end, int64_t step);
/* `length` elements from `start`, all of which must exist. View. */
BRG_API brg_tensor *brg_narrow(brg_tensor *x, int dim, int64_t start,
                               int64_t length);
/* x[.., i, ..], one dim less. View. */
BRG_API brg_tensor *brg_select(brg_tensor *x, int dim, int64_t i);
/* Cuts dim into n pieces of the given sizes, which must add up; sizes NULL:
 * equal ones. parts[0..n) are filled with views, or all NULL on failure. */
BRG_API BRG_NODISCARD brg_status brg_split(brg_tensor **parts, brg_tensor *x,
                                           int dim, int n,
                                           const int64_t *sizes);

/* ---- Joining --------------------------------------------------------- */

/* The n >= 1 tensors one after the other along dim; other sizes and the dtype
 * must agree. */
BRG_API brg_tensor *brg_cat(brg_tensor *const *xs, int n, int dim);
/* The same along a new dim. */
BRG_API brg_tensor *brg_stack(brg_tensor *const *xs, int n, int dim);

/* ---- By reference to another tensor ---------------------------------- */

/* Sums g over the dims that broadcasting `like` to it repeated: the result has
 * the shape of `like` (of which no values are read) and g's dtype. g itself
 * if the shapes are equal. */
BRG_API brg_tensor *brg_sum_to_like(brg_tensor *g, brg_tensor *like);

/* Shape and dtype of `like`, of which no values are read. */
BRG_API brg_tensor *brg_zeros_like(brg_tensor *like);
BRG_API brg_tensor *brg_ones_like(brg_tensor *like);
/* As brg_full. */
BRG_API brg_tensor *brg_full_like(brg_tensor *like, double value);

/* ---- Indices ------------------------------------------------------------
 * Indices are i64 or i32 and lie in [0, size): one outside is an error that
 * names its position and value. */

/* y[.., k.., ..] = x[.., ids[k..], ..]: dim is replaced by the dims of ids.
 * The gradient adds up in the order of ids. */
BRG_API brg_tensor *brg_index_select(brg_tensor *x, int dim, brg_tensor *ids);
/* x with src[.., k, ..] added at [.., ids[k], ..]; ids (K), in its order. */
BRG_API brg_tensor *brg_index_add(brg_tensor *x, int dim, brg_tensor *ids,
                                  brg_tensor *src);

/* y[i, j, ..] = x[ids[i, j, ..], j, ..] (for dim 0): ids has the dims of y and
 * x; its sizes are those of x but at dim. */
BRG_API brg_tensor *brg_gather(brg_tensor *x, int dim, brg_tensor *ids);
/* x with src[i, j, ..] added at [ids[i, j, ..], j, ..] (for dim 0). */
BRG_API brg_tensor *brg_scatter_add(brg_tensor *x, int dim, brg_tensor *ids,
                                    brg_tensor *src);

/* y[.., c] = 1 where c == ids[..], else 0. */
BRG_API brg_tensor *brg_one_hot(brg_tensor *ids, int64_t n_classes,
                                brg_dtype dtype);

/* start, start + step, .. below (above, for step < 0) end; numbers that fit into
 * the dtype. */
BRG_API brg_tensor *brg_arange(brg_dtype dtype, double start, double end,
                               double step);

/* x (.., M, N) with zeros where col > row + diagonal (tril) or col < row +
 * diagonal (triu). */
BRG_API brg_tensor *brg_tril(brg_tensor *x, int64_t diagonal);
BRG_API brg_tensor *brg_triu(brg_tensor *x, int64_t diagonal);

BRG_END_DECLS

#endif
