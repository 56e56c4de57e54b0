/* SPDX-License-Identifier: Apache-2.0
 * Groups of the user's in simulated worlds: buckets, the rebuild, freezing,
 * mistakes, ranks that differ. */
#include "tests/reducer/group_checks.h"
#include "tests/reducer/trainer.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/sim_worlds.h"

static void test_groups__share_a_bucket(void **state)
{
    (void)state;
    in_all_worlds(check_groups);
}

/* ---- Raw buffers: f32, f16, f32, bf16, f64, f32, f32 ------------------------------- */

static const uint32_t raw_groups[N_PARAMS] = {1, 1, 0, 0, 0, 2, 1};

static brg_status raw_holds(const trainer *t)
{
    size_t bucket[N_PARAMS], offset;
    for (size_t i = 0; i < N_PARAMS; i++)
        BRG_TRY(brg_reducer_find(t->reducer, i, &bucket[i], &offset));
    RANK_CHECK(bucket[0] == bucket[6] && bucket[1] != bucket[0] &&
                   bucket[2] != bucket[0] && bucket[5] != bucket[0] &&
                   bucket[5] != bucket[2],
               "buckets %zu %zu %zu %zu", bucket[0], bucket[2], bucket[5],
               bucket[6]);
    return BRG_OK;
}

static brg_status raw_body(trainer *t, const run *r)
{
    brg_reducer_stats stats;
    (void)r;
    for (int step = 0; step < 4; step++) {
        BRG_TRY(raw_holds(t));
        BRG_TRY(run_step(t, step, 17));
    }
    brg_reducer_get_stats(t->reducer, &stats);
    RANK_CHECK(stats.n_rebuilds == (t->params[0].grad ? 1 : 0), "%d rebuilds",
               (int)stats.n_rebuilds);
    return raw_holds(t);
}

static void test_groups__of_raw_buffers_outlive_the_rebuild(void **state)
{
    (void)state;
    for (int in_slots = 0; in_slots < 2; in_slots++) {
        run r = {.options = BRG_REDUCER_OPTIONS_INIT,
                 .in_slots = in_slots,
                 .body = raw_body};
        r.options.bucket_groups = raw_groups;
        r.options.n_bucket_groups = 2;
        r.options.first_bucket_bytes = r.options.bucket_bytes = 100;
        run_worlds(&r, 1);
    }
}

/* ---- Mistakes ----------------------------------------------------------------------- */

typedef struct mistake {
    uint32_t groups[N_PARAMS];
    size_t n_groups;
    const char *text;
} mistake;

static const mistake mistakes[] = {
    {{0, 0, 3},
     2,
     "parameter 2 (fc1.bias) is in bucket group 3, expected 0 (none) to 2"},
    {{1, 0, 3},
     3,
     "no parameter is in bucket group 2 of 3; the nearest is parameter 2 "
     "(fc1.bias), in group 3"},
    {{1, 2, 0},
     3,
     "no parameter is in bucket group 3 of 3; the nearest is parameter 1 "
     "(fc1.weight), in group 2"},
    {{1, 0, 0, 0, 0, 3},
     3,
     "the nearest is parameter 5 (parameter 5), in group 3"},
    {{1}, 0, "bucket_groups is given, but n_bucket_groups is 0"},
    {{1}, 99, "n_bucket_groups is 99 for 7 parameters"},
};

static void test_groups__mistakes_name_the_parameter(void **state)
{
    (void)state;
    brg_pg *pg;
    trainer t;
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    assert_brg_ok(brg_pg_create_self(&pg));
    trainer_init(&t, pg);
    for (size_t i = 0; i < sizeof mistakes / sizeof mistakes[0]; i++) {
        options.bucket_groups = mistakes[i].groups;
        options.n_bucket_groups = mistakes[i].n_groups;
        assert_brg_fails_with(trainer_create(&t, &options), BRG_ERR_ARG,
                              mistakes[i].text);
    }
    options.bucket_groups = NULL;
    options.n_bucket_groups = 2;
    assert_brg_fails_with(trainer_create(&t, &options), BRG_ERR_ARG,
                          "bucket_groups is NULL");
    options.bucket_groups = raw_groups;
    options.buckets = BRG_BUCKETS_MEASURED;
    assert_brg_fails_with(trainer_create(&t, &options), BRG_ERR_UNSUPPORTED,
                          "BRG_BUCKETS_MEASURED does not go with "
                          "bucket_groups");
    brg_pg_destroy(pg);
}

static void test_groups__a_tensor_given_twice_is_in_one(void **state)
{
    (void)state;
    brg_pg *pg;
    brg_ddp *ddp;
    uint32_t groups[] = {1, 2, 2};
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    brg_scope *scope = brg_scope_begin();
    brg_tensor *w = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(3));
    brg_tensor *params[] = {w, brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(3)), w};
    assert_brg_ok(brg_pg_create_self(&pg));
    assert_brg_ok(brg_tensor_set_name(w, "w"));
    for (int i = 0; i < 2; i++)
        assert_brg_ok(brg_set_requires_grad(params[i], true));
    options.bucket_groups = groups;
    options.n_bucket_groups = 2;
    assert_brg_fails_with(
        brg_ddp_create(&ddp, pg, params, 3, NULL, 0, &options), BRG_ERR_ARG,
        "parameter 2 (w) is in bucket group 2, and was given before in group "
        "1");
    groups[2] = 1;
    assert_brg_ok(brg_ddp_create(&ddp, pg, params, 3, NULL, 0, &options));
    assert_int_equal(brg_reducer_n_buckets(brg_ddp_reducer(ddp)), 2);
    brg_ddp_destroy(ddp);
    groups[1] = 7;
    assert_brg_fails_with(
        brg_ddp_create(&ddp, pg, params, 3, NULL, 0, &options), BRG_ERR_ARG,
        "brg_ddp_create: parameter 1 (no name) is in bucket group 7");
    brg_pg_destroy(pg);
    brg_scope_end(scope);
}

/* ---- Ranks that differ ----------------------------------------------------------------- */

static brg_status differ_raw(brg_pg *pg)
{
    uint32_t groups[N_PARAMS];
    trainer t;
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    trainer_init(&t, pg);
    memcpy(groups, raw_groups, sizeof groups);
    if (t.rank == 1)
        groups[2] = 2;
    options.bucket_groups = groups;
    options.n_bucket_groups = 2;
    RANK_FAILS(trainer_create(&t, &options), BRG_ERR_MISMATCH,
               "ranks disagree on parameter 2: rank 0 has fc1.bias f32[64], "
               "rank 1 has fc1.bias f32[64] in bucket group 2");
    groups[2] = t.rank == 1 ? 3 : 0; /* a mistake of one rank */
    brg_status status = trainer_create(&t, &options);
    if (t.rank == 1)
        RANK_FAILS(status, BRG_ERR_ARG, "(fc1.bias) is in bucket group 3");
    else
        RANK_FAILS(status, BRG_ERR_PEER, "failed on rank 1");
    return BRG_OK;
}

static brg_status differ(brg_pg *pg, void *user)
{
    (void)user;
    ddp_model m;
    uint32_t groups[DDP_MODEL_N];
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    BRG_TRY(differ_raw(pg));
    memcpy(groups, model_groups, sizeof groups);
    groups[0] = brg_pg_rank(pg) == 1 ? 1 : groups[0];
    options.bucket_groups = groups;
    options.n_bucket_groups = N_MODEL_GROUPS;
    brg_status status = ddp_model_init(&m, pg);
    if (status == BRG_OK)
        status =
            ranks_expect(ddp_model_wrap(&m, &options), BRG_ERR_MISMATCH,
                         "in bucket group 2, rank 1 has", "wrap", __LINE__);
    ddp_model_deinit(&m);
    return status;
}

static void test_groups__ranks_that_differ_are_told(void **state)
{
    (void)state;
    for (int n = 2; n <= 4; n++)
        assert_brg_ok(brg_sim_run(n, NULL, differ, NULL));
}

static brg_status make(void *user)
{
    ddp_model m;
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    options.bucket_groups = model_groups;
    options.n_bucket_groups = N_MODEL_GROUPS;
    brg_status status = ddp_model_init(&m, user);
    if (status == BRG_OK)
        status = ddp_model_wrap(&m, &options);
    ddp_model_deinit(&m);
    return status;
}

static void test_groups__run_out_of_memory_cleanly(void **state)
{
    (void)state;
    brg_pg *pg;
    assert_brg_ok(brg_pg_create_self(&pg));
    assert_oom_clean(make, pg);
    brg_pg_destroy(pg);
}

int main(void)
{
    fail_alloc_install();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_groups__share_a_bucket),
        cmocka_unit_test(test_groups__of_raw_buffers_outlive_the_rebuild),
        cmocka_unit_test(test_groups__mistakes_name_the_parameter),
        cmocka_unit_test(test_groups__a_tensor_given_twice_is_in_one),
        cmocka_unit_test(test_groups__ranks_that_differ_are_told),
        cmocka_unit_test(test_groups__run_out_of_memory_cleanly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
