/* SPDX-License-Identifier: Apache-2.0
 * The shared contract of the backends. */
#include "tests/support/backend_suite.h"

#include <stdio.h>
#include <string.h>

#include <brigade/ext/backend.h>

#include "core/base/dtype.h"
#include "core/base/error.h"
#include "tests/support/unwatched.h"

#define GUARD 64
#if defined(__SANITIZE_THREAD__)
#define LARGE 20003 /* all of it is slow then */
#define ARENA ((size_t)5 << 18)
#else
#define ARENA ((size_t)5 << 20)
#define LARGE 160001 /* elements: several steps of any backend */
#endif
#define GUARD_BYTE 0xA5

typedef struct suite {
    brg_pg *pg;
    int rank;
    int n;
    int node_size;
    unsigned char *send; /* ARENA bytes each */
    unsigned char *recv;
    unsigned char *expected;
    const char *memory;
} suite;

/* One collective to check. */
typedef struct trial {
    brg_coll coll;
    size_t count;
    brg_dtype dtype;
    brg_reduce_op op;
    int root;
    bool in_place;
    uint64_t salt; /* makes every trial's data its own */
} trial;

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

/* The rank's first n elements, by way of `expected`. */
UNWATCHED static void compute_values(const suite *s, const trial *t, int rank,
                                     size_t n)
{
    size_t nbytes = brg_dtype_size(t->dtype);
    for (size_t i = 0; i < n; i++)
        put_value(t, s->expected + i * nbytes, rank, i);
}

static void fill(const suite *s, const trial *t, unsigned char *at, size_t n)
{
    compute_values(s, t, s->rank, n);
    memcpy(at, s->expected, n * brg_dtype_size(t->dtype));
}

/* ---- One trial ---------------------------------------------------------------- */

static size_t n_send(const suite *s, const trial *t)
{
    return t->coll == BRG_COLL_REDUCE_SCATTER ? t->count * (size_t)s->n
                                              : t->count;
}

UNWATCHED static size_t n_recv(const suite *s, const trial *t)
{
    return t->coll == BRG_COLL_ALL_GATHER ? t->count * (size_t)s->n : t->count;
}

/* Fills `expected` with what recv must hold. */
UNWATCHED static void expect(const suite *s, const trial *t)
{
    size_t nbytes = brg_dtype_size(t->dtype);
    for (size_t i = 0; i < n_recv(s, t); i++) {
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

static brg_status start(const suite *s, const trial *t, brg_work **work,
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

static brg_status compare(const suite *s, const trial *t,
                          const unsigned char *recv)
{
    size_t nbytes = n_recv(s, t) * brg_dtype_size(t->dtype);
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

/* Where send and recv lie; in-place collectives share. */
static void place(const suite *s, const trial *t, unsigned char **send,
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

static brg_status try_one(const suite *s, const trial *t)
{
    unsigned char *send, *recv;
    size_t nbytes = brg_dtype_size(t->dtype);
    place(s, t, &send, &recv);
    memset(recv, GUARD_BYTE, n_recv(s, t) * nbytes + GUARD);
    fill(s, t, send, n_send(s, t));
    expect(s, t);
    brg_work *work;
    BRG_TRY(start(s, t, &work, recv, send));
    BRG_TRY(brg_work_wait(work));
    return compare(s, t, recv);
}

/* ---- Groups of trials ------------------------------------------------------------ */

static const size_t sizes[] = {0, 1, 17, 1029};
#define N_SIZES (sizeof sizes / sizeof sizes[0])

static brg_status try_all_reduce(const suite *s)
{
    uint64_t salt = 1;
    for (int dtype = 0; dtype < BRG_N_DTYPES; dtype++)
        for (int op = 0; op < BRG_N_REDUCE_OPS; op++)
            for (size_t i = 0; i < N_SIZES; i++)
                BRG_TRY(try_one(s, &(trial){.coll = BRG_COLL_ALL_REDUCE,
                                            .count = sizes[i],
                                            .dtype = (brg_dtype)dtype,
                                            .op = (brg_reduce_op)op,
                                            .salt = salt++}));
    return BRG_OK;
}

static brg_status try_large(const suite *s)
{
    static const brg_dtype dtypes[] = {BRG_DTYPE_F32, BRG_DTYPE_BF16};
    static const size_t counts[] = {4096, 16384, LARGE};
    uint64_t salt = 1000;
    for (size_t d = 0; d < 2; d++)
        for (size_t i = 0; i < 3; i++)
            BRG_TRY(try_one(s, &(trial){.coll = BRG_COLL_ALL_REDUCE,
                                        .count = counts[i],
                                        .dtype = dtypes[d],
                                        .op = BRG_REDUCE_AVG,
                                        .salt = salt++}));
    for (int in_place = 0; in_place < 2; in_place++)
        for (int coll = BRG_COLL_REDUCE_SCATTER; coll <= BRG_COLL_BROADCAST;
             coll++)
            BRG_TRY(try_one(s, &(trial){.coll = (brg_coll)coll,
                                        .count = 2 * LARGE / (size_t)s->n,
                                        .dtype = BRG_DTYPE_F32,
                                        .in_place = in_place,
                                        .root = s->n - 1,
                                        .salt = salt++}));
    return BRG_OK;
}

/* Of nothing, where calls before it have left their marks. */
static brg_status try_nothing(const suite *s)
{
    for (int coll = BRG_COLL_ALL_REDUCE; coll <= BRG_COLL_BROADCAST; coll++)
        for (int k = 0; k < 41; k++)
            BRG_TRY(try_one(s, &(trial){.coll = (brg_coll)coll,
                                        .count = k < 40 ? 17 : 0,
                                        .dtype = BRG_DTYPE_F32,
                                        .salt = (uint64_t)(3000 + k)}));
    return BRG_OK;
}

static brg_status try_others(const suite *s)
{
    static const brg_coll colls[] = {BRG_COLL_REDUCE_SCATTER,
                                     BRG_COLL_ALL_GATHER};
    uint64_t salt = 2000;
    for (int dtype = 0; dtype < BRG_N_DTYPES; dtype++)
        for (size_t i = 0; i < N_SIZES; i++)
            for (int k = 0; k < 4; k++, salt++)
                BRG_TRY(try_one(s, &(trial){.coll = colls[k / 2],
                                            .count = sizes[i],
                                            .dtype = (brg_dtype)dtype,
                                            .op = (brg_reduce_op)(salt % 5),
                                            .in_place = k % 2,
                                            .salt = salt}));
    for (int root = 0; root < s->n; root++)
        for (size_t i = 0; i < N_SIZES; i++)
            BRG_TRY(try_one(s, &(trial){.coll = BRG_COLL_BROADCAST,
                                        .count = sizes[i],
                                        .dtype = BRG_DTYPE_I32,
                                        .root = root,
                                        .salt = salt++}));
    return try_one(s,
                   &(trial){.coll = BRG_COLL_BARRIER, .dtype = BRG_DTYPE_U8});
}

/* ---- Point to point ------------------------------------------------------------ */

/* A ring: to the next rank, from the one before. */
static brg_status try_ring(const suite *s, size_t count, uint64_t salt)
{
    trial t = {.count = count, .dtype = BRG_DTYPE_F32, .salt = salt};
    int next = (s->rank + 1) % s->n, before = (s->rank + s->n - 1) % s->n;
    brg_work *works[2];
    fill(s, &t, s->send, count);
    compute_values(s, &t, before, count);
    memset(s->recv, GUARD_BYTE, count * 4 + GUARD);
    bool sends_first = salt % 2 == 0;
    if (sends_first)
        BRG_TRY(brg_send(s->pg, &works[0], s->send, count, t.dtype, next));
    BRG_TRY(brg_recv(s->pg, &works[1], s->recv, count, t.dtype, before));
    if (!sends_first)
        BRG_TRY(brg_send(s->pg, &works[0], s->send, count, t.dtype, next));
    BRG_TRY(brg_work_wait(works[sends_first]));
    BRG_TRY(brg_work_wait(works[!sends_first]));
    t.coll = BRG_COLL_RECV;
    return compare(s, &t, s->recv);
}

/* Several messages between one pair arrive in order. */
static brg_status try_order(const suite *s)
{
    enum { N = 5 };
    float *values = (float *)s->send;
    brg_work *works[N];
    if (s->rank > 1)
        return BRG_OK;
    for (int i = 0; i < N; i++) {
        values[i] = s->rank == 0 ? (float)i : -1;
        if (s->rank == 0)
            BRG_TRY(
                brg_send(s->pg, &works[i], &values[i], 1, BRG_DTYPE_F32, 1));
        else
            BRG_TRY(
                brg_recv(s->pg, &works[i], &values[i], 1, BRG_DTYPE_F32, 0));
    }
    for (int i = N; i-- > 0;)
        BRG_TRY(brg_work_wait(works[i]));
    for (int i = 0; i < N; i++)
        if (values[i] != (float)i)
            return BRG_FAIL(BRG_ERR_INTERNAL,
                            "rank %d: message %d overtook another", s->rank, i);
    return BRG_OK;
}

static brg_status try_p2p(const suite *s)
{
    static const size_t counts[] = {0, 1, 1000, 100003};
    if (s->n == 1)
        return BRG_OK;
    for (uint64_t i = 0; i < 8; i++)
        BRG_TRY(try_ring(s, counts[i / 2], i));
    return try_order(s);
}

/* ---- Many in flight -------------------------------------------------------------- */

#define N_MANY 100

static brg_status check_many(const suite *s, const float *data, size_t count)
{
    float expected = (float)(s->n * (s->n + 1) / 2);
    for (size_t k = 0; k < N_MANY; k++)
        for (size_t i = 0; i < count; i++)
            if (data[k * count + i] != expected * (float)(k + 1))
                return BRG_FAIL(BRG_ERR_INTERNAL,
                                "rank %d: collective %zu of many is wrong",
                                s->rank, k);
    return BRG_OK;
}

/* Started in order, waited for in another, some tested, some let go. */
static brg_status try_many(const suite *s, size_t count, bool coalesced)
{
    float *data = (float *)s->send;
    brg_work *works[N_MANY];
    if (coalesced)
        BRG_TRY(brg_coalesce_begin(s->pg));
    for (size_t k = 0; k < N_MANY; k++) {
        for (size_t i = 0; i < count; i++)
            data[k * count + i] = (float)((s->rank + 1) * (int)(k + 1));
        BRG_TRY(brg_all_reduce(s->pg, &works[k], data + k * count, count,
                               BRG_DTYPE_F32, BRG_REDUCE_SUM));
    }
    if (coalesced)
        BRG_TRY(brg_coalesce_end(s->pg));
    for (size_t k = N_MANY; k-- > 0;) {
        if (k % 3 == 0)
            (void)brg_work_test(works[k]);
        if (k % 7 == 1)
            brg_work_release(works[k]);
        else
            BRG_TRY(brg_work_wait(works[k]));
    }
    brg_work *barrier; /* lets what was released come to its end */
    BRG_TRY(brg_barrier(s->pg, &barrier));
    while (!brg_work_test(barrier)) {
    }
    BRG_TRY(brg_work_wait(barrier));
    BRG_TRY(brg_barrier(s->pg, &barrier));
    BRG_TRY(brg_work_wait(barrier));
    return check_many(s, data, count);
}

/* ---- Coalesced calls of all kinds ---------------------------------------------- */

static const trial coalesced[] = {
    {.coll = BRG_COLL_ALL_REDUCE, .count = 17, .dtype = BRG_DTYPE_F32},
    {.coll = BRG_COLL_ALL_REDUCE, .count = 0, .dtype = BRG_DTYPE_F32},
    {.coll = BRG_COLL_BROADCAST, .count = 1029, .dtype = BRG_DTYPE_I32},
    {.coll = BRG_COLL_ALL_REDUCE,
     .count = 1029,
     .dtype = BRG_DTYPE_I64,
     .op = BRG_REDUCE_MAX},
    {.coll = BRG_COLL_BARRIER, .dtype = BRG_DTYPE_U8},
    {.coll = BRG_COLL_REDUCE_SCATTER,
     .count = 100,
     .dtype = BRG_DTYPE_F16,
     .op = BRG_REDUCE_AVG},
    {.coll = BRG_COLL_ALL_GATHER, .count = 33, .dtype = BRG_DTYPE_F64},
    {.coll = BRG_COLL_ALL_REDUCE, .count = 4096, .dtype = BRG_DTYPE_BF16},
    {.coll = BRG_COLL_ALL_REDUCE, .count = 8000, .dtype = BRG_DTYPE_F32}};
#define N_COALESCED (sizeof coalesced / sizeof coalesced[0])
#define ROOM ((size_t)65536) /* of each */

/* The suite with buffers for the k-th trial. */
static suite room_of(const suite *s, size_t k, trial *filled)
{
    suite own = *s;
    own.send += k * ROOM;
    own.recv += k * ROOM;
    *filled = coalesced[k];
    filled->salt = 7000 + k;
    filled->root = s->n - 1;
    return own;
}

static brg_status start_coalesced(const suite *s, brg_work **works)
{
    for (size_t k = 0; k < N_COALESCED; k++) {
        trial t;
        unsigned char *send, *recv;
        const suite own = room_of(s, k, &t);
        place(&own, &t, &send, &recv);
        memset(recv, GUARD_BYTE,
               n_recv(s, &t) * brg_dtype_size(t.dtype) + GUARD);
        fill(&own, &t, send, n_send(s, &t));
        BRG_TRY(start(s, &t, &works[k], recv, send));
    }
    return BRG_OK;
}

/* Beside messages of a ring, which start between two of them. */
static brg_status try_coalesced(const suite *s, bool with_ring)
{
    brg_work *works[N_COALESCED], *sent = NULL, *got = NULL, *early;
    const int next = (s->rank + 1) % s->n;
    const int before = (s->rank + s->n - 1) % s->n;
    int32_t out = 100 + s->rank, in = -1;
    BRG_TRY(brg_coalesce_begin(s->pg));
    BRG_TRY(brg_barrier(s->pg, &early));
    if (with_ring) {
        BRG_TRY(brg_send(s->pg, &sent, &out, 1, BRG_DTYPE_I32, next));
        BRG_TRY(brg_recv(s->pg, &got, &in, 1, BRG_DTYPE_I32, before));
    }
    BRG_TRY(start_coalesced(s, works));
    if (brg_work_test(early)) /* it need not be held back */
        BRG_TRY(brg_work_wait(early));
    else
        BRG_TRY(brg_suite_expect(brg_work_wait(early), BRG_ERR_STATE,
                                 "expected brg_coalesce_end before",
                                 "a wait before the end"));
    BRG_TRY(brg_coalesce_end(s->pg));
    for (size_t k = N_COALESCED; k-- > 0;)
        BRG_TRY(brg_work_wait(works[k]));
    for (size_t k = 0; k < N_COALESCED; k++) {
        trial t;
        unsigned char *send, *recv;
        const suite own = room_of(s, k, &t);
        place(&own, &t, &send, &recv);
        expect(&own, &t);
        BRG_TRY(compare(&own, &t, recv));
    }
    if (!with_ring)
        return BRG_OK;
    BRG_TRY(brg_work_wait(got));
    BRG_TRY(brg_work_wait(sent));
    return in == 100 + before
               ? BRG_OK
               : BRG_FAIL(BRG_ERR_INTERNAL, "rank %d: %d came", s->rank, in);
}

/* ---- Errors ------------------------------------------------------------------------ */

brg_status brg_suite_expect(brg_status status, brg_status code,
                            const char *text, const char *what)
{
    if (status == code && brg_error_code() == code &&
        strstr(brg_error_message(), text))
        return BRG_OK;
    return BRG_FAIL(BRG_ERR_INTERNAL, "%s: expected %s with \"%s\", got %s: %s",
                    what, brg_status_name(code), text, brg_status_name(status),
                    brg_error_message());
}

/* Bad arguments leave the group as it was. */
static brg_status try_bad_arguments(const suite *s)
{
    brg_work *work;
    char rank[32];
    snprintf(rank, sizeof rank, "rank %d", s->rank);
    BRG_TRY(brg_suite_expect(
        brg_all_reduce(s->pg, &work, NULL, 3, BRG_DTYPE_F32, BRG_REDUCE_SUM),
        BRG_ERR_ARG, rank, "a NULL buffer"));
    BRG_TRY(brg_suite_expect(brg_all_reduce(s->pg, &work, s->send, SIZE_MAX / 2,
                                            BRG_DTYPE_F64, BRG_REDUCE_SUM),
                             BRG_ERR_ARG, "do not fit", "a huge count"));
    BRG_TRY(brg_suite_expect(
        brg_broadcast(s->pg, &work, s->send, 1, BRG_DTYPE_F32, s->n),
        BRG_ERR_ARG, "root is", "a root that is none"));
    BRG_TRY(brg_suite_expect(
        brg_send(s->pg, &work, s->send, 1, BRG_DTYPE_F32, s->rank), BRG_ERR_ARG,
        "rank itself", "a send to itself"));
    BRG_TRY(brg_suite_expect(brg_coalesce_end(s->pg), BRG_ERR_STATE, "begin",
                             "an end without begin"));
    return brg_pg_error(s->pg);
}

static brg_status run_on(const suite *s)
{
    BRG_TRY(try_all_reduce(s));
    BRG_TRY(try_others(s));
    BRG_TRY(try_nothing(s));
    BRG_TRY(try_large(s));
    BRG_TRY(try_p2p(s));
    BRG_TRY(try_many(s, 3, false));
    BRG_TRY(try_many(s, 2500, false));
    BRG_TRY(try_many(s, 700, true));
    BRG_TRY(try_coalesced(s, false));
    BRG_TRY(try_coalesced(s, s->n > 1));
    return try_bad_arguments(s);
}

static brg_status run_in_heap(suite *s)
{
    brg_status status = BRG_ERR_NOMEM;
    const brg_host *host = brg_host_get();
    s->memory = "ordinary";
    s->expected = host->alloc(ARENA, "a test");
    s->send = host->alloc(ARENA, "a test");
    s->recv = host->alloc(ARENA, "a test");
    if (s->expected && s->send && s->recv)
        status = run_on(s);
    host->free(s->send);
    host->free(s->recv);
    return status;
}

static brg_status run_suite(brg_pg *pg, int node_size, bool in_group_memory)
{
    suite s = {.pg = pg,
               .rank = brg_pg_rank(pg),
               .n = brg_pg_world_size(pg),
               .node_size = node_size};
    brg_status status;
    BRG_TRY_GOTO(run_in_heap(&s), out);
    if (!in_group_memory)
        goto out;
    BRG_TRY_GOTO(brg_pg_alloc(pg, (void **)&s.send, ARENA), out);
    BRG_TRY_GOTO(brg_pg_alloc(pg, (void **)&s.recv, ARENA), out);
    s.memory = "group";
    BRG_TRY_GOTO(run_on(&s), out);
    brg_pg_free(pg, s.recv); /* the other goes with the group */
out:
    brg_host_get()->free(s.expected);
    return status;
}

brg_status brg_suite_run(brg_pg *pg, int node_size)
{
    return run_suite(pg, node_size, true);
}

brg_status brg_suite_run_on_host(brg_pg *pg)
{
    return run_suite(pg, 0, false);
}

/* ---- Steady state ------------------------------------------------------------------- */

static brg_status barrier(brg_pg *pg)
{
    brg_work *work;
    BRG_TRY(brg_barrier(pg, &work));
    return brg_work_wait(work);
}

static brg_status steps(brg_pg *pg, float *data, int n)
{
    static const size_t counts[] = {10, 3000, 50000};
    for (int i = 0; i < n; i++) {
        brg_work *works[3];
        for (int k = 0; k < 3; k++)
            BRG_TRY(brg_all_reduce(pg, &works[k], data + k * 50000, counts[k],
                                   BRG_DTYPE_F32, BRG_REDUCE_AVG));
        for (int k = 0; k < 3; k++)
            BRG_TRY(brg_work_wait(works[k]));
    }
    return BRG_OK;
}

brg_status brg_suite_steady_state(brg_pg *pg)
{
    float *data;
    BRG_TRY(brg_pg_alloc(pg, (void **)&data, 150000 * sizeof *data));
    BRG_TRY(steps(pg, data, 20));
    BRG_TRY(barrier(pg));
    brg_memory_stats before, after;
    brg_memory_get_stats(&before);
    BRG_TRY(barrier(pg));
    BRG_TRY(steps(pg, data, 30));
    BRG_TRY(barrier(pg));
    brg_memory_get_stats(&after);
    BRG_TRY(barrier(pg));
    if (after.n_allocs != before.n_allocs)
        return BRG_FAIL(BRG_ERR_INTERNAL,
                        "rank %d: a steady all_reduce allocated %llu times",
                        brg_pg_rank(pg),
                        (unsigned long long)(after.n_allocs - before.n_allocs));
    return BRG_OK;
}

/* ---- Mismatch -------------------------------------------------------------------------- */

brg_status brg_suite_mismatch(brg_pg *pg, int which, int odd_rank)
{
    float data[16] = {0};
    bool is_odd_one = brg_pg_rank(pg) == odd_rank;
    size_t count = which == 0 && is_odd_one ? 5 : 4;
    brg_dtype dtype = which == 1 && is_odd_one ? BRG_DTYPE_I32 : BRG_DTYPE_F32;
    brg_reduce_op op =
        which == 2 && is_odd_one ? BRG_REDUCE_MAX : BRG_REDUCE_SUM;
    brg_work *work;
    BRG_TRY(barrier(pg));
    if (which == 3 && is_odd_one)
        BRG_TRY(brg_broadcast(pg, &work, data, count, dtype, 0));
    else
        BRG_TRY(brg_all_reduce(pg, &work, data, count, dtype, op));
    char text[32];
    snprintf(text, sizeof text, "rank %d called", odd_rank);
    BRG_TRY(brg_suite_expect(brg_work_wait(work), BRG_ERR_MISMATCH, text,
                             "a call that differs"));
    return brg_suite_expect(brg_pg_error(pg), BRG_ERR_MISMATCH, text,
                            "the sticky error");
}
