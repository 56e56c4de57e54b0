/* SPDX-License-Identifier: Apache-2.0
 * Gradients that are not finite, in simulated worlds; under mpirun they are in
 * tests/mpi/test_features_mpi.c. */
#include "tests/reducer/finite_checks.h"
#include "tests/support/sim_worlds.h"

static void test_finite__raw_buffers(void **state)
{
    (void)state;
    in_all_worlds(check_finite_raw);
}

static void test_finite__every_kind_of_ddp(void **state)
{
    (void)state;
    in_all_worlds(check_finite_ddp);
}

static void test_finite__compiled_too(void **state)
{
    (void)state;
    in_all_worlds(check_finite_compiled);
}

static void test_finite__loss_scaling(void **state)
{
    (void)state;
    in_all_worlds(check_loss_scaling);
}

/* Marks of other threads, and of every length. */
static brg_status every_element(brg_pg *pg)
{
    enum { N = 67 };
    float x[N] = {0};
    brg_reducer *r;
    brg_reducer_param param = {
        .name = "x", .grad = x, .count = N, .dtype = BRG_DTYPE_F32};
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    options.check_finite = true;
    BRG_TRY(brg_reducer_create(&r, pg, &param, 1, &options));
    for (size_t k = 0; k <= N; k++) {
        for (size_t i = 0; i < N; i++)
            x[i] = i == k ? -INFINITY : 1e30f;
        BRG_TRY(brg_reducer_mark_ready(r, 0));
        BRG_TRY(brg_reducer_wait(r));
        RANK_CHECK(brg_reducer_grads_finite(r, NULL) == (k == N),
                   "element %zu was not seen", k);
    }
    brg_reducer_destroy(r);
    return BRG_OK;
}

static void test_finite__every_element_is_looked_at(void **state)
{
    (void)state;
    check_fn check = every_element;
    assert_brg_ok(brg_sim_run(2, NULL, call_check, &check));
}

/* Without the option nothing is known; ranks have to agree on it. */
static brg_status options_differ(brg_pg *pg)
{
    float x[2] = {NAN, 1};
    brg_reducer *r;
    brg_reducer_param param = {
        .name = "x", .grad = x, .count = 2, .dtype = BRG_DTYPE_F32};
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    BRG_TRY(brg_reducer_create(&r, pg, &param, 1, &options));
    BRG_TRY(brg_reducer_mark_ready(r, 0));
    BRG_TRY(brg_reducer_wait(r));
    RANK_CHECK(brg_reducer_grads_finite(r, NULL), "it was not asked for");
    brg_reducer_destroy(r);
    options.check_finite = brg_pg_rank(pg) == 1;
    RANK_FAILS(brg_reducer_create(&r, pg, &param, 1, &options),
               BRG_ERR_MISMATCH,
               "rank 0 has check_finite off, rank 1 has check_finite on");
    return BRG_OK;
}

static void test_finite__is_an_option_of_all_ranks(void **state)
{
    (void)state;
    check_fn check = options_differ;
    assert_brg_ok(brg_sim_run(2, NULL, call_check, &check));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_finite__raw_buffers),
        cmocka_unit_test(test_finite__every_kind_of_ddp),
        cmocka_unit_test(test_finite__compiled_too),
        cmocka_unit_test(test_finite__loss_scaling),
        cmocka_unit_test(test_finite__every_element_is_looked_at),
        cmocka_unit_test(test_finite__is_an_option_of_all_ranks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
