/* SPDX-License-Identifier: Apache-2.0
 * Periodic averaging in simulated worlds. */
#include "tests/reducer/average_checks.h"
#include "tests/support/fail_alloc.h"

static brg_status averages(brg_pg *pg, void *user)
{
    (void)user;
    return check_averages(pg);
}

static void test_average__local_steps_then_the_mean(void **state)
{
    (void)state;
    ranks_in_worlds(1, NULL, averages, NULL);
}

/* Rank 1 has another period, or no tensor. */
static brg_status differ(brg_pg *pg, void *user)
{
    const int *way = user;
    brg_averager *a;
    brg_averager_options options = BRG_AVERAGER_OPTIONS_INIT;
    brg_scope *scope = brg_scope_begin();
    brg_tensor *t = brg_zeros(BRG_DTYPE_F32, 1, (int64_t[]){4});
    brg_tensor *ints = brg_zeros(BRG_DTYPE_I64, 1, (int64_t[]){4});
    bool is_odd = brg_pg_rank(pg) == 1;
    options.period = is_odd && *way == 0 ? 7 : 2;
    brg_status status = brg_averager_create(
        &a, pg, is_odd && *way == 1 ? &ints : &t, 1, &options);
    brg_scope_end(scope);
    if (*way == 0)
        RANK_FAILS(status, BRG_ERR_MISMATCH,
                   "rank 0 has period and warm_up 2, 0, rank 1 has period and "
                   "warm_up 7, 0");
    else if (is_odd)
        RANK_FAILS(status, BRG_ERR_ARG, "tensor 0 (i64[4]) is no row-major");
    else
        RANK_FAILS(status, BRG_ERR_PEER, "failed on rank 1");
    return BRG_OK;
}

static void test_average__ranks_that_differ_all_hear_of_it(void **state)
{
    (void)state;
    for (int way = 0; way < 2; way++)
        for (int n = 2; n <= 3; n++)
            assert_brg_ok(brg_sim_run(n, NULL, differ, &way));
}

static void test_average__goes_on_from_a_count(void **state)
{
    (void)state;
    brg_pg *pg;
    brg_averager *a;
    bool averaged;
    brg_averager_options options = BRG_AVERAGER_OPTIONS_INIT;
    options.period = 3;
    brg_scope *scope = brg_scope_begin();
    brg_tensor *t = brg_zeros(BRG_DTYPE_F32, 1, (int64_t[]){4});
    assert_brg_ok(brg_pg_create_self(&pg));
    assert_brg_ok(brg_averager_create(&a, pg, &t, 1, &options));
    brg_averager_set_count(a, 5);
    assert_brg_ok(brg_averager_step(a, &averaged));
    assert_true(averaged);
    assert_brg_ok(brg_averager_step(a, &averaged));
    assert_false(averaged);
    assert_brg_ok(brg_averager_now(a));
    assert_int_equal(brg_averager_count(a), 6);
    options.period = 0;
    brg_averager *none;
    assert_brg_fails_with(brg_averager_create(&none, pg, &t, 1, &options),
                          BRG_ERR_ARG, "period 0");
    assert_null(none);
    brg_averager_destroy(a);
    brg_pg_destroy(pg);
    brg_scope_end(scope);
}

static brg_status make_and_average(void *user)
{
    brg_averager *a;
    brg_scope *scope = brg_scope_begin();
    if (!scope)
        return BRG_ERR_NOMEM;
    brg_tensor *t = brg_zeros(BRG_DTYPE_F32, 1, (int64_t[]){4});
    brg_status status =
        t ? brg_averager_create(&a, user, &t, 1, NULL) : brg_error_code();
    if (status == BRG_OK) {
        status = brg_averager_now(a);
        brg_averager_destroy(a);
    }
    brg_scope_end(scope);
    return status;
}

static void test_average__runs_out_of_memory_cleanly(void **state)
{
    (void)state;
    brg_pg *pg;
    assert_brg_ok(brg_pg_create_self(&pg));
    assert_oom_clean(make_and_average, pg);
    brg_pg_destroy(pg);
}

int main(void)
{
    fail_alloc_install();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_average__local_steps_then_the_mean),
        cmocka_unit_test(test_average__ranks_that_differ_all_hear_of_it),
        cmocka_unit_test(test_average__goes_on_from_a_count),
        cmocka_unit_test(test_average__runs_out_of_memory_cleanly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
