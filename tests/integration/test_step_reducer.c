/* SPDX-License-Identifier: Apache-2.0
 * Reductions as nodes of whole steps: where they stand, that hooks beside them,
 * failures and refusals are what they are in an eager step. */
#include <brigade/comm_hook.h>

#include "tests/reducer/step_checks.h"
#include "tests/support/brg_test.h"
#include "tests/support/small_models.h"

/* ---- On 1 to 4 ranks ------------------------------------------------------------- */

#define ON_RANKS(name, keep_order)                                             \
    static brg_status name##_rank(brg_pg *pg, void *user)                      \
    {                                                                          \
        (void)user;                                                            \
        return step_with(pg, (keep_order), name##_body);                       \
    }                                                                          \
    static void name(void **state)                                             \
    {                                                                          \
        (void)state;                                                           \
        for (int n = 1; n <= 4; n++)                                           \
            assert_brg_ok(brg_sim_run(n, NULL, name##_rank, NULL));            \
    }

#define test_step_reducer__same_bits_in_that_order_body step_check_bits
#define test_step_reducer__off_and_on_are_two_plans_body step_check_sync
#define test_step_reducer__rebuilt_buckets_are_one_more_body step_check_rebuilt
#define test_step_reducer__each_backward_is_reduced_body step_check_two
#define test_step_reducer__unused_parameters_body step_check_unused
ON_RANKS(test_step_reducer__same_bits_in_that_order, true)
ON_RANKS(test_step_reducer__off_and_on_are_two_plans, true)
ON_RANKS(test_step_reducer__rebuilt_buckets_are_one_more, false)
ON_RANKS(test_step_reducer__each_backward_is_reduced, true)
ON_RANKS(test_step_reducer__unused_parameters, true)

static brg_status lacking_rank(brg_pg *pg, void *user)
{
    (void)user;
    return step_check_lacking(pg);
}

static void test_step_reducer__a_plan_that_lacks_a_gradient(void **state)
{
    (void)state;
    for (int n = 1; n <= 4; n++)
        assert_brg_ok(brg_sim_run(n, NULL, lacking_rank, NULL));
}

/* ---- With an optimizer ------------------------------------------------------------ */

static brg_status order_rank(brg_pg *pg, void *user)
{
    static const char *const optimizers[] = {"\noptim_step(", "\nzero_grad("};
    static _Thread_local char text[1 << 16];
    small_model m = {0};
    brg_status status = brg_compile_reset();
    if (status == BRG_OK)
        status = small_model_init(&m, *(small_kind *)user, pg);
    if (status == BRG_OK)
        status = small_model_compile(&m, true);
    if (status == BRG_OK)
        status = small_model_step(&m, 0);
    size_t n = status == BRG_OK
                   ? brg_compiled_print(m.compiled, 0, text, sizeof text)
                   : 0;
    bool is_one = m.kind == SMALL_MLP; /* bucket */
    small_model_deinit(&m);
    BRG_TRY(status);
    RANK_CHECK(n > 0 && n < sizeof text, "the plan has %zu characters", n);
    BRG_TRY(is_one ? step_check_ends(text) : step_check_order(text));
    const char *end = strstr(text, "\nbackward_end(");
    for (int k = 0; k < 2; k++) {
        const char *at = strstr(text, optimizers[k]);
        RANK_CHECK(at && end < at, "%s is not behind the backward: %.6000s",
                   optimizers[k], text);
    }
    return BRG_OK;
}

static void test_step_reducer__the_optimizer_comes_last(void **state)
{
    (void)state;
    for (small_kind kind = 0; kind < N_SMALL_KINDS; kind++)
        for (int n = 1; n <= 4; n++)
            assert_brg_ok(brg_sim_run(n, NULL, order_rank, &kind));
}

/* ---- Every option of a ddp ---------------------------------------------------------- */

typedef enum option {
    WITH_SUM,
    WITH_NORM,
    WITH_CAPTURED,
    WITH_CAST_HOOK,
    /* These are reduced by their hooks, called by the step: */
    WITH_TWO_ROUNDS,
    WITH_GRADS_APART,
    WITH_STATIC_GRAPH,
    WITH_LEAVES,
    N_WITH
} option;

static brg_status make_options(option which, int n_ranks,
                               brg_ddp_options *options)
{
    brg_powersgd_options powersgd = BRG_POWERSGD_OPTIONS_INIT;
    *options = (brg_ddp_options)BRG_DDP_OPTIONS_INIT;
    options->first_bucket_bytes = options->bucket_bytes = 64;
    options->keep_order = true;
    options->sum = which == WITH_SUM;
    options->measure_norm = which == WITH_NORM;
    options->grads_apart = which == WITH_GRADS_APART;
    options->static_graph = which == WITH_STATIC_GRAPH;
    if (which == WITH_CAPTURED)
        options->mode = BRG_DDP_CAPTURED;
    if (which == WITH_LEAVES) {
        options->reduction = BRG_REDUCTION_REPRODUCIBLE;
        options->n_leaves = (uint32_t)n_ranks; /* one each */
    }
    powersgd.rank = 2;
    if (which == WITH_TWO_ROUNDS)
        return brg_comm_hook_create_powersgd(&options->hook, &powersgd);
    return which == WITH_CAST_HOOK
               ? brg_comm_hook_create_cast(&options->hook, BRG_DTYPE_F16, true)
               : BRG_OK;
}

static brg_status check_option(step_model *eager, step_model *whole,
                               option which)
{
    char text[8192];
    for (int number = 0; number < 4; number++) {
        BRG_TRY(step_both(eager, whole, number, 1));
        BRG_TRY(step_drop_grads(eager));
        BRG_TRY(step_drop_grads(whole));
    }
    BRG_TRY(step_check_text(whole, text, sizeof text));
    if (which < WITH_TWO_ROUNDS)
        return step_check_order(text);
    RANK_CHECK(strstr(text, "\nleaf@") && !strstr(text, "all_reduce_start"),
               "option %d is part of the plan: %.2000s", (int)which, text);
    return BRG_OK;
}

static brg_status option_rank(brg_pg *pg, void *user)
{
    option which = *(option *)user;
    brg_ddp_options a = {0}, b = {0};
    step_model eager = {0}, whole = {0};
    brg_status status = brg_compile_reset();
    if (status == BRG_OK)
        status = make_options(which, brg_pg_world_size(pg), &a);
    if (status == BRG_OK)
        status = make_options(which, brg_pg_world_size(pg), &b);
    if (status == BRG_OK)
        status = step_init(&eager, pg, &a);
    if (status == BRG_OK)
        status = step_init(&whole, pg, &b);
    if (status == BRG_OK)
        status = step_compile(&whole, BRG_COMPILE_BACKEND_DEFAULT);
    if (status == BRG_OK)
        status = check_option(&eager, &whole, which);
    step_deinit(&whole);
    step_deinit(&eager);
    brg_comm_hook_destroy(a.hook);
    brg_comm_hook_destroy(b.hook);
    return status;
}

static void test_step_reducer__every_option(void **state)
{
    (void)state;
    for (option which = 0; which < N_WITH; which++)
        for (int n = 1; n <= 4; n++)
            assert_brg_ok(brg_sim_run(n, NULL, option_rank, &which));
}

/* ---- Hooks beside ------------------------------------------------------------------- */

static brg_status halve(brg_tensor *grad, brg_tensor **replacement, void *user)
{
    ++*(int *)user;
    *replacement = brg_mul_scalar(grad, 0.5);
    return *replacement ? BRG_OK : brg_error_code();
}

/* The hooks of that leaf are called, the reducer's too; added to a plan that is
 * there, it makes another. */
static brg_status
test_step_reducer__a_leaf_with_other_hooks_body(step_model *eager,
                                                step_model *whole)
{
    char text[8192];
    int n[2] = {0};
    BRG_TRY(step_both(eager, whole, 0, 1));
    for (size_t k = 0; k < STEP_LAYERS; k += 2) {
        BRG_TRY(brg_tensor_add_hook(NULL, eager->w[k], halve, &n[0], NULL));
        BRG_TRY(brg_tensor_add_hook(NULL, whole->w[k], halve, &n[1], NULL));
    }
    for (int number = 1; number < 4; number++)
        BRG_TRY(step_both(eager, whole, number, 1));
    RANK_CHECK(n[0] == 6 && n[1] == 6, "%d and %d calls", n[0], n[1]);
    brg_compile_stats stats;
    brg_compile_get_stats(&stats);
    RANK_CHECK(stats.functions == 2, "%d functions", (int)stats.functions);
    size_t size = brg_compiled_print(whole->step, 1, text, sizeof text);
    RANK_CHECK(size < sizeof text && strstr(text, "\nleaf@") &&
                   strstr(text, "\naccumulate@"),
               "not as expected: %.4000s", text);
    return BRG_OK;
}
ON_RANKS(test_step_reducer__a_leaf_with_other_hooks, true)

/* ---- Failures ------------------------------------------------------------------------- */

static brg_status refuse(brg_tensor *grad, brg_tensor **replacement, void *user)
{
    (void)grad, (void)replacement, (void)user;
    return brg_error_set(BRG_ERR_CALLBACK, __FILE__, __LINE__, "as asked");
}

static brg_status
test_step_reducer__a_step_that_fails_is_told_body(step_model *eager,
                                                  step_model *whole)
{
    BRG_TRY(step_both(eager, whole, 0, 1));
    for (size_t k = 0; k < STEP_LAYERS; k++) {
        brg_hook *hook = NULL;
        if (whole->rank == 0)
            BRG_TRY(
                brg_tensor_add_hook(&hook, whole->w[k], refuse, NULL, NULL));
        if (whole->rank == 0)
            RANK_FAILS(step_run(whole, 7, 1), BRG_ERR_CALLBACK, "as asked");
        else
            RANK_FAILS(step_run(whole, 7, 1), BRG_ERR_PEER,
                       "backward failed on rank 0");
        brg_hook_remove(hook);
        BRG_TRY(step_drop_grads(whole));
        BRG_TRY(step_drop_grads(eager));
        BRG_TRY(step_both(eager, whole, (int)k + 1, 1));
    }
    return BRG_OK;
}
ON_RANKS(test_step_reducer__a_step_that_fails_is_told, true)

/* ---- Modes ------------------------------------------------------------------------------ */

/* Before anything runs: at the capture, and at a plan that was there. */
static void test_step_reducer__an_eager_reducer_is_refused(void **state)
{
    (void)state;
    brg_pg *pg;
    step_model m;
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    options.mode = BRG_DDP_EAGER;
    assert_brg_ok(brg_compile_reset());
    assert_brg_ok(brg_pg_create_fake(&pg, 0, 2));
    assert_brg_ok(step_init(&m, pg, &options));
    assert_brg_ok(step_compile(&m, BRG_COMPILE_BACKEND_DEFAULT));
    for (int number = 0; number < 2; number++)
        assert_brg_fails_with(step_run(&m, number, 1), BRG_ERR_STATE,
                              "not compatible with an eager DDP reducer: the "
                              "brg_ddp of parameter fc");
    brg_ddp_destroy(m.ddp);
    m.ddp = NULL;
    assert_brg_ok(step_run(&m, 2, 1));
    assert_brg_ok(step_run(&m, 3, 1));
    assert_brg_ok(step_drop_grads(&m));
    assert_brg_ok(
        brg_ddp_create(&m.ddp, pg, m.w, STEP_LAYERS, NULL, 0, &options));
    brg_pg_stats before, after;
    brg_pg_get_stats(pg, &before);
    assert_brg_fails_with(step_run(&m, 4, 1), BRG_ERR_STATE,
                          "create it with BRG_DDP_AUTO or BRG_DDP_CAPTURED");
    brg_pg_get_stats(pg, &after);
    assert_memory_equal(&before, &after, sizeof before);
    for (size_t k = 0; k < STEP_LAYERS; k++)
        assert_null(brg_tensor_grad(m.w[k]));
    (void)brg_ddp_set_sync(m.ddp, false); /* nor is it let pass then */
    assert_brg_fails_with(step_run(&m, 5, 1), BRG_ERR_STATE, "BRG_DDP_EAGER");
    step_deinit(&m);
    brg_pg_destroy(pg);
}

/* Each gradient by itself, started and waited for by buckets all the same. */
static void test_step_reducer__every_backend(void **state)
{
    (void)state;
    const brg_compile_backend backends[] = {BRG_COMPILE_BACKEND_EAGER,
                                            BRG_COMPILE_BACKEND_FUSED};
    for (int b = 0; b < 2; b++) {
        char text[8192];
        brg_pg *pg;
        step_model m;
        brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
        options.first_bucket_bytes = options.bucket_bytes = 64;
        assert_brg_ok(brg_pg_create_fake(&pg, 0, 2));
        assert_brg_ok(step_init(&m, pg, &options));
        assert_brg_ok(step_compile(&m, backends[b]));
        assert_brg_ok(step_run(&m, 0, 1));
        assert_brg_ok(step_check_text(&m, text, sizeof text));
        assert_brg_ok(step_check_order(text));
        step_deinit(&m);
        brg_pg_destroy(pg);
    }
}

static brg_status with_set_sync(brg_tensor *const *in, size_t n_in,
                                brg_tensor **out, size_t n_out, void *user)
{
    step_model *m = user;
    (void)brg_ddp_set_sync(m->ddp, true);
    return step_body(in, n_in, out, n_out, user);
}

static void test_step_reducer__set_sync_is_no_part_of_a_plan(void **state)
{
    (void)state;
    brg_pg *pg;
    step_model m;
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    options.whole = options.fullgraph = true;
    assert_brg_ok(brg_pg_create_fake(&pg, 0, 2));
    assert_brg_ok(step_init(&m, pg, NULL));
    assert_brg_ok(brg_compiled_create(&m.step, with_set_sync, &m, &options));
    assert_brg_fails_with(step_run(&m, 0, 1), BRG_ERR_UNSUPPORTED,
                          "brg_ddp_set_sync cannot be captured: call it "
                          "outside of the function");
    step_deinit(&m);
    brg_pg_destroy(pg);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_step_reducer__same_bits_in_that_order),
        cmocka_unit_test(test_step_reducer__off_and_on_are_two_plans),
        cmocka_unit_test(test_step_reducer__rebuilt_buckets_are_one_more),
        cmocka_unit_test(test_step_reducer__each_backward_is_reduced),
        cmocka_unit_test(test_step_reducer__unused_parameters),
        cmocka_unit_test(test_step_reducer__a_plan_that_lacks_a_gradient),
        cmocka_unit_test(test_step_reducer__the_optimizer_comes_last),
        cmocka_unit_test(test_step_reducer__every_option),
        cmocka_unit_test(test_step_reducer__a_leaf_with_other_hooks),
        cmocka_unit_test(test_step_reducer__a_step_that_fails_is_told),
        cmocka_unit_test(test_step_reducer__an_eager_reducer_is_refused),
        cmocka_unit_test(test_step_reducer__every_backend),
        cmocka_unit_test(test_step_reducer__set_sync_is_no_part_of_a_plan),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
