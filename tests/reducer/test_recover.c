/* SPDX-License-Identifier: Apache-2.0
 * Ranks that are lost, at any call of a training: those that are left go on
 * with the bits of a run that had the smaller world from that step. */
#include <brigade/shard.h>

#include "comm/pg.h"
#include "tests/support/backend_suite.h"
#include "tests/support/brg_test.h"
#include "tests/support/ranks.h"
#include "tests/support/survive.h"

enum { N_STEPS = 5, N_LEAVES = 6 };

static leaf_train small(bool plain)
{
    return (leaf_train){.n_steps = N_STEPS,
                        .batch = 12,
                        .n_leaves = plain ? 0 : N_LEAVES,
                        .cap = 256,
                        .n_hidden = 8,
                        .plain = plain};
}

/* ---- The reference: two runs, and a state carried over in between ----------------- */

#define MAX_STATE 20000

typedef struct handover {
    leaf_train how;
    int from, to; /* steps */
    unsigned char state[MAX_STATE];
    uint64_t hash;
} handover;

/* Parameters and optimizer state from the buffer, or to it. */
static brg_status carry(leaf_net *net, handover *h, bool out)
{
    size_t n_params, at = 0;
    brg_tensor *const *params =
        brg_params_tensors(net->params, BRG_PARAM_TRAINED, &n_params);
    size_t n = n_params + brg_optim_state_count(net->optim);
    for (size_t i = 0; i < n; i++) {
        brg_tensor *t =
            i < n_params ? params[i]
                         : brg_optim_state_at(net->optim, i - n_params)->tensor;
        size_t nbytes = brg_tensor_nbytes(t);
        RANK_CHECK(at + nbytes <= MAX_STATE, "the state is too large");
        memcpy(out ? h->state + at : brg_tensor_data(t),
               out ? brg_tensor_data(t) : h->state + at, nbytes);
        brg_tensor_touch(t);
        at += nbytes;
    }
    return BRG_OK;
}

static brg_status run_part(brg_pg *pg, void *user)
{
    handover *h = user;
    leaf_net net;
    brg_status status = leaf_net_init(&net, pg, &h->how);
    if (status == BRG_OK && h->from > 0)
        status = carry(&net, h, false);
    for (int k = h->from; k < h->to && status == BRG_OK; k++)
        status = leaf_net_step(&net, k);
    if (status == BRG_OK && brg_pg_rank(pg) == 0)
        status = carry(&net, h, true);
    if (status == BRG_OK)
        h->hash = leaf_net_hash(&net);
    leaf_net_deinit(&net);
    return status;
}

/* `before` ranks until a step, `after` from there on. */
static uint64_t expect_change(const leaf_train *how, int before, int after,
                              int step)
{
    static handover h;
    h = (handover){.how = *how, .to = step};
    assert_brg_ok(brg_sim_run(before, NULL, run_part, &h));
    h.from = step;
    h.to = how->n_steps;
    assert_brg_ok(brg_sim_run(after, NULL, run_part, &h));
    return h.hash;
}

/* ---- One death ---------------------------------------------------------------------- */

typedef struct death {
    int n;
    int victim;
    uint64_t call;
    uint64_t seed;
} death;

static survive run_death(const leaf_train *how, const death *d)
{
    char names[40];
    struct brg_sim_fault fault = {BRG_SIM_DIE, d->victim, d->call, 0};
    brg_sim_options options = BRG_SIM_OPTIONS_INIT;
    options.seed = d->seed;
    options.latency_ns = d->seed % 2 ? 5000 : 0;
    options.faults = &fault;
    options.n_faults = 1;
    snprintf(names, sizeof names, "rank %d, which died", d->victim);
    survive s = {
        .script = &options, .how = *how, .names = names, .went_on = -1};
    if (brg_sim_run(d->n, &options, survive_rank, &s) != BRG_OK) {
        print_error("%s\n", brg_error_message());
        survive_print(d->n, &options);
        fail();
    }
    s.names = NULL;
    return s;
}

/* At every call of the victim in turn; returns how many there are. */
static int check_deaths(const leaf_train *how, int n, int victim,
                        const uint64_t *expected)
{
    int went_on = 0;
    for (uint64_t call = 0;; call++) {
        death d = {n, victim, call, call + (uint64_t)victim};
        survive s = run_death(how, &d);
        if (s.n_ended == n) {
            assert_int_equal(s.n_shrinks, 0);
            assert_true(went_on > N_STEPS); /* several in each step */
            return (int)call;
        }
        if (s.n_early > 0) {
            assert_int_equal(s.n_early, n - 1);
            continue;
        }
        went_on++;
        assert_int_equal(s.n_ended, n - 1);
        assert_int_equal(s.n_shrinks, n - 1);
        assert_in_range(s.went_on, 0, N_STEPS);
        assert_int_equal(s.hash, expected[s.went_on]);
    }
}

static void test_recover__death_at_any_call(void **state)
{
    (void)state;
    int n_deaths = 0;
    for (int n = 2; n <= 4; n++) {
        leaf_train how = small(true);
        uint64_t expected[N_STEPS + 1];
        for (int k = 0; k <= N_STEPS; k++)
            expected[k] = expect_change(&how, n, n - 1, k);
        assert_true(expected[0] != expected[N_STEPS]); /* the order shows */
        for (int victim = 0; victim < n; victim++)
            n_deaths += check_deaths(&how, n, victim, expected);
    }
    print_message("%d deaths\n", n_deaths);
}

static void test_recover__death_leaves_the_bits_of_one_rank(void **state)
{
    (void)state;
    for (int compiled = 0; compiled < 2; compiled++) {
        leaf_train how = small(false);
        uint64_t all[N_STEPS + 1], expected[N_STEPS + 1];
        how.compiled = compiled;
        how.adamw = compiled;
        assert_brg_ok(survive_expect(all, &how, 1));
        for (int k = 0; k <= N_STEPS; k++)
            expected[k] = all[N_STEPS];
        for (int n = 3; n <= 4; n++)
            (void)check_deaths(&how, n, n - 2, expected);
    }
}

/* ---- More of them -------------------------------------------------------------------- */

static void test_recover__one_after_the_other(void **state)
{
    (void)state;
    uint64_t seed = brg_test_seed(3), expected[N_STEPS + 1];
    leaf_train how = small(false);
    int n_shrinks = 0;
    assert_brg_ok(survive_expect(expected, &how, 1));
    for (int i = 0; i < 150; i++) {
        struct brg_sim_fault faults[3];
        brg_sim_options options = BRG_SIM_OPTIONS_INIT;
        for (int k = 0; k < 3; k++)
            faults[k] = (struct brg_sim_fault){
                BRG_SIM_DIE, k + (int)(brg_test_random(&seed) % 2),
                8 + brg_test_random(&seed) % 50, 0};
        options.seed = seed;
        options.latency_ns = i % 2 ? 1000 : 0;
        options.faults = faults;
        options.n_faults = 3;
        survive s = {.script = &options,
                     .how = how,
                     .expected = expected,
                     .went_on = -1};
        if (brg_sim_run(5, &options, survive_rank, &s) != BRG_OK) {
            print_error("%s\n", brg_error_message());
            survive_print(5, &options);
            fail();
        }
        n_shrinks += s.n_shrinks;
        assert_int_equal(s.n_ended + s.n_died + s.n_early, 5);
        if (s.n_ended > 0)
            assert_int_equal(s.hash, expected[N_STEPS]);
    }
    assert_true(n_shrinks > 300);
}

/* ---- The group by itself --------------------------------------------------------------- */

static brg_status sum_ranks(brg_pg *pg, float expected)
{
    float x = (float)(brg_pg_rank(pg) + 1);
    brg_work *work;
    BRG_TRY(brg_all_reduce(pg, &work, &x, 1, BRG_DTYPE_F32, BRG_REDUCE_SUM));
    BRG_TRY(brg_work_wait(work));
    RANK_CHECK(x == expected, "the sum is %g, expected %g", x, expected);
    return BRG_OK;
}

/* Rank 1 ends; the others, in a group of their own, have the whole contract. */
static brg_status run_contract(brg_pg *pg, void *user)
{
    int node_size = *(int *)user;
    brg_pg *left, *again;
    if (brg_pg_rank(pg) == 1)
        return BRG_OK;
    RANK_FAILS(sum_ranks(pg, 0), BRG_ERR_PEER, "rank 1, which ended");
    BRG_TRY(brg_pg_shrink(&left, pg));
    RANK_CHECK(brg_pg_world_size(left) == 3 &&
                   brg_pg_rank(left) == brg_pg_rank(pg) - (brg_pg_rank(pg) > 1),
               "rank %d became %d of %d", brg_pg_rank(pg), brg_pg_rank(left),
               brg_pg_world_size(left));
    brg_status status = sum_ranks(left, 6);
    if (status == BRG_OK)
        status = brg_suite_run(left, node_size);
    if (status == BRG_OK)
        status = brg_suite_leaves(left);
    if (status == BRG_OK && brg_pg_shrink(&again, pg) != BRG_ERR_STATE)
        status = BRG_FAIL(BRG_ERR_INTERNAL, "a group was shrunk twice");
    brg_pg_destroy(left);
    return status;
}

static void test_recover__what_is_left_keeps_the_contract(void **state)
{
    (void)state;
    int node_size = 0;
    for (uint64_t seed = 0; seed < 3; seed++) {
        brg_sim_options options = BRG_SIM_OPTIONS_INIT;
        options.seed = seed;
        options.node_size = seed == 2 ? 2 : 0;
        node_size = seed == 2; /* uneven nodes: each rank is one */
        assert_brg_ok(brg_sim_run(4, &options, run_contract, &node_size));
    }
}

/* Nobody is gone. */
static brg_status run_healthy(brg_pg *pg, void *user)
{
    brg_pg *again;
    (void)user;
    BRG_TRY(brg_pg_shrink(&again, pg));
    RANK_FAILS(sum_ranks(pg, 6), BRG_ERR_STATE, "was given up");
    brg_status status = sum_ranks(again, 6);
    brg_pg_destroy(again);
    return status;
}

static void test_recover__a_healthy_group_is_given_up(void **state)
{
    (void)state;
    assert_brg_ok(brg_sim_run(3, NULL, run_healthy, NULL));
}

/* Rank 2 waits for what never comes while the others want to shrink. */
static brg_status run_stuck(brg_pg *pg, void *user)
{
    (void)user;
    brg_pg *left = NULL;
    brg_work *work;
    float x;
    if (brg_pg_rank(pg) == 0)
        return BRG_OK;
    if (brg_pg_rank(pg) == 2) {
        BRG_TRY(brg_recv(pg, &work, &x, 1, BRG_DTYPE_F32, 1));
        RANK_FAILS(brg_work_wait(work), BRG_ERR_PEER, "rank 1, which failed");
    }
    BRG_TRY(brg_pg_shrink(&left, pg));
    brg_status status = sum_ranks(left, 3);
    brg_pg_destroy(left);
    return status;
}

static void test_recover__who_waits_hears_of_it(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 10; seed++) {
        brg_sim_options options = BRG_SIM_OPTIONS_INIT;
        options.seed = seed;
        assert_brg_ok(brg_sim_run(3, &options, run_stuck, NULL));
    }
}

static void test_recover__not_by_every_backend(void **state)
{
    (void)state;
    brg_pg *pg, *left;
    assert_brg_ok(brg_pg_create_fake(&pg, 0, 2));
    assert_brg_fails_with(brg_pg_shrink(&left, pg), BRG_ERR_UNSUPPORTED,
                          "backend fake");
    assert_null(left);
    assert_brg_ok(brg_pg_error(pg)); /* it is as it was */
    assert_brg_fails(brg_pg_shrink(NULL, pg), BRG_ERR_ARG);
    assert_brg_fails(brg_pg_shrink(&left, NULL), BRG_ERR_ARG);
    brg_pg_destroy(pg);
}

/* ---- The state --------------------------------------------------------------------------- */

/* Rank 1 has made a step that the others have not; it is taken over. */
static brg_status run_ahead(brg_pg *pg, void *user)
{
    leaf_train how = small(true);
    leaf_net net;
    brg_pg *again = NULL;
    int64_t n_steps = 7 + (brg_pg_rank(pg) == 1);
    uint64_t *hash = user;
    brg_status status = leaf_net_init(&net, pg, &how);
    if (status == BRG_OK && brg_pg_rank(pg) == 1) {
        ((float *)brg_tensor_data(net.fc[0].weight))[3] = 0.25f;
        brg_tensor_touch(net.fc[0].weight);
        hash[0] = leaf_net_hash(&net);
        status = brg_optim_set_lr(net.optim, 0.125);
    }
    if (status == BRG_OK)
        status = brg_pg_shrink(&again, pg);
    if (status == BRG_OK)
        status = leaf_net_regroup(&net, again, &n_steps);
    hash[1 + brg_pg_rank(pg)] = leaf_net_hash(&net);
    if (status == BRG_OK && (n_steps != 8 || brg_optim_lr(net.optim) != 0.125))
        status = BRG_FAIL(BRG_ERR_INTERNAL, "%d steps, rate %g", (int)n_steps,
                          brg_optim_lr(net.optim));
    leaf_net_deinit(&net);
    brg_pg_destroy(again);
    return status;
}

static void test_recover__the_latest_state_is_taken_over(void **state)
{
    (void)state;
    uint64_t hash[4] = {0};
    assert_brg_ok(brg_sim_run(3, NULL, run_ahead, hash));
    for (int r = 0; r < 3; r++)
        assert_int_equal(hash[1 + r], hash[0]);
}

/* Of `n` ranks rank 1 has gone astray. */
static brg_status run_astray(brg_pg *pg, void *user)
{
    leaf_train how = small(true);
    leaf_net net;
    brg_status *found = user;
    brg_status status = leaf_net_init(&net, pg, &how);
    if (status == BRG_OK)
        status = brg_ddp_compare(net.ddp);
    if (status == BRG_OK && brg_pg_rank(pg) == 1) {
        ((float *)brg_tensor_data(net.fc[1].bias))[0] += 1;
        brg_tensor_touch(net.fc[1].bias);
    }
    if (status == BRG_OK)
        found[brg_pg_rank(pg)] = brg_ddp_compare(net.ddp);
    if (status == BRG_OK && !strstr(brg_error_message(), "rank 1 differ"))
        status = BRG_FAIL(BRG_ERR_INTERNAL, "%s", brg_error_message());
    if (status == BRG_OK)
        status = sum_ranks(pg, (float)(brg_pg_world_size(pg) *
                                       (brg_pg_world_size(pg) + 1) / 2));
    leaf_net_deinit(&net);
    return status;
}

static void test_recover__compare_names_who_differs(void **state)
{
    (void)state;
    brg_status found[4];
    for (int n = 2; n <= 4; n++) {
        assert_brg_ok(brg_sim_run(n, NULL, run_astray, found));
        for (int r = 0; r < n; r++)
            assert_int_equal(found[r], n == 2 || r == 1 ? BRG_ERR_MISMATCH
                                                        : BRG_ERR_PEER);
    }
    assert_brg_fails(brg_ddp_compare(NULL), BRG_ERR_ARG);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_recover__death_at_any_call),
        cmocka_unit_test(test_recover__death_leaves_the_bits_of_one_rank),
        cmocka_unit_test(test_recover__one_after_the_other),
        cmocka_unit_test(test_recover__what_is_left_keeps_the_contract),
        cmocka_unit_test(test_recover__a_healthy_group_is_given_up),
        cmocka_unit_test(test_recover__who_waits_hears_of_it),
        cmocka_unit_test(test_recover__not_by_every_backend),
        cmocka_unit_test(test_recover__the_latest_state_is_taken_over),
        cmocka_unit_test(test_recover__compare_names_who_differs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
