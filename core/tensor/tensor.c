/* SPDX-License-Identifier: Apache-2.0
 * The tensor object: construction, references, questions, plain access.
 * Data access that needs a kernel (fill, strided read) goes through ops. */
#include "core/tensor/tensor.h"

#include <stdio.h>
#include <string.h>

#include <brigade/device.h>

#include "core/base/alloc.h"
#include "core/base/error.h"
#include "core/base/tracer.h"
#include "core/tensor/device.h"
#include "core/tensor/shape.h"
#include "core/tensor/sparse.h"
#include "core/tensor/symbol.h"

/* What a captured function should do about data of its caller. */
#define INSTEAD "make the tensor outside of the function"

/* ---- Layouts ---------------------------------------------------------------- */

brg_status brg__layout_init(brg__layout *layout, const char *op,
                            brg_dtype dtype, int ndim, const int64_t *shape)
{
    if ((unsigned)dtype >= BRG_N_DTYPES)
        return BRG_FAIL(BRG_ERR_DTYPE, "%s: %d is not a dtype", op, (int)dtype);
    if (ndim < 0 || ndim > BRG_MAX_DIMS)
        return BRG_FAIL(BRG_ERR_SHAPE,
                        "%s: a tensor has 0 to %d dims, %d were asked for", op,
                        BRG_MAX_DIMS, ndim);
    if (ndim > 0 && !shape)
        return BRG_FAIL(BRG_ERR_ARG, "%s: shape is NULL", op);
    int64_t numel, nbytes;
    if (!brg__shape_numel(ndim, shape, &numel) ||
        __builtin_mul_overflow(numel, (int64_t)brg_dtype_size(dtype),
                               &nbytes)) {
        char text[BRG_SHAPE_TEXT_MAX];
        return BRG_FAIL(BRG_ERR_SHAPE,
                        "%s: %s has a negative size or too many elements", op,
                        brg__shape_text(ndim, shape, text));
    }
    *layout = (brg__layout){.dtype = dtype, .device = BRG_CPU, .ndim = ndim};
    if (ndim > 0)
        memcpy(layout->shape, shape, (size_t)ndim * sizeof *shape);
    brg__shape_strides(ndim, layout->shape, layout->stride);
    return BRG_OK;
}

brg__layout brg__layout_of(const brg_tensor *t)
{
    brg__layout layout = {.dtype = (brg_dtype)t->dtype,
                          .device = t->device,
                          .ndim = t->ndim,
                          .offset = t->offset};
    memcpy(layout.shape, t->shape, sizeof layout.shape);
    memcpy(layout.stride, t->stride, sizeof layout.stride);
    return layout;
}

brg__layout brg__layout_from_start(const brg_tensor *t)
{
    brg__layout layout = brg__layout_of(t);
    layout.offset = 0;
    return layout;
}

brg__layout brg__layout_row_major(const brg_tensor *t)
{
    brg__layout layout = brg__layout_from_start(t);
    brg__shape_strides(layout.ndim, layout.shape, layout.stride);
    return layout;
}

/* ---- Construction ------------------------------------------------------------ */

void brg__tensor_lay_out(brg_tensor *t, const brg__layout *layout)
{
    t->ndim = (uint8_t)layout->ndim;
    t->dtype = (uint8_t)layout->dtype;
    t->device = layout->device;
    t->offset = layout->offset;
    memcpy(t->shape, layout->shape, sizeof t->shape);
    memcpy(t->stride, layout->stride, sizeof t->stride);
    (void)brg__shape_numel(layout->ndim, layout->shape, &t->numel);
    t->is_contiguous =
        brg__shape_is_contiguous(layout->ndim, layout->shape, layout->stride);
}

brg_status brg__tensor_new_view(brg_tensor **out, const brg__layout *layout,
                                brg__storage *storage)
{
    brg_tensor *t = brg__obj_alloc(sizeof *t, "a tensor");
    *out = t;
    if (!t)
        return BRG_ERR_NOMEM;
    brg__ref_init(&t->refs);
    brg__tensor_lay_out(t, layout);
    t->storage = storage;
    brg__storage_retain(storage);
    return BRG_OK;
}

brg_status brg__tensor_new(brg_tensor **out, const brg__layout *layout)
{
    *out = NULL;
    int64_t numel;
    (void)brg__shape_numel(layout->ndim, layout->shape, &numel);
    brg__storage *storage;
    brg_status status =
        brg__storage_new(&storage, layout->device,
                         (size_t)numel * brg_dtype_size(layout->dtype));
    if (status != BRG_OK) {
        char text[BRG_SHAPE_TEXT_MAX];
        return brg__error_prefix(
            "%s%s: ", brg_dtype_name(layout->dtype),
            brg__shape_text(layout->ndim, layout->shape, text));
    }
    status = brg__tensor_new_view(out, layout, storage);
    brg__storage_release(storage);
    return status;
}

brg_status brg__tensor_new_meta(brg_tensor **out, const brg_tensor *t)
{
    brg__layout layout = brg__layout_of(t);
    BRG_TRY(brg__tensor_new_view(out, &layout, NULL));
    if (t->symbol)
        (*out)->symbol = brg__symbol_of_shape(t->symbol);
    return BRG_OK;
}

brg_status brg__tensor_new_like(brg_tensor **out, const brg_tensor *t,
                                brg_device device)
{
    brg__layout layout = brg__layout_row_major(t);
    layout.device = device;
    return brg__tensor_new(out, &layout);
}

brg_status brg__tensor_new_alias(brg_tensor **out, const brg_tensor *t)
{
    if (t->sparse)
        return brg__sparse_new_alias(out, t);
    brg__layout layout = brg__layout_of(t);
    BRG_TRY(brg__tensor_new_view(out, &layout, t->storage));
    (*out)->symbol = t->symbol;
    return BRG_OK;
}

brg_tensor *brg_retain(brg_tensor *t)
{
    if (t)
        brg__ref_retain(&t->refs);
    return t;
}

void brg_release(brg_tensor *t)
{
    if (!t || !brg__ref_release(&t->refs))
        return;
    if (t->grad_info)
        t->grad_info->destroy(t->grad_info);
    brg__mem_free(t->name);
    brg__storage_release(t->storage);
    brg__sparse_destroy(t->sparse);
    brg_tensor *base = t->base; /* no view itself: one level deep */
    brg__obj_free(t, sizeof *t);
    brg_release(base);
}

static brg_tensor *empty_on(brg_device device, brg_dtype dtype, int ndim,
                            const int64_t *shape)
{
    brg__layout layout;
    brg_tensor *t;
    if (brg__layout_init(&layout, "brg_empty", dtype, ndim, shape) != BRG_OK)
        return NULL;
    layout.device = device;
    if (brg__tensor_new(&t, &layout) != BRG_OK)
        return NULL;
    return brg__scope_adopt(t);
}

brg_tensor *brg_empty(brg_dtype dtype, int ndim, const int64_t *shape)
{
    return empty_on(brg_device_get(), dtype, ndim, shape);
}

brg_tensor *brg__empty_host(brg_dtype dtype, int ndim, const int64_t *shape)
{
    return empty_on(BRG_CPU, dtype, ndim, shape);
}

brg_tensor *brg_zeros(brg_dtype dtype, int ndim, const int64_t *shape)
{
    brg_tensor *t = brg_empty(dtype, ndim, shape);
    if (t && brg__device_zero(t->device, t->storage->data,
                              t->storage->nbytes) != BRG_OK)
        return NULL;
    return t;
}

brg_tensor *brg_from_data(brg_dtype dtype, int ndim, const int64_t *shape,
                          const void *data)
{
    BRG_CHECK_ARG_NULL(data, "brg_from_data: data is NULL");
    if (brg__is_traced() &&
        brg__tracer_settle("brg_from_data", INSTEAD) != BRG_OK)
        return NULL;
    brg_tensor *t = brg_empty(dtype, ndim, shape);
    if (t && brg__device_copy(t->device, t->storage->data, BRG_CPU, data,
                              t->storage->nbytes) != BRG_OK)
        return NULL;
    return t;
}

brg_tensor *brg_wrap(brg_dtype dtype, int ndim, const int64_t *shape,
                     void *data, void (*free_fn)(void *user), void *user)
{
    brg__layout layout;
    if (brg__layout_init(&layout, "brg_wrap", dtype, ndim, shape) != BRG_OK)
        return NULL;
    BRG_CHECK_ARG_NULL(data, "brg_wrap: data is NULL");
    if (brg__is_traced() && brg__tracer_settle("brg_wrap", INSTEAD) != BRG_OK)
        return NULL;
    brg__storage *storage;
    if (brg__storage_new(&storage, BRG_CPU, 0) != BRG_OK)
        return NULL;
    int64_t numel;
    (void)brg__shape_numel(ndim, shape, &numel);
    storage->is_external = true;
    storage->data = data;
    storage->nbytes = (size_t)numel * brg_dtype_size(dtype);
    brg_tensor *t;
    brg_status status = brg__tensor_new_view(&t, &layout, storage);
    if (status == BRG_OK)
        t = brg__scope_adopt(t);
    if (t) { /* from here on it is ours to free */
        storage->free_fn = free_fn;
        storage->user = user;
    }
    brg__storage_release(storage);
    return t;
}

brg_tensor *brg_detach(brg_tensor *t)
{
    brg_tensor *alias;
    if (t && t->symbol && brg__tracer_flush() != BRG_OK)
        return NULL;
    if (!t || brg__tensor_new_alias(&alias, t) != BRG_OK)
        return NULL;
    return brg__scope_adopt(alias);
}

/* First and last element that the layout can reach; of none, where it lies. */
static bool stays_inside(const brg__layout *layout, size_t nbytes)
{
    int64_t low = layout->offset, high = layout->offset;
    int64_t n = (int64_t)(nbytes / brg_dtype_size(layout->dtype));
    for (int i = 0; i < layout->ndim; i++) {
        if (layout->shape[i] == 0)
            return layout->offset >= 0 && layout->offset <= n;
        int64_t reach;
        if (__builtin_mul_overflow(layout->shape[i] - 1, layout->stride[i],
                                   &reach))
            return false;
        if (__builtin_add_overflow(reach < 0 ? low : high, reach,
                                   reach < 0 ? &low : &high))
            return false;
    }
    return low >= 0 && high < n;
}

brg_tensor *brg_as_strided(brg_tensor *t, int ndim, const int64_t *shape,
                           const int64_t *strides, int64_t offset)
{
    if (!t)
        return NULL;
    brg__layout layout;
    if (brg__layout_init(&layout, "brg_as_strided", (brg_dtype)t->dtype, ndim,
                         shape) != BRG_OK)
        return NULL;
    BRG_CHECK_ARG_NULL(ndim == 0 || strides, "brg_as_strided: strides is NULL");
    if (t->symbol &&
        brg__tracer_settle("brg_as_strided", "use a view op") != BRG_OK)
        return NULL;
    BRG_CHECK_ARG_NULL(t->storage, "brg_as_strided: the tensor has no memory");
    layout.device = t->device;
    layout.offset = offset;
    if (ndim > 0)
        memcpy(layout.stride, strides, (size_t)ndim * sizeof *strides);
    if (!stays_inside(&layout, t->storage->nbytes)) {
        char text[BRG_SHAPE_TEXT_MAX];
        (void)BRG_FAIL(BRG_ERR_SHAPE,
                       "brg_as_strided: %s with these strides leaves the "
                       "storage of %zu bytes",
                       brg__shape_text(ndim, shape, text), t->storage->nbytes);
        return NULL;
    }
    brg_tensor *view;
    if (brg__tensor_new_view(&view, &layout, t->storage) != BRG_OK)
        return NULL;
    return brg__scope_adopt(view);
}

static _Atomic uint32_t n_captures;

uint32_t brg__new_capture(void)
{
    uint32_t number;
    do
        number =
            (atomic_fetch_add(&n_captures, 1) + 1) & (BRG__SYMBOL_CAPTURES - 1);
    while (number == 0);
    return number;
}

brg_status brg__symbol_is_left(brg_status code, const char *who,
                               const brg_tensor *t)
{
    char text[BRG_TENSOR_TEXT_MAX];
    return BRG_FAIL(code,
                    "%s: %s was made by a function while it was captured, and "
                    "has no value: give it back as a result",
                    who, brg__tensor_text(t, text));
}

/* ---- Questions ---------------------------------------------------------------- */

_Thread_local bool brg__symbol_was_read;
_Thread_local bool brg__symbol_layout_was_asked;

static void note_read(const brg_tensor *t)
{
    if (t->symbol)
        brg__symbol_was_read = true;
}

int brg_tensor_ndim(const brg_tensor *t)
{
    return t->ndim;
}

const int64_t *brg_tensor_shape(const brg_tensor *t)
{
    note_read(t);
    return t->shape;
}

const int64_t *brg_tensor_strides(const brg_tensor *t)
{
    note_read(t);
    return t->stride;
}

int64_t brg_tensor_size(const brg_tensor *t, int dim)
{
    if (dim < 0)
        dim += t->ndim;
    note_read(t);
    return dim >= 0 && dim < t->ndim ? t->shape[dim] : -1;
}

int64_t brg_tensor_numel(const brg_tensor *t)
{
    note_read(t);
    return t->numel;
}

size_t brg_tensor_nbytes(const brg_tensor *t)
{
    note_read(t);
    return (size_t)t->numel * brg__tensor_item_size(t);
}

brg_dtype brg_tensor_dtype(const brg_tensor *t)
{
    return (brg_dtype)t->dtype;
}

brg_device brg_tensor_device(const brg_tensor *t)
{
    return t->device;
}

bool brg_tensor_is_contiguous(const brg_tensor *t)
{
    if ((uintptr_t)t->symbol & BRG__SYMBOL_GRADIENT)
        brg__symbol_layout_was_asked = true;
    else
        note_read(t);
    return t->is_contiguous;
}

void *brg_tensor_data(const brg_tensor *t)
{
    if (t)
        note_read(t);
    if (brg__is_traced() &&
        brg__tracer_settle("brg_tensor_data", "the values are not there yet") !=
            BRG_OK)
        return NULL;
    return t && t->storage && t->storage->data ? brg__tensor_ptr(t) : NULL;
}

uint32_t brg_tensor_version(const brg_tensor *t)
{
    if (t->sparse)
        t = t->sparse->values;
    if (t->symbol && brg__is_traced() && brg__tracer_now->version)
        return brg__tracer_now->version(brg__tracer_now, t);
    return t->storage ? atomic_load(&t->storage->version) : 0;
}

void brg_tensor_touch(brg_tensor *t)
{
    if (t && t->sparse)
        t = t->sparse->values;
    if (t && t->storage)
        atomic_fetch_add(&t->storage->version, 1);
}

bool brg_tensor_shares_storage(const brg_tensor *a, const brg_tensor *b)
{
    return a && b && a->storage && a->storage == b->storage;
}

brg_status brg_tensor_set_name(brg_tensor *t, const char *name)
{
    if (!t)
        return brg__error_pending("brg_tensor_set_name: tensor");
    char *copy = NULL;
    if (name && !(copy = brg__mem_strdup(name)))
        return BRG_ERR_NOMEM;
    brg__mem_free(t->name);
    t->name = copy;
    return BRG_OK;
}

const char *brg_tensor_name(const brg_tensor *t)
{
    return t ? t->name : NULL;
}

size_t brg_tensor_describe(const brg_tensor *t, char *filled, size_t size)
{
    if (!t)
        return (size_t)snprintf(filled, size, "NULL");
    char shape[BRG_SHAPE_TEXT_MAX], nnz[32] = "";
    if (t->sparse)
        snprintf(nnz, sizeof nnz, " nnz %lld", (long long)brg__sparse_nnz(t));
    return (size_t)snprintf(filled, size, "%s%s%s%s%s%s",
                            t->sparse ? "sparse " : "",
                            brg_dtype_name((brg_dtype)t->dtype),
                            brg__shape_text(t->ndim, t->shape, shape), nnz,
                            t->name ? " " : "", t->name ? t->name : "");
}

char *brg__tensor_text(const brg_tensor *t, char text[BRG_TENSOR_TEXT_MAX])
{
    (void)brg_tensor_describe(t, text, BRG_TENSOR_TEXT_MAX);
    return text;
}
