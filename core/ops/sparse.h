/* SPDX-License-Identifier: Apache-2.0
 * Work on the parts of sparse tensors that ops, in-place functions, gradient
 * accumulation and optimizers share. Nothing here is recorded. */
#ifndef BRG_CORE_OPS_SPARSE_H
#define BRG_CORE_OPS_SPARSE_H

#include "core/ops/op.h"
#include "core/tensor/sparse.h"

/* A sparse tensor like t of nnz entries, values of `dtype`, nothing set; the
 * caller owns it. */
brg_status brg__sparse_empty(brg_tensor **out, const brg_tensor *t, int64_t nnz,
                             brg_dtype dtype);
/* A deep copy, which the caller owns. */
brg_status brg__sparse_clone(brg_tensor **out, const brg_tensor *t);
/* Coalesced; the caller owns it. The parts are shared if t is so already. */
brg_status brg__sparse_coalesce(brg_tensor **out, const brg_tensor *t);
/* a followed by alpha b, in parts of its own; the caller owns it. */
brg_status brg__sparse_join(brg_tensor **out, const brg_tensor *a,
                            const brg_tensor *b, double alpha);

/* dst += alpha src; dst is dense, of equal shape and dtype, any strides. Sums
 * of 16-bit floats are rounded once per element. */
brg_status brg__sparse_add_to(const brg_tensor *dst, const brg_tensor *src,
                              double alpha);
/* dst (nnz, ..) = the blocks of the dense x at the places of indices. */
void brg__sparse_take(const brg_tensor *dst, const brg_tensor *x,
                      const brg_tensor *indices);

/* Where entry k lies among all places, counted in row-major order. */
int64_t brg__sparse_place(const brg_tensor *t, int64_t k);

#endif
