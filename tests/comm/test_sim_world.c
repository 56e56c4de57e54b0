/* SPDX-License-Identifier: Apache-2.0
 * The simulated world: virtual time, faults by script, every order of events,
 * and how fast a training step of 8 ranks is in it. */
#include <brigade/sim.h>

#include "core/base/clock.h"
#include "tests/support/backend_suite.h"
#include "tests/support/brg_test.h"
#include "tests/support/leaf_train.h"
#include "tests/support/ranks.h"

#define MS 1000000u

/* ---- Virtual time --------------------------------------------------------------- */

typedef struct time_case {
    uint64_t end[8]; /* of each rank */
    bool is_overlapped;
} time_case;

static brg_sim_options timed(uint64_t seed)
{
    brg_sim_options options = BRG_SIM_OPTIONS_INIT;
    options.seed = seed;
    options.latency_ns = 10000;
    options.bytes_per_s = 1e9;
    return options;
}

static float data[8][250000];

/* Rank r computes r ms; then 1 MB is reduced, beside 20 ms more or not. */
static brg_status run_timed(brg_pg *pg, void *user)
{
    time_case *c = user;
    int rank = brg_pg_rank(pg);
    brg_work *work;
    brg_sim_spend_ns(pg, (uint64_t)rank * MS);
    BRG_TRY(brg_all_reduce(pg, &work, data[rank], 250000, BRG_DTYPE_F32,
                           BRG_REDUCE_SUM));
    if (c->is_overlapped)
        brg_sim_spend_ns(pg, 20 * MS);
    BRG_TRY(brg_work_wait(work));
    c->end[rank] = brg_sim_now_ns(pg);
    return BRG_OK;
}

static void test_sim_time__follows_the_model(void **state)
{
    (void)state;
    static const int worlds[] = {1, 2, 4, 5, 8};
    static const uint64_t latencies[] = {0, 2, 4, 6, 6};
    for (size_t i = 0; i < 5; i++)
        for (int overlapped = 0; overlapped < 2; overlapped++) {
            int n = worlds[i];
            time_case c = {.is_overlapped = overlapped};
            brg_sim_options options = timed(i);
            assert_brg_ok(brg_sim_run(n, &options, run_timed, &c));
            uint64_t moved = (uint64_t)(2e6 * (n - 1) / n);
            uint64_t done =
                (uint64_t)(n - 1) * MS + latencies[i] * 10000 + moved;
            for (int r = 0; r < n; r++) {
                uint64_t own = ((uint64_t)r + 20) * MS;
                uint64_t end = overlapped && own > done ? own : done;
                assert_int_equal(c.end[r], end);
            }
        }
}

static brg_status run_two(brg_pg *pg, void *user)
{
    uint64_t *end = user;
    int rank = brg_pg_rank(pg);
    brg_work *works[2];
    for (int k = 0; k < 2; k++)
        BRG_TRY(brg_broadcast(pg, &works[k], data[rank] + k * 1000, 1000,
                              BRG_DTYPE_F32, 0));
    BRG_TRY(brg_work_wait(works[1]));
    *end = brg_sim_now_ns(pg);
    BRG_TRY(brg_work_wait(works[0]));
    RANK_CHECK(brg_sim_now_ns(pg) == *end, "the first was done before");
    return BRG_OK;
}

static void test_sim_time__collectives_share_the_network(void **state)
{
    (void)state;
    uint64_t end = 0;
    brg_sim_options options = timed(3);
    assert_brg_ok(brg_sim_run(2, &options, run_two, &end));
    assert_int_equal(end, 2 * (10000 + 4000));
}

static brg_status run_polling(brg_pg *pg, void *user)
{
    brg_work *work;
    uint64_t n = 0;
    BRG_TRY(brg_barrier(pg, &work));
    while (!brg_work_test(work))
        n++;
    BRG_TRY(brg_work_wait(work));
    *(uint64_t *)user = n;
    return BRG_OK;
}

static void test_sim_time__a_poll_takes_time(void **state)
{
    (void)state;
    uint64_t n = 0;
    brg_sim_options options = timed(3);
    assert_brg_ok(brg_sim_run(2, &options, run_polling, &n));
    assert_in_range(n, 8, 11); /* 10 us of 1 us */
}

static brg_status run_suite(brg_pg *pg, void *user)
{
    (void)user;
    BRG_TRY(brg_suite_leaves(pg));
    return brg_suite_run(pg, 0);
}

static void test_sim_time__keeps_the_contract(void **state)
{
    (void)state;
    brg_sim_options options = timed(1);
    assert_brg_ok(brg_sim_run(3, &options, run_suite, NULL));
    assert_int_equal(brg_sim_now_ns(NULL), 0);
}

/* ---- Faults ------------------------------------------------------------------------ */

typedef struct fault_case {
    struct brg_sim_fault fault;
    brg_status code; /* of the other ranks */
    const char *text;
    int n_failed;
    float sum[4];
} fault_case;

/* Three sums; rank r gives r + 1. */
static brg_status run_faulty(brg_pg *pg, void *user)
{
    fault_case *c = user;
    int rank = brg_pg_rank(pg);
    for (int k = 0; k < 3; k++) {
        float x = (float)(rank + 1);
        brg_work *work;
        brg_status status =
            brg_all_reduce(pg, &work, &x, 1, BRG_DTYPE_F32, BRG_REDUCE_SUM);
        if (status == BRG_OK)
            status = brg_work_wait(work);
        c->sum[rank] = x;
        if (status == BRG_OK)
            continue;
        c->n_failed++;
        if (rank == c->fault.rank && c->fault.kind == BRG_SIM_DIE)
            return status; /* nobody sees it */
        return ranks_expect(status, c->code, c->text, "a sum", k);
    }
    return BRG_OK;
}

static void run_fault(fault_case *c, uint64_t seed, bool has_time)
{
    brg_sim_options options = BRG_SIM_OPTIONS_INIT;
    if (has_time)
        options = timed(seed);
    options.seed = seed;
    options.faults = &c->fault;
    options.n_faults = 1;
    c->n_failed = 0;
    assert_brg_ok(brg_sim_run(4, &options, run_faulty, c));
}

static void test_sim_faults__the_dead_are_named(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 20; seed++) {
        fault_case c = {{BRG_SIM_DIE, 2, 1, 0},
                        BRG_ERR_PEER,
                        "waits for rank 2, which died after 1 collectives",
                        0,
                        {0}};
        run_fault(&c, seed, seed % 2);
        assert_int_equal(c.n_failed, 4);
    }
}

static void test_sim_faults__what_is_lost_times_out(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 20; seed++) {
        fault_case c = {{BRG_SIM_DROP, 1, 2, 0},
                        BRG_ERR_TIMEOUT,
                        "rank 1 waits for all_reduce #2 (1 f32, sum), which "
                        "was lost",
                        0,
                        {0}};
        run_fault(&c, seed, seed % 2);
        assert_int_equal(c.n_failed, 4);
    }
}

static void test_sim_faults__delays_change_no_result(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 20; seed++) {
        fault_case c = {.fault = {BRG_SIM_DELAY, 3, seed % 3, 7 * MS}};
        run_fault(&c, seed, seed % 2);
        assert_int_equal(c.n_failed, 0);
        for (int r = 0; r < 4; r++)
            assert_true(c.sum[r] == 10.0f);
    }
}

static void test_sim_faults__a_flipped_bit_is_on_one_rank(void **state)
{
    (void)state;
    fault_case c = {.fault = {BRG_SIM_CORRUPT, 3, 2, 0}};
    run_fault(&c, 1, false);
    for (int r = 0; r < 3; r++)
        assert_true(c.sum[r] == 10.0f);
    assert_true(c.sum[3] != 10.0f);
}

static brg_status train(brg_pg *pg, void *user)
{
    uint64_t hash;
    return leaf_train_run(pg, user, &hash);
}

/* Replicas that have drifted apart are told from each other by their hash. */
static void test_sim_faults__training_notices_a_flipped_bit(void **state)
{
    (void)state;
    leaf_train how = {.n_steps = 3, .batch = 12, .n_leaves = 4, .n_hidden = 8};
    struct brg_sim_fault fault = {BRG_SIM_CORRUPT, 1, 6, 0};
    brg_sim_options options = BRG_SIM_OPTIONS_INIT;
    options.faults = &fault;
    options.n_faults = 1;
    assert_brg_ok(brg_sim_run(3, NULL, train, &how));
    assert_brg_fails_with(brg_sim_run(3, &options, train, &how),
                          BRG_ERR_INTERNAL, "differ in their bits");
}

/* Random deaths, losses and delays: every run ends, rightly or with an error
 * of communication. */
static void test_sim_faults__no_hang_and_nothing_wrong(void **state)
{
    (void)state;
    uint64_t seed = brg_test_seed(1), hash = 0, expected = 0;
    leaf_train how = {.n_steps = 4, .batch = 12, .n_leaves = 4, .n_hidden = 8};
    int n_bad = 0;
    assert_brg_ok(leaf_train_sim(1, 0, &how, &expected));
    for (int i = 0; i < 250; i++) {
        static const brg_sim_fault_kind kinds[] = {BRG_SIM_DELAY, BRG_SIM_DROP,
                                                   BRG_SIM_DIE};
        int n = 2 + i % 3;
        struct brg_sim_fault fault = {kinds[brg_test_random(&seed) % 3],
                                      (int)(brg_test_random(&seed) % 2),
                                      brg_test_random(&seed) % 20, MS};
        brg_sim_options options = i % 2 ? timed(seed) : timed(0);
        options.seed = seed;
        options.faults = &fault;
        options.n_faults = 1;
        brg_status status = leaf_train_sim_with(n, &options, &how, &hash);
        n_bad += status != BRG_OK;
        if (status == BRG_OK)
            assert_int_equal(hash, expected);
        else
            assert_true(status == BRG_ERR_PEER || status == BRG_ERR_TIMEOUT);
    }
    assert_in_range(n_bad, 50, 200);
}

/* ---- Every order ---------------------------------------------------------------------- */

typedef struct explore_case {
    int n_wrong;
    bool is_wrong;
} explore_case;

/* Wrong where rank 1 sees its first poll succeed before rank 0 has seen its
 * own: one order among some. */
static brg_status run_racy(brg_pg *pg, void *user)
{
    explore_case *c = user;
    float x = 1;
    brg_work *work;
    int rank = brg_pg_rank(pg);
    if (rank == 0)
        c->is_wrong = true;
    BRG_TRY(brg_all_reduce(pg, &work, &x, 1, BRG_DTYPE_F32, BRG_REDUCE_SUM));
    bool is_done = brg_work_test(work);
    if (rank == 0)
        c->is_wrong = false;
    else if (is_done && c->is_wrong) {
        c->n_wrong++;
        brg_work_release(work);
        return brg_error_set(BRG_ERR_STATE, "here", 1, "a race");
    }
    return brg_work_wait(work);
}

static void test_sim_explore__finds_the_one_bad_order(void **state)
{
    (void)state;
    explore_case c = {0};
    brg_sim_exploration e = {.depth = 24};
    assert_brg_fails_with(brg_sim_explore(2, NULL, run_racy, &c, &e),
                          BRG_ERR_STATE, "rank 1: a race");
    assert_int_equal(c.n_wrong, 1);
    /* The message has the way to it. */
    char replay[200];
    const char *at = strstr(brg_error_message(), "choices ");
    assert_non_null(at);
    assert_int_equal(sscanf(at, "choices %199[0-9.]", replay), 1);
    brg_sim_options options = BRG_SIM_OPTIONS_INIT;
    options.replay = replay;
    for (int i = 0; i < 3; i++)
        assert_brg_fails_with(brg_sim_run(2, &options, run_racy, &c),
                              BRG_ERR_STATE, "a race");
    assert_int_equal(c.n_wrong, 4);
}

static brg_status run_barrier(brg_pg *pg, void *user)
{
    brg_work *work;
    ++*(int *)user;
    BRG_TRY(brg_barrier(pg, &work));
    (void)brg_work_test(work);
    return brg_work_wait(work);
}

static void test_sim_explore__covers_all_orders(void **state)
{
    (void)state;
    int n_ranks = 0;
    brg_sim_exploration e = {.depth = 40, .max_runs = 100000};
    assert_brg_ok(brg_sim_explore(2, NULL, run_barrier, &n_ranks, &e));
    assert_true(e.is_complete);
    assert_int_equal(n_ranks, 2 * e.n_runs);
    assert_int_equal(e.n_runs, 1972); /* as docs/simulated-world.md has it */
    uint64_t all = e.n_runs;
    e.max_runs = 10;
    assert_brg_ok(brg_sim_explore(2, NULL, run_barrier, &n_ranks, &e));
    assert_false(e.is_complete);
    assert_int_equal(e.n_runs, 10);
    print_message("%llu orders of a barrier on two ranks\n",
                  (unsigned long long)all);
}

/* A reducer's step, in every order of its first events. */
static void test_sim_explore__a_training_step(void **state)
{
    (void)state;
    leaf_train how = {
        .n_steps = 1, .batch = 4, .n_leaves = 2, .n_hidden = 4, .cap = 1};
    brg_sim_exploration e = {.depth = 9};
    assert_brg_ok(brg_sim_explore(2, NULL, train, &how, &e));
    assert_true(e.is_complete);
    assert_true(e.n_runs > 100);
}

static void test_sim_explore__checks_arguments(void **state)
{
    (void)state;
    int n = 0;
    brg_sim_exploration e = {.depth = 0};
    brg_sim_options options = BRG_SIM_OPTIONS_INIT;
    assert_brg_fails_with(brg_sim_explore(2, NULL, run_barrier, &n, &e),
                          BRG_ERR_ARG, "depth is 0");
    options.replay = "1.x";
    assert_brg_fails_with(brg_sim_run(2, &options, run_barrier, &n),
                          BRG_ERR_ARG, "1.x");
    struct brg_sim_fault fault = {.rank = 2};
    options.replay = NULL;
    options.faults = &fault;
    options.n_faults = 1;
    assert_brg_fails_with(brg_sim_run(2, &options, run_barrier, &n),
                          BRG_ERR_ARG, "rank 2 of 2");
}

/* ---- Speed ------------------------------------------------------------------------------ */

/* The fastest of some runs: this machine may be busy with other things. */
static void test_sim__a_step_of_8_ranks_takes_under_10_ms(void **state)
{
    (void)state;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    skip();
#endif
    enum { N_STEPS = 20 };
    uint64_t hash, best = UINT64_MAX;
    leaf_train how = {.n_steps = N_STEPS,
                      .batch = 32,
                      .n_hidden = 32,
                      .cap = 4096,
                      .plain = true};
    for (int i = 0; i < 5; i++) {
        uint64_t start = brg__clock_ns();
        assert_brg_ok(leaf_train_sim(8, (uint64_t)i, &how, &hash));
        uint64_t ns = (brg__clock_ns() - start) / N_STEPS;
        best = ns < best ? ns : best;
    }
    print_message("a training step of 8 ranks: %.2f ms\n", (double)best * 1e-6);
    assert_in_range(best, 0, 10 * MS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sim_time__follows_the_model),
        cmocka_unit_test(test_sim_time__collectives_share_the_network),
        cmocka_unit_test(test_sim_time__a_poll_takes_time),
        cmocka_unit_test(test_sim_time__keeps_the_contract),
        cmocka_unit_test(test_sim_faults__the_dead_are_named),
        cmocka_unit_test(test_sim_faults__what_is_lost_times_out),
        cmocka_unit_test(test_sim_faults__delays_change_no_result),
        cmocka_unit_test(test_sim_faults__a_flipped_bit_is_on_one_rank),
        cmocka_unit_test(test_sim_faults__training_notices_a_flipped_bit),
        cmocka_unit_test(test_sim_faults__no_hang_and_nothing_wrong),
        cmocka_unit_test(test_sim_explore__finds_the_one_bad_order),
        cmocka_unit_test(test_sim_explore__covers_all_orders),
        cmocka_unit_test(test_sim_explore__a_training_step),
        cmocka_unit_test(test_sim_explore__checks_arguments),
        cmocka_unit_test(test_sim__a_step_of_8_ranks_takes_under_10_ms),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
