/* SPDX-License-Identifier: Apache-2.0
 * Buffers that ride on the last bucket, behind the tail (sync_buffers).
 *
 *     sent by rank 0     16 bits of an element in each f32, zeros from others
 *     averaged           the element; or, where f32 or the way the bucket is
 *                        summed would round it, its pieces of 16 bits in a
 *                        place for each rank, which all then add up alike
 *
 * Small integers survive the sum, whatever divides it, as those of the tail
 * do: every bit arrives. The buffers' device writes and reads them
 * (ext/device.h). */
#include <string.h>

#include "core/base/alloc.h"
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

/* f32 of one set. */
static size_t set_size(const brg_tensor *t)
{
    size_t n_pieces = (brg_dtype_size((brg_dtype)t->dtype) + 1) / 2;
    return (size_t)t->numel * n_pieces;
}

static size_t n_floats(const brg_ddp *ddp, const brg_tensor *t)
{
    switch (ride_of(ddp, t)) {
    case AS_VALUES:
        return (size_t)t->numel;
    case FROM_ALL:
        return set_size(t) * (size_t)brg_pg_world_size(ddp->pg);
    default:
        return set_size(t);
    }
}

static size_t count(const brg_ddp *ddp)
{
    size_t n = 0;
    if (ddp->options.sync_buffers == BRG_DDP_BUFFERS_LEAVE)
        return 0;
    for (size_t i = 0; i < ddp->n_buffers; i++) {
        if (brg__is_staged(ddp->pg, ddp->buffers[i]))
            return 0;
        n += n_floats(ddp, ddp->buffers[i]);
    }
    return n <= CARGO_NBYTES / sizeof(float) ? n : 0;
}

brg_status brg__cargo_prepare(brg_ddp *ddp)
{
    brg_reducer *r = ddp->reducer;
    const brg_device_vtable *vtable;
    size_t n = count(ddp);
    BRG_TRY(brg__device_find(r->device, &vtable));
    if (n == 0 || !vtable->cargo_load)
        return BRG_OK;
    ddp->cargo = brg__mem_alloc_array(ddp->n_buffers, sizeof *ddp->cargo,
                                      "buffers to be sent");
    if (!ddp->cargo)
        return BRG_ERR_NOMEM;
    r->n_cargo = n;
    r->load = brg__cargo_load;
    return BRG_OK;
}

/* Rows that need no walk are one dim. */
static void describe(const brg_ddp *ddp, brg_device_cargo *c, brg_tensor *t)
{
    const brg_reducer *r = ddp->reducer;
    ride how = ride_of(ddp, t);
    uint32_t n_ranks = (uint32_t)r->world_size;
    *c = (brg_device_cargo){.at = brg__tensor_ptr(t),
                            .dtype = (brg_dtype)t->dtype,
                            .numel = (size_t)t->numel,
                            .ndim = 1,
                            .shape = {t->numel},
                            .stride = {1}};
    if (!t->is_contiguous) {
        c->ndim = t->ndim;
        memcpy(c->shape, t->shape, (size_t)t->ndim * sizeof *t->shape);
        memcpy(c->stride, t->stride, (size_t)t->ndim * sizeof *t->stride);
    }
    if (how == AS_VALUES) {
        c->scale = r->options.sum ? 1.0f / (float)n_ranks : 1;
        return;
    }
    c->n_sets = how == FROM_ALL ? n_ranks : 1;
    c->scale = r->options.sum ? 1 : (float)brg__reducer_divisor(r);
}

brg_status brg__cargo_load(const brg_ddp *ddp, float *row)
{
    const brg_reducer *r = ddp->reducer;
    const brg_device_vtable *vtable;
    size_t n = 0, rank = (size_t)r->rank;
    BRG_TRY(brg__device_find(r->device, &vtable));
    BRG_TRY(brg__device_zero(r->device, row, r->n_cargo * sizeof *row));
    for (size_t i = 0; i < ddp->n_buffers; i++) {
        brg_tensor *t = ddp->buffers[i];
        ride how = ride_of(ddp, t);
        brg_device_cargo *c = &ddp->cargo[n];
        describe(ddp, c, t);
        c->row = how == FROM_ALL ? row + rank * set_size(t) : row;
        n += how != FROM_RANK_0 || rank == 0;
        row += n_floats(ddp, t);
    }
    return n > 0 ? vtable->cargo_load(r->device, ddp->cargo, n) : BRG_OK;
}

brg_status brg__cargo_unload(const brg_ddp *ddp)
{
    const brg_reducer *r = ddp->reducer;
    const brg_device_vtable *vtable;
    if (r->n_cargo == 0)
        return BRG_OK;
    float *row = brg__tail_cargo(r);
    for (size_t i = 0; i < ddp->n_buffers; i++) {
        describe(ddp, &ddp->cargo[i], ddp->buffers[i]);
        ddp->cargo[i].row = row;
        row += n_floats(ddp, ddp->buffers[i]);
        brg_tensor_touch(ddp->buffers[i]);
    }
    BRG_TRY(brg__device_find(r->device, &vtable));
    return vtable->cargo_unload(r->device, ddp->cargo, ddp->n_buffers);
}
