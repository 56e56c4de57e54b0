/* SPDX-License-Identifier: Apache-2.0
 * Loops over the entries of sparse tensors. Entries that share a place are
 * added up in their order, so a result has the same bits each time. */
#include <string.h>

#include "core/ops/convert.h"
#include "core/ops/pointwise.h"
#include "core/ops/rows.h"
#include "core/ops/sparse.h"

/* ---- Parts ------------------------------------------------------------ */

brg_status brg__sparse_empty(brg_tensor **out, const brg_tensor *t, int64_t nnz,
                             brg_dtype dtype)
{
    brg__layout indices = brg__layout_of(t->sparse->indices);
    brg__layout values = brg__layout_of(t->sparse->values);
    brg_tensor *i = NULL, *v = NULL;
    *out = NULL;
    indices.offset = values.offset = 0;
    indices.shape[1] = values.shape[0] = nnz;
    values.dtype = dtype;
    brg__shape_strides(indices.ndim, indices.shape, indices.stride);
    brg__shape_strides(values.ndim, values.shape, values.stride);
    brg_status status = brg__tensor_new(&i, &indices);
    if (status == BRG_OK)
        status = brg__tensor_new(&v, &values);
    if (status == BRG_OK)
        status = brg__sparse_new(out, t, i, v, false);
    brg_release(i);
    brg_release(v);
    return status;
}

/* Entries first..first + n of the values, as a tensor on the stack. */
static brg_tensor values_part(const brg_tensor *t, int64_t first, int64_t n)
{
    brg_tensor part = *t->sparse->values;
    part.offset += first * part.stride[0];
    part.shape[0] = n;
    (void)brg__shape_numel(part.ndim, part.shape, &part.numel);
    return part;
}

/* The same entries of the indices. */
static brg_tensor indices_part(const brg_tensor *t, int64_t first, int64_t n)
{
    brg_tensor part = *t->sparse->indices;
    part.offset += first;
    part.is_contiguous = n == part.shape[1];
    part.shape[1] = n;
    part.numel = part.shape[0] * n;
    return part;
}

/* dst[first..] = alpha src. */
static brg_status put_entries(const brg_tensor *dst, int64_t first,
                              const brg_tensor *src, double alpha)
{
    int64_t n = brg__sparse_nnz(src);
    if (n == 0)
        return BRG_OK;
    brg_tensor part = indices_part(dst, first, n);
    BRG_TRY(brg__copy_now(&part, src->sparse->indices));
    part = values_part(dst, first, n);
    if (alpha == 1.0)
        return brg__copy_now(&part, src->sparse->values);
    return brg__pointwise_now(&brg__op_mul_scalar,
                              (const brg_tensor *[]){src->sparse->values},
                              &part, (const double[2]){alpha});
}

/* *out, or nothing if it failed. */
static brg_status keep_if(brg_status status, brg_tensor **out)
{
    if (status == BRG_OK)
        return BRG_OK;
    brg_release(*out);
    *out = NULL;
    return status;
}

brg_status brg__sparse_clone(brg_tensor **out, const brg_tensor *t)
{
    BRG_TRY(brg__sparse_empty(out, t, brg__sparse_nnz(t), (brg_dtype)t->dtype));
    (*out)->sparse->is_coalesced = t->sparse->is_coalesced;
    return keep_if(put_entries(*out, 0, t, 1.0), out);
}

brg_status brg__sparse_join(brg_tensor **out, const brg_tensor *a,
                            const brg_tensor *b, double alpha)
{
    int64_t n_a = brg__sparse_nnz(a), n_b = brg__sparse_nnz(b);
    BRG_TRY(brg__sparse_empty(out, a, n_a + n_b, (brg_dtype)a->dtype));
    (*out)->sparse->is_coalesced = (n_a == 0 && b->sparse->is_coalesced) ||
                                   (n_b == 0 && a->sparse->is_coalesced);
    brg_status status = put_entries(*out, 0, a, 1.0);
    if (status == BRG_OK)
        status = put_entries(*out, n_a, b, alpha);
    return keep_if(status, out);
}

/* ---- Places ----------------------------------------------------------- */

int64_t brg__sparse_place(const brg_tensor *t, int64_t k)
{
    const int64_t *index = brg__tensor_ptr(t->sparse->indices);
    int64_t nnz = brg__sparse_nnz(t), place = 0;
    for (int d = 0; d < brg__sparse_n_dims(t); d++)
        place = place * t->shape[d] + index[d * nnz + k];
    return place;
}

/* The part of dense t at one place, its dims joined if they can be: a tensor
 * on the stack that lacks its offset. */
static brg_tensor block_of(const brg_tensor *t, int n_dims)
{
    brg_tensor block = *t;
    int ndim = t->ndim - n_dims;
    block.ndim = (uint8_t)ndim;
    memmove(block.shape, t->shape + n_dims, (size_t)ndim * sizeof *t->shape);
    memmove(block.stride, t->stride + n_dims, (size_t)ndim * sizeof *t->stride);
    (void)brg__shape_numel(ndim, block.shape, &block.numel);
    block.is_contiguous =
        brg__shape_is_contiguous(ndim, block.shape, block.stride);
    if (block.is_contiguous) {
        block.ndim = 1;
        block.shape[0] = block.numel;
        block.stride[0] = 1;
    }
    return block;
}

/* The offset of entry k in dense t. */
static int64_t offset_at(const brg_tensor *t, const brg_tensor *indices,
                         int64_t k)
{
    const int64_t *index = brg__tensor_ptr(indices);
    int64_t nnz = indices->shape[1], offset = t->offset;
    for (int64_t d = 0; d < indices->shape[0]; d++)
        offset += index[d * nnz + k] * t->stride[d];
    return offset;
}

brg_status brg__sparse_take(const brg_tensor *dst, const brg_tensor *x,
                            const brg_tensor *indices)
{
    if (dst->numel == 0)
        return BRG_OK;
    if (brg__sparse_is_there(dst))
        return brg__sparse_take_there(dst, x, indices);
    brg_tensor from = block_of(x, (int)indices->shape[0]);
    brg_tensor to = from;
    to.storage = dst->storage;
    brg__shape_strides(to.ndim, to.shape, to.stride);
    to.is_contiguous = true;
    int64_t polls = 65536;
    for (int64_t k = 0; k < indices->shape[1]; k++) {
        from.offset = offset_at(x, indices, k);
        to.offset = dst->offset + k * from.numel;
        brg__copy_strided(&to, &from);
        brg__poll_after(&polls, from.numel);
    }
    return BRG_OK;
}

/* ---- Into dense tensors ----------------------------------------------- */

/* block += alpha values[at..], line by line. */
static void add_block(const brg__row_kernels *k, const brg_tensor *block,
                      const brg_tensor *values, int64_t at, double alpha,
                      char *const buffers[2])
{
    brg__lines l;
    brg__lines_init(&l, block, block->ndim - 1);
    for (int64_t i = 0; i < l.count; i++, at += l.n) {
        void *to =
            brg__row_target(k, l.base, l.dtype, l.at, l.stride, buffers[0]);
        if (to == buffers[0])
            to = (void *)(uintptr_t)brg__line_load(k, &l, buffers[0]);
        const void *from = brg__row_load(k, brg__storage_base(values), l.dtype,
                                         at, 1, (size_t)l.n, buffers[1]);
        if (alpha == 1.0)
            k->add_to(to, from, (size_t)l.n);
        else
            k->affine(to, to, 0.0, 1.0, from, alpha, 0.0, (size_t)l.n);
        brg__line_store(k, &l, to);
        brg__lines_next(&l);
    }
}

static brg_status add_entries(const brg_tensor *dst, const brg_tensor *src,
                              double alpha)
{
    const brg__row_kernels *k = brg__row_kernels_of((brg_dtype)dst->dtype);
    const brg_tensor *values = src->sparse->values;
    if (values->numel == 0)
        return BRG_OK;
    brg_tensor block = block_of(dst, brg__sparse_n_dims(src));
    size_t nbytes = (size_t)block.numel * k->item;
    char *buffer = brg__scratch(1, 2 * nbytes, "two slices");
    if (!buffer)
        return brg_error_code();
    char *const buffers[2] = {buffer, buffer + nbytes};
    int64_t polls = 65536;
    for (int64_t i = 0; i < brg__sparse_nnz(src); i++) {
        block.offset = offset_at(dst, src->sparse->indices, i);
        add_block(k, &block, values, values->offset + i * block.numel, alpha,
                  buffers);
        brg__poll_after(&polls, block.numel);
    }
    return BRG_OK;
}

brg_status brg__sparse_add_to(const brg_tensor *dst, const brg_tensor *src,
                              double alpha)
{
    brg_tensor *own = NULL;
    bool is_there = brg__sparse_is_there(dst);
    bool is_16 = brg__tensor_item_size(dst) == 2;
    if (is_16 && !src->sparse->is_coalesced && !is_there)
        BRG_TRY(brg__sparse_coalesce(&own, src));
    else if (dst->storage == src->sparse->values->storage)
        BRG_TRY(brg__sparse_clone(&own, src));
    const brg_tensor *from = own ? own : src;
    brg_status status = is_there ? brg__sparse_add_there(dst, from, alpha)
                                 : add_entries(dst, from, alpha);
    brg_release(own);
    return status;
}

/* ---- Coalescing ------------------------------------------------------- */

typedef struct entry {
    int64_t place;
    int64_t k;
} entry;

/* Merges the sorted from[low..middle) and from[middle..high), the first half
 * winning ties. */
static void merge(entry *to, const entry *from, int64_t low, int64_t middle,
                  int64_t high)
{
    int64_t i = low, j = middle;
    for (int64_t at = low; at < high; at++) {
        bool is_first =
            i < middle && (j >= high || from[i].place <= from[j].place);
        to[at] = is_first ? from[i++] : from[j++];
    }
}

/* Stable; returns which of the two arrays holds the result. */
static entry *sort(entry *a, entry *b, int64_t n)
{
    for (int64_t width = 1; width < n; width *= 2) {
        for (int64_t low = 0; low < n; low += 2 * width) {
            int64_t middle = low + width < n ? low + width : n;
            int64_t high = middle + width < n ? middle + width : n;
            merge(b, a, low, middle, high);
        }
        entry *t = a;
        a = b;
        b = t;
    }
    return a;
}

/* The entries of t by place, in scratch memory; *n_places: different ones.
 * NULL when out of memory. */
static entry *sorted_entries(const brg_tensor *t, int64_t *n_places)
{
    int64_t n = brg__sparse_nnz(t);
    entry *entries =
        brg__scratch(0, 2 * (size_t)n * sizeof *entries, "sorted entries");
    if (!entries)
        return NULL;
    bool is_sorted = true;
    for (int64_t k = 0; k < n; k++) {
        entries[k] = (entry){brg__sparse_place(t, k), k};
        is_sorted &= k == 0 || entries[k - 1].place <= entries[k].place;
    }
    if (!is_sorted)
        entries = sort(entries, entries + n, n);
    *n_places = 0;
    for (int64_t k = 0; k < n; k++)
        *n_places += k == 0 || entries[k - 1].place != entries[k].place;
    return entries;
}

/* Values of the entries of one place, entries[0..n), into row `to` of out. */
static void sum_entries(const brg__row_kernels *k, const brg_tensor *out,
                        int64_t to, const brg_tensor *t, const entry *entries,
                        int64_t n, char *const buffers[2])
{
    const brg_tensor *from = t->sparse->values, *values = out->sparse->values;
    brg_dtype dtype = (brg_dtype)from->dtype;
    int64_t size = values->stride[0], at = values->offset + to * size;
    char *base = brg__storage_base(values);
    void *sum = brg__row_target(k, base, dtype, at, 1, buffers[0]);
    for (int64_t i = 0; i < n; i++) {
        const void *row = brg__row_load(k, brg__storage_base(from), dtype,
                                        from->offset + entries[i].k * size, 1,
                                        (size_t)size, buffers[1]);
        if (i == 0)
            memcpy(sum, row, (size_t)size * k->item);
        else
            k->add_to(sum, row, (size_t)size);
    }
    brg__row_store(k, base, dtype, at, 1, (size_t)size, sum);
}

static void copy_index(const brg_tensor *out, int64_t to, const brg_tensor *t,
                       int64_t from)
{
    int64_t *a = brg__tensor_ptr(out->sparse->indices);
    const int64_t *b = brg__tensor_ptr(t->sparse->indices);
    for (int d = 0; d < brg__sparse_n_dims(t); d++)
        a[d * brg__sparse_nnz(out) + to] = b[d * brg__sparse_nnz(t) + from];
}

static brg_status sum_places(const brg_tensor *out, const brg_tensor *t,
                             const entry *entries)
{
    const brg__row_kernels *k = brg__row_kernels_of((brg_dtype)t->dtype);
    int64_t size = out->sparse->values->stride[0], n = brg__sparse_nnz(t);
    size_t nbytes = (size_t)size * k->item;
    char *buffer = brg__scratch(1, 2 * nbytes, "two slices");
    if (!buffer)
        return brg_error_code();
    char *const buffers[2] = {buffer, buffer + nbytes};
    int64_t polls = 65536;
    bool has_values = out->sparse->values->numel > 0;
    for (int64_t i = 0, to = 0, end; i < n; i = end, to++) {
        for (end = i + 1; end < n && entries[end].place == entries[i].place;)
            end++;
        copy_index(out, to, t, entries[i].k);
        if (has_values)
            sum_entries(k, out, to, t, entries + i, end - i, buffers);
        brg__poll_after(&polls, (end - i) * size);
    }
    return BRG_OK;
}

brg_status brg__sparse_coalesce(brg_tensor **out, const brg_tensor *t)
{
    *out = NULL;
    if (t->sparse->is_coalesced || brg__sparse_nnz(t) == 0) {
        BRG_TRY(brg__sparse_new_alias(out, t));
        (*out)->sparse->is_coalesced = true;
        return BRG_OK;
    }
    if (brg__sparse_is_there(t))
        return brg__sparse_coalesce_there(out, t);
    int64_t n_places;
    const entry *entries = sorted_entries(t, &n_places);
    if (!entries)
        return brg_error_code();
    BRG_TRY(brg__sparse_empty(out, t, n_places, (brg_dtype)t->dtype));
    (*out)->sparse->is_coalesced = true;
    return keep_if(sum_places(*out, t, entries), out);
}
