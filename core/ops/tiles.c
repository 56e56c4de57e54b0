/* SPDX-License-Identifier: Apache-2.0
 * Merging of dims and the walk over tiles: see tiles.h. */
#include "core/ops/tiles.h"

#include <string.h>

#include "core/base/assert.h"

#define SHORT_ROW 64 /* rows below this length share a tile */

void brg__tiles_init(brg__tiles *t, int ndim, const int64_t *shape,
                     brg__ctype type)
{
    t->ndim = ndim;
    t->n_operands = 0;
    t->type = type;
    t->max_n = BRG__TILE_BYTES / brg__ctype_size(type);
    t->convert = brg__convert();
    for (int d = 0; d < ndim; d++)
        t->shape[d] = shape[d];
    if (ndim == 0) {
        t->ndim = 1;
        t->shape[0] = 1;
    }
}

void brg__tiles_add(brg__tiles *t, const brg_tensor *tensor)
{
    brg_assert(t->n_operands < BRG__TILES_MAX);
    brg__tile_operand *o = &t->operand[t->n_operands++];
    brg_dtype dtype = (brg_dtype)tensor->dtype;
    o->at = brg__tensor_ptr(tensor);
    o->filled_from = NULL;
    o->load = t->convert->load[dtype][t->type];
    o->store = t->convert->store[t->type][dtype];
    o->item = (uint8_t)brg__tensor_item_size(tensor);
    o->is_native = brg__is_native(dtype, t->type);
    int shift = t->ndim - tensor->ndim;
    for (int d = 0; d < t->ndim; d++) {
        bool is_there = d >= shift && tensor->shape[d - shift] != 1;
        o->stride[d] = is_there ? tensor->stride[d - shift] : 0;
    }
}

/* True if every operand steps through dims d and d + 1 as through one. */
static bool can_merge(const brg__tiles *t, int d_outer, int d_inner)
{
    for (int k = 0; k < t->n_operands; k++) {
        const int64_t *stride = t->operand[k].stride;
        if (stride[d_outer] != stride[d_inner] * t->shape[d_inner])
            return false;
    }
    return true;
}

static void move_dim(brg__tiles *t, int from, int to)
{
    t->shape[to] = t->shape[from];
    for (int k = 0; k < t->n_operands; k++)
        t->operand[k].stride[to] = t->operand[k].stride[from];
}

/* Drops dims of size 1 and merges neighbours. */
static void merge_dims(brg__tiles *t)
{
    int n = 0;
    for (int d = 0; d < t->ndim; d++) {
        if (t->shape[d] == 1)
            continue;
        if (n > 0 && can_merge(t, n - 1, d)) {
            int64_t size = t->shape[n - 1] * t->shape[d];
            move_dim(t, d, n - 1);
            t->shape[n - 1] = size;
        } else {
            move_dim(t, d, n++);
        }
    }
    if (n == 0) { /* one element */
        t->shape[0] = 1;
        for (int k = 0; k < t->n_operands; k++)
            t->operand[k].stride[0] = 1;
        n = 1;
    }
    t->ndim = n;
}

static void classify(brg__tiles *t)
{
    for (int k = 0; k < t->n_operands; k++) {
        brg__tile_operand *o = &t->operand[k];
        int64_t expected = 1;
        o->is_linear = o->is_scalar = true;
        for (int d = t->ndim - 1; d >= 0; d--) {
            o->is_linear = o->is_linear && o->stride[d] == expected;
            o->is_scalar = o->is_scalar && o->stride[d] == 0;
            expected *= t->shape[d];
        }
    }
}

/* Sizes the tile that starts at `index` and `column`. */
static void set_tile(brg__tiles *t)
{
    int64_t length = t->shape[t->ndim - 1];
    int64_t n = (int64_t)t->max_n;
    if (t->has_short_rows) {
        int64_t rows = n / length;
        n = (rows < t->rows_left ? rows : t->rows_left) * length;
    } else if (length - t->column < n) {
        n = length - t->column;
    }
    t->n = (size_t)n;
    for (int k = 0; k < t->n_operands; k++) {
        brg__tile_operand *o = &t->operand[k];
        int64_t skip = t->column * o->stride[t->ndim - 1];
        o->start = o->at + skip * o->item;
    }
}

void brg__tiles_prepare(brg__tiles *t)
{
    merge_dims(t);
    classify(t);
    t->rows = 1;
    for (int d = 0; d < t->ndim; d++)
        if (t->shape[d] == 0 || d < t->ndim - 1)
            t->rows *= t->shape[d];
    t->has_short_rows = t->rows > 1 && t->shape[t->ndim - 1] < SHORT_ROW;
}

void brg__tiles_move(brg__tiles *t, int k, const brg_tensor *tensor)
{
    t->operand[k].at = brg__tensor_ptr(tensor);
    t->operand[k].filled_from = NULL;
}

void brg__tiles_start(brg__tiles *t)
{
    t->n = 0;
    t->column = 0;
    t->rows_left = t->rows;
    for (int d = 0; d < t->ndim; d++)
        t->index[d] = 0;
    if (t->rows > 0)
        set_tile(t);
}

void brg__tiles_begin(brg__tiles *t)
{
    brg__tiles_prepare(t);
    brg__tiles_start(t);
}

/* One row on, in all operands. */
static void next_row(brg__tiles *t)
{
    t->rows_left--;
    for (int d = t->ndim - 2; d >= 0; d--) {
        bool is_end = ++t->index[d] == t->shape[d];
        int64_t steps = is_end ? 1 - t->shape[d] : 1;
        for (int k = 0; k < t->n_operands; k++) {
            brg__tile_operand *o = &t->operand[k];
            o->at += steps * o->stride[d] * o->item;
        }
        if (!is_end)
            return;
        t->index[d] = 0;
    }
}

void brg__tiles_next(brg__tiles *t)
{
    int64_t length = t->shape[t->ndim - 1];
    if (t->has_short_rows) {
        for (int64_t rows = (int64_t)t->n / length; rows > 0; rows--)
            next_row(t);
    } else {
        t->column += (int64_t)t->n;
        if (t->column == length) {
            t->column = 0;
            next_row(t);
        }
    }
    if (t->rows_left > 0)
        set_tile(t);
    else
        t->n = 0;
}

/* Calls the operand's load or store for each row of the tile. `values` is
 * where the tile's elements are or go, in a row. */
static void each_row(const brg__tiles *t, const brg__tile_operand *o,
                     char *values, bool is_store)
{
    size_t length = (size_t)t->shape[t->ndim - 1];
    size_t nbytes = length * brg__ctype_size(t->type);
    int64_t stride = o->stride[t->ndim - 1];
    int64_t index[BRG_MAX_DIMS];
    memcpy(index, t->index, sizeof index);
    char *at = o->start;
    for (size_t left = t->n; left > 0; left -= length, values += nbytes) {
        if (is_store)
            o->store(at, stride, values, length);
        else
            o->load(values, at, stride, length);
        for (int d = t->ndim - 2; d >= 0; d--) {
            bool is_end = ++index[d] == t->shape[d];
            int64_t steps = is_end ? 1 - t->shape[d] : 1;
            at += steps * o->stride[d] * o->item;
            if (!is_end)
                break;
            index[d] = 0;
        }
    }
}

/* The operand's tile lies in memory as an array of elements of its dtype. */
static bool is_row(const brg__tiles *t, const brg__tile_operand *o)
{
    return o->is_linear ||
           (!t->has_short_rows && (o->stride[t->ndim - 1] == 1 || t->n == 1));
}

bool brg__tiles_is_direct(const brg__tiles *t, int k)
{
    const brg__tile_operand *o = &t->operand[k];
    return o->is_native && o->is_linear;
}

const void *brg__tiles_read(brg__tiles *t, int k, void *buffer)
{
    brg__tile_operand *o = &t->operand[k];
    bool is_array = is_row(t, o);
    if (is_array && o->is_native)
        return o->start;
    bool is_same =
        o->is_scalar || (!t->has_short_rows && o->stride[t->ndim - 1] == 0);
    if (is_array) {
        o->load(buffer, o->start, 1, t->n);
        o->filled_from = NULL;
    } else if (is_same) {
        if (o->filled_from != o->start || o->n_filled < t->n) {
            o->load(buffer, o->start, 0, t->n);
            o->filled_from = o->start;
            o->n_filled = t->n;
        }
    } else if (t->has_short_rows) {
        each_row(t, o, buffer, false);
    } else {
        o->load(buffer, o->start, o->stride[t->ndim - 1], t->n);
    }
    return buffer;
}

void *brg__tiles_target(brg__tiles *t, int k, void *buffer)
{
    brg__tile_operand *o = &t->operand[k];
    return o->is_native && is_row(t, o) ? o->start : buffer;
}

void brg__tiles_write(brg__tiles *t, int k, const void *values)
{
    brg__tile_operand *o = &t->operand[k];
    if (values == o->start)
        return;
    if (is_row(t, o))
        o->store(o->start, 1, values, t->n);
    else if (t->has_short_rows)
        each_row(t, o, (char *)(uintptr_t)values, true);
    else
        o->store(o->start, o->stride[t->ndim - 1], values, t->n);
}
