/* SPDX-License-Identifier: Apache-2.0
 * The shared contract of the backends. */
#include "tests/support/backend_suite.h"

#include <stdio.h>
#include <string.h>

#include <brigade/ext/backend.h>

#include "core/base/error.h"
#include "tests/support/backend_trial.h"

#if defined(__SANITIZE_THREAD__)
#define LARGE 20003 /* all of it is slow then */
#define ARENA ((size_t)5 << 18)
#else
#define ARENA ((size_t)5 << 20)
#define LARGE 160001 /* elements: several steps of any backend */
#endif

/* ---- Groups of trials ------------------------------------------------------------ */

static const size_t sizes[] = {0, 1, 17, 1029};
#define N_SIZES (sizeof sizes / sizeof sizes[0])

static brg_status try_all_reduce(const suite *s)
{
    uint64_t salt = 1;
    for (int dtype = 0; dtype < BRG_N_DTYPES; dtype++)
        for (int op = 0; op < BRG_N_REDUCE_OPS; op++)
            for (size_t i = 0; i < N_SIZES; i++)
                BRG_TRY(trial_run(s, &(trial){.coll = BRG_COLL_ALL_REDUCE,
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
            BRG_TRY(trial_run(s, &(trial){.coll = BRG_COLL_ALL_REDUCE,
                                          .count = counts[i],
                                          .dtype = dtypes[d],
                                          .op = BRG_REDUCE_AVG,
                                          .salt = salt++}));
    for (int in_place = 0; in_place < 2; in_place++)
        for (int coll = BRG_COLL_REDUCE_SCATTER; coll <= BRG_COLL_BROADCAST;
             coll++)
            BRG_TRY(trial_run(s, &(trial){.coll = (brg_coll)coll,
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
            BRG_TRY(trial_run(s, &(trial){.coll = (brg_coll)coll,
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
                BRG_TRY(trial_run(s, &(trial){.coll = colls[k / 2],
                                              .count = sizes[i],
                                              .dtype = (brg_dtype)dtype,
                                              .op = (brg_reduce_op)(salt % 5),
                                              .in_place = k % 2,
                                              .salt = salt}));
    for (int root = 0; root < s->n; root++)
        for (size_t i = 0; i < N_SIZES; i++)
            BRG_TRY(trial_run(s, &(trial){.coll = BRG_COLL_BROADCAST,
                                          .count = sizes[i],
                                          .dtype = BRG_DTYPE_I32,
                                          .root = root,
                                          .salt = salt++}));
    return trial_run(s,
                     &(trial){.coll = BRG_COLL_BARRIER, .dtype = BRG_DTYPE_U8});
}

/* ---- Point to point ------------------------------------------------------------ */

/* A ring: to the next rank, from the one before. */
static brg_status try_ring(const suite *s, size_t count, uint64_t salt)
{
    trial t = {.count = count, .dtype = BRG_DTYPE_F32, .salt = salt};
    int next = (s->rank + 1) % s->n, before = (s->rank + s->n - 1) % s->n;
    brg_work *works[2];
    trial_fill(s, &t, s->send, count);
    trial_values(s, &t, before, count);
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
    return trial_compare(s, &t, s->recv);
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
        trial_place(&own, &t, &send, &recv);
        memset(recv, GUARD_BYTE,
               trial_n_recv(s, &t) * brg_dtype_size(t.dtype) + GUARD);
        trial_fill(&own, &t, send, trial_n_send(s, &t));
        BRG_TRY(trial_start(s, &t, &works[k], recv, send));
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
        trial_place(&own, &t, &send, &recv);
        trial_expect(&own, &t);
        BRG_TRY(trial_compare(&own, &t, recv));
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
