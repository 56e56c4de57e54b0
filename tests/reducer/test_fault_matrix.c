/* SPDX-License-Identifier: Apache-2.0
 * The fault matrix in simulated worlds; under mpirun it is
 * tests/mpi/test_faults_mpi.c. */
#include "tests/reducer/fault_checks.h"

#define SECOND 1000000000u

static brg_status run_rank(brg_pg *pg, void *user)
{
    return fault_check(pg, user);
}

/* By each rank in turn, the first and the last too. */
static uint64_t find(const fault *f, int n, int culprit, uint64_t seed)
{
    fault_run c = {.fault = f, .culprit = culprit};
    brg_sim_options options = BRG_SIM_OPTIONS_INIT;
    options.seed = seed;
    assert_brg_ok(brg_sim_run(n, &options, run_rank, &c));
    assert_int_equal(c.n_errors, n);
    return c.elapsed_ns;
}

static void test_faults__are_found_at_once_and_named(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_FAULTS; i++) {
        uint64_t slowest_ns = 0;
        for (int n = 2; n <= 4; n++)
            for (uint64_t seed = 0; seed < 8; seed++) {
                uint64_t ns = find(&faults[i], n, (int)seed % n, seed);
                slowest_ns = ns > slowest_ns ? ns : slowest_ns;
            }
        print_message("%s: found after %.2f ms at most\n", faults[i].name,
                      (double)slowest_ns * 1e-6);
        assert_true(slowest_ns < SECOND);
    }
}

static brg_status run_joined(brg_pg *pg, void *user)
{
    (void)user;
    return joined_check(pg);
}

static void test_faults__beside_ranks_that_have_joined(void **state)
{
    (void)state;
    for (int n = 2; n <= 5; n++)
        for (uint64_t seed = 0; seed < 20; seed++) {
            brg_sim_options options = BRG_SIM_OPTIONS_INIT;
            options.seed = seed;
            assert_brg_ok(brg_sim_run(n, &options, run_joined, NULL));
        }
}

static brg_status run_models(brg_pg *pg, void *user)
{
    uint64_t elapsed_ns = 0;
    (void)user;
    for (size_t i = 0; i < N_MODEL_FAULTS; i++)
        for (int culprit = 0; culprit < brg_pg_world_size(pg); culprit++)
            BRG_TRY(model_check(pg, &model_faults[i], culprit, &elapsed_ns));
    RANK_CHECK(elapsed_ns < SECOND, "it took %g s", (double)elapsed_ns * 1e-9);
    return BRG_OK;
}

static void test_faults__models_that_differ(void **state)
{
    (void)state;
    for (int n = 2; n <= 4; n++)
        assert_brg_ok(brg_sim_run(n, NULL, run_models, NULL));
}

/* Messages of calls that do not meet have the parameters of their bucket. */
static brg_status name_rank(brg_pg *pg, void *user)
{
    ddp_model m;
    brg_status status = ddp_model_init(&m, pg);
    (void)user;
    if (status == BRG_OK)
        status = ddp_model_wrap(&m, NULL);
    if (status == BRG_OK && m.rank == 1)
        status = fault_barrier(pg);
    else if (status == BRG_OK)
        status = ddp_model_backward(&m, 0, DDP_MODEL_ALL);
    if (status != BRG_OK && m.rank != 1)
        status = ranks_expect(status, BRG_ERR_MISMATCH,
                              "bucket 0 (fc2.weight): ranks disagree", "a name",
                              __LINE__);
    else if (status != BRG_OK)
        status = BRG_OK;
    ddp_model_deinit(&m);
    return status;
}

static void test_faults__parameters_are_named(void **state)
{
    (void)state;
    assert_brg_ok(brg_sim_run(3, NULL, name_rank, NULL));
}

/* ---- No cost -------------------------------------------------------------------------- */

static brg_status count_rank(brg_pg *pg, void *user)
{
    ddp_model m;
    brg_pg_stats before, after;
    brg_status status = ddp_model_init(&m, pg);
    (void)user;
    if (status == BRG_OK)
        status = ddp_model_wrap(&m, NULL);
    for (int k = 0; k < 6 && status == BRG_OK; k++) {
        size_t n = brg_reducer_n_buckets(brg_ddp_reducer(m.ddp));
        brg_pg_get_stats(pg, &before);
        status = ddp_model_backward(&m, k, DDP_MODEL_ALL);
        brg_pg_get_stats(pg, &after);
        if (status == BRG_OK && k > 0 &&
            after.n_collectives - before.n_collectives != n)
            status = BRG_FAIL(BRG_ERR_INTERNAL,
                              "step %d: more than a call "
                              "for each bucket",
                              k);
        if (status == BRG_OK)
            status = ddp_model_zero(&m, false);
    }
    ddp_model_deinit(&m);
    return status;
}

static void test_faults__looking_for_them_sends_nothing(void **state)
{
    (void)state;
    assert_brg_ok(brg_sim_run(3, NULL, count_rank, NULL));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_faults__are_found_at_once_and_named),
        cmocka_unit_test(test_faults__beside_ranks_that_have_joined),
        cmocka_unit_test(test_faults__models_that_differ),
        cmocka_unit_test(test_faults__parameters_are_named),
        cmocka_unit_test(test_faults__looking_for_them_sends_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
