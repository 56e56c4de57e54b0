/* SPDX-License-Identifier: Apache-2.0
 * What goes wrong with sharded optimizer state: optimizers and states that do
 * not fit, calls at the wrong time, memory that is refused. No rank waits for
 * ever, and nothing is lost. */
#include <brigade/sim.h>

#include "tests/reducer/shard_checks.h"
#include "tests/support/fail_alloc.h"

#define N_RANKS 3

/* ---- State that does not fit ------------------------------------------------------ */

typedef brg_status (*body_fn)(shard_run *r, bool is_root);

static brg_status with_run(brg_pg *pg, void *body)
{
    shard_run r = {.is_sharded = true};
    brg_status status = shard_run_init(&r, pg);
    if (status == BRG_OK)
        status = shard_step(&r, 0, 0, NULL);
    if (status == BRG_OK)
        status = brg_ddp_wait_params(r.ddp, NULL);
    if (status == BRG_OK)
        status = (*(body_fn *)body)(&r, brg_pg_rank(pg) == 0);
    if (status == BRG_OK) /* all is well */
        status = shard_step(&r, 1, 0, NULL);
    shard_run_deinit(&r);
    return status;
}

static void on_ranks(body_fn body)
{
    for (int n = 2; n <= N_RANKS; n++)
        assert_brg_ok(brg_sim_run(n, NULL, with_run, &body));
}

/* Both ways, with an optimizer of this rule on rank 0. */
static brg_status expect_both(shard_run *r, shard_rule rule, brg_optim *part,
                              brg_status code, const char *text)
{
    brg_optim *whole = NULL;
    shard_run like = *r;
    like.rule = rule;
    BRG_TRY(shard_make_optim(&like, &whole, NULL));
    brg_status status = ranks_expect(brg_ddp_gather_optim(r->ddp, whole, part),
                                     code, text, "gather", __LINE__);
    if (status == BRG_OK)
        status = ranks_expect(brg_ddp_scatter_optim(r->ddp, part, whole), code,
                              text, "scatter", __LINE__);
    brg_optim_destroy(whole);
    return status;
}

static brg_status another_kind_of_whole(shard_run *r, bool is_root)
{
    return expect_both(
        r, SHARD_MOMENTUM, r->optim, is_root ? BRG_ERR_ARG : BRG_ERR_PEER,
        is_root ? "the whole optimizer is sgd" : "failed on rank 0");
}

/* The last rank has other state than the others. */
static brg_status parts_differ(shard_run *r, bool is_root)
{
    brg_optim *part = NULL;
    brg_optim_range ranges[SHARD_N];
    shard_run other = *r;
    const bool is_odd = brg_pg_rank(r->pg) == brg_pg_world_size(r->pg) - 1;
    (void)is_root;
    other.rule = is_odd ? SHARD_MOMENTUM : SHARD_NESTEROV;
    BRG_TRY(brg_ddp_shard(r->ddp, r->params, ranges, SHARD_N));
    BRG_TRY(shard_make_optim(&other, &part, ranges));
    brg_status status = BRG_OK;
    if (is_odd) { /* adamw */
        brg_optim_destroy(part);
        part = NULL;
        status = shard_make_optim(r, &part, ranges);
    }
    if (status == BRG_OK)
        status = expect_both(r, SHARD_NESTEROV, part, BRG_ERR_MISMATCH,
                             "ranks disagree");
    brg_optim_destroy(part);
    return status;
}

/* As many elements, but not those of this rank. */
static brg_status another_place(shard_run *r, bool is_root)
{
    brg_optim *part = NULL;
    brg_optim_range ranges[SHARD_N];
    (void)is_root;
    BRG_TRY(brg_ddp_shard(r->ddp, r->params, ranges, SHARD_N));
    for (size_t i = 0; i < SHARD_N; i++) {
        const size_t numel =
            (size_t)brg_tensor_numel(brg_params_at(r->params, i)->tensor);
        ranges[i].first = ranges[i].first ? 0 : numel - ranges[i].n;
    }
    BRG_TRY(shard_make_optim(r, &part, ranges));
    brg_status status =
        expect_both(r, SHARD_ADAMW, part, BRG_ERR_ARG, "this rank owns");
    brg_optim_destroy(part);
    return status;
}

/* Without ranges, each rank has all. */
static brg_status no_ranges(shard_run *r, bool is_root)
{
    brg_optim *part = NULL;
    (void)is_root;
    BRG_TRY(shard_make_optim(r, &part, NULL));
    brg_status status =
        expect_both(r, SHARD_ADAMW, part, BRG_ERR_ARG, "this rank owns");
    brg_optim_destroy(part);
    return status;
}

/* An optimizer over other parameters of the same names and sizes but one. */
static brg_status another_model(shard_run *r, bool is_root)
{
    brg_params *params;
    brg_optim *whole = NULL;
    brg_adamw_options options = BRG_ADAMW_OPTIONS_INIT;
    BRG_TRY(brg_params_create(&params));
    brg_status status = BRG_OK;
    for (size_t i = 0; i < SHARD_N && status == BRG_OK; i++) {
        const shard_row *row = &shard_rows[i];
        const int64_t shape[2] = {row->rows + (i == 3), row->columns};
        status =
            brg_params_add(params, row->name, brg_zeros(row->dtype, 2, shape),
                           BRG_PARAM_TRAINED);
    }
    if (status == BRG_OK)
        status = brg_optim_create_adamw(&whole, params, &options);
    if (status == BRG_OK)
        status = ranks_expect(
            brg_ddp_gather_optim(r->ddp, is_root ? whole : NULL, r->optim),
            is_root ? BRG_ERR_ARG : BRG_ERR_PEER,
            is_root ? "exp_avg/norm" : "failed on rank 0", "gather", __LINE__);
    brg_optim_destroy(whole);
    brg_params_destroy(params);
    return status;
}

static void test_shard_errors__state_that_does_not_fit(void **state)
{
    (void)state;
    on_ranks(another_kind_of_whole);
    on_ranks(parts_differ);
    on_ranks(another_place);
    on_ranks(no_ranges);
    on_ranks(another_model);
}

/* ---- At the wrong time ------------------------------------------------------------ */

/* Parameters on their way are nobody's to compare. */
static brg_status on_their_way(shard_run *r, bool is_root)
{
    (void)is_root;
    BRG_TRY(brg_ddp_gather_params(r->ddp));
    RANK_FAILS(brg_ddp_compare(r->ddp), BRG_ERR_STATE,
               "brg_ddp_compare while parameters are being gathered");
    BRG_TRY(brg_ddp_wait_params(r->ddp, NULL));
    return brg_ddp_compare(r->ddp);
}

static void test_shard_errors__parameters_on_their_way(void **state)
{
    (void)state;
    on_ranks(on_their_way);
}

static brg_status without_shards(brg_pg *pg, void *user)
{
    shard_run r = {0};
    brg_optim_range ranges[SHARD_N];
    (void)user;
    brg_status status = shard_run_init(&r, pg);
    if (status == BRG_OK)
        status = ranks_expect(brg_ddp_shard(r.ddp, r.params, ranges, SHARD_N),
                              BRG_ERR_ARG, "made without options.shard",
                              "brg_ddp_shard", __LINE__);
    if (status == BRG_OK)
        status = ranks_expect(brg_ddp_gather_params(r.ddp), BRG_ERR_ARG,
                              "made without options.shard",
                              "brg_ddp_gather_params", __LINE__);
    if (status == BRG_OK)
        status =
            ranks_expect(brg_ddp_wait_params(NULL, NULL), BRG_ERR_ARG,
                         "the ddp is NULL", "brg_ddp_wait_params", __LINE__);
    if (status == BRG_OK)
        status = ranks_expect(brg_ddp_gather_optim(r.ddp, r.optim, r.optim),
                              BRG_ERR_ARG, "made without options.shard",
                              "brg_ddp_gather_optim", __LINE__);
    shard_run_deinit(&r);
    return status;
}

static void test_shard_errors__a_ddp_without_shards(void **state)
{
    (void)state;
    assert_brg_ok(brg_sim_run(2, NULL, without_shards, NULL));
}

/* ---- Freezing ----------------------------------------------------------------------- */

/* One parameter is frozen for two steps: it stays, and what is beside it goes
 * on as with an optimizer that has all. */
static brg_status freeze_both(shard_run *a, shard_run *b)
{
    brg_tensor *p = brg_params_at(a->params, 1)->tensor;
    brg_tensor *q = brg_params_at(b->params, 1)->tensor;
    for (int step = 0; step < 6; step++) {
        if (step == 2 || step == 4) {
            BRG_TRY(brg_ddp_wait_params(a->ddp, NULL));
            BRG_TRY(brg_set_requires_grad(p, step == 4));
            BRG_TRY(brg_set_requires_grad(q, step == 4));
        }
        float before = ((const float *)brg_tensor_data(q))[3];
        /* gradients go after each step: none is left of the frozen one */
        BRG_TRY(brg_optim_zero_grad(a->optim, false));
        BRG_TRY(brg_optim_zero_grad(b->optim, false));
        BRG_TRY(shard_step(b, 2 * step, 0, NULL));
        BRG_TRY(shard_step(a, 2 * step, 0, NULL));
        BRG_TRY(shard_compare(a, b, step, 0));
        float after = ((const float *)brg_tensor_data(q))[3];
        /* 2 * step == 4 leaves it out as well */
        const bool stays = step == 2 || step == 3;
        RANK_CHECK((before == after) == stays, "step %d: %g, %g", step,
                   (double)before, (double)after);
    }
    return BRG_OK;
}

static brg_status freeze(brg_pg *pg, void *user)
{
    shard_run a = {.is_sharded = true}, b = {0};
    (void)user;
    brg_status status = shard_run_init(&a, pg);
    if (status == BRG_OK)
        status = shard_run_init(&b, pg);
    if (status == BRG_OK)
        status = freeze_both(&a, &b);
    shard_run_deinit(&b);
    shard_run_deinit(&a);
    return status;
}

static void test_shard_errors__frozen_between_steps(void **state)
{
    (void)state;
    for (int n = 1; n <= 4; n++)
        assert_brg_ok(brg_sim_run(n, NULL, freeze, NULL));
}

/* ---- Going ---------------------------------------------------------------------------- */

/* The ddp goes first: its optimizer still updates this rank's elements. */
static brg_status ddp_first(brg_pg *pg, void *user)
{
    shard_run r = {.is_sharded = true, .rule = SHARD_SGD};
    brg_optim_range ranges[SHARD_N];
    (void)user;
    BRG_TRY(shard_run_init(&r, pg));
    BRG_TRY(brg_ddp_shard(r.ddp, r.params, ranges, SHARD_N));
    BRG_TRY(shard_step(&r, 0, 0, NULL));
    BRG_TRY(brg_ddp_wait_params(r.ddp, NULL));
    brg_ddp_destroy(r.ddp);
    r.ddp = NULL;
    brg_tensor *p = brg_params_at(r.params, 0)->tensor;
    const size_t n = (size_t)brg_tensor_numel(p);
    float before[61 * 13];
    memcpy(before, brg_tensor_data(p), sizeof before);
    BRG_TRY(brg_tensor_set_grad(
        p, brg_ones(BRG_DTYPE_F32, 2, brg_tensor_shape(p))));
    BRG_TRY(brg_optim_step(r.optim));
    for (size_t k = 0; k < n; k++) {
        const bool is_mine =
            k >= ranges[0].first && k < ranges[0].first + ranges[0].n;
        const bool stays = before[k] == ((float *)brg_tensor_data(p))[k];
        RANK_CHECK(stays != is_mine, "element %zu", k);
    }
    shard_run_deinit(&r);
    return BRG_OK;
}

/* Parameters are still on their way; the group goes on with another ddp. */
static brg_status while_gathering(brg_pg *pg, void *user)
{
    (void)user;
    for (int round = 0; round < 3; round++) {
        shard_run r = {.is_sharded = true};
        brg_status status = shard_run_init(&r, pg);
        if (status == BRG_OK)
            status = shard_step(&r, 0, 0, NULL); /* the last call gathers */
        if (round == 1)
            brg_optim_destroy(r.optim);
        if (round == 1)
            r.optim = NULL;
        shard_run_deinit(&r);
        BRG_TRY(status);
    }
    return BRG_OK;
}

/* No memory to move parameters out of the arena: they stay there, which goes
 * with the last of them. */
static brg_status stay_in_the_arena(brg_pg *pg, void *user)
{
    shard_run r = {.is_sharded = true};
    float before[61 * 13];
    (void)user;
    BRG_TRY(shard_run_init(&r, pg));
    BRG_TRY(shard_step(&r, 0, 0, NULL));
    BRG_TRY(brg_ddp_wait_params(r.ddp, NULL));
    brg_tensor *p = brg_params_at(r.params, 0)->tensor;
    memcpy(before, brg_tensor_data(p), sizeof before);
    const void *at = brg_tensor_data(p);
    brg_memory_trim(); /* no block is kept for reuse */
    fail_alloc_arm(0);
    brg_ddp_destroy(r.ddp);
    const int64_t n_refused = fail_alloc_disarm();
    r.ddp = NULL;
    RANK_CHECK(n_refused >= SHARD_N - 2, "%d allocations were refused",
               (int)n_refused);
    RANK_CHECK(brg_tensor_data(p) == at, "it has moved");
    RANK_CHECK(memcmp(before, at, sizeof before) == 0, "it has changed");
    shard_run_deinit(&r);
    return BRG_OK;
}

static brg_status stay_in_world(void *n_ranks)
{
    return brg_sim_run(*(int *)n_ranks, NULL, stay_in_the_arena, NULL);
}

static void test_shard_errors__without_memory_to_move_out(void **state)
{
    (void)state;
    for (int n = 1; n <= 3; n++) {
        brg_memory_trim();
        const int64_t before = fail_alloc_live();
        assert_brg_ok(stay_in_world(&n));
        brg_memory_trim();
        assert_int_equal(fail_alloc_live(), before);
    }
}

static void test_shard_errors__in_any_order_of_going(void **state)
{
    (void)state;
    for (int n = 1; n <= 4; n++) {
        assert_brg_ok(brg_sim_run(n, NULL, ddp_first, NULL));
        assert_brg_ok(brg_sim_run(n, NULL, while_gathering, NULL));
    }
}

/* ---- Out of memory -------------------------------------------------------------------- */

static brg_status life(brg_pg *pg)
{
    shard_run r = {.is_sharded = true};
    brg_optim *whole = NULL;
    brg_status status = shard_run_init(&r, pg);
    for (int step = 0; step < 2 && status == BRG_OK; step++)
        status = shard_step(&r, step, 1e-3, NULL);
    if (status == BRG_OK)
        status = brg_ddp_wait_params(r.ddp, NULL);
    if (status == BRG_OK && brg_pg_rank(pg) == 0)
        status = shard_make_optim(&r, &whole, NULL);
    if (status == BRG_OK)
        status = brg_ddp_gather_optim(r.ddp, whole, r.optim);
    if (status == BRG_OK)
        status = brg_ddp_scatter_optim(r.ddp, r.optim, whole);
    if (status == BRG_OK) /* none is left that could lose its memory */
        status = brg_optim_zero_grad(r.optim, false);
    brg_optim_destroy(whole);
    shard_run_deinit(&r);
    return status;
}

typedef struct world {
    brg_status status[N_RANKS];
} world;

static brg_status live(brg_pg *pg, void *user)
{
    world *w = user;
    brg_status *status = &w->status[brg_pg_rank(pg)];
    *status = life(pg);
    return *status;
}

/* A rank that is refused memory tells the others, which may end first: then
 * their error is that of the run. */
static brg_status live_in_world(void *user)
{
    world *w = user;
    memset(w, 0, sizeof *w);
    brg_status status = brg_sim_run(N_RANKS, NULL, live, w);
    for (int rank = 0; status == BRG_ERR_PEER && rank < N_RANKS; rank++)
        if (w->status[rank] == BRG_ERR_NOMEM)
            return brg_error_set(BRG_ERR_NOMEM, __FILE__, __LINE__,
                                 "rank %d was refused memory", rank);
    return status;
}

static void test_shard_errors__out_of_memory_on_some_rank(void **state)
{
    (void)state;
    world w;
    assert_true(assert_oom_clean(live_in_world, &w) > 100);
}

int main(void)
{
    fail_alloc_install();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shard_errors__state_that_does_not_fit),
        cmocka_unit_test(test_shard_errors__parameters_on_their_way),
        cmocka_unit_test(test_shard_errors__a_ddp_without_shards),
        cmocka_unit_test(test_shard_errors__frozen_between_steps),
        cmocka_unit_test(test_shard_errors__in_any_order_of_going),
        cmocka_unit_test(test_shard_errors__without_memory_to_move_out),
        cmocka_unit_test(test_shard_errors__out_of_memory_on_some_rank),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
