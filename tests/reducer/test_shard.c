/* SPDX-License-Identifier: Apache-2.0
 * Sharded optimizer state in simulated worlds. */
#include <brigade/compile.h>
#include <brigade/sim.h>

#include "tests/reducer/shard_checks.h"
#include "tests/support/compiled_run.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/temp_dir.h"

typedef brg_status (*check_fn)(brg_pg *pg);

static brg_status call(brg_pg *pg, void *check)
{
    return (*(check_fn *)check)(pg);
}

static void in_worlds(check_fn check)
{
    ranks_in_worlds(1, NULL, call, &check);
}

static void test_shard__bits_of_the_whole_optimizer(void **state)
{
    (void)state;
    in_worlds(check_shard_bits);
}

static void test_shard__clips_by_the_global_norm(void **state)
{
    (void)state;
    in_worlds(check_shard_clipping);
}

static void test_shard__state_is_one_part_in_n(void **state)
{
    (void)state;
    in_worlds(check_shard_memory);
}

static void test_shard__misuse_is_an_error(void **state)
{
    (void)state;
    in_worlds(check_shard_errors);
}

static brg_status compiled(brg_pg *pg)
{
    return compiled_check(pg, check_shard_bits);
}

/* What one step starts, by a group that logs it. */
static void test_shard__sends_shards(void **state)
{
    (void)state;
    brg_pg *pg;
    shard_run r = {.is_sharded = true};
    size_t n[3] = {0}; /* whole buckets, shards out, shards back */
    assert_brg_ok(brg_pg_create_fake(&pg, 1, 4));
    assert_brg_ok(shard_run_init(&r, pg));
    size_t first = brg_fake_n_calls(pg);
    assert_brg_ok(shard_step(&r, 1, 0, NULL));
    for (size_t i = first; i < brg_fake_n_calls(pg); i++) {
        brg_fake_call called;
        assert_brg_ok(brg_fake_call_at(pg, i, &called));
        n[0] += strcmp(called.name, "all_reduce") == 0;
        n[1] += strcmp(called.name, "reduce_scatter") == 0;
        n[2] += strcmp(called.name, "all_gather") == 0;
    }
    size_t n_buckets = brg_reducer_n_buckets(brg_ddp_reducer(r.ddp));
    assert_int_equal(n[0], 1); /* who used what */
    assert_int_equal(n[1], n_buckets - 1);
    assert_int_equal(n[2], n_buckets - 1);
    assert_int_equal(brg_fake_n_calls(pg) - first, 2 * n_buckets - 1);
    shard_run_deinit(&r);
    brg_pg_destroy(pg);
}

/* ---- In virtual time --------------------------------------------------------------- */

#define N_LAYERS 8

/* A forward that begins while parameters are on their way, each layer waiting
 * for its own: what the network takes, and one layer more. */
static brg_status forward_while_gathering(brg_pg *pg, brg_ddp *ddp,
                                          brg_tensor *const *layers)
{
    uint64_t start = brg_sim_now_ns(pg);
    BRG_TRY(brg_ddp_gather_params(ddp));
    BRG_TRY(brg_ddp_wait_params(ddp, NULL));
    uint64_t whole = brg_sim_now_ns(pg) - start, each = whole / N_LAYERS;
    brg_work *work;
    BRG_TRY(brg_barrier(pg, &work));
    BRG_TRY(brg_work_wait(work));
    start = brg_sim_now_ns(pg);
    BRG_TRY(brg_ddp_gather_params(ddp));
    for (size_t i = 0; i < N_LAYERS; i++) {
        BRG_TRY(brg_ddp_wait_params(ddp, layers[i]));
        brg_sim_spend_ns(pg, each);
    }
    uint64_t took = brg_sim_now_ns(pg) - start;
    RANK_CHECK(whole > 0 && took >= whole && took <= whole + 2 * each,
               "%llu us, the gather alone takes %llu",
               (unsigned long long)took / 1000,
               (unsigned long long)whole / 1000);
    return brg_ddp_wait_params(ddp, NULL);
}

static brg_status overlapping_rank(brg_pg *pg, void *user)
{
    brg_tensor *layers[N_LAYERS];
    brg_ddp *ddp = NULL;
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    brg_scope *scope = brg_scope_begin();
    brg_status status = BRG_OK;
    (void)user;
    options.shard = true;
    options.first_bucket_bytes = options.bucket_bytes = 1; /* one a layer */
    for (size_t i = 0; i < N_LAYERS && status == BRG_OK; i++) {
        layers[i] = brg_zeros(BRG_DTYPE_F32, 1, (int64_t[]){24000});
        status = brg_set_requires_grad(layers[i], true);
    }
    if (status == BRG_OK)
        status = brg_ddp_create(&ddp, pg, layers, N_LAYERS, NULL, 0, &options);
    if (status == BRG_OK)
        status = forward_while_gathering(pg, ddp, layers);
    brg_ddp_destroy(ddp);
    brg_scope_end(scope);
    return status;
}

static void test_shard__gather_overlaps_the_next_forward(void **state)
{
    (void)state;
    brg_sim_options world = BRG_SIM_OPTIONS_INIT;
    world.latency_ns = 5000;
    world.bytes_per_s = 1e9;
    for (int n = 2; n <= 4; n++)
        assert_brg_ok(brg_sim_run(n, &world, overlapping_rank, NULL));
}

static void test_shard__compiled_too(void **state)
{
    (void)state;
    in_worlds(compiled);
}

static brg_status steady(brg_pg *pg)
{
    shard_run r = {.is_sharded = true};
    brg_memory_stats before, after;
    brg_status status = shard_run_init(&r, pg);
    memset(&before, 0, sizeof before);
    for (int step = 0; step < 12 && status == BRG_OK; step++) {
        if (step == 6)
            brg_memory_get_stats(&before);
        status = shard_step(&r, 1, 1e-3, NULL);
    }
    brg_memory_get_stats(&after);
    shard_run_deinit(&r);
    RANK_CHECK(status != BRG_OK || after.n_allocs == before.n_allocs,
               "%d allocations", (int)(after.n_allocs - before.n_allocs));
    return status;
}

static void test_shard__a_steady_step_allocates_nothing(void **state)
{
    (void)state;
#if defined(__SANITIZE_ADDRESS__)
    skip(); /* objects are not cached, so that each is seen */
#endif
    brg_pg *pg;
    assert_brg_ok(brg_pg_create_self(&pg));
    assert_brg_ok(steady(pg));
    brg_pg_destroy(pg);
}

/* ---- Checkpoints ------------------------------------------------------------------ */

typedef struct stage {
    const char *path;
    int first, last; /* steps */
    bool is_sharded;
    bool loads;
    double *weights; /* of "emb", from rank 0 */
} stage;

static brg_status save(shard_run *r, const char *path)
{
    brg_optim *whole = NULL;
    bool is_root = brg_pg_rank(r->pg) == 0;
    brg_checkpoint c = BRG_CHECKPOINT_INIT;
    brg_status status = BRG_OK;
    if (is_root && r->is_sharded)
        status = shard_make_optim(r, &whole, NULL);
    if (status == BRG_OK && r->is_sharded)
        status = brg_ddp_gather_optim(r->ddp, whole, r->optim);
    c.params = r->params;
    c.optim = r->is_sharded ? whole : r->optim;
    if (status == BRG_OK && is_root)
        status = brg_checkpoint_save(path, &c);
    brg_optim_destroy(whole);
    return status;
}

static brg_status load(shard_run *r, const char *path)
{
    brg_optim *whole = NULL;
    bool is_root = brg_pg_rank(r->pg) == 0;
    brg_checkpoint c = BRG_CHECKPOINT_INIT;
    brg_status status = BRG_OK;
    if (is_root && r->is_sharded)
        status = shard_make_optim(r, &whole, NULL);
    c.params = r->params;
    c.optim = r->is_sharded ? whole : r->optim;
    if (status == BRG_OK)
        status = brg_checkpoint_load(&c, path);
    if (status == BRG_OK && r->is_sharded)
        status = brg_ddp_scatter_optim(r->ddp, r->optim, whole);
    brg_optim_destroy(whole);
    return status;
}

static brg_status run_stage(shard_run *r, stage *s)
{
    if (s->loads)
        BRG_TRY(load(r, s->path));
    for (int step = s->first; step < s->last; step++)
        BRG_TRY(shard_step(r, step, 0, NULL));
    if (r->is_sharded)
        BRG_TRY(brg_ddp_wait_params(r->ddp, NULL));
    BRG_TRY(save(r, s->path));
    const brg_tensor *p = brg_params_at(r->params, 0)->tensor;
    for (size_t k = 0; k < (size_t)brg_tensor_numel(p); k++)
        if (brg_pg_rank(r->pg) == 0)
            s->weights[k] = ranks_load(brg_tensor_data(p), k, BRG_DTYPE_F32);
    return BRG_OK;
}

static brg_status make_and_run(brg_pg *pg, void *user)
{
    stage *s = user;
    shard_run r = {.is_sharded = s->is_sharded, .is_alike = true};
    brg_status status = shard_run_init(&r, pg);
    if (status == BRG_OK)
        status = run_stage(&r, s);
    shard_run_deinit(&r);
    return status;
}

/* World sizes that average equal numbers exactly. */
static void test_shard__resumes_at_another_world_size(void **state)
{
    (void)state;
    static const struct {
        int before, after;
        bool was_sharded, is_sharded;
    } cases[] = {{4, 2, true, true},
                 {2, 4, true, true},
                 {1, 4, false, true},
                 {4, 1, true, false},
                 {2, 2, true, true}};
    enum { NUMEL = 61 * 13 };
    double expected[NUMEL], found[NUMEL];
    stage whole = {
        .path = temp_path("whole"), .last = SHARD_STEPS, .weights = expected};
    assert_brg_ok(brg_sim_run(1, NULL, make_and_run, &whole));
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        stage s = {.path = temp_path("part"),
                   .last = 3,
                   .is_sharded = cases[i].was_sharded,
                   .weights = found};
        assert_brg_ok(brg_sim_run(cases[i].before, NULL, make_and_run, &s));
        assert_memory_not_equal(found, expected, sizeof expected);
        s.first = 3;
        s.last = SHARD_STEPS;
        s.loads = true;
        s.is_sharded = cases[i].is_sharded;
        assert_brg_ok(brg_sim_run(cases[i].after, NULL, make_and_run, &s));
        assert_memory_equal(found, expected, sizeof expected);
    }
}

/* ---- Making ------------------------------------------------------------------------ */

static void test_shard__refuses_what_it_cannot_move(void **state)
{
    (void)state;
    brg_pg *pg;
    brg_ddp *ddp;
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    brg_scope *scope = brg_scope_begin();
    brg_tensor *wide = brg_zeros(BRG_DTYPE_F32, 2, (int64_t[]){4, 6});
    brg_tensor *t = brg_transpose(wide, 0, 1);
    assert_brg_ok(brg_pg_create_self(&pg));
    assert_brg_ok(brg_set_requires_grad(t, true));
    options.shard = true;
    assert_brg_fails_with(brg_ddp_create(&ddp, pg, &t, 1, NULL, 0, &options),
                          BRG_ERR_UNSUPPORTED, "is not row-major");
    assert_brg_ok(brg_set_requires_grad(wide, true));
    options.grads_apart = true;
    assert_brg_fails_with(brg_ddp_create(&ddp, pg, &wide, 1, NULL, 0, &options),
                          BRG_ERR_ARG, "do not go with shard");
    brg_pg_destroy(pg);
    brg_scope_end(scope);
}

/* Values outlive the ddp and its group. */
static void test_shard__gives_parameters_back(void **state)
{
    (void)state;
    brg_pg *pg;
    brg_ddp *ddp;
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    brg_scope *scope = brg_scope_begin();
    brg_tensor *t = brg_zeros(BRG_DTYPE_F32, 1, (int64_t[]){33});
    brg_tensor *view = brg_narrow(t, 0, 3, 4);
    assert_brg_ok(brg_pg_create_self(&pg));
    assert_brg_ok(brg_set_requires_grad(t, true));
    options.shard = true;
    const void *before = brg_tensor_data(t);
    assert_brg_ok(brg_ddp_create(&ddp, pg, &t, 1, NULL, 0, &options));
    assert_ptr_not_equal(brg_tensor_data(t), before);
    ((float *)brg_tensor_data(t))[4] = 2.5f;
    brg_ddp_destroy(ddp);
    brg_pg_destroy(pg);
    assert_float_equal(((float *)brg_tensor_data(t))[4], 2.5f, 0);
    assert_float_equal(((float *)brg_tensor_data(view))[1], 2.5f, 0);
    brg_scope_end(scope);
}

static brg_status differs(brg_pg *pg, void *user)
{
    (void)user;
    shard_run r = {.is_sharded = brg_pg_rank(pg) == 1};
    brg_status status = shard_run_init(&r, pg);
    shard_run_deinit(&r);
    RANK_FAILS(status, BRG_ERR_MISMATCH, "shard off");
    return BRG_OK;
}

static void test_shard__ranks_that_differ_all_hear_of_it(void **state)
{
    (void)state;
    assert_brg_ok(brg_sim_run(2, NULL, differs, NULL));
}

static brg_status make_and_step(void *user)
{
    shard_run r = {.is_sharded = true};
    brg_status status = shard_run_init(&r, user);
    if (status == BRG_OK)
        status = shard_step(&r, 0, 0, NULL);
    if (status == BRG_OK)
        status = brg_ddp_wait_params(r.ddp, NULL);
    shard_run_deinit(&r);
    return status;
}

static void test_shard__runs_out_of_memory_cleanly(void **state)
{
    (void)state;
    brg_pg *pg;
    assert_brg_ok(brg_pg_create_self(&pg));
    assert_oom_clean(make_and_step, pg);
    brg_pg_destroy(pg);
}

int main(void)
{
    fail_alloc_install();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shard__bits_of_the_whole_optimizer),
        cmocka_unit_test(test_shard__clips_by_the_global_norm),
        cmocka_unit_test(test_shard__state_is_one_part_in_n),
        cmocka_unit_test(test_shard__misuse_is_an_error),
        cmocka_unit_test(test_shard__sends_shards),
        cmocka_unit_test(test_shard__gather_overlaps_the_next_forward),
        cmocka_unit_test(test_shard__compiled_too),
        cmocka_unit_test(test_shard__a_steady_step_allocates_nothing),
        cmocka_unit_test(test_shard__resumes_at_another_world_size),
        cmocka_unit_test(test_shard__refuses_what_it_cannot_move),
        cmocka_unit_test(test_shard__gives_parameters_back),
        cmocka_unit_test(test_shard__ranks_that_differ_all_hear_of_it),
        cmocka_unit_test(test_shard__runs_out_of_memory_cleanly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
