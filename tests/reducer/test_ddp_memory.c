/* SPDX-License-Identifier: Apache-2.0
 * The memory of data-parallel backwards: gradients are views of buckets and
 * outlive them, out of memory is clean, a steady step allocates nothing. */
#include <brigade/ops.h>

#include "tests/reducer/ddp_run.h"
#include "tests/support/fail_alloc.h"

/* ---- Views and lifetimes ------------------------------------------------------------------ */

static brg_status looks_inside(ddp_model *m, const run *r)
{
    (void)r;
    size_t bucket, offset;
    brg_bucket_info info;
    BRG_TRY(ddp_model_backward(m, 0, DDP_MODEL_ALL));
    for (size_t i = 0; i < DDP_MODEL_N; i++) {
        BRG_TRY(
            brg_ddp_gradient_bucket(m->ddp, m->params[i], &bucket, &offset));
        BRG_TRY(brg_reducer_get_bucket(brg_ddp_reducer(m->ddp), bucket, &info));
        brg_tensor *grad = brg_tensor_grad(m->params[i]);
        RANK_CHECK(brg_tensor_data(grad) == (const char *)info.data + offset,
                   "gradient %zu is not in its bucket", i);
        for (size_t k = 0; k < i; k++)
            RANK_CHECK(
                !brg_tensor_shares_storage(grad, brg_tensor_grad(m->params[k])),
                "%zu and %zu share a storage", i, k);
    }
    const int64_t *strides = brg_tensor_strides(brg_tensor_grad(m->params[1]));
    RANK_CHECK(strides[0] == 1 && strides[1] == 5, "layout of a dense one");
    strides = brg_tensor_strides(brg_tensor_grad(m->params[5]));
    RANK_CHECK(strides[0] == 1, "layout of one with gaps");
    uint32_t version = brg_tensor_version(brg_tensor_grad(m->params[0]));
    BRG_TRY(ddp_model_backward(m, 0, DDP_MODEL_ALL));
    version = brg_tensor_version(brg_tensor_grad(m->params[0])) - version;
    RANK_CHECK(version == 2, "added to and reduced, the version went by %u",
               version);
    RANK_FAILS(brg_ddp_gradient_bucket(m->ddp, m->buffer, &bucket, &offset),
               BRG_ERR_NOT_FOUND, "does not reduce");
    return BRG_OK;
}

static void test_ddp_memory__gradients_are_views_of_buckets(void **state)
{
    (void)state;
    run r = make_run(looks_inside, 200);
    run_worlds(&r, 1);
}

static brg_status outlives(ddp_model *m, const run *r)
{
    (void)r;
    BRG_TRY(ddp_model_backward(m, 0, DDP_MODEL_ALL));
    brg_tensor *grad = brg_tensor_grad(m->params[0]);
    brg_tensor *held = brg_retain(brg_tensor_grad(m->params[7]));
    brg_status status = brg_tensor_set_grad(m->params[7], NULL);
    brg_ddp_destroy(m->ddp);
    m->ddp = NULL;
    double first = ranks_load(brg_tensor_data(held), 0, BRG_DTYPE_F32);
    double expected = ranks_average(m->world_size, 0, 7, 0);
    brg_release(held);
    BRG_TRY(status);
    RANK_CHECK(first - expected < 1e-6 && expected - first < 1e-6,
               "the held gradient is %g, expected %g", first, expected);
    RANK_CHECK(grad == brg_tensor_grad(m->params[0]), "another tensor");
    for (size_t i = 0; i + 1 < DDP_MODEL_N; i++)
        BRG_TRY(ddp_model_check_param(m, i, 0, 1, DDP_MODEL_EVERY_RANK));
    BRG_TRY(ddp_model_backward(m, 1, DDP_MODEL_ALL)); /* alone again */
    BRG_TRY(ddp_model_zero(m, false));
    BRG_TRY(ddp_model_wrap(m, NULL)); /* and together again */
    BRG_TRY(ddp_model_backward(m, 2, DDP_MODEL_ALL));
    return ddp_model_check(m, 2, 3);
}

static void test_ddp_memory__gradients_outlive_it(void **state)
{
    (void)state;
    run r = make_run(outlives, 200);
    run_worlds(&r, 1);
}

static brg_status without_history(ddp_model *m, const run *r)
{
    (void)r;
    brg_backward_options options = BRG_BACKWARD_OPTIONS_INIT;
    options.create_graph = true;
    for (int step = 0; step < 2; step++) {
        brg_scope *scope = brg_scope_begin();
        brg_tensor *loss = ddp_model_loss(m, step, DDP_MODEL_ALL);
        brg_status status = brg_backward_with(&loss, 1, &options);
        brg_scope_end(scope);
        BRG_TRY(status);
        for (size_t i = 0; i < DDP_MODEL_N; i++)
            RANK_CHECK(!brg_requires_grad(brg_tensor_grad(m->params[i])),
                       "a reduced gradient has a history");
    }
    return ddp_model_check(m, 0, 2);
}

static void test_ddp_memory__reduced_gradients_carry_no_history(void **state)
{
    (void)state;
    run r = make_run(without_history, 200);
    run_worlds(&r, 1);
}

/* The same graph twice; and a loss that is made of two. */
static brg_status keeps_the_graph(ddp_model *m, const run *r)
{
    (void)r;
    brg_backward_options options = BRG_BACKWARD_OPTIONS_INIT;
    options.retain_graph = true;
    brg_scope *scope = brg_scope_begin();
    brg_tensor *losses[2] = {ddp_model_loss(m, 0, DDP_MODEL_ALL),
                             ddp_model_loss(m, 1, DDP_MODEL_ALL)};
    brg_status status = brg_backward_with(losses, 2, &options);
    if (status == BRG_OK)
        status = ddp_model_check(m, 0, 2);
    if (status == BRG_OK)
        status = ddp_model_zero(m, false);
    if (status == BRG_OK)
        status = brg_backward_with(losses, 2, &options);
    brg_scope_end(scope);
    BRG_TRY(status);
    return ddp_model_check(m, 0, 2);
}

static void test_ddp_memory__works_with_retained_graphs(void **state)
{
    (void)state;
    run r = make_run(keeps_the_graph, 200);
    run_worlds(&r, 1);
}

/* ---- Memory ------------------------------------------------------------------------------------ */

static brg_status make_and_step(void *user)
{
    ddp_model m;
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    options.bucket_bytes = options.first_bucket_bytes = 200;
    options.keep_order = true; /* a rebuild may fail and is left out then */
    options.allow_unused = true;
    brg_status status = ddp_model_init(&m, user);
    if (status == BRG_OK)
        status = ddp_model_wrap(&m, &options);
    for (int step = 0; status == BRG_OK && step < 2; step++)
        status = ddp_model_backward(&m, step, DDP_MODEL_ALL >> step);
    if (status == BRG_OK) /* they would be kept, if there is memory */
        status = ddp_model_zero(&m, false);
    ddp_model_deinit(&m);
    return status;
}

static void test_ddp_memory__runs_out_of_memory_cleanly(void **state)
{
    (void)state;
    brg_pg *pg;
    assert_brg_ok(brg_pg_create_self(&pg));
    assert_oom_clean(make_and_step, pg);
    brg_pg_destroy(pg);
}

/* Messages that end with what is gone. */
static void count_losses(brg_log_level level, const char *area,
                         const char *message, void *user)
{
    (void)area;
    *(int *)user += level == BRG_LOG_ERROR &&
                    strstr(message, "no memory to keep the gradient of ");
}

static brg_status outlives_not(ddp_model *m, const run *r)
{
    int n_lost = 0, n_gone = 0;
    (void)r;
    BRG_TRY(ddp_model_backward(m, 0, DDP_MODEL_ALL));
    brg_memory_trim();
    brg_set_log_sink(count_losses, &n_lost);
    fail_alloc_arm(0);
    brg_ddp_destroy(m->ddp);
    int64_t n_refused = fail_alloc_disarm();
    brg_set_log_sink(NULL, NULL);
    m->ddp = NULL;
    for (size_t i = 0; i < DDP_MODEL_N; i++)
        n_gone += !brg_tensor_grad(m->params[i]);
    RANK_CHECK(n_refused > 0 && n_gone == DDP_MODEL_N && n_lost == n_gone,
               "%d gradients are gone, %d messages, %d allocations refused",
               n_gone, n_lost, (int)n_refused);
    BRG_TRY(ddp_model_zero(m, false)); /* and all goes on */
    return ddp_model_backward(m, 1, DDP_MODEL_ALL);
}

/* Giving a ddp back cannot fail: what it has no memory for is said. */
static void
test_ddp_memory__gradients_for_which_there_is_no_memory_go(void **state)
{
    (void)state;
    run r = make_run(outlives_not, 200);
    brg_pg *pg;
    assert_brg_ok(brg_pg_create_self(&pg));
    assert_brg_ok(run_rank(pg, &r));
    brg_pg_destroy(pg);
}

static brg_status steady(ddp_model *m, const run *r)
{
    brg_memory_stats before, after;
    uint64_t n_mallocs = 0;
    brg_tensor *inputs = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(8, 15));
    for (int step = 0; step < 8; step++) {
        if (step == 4) {
            brg_memory_get_stats(&before);
            n_mallocs = ranks_n_mallocs();
        }
        brg_scope *scope = brg_scope_begin();
        brg_tensor *loss = brg_sum_all(brg_mul(m->params[0], inputs));
        brg_status status = brg_backward(loss);
        brg_scope_end(scope);
        BRG_TRY(status);
        if (r->keep_memory)
            BRG_TRY(brg_zero_(brg_tensor_grad(m->params[0])));
        else
            BRG_TRY(brg_tensor_set_grad(m->params[0], NULL));
    }
    brg_memory_get_stats(&after);
    RANK_CHECK(after.n_allocs == before.n_allocs, "%d allocations",
               (int)(after.n_allocs - before.n_allocs));
    RANK_CHECK(ranks_n_mallocs() == n_mallocs, "%d calls of malloc",
               (int)(ranks_n_mallocs() - n_mallocs));
    return BRG_OK;
}

static void test_ddp_memory__a_steady_step_allocates_nothing(void **state)
{
    (void)state;
#if defined(__SANITIZE_ADDRESS__)
    skip(); /* objects are not cached, so that each is seen */
#endif
    for (int k = 0; k < 2; k++) {
        run r = make_run(steady, 0);
        r.options.allow_unused = true;
        r.keep_memory = k;
        brg_pg *pg;
        assert_brg_ok(brg_pg_create_self(&pg));
        assert_brg_ok(run_rank(pg, &r));
        brg_pg_destroy(pg);
    }
}

int main(void)
{
    fail_alloc_install();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ddp_memory__gradients_are_views_of_buckets),
        cmocka_unit_test(test_ddp_memory__gradients_outlive_it),
        cmocka_unit_test(test_ddp_memory__reduced_gradients_carry_no_history),
        cmocka_unit_test(test_ddp_memory__works_with_retained_graphs),
        cmocka_unit_test(test_ddp_memory__runs_out_of_memory_cleanly),
        cmocka_unit_test(
            test_ddp_memory__gradients_for_which_there_is_no_memory_go),
        cmocka_unit_test(test_ddp_memory__a_steady_step_allocates_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
