/* SPDX-License-Identifier: Apache-2.0
 * The reproducible reduction: gradients of the leaves of this rank, added up
 * in the order of the tree as they come. See leaves.h. */
#include "reducer/leaves.h"

#include "comm/leaves.h"
#include "comm/reduce_kernels.h"
#include "core/base/alloc.h"
#include "core/ops/op.h"
#include "reducer/device_row.h"

static bool is_half(brg_dtype dtype)
{
    return brg__partial_size(dtype) != brg_dtype_size(dtype);
}

/* ---- Memory -------------------------------------------------------------------- */

brg_status brg__leaves_prepare(brg_reducer *r, uint32_t n_leaves)
{
    BRG_TRY(brg_leaf_run_of(&r->run, n_leaves, r->rank, r->world_size));
    for (size_t i = 0; i < r->n_params; i++)
        r->has_halves |= is_half(r->members[i].dtype);
    return BRG_OK;
}

/* One plain arena, and where there are leaves one more for every further slot;
 * slots of 16-bit gradients hold f32 and have a place of their own. */
brg_status brg__leaves_arena(const brg_reducer *r, size_t *nbytes)
{
    size_t n = brg__has_leaves(r) ? r->run.n_slots : 1;
    size_t each = r->has_halves ? 3 : 1;
    BRG_CHECK_ARG(brg__mul_size(r->plan.nbytes, each * n, nbytes),
                  "rank %d: %u slots of %zu bytes do not fit memory", r->rank,
                  r->run.n_slots, r->plan.nbytes);
    return BRG_OK;
}

/* Behind the slots of the others. */
static char *partials_of(const brg_reducer *r)
{
    return r->arena + r->run.n_slots * r->plan.nbytes;
}

void brg__leaves_lay_out(const brg_reducer *r, brg__bucket *bucket,
                         size_t offset)
{
    if (!brg__has_leaves(r))
        return;
    bool half = is_half(bucket->dtype);
    bucket->parts = (brg_leaf_parts){
        .data = half ? partials_of(r) + 2 * offset : (char *)bucket->data,
        .stride = (half ? 2 : 1) * r->plan.nbytes,
        .n_leaves = r->run.n_leaves,
    };
}

brg_status brg__leaves_clear(const brg_reducer *r)
{
    size_t nbytes;
    if (!brg__has_leaves(r))
        return BRG_OK;
    BRG_TRY(brg__leaves_arena(r, &nbytes));
    return brg__device_zero(r->device, r->arena + r->plan.nbytes,
                            nbytes - r->plan.nbytes);
}

/* ---- A step ---------------------------------------------------------------------- */

void *brg__leaf_home(const brg_reducer *r, size_t i)
{
    const brg__member *m = &r->members[i];
    if (!brg__has_leaves(r) || is_half(m->dtype))
        return m->slot;
    return (char *)m->slot + brg_leaf_slot(&r->run, r->leaf) * r->plan.nbytes;
}

/* A 16-bit gradient goes to its slot as f32. */
static void widen(const brg_reducer *r, const brg__member *m, char *slots,
                  size_t stride)
{
    const void *src = m->slot;
    void *dst = slots + brg_leaf_slot(&r->run, r->leaf) * stride;
    brg__reduce(&(brg_reduction){.src = &src,
                                 .dst = &dst,
                                 .n_src = 1,
                                 .n_dst = 1,
                                 .count = m->count,
                                 .dtype = m->dtype,
                                 .op = BRG_REDUCE_SUM,
                                 .dst_partial = true});
}

/* The same sums by the kernels of the device: addition of two numbers has one
 * result. */
static brg_status take_there(const brg_reducer *r, const brg__member *m,
                             char *slots, size_t stride)
{
    const brg_dtype dtype = is_half(m->dtype) ? BRG_DTYPE_F32 : m->dtype;
    const brg_device d = r->device;
    uint32_t top;
    uint32_t n = brg__leaf_n_adds(&r->run, r->leaf, &top);
    brg__device_row a, b;
    if (dtype != m->dtype) /* a 16-bit gradient goes to its slot as f32 */
        BRG_TRY(brg__copy_now(
            brg__device_row_of(&a, d, slots + top * stride, dtype, m->count),
            brg__device_row_of(&b, d, m->slot, m->dtype, m->count)));
    for (; n > 0; n--, top--) {
        const brg_tensor *in[2] = {
            brg__device_row_of(&a, d, slots + (top - 1) * stride, dtype,
                               m->count),
            brg__device_row_of(&b, d, slots + top * stride, dtype, m->count)};
        BRG_TRY(brg__pointwise_now(&brg__op_add, in, in[0], NULL));
    }
    return BRG_OK;
}

brg_status brg__leaf_take(const brg_reducer *r, size_t i)
{
    const brg__member *m = &r->members[i];
    char *slots = m->slot;
    size_t stride = r->plan.nbytes;
    if (is_half(m->dtype)) {
        slots = partials_of(r) + 2 * (size_t)((char *)m->slot - r->arena);
        stride *= 2;
    }
    if (r->device.type != BRG_DEVICE_CPU)
        return take_there(r, m, slots, stride);
    if (is_half(m->dtype))
        widen(r, m, slots, stride);
    brg_leaf_add(&r->run, r->leaf, slots, stride, m->count, m->dtype);
    return BRG_OK;
}

static void disarm_gradients(brg_reducer *r)
{
    brg__inbox_clear(&r->inbox);
    for (size_t i = 0; i < r->n_params; i++)
        r->members[i].is_ready = false;
    r->n_ready = 0;
}

void brg__leaf_next(brg_reducer *r)
{
    disarm_gradients(r);
    r->is_closing = false;
    r->leaf++;
}

void brg__leaf_skip(brg_reducer *r)
{
    if (brg__leaf_is_last(r))
        return;
    (void)brg__reducer_drain(r); /* starts nothing in this leaf */
    disarm_gradients(r);
    r->leaf = r->run.n - 1;
}
