/* SPDX-License-Identifier: Apache-2.0
 * The reducer over raw buffers, in simulated worlds and against the fake
 * group's log: values, order, memory. */
#include "tests/reducer/trainer.h"
#include "tests/support/fail_alloc.h"

#include "comm/pg.h"
#include "reducer/reducer.h"

static brg_status three_steps(trainer *t, const run *r)
{
    for (int step = 0; step < 3; step++)
        BRG_TRY(run_step(t, step, r->seed));
    brg_reducer_stats stats;
    brg_reducer_get_stats(t->reducer, &stats);
    RANK_CHECK(stats.n_steps == 3, "%d steps", (int)stats.n_steps);
    RANK_CHECK(stats.n_rebuilds == 0 || !r->in_slots, "slots have moved");
    for (size_t i = 0; i < t->n; i++)
        RANK_CHECK(brg_reducer_n_used(t->reducer, i) == (size_t)t->world_size,
                   "gradient %zu counts %zu ranks", i,
                   brg_reducer_n_used(t->reducer, i));
    return BRG_OK;
}

static void test_reducer__averages_whatever_the_order(void **state)
{
    (void)state;
    static const size_t caps[] = {1, 256, 1000, 0};
    run r = {.body = three_steps, .seed = brg_test_seed(11)};
    for (size_t i = 0; i < 4; i++) {
        r.options = (brg_reducer_options)BRG_REDUCER_OPTIONS_INIT;
        r.options.first_bucket_bytes = r.options.bucket_bytes = caps[i];
        r.in_slots = false;
        run_worlds(&r, 1);
        r.in_slots = true;
        run_worlds(&r, 1);
        r.seed++;
    }
}

static brg_status sum_step(trainer *t, const run *r)
{
    BRG_TRY(mark_all(t, 0, r->seed));
    BRG_TRY(brg_reducer_wait(t->reducer));
    for (size_t k = 0; k < counts[0]; k++) {
        double expected = ranks_average(t->world_size, 0, 0, k) * t->world_size;
        double error = expected - ranks_load(t->memory[0], k, dtypes[0]);
        RANK_CHECK(error < 1e-5 && error > -1e-5, "off by %g", error);
    }
    return BRG_OK;
}

static void test_reducer__can_sum(void **state)
{
    (void)state;
    run r = {.body = sum_step, .options = BRG_REDUCER_OPTIONS_INIT, .seed = 3};
    r.options.sum = true;
    run_worlds(&r, 1);
}

static brg_status results_in_slots(trainer *t, const run *r)
{
    for (int step = 0; step < 2; step++) {
        BRG_TRY(mark_all(t, step, r->seed));
        double before = ranks_load(t->memory[2], 5, dtypes[2]);
        BRG_TRY(brg_reducer_wait(t->reducer));
        RANK_CHECK(before == ranks_load(t->memory[2], 5, dtypes[2]),
                   "the buffer was written");
        double average = ranks_average(t->world_size, step, 2, 5);
        double found =
            ranks_load(brg_reducer_slot(t->reducer, 2), 5, dtypes[2]);
        RANK_CHECK(found - average < 1e-6 && average - found < 1e-6,
                   "slot holds %g, expected %g", found, average);
    }
    return BRG_OK;
}

static void test_reducer__can_leave_results_in_slots(void **state)
{
    (void)state;
    run r = {.body = results_in_slots, .options = BRG_REDUCER_OPTIONS_INIT};
    r.options.keep_in_slots = true;
    run_worlds(&r, 1);
}

/* ---- Order on the wire ------------------------------------------------------------ */

/* How many all-reduces the log holds from `from` on, and that they are those
 * of the plan's first buckets. */
static size_t n_sent(const trainer *t, size_t from)
{
    size_t n = brg_fake_n_calls(t->pg) - from;
    for (size_t k = 0; k < n; k++) {
        brg_fake_call call;
        brg_bucket_info info;
        assert_brg_ok(brg_fake_call_at(t->pg, from + k, &call));
        assert_brg_ok(brg_reducer_get_bucket(t->reducer, k, &info));
        assert_string_equal(call.name, "all_reduce");
        assert_int_equal(call.dtype, info.dtype);
        assert_int_equal(call.op, BRG_REDUCE_AVG);
        assert_int_equal(call.count * brg_dtype_size(call.dtype), info.nbytes);
    }
    return n;
}

/* Buckets complete from the first on, given the marked gradients. */
static size_t n_complete(const trainer *t, const bool *is_marked)
{
    size_t first_open = brg_reducer_n_buckets(t->reducer);
    for (size_t i = 0; i < t->n; i++) {
        size_t bucket, offset;
        assert_brg_ok(brg_reducer_find(t->reducer, i, &bucket, &offset));
        if (!is_marked[i] && bucket < first_open)
            first_open = bucket;
    }
    return first_open;
}

static void test_reducer__starts_buckets_in_order(void **state)
{
    (void)state;
    brg_pg *pg;
    trainer t;
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    uint64_t seed = brg_test_seed(5);
    options.first_bucket_bytes = options.bucket_bytes = 200;
    options.keep_order = true;
    assert_brg_ok(brg_pg_create_fake(&pg, 1, 4));
    trainer_init(&t, pg);
    assert_brg_ok(trainer_create(&t, &options));
    assert_true(brg_reducer_n_buckets(t.reducer) > 4);
    for (int round = 0; round < 200; round++) {
        bool is_marked[N_PARAMS] = {false};
        size_t order[N_PARAMS], from = brg_fake_n_calls(pg);
        shuffle(order, t.n, brg_test_random(&seed));
        for (size_t i = 0; i < t.n; i++) {
            is_marked[order[i]] = true;
            assert_brg_ok(brg_reducer_mark_ready(t.reducer, order[i]));
            size_t n = n_complete(&t, is_marked);
            if (i + 1 == t.n) /* a tail of its own goes along */
                n = brg_reducer_n_buckets(t.reducer);
            assert_int_equal(n_sent(&t, from), n);
        }
        assert_brg_ok(brg_reducer_wait(t.reducer));
        assert_int_equal(n_sent(&t, from), brg_reducer_n_buckets(t.reducer));
    }
    brg_reducer_destroy(t.reducer);
    brg_pg_destroy(pg);
}

static void test_reducer__overlaps_and_counts_it(void **state)
{
    (void)state;
    brg_pg *pg;
    trainer t;
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    options.first_bucket_bytes = options.bucket_bytes = 1;
    assert_brg_ok(brg_pg_create_fake(&pg, 0, 2));
    trainer_init(&t, pg);
    assert_brg_ok(trainer_create(&t, &options));
    for (size_t i = t.n; i-- > 0;)
        assert_brg_ok(brg_reducer_mark_ready(t.reducer, i));
    assert_brg_ok(brg_reducer_wait(t.reducer));
    brg_reducer_stats stats;
    brg_reducer_get_stats(t.reducer, &stats);
    assert_int_equal(stats.n_params, N_PARAMS);
    assert_int_equal(stats.n_buckets, N_PARAMS);
    assert_int_equal(stats.n_early, N_PARAMS - 1);
    assert_true(stats.first_launch_ns < stats.last_ready_ns);
    size_t nbytes = 0;
    for (size_t i = 0; i < t.n; i++)
        nbytes += counts[i] * brg_dtype_size(dtypes[i]);
    assert_int_equal(stats.n_packed_bytes, nbytes);
    brg_reducer_destroy(t.reducer);
    brg_pg_destroy(pg);
}

static void test_reducer__does_not_copy_what_lives_in_its_slot(void **state)
{
    (void)state;
    brg_pg *pg;
    brg_reducer *reducer;
    brg_reducer_stats stats;
    brg_reducer_param params[2] = {{.name = "a", .count = 3, .dtype = 1},
                                   {.name = "b", .count = 3, .dtype = 1}};
    assert_brg_ok(brg_pg_create_self(&pg));
    assert_brg_ok(brg_reducer_create(&reducer, pg, params, 2, NULL));
    float *a = brg_reducer_slot(reducer, 0), *b = brg_reducer_slot(reducer, 1);
    assert_null(brg_reducer_slot(reducer, 2));
    for (int step = 0; step < 3; step++) {
        a[0] = (float)step;
        b[2] = 7;
        assert_brg_ok(brg_reducer_mark_ready(reducer, 0));
        assert_brg_ok(brg_reducer_mark_ready(reducer, 1));
        assert_brg_ok(brg_reducer_wait(reducer));
        assert_ptr_equal(a, brg_reducer_slot(reducer, 0));
        assert_true(a[0] == (float)step && b[2] == 7);
    }
    brg_reducer_get_stats(reducer, &stats);
    assert_int_equal(stats.n_packed_bytes, 0);
    assert_int_equal(stats.n_rebuilds, 0);
    brg_reducer_destroy(reducer);
    brg_pg_destroy(pg);
}

/* ---- Rebuild ------------------------------------------------------------------------- */

static brg_status rebuild_body(trainer *t, const run *r)
{
    (void)r;
    static const size_t order[N_PARAMS] = {3, 0, 5, 1, 6, 2, 4};
    brg_reducer_stats stats;
    for (int step = 0; step < 3; step++) {
        for (size_t i = 0; i < t->n; i++) { /* other ranks, another order */
            size_t p = t->rank == 0 ? order[i] : order[t->n - 1 - i];
            fill(t, step, p);
            BRG_TRY(brg_reducer_mark_ready(t->reducer, p));
        }
        BRG_TRY(brg_reducer_wait(t->reducer));
        BRG_TRY(check_all(t, step));
        brg_reducer_get_stats(t->reducer, &stats);
        RANK_CHECK(stats.n_rebuilds == 1, "rebuilt %d times",
                   (int)stats.n_rebuilds);
    }
    const brg__plan *plan = &t->reducer->plan;
    for (size_t i = 0; i < t->n; i++)
        RANK_CHECK(plan->order[i] == order[i], "place %zu holds %u", i,
                   plan->order[i]);
    return BRG_OK;
}

static void test_reducer__is_rebuilt_in_the_order_of_rank_0(void **state)
{
    (void)state;
    run r = {.body = rebuild_body, .options = BRG_REDUCER_OPTIONS_INIT};
    r.options.first_bucket_bytes = r.options.bucket_bytes = 1;
    run_worlds(&r, 1);
}

static void test_reducer__rebuild_keeps_results_in_slots(void **state)
{
    (void)state;
    brg_pg *pg;
    trainer t;
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    options.first_bucket_bytes = options.bucket_bytes = 1;
    options.keep_in_slots = true;
    assert_brg_ok(brg_pg_create_self(&pg));
    trainer_init(&t, pg);
    assert_brg_ok(trainer_create(&t, &options));
    for (size_t i = 0; i < t.n; i++) {
        fill(&t, 0, i);
        assert_brg_ok(brg_reducer_mark_ready(t.reducer, i));
    }
    assert_brg_ok(brg_reducer_wait(t.reducer));
    assert_int_equal(t.reducer->stats.n_rebuilds, 1);
    for (size_t i = 0; i < t.n; i++)
        assert_memory_equal(brg_reducer_slot(t.reducer, i), t.memory[i],
                            counts[i] * brg_dtype_size(dtypes[i]));
    brg_reducer_destroy(t.reducer);
    brg_pg_destroy(pg);
}

/* ---- Memory ---------------------------------------------------------------------------------- */

static brg_status make_and_step(void *user)
{
    trainer t;
    trainer_init(&t, user);
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    options.bucket_bytes = 256;
    options.keep_order = true; /* a rebuild may fail: the next test */
    brg_status status = trainer_create(&t, &options);
    for (int step = 0; status == BRG_OK && step < 2; step++)
        status = run_step(&t, step, 1);
    brg_reducer_destroy(t.reducer);
    return status;
}

static void test_reducer__runs_out_of_memory_cleanly(void **state)
{
    (void)state;
    brg_pg *pg;
    assert_brg_ok(brg_pg_create_self(&pg));
    assert_oom_clean(make_and_step, pg);
    brg_pg_destroy(pg);
}

/* Rank 1 has memory for so many allocations of the rebuild. */
static brg_status rebuild_poorly(brg_pg *pg, void *user)
{
    int64_t budget = *(const int64_t *)user;
    trainer t;
    trainer_init(&t, pg);
    BRG_TRY(trainer_create(&t, NULL));
    brg_status status = mark_all(&t, 0, 1);
    for (size_t i = 0; i < t.reducer->plan.n_buckets; i++)
        (void)brg_work_test(t.reducer->buckets[i].work);
    if (t.rank == 1)
        fail_alloc_arm(budget);
    if (status == BRG_OK)
        status = brg_reducer_wait(t.reducer);
    if (t.rank == 1)
        (void)fail_alloc_disarm();
    if (status == BRG_OK)
        status = run_step(&t, 1, 1);
    brg_reducer_stats stats;
    brg_reducer_get_stats(t.reducer, &stats);
    brg_reducer_destroy(t.reducer);
    BRG_TRY(status);
    RANK_CHECK(stats.n_steps == 2, "%d steps", (int)stats.n_steps);
    uint64_t n = stats.n_rebuilds;
    return ranks_same_bits(pg, &n, sizeof n);
}

static void test_reducer__is_not_rebuilt_without_memory(void **state)
{
    (void)state;
    for (int64_t budget = 0; budget < 8; budget++) {
        brg_status status = brg_sim_run(2, NULL, rebuild_poorly, &budget);
        if (status != BRG_ERR_NOMEM) /* of a collective itself */
            assert_brg_ok(status);
    }
}

static brg_status steady_body(trainer *t, const run *r)
{
    brg_memory_stats before, after;
    for (int step = 0; step < 3; step++)
        BRG_TRY(run_step(t, step, r->seed));
    brg_memory_get_stats(&before);
    uint64_t n_mallocs = ranks_n_mallocs();
    for (int step = 3; step < 6; step++) {
        BRG_TRY(mark_all(t, step, r->seed));
        BRG_TRY(brg_reducer_wait(t->reducer));
    }
    brg_memory_get_stats(&after);
    RANK_CHECK(after.n_allocs == before.n_allocs, "%d allocations",
               (int)(after.n_allocs - before.n_allocs));
    RANK_CHECK(ranks_n_mallocs() == n_mallocs, "%d calls of malloc",
               (int)(ranks_n_mallocs() - n_mallocs));
    return check_all(t, 5);
}

static void test_reducer__a_steady_step_allocates_nothing(void **state)
{
    (void)state;
#if defined(__SANITIZE_ADDRESS__)
    skip(); /* objects are not cached, so that each is seen */
#endif
    run r = {.body = steady_body, .options = BRG_REDUCER_OPTIONS_INIT};
    brg_pg *pg;
    assert_brg_ok(brg_pg_create_self(&pg));
    assert_brg_ok(run_rank(pg, &r));
    brg_pg_destroy(pg);
#if !defined(__SANITIZE_THREAD__)
    assert_true(ranks_n_mallocs() > 0); /* it does count */
#endif
}

static void test_reducer__may_be_destroyed_in_flight(void **state)
{
    (void)state;
    brg_pg *pg;
    trainer t;
    assert_brg_ok(brg_pg_create_fake(&pg, 0, 2));
    trainer_init(&t, pg);
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    options.first_bucket_bytes = options.bucket_bytes = 1;
    assert_brg_ok(trainer_create(&t, &options));
    assert_brg_ok(brg_reducer_mark_ready(t.reducer, 6));
    brg_reducer_destroy(t.reducer);
    brg_pg_destroy(pg);
}

/* ---- What the group is told of a call ------------------------------------------- */

static brg_status (*start_of_group)(void *group, brg_call *call);
static bool hints[64];
static size_t n_hints;

static brg_status note_hint(void *group, brg_call *call)
{
    if (n_hints < 64)
        hints[n_hints++] = call->is_last;
    return start_of_group(group, call);
}

/* The last bucket of a step, and nothing else. */
static void test_reducer__says_which_bucket_is_the_last(void **state)
{
    (void)state;
    brg_pg *pg;
    trainer t;
    brg_work *work;
    assert_brg_ok(brg_pg_create_fake(&pg, 0, 2));
    brg_group_ops ops = *pg->end.ops;
    start_of_group = ops.start;
    ops.start = note_hint;
    pg->end.ops = &ops;
    trainer_init(&t, pg);
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    options.first_bucket_bytes = options.bucket_bytes = 1;
    assert_brg_ok(trainer_create(&t, &options));
    const size_t n = brg_reducer_n_buckets(t.reducer);
    n_hints = 0;
    for (size_t i = 0; i < t.n; i++)
        assert_brg_ok(brg_reducer_mark_ready(t.reducer, i));
    assert_true(n > 1 && n_hints == n);
    for (size_t k = 0; k < n; k++)
        assert_int_equal(hints[k], k + 1 == n);
    assert_brg_ok(brg_reducer_wait(t.reducer));
    n_hints = 0;
    assert_brg_ok(brg_barrier(pg, &work));
    assert_brg_ok(brg_work_wait(work));
    assert_true(n_hints == 1 && !hints[0]);
    brg_reducer_destroy(t.reducer);
    brg_pg_destroy(pg);
}

int main(void)
{
    fail_alloc_install();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reducer__averages_whatever_the_order),
        cmocka_unit_test(test_reducer__can_sum),
        cmocka_unit_test(test_reducer__can_leave_results_in_slots),
        cmocka_unit_test(test_reducer__starts_buckets_in_order),
        cmocka_unit_test(test_reducer__overlaps_and_counts_it),
        cmocka_unit_test(test_reducer__does_not_copy_what_lives_in_its_slot),
        cmocka_unit_test(test_reducer__is_rebuilt_in_the_order_of_rank_0),
        cmocka_unit_test(test_reducer__rebuild_keeps_results_in_slots),
        cmocka_unit_test(test_reducer__runs_out_of_memory_cleanly),
        cmocka_unit_test(test_reducer__is_not_rebuilt_without_memory),
        cmocka_unit_test(test_reducer__a_steady_step_allocates_nothing),
        cmocka_unit_test(test_reducer__may_be_destroyed_in_flight),
        cmocka_unit_test(test_reducer__says_which_bucket_is_the_last),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
