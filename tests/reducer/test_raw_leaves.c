/* SPDX-License-Identifier: Apache-2.0
 * The reproducible reduction of buffers of the user's: one result for every
 * world, gradients left out, steps that fail, misuse. */
#include <brigade/comm_hook.h>

#include "tests/support/brg_test.h"
#include "tests/support/leaf_oracle.h"
#include "tests/support/ranks.h"
#include "tests/support/raw_train.h"

static const int worlds[] = {1, 2, 3, 4, 6, 8};
#define N_WORLDS 6

/* ---- One result ------------------------------------------------------------------- */

static void check_worlds(raw_train how)
{
    static const size_t caps[] = {1, 300, 1000, 0, SIZE_MAX};
    uint64_t expected = raw_train_expected(&how), hash;
    for (size_t c = 0; c < 5; c++)
        for (size_t i = 0; i < N_WORLDS; i++) {
            how.cap = caps[c];
            assert_brg_ok(raw_train_sim(worlds[i], i + 7 * c, &how, &hash));
            if (hash != expected)
                print_error("%d ranks, %u leaves, cap %zu\n", worlds[i],
                            how.n_leaves, caps[c]);
            assert_int_equal(hash, expected);
        }
}

static void test_raw_leaves__bits_of_the_definition_in_every_world(void **state)
{
    (void)state;
    static const uint32_t leaves[] = {8, 13, 24};
    for (size_t i = 0; i < 3; i++)
        for (int way = 0; way < 3; way++)
            check_worlds((raw_train){.n_steps = 5,
                                     .n_leaves = leaves[i],
                                     .sum = way == 1,
                                     .in_slots = way == 2});
    check_worlds((raw_train){.n_steps = 100, .n_leaves = 8});
}

static void test_raw_leaves__may_be_marked_by_any_thread(void **state)
{
    (void)state;
    raw_train how = {.n_steps = 4, .n_leaves = 8, .has_threads = true};
    check_worlds(how);
    how.in_slots = true;
    check_worlds(how);
}

/* That other leaves, or another order, would be seen. */
static void test_raw_leaves__other_leaves_have_other_bits(void **state)
{
    (void)state;
    uint64_t eight, nine;
    raw_train how = {.n_steps = 5, .n_leaves = 8};
    assert_brg_ok(raw_train_sim(2, 0, &how, &eight));
    how.n_leaves = 9;
    assert_brg_ok(raw_train_sim(2, 0, &how, &nine));
    assert_int_not_equal(eight, nine);
}

typedef struct job {
    raw_train how;
    brg_reducer_options options;
    brg_status (*body)(raw_trainer *t, const struct job *job);
    int which;
} job;

static brg_status run_job(brg_pg *pg, void *user)
{
    const job *j = user;
    raw_trainer t;
    brg_status status = raw_trainer_init(&t, pg, &j->how, &j->options);
    if (status == BRG_OK)
        status = j->body(&t, j);
    raw_trainer_deinit(&t);
    return status;
}

static void run_jobs(job j)
{
    if (j.how.n_leaves == 0)
        j.how = (raw_train){.n_leaves = 12, .cap = 200};
    if (j.options.struct_size == 0)
        j.options = (brg_reducer_options)BRG_REDUCER_OPTIONS_INIT;
    for (int n = 1; n <= 4; n++)
        assert_brg_ok(brg_sim_run(n, NULL, run_job, &j));
}

static brg_status steady_body(raw_trainer *t, const job *j)
{
    (void)j;
    for (int step = 0; step < 3; step++)
        BRG_TRY(raw_trainer_step(t, step));
    brg_pg_stats before, after;
    brg_reducer_stats stats;
    uint64_t n_mallocs = ranks_n_mallocs();
    brg_pg_get_stats(t->pg, &before);
    for (int step = 3; step < 8; step++)
        BRG_TRY(raw_trainer_step(t, step));
    n_mallocs = ranks_n_mallocs() - n_mallocs;
    brg_pg_get_stats(t->pg, &after);
    brg_reducer_get_stats(t->reducer, &stats);
    RANK_CHECK(after.n_collectives - before.n_collectives ==
                   5 * brg_reducer_n_buckets(t->reducer),
               "%d collectives in 5 steps of %zu buckets",
               (int)(after.n_collectives - before.n_collectives),
               brg_reducer_n_buckets(t->reducer));
    RANK_CHECK(stats.n_steps == 8, "%d steps", (int)stats.n_steps);
    bool is_alone = strcmp(brg_pg_backend_name(t->pg), "self") == 0;
    RANK_CHECK(!is_alone || n_mallocs == 0, "malloc was called %d times",
               (int)n_mallocs);
    return BRG_OK;
}

static void
test_raw_leaves__a_bucket_is_one_collective_and_no_memory(void **state)
{
    (void)state;
    brg_pg *pg;
    job j = {.how = {.n_leaves = 12, .cap = 200},
             .options = BRG_REDUCER_OPTIONS_INIT,
             .body = steady_body};
    run_jobs(j);
    assert_brg_ok(brg_pg_create_self(&pg));
    assert_brg_ok(run_job(pg, &j));
    brg_pg_destroy(pg);
}

/* ---- Results bucket by bucket ------------------------------------------------------ */

static brg_status wait_bucket_body(raw_trainer *t, const job *j)
{
    bool is_last;
    (void)j;
    do {
        uint32_t leaf = 0;
        is_last = brg_reducer_next_leaf(t->reducer, &leaf);
        BRG_TRY(raw_trainer_leaf(t, leaf, 0));
        if (is_last)
            break;
        RANK_FAILS(brg_reducer_wait_bucket(t->reducer, 0), BRG_ERR_STATE,
                   "is not the last one");
        BRG_TRY(brg_reducer_end_leaf(t->reducer));
    } while (!is_last);
    for (size_t k = 0; k < brg_reducer_n_buckets(t->reducer); k++)
        BRG_TRY(brg_reducer_wait_bucket(t->reducer, k));
    double early[RAW_N];
    for (size_t i = 0; i < RAW_N; i++)
        early[i] = ranks_load(raw_trainer_grad(t, i), 0, raw_dtypes[i]);
    BRG_TRY(brg_reducer_wait(t->reducer));
    for (size_t i = 0; i < RAW_N; i++)
        RANK_CHECK(ranks_load(raw_trainer_grad(t, i), 0, raw_dtypes[i]) ==
                       early[i],
                   "gradient %zu changed at the end of the step", i);
    return BRG_OK;
}

static void test_raw_leaves__buckets_come_in_the_last_leaf(void **state)
{
    (void)state;
    run_jobs((job){.body = wait_bucket_body});
}

/* ---- Gradients left out ---------------------------------------------------------------- */

/* A step in which parameter 3 is marked in leaf `which` alone; -1: in none. */
static brg_status one_leaf(raw_trainer *t, int which)
{
    bool is_last;
    do {
        uint32_t leaf = 0;
        is_last = brg_reducer_next_leaf(t->reducer, &leaf);
        for (size_t i = 0; i < RAW_N; i++)
            if (i != 3 || (int)leaf == which)
                BRG_TRY(raw_trainer_mark(t, leaf, 0, i));
        if (!is_last)
            BRG_TRY(brg_reducer_end_leaf(t->reducer));
    } while (!is_last);
    return brg_reducer_wait(t->reducer);
}

static brg_status check_one_leaf(const raw_trainer *t, uint32_t which)
{
    uint16_t expected, grad;
    for (size_t k = 0; k < raw_counts[3]; k++) {
        double leaves[LEAF_ORACLE_MAX] = {0};
        leaves[which] = raw_train_gradient(t, which, 0, 3, k);
        ranks_store(&expected, 0, raw_dtypes[3],
                    leaf_oracle(leaves, t->how->n_leaves, raw_dtypes[3], true));
        memcpy(&grad, (char *)raw_trainer_grad(t, 3) + 2 * k, 2);
        RANK_CHECK(grad == expected, "element %zu is %x, expected %x", k, grad,
                   expected);
    }
    RANK_CHECK(brg_reducer_n_used(t->reducer, 3) == 1, "%zu ranks used it",
               brg_reducer_n_used(t->reducer, 3));
    return BRG_OK;
}

static brg_status unused_body(raw_trainer *t, const job *j)
{
    if (j->which >= 0) {
        BRG_TRY(one_leaf(t, j->which));
        return check_one_leaf(t, (uint32_t)j->which);
    }
    if (!j->options.allow_unused) {
        RANK_FAILS(one_leaf(t, -1), BRG_ERR_STATE, "fc2.bias");
        return raw_trainer_step(t, 1);
    }
    memset(t->memory[3], 0x5A, sizeof t->memory[3]);
    BRG_TRY(one_leaf(t, -1));
    const unsigned char *kept = (const unsigned char *)t->memory[3];
    for (size_t k = 0; k < sizeof t->memory[3]; k++)
        RANK_CHECK(kept[k] == 0x5A, "byte %zu was written", k);
    return raw_trainer_step(t, 1);
}

static void test_raw_leaves__a_gradient_may_be_left_out_of_leaves(void **state)
{
    (void)state;
    job j = {.body = unused_body, .options = BRG_REDUCER_OPTIONS_INIT};
    j.which = -1;
    run_jobs(j);
    j.options.allow_unused = true;
    for (; j.which < 12; j.which++)
        run_jobs(j);
}

/* ---- Failures ---------------------------------------------------------------------------- */

/* The last rank gives up in its leaf `which`, having marked some of it. */
static brg_status cancel_body(raw_trainer *t, const job *j)
{
    int n = brg_pg_world_size(t->pg);
    bool gives_up = brg_pg_rank(t->pg) == n - 1, is_last;
    char who[40];
    snprintf(who, sizeof who, "rank %d", n - 1);
    BRG_TRY(raw_trainer_step(t, 0));
    for (int i = 0;; i++) {
        uint32_t leaf = 0;
        is_last = brg_reducer_next_leaf(t->reducer, &leaf);
        if (gives_up && i == j->which) {
            BRG_TRY(raw_trainer_mark(t, leaf, 1, 1));
            BRG_TRY(raw_trainer_mark(t, leaf, 1, 3));
            BRG_TRY(brg_reducer_cancel(t->reducer));
            break;
        }
        BRG_TRY(raw_trainer_leaf(t, leaf, 1));
        if (is_last) {
            RANK_FAILS(brg_reducer_wait(t->reducer), BRG_ERR_PEER, who);
            break;
        }
        BRG_TRY(brg_reducer_end_leaf(t->reducer));
    }
    uint32_t leaf;
    brg_leaf_run run;
    BRG_TRY(brg_leaf_run_of(&run, t->how->n_leaves, brg_pg_rank(t->pg), n));
    (void)brg_reducer_next_leaf(t->reducer, &leaf);
    RANK_CHECK(leaf == run.first, "leaf %u comes next", leaf);
    BRG_TRY(raw_trainer_step(t, 2));
    uint64_t hash = raw_trainer_hash(t);
    return ranks_same_bits(t->pg, &hash, sizeof hash);
}

static void test_raw_leaves__a_rank_may_give_up_in_any_leaf(void **state)
{
    (void)state;
    job j = {.body = cancel_body};
    for (j.which = 0; j.which < 3; j.which++)
        run_jobs(j);
}

static brg_status misuse_body(raw_trainer *t, const job *j)
{
    bool is_over;
    uint32_t leaf;
    (void)j;
    RANK_FAILS(brg_reducer_join(t->reducer, &is_over), BRG_ERR_UNSUPPORTED,
               "every rank has leaves in every step");
    for (bool is_last = false; !is_last;) {
        is_last = brg_reducer_next_leaf(t->reducer, &leaf);
        BRG_TRY(raw_trainer_leaf(t, leaf, 0));
        RANK_FAILS(raw_trainer_mark(t, leaf, 0, 2), BRG_ERR_STATE,
                   is_last ? "was not waited for" : "was not ended");
        RANK_FAILS(brg_reducer_set_grad(t->reducer, 0, t->weights),
                   BRG_ERR_STATE, "while a step is under way");
        if (is_last)
            RANK_FAILS(brg_reducer_end_leaf(t->reducer), BRG_ERR_STATE,
                       "end the step with brg_reducer_wait");
        else {
            RANK_FAILS(brg_reducer_wait(t->reducer), BRG_ERR_STATE,
                       "end it with brg_reducer_end_leaf");
            BRG_TRY(brg_reducer_end_leaf(t->reducer));
        }
    }
    BRG_TRY(brg_reducer_wait(t->reducer));
    return raw_trainer_step(t, 1);
}

static void test_raw_leaves__misuse_is_an_error(void **state)
{
    (void)state;
    run_jobs((job){.body = misuse_body});
    brg_pg *pg;
    float grad[3] = {1, 2, 3};
    uint32_t leaf = 7;
    brg_reducer *r;
    brg_reducer_param param = {.grad = grad, .count = 3, BRG_DTYPE_F32};
    assert_brg_ok(brg_pg_create_self(&pg));
    assert_brg_ok(brg_reducer_create(&r, pg, &param, 1, NULL));
    assert_false(brg_reducer_next_leaf(r, &leaf));
    assert_int_equal(leaf, 7);
    assert_brg_fails_with(brg_reducer_end_leaf(r), BRG_ERR_STATE,
                          "without BRG_REDUCTION_REPRODUCIBLE");
    brg_reducer_destroy(r);
    brg_pg_destroy(pg);
}

/* ---- Options ---------------------------------------------------------------------------- */

static void refuse(const brg_reducer_options *options, const char *why)
{
    brg_pg *pg;
    brg_reducer *r;
    float grad[3];
    brg_reducer_param param = {.grad = grad, .count = 3, BRG_DTYPE_F32};
    assert_brg_ok(brg_pg_create_self(&pg));
    assert_brg_fails_with(brg_reducer_create(&r, pg, &param, 1, options),
                          BRG_ERR_ARG, why);
    brg_pg_destroy(pg);
}

static brg_status disagree_rank(brg_pg *pg, void *user)
{
    raw_trainer t;
    raw_train how = *(const raw_train *)user;
    how.n_leaves += brg_pg_rank(pg) == 1;
    brg_status status = ranks_expect(
        raw_trainer_init(&t, pg, &how, NULL), BRG_ERR_MISMATCH,
        "rank 0 has 8 leaves, rank 1 has 9 leaves", "init", __LINE__);
    raw_trainer_deinit(&t);
    return status;
}

static brg_status few_rank(brg_pg *pg, void *user)
{
    raw_trainer t;
    brg_status status =
        ranks_expect(raw_trainer_init(&t, pg, user, NULL), BRG_ERR_ARG,
                     "2 leaves, expected 3 (the world size)", "init", __LINE__);
    raw_trainer_deinit(&t);
    return status;
}

static void test_raw_leaves__options_are_checked(void **state)
{
    (void)state;
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    options.n_leaves = 4;
    refuse(&options, "expected 0 without BRG_REDUCTION_REPRODUCIBLE");
    options.reduction = (brg_reduction_kind)2;
    refuse(&options, "is none of BRG_REDUCTION_DEFAULT and");
    options.reduction = BRG_REDUCTION_REPRODUCIBLE;
    options.n_leaves = 0;
    refuse(&options, "0 leaves, expected 1");
    options.n_leaves = 4;
    options.buckets = BRG_BUCKETS_MEASURED;
    refuse(&options, "do not go with BRG_REDUCTION_REPRODUCIBLE");
    options.buckets = BRG_BUCKETS_BY_SIZE;
    assert_brg_ok(
        brg_comm_hook_create_cast(&options.hook, BRG_DTYPE_BF16, false));
    refuse(&options, "do not go with BRG_REDUCTION_REPRODUCIBLE");
    brg_comm_hook_destroy(options.hook);
    raw_train how = {.n_leaves = 8};
    assert_brg_ok(brg_sim_run(3, NULL, disagree_rank, &how));
    how.n_leaves = 2;
    assert_brg_ok(brg_sim_run(3, NULL, few_rank, &how));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(
            test_raw_leaves__bits_of_the_definition_in_every_world),
        cmocka_unit_test(test_raw_leaves__may_be_marked_by_any_thread),
        cmocka_unit_test(test_raw_leaves__other_leaves_have_other_bits),
        cmocka_unit_test(
            test_raw_leaves__a_bucket_is_one_collective_and_no_memory),
        cmocka_unit_test(test_raw_leaves__buckets_come_in_the_last_leaf),
        cmocka_unit_test(test_raw_leaves__a_gradient_may_be_left_out_of_leaves),
        cmocka_unit_test(test_raw_leaves__a_rank_may_give_up_in_any_leaf),
        cmocka_unit_test(test_raw_leaves__misuse_is_an_error),
        cmocka_unit_test(test_raw_leaves__options_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
