/* SPDX-License-Identifier: Apache-2.0
 * A tensor as text: its description, then its values in nested brackets, with
 * the middle of long dims left out. Reads values one by one through the
 * strides, so it copies nothing. */
#include <inttypes.h>
#include <stdio.h>

#include "core/base/dtype.h"
#include "core/tensor/tensor.h"

/* Where text goes; counts on when the memory is full. */
typedef struct writer {
    char *at;
    size_t size;
    size_t length;
} writer;

static void put(writer *w, const char *text)
{
    for (; *text; text++, w->length++)
        if (w->length + 1 < w->size)
            w->at[w->length] = *text;
}

static void put_value(writer *w, const brg_tensor *t, int64_t element)
{
    const char *from = (const char *)t->storage->data +
                       element * (int64_t)brg__tensor_item_size(t);
    char text[32];
    uint16_t half;
    switch ((brg_dtype)t->dtype) {
    case BRG_DTYPE_F64:
        snprintf(text, sizeof text, "%.6g", *(const double *)from);
        break;
    case BRG_DTYPE_F32:
        snprintf(text, sizeof text, "%.6g", (double)*(const float *)from);
        break;
    case BRG_DTYPE_F16:
    case BRG_DTYPE_BF16:
        half = *(const uint16_t *)from;
        snprintf(text, sizeof text, "%.4g",
                 (double)(t->dtype == BRG_DTYPE_F16 ? brg__f16_to_f32(half)
                                                    : brg__bf16_to_f32(half)));
        break;
    case BRG_DTYPE_I64:
        snprintf(text, sizeof text, "%" PRId64, *(const int64_t *)from);
        break;
    case BRG_DTYPE_I32:
        snprintf(text, sizeof text, "%" PRId32, *(const int32_t *)from);
        break;
    case BRG_DTYPE_U8:
        snprintf(text, sizeof text, "%u", *(const uint8_t *)from);
        break;
    default:
        snprintf(text, sizeof text, "%s", *from ? "true" : "false");
        break;
    }
    put(w, text);
}

/* Between two entries of dim d: rows of matrices go on lines of their own. */
static void put_separator(writer *w, const brg_tensor *t, int d)
{
    if (d == t->ndim - 1) {
        put(w, ", ");
        return;
    }
    put(w, ",\n");
    for (int i = 0; i <= d; i++)
        put(w, " ");
}

/* The entry after `i` that is shown: half of max_items at each end. */
static int64_t next_shown(int64_t i, int64_t size, int64_t max_items)
{
    int64_t head = (max_items + 1) / 2, tail = max_items / 2;
    return size > max_items && i + 1 == head ? size - tail : i + 1;
}

/* Dims from d on, at `element` of the storage. Depth <= BRG_MAX_DIMS. */
static void put_dim(writer *w, const brg_tensor *t, int d, int64_t element,
                    int64_t max_items)
{
    if (d == t->ndim) {
        put_value(w, t, element);
        return;
    }
    put(w, "[");
    for (int64_t i = 0; i < t->shape[d];) {
        put_dim(w, t, d + 1, element + i * t->stride[d], max_items);
        int64_t next = next_shown(i, t->shape[d], max_items);
        if (next > i + 1) {
            put_separator(w, t, d);
            put(w, "...");
        }
        if (next < t->shape[d])
            put_separator(w, t, d);
        i = next;
    }
    put(w, "]");
}

size_t brg_tensor_print(const brg_tensor *t, int max_items, char *filled,
                        size_t size)
{
    writer w = {filled, size, 0};
    char text[BRG_TENSOR_TEXT_MAX];
    put(&w, brg__tensor_text(t, text));
    if (t && t->storage && t->device.type == BRG_DEVICE_CPU) {
        put(&w, t->ndim > 1 ? "\n" : " ");
        put_dim(&w, t, 0, t->offset, max_items > 0 ? max_items : 1);
    }
    if (size > 0)
        filled[w.length < size ? w.length : size - 1] = '\0';
    return w.length;
}
