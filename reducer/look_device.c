/* SPDX-License-Identifier: Apache-2.0
 * check_finite and measure_norm for gradients on a device, where the host may
 * not wait for them: the device looks, in one launch for each bucket, and what
 * it has found stays there.
 *
 *     before a bucket starts   found[0] = the mark of the first bad gradient
 *     before the last starts   the tail's three numbers are made from it
 *     a bucket was reduced     found[1], if a hook made it; partial sums of
 *                              squares, each at its parameter's place
 *     the step ends            both marks go behind the tail, to be fetched
 *
 * All of it has the same addresses in each step, so it may be launched again. A
 * mark says which arrival it was, the first one being the largest number. */
#include <math.h>
#include <string.h>

#include "core/base/alloc.h"
#include "core/ops/op.h"
#include "reducer/device_row.h"
#include "reducer/leaves.h"
#include "reducer/shard.h"

#define FOUND_BYTES (BRG__N_FOUND * sizeof(uint64_t))
#define MADE_BYTES (4 * sizeof(float)) /* for what look_tell writes */

/* ---- Making ------------------------------------------------------------------- */

static brg_status check_table(const brg_reducer *r)
{
    char text[24];
    const char *what = r->options.check_finite   ? "check_finite"
                       : r->options.measure_norm ? "measure_norm"
                                                 : NULL;
    if (!what || (r->tail.vtable->look && r->tail.vtable->norm_squares))
        return BRG_OK;
    return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                    "brg_reducer_create: options.%s is not for gradients on "
                    "%s: its device cannot look at them",
                    what, brg__device_text(r->device, text));
}

static brg_status find_places(brg_reducer *r)
{
    brg__device_look *l = &r->look;
    size_t n = 0;
    l->places = brg__mem_alloc_array(r->n_params + 1, sizeof *l->places,
                                     "places of partial sums");
    if (!l->places)
        return BRG_ERR_NOMEM;
    for (size_t i = 0; i < r->n_params; i++) {
        l->places[i] = n;
        n += (r->members[i].count + BRG_DEVICE_PIECE - 1) / BRG_DEVICE_PIECE;
    }
    l->places[r->n_params] = n;
    return BRG_OK;
}

static size_t n_partials(const brg_reducer *r)
{
    return r->look.places[r->n_params];
}

/* Zeros. */
static brg_status take(const brg_reducer *r, void *out, size_t nbytes)
{
    void **at = out;
    BRG_TRY(r->tail.vtable->alloc(r->device, at, nbytes));
    return r->tail.vtable->fill_zero(r->device, *at, nbytes);
}

brg_status brg__look_prepare(brg_reducer *r)
{
    brg__device_look *l = &r->look;
    if (r->device.type == BRG_DEVICE_CPU ||
        (!r->options.check_finite && !r->options.measure_norm))
        return BRG_OK;
    BRG_TRY(check_table(r));
    l->arrays = brg__mem_alloc_array(r->n_params, sizeof *l->arrays,
                                     "a list of gradients");
    if (!l->arrays)
        return BRG_ERR_NOMEM;
    if (r->options.check_finite)
        BRG_TRY(take(r, &l->found, FOUND_BYTES + MADE_BYTES));
    if (!r->options.measure_norm)
        return BRG_OK;
    BRG_TRY(find_places(r));
    return take(r, &l->partials, (n_partials(r) + 1) * sizeof *l->partials);
}

void brg__look_free(brg_reducer *r)
{
    const brg_device_vtable *vtable = r->tail.vtable;
    brg__device_look *l = &r->look;
    if (l->found)
        vtable->free(r->device, l->found, FOUND_BYTES + MADE_BYTES);
    if (l->partials)
        vtable->free(r->device, l->partials,
                     (n_partials(r) + 1) * sizeof *l->partials);
    brg__mem_free(l->arrays);
    brg__mem_free(l->places);
    *l = (brg__device_look){0};
}

/* ---- What is not finite -------------------------------------------------------- */

brg_status brg__look_begin(const brg_reducer *r)
{
    return r->look.found ? r->tail.vtable->fill_zero(r->device, r->look.found,
                                                     FOUND_BYTES)
                         : BRG_OK;
}

static brg_device_array array_of(const brg_reducer *r, size_t i, void *at,
                                 bool is_result)
{
    const brg__member *m = &r->members[i];
    return (brg_device_array){
        .data = at,
        .dtype = m->dtype,
        .numel = m->count,
        .limit = brg__finite_limit(r, i, is_result),
        .mark = (uint64_t)(UINT32_MAX - m->arrival) << 32 | (uint32_t)(i + 1)};
}

brg_status brg__look_at_gradient(const brg_reducer *r, size_t i)
{
    const brg_device_array a = array_of(r, i, brg__leaf_home(r, i), false);
    if (!r->look.found || a.limit == UINT64_MAX || a.numel == 0)
        return BRG_OK;
    return r->tail.vtable->look(r->device, &a, 1, r->look.found);
}

static brg_status look_at(const brg_reducer *r, size_t k, bool is_result)
{
    const brg__plan_bucket *b = &r->plan.buckets[k];
    brg_device_array *list = r->look.arrays;
    size_t n = 0;
    for (size_t j = 0; j < b->n_params; j++) {
        const uint32_t i = r->plan.order[b->first + j];
        list[n] = array_of(r, i, r->members[i].slot, is_result);
        n += list[n].limit != UINT64_MAX && list[n].numel > 0;
    }
    return n == 0 ? BRG_OK
                  : r->tail.vtable->look(r->device, list, n,
                                         r->look.found + is_result);
}

brg_status brg__look_at_bucket(const brg_reducer *r, size_t k)
{
    return r->look.found && !brg__has_leaves(r) ? look_at(r, k, false) : BRG_OK;
}

brg_status brg__look_tell(const brg_reducer *r, float *tail)
{
    return r->look.found
               ? r->tail.vtable->look_tell(r->device, r->look.found, r->rank,
                                           tail + BRG__TAIL_FINITE(r))
               : BRG_OK;
}

/* found_inf is what the reduced tail says, and 1 more if a hook has made some. */
static brg_status set_found_inf(const brg_reducer *r, const float *tail)
{
    uint64_t *marks = r->look.found;
    float *number = brg__tensor_ptr(r->found_inf);
    float *made = (float *)(void *)(marks + BRG__N_FOUND);
    brg__device_row a, b;
    BRG_TRY(r->tail.vtable->copy(r->device, number, r->device,
                                 tail + BRG__TAIL_FINITE(r), sizeof *number));
    brg_tensor_touch(r->found_inf);
    if (!r->options.hook)
        return BRG_OK;
    BRG_TRY(r->tail.vtable->look_tell(r->device, marks + 1, 0, made));
    const brg_tensor *in[2] = {
        brg__device_row_of(&a, r->device, number, BRG_DTYPE_F32, 1),
        brg__device_row_of(&b, r->device, made, BRG_DTYPE_F32, 1)};
    return brg__pointwise_now(&brg__op_add, in, in[0], NULL);
}

brg_status brg__look_keep(const brg_reducer *r, float *tail)
{
    if (!r->look.found)
        return BRG_OK;
    BRG_TRY(r->tail.vtable->copy(r->device, tail + BRG__TAIL_FOUND(r),
                                 r->device, r->look.found, FOUND_BYTES));
    return set_found_inf(r, tail);
}

void brg__look_read(brg_reducer *r, const float *tail)
{
    uint64_t found[BRG__N_FOUND];
    if (!r->look.found)
        return;
    memcpy(found, tail + BRG__TAIL_FOUND(r), sizeof found);
    r->finite.own = (uint32_t)found[0];
    r->finite.spoilt = (uint32_t)found[1];
}

/* ---- Norms ----------------------------------------------------------------------- */

static brg_status measure(const brg_reducer *r, size_t k)
{
    const brg__plan_bucket *b = &r->plan.buckets[k];
    brg_device_array *list = r->look.arrays;
    size_t n = 0;
    for (size_t j = 0; j < b->n_params; j++) {
        const uint32_t i = r->plan.order[b->first + j];
        const brg__member *m = &r->members[i];
        const brg_optim_range own = brg__shard_of(r, i, r->rank);
        list[n] = (brg_device_array){
            .data = (char *)m->slot + own.first * brg_dtype_size(m->dtype),
            .dtype = m->dtype,
            .numel = own.n,
            .place = r->look.places[i]};
        n += own.n > 0;
    }
    return n == 0 ? BRG_OK
                  : r->tail.vtable->norm_squares(r->device, list, n,
                                                 r->look.partials);
}

brg_status brg__look_at_result(const brg_reducer *r, size_t k)
{
    if (r->look.found && brg__hook_takes(r, k))
        BRG_TRY(look_at(r, k, true));
    return r->look.partials ? measure(r, k) : BRG_OK;
}

brg_status brg__look_norm(const brg_reducer *r, double **total)
{
    const brg__device_look *l = &r->look;
    *total = l->partials + n_partials(r);
    for (size_t i = 0; i < r->n_params; i++)
        if (r->members[i].n_used == 0 && r->members[i].count > 0)
            BRG_TRY(r->tail.vtable->fill_zero(
                r->device, l->partials + l->places[i],
                (l->places[i + 1] - l->places[i]) * sizeof *l->partials));
    return r->tail.vtable->norm_add(r->device, l->partials, n_partials(r),
                                    *total);
}

brg_status brg__look_fetch(const brg_reducer *r, const double *from,
                           double *value)
{
    const brg_device host = {BRG_DEVICE_CPU, 0};
    return r->tail.vtable->copy(host, value, r->device, from, sizeof *value);
}
