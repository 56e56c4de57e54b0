/* SPDX-License-Identifier: Apache-2.0
 * Synchronised batch norm in simulated worlds; under mpirun it is in
 * tests/mpi/test_features_mpi.c. */
#include "tests/reducer/sync_norm_checks.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/sim_worlds.h"

static void test_sync_norm__is_that_of_the_whole_batch(void **state)
{
    (void)state;
    in_all_worlds_seeded(check_sync_norm_whole_batch, 3);
}

static void test_sync_norm__evaluation_is_batch_norm(void **state)
{
    (void)state;
    in_all_worlds_seeded(check_sync_norm_evaluation, 3);
}

static void test_sync_norm__trains_as_one_process_does(void **state)
{
    (void)state;
    in_all_worlds_seeded(check_sync_norm_training, 3);
}

static void test_sync_norm__trains_so_compiled_too(void **state)
{
    (void)state;
    in_all_worlds_seeded(check_sync_norm_compiled, 3);
}

/* ---- Errors ------------------------------------------------------------------------- */

static brg_status training(brg_batch_norm_options *options)
{
    *options = (brg_batch_norm_options)BRG_BATCH_NORM_OPTIONS_INIT;
    options->training = true;
    return BRG_OK;
}

static brg_status call_with(brg_sync_norm *sync, brg_tensor *x,
                            brg_tensor *mean)
{
    brg_batch_norm_options options;
    BRG_TRY(training(&options));
    brg_tensor *y =
        brg_sync_batch_norm(sync, x, NULL, NULL, mean, NULL, &options);
    return y ? BRG_OK : brg_error_code();
}

static void test_sync_norm__bad_arguments(void **state)
{
    (void)state;
    brg_pg *pg;
    brg_sync_norm *sync;
    assert_brg_fails_with(brg_sync_norm_create(&sync, NULL), BRG_ERR_ARG,
                          "group is NULL");
    assert_brg_ok(brg_pg_create_self(&pg));
    assert_brg_fails_with(brg_sync_norm_create(NULL, pg), BRG_ERR_ARG, "out");
    assert_brg_ok(brg_sync_norm_create(&sync, pg));
    brg_scope *scope = brg_scope_begin();
    brg_tensor *x = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(2, 3));
    brg_tensor *ints = brg_zeros(BRG_DTYPE_I32, BRG_SHAPE(2, 3));
    brg_tensor *line = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(3));
    assert_brg_fails_with(call_with(NULL, x, NULL), BRG_ERR_ARG, "sync is");
    assert_brg_fails_with(call_with(sync, NULL, NULL), BRG_ERR_ARG, "x is");
    assert_brg_fails_with(call_with(sync, ints, NULL), BRG_ERR_DTYPE, "i32");
    assert_brg_fails_with(call_with(sync, line, NULL), BRG_ERR_SHAPE, "(N,C");
    assert_brg_fails_with(call_with(sync, x, line), BRG_ERR_ARG, "together");
    assert_brg_ok(call_with(sync, x, NULL));
    brg_scope_end(scope);
    brg_sync_norm_destroy(sync);
    brg_sync_norm_destroy(NULL);
    brg_pg_destroy(pg);
}

/* Ranks whose channels differ all hear of it. */
static brg_status differ(brg_pg *pg, void *user)
{
    (void)user;
    brg_sync_norm *sync;
    BRG_TRY(brg_sync_norm_create(&sync, pg));
    brg_scope *scope = brg_scope_begin();
    int64_t n_channels = brg_pg_rank(pg) == 1 ? 4 : 3;
    brg_status status = call_with(
        sync, brg_ones(BRG_DTYPE_F32, BRG_SHAPE(2, n_channels)), NULL);
    brg_scope_end(scope);
    brg_sync_norm_destroy(sync);
    return ranks_expect(status, BRG_ERR_MISMATCH, "all_gather", "differ",
                        __LINE__);
}

static void test_sync_norm__ranks_that_differ_all_hear_of_it(void **state)
{
    (void)state;
    assert_brg_ok(brg_sim_run(3, NULL, differ, NULL));
}

/* The last rank has no data left and joins, instead of giving an empty batch. */
static brg_status join_beside(brg_pg *pg, void *user)
{
    (void)user;
    return check_sync_norm_join(pg, pg);
}

static void test_sync_norm__a_rank_that_joins_is_an_error(void **state)
{
    (void)state;
    for (int n = 2; n <= 4; n++)
        assert_brg_ok(brg_sim_run(n, NULL, join_beside, NULL));
}

/* The gradient is a plain number: asking for its gradient is an error. */
static void test_sync_norm__is_differentiable_once(void **state)
{
    (void)state;
    brg_pg *pg;
    brg_sync_norm *sync;
    brg_batch_norm_options options;
    assert_brg_ok(training(&options));
    assert_brg_ok(brg_pg_create_self(&pg));
    assert_brg_ok(brg_sync_norm_create(&sync, pg));
    brg_scope *scope = brg_scope_begin();
    brg_tensor *x = sync_matrix(4, 3, 5);
    assert_brg_ok(brg_set_requires_grad(x, true));
    brg_tensor *y =
        brg_sync_batch_norm(sync, x, NULL, NULL, NULL, NULL, &options);
    brg_sync_norm_destroy(sync); /* the graph keeps what it needs */
    brg_tensor *loss = brg_sum_all(brg_mul(y, brg_square(y)));
    brg_tensor *gx;
    brg_backward_options how = BRG_BACKWARD_OPTIONS_INIT;
    how.create_graph = true;
    assert_brg_ok(brg_grad(&gx, &loss, 1, &x, 1, &how));
    assert_brg_fails_with(brg_backward(brg_sum_all(brg_square(gx))),
                          BRG_ERR_STATE, "once");
    brg_scope_end(scope);
    brg_pg_destroy(pg);
}

static brg_status run_alone(void *pg)
{
    return check_sync_norm_whole_batch(pg);
}

static brg_status train_alone(void *pg)
{
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    options.keep_order = true; /* a rebuild may fail and is left out then */
    return sync_train_with(pg, &options);
}

static void test_sync_norm__survives_failing_allocations(void **state)
{
    (void)state;
    brg_pg *pg;
    assert_brg_ok(brg_pg_create_self(&pg));
    assert_oom_clean(run_alone, pg);
    assert_oom_clean(train_alone, pg);
    brg_pg_destroy(pg);
}

int main(void)
{
    fail_alloc_install();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sync_norm__is_that_of_the_whole_batch),
        cmocka_unit_test(test_sync_norm__evaluation_is_batch_norm),
        cmocka_unit_test(test_sync_norm__trains_as_one_process_does),
        cmocka_unit_test(test_sync_norm__trains_so_compiled_too),
        cmocka_unit_test(test_sync_norm__bad_arguments),
        cmocka_unit_test(test_sync_norm__ranks_that_differ_all_hear_of_it),
        cmocka_unit_test(test_sync_norm__a_rank_that_joins_is_an_error),
        cmocka_unit_test(test_sync_norm__is_differentiable_once),
        cmocka_unit_test(test_sync_norm__survives_failing_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
