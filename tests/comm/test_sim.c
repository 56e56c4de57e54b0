/* SPDX-License-Identifier: Apache-2.0
 * The simulated world: the contract, determinism, and ways to fail. */
#include "tests/support/backend_suite.h"
#include "tests/support/brg_test.h"
#include "tests/support/half_range.h"

static const int world_sizes[] = {1, 2, 3, 4, 7, 8};
#define N_WORLDS 6

typedef struct suite_case {
    int node_size;
    int which;
} suite_case;

static brg_status run_suite(brg_pg *pg, void *user)
{
    return brg_suite_run(pg, ((const suite_case *)user)->node_size);
}

static void test_sim__keeps_the_contract(void **state)
{
    (void)state;
    suite_case c = {0};
    brg_sim_options options = BRG_SIM_OPTIONS_INIT;
    options.seed = brg_test_seed(1);
    for (int i = 0; i < N_WORLDS; i++)
        assert_brg_ok(brg_sim_run(world_sizes[i], &options, run_suite, &c));
}

static void test_sim__sums_within_nodes_first(void **state)
{
    (void)state;
    static const int worlds[][2] = {{4, 2}, {8, 2}, {8, 4}, {3, 1},
                                    {3, 2}, {4, 3}, {7, 3}};
    for (size_t i = 0; i < 7; i++) {
        brg_sim_options options = BRG_SIM_OPTIONS_INIT;
        suite_case c = {.node_size = worlds[i][1]};
        options.node_size = c.node_size;
        options.seed = i;
        assert_brg_ok(brg_sim_run(worlds[i][0], &options, run_suite, &c));
    }
}

static brg_status run_half_range(brg_pg *pg, void *user)
{
    (void)user;
    return half_check(pg, HALF_SUMS_WIDE);
}

static void test_sim__averages_of_halves_do_not_overflow(void **state)
{
    (void)state;
    for (int i = 0; i < N_WORLDS; i++)
        for (int node_size = 0; node_size < 4; node_size++) {
            brg_sim_options options = BRG_SIM_OPTIONS_INIT;
            options.node_size = node_size;
            assert_brg_ok(
                brg_sim_run(world_sizes[i], &options, run_half_range, NULL));
        }
}

static brg_status run_leaves(brg_pg *pg, void *user)
{
    (void)user;
    return brg_suite_leaves(pg);
}

static void test_sim__sums_leaves_in_one_tree(void **state)
{
    (void)state;
    for (int i = 0; i < N_WORLDS; i++)
        assert_brg_ok(brg_sim_run(world_sizes[i], NULL, run_leaves, NULL));
}

static brg_status run_steady(brg_pg *pg, void *user)
{
    (void)user;
    return brg_suite_steady_state(pg);
}

static void test_sim__steady_state_allocates_nothing(void **state)
{
    (void)state;
#if defined(__SANITIZE_ADDRESS__)
    skip(); /* objects are not cached, so that each is seen */
#endif
    assert_brg_ok(brg_sim_run(3, NULL, run_steady, NULL));
}

static brg_status run_mismatch(brg_pg *pg, void *user)
{
    const suite_case *c = user;
    return brg_suite_mismatch(pg, c->which, brg_pg_world_size(pg) - 1);
}

static void test_sim__mismatch_fails_on_every_rank(void **state)
{
    (void)state;
    for (int which = 0; which < 4; which++)
        for (int n = 2; n <= 4; n++) {
            suite_case c = {.which = which};
            assert_brg_ok(brg_sim_run(n, NULL, run_mismatch, &c));
        }
}

/* ---- The order of turns ------------------------------------------------------ */

#define N_TRACE 400

typedef struct trace {
    int at[N_TRACE];
    size_t n;
} trace;

static brg_status run_traced(brg_pg *pg, void *user)
{
    trace *t = user;
    float x[4] = {0};
    for (int i = 0; i < 20; i++) {
        brg_work *work;
        if (t->n < N_TRACE)
            t->at[t->n++] = brg_pg_rank(pg);
        BRG_TRY(brg_all_reduce(pg, &work, x, 4, BRG_DTYPE_F32, BRG_REDUCE_SUM));
        while (!brg_work_test(work))
            if (t->n < N_TRACE)
                t->at[t->n++] = brg_pg_rank(pg);
        BRG_TRY(brg_work_wait(work));
    }
    return BRG_OK;
}

static trace trace_of(uint64_t seed)
{
    trace t = {.n = 0};
    brg_sim_options options = BRG_SIM_OPTIONS_INIT;
    options.seed = seed;
    assert_brg_ok(brg_sim_run(4, &options, run_traced, &t));
    return t;
}

static void test_sim__same_seed_same_order(void **state)
{
    (void)state;
    trace a = trace_of(7), b = trace_of(7), c = trace_of(8);
    assert_int_equal(a.n, b.n);
    assert_memory_equal(a.at, b.at, sizeof a.at);
    assert_true(a.n != c.n || memcmp(a.at, c.at, sizeof a.at) != 0);
}

/* ---- Ranks that leave ---------------------------------------------------------- */

static brg_status run_leaver(brg_pg *pg, void *user)
{
    (void)user;
    float x = 1;
    brg_work *work;
    if (brg_pg_rank(pg) == 1)
        return BRG_OK;
    BRG_TRY(brg_all_reduce(pg, &work, &x, 1, BRG_DTYPE_F32, BRG_REDUCE_SUM));
    return brg_suite_expect(brg_work_wait(work), BRG_ERR_PEER,
                            "waits for rank 1, which ended after 0",
                            "a rank that left");
}

static void test_sim__waiting_for_an_ended_rank_fails(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 20; seed++) {
        brg_sim_options options = BRG_SIM_OPTIONS_INIT;
        options.seed = seed;
        assert_brg_ok(brg_sim_run(3, &options, run_leaver, NULL));
    }
}

static brg_status run_polling_leaver(brg_pg *pg, void *user)
{
    (void)user;
    float x = 1;
    brg_work *work;
    if (brg_pg_rank(pg) == 0)
        return BRG_OK;
    if (brg_pg_rank(pg) == 1)
        BRG_TRY(brg_recv(pg, &work, &x, 1, BRG_DTYPE_F32, 0));
    else
        BRG_TRY(
            brg_all_reduce(pg, &work, &x, 1, BRG_DTYPE_F32, BRG_REDUCE_SUM));
    while (!brg_work_test(work)) {
    }
    return brg_suite_expect(brg_work_wait(work), BRG_ERR_PEER, "rank 0",
                            "a rank that left");
}

static void test_sim__polling_for_an_ended_rank_fails(void **state)
{
    (void)state;
    assert_brg_ok(brg_sim_run(3, NULL, run_polling_leaver, NULL));
}

static brg_status run_failing(brg_pg *pg, void *user)
{
    (void)user;
    brg_work *work;
    if (brg_pg_rank(pg) == 2)
        return brg_error_set(BRG_ERR_NAN, "here", 1, "bad luck");
    BRG_TRY(brg_barrier(pg, &work));
    return brg_work_wait(work);
}

static void test_sim__reports_the_first_failure(void **state)
{
    (void)state;
    assert_brg_fails_with(brg_sim_run(4, NULL, run_failing, NULL), BRG_ERR_NAN,
                          "rank 2: bad luck");
}

static brg_status run_deadlock(brg_pg *pg, void *user)
{
    (void)user;
    float x = 1;
    brg_work *work;
    if (brg_pg_rank(pg) == 0)
        BRG_TRY(brg_recv(pg, &work, &x, 1, BRG_DTYPE_F32, 1));
    else
        BRG_TRY(brg_barrier(pg, &work));
    BRG_TRY(brg_suite_expect(brg_work_wait(work), BRG_ERR_TIMEOUT,
                             "rank 0 waits for recv #0 (1 f32, from rank 1), "
                             "rank 1 waits for barrier #0",
                             "a deadlock"));
    return BRG_OK;
}

static void test_sim__deadlock_names_who_waits_for_what(void **state)
{
    (void)state;
    assert_brg_ok(brg_sim_run(2, NULL, run_deadlock, NULL));
}

static brg_status run_bad_message(brg_pg *pg, void *user)
{
    (void)user;
    float x[4] = {0};
    brg_work *work;
    if (brg_pg_rank(pg) == 0)
        BRG_TRY(brg_send(pg, &work, x, 3, BRG_DTYPE_F32, 1));
    else
        BRG_TRY(brg_recv(pg, &work, x, 4, BRG_DTYPE_F32, 0));
    return brg_suite_expect(brg_work_wait(work), BRG_ERR_MISMATCH, "send #0 (3",
                            "a message of another size");
}

static void test_sim__message_of_another_size_is_an_error(void **state)
{
    (void)state;
    assert_brg_ok(brg_sim_run(2, NULL, run_bad_message, NULL));
}

/* Rank 1 leaves as soon as its message is away: it arrives all the same. */
static brg_status run_sender_leaves(brg_pg *pg, void *user)
{
    (void)user;
    brg_work *work;
    int32_t x = brg_pg_rank(pg) ? 7 : 0;
    if (brg_pg_rank(pg) == 1)
        BRG_TRY(brg_send(pg, &work, &x, 1, BRG_DTYPE_I32, 0));
    else
        BRG_TRY(brg_recv(pg, &work, &x, 1, BRG_DTYPE_I32, 1));
    BRG_TRY(brg_work_wait(work));
    RANK_CHECK(x == 7, "rank %d has %d", brg_pg_rank(pg), (int)x);
    return BRG_OK;
}

static void test_sim__a_message_outlives_its_sender(void **state)
{
    (void)state;
    brg_sim_options options = BRG_SIM_OPTIONS_INIT;
    for (options.seed = 0; options.seed < 64; options.seed++)
        assert_brg_ok(brg_sim_run(2, &options, run_sender_leaves, NULL));
}

static void test_sim__checks_arguments(void **state)
{
    (void)state;
    assert_brg_fails_with(brg_sim_run(0, NULL, run_steady, NULL), BRG_ERR_ARG,
                          "world size is 0");
    assert_brg_fails_with(brg_sim_run(2, NULL, NULL, NULL), BRG_ERR_ARG,
                          "program");
    brg_sim_options options = {0};
    assert_brg_fails_with(brg_sim_run(2, &options, run_steady, NULL),
                          BRG_ERR_ARG, "struct_size");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sim__keeps_the_contract),
        cmocka_unit_test(test_sim__sums_within_nodes_first),
        cmocka_unit_test(test_sim__averages_of_halves_do_not_overflow),
        cmocka_unit_test(test_sim__sums_leaves_in_one_tree),
        cmocka_unit_test(test_sim__steady_state_allocates_nothing),
        cmocka_unit_test(test_sim__mismatch_fails_on_every_rank),
        cmocka_unit_test(test_sim__same_seed_same_order),
        cmocka_unit_test(test_sim__waiting_for_an_ended_rank_fails),
        cmocka_unit_test(test_sim__polling_for_an_ended_rank_fails),
        cmocka_unit_test(test_sim__reports_the_first_failure),
        cmocka_unit_test(test_sim__deadlock_names_who_waits_for_what),
        cmocka_unit_test(test_sim__message_of_another_size_is_an_error),
        cmocka_unit_test(test_sim__a_message_outlives_its_sender),
        cmocka_unit_test(test_sim__checks_arguments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
