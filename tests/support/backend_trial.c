/* SPDX-License-Identifier: Apache-2.0
 * One collective against its reference, element by element in rank order. */
#include "tests/support/backend_trial.h"

#include <string.h>

#include "core/base/dtype.h"
#include "core/base/error.h"
#include "tests/support/unwatched.h"

/* ---- Data and reference ------------------------------------------------------ */

UNWATCHED static uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

UNWATCHED static uint64_t bits_at(const trial *t, int rank, size_t i)
{
    uint64_t place = t->salt * 1000003u + (uint64_t)rank * 7919u;
    return mix(mix(place) + (uint64_t)i * 0x9E3779B97F4A7C15u);
}

/* Rank's i-th element as a number that the dtype holds exactly. */
UNWATCHED static double value_at(const trial *t, int rank, size_t i)
{
    uint64_t bits = bits_at(t, rank, i);
    double unit = (double)(bits >> 11) * 0x1p-53;
    double x = t->op == BRG_REDUCE_PROD ? 0.5 + unit : 4 * unit - 2;
    switch (t->dtype) {
    case BRG_DTYPE_F64:
        return x;
    case BRG_DTYPE_F32:
        return (double)(float)x;
    case BRG_DTYPE_F16:
        return (double)brg__f16_to_f32(brg__f32_to_f16((float)x));
    case BRG_DTYPE_BF16:
        return (double)brg__bf16_to_f32(brg__f32_to_bf16((float)x));
    case BRG_DTYPE_I64:
    case BRG_DTYPE_I32:
        return (double)(int32_t)bits;
    case BRG_DTYPE_U8:
        return (double)(bits & 0xFF);
    case BRG_DTYPE_BOOL:
        return (double)(bits & 1);
    }
    return 0;
}

UNWATCHED static void put_int(const trial *t, void *at, uint64_t x)
{
    if (t->dtype == BRG_DTYPE_I64)
        memcpy(at, &x, 8);
    else if (t->dtype == BRG_DTYPE_I32)
        memcpy(at, &(uint32_t){(uint32_t)x}, 4);
    else
        memcpy(at, &(uint8_t){(uint8_t)x}, 1);
}

UNWATCHED static void put_float(const trial *t, void *at, double x)
{
    if (t->dtype == BRG_DTYPE_F64)
        memcpy(at, &x, 8);
    else if (t->dtype == BRG_DTYPE_F32)
        memcpy(at, &(float){(float)x}, 4);
    else if (t->dtype == BRG_DTYPE_F16)
        memcpy(at, &(uint16_t){brg__f32_to_f16((float)x)}, 2);
    else
        memcpy(at, &(uint16_t){brg__f32_to_bf16((float)x)}, 2);
}

UNWATCHED static void put_value(const trial *t, void *at, int rank, size_t i)
{
    double x = value_at(t, rank, i);
    if (brg_dtype_is_float(t->dtype))
        put_float(t, at, x);
    else
        put_int(t, at, (uint64_t)(int64_t)x);
}

/* One operation in the type that the contract names; f32 for the halves. */
UNWATCHED static double fold_float(const trial *t, double a, double b)
{
    bool is_f64 = t->dtype == BRG_DTYPE_F64;
    switch (t->op) {
    case BRG_REDUCE_SUM:
    case BRG_REDUCE_AVG:
        return is_f64 ? a + b : (double)((float)a + (float)b);
    case BRG_REDUCE_PROD:
        return is_f64 ? a * b : (double)((float)a * (float)b);
    case BRG_REDUCE_MIN:
        return a < b ? a : b;
    case BRG_REDUCE_MAX:
        return a > b ? a : b;
    }
    return 0;
}

UNWATCHED static double fold_floats(const suite *s, const trial *t, size_t i)
{
    int node = s->node_size > 0 ? s->node_size : s->n;
    double total = 0;
    for (int first = 0; first < s->n; first += node) {
        double part = value_at(t, first, i);
        for (int r = first + 1; r < first + node && r < s->n; r++)
            part = fold_float(t, part, value_at(t, r, i));
        total = first == 0 ? part : fold_float(t, total, part);
    }
    if (t->op == BRG_REDUCE_AVG && t->dtype == BRG_DTYPE_F64)
        total *= 1.0 / s->n;
    else if (t->op == BRG_REDUCE_AVG)
        total = (double)((float)total * (1.0f / (float)s->n));
    return total;
}

/* As the narrow type would hold it. */
UNWATCHED static int64_t narrow(const trial *t, uint64_t x)
{
    if (t->dtype == BRG_DTYPE_I64)
        return (int64_t)x;
    if (t->dtype == BRG_DTYPE_I32)
        return (int32_t)(uint32_t)x;
    return (uint8_t)x;
}

UNWATCHED static int64_t fold_ints(const suite *s, const trial *t, size_t i)
{
    int64_t total = (int64_t)value_at(t, 0, i);
    for (int r = 1; r < s->n; r++) {
        int64_t x = (int64_t)value_at(t, r, i);
        if (t->op == BRG_REDUCE_MIN)
            total = x < total ? x : total;
        else if (t->op == BRG_REDUCE_MAX)
            total = x > total ? x : total;
        else if (t->op == BRG_REDUCE_PROD)
            total = narrow(t, (uint64_t)total * (uint64_t)x);
        else
            total = narrow(t, (uint64_t)total + (uint64_t)x);
    }
    return t->op == BRG_REDUCE_AVG ? total / s->n : total;
}

UNWATCHED static void put_reduced(const suite *s, const trial *t, void *at,
                                  size_t i)
{
    if (brg_dtype_is_float(t->dtype))
        put_float(t, at, fold_floats(s, t, i));
    else
        put_int(t, at, (uint64_t)fold_ints(s, t, i));
}

UNWATCHED void trial_values(const suite *s, const trial *t, int rank, size_t n)
{
    size_t nbytes = brg_dtype_size(t->dtype);
    for (size_t i = 0; i < n; i++)
        put_value(t, s->expected + i * nbytes, rank, i);
}

void trial_fill(const suite *s, const trial *t, unsigned char *at, size_t n)
{
    trial_values(s, t, s->rank, n);
    memcpy(at, s->expected, n * brg_dtype_size(t->dtype));
}

/* ---- One trial ---------------------------------------------------------------- */

size_t trial_n_send(const suite *s, const trial *t)
{
    return t->coll == BRG_COLL_REDUCE_SCATTER ? t->count * (size_t)s->n
                                              : t->count;
}

UNWATCHED size_t trial_n_recv(const suite *s, const trial *t)
{
    return t->coll == BRG_COLL_ALL_GATHER ? t->count * (size_t)s->n : t->count;
}

UNWATCHED void trial_expect(const suite *s, const trial *t)
{
    size_t nbytes = brg_dtype_size(t->dtype);
    for (size_t i = 0; i < trial_n_recv(s, t); i++) {
        void *at = s->expected + i * nbytes;
        size_t own = (size_t)s->rank * t->count;
        if (t->coll == BRG_COLL_ALL_REDUCE)
            put_reduced(s, t, at, i);
        else if (t->coll == BRG_COLL_REDUCE_SCATTER)
            put_reduced(s, t, at, own + i);
        else if (t->coll == BRG_COLL_ALL_GATHER)
            put_value(t, at, (int)(i / t->count), i % t->count);
        else
            put_value(t, at, t->root, i);
    }
}

brg_status trial_start(const suite *s, const trial *t, brg_work **work,
                       void *recv, void *send)
{
    switch (t->coll) {
    case BRG_COLL_ALL_REDUCE:
        return brg_all_reduce(s->pg, work, recv, t->count, t->dtype, t->op);
    case BRG_COLL_REDUCE_SCATTER:
        return brg_reduce_scatter(s->pg, work, recv, send, t->count, t->dtype,
                                  t->op);
    case BRG_COLL_ALL_GATHER:
        return brg_all_gather(s->pg, work, recv, send, t->count, t->dtype);
    case BRG_COLL_BROADCAST:
        return brg_broadcast(s->pg, work, recv, t->count, t->dtype, t->root);
    default:
        return brg_barrier(s->pg, work);
    }
}

static brg_status complain(const suite *s, const trial *t, size_t byte)
{
    size_t nbytes = brg_dtype_size(t->dtype);
    return BRG_FAIL(BRG_ERR_INTERNAL,
                    "rank %d of %d: %s memory, collective %d, %zu %s, %s, root "
                    "%d%s: element %zu is wrong",
                    s->rank, s->n, s->memory, (int)t->coll, t->count,
                    brg_dtype_name(t->dtype), brg_reduce_op_name(t->op),
                    t->root, t->in_place ? ", in place" : "", byte / nbytes);
}

brg_status trial_compare(const suite *s, const trial *t,
                         const unsigned char *recv)
{
    size_t nbytes = trial_n_recv(s, t) * brg_dtype_size(t->dtype);
    bool is_same = memcmp(recv, s->expected, nbytes) == 0;
    for (size_t i = 0; i < nbytes && !is_same; i++)
        if (recv[i] != s->expected[i])
            return complain(s, t, i);
    if (t->in_place && t->coll == BRG_COLL_REDUCE_SCATTER)
        return BRG_OK; /* other ranks' parts follow */
    for (size_t i = 0; i < GUARD; i++)
        if (recv[nbytes + i] != GUARD_BYTE)
            return BRG_FAIL(BRG_ERR_INTERNAL,
                            "rank %d: collective %d wrote past its buffer",
                            s->rank, (int)t->coll);
    return BRG_OK;
}

void trial_place(const suite *s, const trial *t, unsigned char **send,
                 unsigned char **recv)
{
    size_t own = (size_t)s->rank * t->count * brg_dtype_size(t->dtype);
    *send = s->send;
    *recv = s->recv;
    if (t->coll == BRG_COLL_ALL_REDUCE || t->coll == BRG_COLL_BROADCAST)
        *recv = *send;
    else if (t->in_place && t->coll == BRG_COLL_ALL_GATHER)
        *send = *recv + own;
    else if (t->in_place)
        *recv = *send + own;
}

brg_status trial_run(const suite *s, const trial *t)
{
    unsigned char *send, *recv;
    size_t nbytes = brg_dtype_size(t->dtype);
    trial_place(s, t, &send, &recv);
    memset(recv, GUARD_BYTE, trial_n_recv(s, t) * nbytes + GUARD);
    trial_fill(s, t, send, trial_n_send(s, t));
    trial_expect(s, t);
    brg_work *work;
    BRG_TRY(trial_start(s, t, &work, recv, send));
    BRG_TRY(brg_work_wait(work));
    return trial_compare(s, t, recv);
}
