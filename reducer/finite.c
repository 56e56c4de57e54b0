/* SPDX-License-Identifier: Apache-2.0
 * Gradients that are not finite, or too large to be added: found where they are
 * packed, while they are in the cache.
 *
 * Without their signs, the bits of floats are in the order of their values,
 * with infinity and NaN behind all numbers: one subtraction tells. */
#include <float.h>
#include <string.h>

#include "core/base/tracer.h"
#include "core/ops/convert.h"
#include "core/tensor/tensor.h"
#include "reducer/leaves.h"

#define IS_WITHIN(name, type, bits)                                            \
    static bool name(const char *at, size_t n, type limit)                     \
    {                                                                          \
        type x, over = 0;                                                      \
        for (size_t i = 0; i < n; i++) {                                       \
            memcpy(&x, at + i * sizeof x, sizeof x);                           \
            over |= (type)(limit - (x & ((type) ~(type)0 >> 1)));              \
        }                                                                      \
        return over >> ((bits)-1) == 0;                                        \
    }

IS_WITHIN(is_within_16, uint16_t, 16)
IS_WITHIN(is_within_32, uint32_t, 32)
IS_WITHIN(is_within_64, uint64_t, 64)

static double largest(brg_dtype dtype)
{
    switch (dtype) {
    case BRG_DTYPE_F64:
        return DBL_MAX;
    case BRG_DTYPE_F32:
        return (double)FLT_MAX;
    case BRG_DTYPE_BF16:
        return 0x1.FEp127;
    case BRG_DTYPE_F16:
        return 65504;
    default:
        return 0;
    }
}

/* The bits of the largest number of which n may be added: the n-th part of the
 * largest there is, less what rounding may add. */
static uint64_t limit_of(brg_dtype dtype, double n)
{
    double limit = largest(dtype) / n;
    float narrow = (float)limit;
    uint16_t half;
    uint32_t single;
    uint64_t bits;
    memcpy(&bits, &limit, sizeof bits);
    memcpy(&single, &narrow, sizeof single);
    brg__convert_row(&half, brg_dtype_size(dtype) == 2 ? dtype : BRG_DTYPE_F16,
                     &narrow, BRG_DTYPE_F32, 1);
    bits = dtype == BRG_DTYPE_F32   ? single
           : dtype == BRG_DTYPE_F64 ? bits
                                    : half;
    uint64_t margin = n > 1 ? (uint64_t)n : 0;
    return bits > margin ? bits - margin : 0;
}

static bool is_within(const void *at, brg_dtype dtype, size_t count,
                      uint64_t limit)
{
    if (limit == UINT64_MAX)
        return true;
    switch (brg_dtype_size(dtype)) {
    case 2:
        return is_within_16(at, count, (uint16_t)limit);
    case 4:
        return is_within_32(at, count, (uint32_t)limit);
    default:
        return is_within_64(at, count, limit);
    }
}

/* Sums of f16 are made in f32, so that averages stay below; on a device they
 * are sums of n-th parts, each rounded. */
uint64_t brg__finite_limit(const brg_reducer *r, size_t i, bool is_result)
{
    const brg_dtype dtype = r->members[i].dtype;
    const double n = brg__reducer_divisor(r);
    if (largest(dtype) == 0) /* no float */
        return UINT64_MAX;
    if (is_result)
        return limit_of(dtype, 1);
    if (dtype != BRG_DTYPE_F16 || r->options.sum)
        return limit_of(dtype, n);
    const bool is_rounded =
        r->device.type != BRG_DEVICE_CPU && !brg__has_leaves(r) && n > 1;
    const uint64_t limit = limit_of(dtype, 1);
    const uint64_t margin = is_rounded ? 2 * (uint64_t)n : 0;
    return limit > margin ? limit - margin : 0;
}

void brg__finite_look(brg_reducer *r, size_t i)
{
    const brg__member *m = &r->members[i];
    if (r->finite.own == 0 &&
        !is_within(brg__leaf_home(r, i), m->dtype, m->count,
                   brg__finite_limit(r, i, false)))
        r->finite.own = (uint32_t)i + 1;
}

void brg__finite_look_after(brg_reducer *r, size_t k)
{
    const brg__plan_bucket *b = &r->plan.buckets[k];
    for (size_t j = 0; j < b->n_params && r->finite.spoilt == 0; j++) {
        uint32_t i = r->plan.order[b->first + j];
        const brg__member *m = &r->members[i];
        if (!is_within(m->slot, m->dtype, m->count,
                       brg__finite_limit(r, i, true)))
            r->finite.spoilt = i + 1;
    }
}

brg_status brg__finite_place(brg_reducer *r, brg_device device)
{
    const brg__layout layout = {.dtype = BRG_DTYPE_F32, .device = device};
    brg_release(r->found_inf);
    r->found_inf = NULL;
    BRG_TRY(brg__tensor_new(&r->found_inf, &layout));
    return brg__device_zero(device, brg__tensor_ptr(r->found_inf),
                            sizeof(float));
}

brg_status brg__finite_prepare(brg_reducer *r)
{
    return r->options.check_finite ? brg__finite_place(r, r->device) : BRG_OK;
}

brg_status brg__finite_send(brg_reducer *r)
{
    const float value = !r->finite.last.all_finite;
    if (!r->found_inf)
        return BRG_OK;
    brg_tensor_touch(r->found_inf);
    return brg__device_copy(r->found_inf->device, brg__tensor_ptr(r->found_inf),
                            BRG_CPU, &value, sizeof value);
}

void brg__finite_end(brg_reducer *r, uint32_t n_ranks, uint32_t ranks,
                     uint32_t params)
{
    const brg__finite *f = &r->finite;
    size_t own = f->own > 0 ? f->own : f->spoilt;
    r->finite.last = (brg_finite_info){
        .all_finite = n_ranks == 0 && f->spoilt == 0,
        .n_ranks = n_ranks,
        .rank = n_ranks == 1 ? (int)ranks : -1,
        .param = n_ranks == 1 ? params
                 : own > 0    ? own - 1
                              : SIZE_MAX,
    };
    if (!r->found_inf || r->found_inf->device.type != BRG_DEVICE_CPU)
        return; /* a device sets it itself, or is sent it */
    *(float *)brg__tensor_ptr(r->found_inf) = !r->finite.last.all_finite;
    brg_tensor_touch(r->found_inf);
}

/* Is what the last step came to known? If not it is said later, too. */
static bool is_known(brg_reducer *r)
{
    brg__error_record kept;
    if (!r->look.found)
        return true;
    brg__error_save(&kept);
    const bool is_read = brg__device_tail_read(r) == BRG_OK;
    if (!is_read && r->tail.verdict.code == BRG_OK)
        brg__error_save(&r->tail.verdict);
    brg__error_restore(&kept);
    return is_read;
}

brg_tensor *brg_reducer_found_inf(const brg_reducer *r)
{
    return r ? r->found_inf : NULL;
}

bool brg_reducer_grads_finite(const brg_reducer *r, brg_finite_info *filled)
{
    brg_finite_info last = {true, 0, -1, SIZE_MAX};
    const bool may_wait =
        brg__tracer_outside("brg_reducer_grads_finite") == BRG_OK;
    if (r && may_wait && !is_known((brg_reducer *)(uintptr_t)r))
        last.all_finite = false;
    else if (r)
        last = r->finite.last;
    if (filled)
        *filled = last;
    return last.all_finite;
}
