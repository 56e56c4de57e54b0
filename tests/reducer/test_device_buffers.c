/* SPDX-License-Identifier: Apache-2.0
 * Buffers on a device: they ride on the last bucket as those of the CPU do. */
#include "tests/reducer/rider_checks.h"
#include "tests/reducer/made_up_device.h"

/* Every dtype, strides and gaps, any bits; averages, sums, shards, leaves; no
 * collectives but buckets. */
static brg_status riders_there(world *w, const run *r)
{
    (void)r;
    return check_riders(w->pg);
}

static void test_device_buffers__ride_with_all_their_bits(void **state)
{
    (void)state;
    run r = make_run(riders_there);
    r.is_bare = true;
    n_cargo_calls = 0;
    run_worlds(&r);
    assert_true(n_cargo_calls > 0);
}

/* ---- Steps ------------------------------------------------------------------------ */

#define N_BUFFERS 2
#define N_VALUES 6

typedef struct buffered {
    brg_tensor *buffers[N_BUFFERS]; /* f32, i64 */
    int rank, n;
} buffered;

static double value_of(int rank, int step, int k)
{
    return 10 * rank + step + 0.25 * k;
}

/* What each rank has before a backward. */
static brg_status set_buffers(const buffered *b, int step)
{
    double values[N_VALUES];
    brg_scope *scope = brg_scope_begin();
    for (int k = 0; k < N_VALUES; k++)
        values[k] = value_of(b->rank, step, k);
    brg_tensor *from =
        brg_from_data(BRG_DTYPE_F64, 1, (int64_t[]){N_VALUES}, values);
    brg_status status = BRG_OK;
    for (int i = 0; i < N_BUFFERS && status == BRG_OK; i++)
        status = brg_copy_(b->buffers[i],
                           brg_cast(from, (brg_dtype)b->buffers[i]->dtype));
    brg_scope_end(scope);
    return status;
}

static brg_status check_buffers(const buffered *b, int step,
                                brg_ddp_buffers sync)
{
    for (int i = 0; i < N_BUFFERS; i++) {
        double got[N_VALUES];
        bool is_average = sync == BRG_DDP_BUFFERS_AVERAGE && i == 0;
        brg_scope *scope = brg_scope_begin();
        brg_status status = brg_tensor_read(
            brg_cast(b->buffers[i], BRG_DTYPE_F64), got, sizeof got);
        brg_scope_end(scope);
        BRG_TRY(status);
        for (int k = 0; k < N_VALUES; k++) {
            double want = value_of(0, step, k);
            if (is_average)
                want += 5.0 * (b->n - 1);
            want = i == 1 ? floor(want) : want;
            RANK_CHECK(fabs(got[k] - want) < 1e-5,
                       "rank %d, step %d: buffer %d[%d] is %g, not %g", b->rank,
                       step, i, k, got[k], want);
        }
    }
    return BRG_OK;
}

static brg_status make_buffered(buffered *b, world *w,
                                const brg_ddp_options *options)
{
    *b = (buffered){.rank = w->rank, .n = w->n};
    b->buffers[0] = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(N_VALUES));
    b->buffers[1] = brg_zeros(BRG_DTYPE_I64, BRG_SHAPE(N_VALUES));
    return brg_ddp_create(&w->ddp, w->pg, w->params, N_PARAMS, b->buffers,
                          N_BUFFERS, options);
}

static brg_tensor *loss_of(const world *w, brg_tensor **data)
{
    brg_tensor *loss = NULL;
    for (size_t i = 0; i < N_PARAMS; i++) {
        brg_tensor *term = brg_cast(brg_sum_all(brg_mul(w->params[i], data[i])),
                                    BRG_DTYPE_F32);
        loss = loss ? brg_add(loss, term) : term;
    }
    return loss;
}

/* The same step, with buffers and without: they add no crossing, no memory and
 * no collective. */
static brg_status steady(world *w, const brg_ddp_options *options, tally *spent)
{
    buffered b;
    brg_tensor *data[N_PARAMS];
    for (size_t i = 0; i < N_PARAMS; i++)
        data[i] = constant(w->rank, 0, i);
    BRG_TRY(make_buffered(&b, w, options));
    for (int step = 0; step < 6; step++) {
        tally before, after;
        brg_pg_stats calls[2];
        size_t n = brg_reducer_n_buckets(brg_ddp_reducer(w->ddp));
        if (options->sync_buffers != BRG_DDP_BUFFERS_LEAVE)
            BRG_TRY(set_buffers(&b, step));
        BRG_TRY(zero(w));
        brg_scope *scope = brg_scope_begin();
        brg_tensor *loss = loss_of(w, data);
        BRG_TRY(take_tally(w->pg, &before));
        brg_pg_get_stats(w->pg, &calls[0]);
        brg_status status = brg_backward(loss);
        brg_pg_get_stats(w->pg, &calls[1]);
        BRG_TRY(take_tally(w->pg, &after));
        brg_scope_end(scope);
        BRG_TRY(status);
        spent->n_crossings = after.n_crossings - before.n_crossings;
        spent->n_allocs = after.n_allocs - before.n_allocs;
        RANK_CHECK(step == 0 ||
                       calls[1].n_collectives == calls[0].n_collectives + n,
                   "rank %d, step %d: more collectives than %zu buckets",
                   w->rank, step, n);
        if (options->sync_buffers != BRG_DDP_BUFFERS_LEAVE)
            BRG_TRY(check_buffers(&b, step, options->sync_buffers));
    }
    brg_ddp_destroy(w->ddp);
    w->ddp = NULL;
    return BRG_OK;
}

static brg_status adds_nothing(world *w, const run *r)
{
    brg_ddp_options options = r->options;
    tally without = {0}, with = {0};
    options.sync_buffers = BRG_DDP_BUFFERS_LEAVE;
    BRG_TRY(steady(w, &options, &without));
    BRG_TRY(steady(w, &r->options, &with));
    RANK_CHECK(with.n_crossings == without.n_crossings &&
                   with.n_allocs == without.n_allocs,
               "rank %d: %d copies and %d allocations, without buffers %d, %d",
               w->rank, with.n_crossings, with.n_allocs, without.n_crossings,
               without.n_allocs);
    RANK_CHECK(!fake.fetch || with.n_crossings == 0, "%d copies",
               with.n_crossings);
    return BRG_OK;
}

static void test_device_buffers__add_nothing_to_a_steady_step(void **state)
{
    (void)state;
    run r = make_run(adds_nothing);
    r.is_bare = true;
    r.options.sync_buffers = BRG_DDP_BUFFERS_AVERAGE;
    run_worlds(&r);
    r.options.sync_buffers = BRG_DDP_BUFFERS_BROADCAST;
    run_worlds(&r);
}

/* ---- A step that one rank gave up -------------------------------------------------- */

static brg_status break_hook(brg_tensor *leaf, void *user)
{
    (void)leaf;
    return *(bool *)user
               ? brg_error_set(BRG_ERR_CALLBACK, __FILE__, __LINE__, "broken")
               : BRG_OK;
}

/* The others learn of it in the next: until then all ranks have the same. */
static brg_status stay_alike(world *w, const run *r)
{
    buffered b;
    bool is_broken = false;
    brg_hook *hook;
    BRG_TRY(make_buffered(&b, w, &r->options));
    BRG_TRY(brg_tensor_add_post_accumulate_hook(&hook, w->params[0], break_hook,
                                                &is_broken, NULL));
    for (int step = 0; step < 5; step++) {
        is_broken = step == 2 && w->rank == w->n - 1;
        BRG_TRY(set_buffers(&b, step));
        BRG_TRY(zero(w));
        brg_status status = backward(w, step, is_broken ? ALL & ~8u : ALL);
        RANK_CHECK(status == (is_broken   ? BRG_ERR_CALLBACK
                              : step == 3 ? BRG_ERR_PEER
                                          : BRG_OK),
                   "rank %d, step %d: %s", w->rank, step, brg_error_message());
        if (step != 3)
            BRG_TRY(check_buffers(&b, step, r->options.sync_buffers));
    }
    brg_hook_remove(hook);
    return brg_ddp_confirm(w->ddp);
}

static void test_device_buffers__are_alike_after_a_failed_backward(void **state)
{
    (void)state;
    run r = make_run(stay_alike);
    r.is_bare = true;
    for (int sync = 1; sync <= 2; sync++) {
        r.options.sync_buffers = (brg_ddp_buffers)sync;
        run_worlds(&r);
    }
}

/* ---- Those that do not ride --------------------------------------------------------- */

/* A device without the kernels, and more than is worth it. */
static brg_status by_themselves(world *w, const run *r)
{
    buffered b;
    const int before = n_cargo_calls;
    brg_ddp_options options = r->options;
    options.keep_order = true;
    BRG_TRY(make_buffered(&b, w, &options));
    const size_t n = brg_reducer_n_buckets(brg_ddp_reducer(w->ddp));
    for (int step = 0; step < 3; step++) {
        brg_pg_stats calls[2];
        BRG_TRY(set_buffers(&b, step));
        BRG_TRY(zero(w));
        brg_pg_get_stats(w->pg, &calls[0]);
        BRG_TRY(backward(w, step, ALL));
        brg_pg_get_stats(w->pg, &calls[1]);
        RANK_CHECK(calls[1].n_collectives ==
                       calls[0].n_collectives + n + N_BUFFERS,
                   "rank %d: not one collective for each buffer", w->rank);
        BRG_TRY(check_buffers(&b, step, options.sync_buffers));
    }
    RANK_CHECK(n_cargo_calls == before, "some rode");
    return BRG_OK;
}

static void test_device_buffers__go_by_themselves_without_kernels(void **state)
{
    (void)state;
    run r = make_run(by_themselves);
    r.is_bare = true;
    fake.cargo_load = NULL;
    for (int sync = 1; sync <= 2; sync++) {
        r.options.sync_buffers = (brg_ddp_buffers)sync;
        run_worlds(&r);
    }
    fake.cargo_load = fake_cargo_load;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_device_buffers__ride_with_all_their_bits),
        TEST(test_device_buffers__add_nothing_to_a_steady_step),
        TEST(test_device_buffers__are_alike_after_a_failed_backward),
        TEST(test_device_buffers__go_by_themselves_without_kernels),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
