/* SPDX-License-Identifier: Apache-2.0
 * For authors of devices: work on the entries of sparse tensors
 * (brg_device_vtable.sparse). */
#ifndef BRG_EXT_SPARSE_H
#define BRG_EXT_SPARSE_H

#include <brigade/status.h>
#include <brigade/types.h>

BRG_BEGIN_DECLS

struct brg_device_update;

/* Entry k holds `size` elements and lies at the place indices[:, k], counted in
 * row-major order; one of which an index is out of range lies nowhere and is
 * left out. Arrays are row-major and on the device. */
typedef enum brg_sparse_rule {
    /* An index out of range, but for BRG_SPARSE_NO_PLACE, is told by the next
     * read. */
    BRG_SPARSE_CHECK,
    /* to (nnz, i64) = the ids `from`, BRG_SPARSE_NO_PLACE in the place of
     * `padding` and of those outside [0, shape[0]), which the next read tells. */
    BRG_SPARSE_PLACES,
    /* to (nnz, size) = the elements of the dense `from` at the places; zeros
     * where there is none. */
    BRG_SPARSE_TAKE,
    /* to (3, nnz), i64 = the entries sorted by place, those of one place in
     * their order, those that lie nowhere last:
     *     their places (the number of all places: nowhere), their numbers, and
     *     how many different places there are up to each of them. */
    BRG_SPARSE_ORDER,
    /* to (n, size) = the sums of the entries `from` of each place, added in
     * their order (16-bit floats in f32, rounded once); to_indices (n_dims, n) */
    BRG_SPARSE_SUM,
    /* The dense `to` += alpha entries, added in their order; of 16-bit floats
     * the sums of BRG_SPARSE_SUM are added. */
    BRG_SPARSE_ADD,
    /* The step *update for the elements first.. + numel of the parameter that
     * have an entry, the gradient being the sums of BRG_SPARSE_SUM; update's
     * grad is not read. If it follows, all masters take their param first. */
    BRG_SPARSE_UPDATE
} brg_sparse_rule;

typedef struct brg_sparse_job {
    brg_sparse_rule rule;
    brg_dtype dtype; /* of elements */
    brg_dtype id_dtype;
    int n_dims;                  /* sparse ones */
    int64_t shape[BRG_MAX_DIMS]; /* of these */
    int64_t nnz, size;           /* nnz 0: only in an UPDATE that follows */
    const int64_t *indices;      /* (n_dims, nnz) */
    const int64_t *order;        /* by ORDER; NULL: the places are sorted and
                                    different (SUM needs it) */
    const void *from;
    void *to;
    int64_t *to_indices;
    int64_t n;
    int64_t padding; /* negative: none */
    double alpha;
    const struct brg_device_update *update;
    int64_t first;
} brg_sparse_job;

BRG_END_DECLS

#endif
