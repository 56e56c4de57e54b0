/* SPDX-License-Identifier: Apache-2.0
 * Lines of tensors and single elements: see rows.h. */
#include "core/ops/rows.h"

#include "core/base/dtype.h"
#include "core/ops/convert.h"
#include "core/ops/isa.h"
#include "core/ops/row_tables.h"

const brg__row_kernels *brg__row_kernels_of(brg_dtype dtype)
{
    if (dtype == BRG_DTYPE_F64)
        return &brg__row_kernels_f64;
    return BRG__ISA_PICK(brg__row_kernels_f32);
}

void brg__lines_init(brg__lines *lines, const brg_tensor *t, int dim)
{
    *lines = (brg__lines){.base = brg__storage_base(t),
                          .dtype = (brg_dtype)t->dtype,
                          .item = brg__tensor_item_size(t),
                          .n = t->ndim ? t->shape[dim] : 1,
                          .stride = t->ndim ? t->stride[dim] : 1,
                          .at = t->offset,
                          .count = 1};
    for (int d = 0; d < t->ndim; d++) {
        if (d == dim || t->shape[d] == 1)
            continue;
        lines->count *= t->shape[d];
        lines->size[lines->n_outer] = t->shape[d];
        lines->step[lines->n_outer++] = t->stride[d];
    }
}

void brg__lines_next(brg__lines *l)
{
    for (int d = l->n_outer - 1; d >= 0; d--) {
        l->at += l->step[d];
        if (++l->index[d] < l->size[d])
            return;
        l->at -= l->size[d] * l->step[d];
        l->index[d] = 0;
    }
}

static bool is_direct(const brg__row_kernels *k, brg_dtype dtype,
                      int64_t stride)
{
    return stride == 1 && (dtype == BRG_DTYPE_F64 || dtype == BRG_DTYPE_F32) &&
           brg_dtype_size(dtype) == k->item;
}

static brg__ctype type_of(const brg__row_kernels *k)
{
    return k->item == sizeof(float) ? BRG__F32 : BRG__F64;
}

const void *brg__row_load(const brg__row_kernels *k, const char *base,
                          brg_dtype dtype, int64_t at, int64_t stride, size_t n,
                          void *buffer)
{
    const char *from = base + (size_t)at * brg_dtype_size(dtype);
    if (is_direct(k, dtype, stride))
        return from;
    brg__convert()->load[dtype][type_of(k)](buffer, from, stride, n);
    return buffer;
}

void *brg__row_target(const brg__row_kernels *k, char *base, brg_dtype dtype,
                      int64_t at, int64_t stride, void *buffer)
{
    return is_direct(k, dtype, stride) ? base + (size_t)at * k->item : buffer;
}

void brg__row_store(const brg__row_kernels *k, char *base, brg_dtype dtype,
                    int64_t at, int64_t stride, size_t n, const void *row)
{
    char *to = base + (size_t)at * brg_dtype_size(dtype);
    if (to != row)
        brg__convert()->store[type_of(k)][dtype](to, stride, row, n);
}

/* ---- Bands ----------------------------------------------------------- */

void brg__band_load(const brg__row_kernels *k, const char *base,
                    brg_dtype dtype, int64_t at, int64_t stride, size_t n,
                    size_t width, void *buffer)
{
    const size_t ld = brg__band_row(n);
    double piece[BRG__BAND];
    for (size_t i = 0; i < n; i++, at += stride) {
        const void *from = brg__row_load(k, base, dtype, at, 1, width, piece);
        if (k->item == sizeof(float))
            for (size_t c = 0; c < width; c++)
                ((float *)buffer)[c * ld + i] = ((const float *)from)[c];
        else
            for (size_t c = 0; c < width; c++)
                ((double *)buffer)[c * ld + i] = ((const double *)from)[c];
    }
}

void brg__band_store(const brg__row_kernels *k, char *base, brg_dtype dtype,
                     int64_t at, int64_t stride, size_t n, size_t width,
                     const void *buffer)
{
    const size_t ld = brg__band_row(n);
    double piece[BRG__BAND];
    for (size_t i = 0; i < n; i++, at += stride) {
        void *to = brg__row_target(k, base, dtype, at, 1, piece);
        if (k->item == sizeof(float))
            for (size_t c = 0; c < width; c++)
                ((float *)to)[c] = ((const float *)buffer)[c * ld + i];
        else
            for (size_t c = 0; c < width; c++)
                ((double *)to)[c] = ((const double *)buffer)[c * ld + i];
        brg__row_store(k, base, dtype, at, 1, width, to);
    }
}

/* ---- Single elements ------------------------------------------------- */

#define AT(type) (((const type *)(const void *)base)[at])
#define PUT(type) (((type *)(void *)base)[at])

double brg__get_f64(const char *base, brg_dtype dtype, int64_t at)
{
    switch (dtype) {
    case BRG_DTYPE_F64:
        return AT(double);
    case BRG_DTYPE_F32:
        return (double)AT(float);
    case BRG_DTYPE_F16:
        return (double)brg__f16_to_f32(AT(uint16_t));
    case BRG_DTYPE_BF16:
        return (double)brg__bf16_to_f32(AT(uint16_t));
    default:
        return (double)brg__get_i64(base, dtype, at);
    }
}

void brg__put_f64(char *base, brg_dtype dtype, int64_t at, double value)
{
    switch (dtype) {
    case BRG_DTYPE_F64:
        PUT(double) = value;
        break;
    case BRG_DTYPE_F32:
        PUT(float) = (float)value;
        break;
    case BRG_DTYPE_F16:
        PUT(uint16_t) = brg__f32_to_f16((float)value);
        break;
    case BRG_DTYPE_BF16:
        PUT(uint16_t) = brg__f32_to_bf16((float)value);
        break;
    case BRG_DTYPE_BOOL:
        PUT(uint8_t) = value != 0.0;
        break;
    default:
        brg__put_i64(base, dtype, at, (int64_t)value);
    }
}

int64_t brg__get_i64(const char *base, brg_dtype dtype, int64_t at)
{
    switch (dtype) {
    case BRG_DTYPE_I64:
        return AT(int64_t);
    case BRG_DTYPE_I32:
        return AT(int32_t);
    case BRG_DTYPE_U8:
    case BRG_DTYPE_BOOL:
        return AT(uint8_t);
    default:
        return (int64_t)brg__get_f64(base, dtype, at);
    }
}

void brg__put_i64(char *base, brg_dtype dtype, int64_t at, int64_t value)
{
    switch (dtype) {
    case BRG_DTYPE_I64:
        PUT(int64_t) = value;
        break;
    case BRG_DTYPE_I32:
        PUT(int32_t) = (int32_t)value;
        break;
    case BRG_DTYPE_U8:
        PUT(uint8_t) = (uint8_t)value;
        break;
    case BRG_DTYPE_BOOL:
        PUT(uint8_t) = value != 0;
        break;
    default:
        brg__put_f64(base, dtype, at, (double)value);
    }
}
