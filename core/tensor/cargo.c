/* SPDX-License-Identifier: Apache-2.0
 * Tensors among numbers that ranks add, in host memory (ext/device.h). */
#include <math.h>
#include <string.h>

#include "core/base/dtype.h"
#include "core/tensor/device.h"

/* ---- Elements, in row-major order whatever their strides ---------------------- */

typedef struct walk {
    const brg_device_cargo *c;
    size_t size; /* of an element */
    size_t n_pieces;
    char *at;
    int64_t index[BRG_MAX_DIMS];
} walk;

static walk walk_begin(const brg_device_cargo *c)
{
    const size_t size = brg_dtype_size(c->dtype);
    return (walk){
        .c = c, .size = size, .n_pieces = (size + 1) / 2, .at = c->at};
}

static void walk_on(walk *w)
{
    for (int d = w->c->ndim - 1; d >= 0; d--) {
        int64_t step = w->c->stride[d] * (int64_t)w->size;
        w->at += step;
        if (++w->index[d] < w->c->shape[d])
            return;
        w->at -= step * w->c->shape[d];
        w->index[d] = 0;
    }
}

/* ---- One element -------------------------------------------------------------- */

static void put_pieces(float *to, const char *at, size_t size)
{
    for (size_t k = 0; k < size; k += 2) {
        uint16_t piece = 0;
        memcpy(&piece, at + k, size - k < 2 ? 1 : 2);
        *to++ = piece;
    }
}

static void take_pieces(char *at, size_t size, const float *from, float scale)
{
    for (size_t k = 0; k < size; k += 2) {
        const float n = scale * *from++;
        const uint16_t piece = (uint16_t)(n > 0 ? lroundf(n) : 0);
        memcpy(at + k, &piece, size - k < 2 ? 1 : 2);
    }
}

static float load_f32(const void *at, brg_dtype dtype)
{
    uint16_t half;
    float x;
    memcpy(&half, at, sizeof half);
    if (dtype == BRG_DTYPE_F16)
        return brg__f16_to_f32(half);
    if (dtype == BRG_DTYPE_BF16)
        return brg__bf16_to_f32(half);
    memcpy(&x, at, sizeof x);
    return x;
}

static void store_f32(void *at, brg_dtype dtype, float x)
{
    uint16_t half =
        dtype == BRG_DTYPE_F16 ? brg__f32_to_f16(x) : brg__f32_to_bf16(x);
    if (dtype == BRG_DTYPE_F32)
        memcpy(at, &x, sizeof x);
    else
        memcpy(at, &half, sizeof half);
}

/* The average of the sets of one element, as a reduction of its dtype makes
 * it. */
static void average_sets(const walk *w, const float *from)
{
    const brg_device_cargo *c = w->c;
    const size_t stride = c->numel * w->n_pieces;
    char element[sizeof(double)];
    double wide = 0, x;
    float narrow = 0;
    for (uint32_t k = 0; k < c->n_sets; k++, from += stride) {
        take_pieces(element, w->size, from, c->scale);
        if (c->dtype == BRG_DTYPE_F64) {
            memcpy(&x, element, sizeof x);
            wide = k > 0 ? wide + x : x;
        } else {
            float y = load_f32(element, c->dtype);
            narrow = k > 0 ? narrow + y : y;
        }
    }
    wide *= 1.0 / c->n_sets;
    if (c->dtype == BRG_DTYPE_F64)
        memcpy(w->at, &wide, sizeof wide);
    else
        store_f32(w->at, c->dtype, narrow * (1.0f / (float)c->n_sets));
}

/* ---- All of them -------------------------------------------------------------- */

static void load(const brg_device_cargo *c)
{
    walk w = walk_begin(c);
    for (size_t i = 0; i < c->numel; i++, walk_on(&w)) {
        if (c->n_sets == 0)
            c->row[i] = load_f32(w.at, c->dtype);
        else
            put_pieces(c->row + i * w.n_pieces, w.at, w.size);
    }
}

static void unload(const brg_device_cargo *c)
{
    walk w = walk_begin(c);
    for (size_t i = 0; i < c->numel; i++, walk_on(&w)) {
        const float *from = c->row + (c->n_sets > 0 ? i * w.n_pieces : i);
        if (c->n_sets == 0)
            store_f32(w.at, c->dtype, *from * c->scale);
        else if (c->n_sets == 1)
            take_pieces(w.at, w.size, from, c->scale);
        else
            average_sets(&w, from);
    }
}

brg_status brg__cpu_cargo_load(brg_device device, const brg_device_cargo *cargo,
                               size_t n)
{
    (void)device;
    for (size_t i = 0; i < n; i++)
        load(&cargo[i]);
    return BRG_OK;
}

brg_status brg__cpu_cargo_unload(brg_device device,
                                 const brg_device_cargo *cargo, size_t n)
{
    (void)device;
    for (size_t i = 0; i < n; i++)
        unload(&cargo[i]);
    return BRG_OK;
}
