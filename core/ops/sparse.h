/* SPDX-License-Identifier: Apache-2.0
 * Work on the parts of sparse tensors that ops, in-place functions, gradient
 * accumulation and optimizers share. Nothing here is recorded. */
#ifndef BRG_CORE_OPS_SPARSE_H
#define BRG_CORE_OPS_SPARSE_H

#include <brigade/ext/device.h>

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
brg_status brg__sparse_take(const brg_tensor *dst, const brg_tensor *x,
                            const brg_tensor *indices);

/* Where entry k lies among all places, counted in row-major order. */
int64_t brg__sparse_place(const brg_tensor *t, int64_t k);

/* ---- On another device than the CPU (sparse_there.c) ---------------------- */

static inline bool brg__sparse_is_there(const brg_tensor *t)
{
    return t->device.type != BRG_DEVICE_CPU;
}

/* The device does without sparse tensors if this is false. */
bool brg__sparse_has_slot(brg_device device);
/* Indices (d, nnz) of a tensor like `like`: told by the next read. */
brg_status brg__sparse_check_there(const brg_tensor *indices,
                                   const brg_tensor *like);
/* places (1, n) = ids, but those of padding and out of range lie nowhere. */
brg_status brg__sparse_places_there(const brg_tensor *places,
                                    const brg_tensor *ids,
                                    const brg_tensor *like, int64_t padding);
brg_status brg__sparse_take_there(const brg_tensor *dst, const brg_tensor *x,
                                  const brg_tensor *indices);
brg_status brg__sparse_add_there(const brg_tensor *dst, const brg_tensor *src,
                                 double alpha);
/* t has entries and is not coalesced; waits. */
brg_status brg__sparse_coalesce_there(brg_tensor **out, const brg_tensor *t);
/* One step for the elements of the parameter from `first` on. */
brg_status brg__sparse_update_there(const brg_tensor *grad,
                                    const brg_device_update *update,
                                    size_t first);

#endif
