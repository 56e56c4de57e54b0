/* SPDX-License-Identifier: Apache-2.0
 * Pure arithmetic on shapes and strides. */
#ifndef BRG_CORE_TENSOR_SHAPE_H
#define BRG_CORE_TENSOR_SHAPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <brigade/status.h>
#include <brigade/types.h>

/* Product of the sizes; false if it does not fit or a size is negative. */
bool brg__shape_numel(int ndim, const int64_t *shape, int64_t *numel);

/* Row-major strides, in elements. */
void brg__shape_strides(int ndim, const int64_t *shape, int64_t *strides);

bool brg__shape_equal(int ndim_a, const int64_t *a, int ndim_b,
                      const int64_t *b);

/* True if the strides (of dims larger than 1) are row-major. */
bool brg__shape_is_contiguous(int ndim, const int64_t *shape,
                              const int64_t *strides);

/* True if the elements fill a block without gaps or overlaps, in any order
 * of the dims. */
bool brg__shape_is_dense(int ndim, const int64_t *shape,
                         const int64_t *strides);

/* The shape that a and b broadcast to, aligned at the last dim; false if they
 * do not. */
bool brg__shape_broadcast(int ndim_a, const int64_t *a, int ndim_b,
                          const int64_t *b, int *ndim, int64_t *shape);

/* "[64, 784]". Returns `text`. */
#define BRG_SHAPE_TEXT_MAX 192
char *brg__shape_text(int ndim, const int64_t *shape,
                      char text[BRG_SHAPE_TEXT_MAX]);

/* dim in [-ndim, ndim) to [0, ndim). Fails naming `op`. */
brg_status brg__shape_wrap_dim(const char *op, int ndim, int dim, int *out);

#endif
