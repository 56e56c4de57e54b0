/* SPDX-License-Identifier: Apache-2.0
 * The composites that come with the library: pairs, jagged tensors. Both are
 * two retained tensors; of a jagged one only the first is a part. */
#include <brigade/composite.h>
#include <brigade/ops_shape.h>

#include "core/base/alloc.h"
#include "core/base/error.h"
#include "core/tensor/tensor.h"

typedef struct two {
    brg_tensor *at[2]; /* retained */
} two;

static brg_status two_new(void **out, brg_tensor *first, brg_tensor *second)
{
    two *t = brg__obj_alloc(sizeof *t, "a pair of tensors");
    *out = t;
    if (!t)
        return BRG_ERR_NOMEM;
    t->at[0] = brg_retain(first);
    t->at[1] = brg_retain(second);
    return BRG_OK;
}

static void two_destroy(void *object)
{
    two *t = object;
    brg_release(t->at[0]);
    brg_release(t->at[1]);
    brg__obj_free(t, sizeof *t);
}

static brg_status two_create(brg_composite **out,
                             const brg_composite_class *cls, brg_tensor *first,
                             brg_tensor *second)
{
    void *object;
    BRG_TRY(two_new(&object, first, second));
    brg_status status = brg_composite_create(out, cls, object);
    if (status != BRG_OK)
        two_destroy(object);
    return status;
}

static brg_status check_parts(const brg_composite_class *cls, size_t n,
                              size_t expected)
{
    if (n == expected)
        return BRG_OK;
    return BRG_FAIL(BRG_ERR_ARG, "a %s is made of %zu tensors, got %zu",
                    cls->name, expected, n);
}

/* ---- Pairs ------------------------------------------------------------------- */

static brg_status pair_flatten(const void *object, brg_tensor **tensors,
                               size_t *n)
{
    const two *t = object;
    tensors[0] = t->at[0];
    tensors[1] = t->at[1];
    *n = 2;
    return BRG_OK;
}

static brg_status pair_unflatten(void **out, const void *like,
                                 brg_tensor *const *tensors, size_t n)
{
    (void)like;
    BRG_TRY(check_parts(&brg_pair_class, n, 2));
    return two_new(out, tensors[0], tensors[1]);
}

const brg_composite_class brg_pair_class = {
    BRG_COMPOSITE_CLASS_INIT, .name = "pair", .flatten = pair_flatten,
    .unflatten = pair_unflatten, .destroy = two_destroy};

brg_status brg_pair_create(brg_composite **out, brg_tensor *first,
                           brg_tensor *second)
{
    *out = NULL;
    if (!first || !second)
        return brg__error_pending("brg_pair_create: a tensor");
    return two_create(out, &brg_pair_class, first, second);
}

/* ---- Jagged tensors ------------------------------------------------------------ */

static brg_status jagged_flatten(const void *object, brg_tensor **tensors,
                                 size_t *n)
{
    tensors[0] = ((const two *)object)->at[0];
    *n = 1;
    return BRG_OK;
}

static int64_t offset_at(const brg_tensor *offsets, int64_t i)
{
    return ((const int64_t *)brg__tensor_ptr(offsets))[i];
}

static brg_status check_rows(const brg_tensor *values,
                             const brg_tensor *offsets)
{
    char text[BRG_TENSOR_TEXT_MAX];
    int64_t n = offsets->numel;
    if (values->ndim < 1 || values->shape[0] != offset_at(offsets, n - 1))
        return BRG_FAIL(BRG_ERR_SHAPE,
                        "jagged tensor: the values are %s, expected %lld in "
                        "dim 0, the last offset",
                        brg__tensor_text(values, text),
                        (long long)offset_at(offsets, n - 1));
    return BRG_OK;
}

static brg_status check_offsets(const brg_tensor *offsets)
{
    char text[BRG_TENSOR_TEXT_MAX];
    if (offsets->dtype != BRG_DTYPE_I64 || offsets->ndim != 1 ||
        offsets->numel < 1 || !offsets->is_contiguous || !offsets->storage)
        return BRG_FAIL(BRG_ERR_ARG,
                        "jagged tensor: the offsets are %s, expected a "
                        "row-major i64[rows + 1]",
                        brg__tensor_text(offsets, text));
    for (int64_t i = 0; i < offsets->numel; i++)
        if (offset_at(offsets, i) < (i ? offset_at(offsets, i - 1) : 0) ||
            (i == 0 && offset_at(offsets, 0) != 0))
            return BRG_FAIL(BRG_ERR_ARG,
                            "jagged tensor: offset %lld is %lld, expected 0 "
                            "first and none smaller than the one before",
                            (long long)i, (long long)offset_at(offsets, i));
    return BRG_OK;
}

static brg_status jagged_unflatten(void **out, const void *like,
                                   brg_tensor *const *tensors, size_t n)
{
    brg_tensor *offsets = ((const two *)like)->at[1];
    BRG_TRY(check_parts(&brg_jagged_class, n, 1));
    BRG_TRY(check_rows(tensors[0], offsets));
    return two_new(out, tensors[0], offsets);
}

const brg_composite_class brg_jagged_class = {
    BRG_COMPOSITE_CLASS_INIT, .name = "jagged tensor",
    .flatten = jagged_flatten, .unflatten = jagged_unflatten,
    .destroy = two_destroy};

brg_status brg_jagged_create(brg_composite **out, brg_tensor *values,
                             brg_tensor *offsets)
{
    *out = NULL;
    if (!values || !offsets)
        return brg__error_pending("brg_jagged_create: a tensor");
    BRG_TRY(check_offsets(offsets));
    BRG_TRY(check_rows(values, offsets));
    return two_create(out, &brg_jagged_class, values, offsets);
}

brg_tensor *brg_jagged_values(const brg_composite *c)
{
    const two *t = brg_composite_object(c, &brg_jagged_class);
    return t ? t->at[0] : NULL;
}

brg_tensor *brg_jagged_offsets(const brg_composite *c)
{
    const two *t = brg_composite_object(c, &brg_jagged_class);
    return t ? t->at[1] : NULL;
}

int64_t brg_jagged_n_rows(const brg_composite *c)
{
    const brg_tensor *offsets = brg_jagged_offsets(c);
    return offsets ? offsets->numel - 1 : -1;
}

brg_tensor *brg_jagged_row(const brg_composite *c, int64_t i)
{
    const two *t = brg_composite_object(c, &brg_jagged_class);
    if (!t)
        return NULL;
    BRG_CHECK_ARG_NULL(i >= 0 && i < t->at[1]->numel - 1,
                       "brg_jagged_row: row %lld of %lld", (long long)i,
                       (long long)(t->at[1]->numel - 1));
    int64_t first = offset_at(t->at[1], i);
    return brg_narrow(t->at[0], 0, first, offset_at(t->at[1], i + 1) - first);
}
