/* SPDX-License-Identifier: Apache-2.0
 * Buffers that ride on the last bucket, behind the tail (sync_buffers).
 *
 *     sent by rank 0     16 bits of an element in each f32, zeros from others
 *     averaged           the element; or, where f32 or the way the bucket is
 *                        summed would round it, its pieces of 16 bits in a
 *                        place for each rank, which all then add up alike
 *
 * Small integers survive the sum, whatever divides it, as those of the tail
 * do: every bit arrives. */
#include <string.h>

#include "core/base/dtype.h"
#include "reducer/ddp.h"
#include "reducer/leaves.h"

/* More is sent by itself: to all-reduce pieces of it would take longer. */
#define CARGO_NBYTES ((size_t)2 << 20)

typedef enum ride { FROM_RANK_0, AS_VALUES, FROM_ALL } ride;

static ride ride_of(const brg_ddp *ddp, const brg_tensor *t)
{
    bool is_averaged = ddp->options.sync_buffers == BRG_DDP_BUFFERS_AVERAGE;
    if (!is_averaged || !brg__tensor_is_float(t))
        return FROM_RANK_0;
    return ddp->has_leaves || t->dtype == BRG_DTYPE_F64 ? FROM_ALL : AS_VALUES;
}

static size_t n_pieces(const brg_tensor *t)
{
    return (brg_dtype_size((brg_dtype)t->dtype) + 1) / 2;
}

static size_t n_floats(const brg_ddp *ddp, const brg_tensor *t)
{
    size_t n = (size_t)t->numel;
    switch (ride_of(ddp, t)) {
    case AS_VALUES:
        return n;
    case FROM_ALL:
        return n * n_pieces(t) * (size_t)brg_pg_world_size(ddp->pg);
    default:
        return n * n_pieces(t);
    }
}

size_t brg__cargo_size(const brg_ddp *ddp)
{
    size_t n = 0;
    if (ddp->options.sync_buffers == BRG_DDP_BUFFERS_LEAVE ||
        ddp->reducer->tail.vtable)
        return 0;
    for (size_t i = 0; i < ddp->n_buffers; i++)
        n += n_floats(ddp, ddp->buffers[i]);
    return n <= CARGO_NBYTES / sizeof(float) ? n : 0;
}

/* ---- Elements, in row-major order whatever their strides ------------------------ */

typedef struct walk {
    const brg_tensor *t;
    size_t size;
    char *at;
    int64_t index[BRG_MAX_DIMS];
} walk;

static walk walk_begin(brg_tensor *t)
{
    return (walk){.t = t,
                  .size = brg_dtype_size((brg_dtype)t->dtype),
                  .at = brg__tensor_ptr(t)};
}

static void walk_on(walk *w)
{
    for (int d = w->t->ndim - 1; d >= 0; d--) {
        int64_t step = w->t->stride[d] * (int64_t)w->size;
        w->at += step;
        if (++w->index[d] < w->t->shape[d])
            return;
        w->at -= step * w->t->shape[d];
        w->index[d] = 0;
    }
}

static void put_pieces(float *to, const char *at, size_t size)
{
    for (size_t k = 0; k < size; k += 2) {
        uint16_t piece = 0;
        memcpy(&piece, at + k, size - k < 2 ? 1 : 2);
        *to++ = piece;
    }
}

static void take_pieces(const brg_reducer *r, char *at, size_t size,
                        const float *from)
{
    for (size_t k = 0; k < size; k += 2) {
        uint16_t piece = (uint16_t)brg__tail_number(r, *from++);
        memcpy(at + k, &piece, size - k < 2 ? 1 : 2);
    }
}

static float load_f32(const void *at, int dtype)
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

static void store_f32(void *at, int dtype, float x)
{
    uint16_t half =
        dtype == BRG_DTYPE_F16 ? brg__f32_to_f16(x) : brg__f32_to_bf16(x);
    if (dtype == BRG_DTYPE_F32)
        memcpy(at, &x, sizeof x);
    else
        memcpy(at, &half, sizeof half);
}

/* The average over ranks of one element, as a reduction of its dtype makes it:
 * added in the order of the ranks, `stride` floats apart. */
static void average_pieces(const brg_reducer *r, walk *w, const float *from,
                           size_t stride)
{
    char element[sizeof(double)];
    double wide = 0, x;
    float narrow = 0;
    for (int k = 0; k < r->world_size; k++, from += stride) {
        take_pieces(r, element, w->size, from);
        if (w->t->dtype == BRG_DTYPE_F64) {
            memcpy(&x, element, sizeof x);
            wide = k > 0 ? wide + x : x;
        } else {
            float y = load_f32(element, w->t->dtype);
            narrow = k > 0 ? narrow + y : y;
        }
    }
    wide *= 1.0 / r->world_size;
    if (w->t->dtype == BRG_DTYPE_F64)
        memcpy(w->at, &wide, sizeof wide);
    else
        store_f32(w->at, w->t->dtype, narrow * (1.0f / (float)r->world_size));
}

/* ---- Loading and unloading -------------------------------------------------------- */

static void load(const brg_ddp *ddp, brg_tensor *t, float *to)
{
    ride how = ride_of(ddp, t);
    size_t n = n_pieces(t), rank = (size_t)ddp->reducer->rank;
    walk w = walk_begin(t);
    if (how == FROM_RANK_0 && rank != 0)
        return;
    if (how == FROM_ALL)
        to += rank * (size_t)t->numel * n;
    for (int64_t i = 0; i < t->numel; i++, walk_on(&w)) {
        if (how == AS_VALUES)
            to[i] = load_f32(w.at, t->dtype);
        else
            put_pieces(to + (size_t)i * n, w.at, w.size);
    }
}

static void unload(const brg_ddp *ddp, brg_tensor *t, const float *from)
{
    const brg_reducer *r = ddp->reducer;
    ride how = ride_of(ddp, t);
    size_t n = n_pieces(t), stride = (size_t)t->numel * n;
    float factor = r->options.sum ? 1.0f / (float)r->world_size : 1;
    walk w = walk_begin(t);
    for (int64_t i = 0; i < t->numel; i++, walk_on(&w)) {
        if (how == AS_VALUES)
            store_f32(w.at, t->dtype, from[i] * factor);
        else if (how == FROM_RANK_0)
            take_pieces(r, w.at, w.size, from + (size_t)i * n);
        else
            average_pieces(r, &w, from + (size_t)i * n, stride);
    }
    brg_tensor_touch(t);
}

void brg__cargo_load(const brg_ddp *ddp, float *cargo)
{
    memset(cargo, 0, ddp->reducer->n_cargo * sizeof *cargo);
    for (size_t i = 0; i < ddp->n_buffers; i++) {
        load(ddp, ddp->buffers[i], cargo);
        cargo += n_floats(ddp, ddp->buffers[i]);
    }
}

void brg__cargo_unload(const brg_ddp *ddp)
{
    const brg_reducer *r = ddp->reducer;
    if (r->n_cargo == 0)
        return;
    const float *cargo = brg__tail_cargo(r);
    for (size_t i = 0; i < ddp->n_buffers; i++) {
        unload(ddp, ddp->buffers[i], cargo);
        cargo += n_floats(ddp, ddp->buffers[i]);
    }
}
