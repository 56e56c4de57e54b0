/* SPDX-License-Identifier: Apache-2.0
 * The reproducible reduction: values, one result for every world, steps that
 * fail. */
#include <brigade/comm_hook.h>

#include "tests/support/brg_test.h"
#include "tests/support/ddp_model.h"
#include "tests/support/leaf_train.h"

typedef struct leaf_case {
    uint32_t n_leaves;
    size_t cap;
    bool sum;
    int which;
} leaf_case;

static brg_status make(ddp_model *m, brg_pg *pg, const leaf_case *c,
                       bool allow_unused)
{
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    options.first_bucket_bytes = options.bucket_bytes = c->cap;
    options.sum = c->sum;
    options.allow_unused = allow_unused;
    options.reduction = BRG_REDUCTION_REPRODUCIBLE;
    options.n_leaves = c->n_leaves;
    BRG_TRY(ddp_model_init(m, pg));
    return ddp_model_wrap(m, &options);
}

static void run_worlds(const leaf_case *c, brg_sim_rank_fn fn)
{
    for (int i = 0; i < N_RANKS_WORLDS; i++) {
        leaf_case own = *c;
        if (own.n_leaves < (uint32_t)ranks_worlds[i])
            own.n_leaves = (uint32_t)ranks_worlds[i];
        assert_brg_ok(brg_sim_run(ranks_worlds[i], NULL, fn, &own));
    }
}

/* Leaf l plays the part of rank l of a world of n_leaves; parameters of
 * masks[l] are used. */
static brg_status step_leaves(ddp_model *m, uint32_t n_leaves, int step,
                              const unsigned *masks)
{
    int rank = brg_pg_rank(m->pg);
    bool is_last = false;
    uint32_t leaf = 0;
    m->world_size = (int)n_leaves;
    while (!is_last) {
        is_last = brg_ddp_next_leaf(m->ddp, &leaf);
        m->rank = (int)leaf;
        BRG_TRY(
            ddp_model_backward(m, step, masks ? masks[leaf] : DDP_MODEL_ALL));
        for (size_t i = 0; i < DDP_MODEL_N && !is_last; i++)
            RANK_CHECK(!brg_tensor_grad(m->params[i]),
                       "rank %d: gradient %zu stays after leaf %d", rank, i,
                       (int)leaf);
    }
    m->rank = rank;
    return BRG_OK;
}

/* ---- Values ------------------------------------------------------------------------ */

static brg_status average_rank(brg_pg *pg, void *user)
{
    const leaf_case *c = user;
    ddp_model m;
    brg_status status = make(&m, pg, c, false);
    for (int step = 0; step < 4 && status == BRG_OK; step++) {
        brg_pg_stats before, after;
        brg_pg_get_stats(pg, &before);
        size_t n = brg_reducer_n_buckets(brg_ddp_reducer(m.ddp));
        status = step_leaves(&m, c->n_leaves, step, NULL);
        brg_pg_get_stats(pg, &after);
        if (status == BRG_OK && step > 0 &&
            after.n_collectives - before.n_collectives != n)
            status = BRG_ERR_INTERNAL; /* none but one a bucket */
        if (status == BRG_OK)
            status = ddp_model_check(&m, step, step + 1);
        if (status == BRG_OK)
            status = ddp_model_zero(&m, false);
    }
    ddp_model_deinit(&m);
    return status;
}

static void test_leaves__average_of_every_dtype_and_layout(void **state)
{
    (void)state;
    static const uint32_t leaves[] = {8, 13, 24};
    static const size_t caps[] = {1, 300, 0};
    for (size_t i = 0; i < 3; i++)
        for (size_t k = 0; k < 3; k++)
            run_worlds(&(leaf_case){.n_leaves = leaves[i], .cap = caps[k]},
                       average_rank);
}

static brg_status unused_rank(brg_pg *pg, void *user)
{
    const leaf_case *c = user;
    ddp_model m;
    unsigned masks[32], users[DDP_MODEL_N] = {0};
    brg_status status = make(&m, pg, c, true);
    for (uint32_t leaf = 0; leaf < c->n_leaves; leaf++) {
        masks[leaf] = (leaf % 3 ? 1u : 0u) | (leaf == 2 ? 2u : 0u) | 0x78u;
        for (size_t i = 0; i < DDP_MODEL_N; i++)
            users[i] |= (masks[leaf] >> i & 1u) << leaf;
    }
    for (int step = 0; step < 3 && status == BRG_OK; step++) {
        status = step_leaves(&m, c->n_leaves, step, masks);
        for (size_t i = 0; i < DDP_MODEL_N && status == BRG_OK; i++) {
            if (users[i])
                status = ddp_model_check_param(&m, i, step, step + 1, users[i]);
            else if (brg_tensor_grad(m.params[i]))
                status = BRG_ERR_INTERNAL;
        }
        if (status == BRG_OK)
            status = ddp_model_zero(&m, false);
    }
    ddp_model_deinit(&m);
    return status;
}

static void test_leaves__may_leave_parameters_out(void **state)
{
    (void)state;
    run_worlds(&(leaf_case){.n_leaves = 8}, unused_rank);
    run_worlds(&(leaf_case){.n_leaves = 11, .cap = 1}, unused_rank);
}

/* ---- One result ---------------------------------------------------------------------- */

static const int worlds[] = {1, 2, 3, 4, 6, 8};
#define N_WORLDS 6

/* The thread sanitizer looks at the order of turns, not at the hundredth step. */
#if defined(__SANITIZE_THREAD__)
#define N_STEPS 10
#define N_LARGE_STEPS 1
#else
#define N_STEPS 100
#define N_LARGE_STEPS 4
#endif

static void check_one_hash(leaf_train how, const size_t *caps, size_t n_caps,
                           uint64_t expected)
{
    for (size_t c = 0; c < n_caps; c++)
        for (size_t i = 0; i < N_WORLDS; i++) {
            uint64_t hash;
            how.cap = caps[c];
            assert_brg_ok(leaf_train_sim(worlds[i], i + 7 * c, &how, &hash));
            if (expected == 0)
                expected = hash;
            if (hash != expected)
                print_error("%d ranks, cap %zu\n", worlds[i], caps[c]);
            assert_int_equal(hash, expected);
        }
}

static void test_leaves__one_hash_for_every_world_and_cap(void **state)
{
    (void)state;
    static const size_t small_caps[] = {1, 4096, 0, SIZE_MAX};
    leaf_train how = {
        .n_steps = N_STEPS, .batch = 24, .n_leaves = 8, .n_hidden = 24};
    check_one_hash(how, small_caps, 4, 0);
    how.n_steps = 12;
    how.n_leaves = 13; /* more leaves than some have samples for twice */
    check_one_hash(how, small_caps, 4, 0);
    how.n_leaves = 24;
    how.adamw = true;
    check_one_hash(how, small_caps, 4, 0);
}

static void test_leaves__alone_without_a_world(void **state)
{
    (void)state;
    uint64_t hash, expected;
    brg_pg *pg;
    leaf_train how = {
        .n_steps = 20, .batch = 24, .n_leaves = 8, .n_hidden = 24, .cap = 4096};
    assert_brg_ok(leaf_train_sim(3, 0, &how, &expected));
    assert_brg_ok(brg_pg_create_self(&pg));
    assert_brg_ok(leaf_train_run(pg, &how, &hash));
    assert_int_equal(hash, expected);
    brg_pg_destroy(pg);
}

/* The caps of real models: 1.1 MB of gradients. */
static void test_leaves__one_hash_for_large_buckets(void **state)
{
    (void)state;
    static const size_t caps[] = {(size_t)64 << 10, (size_t)1 << 20,
                                  (size_t)25 << 20, SIZE_MAX};
    leaf_train how = {
        .n_steps = N_LARGE_STEPS, .batch = 16, .n_leaves = 8, .n_hidden = 496};
    check_one_hash(how, caps, 4, 0);
}

static void test_leaves__compiled_has_the_hash_of_eager(void **state)
{
    (void)state;
    static const size_t caps[] = {4096};
    uint64_t eager;
    leaf_train how = {
        .n_steps = 8, .batch = 24, .n_leaves = 8, .n_hidden = 24, .cap = 4096};
    assert_brg_ok(leaf_train_sim(1, 0, &how, &eager));
    how.compiled = true;
    check_one_hash(how, caps, 1, eager);
}

/* That the hash can differ at all. */
static void test_leaves__the_default_has_another_hash_per_world(void **state)
{
    (void)state;
    uint64_t two, three;
    leaf_train how = {
        .n_steps = 10, .batch = 24, .n_hidden = 24, .plain = true};
    assert_brg_ok(leaf_train_sim(2, 0, &how, &two));
    assert_brg_ok(leaf_train_sim(3, 0, &how, &three));
    assert_int_not_equal(two, three);
}

/* ---- Failures --------------------------------------------------------------------------- */

static brg_status fail_if_told(brg_tensor *leaf, void *user)
{
    (void)leaf;
    return *(const bool *)user
               ? brg_error_set(BRG_ERR_NAN, "here", 1, "no luck")
               : BRG_OK;
}

/* The last rank fails in its leaf `which`; all hear of it, and go on. */
static brg_status fail_rank(brg_pg *pg, void *user)
{
    const leaf_case *c = user;
    ddp_model m;
    brg_leaf_run run = {0};
    brg_hook *hook = NULL;
    bool must_fail = false;
    int n = brg_pg_world_size(pg), rank = brg_pg_rank(pg);
    brg_status status = make(&m, pg, c, false);
    if (status == BRG_OK)
        status = brg_tensor_add_post_accumulate_hook(
            &hook, m.params[3], fail_if_told, &must_fail, NULL);
    if (status == BRG_OK)
        status = brg_leaf_run_of(&run, c->n_leaves, rank, n);
    for (uint32_t i = 0; i < run.n && status == BRG_OK; i++) {
        must_fail = rank == n - 1 && (int)i == c->which;
        status = ddp_model_backward(&m, 0, DDP_MODEL_ALL);
        if (must_fail) {
            status = ranks_expect(status, BRG_ERR_NAN, "no luck", "leaf", 1);
            break; /* its step is over */
        }
        if (i + 1 == run.n)
            status = ranks_expect(status, BRG_ERR_PEER,
                                  "backward failed on rank", "leaf", 2);
    }
    must_fail = false;
    if (status == BRG_OK)
        status = ddp_model_zero(&m, false);
    if (status == BRG_OK)
        status = step_leaves(&m, c->n_leaves, 1, NULL);
    if (status == BRG_OK)
        status = ddp_model_check(&m, 1, 2);
    brg_hook_remove(hook);
    ddp_model_deinit(&m);
    return status;
}

static void test_leaves__a_failing_leaf_ends_the_step_everywhere(void **state)
{
    (void)state;
    for (int which = 0; which < 3; which++)
        for (int n = 1; n <= 4; n++) {
            leaf_case c = {.n_leaves = 12, .cap = 200, .which = which};
            assert_brg_ok(brg_sim_run(n, NULL, fail_rank, &c));
        }
}

static brg_status misuse_rank(brg_pg *pg, void *user)
{
    const leaf_case *c = user;
    ddp_model m;
    brg_status status = make(&m, pg, c, false);
    if (status == BRG_OK)
        status = step_leaves(&m, c->n_leaves, 0, NULL);
    if (c->which == 0 && status == BRG_OK) {
        status = ddp_model_zero(&m, true);
        if (status == BRG_OK)
            status = ranks_expect(ddp_model_backward(&m, 1, DDP_MODEL_ALL),
                                  BRG_ERR_STATE, ".grad must be NULL then",
                                  "a gradient is left", 1);
    } else if (status == BRG_OK) {
        (void)brg_ddp_set_sync(m.ddp, false);
        status = ddp_model_zero(&m, false);
        if (status == BRG_OK)
            status = ranks_expect(ddp_model_backward(&m, 1, DDP_MODEL_ALL),
                                  BRG_ERR_STATE, "brg_ddp_set_sync is off",
                                  "no sync", 2);
        (void)brg_ddp_set_sync(m.ddp, true);
    }
    if (status == BRG_OK)
        status = ddp_model_zero(&m, false);
    if (status == BRG_OK)
        status = step_leaves(&m, c->n_leaves, 2, NULL);
    if (status == BRG_OK)
        status = ddp_model_check(&m, 2, 3);
    ddp_model_deinit(&m);
    return status;
}

static void test_leaves__misuse_is_an_error(void **state)
{
    (void)state;
    for (int which = 0; which < 2; which++)
        run_worlds(&(leaf_case){.n_leaves = 8, .which = which}, misuse_rank);
}

static brg_status disagree_rank(brg_pg *pg, void *user)
{
    leaf_case c = *(const leaf_case *)user;
    ddp_model m;
    c.n_leaves += brg_pg_rank(pg) == 1;
    brg_status status = ranks_expect(make(&m, pg, &c, false), BRG_ERR_MISMATCH,
                                     "rank 0 has 8 leaves, rank 1 has 9 leaves",
                                     "make", __LINE__);
    ddp_model_deinit(&m);
    return status;
}

static brg_status few_rank(brg_pg *pg, void *user)
{
    ddp_model m;
    brg_status status =
        ranks_expect(make(&m, pg, user, false), BRG_ERR_ARG,
                     "2 leaves, expected 3 (the world size)", "make", __LINE__);
    ddp_model_deinit(&m);
    return status;
}

static brg_status hook_rank(brg_pg *pg, void *user)
{
    ddp_model m;
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    options.reduction = BRG_REDUCTION_REPRODUCIBLE;
    options.n_leaves = 8;
    BRG_TRY(brg_comm_hook_create_cast(&options.hook, BRG_DTYPE_BF16, false));
    brg_status status = ddp_model_init(&m, pg);
    if (status == BRG_OK)
        status = ranks_expect(ddp_model_wrap(&m, &options), BRG_ERR_ARG,
                              "communication hook", "make", __LINE__);
    ddp_model_deinit(&m);
    brg_comm_hook_destroy(options.hook);
    (void)user;
    return status;
}

static void test_leaves__options_are_checked(void **state)
{
    (void)state;
    assert_brg_ok(brg_sim_run(2, NULL, hook_rank, NULL));
    leaf_case c = {.n_leaves = 8};
    assert_brg_ok(brg_sim_run(3, NULL, disagree_rank, &c));
    c.n_leaves = 2;
    assert_brg_ok(brg_sim_run(3, NULL, few_rank, &c));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_leaves__average_of_every_dtype_and_layout),
        cmocka_unit_test(test_leaves__may_leave_parameters_out),
        cmocka_unit_test(test_leaves__one_hash_for_every_world_and_cap),
        cmocka_unit_test(test_leaves__alone_without_a_world),
        cmocka_unit_test(test_leaves__one_hash_for_large_buckets),
        cmocka_unit_test(test_leaves__compiled_has_the_hash_of_eager),
        cmocka_unit_test(test_leaves__the_default_has_another_hash_per_world),
        cmocka_unit_test(test_leaves__a_failing_leaf_ends_the_step_everywhere),
        cmocka_unit_test(test_leaves__misuse_is_an_error),
        cmocka_unit_test(test_leaves__options_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
