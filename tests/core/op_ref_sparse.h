/* SPDX-License-Identifier: Apache-2.0
 * References of sparse ops: entries of x[1] at the places of x[0], as dense
 * tensors of 5 rows, or 5 by 4 places. */
#ifndef BRG_TESTS_CORE_OP_REF_SPARSE_H
#define BRG_TESTS_CORE_OP_REF_SPARSE_H

#include <brigade/sparse.h>

#include "tests/support/op_case.h"

/* y += s * entries */
static void ref_sparse_put(op_values *y, const op_values *indices,
                           const op_values *values, double s)
{
    int64_t n_dims = indices->shape.size[0], nnz = indices->shape.size[1];
    for (size_t k = 0; k < values->n; k++) {
        size_t block = values->n / (size_t)nnz, entry = k / block;
        size_t place = 0;
        for (int64_t d = 0; d < n_dims; d++)
            place = place * (size_t)y->shape.size[d] +
                    (size_t)indices->v[d * nnz + (int64_t)entry];
        y->v[place * block + k % block] += s * values->v[k];
    }
}

static void ref_sparse_rows(op_values *y, const op_values *x)
{
    op_values_init(y, 2, (int64_t[]){5, 3});
    ref_sparse_put(y, &x[0], &x[1], 1.0);
}

static void ref_sparse_places(op_values *y, const op_values *x)
{
    op_values_init(y, 3, (int64_t[]){5, 4, 2});
    ref_sparse_put(y, &x[0], &x[1], 1.0);
}

static void ref_sparse_times_3(op_values *y, const op_values *x)
{
    op_values_init(y, 2, (int64_t[]){5, 3});
    ref_sparse_put(y, &x[0], &x[1], 3.0);
}

/* Rows and a dense x[2]. */
static void ref_sparse_plus_dense(op_values *y, const op_values *x)
{
    op_values_init(y, 2, (int64_t[]){5, 3});
    memcpy(y->v, x[2].v, y->n * sizeof *y->v);
    ref_sparse_put(y, &x[0], &x[1], 1.0);
}

static void ref_sparse_twice(op_values *y, const op_values *x)
{
    op_values_init(y, 2, (int64_t[]){5, 3});
    ref_sparse_put(y, &x[0], &x[1], 1.0);
    ref_sparse_put(y, &x[0], &x[2], 1.0);
}

/* Rows x[1] of x[0]. */
static void ref_sparse_take(op_values *y, const op_values *x)
{
    int64_t nnz = x[1].shape.size[1], width = x[0].shape.size[1];
    op_values_init(y, 2, (int64_t[]){nnz, width});
    for (size_t k = 0; k < y->n; k++)
        y->v[k] = op_at(&x[0], (int64_t[]){(int64_t)x[1].v[k / (size_t)width],
                                           (int64_t)k % width});
}

/* Rows x[0] at x[1] of a weight of 5 rows, but none for id 2. */
static void ref_embedding_padded(op_values *y, const op_values *x)
{
    int64_t width = x[2].shape.size[1];
    op_values_init(y, 2, (int64_t[]){5, width});
    for (size_t k = 0; k < x[0].n; k++) {
        int64_t id = (int64_t)x[1].v[k / (size_t)width];
        if (id != 2)
            y->v[id * width + (int64_t)k % width] += x[0].v[k];
    }
}

#endif
