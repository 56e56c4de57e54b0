/* SPDX-License-Identifier: Apache-2.0
 * References of the cases in op_cases_shape.def: plain loops in double. Here
 * views, joining and indices; those of reductions, norms and losses are in the
 * headers included at the end. */
#ifndef BRG_TESTS_CORE_OP_REF_SHAPE_H
#define BRG_TESTS_CORE_OP_REF_SHAPE_H

#include "core/ops/reduce.h"
#include "tests/support/op_case.h"

/* The k-th index of a shape in row-major order. */
static void ref_index(const op_shape *shape, size_t k, int64_t *index)
{
    for (int d = shape->ndim - 1; d >= 0; d--) {
        index[d] = (int64_t)(k % (size_t)shape->size[d]);
        k /= (size_t)shape->size[d];
    }
}

/* The place of an index in x. */
static double *ref_place(const op_values *x, const int64_t *index)
{
    int64_t k = 0;
    for (int d = 0; d < x->shape.ndim; d++)
        k = k * x->shape.size[d] + index[d];
    return &x->v[k];
}

#define REF_INIT(y, ...) op_values_init((y), BRG_SHAPE(__VA_ARGS__))

static void ref_same_values(op_values *y, const op_values *x)
{
    for (size_t k = 0; k < y->n; k++)
        y->v[k] = x[0].v[k];
}

/* ---- Views ----------------------------------------------------------- */

static void ref_reshape_4(op_values *y, const op_values *x)
{
    REF_INIT(y, 4, (int64_t)x[0].n / 4);
    ref_same_values(y, x);
}

static void ref_reshape_like(op_values *y, const op_values *x)
{
    op_values_init(y, x[1].shape.ndim, x[1].shape.size);
    ref_same_values(y, x);
}

static void ref_flatten_12(op_values *y, const op_values *x)
{
    const int64_t *s = x[0].shape.size;
    REF_INIT(y, s[0], s[1] * s[2]);
    ref_same_values(y, x);
}

static void ref_squeeze_1(op_values *y, const op_values *x)
{
    REF_INIT(y, x[0].shape.size[0], x[0].shape.size[2]);
    ref_same_values(y, x);
}

static void ref_unsqueeze_1(op_values *y, const op_values *x)
{
    REF_INIT(y, x[0].shape.size[0], 1, x[0].shape.size[1]);
    ref_same_values(y, x);
}

/* Dims 2, 0, 1 of x. */
static void ref_permute(op_values *y, const op_values *x)
{
    const int64_t *s = x[0].shape.size;
    REF_INIT(y, s[2], s[0], s[1]);
    for (size_t k = 0; k < y->n; k++) {
        int64_t i[8] = {0};
        ref_index(&y->shape, k, i);
        y->v[k] = op_at(&x[0], (int64_t[]){i[1], i[2], i[0]});
    }
}

/* x broadcast to the shape of y. */
static void ref_broadcast(op_values *y, const op_values *x)
{
    int shift = y->shape.ndim - x->shape.ndim;
    for (size_t k = 0; k < y->n; k++) {
        int64_t i[8], own[8] = {0};
        ref_index(&y->shape, k, i);
        for (int d = 0; d < x->shape.ndim; d++)
            own[d] = x->shape.size[d] == 1 ? 0 : i[d + shift];
        y->v[k] = op_at(x, own);
    }
}

static void ref_expand_234(op_values *y, const op_values *x)
{
    REF_INIT(y, 2, 3, x[0].shape.size[1]);
    ref_broadcast(y, x);
}

static void ref_expand_like(op_values *y, const op_values *x)
{
    op_values_init(y, x[1].shape.ndim, x[1].shape.size);
    ref_broadcast(y, x);
}

/* x[:, 1:6:2] of x (n, 7) */
static void ref_slice(op_values *y, const op_values *x)
{
    REF_INIT(y, x[0].shape.size[0], 3);
    for (size_t k = 0; k < y->n; k++) {
        int64_t i[8] = {0};
        ref_index(&y->shape, k, i);
        y->v[k] = op_at(&x[0], (int64_t[]){i[0], 1 + 2 * i[1]});
    }
}

static void ref_slice_grad(op_values *y, const op_values *x)
{
    op_values_init(y, x[1].shape.ndim, x[1].shape.size);
    for (size_t k = 0; k < x[0].n; k++) {
        int64_t i[8] = {0};
        ref_index(&x[0].shape, k, i);
        *ref_place(y, (int64_t[]){i[0], 1 + 2 * i[1]}) = x[0].v[k];
    }
}

static void ref_last_row(op_values *y, const op_values *x)
{
    const int64_t *s = x[0].shape.size;
    REF_INIT(y, s[1]);
    for (int64_t j = 0; j < s[1]; j++)
        y->v[j] = op_at(&x[0], (int64_t[]){s[0] - 1, j});
}

/* ---- Joining --------------------------------------------------------- */

/* n tensors (a, b_i, c) along dim 1. */
static void ref_cat(op_values *y, const op_values *x, int n)
{
    int64_t size = 0, start = 0;
    for (int p = 0; p < n; p++)
        size += x[p].shape.size[1];
    REF_INIT(y, x[0].shape.size[0], size, x[0].shape.size[2]);
    for (int p = 0; p < n; start += x[p++].shape.size[1])
        for (size_t k = 0; k < x[p].n; k++) {
            int64_t i[8] = {0};
            ref_index(&x[p].shape, k, i);
            i[1] += start;
            *ref_place(y, i) = x[p].v[k];
        }
}

static void ref_cat_3(op_values *y, const op_values *x)
{
    ref_cat(y, x, 3);
}

static void ref_cat_8(op_values *y, const op_values *x)
{
    ref_cat(y, x, 8);
}

/* The second of pieces x[1], x[2] of x[0] along dim 1. */
static void ref_cat_part(op_values *y, const op_values *x)
{
    op_values_init(y, x[2].shape.ndim, x[2].shape.size);
    for (size_t k = 0; k < y->n; k++) {
        int64_t i[8] = {0};
        ref_index(&y->shape, k, i);
        i[1] += x[1].shape.size[1];
        y->v[k] = op_at(&x[0], i);
    }
}

static void ref_stack_1(op_values *y, const op_values *x)
{
    REF_INIT(y, x[0].shape.size[0], 2, x[0].shape.size[1]);
    for (size_t k = 0; k < y->n; k++) {
        int64_t i[8] = {0};
        ref_index(&y->shape, k, i);
        y->v[k] = op_at(&x[i[1]], (int64_t[]){i[0], i[2]});
    }
}

static void ref_full_1(op_values *y, const op_values *x)
{
    op_values_init(y, x[0].shape.ndim, x[0].shape.size);
    for (size_t k = 0; k < y->n; k++)
        y->v[k] = 1.0;
}

static void ref_triangle(op_values *y, const op_values *x, int diagonal,
                         int sign)
{
    op_values_init(y, x[0].shape.ndim, x[0].shape.size);
    for (size_t k = 0; k < y->n; k++) {
        int64_t i[8] = {0};
        ref_index(&y->shape, k, i);
        int n = y->shape.ndim;
        bool is_kept = sign * (i[n - 1] - i[n - 2] - diagonal) >= 0;
        y->v[k] = is_kept ? x[0].v[k] : 0.0;
    }
}

static void ref_tril_1(op_values *y, const op_values *x)
{
    ref_triangle(y, x, 1, -1);
}

static void ref_triu_m1(op_values *y, const op_values *x)
{
    ref_triangle(y, x, -1, 1);
}

/* ---- Indices --------------------------------------------------------- */

/* x (a, n, c) at ids (p, q) along dim 1: (a, p, q, c). */
static void ref_index_select(op_values *y, const op_values *x)
{
    const int64_t *s = x[0].shape.size, *t = x[1].shape.size;
    REF_INIT(y, s[0], t[0], t[1], s[2]);
    for (size_t k = 0; k < y->n; k++) {
        int64_t i[8] = {0};
        ref_index(&y->shape, k, i);
        int64_t id = (int64_t)op_at(&x[1], i + 1);
        y->v[k] = op_at(&x[0], (int64_t[]){i[0], id, i[3]});
    }
}

/* Its transpose: of g, ids, x. */
static void ref_index_select_grad(op_values *y, const op_values *x)
{
    op_values_init(y, x[2].shape.ndim, x[2].shape.size);
    for (size_t k = 0; k < x[0].n; k++) {
        int64_t i[8] = {0};
        ref_index(&x[0].shape, k, i);
        int64_t id = (int64_t)op_at(&x[1], i + 1);
        *ref_place(y, (int64_t[]){i[0], id, i[3]}) += x[0].v[k];
    }
}

/* x (n, c) with src (k, c) added at ids (k). */
static void ref_index_add(op_values *y, const op_values *x)
{
    op_values_init(y, x[0].shape.ndim, x[0].shape.size);
    ref_same_values(y, x);
    for (size_t k = 0; k < x[2].n; k++) {
        int64_t i[8] = {0};
        ref_index(&x[2].shape, k, i);
        int64_t id = (int64_t)x[1].v[i[0]];
        *ref_place(y, (int64_t[]){id, i[1]}) += x[2].v[k];
    }
}

static void ref_embedding(op_values *y, const op_values *x)
{
    const int64_t *t = x[1].shape.size;
    REF_INIT(y, t[0], t[1], x[0].shape.size[1]);
    for (size_t k = 0; k < y->n; k++) {
        int64_t i[8] = {0};
        ref_index(&y->shape, k, i);
        int64_t id = (int64_t)op_at(&x[1], i);
        y->v[k] = op_at(&x[0], (int64_t[]){id, i[2]});
    }
}

static void ref_embedding_grad(op_values *y, const op_values *x)
{
    op_values_init(y, x[2].shape.ndim, x[2].shape.size);
    for (size_t k = 0; k < x[0].n; k++) {
        int64_t i[8] = {0};
        ref_index(&x[0].shape, k, i);
        int64_t id = (int64_t)op_at(&x[1], i);
        *ref_place(y, (int64_t[]){id, i[2]}) += x[0].v[k];
    }
}

/* Along dim 0. */
static void ref_gather(op_values *y, const op_values *x)
{
    op_values_init(y, x[1].shape.ndim, x[1].shape.size);
    for (size_t k = 0; k < y->n; k++) {
        int64_t i[8] = {0};
        ref_index(&y->shape, k, i);
        i[0] = (int64_t)x[1].v[k];
        y->v[k] = op_at(&x[0], i);
    }
}

static void ref_add_gathered(op_values *y, const op_values *src,
                             const op_values *ids)
{
    for (size_t k = 0; k < src->n; k++) {
        int64_t i[8] = {0};
        ref_index(&src->shape, k, i);
        i[0] = (int64_t)ids->v[k];
        *ref_place(y, i) += src->v[k];
    }
}

static void ref_gather_grad(op_values *y, const op_values *x)
{
    op_values_init(y, x[2].shape.ndim, x[2].shape.size);
    ref_add_gathered(y, &x[0], &x[1]);
}

static void ref_scatter_add(op_values *y, const op_values *x)
{
    op_values_init(y, x[0].shape.ndim, x[0].shape.size);
    ref_same_values(y, x);
    ref_add_gathered(y, &x[2], &x[1]);
}

static void ref_one_hot_5(op_values *y, const op_values *x)
{
    REF_INIT(y, x[0].shape.size[0], 5);
    for (int64_t k = 0; k < (int64_t)x[0].n; k++)
        y->v[k * 5 + (int64_t)x[0].v[k]] = 1.0;
}

#include "tests/core/op_ref_norm.h"
#include "tests/core/op_ref_reduce.h"

#endif
