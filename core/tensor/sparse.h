/* SPDX-License-Identifier: Apache-2.0
 * The parts of a sparse tensor in coordinate form.
 *
 * A sparse tensor is a brg_tensor without storage. Its parts are row-major
 * tensors without history that belong to it alone; their storages may be
 * shared. Its version is that of the storage of its values. */
#ifndef BRG_CORE_TENSOR_SPARSE_H
#define BRG_CORE_TENSOR_SPARSE_H

#include <brigade/sparse.h>

#include "core/tensor/tensor.h"

struct brg__sparse {
    brg_tensor *indices; /* i64 (sparse dims, nnz) */
    brg_tensor *values;  /* (nnz, dense dims..) */
    bool is_coalesced;
};

/* A sparse tensor with the sizes of `like`, over the storages of both parts,
 * which are row-major and fit. The caller owns it. */
brg_status brg__sparse_new(brg_tensor **out, const brg_tensor *like,
                           const brg_tensor *indices, const brg_tensor *values,
                           bool is_coalesced);
/* The same parts in another tensor, which the caller owns. */
brg_status brg__sparse_new_alias(brg_tensor **out, const brg_tensor *t);
void brg__sparse_destroy(brg__sparse *sparse);

/* t takes over the parts of `from` (of equal shape and dtype), which gets
 * those of t; counts as a change of t. */
void brg__sparse_swap(brg_tensor *t, brg_tensor *from);

/* Nobody else sees the parts. */
bool brg__sparse_is_sole_owner(const brg_tensor *t);

static inline int brg__sparse_n_dims(const brg_tensor *t)
{
    return (int)t->sparse->indices->shape[0];
}

static inline int64_t brg__sparse_nnz(const brg_tensor *t)
{
    return t->sparse->indices->shape[1];
}

#endif
