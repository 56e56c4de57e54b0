/* SPDX-License-Identifier: Apache-2.0
 * Buffers of every dtype and layout that ride with the buckets: the bits that
 * collectives of their own make of them, and not one collective more. */
#ifndef BRG_TESTS_REDUCER_RIDER_CHECKS_H
#define BRG_TESTS_REDUCER_RIDER_CHECKS_H

#include <string.h>

#include <brigade/autograd.h>
#include <brigade/ops.h>
#include <brigade/reducer.h>

#include "tests/support/brg_test.h"
#include "tests/support/ranks.h"

#define RIDERS 9

typedef struct rider {
    brg_dtype dtype;
    int ndim;
    int64_t shape[2], strides[2];
    int64_t room; /* elements behind it */
} rider;

static const rider riders[RIDERS] = {
    {BRG_DTYPE_F32, 1, {5}, {1}, 5},
    {BRG_DTYPE_F64, 2, {2, 3}, {1, 2}, 6},
    {BRG_DTYPE_F16, 1, {7}, {1}, 7},
    {BRG_DTYPE_BF16, 1, {3}, {2}, 6},
    {BRG_DTYPE_I64, 1, {4}, {1}, 4},
    {BRG_DTYPE_I32, 2, {2, 2}, {3, 1}, 6},
    {BRG_DTYPE_U8, 1, {5}, {1}, 5},
    {BRG_DTYPE_BOOL, 1, {3}, {1}, 3},
    {BRG_DTYPE_F32, 2, {0, 4}, {4, 1}, 1},
};

/* Any bits at all; of those that are averaged, numbers. */
static inline void fill_rider(const rider *row, unsigned char *to, size_t n,
                              uint64_t *seed, bool is_averaged)
{
    size_t size = brg_dtype_size(row->dtype);
    for (size_t k = 0; k < n; k++) {
        uint64_t bits = brg_test_random(seed);
        double number = ((double)(bits >> 11) * 0x1p-53 - 0.5) * 20;
        memcpy(to + k * size, &bits, size);
        if (row->dtype == BRG_DTYPE_BOOL)
            to[k] = bits & 1;
        else if (is_averaged && brg_dtype_is_float(row->dtype))
            ranks_store(to, k, row->dtype, number);
    }
}

typedef struct ride_case {
    brg_pg *pg;
    brg_ddp_options options;
    brg_tensor *w, *buffers[RIDERS];
    brg_ddp *ddp;
} ride_case;

static inline bool rider_is_averaged(const ride_case *c, size_t i)
{
    return c->options.sync_buffers == BRG_DDP_BUFFERS_AVERAGE &&
           brg_dtype_is_float(riders[i].dtype);
}

/* New contents of each buffer, of this rank's own; `want` has them too. */
static inline brg_status ride_fill(ride_case *c, int step,
                                   unsigned char want[RIDERS][64])
{
    uint64_t seed = (uint64_t)(1000 * step + brg_pg_rank(c->pg) + 1);
    bool was = brg_grad_mode_set(false);
    brg_status status = BRG_OK;
    for (size_t i = 0; i < RIDERS && status == BRG_OK; i++) {
        const rider *row = &riders[i];
        size_t n = (size_t)brg_tensor_numel(c->buffers[i]);
        fill_rider(row, want[i], n, &seed, rider_is_averaged(c, i));
        if (n > 0)
            status =
                brg_copy_(c->buffers[i], brg_from_data(row->dtype, row->ndim,
                                                       row->shape, want[i]));
    }
    (void)brg_grad_mode_set(was);
    return status;
}

static inline brg_status ride_backwards(ride_case *c)
{
    uint32_t leaf;
    bool is_last, has_leaves = c->options.n_leaves > 0;
    BRG_TRY(brg_tensor_set_grad(c->w, NULL));
    do {
        is_last = brg_ddp_next_leaf(c->ddp, &leaf) || !has_leaves;
        BRG_TRY(brg_backward(brg_sum_all(c->w)));
    } while (!is_last);
    return BRG_OK;
}

/* Added in the order of the ranks, in f64 or f32 as the dtype says. */
static inline brg_status average_in_order(brg_pg *pg, unsigned char *x,
                                          size_t n, brg_dtype dtype)
{
    unsigned char all[8 * 64];
    brg_work *work;
    int n_ranks = brg_pg_world_size(pg);
    RANK_CHECK(n_ranks <= 8, "no room for %d ranks", n_ranks);
    BRG_TRY(brg_all_gather(pg, &work, all, x, n, dtype));
    BRG_TRY(brg_work_wait(work));
    for (size_t k = 0; k < n; k++) {
        double wide = 0;
        float narrow = 0;
        for (size_t r = 0; r < (size_t)n_ranks; r++) {
            double value = ranks_load(all, r * n + k, dtype);
            wide = r > 0 ? wide + value : value;
            narrow = r > 0 ? narrow + (float)value : (float)value;
        }
        wide *= 1.0 / n_ranks;
        narrow *= 1.0f / (float)n_ranks;
        ranks_store(x, k, dtype,
                    dtype == BRG_DTYPE_F64 ? wide : (double)narrow);
    }
    return BRG_OK;
}

/* What collectives of their own make of it. f64, and what goes with leaves, is
 * added in the order of the ranks even where nodes have partial sums. */
static inline brg_status ride_by_itself(ride_case *c, unsigned char *x,
                                        size_t n, size_t i)
{
    brg_work *work;
    brg_dtype dtype = riders[i].dtype;
    bool is_averaged = rider_is_averaged(c, i);
    if (is_averaged && (dtype == BRG_DTYPE_F64 || c->options.n_leaves > 0))
        return average_in_order(c->pg, x, n, dtype);
    BRG_TRY(is_averaged
                ? brg_all_reduce(c->pg, &work, x, n, dtype, BRG_REDUCE_AVG)
                : brg_broadcast(c->pg, &work, x, n, dtype, 0));
    return brg_work_wait(work);
}

static inline brg_status ride_compare(ride_case *c,
                                      unsigned char want[RIDERS][64])
{
    for (size_t i = 0; i < RIDERS; i++) {
        unsigned char got[64];
        size_t n = (size_t)brg_tensor_numel(c->buffers[i]);
        size_t nbytes = n * brg_dtype_size(riders[i].dtype);
        BRG_TRY(ride_by_itself(c, want[i], n, i));
        BRG_TRY(brg_tensor_read(c->buffers[i], got, nbytes));
        RANK_CHECK(memcmp(got, want[i], nbytes) == 0,
                   "rank %d: buffer %zu (%s) has other bits",
                   brg_pg_rank(c->pg), i, brg_dtype_name(riders[i].dtype));
    }
    return BRG_OK;
}

static inline brg_status ride_steps(ride_case *c)
{
    for (int step = 0; step < 4; step++) {
        unsigned char want[RIDERS][64];
        brg_pg_stats before, after;
        brg_scope *scope = brg_scope_begin();
        brg_status status = ride_fill(c, step, want);
        size_t n = brg_reducer_n_buckets(brg_ddp_reducer(c->ddp));
        brg_pg_get_stats(c->pg, &before);
        if (status == BRG_OK)
            status = ride_backwards(c);
        brg_pg_get_stats(c->pg, &after);
        if (status == BRG_OK)
            status = ride_compare(c, want);
        brg_scope_end(scope);
        BRG_TRY(status);
        RANK_CHECK(step == 0 || after.n_collectives - before.n_collectives == n,
                   "more collectives than buckets");
    }
    return BRG_OK;
}

static inline brg_status ride_check(brg_pg *pg, const brg_ddp_options *options)
{
    ride_case c = {.pg = pg, .options = *options};
    brg_scope *scope = brg_scope_begin();
    c.w = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(9));
    for (size_t i = 0; i < RIDERS; i++)
        c.buffers[i] = brg_as_strided(
            brg_zeros(riders[i].dtype, BRG_SHAPE(riders[i].room)),
            riders[i].ndim, riders[i].shape, riders[i].strides, 0);
    brg_status status = brg_set_requires_grad(c.w, true);
    if (status == BRG_OK)
        status =
            brg_ddp_create(&c.ddp, pg, &c.w, 1, c.buffers, RIDERS, &c.options);
    if (status == BRG_OK)
        status = ride_steps(&c);
    brg_ddp_destroy(c.ddp);
    brg_scope_end(scope);
    return status;
}

static inline brg_status check_riders(brg_pg *pg)
{
    for (int i = 0; i < 8; i++) {
        brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
        options.sync_buffers =
            i % 2 ? BRG_DDP_BUFFERS_AVERAGE : BRG_DDP_BUFFERS_BROADCAST;
        options.sum = i / 2 == 1;
        options.shard = i / 2 == 2;
        if (i / 2 == 3) {
            options.reduction = BRG_REDUCTION_REPRODUCIBLE;
            options.n_leaves = 12;
        }
        BRG_TRY(ride_check(pg, &options));
    }
    return BRG_OK;
}

#endif
