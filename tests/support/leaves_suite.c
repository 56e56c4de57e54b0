/* SPDX-License-Identifier: Apache-2.0
 * The contract of the reproducible sum, for every backend that has it. */
#include <math.h>
#include <string.h>

#include <brigade/ext/backend.h>

#include "comm/patterns/tree.h"
#include "core/base/dtype.h"
#include "tests/support/backend_suite.h"
#include "tests/support/leaf_oracle.h"
#include "tests/support/ranks.h"

#define MAX_COUNT 20011
#define MAX_LEAVES 37
#define GUARD_BYTE 0xA5

typedef struct trial {
    brg_pg *pg;
    int rank;
    int n;
    unsigned char *slots;
    unsigned char *recv;
    unsigned char *own; /* what goes into a slot, or is expected */
    size_t n_slots;
    uint32_t n_leaves;
    size_t count;
    brg_dtype dtype;
    bool is_average;
    bool in_place;
} trial;

static size_t partial_size(const trial *t)
{
    return brg_host_get()->partial_size(t->dtype);
}

/* No sums of these are exact in f32. */
UNWATCHED static double leaf_at(const trial *t, uint32_t leaf, size_t i)
{
    uint64_t z = (leaf + 1) * 0x9E3779B97F4A7C15u + i * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    double x = (double)(z >> 11) * 0x1p-52 - 1;
    if (!brg_dtype_is_float(t->dtype))
        return floor(x * 100);
    return t->dtype == BRG_DTYPE_F64 ? x : (double)(float)x;
}

UNWATCHED static double expected_at(const trial *t, size_t i)
{
    double leaves[LEAF_ORACLE_MAX];
    for (uint32_t leaf = 0; leaf < t->n_leaves; leaf++)
        leaves[leaf] = leaf_at(t, leaf, i);
    return leaf_oracle(leaves, t->n_leaves, t->dtype, t->is_average);
}

UNWATCHED static void store(void *at, brg_dtype dtype, double x)
{
    if (dtype == BRG_DTYPE_F64)
        memcpy(at, &x, 8);
    else if (dtype == BRG_DTYPE_F32)
        memcpy(at, &(float){(float)x}, 4);
    else if (dtype == BRG_DTYPE_I32)
        memcpy(at, &(int32_t){(int32_t)x}, 4);
    else if (dtype == BRG_DTYPE_F16)
        memcpy(at, &(uint16_t){brg__f32_to_f16((float)x)}, 2);
    else
        memcpy(at, &(uint16_t){brg__f32_to_bf16((float)x)}, 2);
}

UNWATCHED static void compute_leaf(const trial *t, uint32_t leaf,
                                   brg_dtype dtype, size_t size)
{
    for (size_t k = 0; k < t->count; k++)
        store(t->own + k * size, dtype, leaf_at(t, leaf, k));
}

UNWATCHED static void compute_expected(const trial *t, size_t size)
{
    for (size_t k = 0; k < t->count; k++)
        store(t->own + k * size, t->dtype, expected_at(t, k));
}

static void fill_slots(const trial *t, const brg_leaf_run *run, size_t stride)
{
    size_t size = partial_size(t);
    brg_dtype dtype =
        size == 4 && brg_dtype_is_float(t->dtype) ? BRG_DTYPE_F32 : t->dtype;
    memset(t->slots, 0, run->n_slots * stride);
    for (uint32_t i = 0; i < run->n; i++) {
        compute_leaf(t, run->first + i, dtype, size);
        memcpy(t->slots + brg_leaf_slot(run, i) * stride, t->own,
               t->count * size);
        brg_leaf_add(run, i, t->slots, stride, t->count, t->dtype);
    }
}

static brg_status compare(const trial *t, const unsigned char *recv)
{
    size_t size = brg_dtype_size(t->dtype);
    compute_expected(t, size);
    bool is_same = memcmp(recv, t->own, t->count * size) == 0;
    for (size_t i = 0; i < t->count && !is_same; i++)
        RANK_CHECK(memcmp(recv + i * size, t->own + i * size, size) == 0,
                   "rank %d of %d: %d leaves of %zu %s%s: element %zu is wrong",
                   t->rank, t->n, (int)t->n_leaves, t->count,
                   brg_dtype_name(t->dtype), t->in_place ? ", in place" : "",
                   i);
    RANK_CHECK(t->in_place || recv[t->count * size] == GUARD_BYTE,
               "rank %d: sum_leaves wrote past its buffer", t->rank);
    return BRG_OK;
}

static brg_status try_one(trial t)
{
    brg_leaf_run run;
    brg_work *work;
    BRG_TRY(brg_leaf_run_of(&run, t.n_leaves, t.rank, t.n));
    RANK_CHECK(run.n_slots <= t.n_slots, "%d slots", (int)run.n_slots);
    size_t stride = (t.count * partial_size(&t) + 127) / 64 * 64;
    fill_slots(&t, &run, stride);
    unsigned char *recv = t.in_place ? t.slots : t.recv;
    memset(t.recv, GUARD_BYTE, (t.count + 1) * 8);
    brg_leaf_parts parts = {t.slots, stride, t.n_leaves};
    BRG_TRY(brg_sum_leaves(t.pg, &work, recv, &parts, t.count, t.dtype,
                           t.is_average ? BRG_REDUCE_AVG : BRG_REDUCE_SUM));
    BRG_TRY(brg_work_wait(work));
    return compare(&t, recv);
}

static brg_status try_dtypes(trial t, size_t n_dtypes)
{
    static const brg_dtype dtypes[] = {BRG_DTYPE_F32, BRG_DTYPE_BF16,
                                       BRG_DTYPE_F64, BRG_DTYPE_F16,
                                       BRG_DTYPE_I32};
    for (size_t d = 0; d < n_dtypes; d++)
        for (int k = 0; k < 4; k++) {
            t.dtype = dtypes[d];
            t.is_average = k % 2;
            bool is_half = brg_dtype_size(t.dtype) == 2;
            t.in_place = k / 2 && !is_half;
            BRG_TRY(try_one(t));
        }
    return BRG_OK;
}

/* Two at once, of different trees. */
static brg_status try_two(trial t)
{
    brg_leaf_run run;
    brg_work *works[2];
    float *x = (float *)(void *)t.slots, *y = x + 10000;
    BRG_TRY(brg_leaf_run_of(&run, 2 * (uint32_t)t.n, t.rank, t.n));
    for (size_t i = 0; i < 10000 + 5000 * run.n_slots; i++)
        x[i] = 1;
    brg_leaf_parts one = {x, 20000, (uint32_t)t.n};
    brg_leaf_parts two = {y, 20000, 2 * (uint32_t)t.n};
    BRG_TRY(brg_sum_leaves(t.pg, &works[0], x, &one, 5000, BRG_DTYPE_F32,
                           BRG_REDUCE_SUM));
    BRG_TRY(brg_sum_leaves(t.pg, &works[1], y, &two, 5000, BRG_DTYPE_F32,
                           BRG_REDUCE_SUM));
    BRG_TRY(brg_work_wait(works[1]));
    BRG_TRY(brg_work_wait(works[0]));
    double n_parts = 0;
    for (int r = 0; r < t.n; r++)
        n_parts += brg__tree_n_parts(2 * (uint32_t)t.n, t.n, r);
    for (size_t i = 0; i < 5000; i++)
        RANK_CHECK((double)x[i] == t.n && (double)y[i] == n_parts,
                   "rank %d: two sums at once: %g and %g", t.rank, (double)x[i],
                   (double)y[i]);
    return BRG_OK;
}

static brg_status try_errors(const trial *t)
{
    brg_work *work;
    brg_leaf_parts parts = {t->slots, 256, (uint32_t)t->n + 3};
    RANK_FAILS(brg_sum_leaves(t->pg, &work, t->recv, &parts, 65, BRG_DTYPE_F32,
                              BRG_REDUCE_SUM),
               BRG_ERR_ARG, "room for 65 elements of 4");
    RANK_FAILS(brg_sum_leaves(t->pg, &work, t->recv, &parts, 3, BRG_DTYPE_F32,
                              BRG_REDUCE_MAX),
               BRG_ERR_ARG, "expected sum or avg");
    parts.n_leaves = (uint32_t)t->n - 1;
    RANK_FAILS(brg_sum_leaves(t->pg, &work, t->recv, &parts, 3, BRG_DTYPE_F32,
                              BRG_REDUCE_SUM),
               BRG_ERR_ARG, "(the world size)");
    return brg_pg_error(t->pg);
}

static brg_status try_all(trial t)
{
    static const size_t counts[] = {0, 1, 17, 1029};
    static const uint32_t leaves[] = {8, 12, 24, 37};
    for (size_t i = 0; i < 4; i++)
        for (size_t k = 0; k < 4; k++) {
            t.count = counts[k];
            t.n_leaves = leaves[i] < (uint32_t)t.n ? (uint32_t)t.n : leaves[i];
            BRG_TRY(try_dtypes(t, 5));
        }
    t.count = MAX_COUNT;
    t.n_leaves = (uint32_t)t.n;
    BRG_TRY(try_dtypes(t, 2));
    t.n_leaves = MAX_LEAVES < t.n ? (uint32_t)t.n : MAX_LEAVES;
    BRG_TRY(try_dtypes(t, 2));
    BRG_TRY(try_two(t));
    return try_errors(&t);
}

static trial begin(brg_pg *pg)
{
    return (trial){.pg = pg,
                   .rank = brg_pg_rank(pg),
                   .n = brg_pg_world_size(pg),
                   .n_slots = 8};
}

#define ROOM (8 * (size_t)(MAX_COUNT + 16))

static brg_status try_in_heap(trial *t)
{
    const brg_host *host = brg_host_get();
    brg_status status = BRG_ERR_NOMEM;
    t->slots = host->alloc(t->n_slots * ROOM, "a test");
    t->recv = host->alloc(ROOM, "a test");
    if (t->slots && t->recv)
        status = try_all(*t);
    host->free(t->slots);
    host->free(t->recv);
    return status;
}

static brg_status try_in_group(trial *t)
{
    BRG_TRY(brg_pg_alloc(t->pg, (void **)&t->slots, t->n_slots * ROOM));
    BRG_TRY(brg_pg_alloc(t->pg, (void **)&t->recv, ROOM));
    return try_all(*t);
}

static brg_status run(brg_pg *pg, bool in_group)
{
    trial t = begin(pg);
    t.own = brg_host_get()->alloc(ROOM, "a test");
    brg_status status = t.own ? try_in_heap(&t) : BRG_ERR_NOMEM;
    if (status == BRG_OK && in_group)
        status = try_in_group(&t);
    brg_host_get()->free(t.own);
    return status;
}

brg_status brg_suite_leaves_on_host(brg_pg *pg)
{
    return run(pg, false);
}

brg_status brg_suite_leaves(brg_pg *pg)
{
    return run(pg, true);
}
