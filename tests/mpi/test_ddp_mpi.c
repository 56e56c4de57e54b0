/* SPDX-License-Identifier: Apache-2.0
 * The reducer over MPI: every rank runs every test. Nodes of one rank make
 * the ranks exchange messages instead of sharing memory. */
#include "tests/reducer/adasum_checks.h"
#include "tests/reducer/average_checks.h"
#include "tests/reducer/hook_checks.h"
#include "tests/reducer/lacking_checks.h"
#include "tests/reducer/order_checks.h"
#include "tests/reducer/step_checks.h"
#include "tests/support/ddp_model.h"
#include "tests/support/ddp_train.h"
#include "tests/support/mpi_ranks.h"

static int rank, n_ranks;

static void test_ddp_mpi__trains_as_one_rank_does(void **state)
{
    (void)state;
    static const ddp_train ways[] = {
        {.n_steps = 4, .n_micro = 1},
        {.n_steps = 4, .n_micro = 1, .cap = 1, .keep_memory = true},
        {.n_steps = 4, .n_micro = 3, .cap = 400, .adamw = true},
    };
    for (int node_size = 0; node_size < mpi_n_shapes(); node_size++) {
        brg_pg *pg = mpi_group(node_size, 60);
        for (size_t i = 0; i < 3; i++)
            assert_brg_ok(ddp_train_check(pg, &ways[i]));
        brg_pg_destroy(pg);
    }
}

static brg_status average(ddp_model *m, const brg_ddp_options *options)
{
    BRG_TRY(ddp_model_init(m, m->pg));
    BRG_TRY(ddp_model_wrap(m, options));
    for (int step = 0; step < 4; step++) {
        BRG_TRY(ddp_model_backward(m, step, DDP_MODEL_ALL));
        BRG_TRY(ddp_model_check(m, step, step + 1));
        BRG_TRY(ddp_model_zero(m, step % 2));
    }
    return BRG_OK;
}

static void test_ddp_mpi__averages_every_dtype_and_layout(void **state)
{
    (void)state;
    static const size_t caps[] = {1, 200, 0};
    for (int node_size = 0; node_size < mpi_n_shapes(); node_size++) {
        brg_pg *pg = mpi_group(node_size, 60);
        for (size_t i = 0; i < 3; i++) {
            ddp_model m = {.pg = pg};
            brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
            options.first_bucket_bytes = options.bucket_bytes = caps[i];
            assert_brg_ok(average(&m, &options));
            ddp_model_deinit(&m);
        }
        brg_pg_destroy(pg);
    }
}

static void test_ddp_mpi__a_steady_step_allocates_nothing(void **state)
{
    (void)state;
#if defined(__SANITIZE_ADDRESS__)
    skip(); /* objects are not cached, so that each is seen */
#endif
    for (int node_size = 0; node_size < mpi_n_shapes(); node_size++) {
        brg_pg *pg = mpi_group(node_size, 60);
        ddp_model m;
        brg_memory_stats before, after;
        assert_brg_ok(ddp_model_init(&m, pg));
        assert_brg_ok(ddp_model_wrap(&m, NULL));
        for (int i = 0; i < 10; i++) {
            if (i == 5)
                brg_memory_get_stats(&before);
            assert_brg_ok(ddp_model_backward(&m, 0, DDP_MODEL_ALL));
            assert_brg_ok(ddp_model_zero(&m, false));
        }
        brg_memory_get_stats(&after);
        assert_int_equal(after.n_allocs, before.n_allocs);
        ddp_model_deinit(&m);
        brg_pg_destroy(pg);
    }
}

static void test_ddp_mpi__raw_buffers(void **state)
{
    (void)state;
    for (int in_slots = 0; in_slots < 2; in_slots++) {
        brg_pg *pg = mpi_group(0, 60);
        trainer t;
        brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
        options.bucket_bytes = 256;
        trainer_init(&t, pg);
        for (size_t i = 0; in_slots && i < t.n; i++)
            t.params[i].grad = NULL;
        assert_brg_ok(trainer_create(&t, &options));
        for (int step = 0; step < 4; step++)
            assert_brg_ok(run_step(&t, step, 3));
        brg_reducer_destroy(t.reducer);
        brg_pg_destroy(pg);
    }
}

static brg_status check_all_hooks(brg_pg *pg)
{
    BRG_TRY(check_hooks(pg));
    BRG_TRY(check_powersgd(pg));
    return check_adasum(pg);
}

static void test_ddp_mpi__communication_hooks(void **state)
{
    (void)state;
    mpi_on_shapes(check_all_hooks);
}

static void test_ddp_mpi__periodic_averaging(void **state)
{
    (void)state;
    brg_pg *pg = mpi_group(0, 60);
    assert_brg_ok(check_averages(pg));
    brg_pg_destroy(pg);
}

static void check_errors(int node_size)
{
    brg_pg *pg = mpi_group(node_size, 60);
    trainer t;
    trainer_init(&t, pg);
    if (rank == 1)
        t.params[2].count = 63;
    if (n_ranks > 1) {
        assert_brg_fails_with(trainer_create(&t, NULL), BRG_ERR_MISMATCH,
                              "rank 1 has fc1.bias f32[63]");
        trainer_init(&t, pg);
    }
    assert_brg_ok(trainer_create(&t, NULL));
    for (size_t i = 0; i < t.n; i++)
        if (rank != n_ranks - 1 || i != 3)
            assert_brg_ok(brg_reducer_mark_ready(t.reducer, i));
    assert_brg_fails_with(brg_reducer_wait(t.reducer), BRG_ERR_STATE,
                          "fc2.weight on rank");
    assert_brg_ok(brg_reducer_mark_ready(t.reducer, 6));
    if (rank == 0)
        assert_brg_ok(brg_reducer_cancel(t.reducer));
    else
        assert_brg_fails_with(brg_reducer_wait(t.reducer), BRG_ERR_PEER,
                              "backward failed on rank 0");
    assert_brg_ok(run_step(&t, 1, 3));
    brg_reducer_destroy(t.reducer);
    brg_pg_destroy(pg);
}

static void test_ddp_mpi__errors_reach_every_rank(void **state)
{
    (void)state;
    for (int node_size = 0; node_size < mpi_n_shapes(); node_size++)
        check_errors(node_size);
}

static void check_leaver(int node_size)
{
    brg_pg *pg = mpi_group(node_size, 60);
    ddp_model m;
    assert_brg_ok(ddp_model_init(&m, pg));
    assert_brg_ok(ddp_model_wrap(&m, NULL));
    assert_brg_ok(ddp_model_backward(&m, 0, DDP_MODEL_ALL));
    if (rank != 1)
        assert_brg_fails_with(ddp_model_backward(&m, 1, DDP_MODEL_ALL),
                              BRG_ERR_PEER, "rank 1");
    ddp_model_deinit(&m);
    brg_pg_destroy(pg);
}

static void test_ddp_mpi__a_rank_that_leaves_is_named(void **state)
{
    (void)state;
    for (int node_size = 0; n_ranks > 1 && node_size < mpi_n_shapes();
         node_size++)
        check_leaver(node_size);
}

/* A group made afterwards works up to the same error. */
static void test_ddp_mpi__a_plan_of_another_order(void **state)
{
    (void)state;
    mpi_on_shapes(order_check);
}

/* Reductions as nodes of whole steps. */
static void test_ddp_mpi__whole_steps(void **state)
{
    (void)state;
    mpi_on_shapes(step_check_all);
}

static void test_ddp_mpi__a_plan_that_lacks_a_gradient(void **state)
{
    (void)state;
    for (int node_size = 0; node_size < mpi_n_shapes(); node_size++) {
        brg_pg *pg = mpi_group(node_size, 60);
        assert_brg_ok(lacking_others(pg));
        brg_pg_destroy(pg);
        if (n_ranks == 1)
            continue;
        pg = mpi_group(node_size, 60);
        assert_brg_ok(lacking_check(pg, 1, false));
        brg_pg_destroy(pg);
    }
}

int main(int argc, char **argv)
{
    if (!mpi_begin(&argc, &argv))
        return 1;
    rank = mpi_rank();
    n_ranks = mpi_n_ranks();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ddp_mpi__trains_as_one_rank_does),
        cmocka_unit_test(test_ddp_mpi__averages_every_dtype_and_layout),
        cmocka_unit_test(test_ddp_mpi__a_steady_step_allocates_nothing),
        cmocka_unit_test(test_ddp_mpi__raw_buffers),
        cmocka_unit_test(test_ddp_mpi__communication_hooks),
        cmocka_unit_test(test_ddp_mpi__periodic_averaging),
        cmocka_unit_test(test_ddp_mpi__errors_reach_every_rank),
        cmocka_unit_test(test_ddp_mpi__whole_steps),
        cmocka_unit_test(test_ddp_mpi__a_plan_of_another_order),
        cmocka_unit_test(test_ddp_mpi__a_plan_that_lacks_a_gradient),
        cmocka_unit_test(test_ddp_mpi__a_rank_that_leaves_is_named),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    MPI_Finalize();
    return failed;
}
