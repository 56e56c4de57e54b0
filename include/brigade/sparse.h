/* SPDX-License-Identifier: Apache-2.0
 * Sparse tensors in coordinate form: gradients of which few rows are not zero.
 * docs/sparse.md says where they arise and what takes them. */
#ifndef BRG_SPARSE_H
#define BRG_SPARSE_H

#include <brigade/tensor.h>

BRG_BEGIN_DECLS

/* ---- The tensor --------------------------------------------------------------
 * A tensor of `shape` whose entry k holds values[k, ...] at the place
 * indices[:, k] of its first dims; the sum where several entries have one
 * place, zero where none has. It has no memory of its own: brg_tensor_data is
 * NULL, and an op that is not listed here fails with BRG_ERR_UNSUPPORTED. */

/* The index, on GPUs, of an entry that lies nowhere and counts for nothing. */
#define BRG_SPARSE_NO_PLACE INT64_MIN

/* indices (d, n), i64, each in [0, shape[its row]); values (n, shape[d], ...),
 * float. Shares row-major arguments and copies others. The gradient goes to
 * values. On a GPU an index out of range is told by the next read. */
BRG_API brg_tensor *brg_sparse_coo(brg_tensor *indices, brg_tensor *values,
                                   int ndim, const int64_t *shape);

BRG_API bool brg_tensor_is_sparse(const brg_tensor *t);
/* Its parts, without history; borrowed from t until t changes. NULL for a
 * dense tensor. */
BRG_API brg_tensor *brg_sparse_indices(const brg_tensor *t);
BRG_API brg_tensor *brg_sparse_values(const brg_tensor *t);
/* Entries; 0 for a dense tensor. */
BRG_API int64_t brg_sparse_nnz(const brg_tensor *t);
/* True if the entries are known to be sorted and of different places. */
BRG_API bool brg_sparse_is_coalesced(const brg_tensor *t);

/* ---- Ops, all differentiable -------------------------------------------------------
 * Results are borrowed from the scope, NULL on failure. */

/* Entries sorted by place, those of one place added up in their order. Shares
 * the parts if there is nothing to do. Waits for a GPU: how many there are. */
BRG_API brg_tensor *brg_sparse_coalesce(brg_tensor *t);
/* Dense tensors are returned as they are. */
BRG_API brg_tensor *brg_to_dense(brg_tensor *t);
/* With parts of its own. */
BRG_API brg_tensor *brg_sparse_copy(brg_tensor *t);
/* a + b of equal shape and dtype; sparse if both are: the entries of a, then
 * those of b. Two dense ones: brg_add. */
BRG_API brg_tensor *brg_sparse_add(brg_tensor *a, brg_tensor *b);
/* t s */
BRG_API brg_tensor *brg_sparse_mul_scalar(brg_tensor *t, double s);
/* The values in another float dtype. */
BRG_API brg_tensor *brg_sparse_cast(brg_tensor *t, brg_dtype dtype);

/* Besides these, brg_detach takes sparse tensors, brg_copy_(dense, sparse)
 * and brg_add_(dense or sparse, sparse, alpha) take a sparse second argument,
 * and optimizers and brg_clip_grad_norm take sparse gradients. */

/* ---- Embedding --------------------------------------------------------------------- */

typedef struct brg_embedding_options {
    size_t struct_size;
    /* The gradient of weight is sparse: one entry per id, in their order. */
    bool sparse_grad;
    /* This id gives no gradient and no entry (on a GPU one that lies nowhere);
     * -1: none. */
    int64_t padding_idx;
} brg_embedding_options;

#define BRG_EMBEDDING_OPTIONS_INIT                                             \
    BRG_INIT_WITH(brg_embedding_options, BRG_SET(padding_idx, -1))

/* brg_embedding (ops_nn.h) with options; NULL: all default. */
BRG_API brg_tensor *brg_embedding_with(brg_tensor *weight, brg_tensor *ids,
                                       const brg_embedding_options *options);

BRG_END_DECLS

#endif
