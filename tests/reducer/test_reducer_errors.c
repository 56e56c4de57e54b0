/* SPDX-License-Identifier: Apache-2.0
 * The reducer over raw buffers: misuse, ranks that differ, fail or leave. */
#include "tests/reducer/trainer.h"

/* ---- Mistakes ------------------------------------------------------------------------- */

static void test_reducer_errors__names_what_was_marked_wrongly(void **state)
{
    (void)state;
    brg_pg *pg;
    trainer t;
    assert_brg_ok(brg_pg_create_fake(&pg, 2, 4));
    trainer_init(&t, pg);
    assert_brg_ok(trainer_create(&t, NULL));
    assert_brg_fails_with(brg_reducer_mark_ready(t.reducer, N_PARAMS),
                          BRG_ERR_ARG, "no parameter 7");
    assert_brg_ok(brg_reducer_mark_ready(t.reducer, 2));
    assert_brg_fails_with(brg_reducer_mark_ready(t.reducer, 2), BRG_ERR_STATE,
                          "rank 2: Expected to mark a variable ready only "
                          "once: fc1.bias");
    for (size_t i = 0; i < t.n; i++)
        if (i != 2)
            assert_brg_ok(brg_reducer_mark_ready(t.reducer, i));
    assert_brg_fails_with(brg_reducer_mark_ready(t.reducer, 5), BRG_ERR_STATE,
                          "Expected to have finished reduction in the prior "
                          "iteration before starting a new one: parameter 5");
    assert_brg_ok(brg_reducer_wait(t.reducer));
    for (size_t i = 0; i < t.n; i++)
        assert_brg_ok(brg_reducer_mark_ready(t.reducer, i));
    assert_brg_ok(brg_reducer_wait(t.reducer));
    brg_reducer_destroy(t.reducer);
    brg_pg_destroy(pg);
}

static void test_reducer_errors__refuses_bad_arguments(void **state)
{
    (void)state;
    brg_pg *pg;
    brg_reducer *reducer;
    trainer t;
    assert_brg_ok(brg_pg_create_self(&pg));
    trainer_init(&t, pg);
    assert_brg_fails(brg_reducer_create(NULL, pg, t.params, t.n, NULL),
                     BRG_ERR_ARG);
    assert_brg_fails(brg_reducer_create(&reducer, NULL, t.params, t.n, NULL),
                     BRG_ERR_ARG);
    assert_brg_fails_with(brg_reducer_create(&reducer, pg, t.params, 0, NULL),
                          BRG_ERR_ARG, "no parameters");
    assert_null(reducer);
    t.params[1].dtype = (brg_dtype)99;
    assert_brg_fails_with(trainer_create(&t, NULL), BRG_ERR_ARG, "dtype 99");
    t.params[1].dtype = BRG_DTYPE_F64;
    t.params[1].count = SIZE_MAX / 4;
    assert_brg_fails(trainer_create(&t, NULL), BRG_ERR_ARG);
    t.params[1].count = 1;
    t.params[1].device.type = BRG_DEVICE_CUDA;
    assert_brg_fails_with(trainer_create(&t, NULL), BRG_ERR_DEVICE,
                          "brg_device_load");
    brg_reducer_options options = {0};
    trainer_init(&t, pg);
    assert_brg_fails_with(trainer_create(&t, &options), BRG_ERR_ARG,
                          "struct_size");
    brg_reducer_destroy(NULL);
    brg_pg_destroy(pg);
}

/* Rank 1 leaves out fc2.weight, ranks 0 and 1 the last one. */
static bool leaves_out(const trainer *t, size_t i)
{
    return (t->rank == 1 && i == 3) || (t->rank <= 1 && i == 6);
}

static brg_status step_with_gaps(trainer *t, int step)
{
    for (size_t i = 0; i < t->n; i++) {
        fill(t, step, i);
        if (!leaves_out(t, i))
            BRG_TRY(brg_reducer_mark_ready(t->reducer, i));
    }
    return brg_reducer_wait(t->reducer);
}

static brg_status missing_body(trainer *t, const run *r)
{
    for (int step = 0; step < 3; step++) {
        RANK_FAILS(step_with_gaps(t, step), BRG_ERR_STATE,
                   "fc2.weight on rank 1; head.weight on ranks 0, 1");
        RANK_CHECK(strstr(brg_error_message(), "allow_unused"), "no remedy");
        BRG_TRY(run_step(t, step, r->seed));
    }
    return BRG_OK;
}

static void
test_reducer_errors__missing_gradients_fail_on_every_rank(void **state)
{
    (void)state;
    run r = {.body = missing_body, .options = BRG_REDUCER_OPTIONS_INIT};
    r.options.first_bucket_bytes = r.options.bucket_bytes = 256;
    run_worlds(&r, 2);
}

static brg_status unused_body(trainer *t, const run *r)
{
    (void)r;
    for (int step = 0; step < 3; step++) {
        BRG_TRY(step_with_gaps(t, step));
        size_t n_used = (size_t)t->world_size - 2;
        RANK_CHECK(brg_reducer_n_used(t->reducer, 6) == n_used, "%zu ranks",
                   brg_reducer_n_used(t->reducer, 6));
        for (size_t k = 0; k < counts[6]; k++) {
            double expected = 0, found = ranks_load(t->memory[6], k, 1);
            for (int rank = 2; rank < t->world_size; rank++)
                expected += ranks_gradient(rank, step, 6, k) / t->world_size;
            if (n_used == 0) /* left as it was */
                expected = ranks_gradient(t->rank, step, 6, k);
            RANK_CHECK(expected - found < 1e-6 && found - expected < 1e-6,
                       "%g, expected %g", found, expected);
        }
        BRG_TRY(check_average(t, step, 0));
    }
    return BRG_OK;
}

static void test_reducer_errors__may_allow_missing_gradients(void **state)
{
    (void)state;
    run r = {.body = unused_body, .options = BRG_REDUCER_OPTIONS_INIT};
    r.options.allow_unused = true;
    r.options.bucket_bytes = 256;
    run_worlds(&r, 2);
}

static brg_status cancel_body(trainer *t, const run *r)
{
    for (int step = 0; step < 3; step++) {
        size_t n_marked = (size_t)step * 3; /* none, some, more */
        int last = t->world_size - 1;
        for (size_t i = t->n; i-- > (t->rank == last ? t->n - n_marked : 0);)
            BRG_TRY(brg_reducer_mark_ready(t->reducer, i));
        char text[60];
        snprintf(text, sizeof text, "backward failed on rank %d", last);
        if (t->rank == last)
            BRG_TRY(brg_reducer_cancel(t->reducer));
        else
            RANK_FAILS(brg_reducer_wait(t->reducer), BRG_ERR_PEER, text);
        BRG_TRY(run_step(t, step, r->seed));
    }
    return BRG_OK;
}

static void test_reducer_errors__a_cancelled_step_fails_elsewhere(void **state)
{
    (void)state;
    run r = {.body = cancel_body, .options = BRG_REDUCER_OPTIONS_INIT};
    r.options.first_bucket_bytes = r.options.bucket_bytes = 1;
    run_worlds(&r, 1);
    r.options.first_bucket_bytes = r.options.bucket_bytes = 0;
    run_worlds(&r, 1);
}

/* ---- Ranks that differ ------------------------------------------------------------------ */

typedef struct difference {
    const char *text;
    void (*apply)(trainer *t, brg_reducer_options *options);
    brg_status code;
} difference;

static void differ_count(trainer *t, brg_reducer_options *options)
{
    (void)options;
    t->n--;
}

static void differ_size(trainer *t, brg_reducer_options *options)
{
    (void)options;
    t->params[2].count = 63;
}

static void differ_dtype(trainer *t, brg_reducer_options *options)
{
    (void)options;
    t->params[3].dtype = BRG_DTYPE_F16;
}

static void differ_name(trainer *t, brg_reducer_options *options)
{
    (void)options;
    t->params[0].name = "wte";
}

static void differ_caps(trainer *t, brg_reducer_options *options)
{
    (void)t;
    options->bucket_bytes = 12345;
}

static void differ_flags(trainer *t, brg_reducer_options *options)
{
    (void)t;
    options->sum = options->allow_unused = true;
}

static void differ_argument(trainer *t, brg_reducer_options *options)
{
    (void)options;
    t->params[4].dtype = (brg_dtype)50;
}

static const difference differences[] = {
    {"rank 0 has 7 parameters and 0 buffers, rank 1 has 6", differ_count,
     BRG_ERR_MISMATCH},
    {"parameter 2: rank 0 has fc1.bias f32[64], rank 1 has fc1.bias f32[63]",
     differ_size, BRG_ERR_MISMATCH},
    {"rank 0 has fc2.weight bf16[33], rank 1 has fc2.weight f16[33]",
     differ_dtype, BRG_ERR_MISMATCH},
    {"rank 0 has embed.weight f32[300], rank 1 has wte f32[300]", differ_name,
     BRG_ERR_MISMATCH},
    {"rank 0 has bucket sizes 1048576, 26214400, rank 1 has bucket sizes "
     "1048576, 12345",
     differ_caps, BRG_ERR_MISMATCH},
    {"rank 0 has sum off allow_unused off, rank 1 has sum on allow_unused on",
     differ_flags, BRG_ERR_MISMATCH},
    {"brg_reducer_create failed on rank 1", differ_argument, BRG_ERR_PEER},
};

static brg_status differ_rank(brg_pg *pg, void *user)
{
    const difference *d = user;
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    trainer t;
    trainer_init(&t, pg);
    if (t.rank == 1)
        d->apply(&t, &options);
    if (t.rank == 1 && d->code == BRG_ERR_PEER)
        RANK_FAILS(trainer_create(&t, &options), BRG_ERR_ARG, "dtype 50");
    else
        RANK_FAILS(trainer_create(&t, &options), d->code, d->text);
    trainer_init(&t, pg); /* the group is as good as before */
    BRG_TRY(trainer_create(&t, NULL));
    brg_status status = run_step(&t, 0, 1);
    brg_reducer_destroy(t.reducer);
    return status;
}

static void
test_reducer_errors__ranks_that_differ_all_hear_the_same(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof differences / sizeof differences[0]; i++)
        for (int n = 2; n <= 4; n++) {
            difference d = differences[i];
            print_message("%s\n", d.text);
            assert_brg_ok(brg_sim_run(n, NULL, differ_rank, &d));
        }
}

/* ---- Ranks that go ------------------------------------------------------------------------- */

static brg_status leave_body(trainer *t, const run *r)
{
    BRG_TRY(run_step(t, 0, r->seed));
    if (t->rank == 1) /* in the middle of a step */
        return brg_reducer_mark_ready(t->reducer, 6);
    brg_status status = mark_all(t, 1, r->seed);
    if (status == BRG_OK)
        status = brg_reducer_wait(t->reducer);
    RANK_FAILS(status, BRG_ERR_PEER, "rank 1");
    RANK_FAILS(brg_reducer_wait(t->reducer), BRG_ERR_PEER, "rank 1");
    return BRG_OK;
}

static void test_reducer_errors__a_rank_that_leaves_is_named(void **state)
{
    (void)state;
    run r = {.body = leave_body, .options = BRG_REDUCER_OPTIONS_INIT};
    r.options.first_bucket_bytes = r.options.bucket_bytes = 1;
    run_worlds(&r, 2);
}

static void test_reducer_errors__a_failed_collective_is_reported(void **state)
{
    (void)state;
    for (int64_t nth = 0; nth < 5; nth++) {
        brg_pg *pg;
        trainer t;
        brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
        options.first_bucket_bytes = options.bucket_bytes = 1;
        options.keep_order = true;
        assert_brg_ok(brg_pg_create_fake(&pg, 0, 2));
        trainer_init(&t, pg);
        assert_brg_ok(trainer_create(&t, &options));
        assert_brg_ok(brg_fake_fail_after(pg, nth));
        brg_status status = BRG_OK;
        for (size_t i = t.n; i-- > 0 && status == BRG_OK;)
            status = brg_reducer_mark_ready(t.reducer, i);
        assert_brg_fails(brg_reducer_wait(t.reducer), BRG_ERR_COMM);
        assert_brg_fails(brg_reducer_wait(t.reducer), BRG_ERR_COMM);
        assert_brg_ok(brg_fake_fail_after(pg, -1));
        for (size_t i = 0; i < t.n; i++)
            assert_brg_ok(brg_reducer_mark_ready(t.reducer, i));
        assert_brg_ok(brg_reducer_wait(t.reducer));
        brg_reducer_destroy(t.reducer);
        brg_pg_destroy(pg);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reducer_errors__names_what_was_marked_wrongly),
        cmocka_unit_test(test_reducer_errors__refuses_bad_arguments),
        cmocka_unit_test(
            test_reducer_errors__missing_gradients_fail_on_every_rank),
        cmocka_unit_test(test_reducer_errors__may_allow_missing_gradients),
        cmocka_unit_test(test_reducer_errors__a_cancelled_step_fails_elsewhere),
        cmocka_unit_test(
            test_reducer_errors__ranks_that_differ_all_hear_the_same),
        cmocka_unit_test(test_reducer_errors__a_rank_that_leaves_is_named),
        cmocka_unit_test(test_reducer_errors__a_failed_collective_is_reported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
