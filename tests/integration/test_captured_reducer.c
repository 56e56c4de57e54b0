/* SPDX-License-Identifier: Apache-2.0
 * Reductions as steps of a plan: where they stand in it, and that all that a
 * reducer does in an eager backward it does here. */
#include <string.h>

#include <brigade/compile.h>
#include <brigade/ops.h>

#include "tests/reducer/lacking_checks.h"
#include "tests/reducer/order_checks.h"
#include "tests/support/brg_test.h"
#include "tests/support/ddp_model.h"
#include "tests/support/plan_text.h"

/* ---- The plan's text ---------------------------------------------------------------- */

static const char *last_in(const char *text, const char *what)
{
    const char *last = NULL;
    for (; (text = strstr(text, what)) != NULL; text++)
        last = text;
    assert_non_null(last);
    return last;
}

static brg_tensor *square_leaf(int64_t n)
{
    brg_tensor *t = assert_brg_some(
        brg_full(BRG_DTYPE_F32, BRG_SHAPE(n, n), 1.0 / (double)n));
    assert_brg_ok(brg_set_requires_grad(t, true));
    return t;
}

/* Four layers without bias of a fake group of two. */
static void backward_of_layers(int64_t n, const brg_ddp_options *options)
{
    brg_scope *scope = brg_scope_begin();
    brg_tensor *w[4], *x = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(1, n));
    brg_pg *pg;
    brg_ddp *ddp;
    int token;
    for (int k = 0; k < 4; k++)
        w[k] = square_leaf(n);
    assert_brg_ok(brg_pg_create_fake(&pg, 0, 2));
    assert_brg_ok(brg_ddp_create(&ddp, pg, w, 4, NULL, 0, options));
    for (int k = 0; k < 4; k++)
        x = brg_linear(x, w[k], NULL);
    assert_brg_ok(brg_compile_begin(&token, NULL));
    assert_brg_ok(brg_backward(brg_sum_all(x)));
    assert_brg_ok(brg_compile_end(token));
    brg_ddp_destroy(ddp);
    brg_pg_destroy(pg);
    brg_scope_end(scope);
}

static void test_captured_reducer__three_buckets_of_four_layers(void **state)
{
    (void)state;
    brg_compile_stats stats;
    assert_brg_ok(brg_compile_reset());
    backward_of_layers(2000, NULL);
    brg_compile_get_stats(&stats);
    assert_int_equal(stats.captures, 1);
    assert_int_equal(stats.buckets, 3);
    const char *text = plan_text(0);
    assert_int_equal(brg_test_count(text, " = all_reduce_start["), 3);
    assert_int_equal(brg_test_count(text, " = wait["), 3);
    assert_int_equal(brg_test_count(text, " = write_back@"), 4);
}

/* The order of the nodes proves it: the first collective is on its way before
 * the last gradient is worked out, all are before any is waited for. */
static void
test_captured_reducer__first_start_before_last_gradient(void **state)
{
    (void)state;
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    options.first_bucket_bytes = options.bucket_bytes = 256;
    assert_brg_ok(brg_compile_reset());
    backward_of_layers(8, &options);
    const char *text = plan_text(0), *at = text;
    assert_int_equal(brg_test_count(text, " = all_reduce_start["), 4);
    assert_true(strstr(text, " = all_reduce_start[") <
                last_in(text, "\naccumulate@"));
    assert_true(last_in(text, " = all_reduce_start[") <
                strstr(text, " = wait["));
    for (int k = 0; k < 4; k++) { /* each right behind its gradient */
        at = strstr(at, "\naccumulate@");
        assert_non_null(at);
        const char *pack = strchr(at + 1, '\n'),
                   *start = strchr(pack + 1, '\n');
        assert_ptr_equal(strstr(pack, " = pack@"), strstr(at, " = pack@"));
        assert_true(strstr(pack, " = pack@") < start);
        assert_true(strstr(start, " = all_reduce_start[") <
                    strchr(start + 1, '\n'));
        at++;
    }
}

/* ---- Ranks -------------------------------------------------------------------------------- */

static brg_status make(ddp_model *m, brg_pg *pg, bool allow_unused)
{
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    options.first_bucket_bytes = options.bucket_bytes = 64;
    options.allow_unused = allow_unused;
    brg_status status = ddp_model_init(m, pg);
    return status == BRG_OK ? ddp_model_wrap(m, &options) : status;
}

static brg_status compiled(ddp_model *m, int step, unsigned mask)
{
    int scope;
    BRG_TRY(brg_compile_begin(&scope, NULL));
    brg_status status = ddp_model_backward(m, step, mask);
    BRG_TRY(brg_compile_end(scope));
    return status;
}

static brg_status works(ddp_model *m, int step)
{
    BRG_TRY(ddp_model_zero(m, false));
    BRG_TRY(compiled(m, step, DDP_MODEL_ALL));
    return ddp_model_check(m, step, step + 1);
}

static brg_status run_model(brg_pg *pg, bool allow_unused,
                            brg_status (*body)(ddp_model *m))
{
    ddp_model m = {0};
    brg_status status = make(&m, pg, allow_unused);
    if (status == BRG_OK)
        status = body(&m);
    ddp_model_deinit(&m);
    return status;
}

#define ON_RANKS(name, allow_unused)                                           \
    static brg_status name##_rank(brg_pg *pg, void *user)                      \
    {                                                                          \
        (void)user;                                                            \
        return run_model(pg, (allow_unused), name##_body);                     \
    }                                                                          \
    static void name(void **state)                                             \
    {                                                                          \
        (void)state;                                                           \
        for (int n = 1; n <= 4; n++)                                           \
            assert_brg_ok(brg_sim_run(n, NULL, name##_rank, NULL));            \
    }

/* Some ranks compiled, others not: the same collectives in the same order. */
static brg_status test_captured_reducer__beside_eager_ranks_body(ddp_model *m)
{
    for (int step = 0; step < 4; step++) {
        BRG_TRY(ddp_model_zero(m, step % 2));
        if ((m->rank + step) % 2)
            BRG_TRY(compiled(m, step, DDP_MODEL_ALL));
        else
            BRG_TRY(ddp_model_backward(m, step, DDP_MODEL_ALL));
        BRG_TRY(ddp_model_check(m, step, step + 1));
    }
    return BRG_OK;
}
ON_RANKS(test_captured_reducer__beside_eager_ranks, false)

/* Every rank leaves out another parameter; all leave out one. */
static brg_status test_captured_reducer__unused_parameters_body(ddp_model *m)
{
    for (int step = 0; step < 4; step++) {
        unsigned who[DDP_MODEL_N], mine = DDP_MODEL_ALL & ~(1u << 7);
        mine &= ~(1u << ((m->rank + step) % 5));
        for (size_t i = 0; i < DDP_MODEL_N; i++) {
            who[i] = 0;
            for (int r = 0; r < m->world_size; r++)
                if (i != 7 && (int)i != (r + step) % 5)
                    who[i] |= 1u << r;
        }
        BRG_TRY(ddp_model_zero(m, false));
        BRG_TRY(compiled(m, step, mine));
        for (size_t i = 0; i < DDP_MODEL_N; i++) {
            if (who[i])
                BRG_TRY(ddp_model_check_param(m, i, step, step + 1, who[i]));
            else
                RANK_CHECK(!brg_tensor_grad(m->params[i]),
                           "parameter %zu has a gradient", i);
        }
    }
    brg_compile_stats stats;
    brg_compile_get_stats(&stats);
    RANK_CHECK(stats.fallbacks == 0, "%d ran eagerly", (int)stats.fallbacks);
    return BRG_OK;
}
ON_RANKS(test_captured_reducer__unused_parameters, true)

/* Off and on are two plans; off, nothing of a reduction is in it. */
static brg_status
test_captured_reducer__no_sync_is_in_the_key_body(ddp_model *m)
{
    char text[16384];
    BRG_TRY(ddp_model_zero(m, false));
    brg_ddp_set_sync(m->ddp, false);
    BRG_TRY(compiled(m, 0, DDP_MODEL_ALL));
    brg_ddp_set_sync(m->ddp, true);
    BRG_TRY(brg_compile_print(0, text, sizeof text) < sizeof text
                ? BRG_OK
                : BRG_ERR_INTERNAL);
    RANK_CHECK(!strstr(text, "pack@"), "a gradient is packed: %.200s", text);
    BRG_TRY(compiled(m, 1, DDP_MODEL_ALL));
    return ddp_model_check(m, 0, 2);
}
ON_RANKS(test_captured_reducer__no_sync_is_in_the_key, false)

/* ---- Failures --------------------------------------------------------------------------------- */

static brg_status refuse(brg_tensor *grad, brg_tensor **replacement, void *user)
{
    (void)grad, (void)replacement, (void)user;
    return brg_error_set(BRG_ERR_CALLBACK, __FILE__, __LINE__, "as asked");
}

/* The plan of rank 0 fails on its way, before any gradient of it, or after. */
static brg_status fail_on_the_way(ddp_model *m, size_t param)
{
    brg_hook *hook = NULL;
    if (m->rank == 0)
        BRG_TRY(
            brg_tensor_add_hook(&hook, m->params[param], refuse, NULL, NULL));
    BRG_TRY(ddp_model_zero(m, false));
    if (m->rank == 0)
        RANK_FAILS(compiled(m, 7, DDP_MODEL_ALL), BRG_ERR_CALLBACK, "as asked");
    else
        RANK_FAILS(compiled(m, 7, DDP_MODEL_ALL), BRG_ERR_PEER,
                   "backward failed on rank 0");
    brg_hook_remove(hook);
    return works(m, 8);
}

static brg_status test_captured_reducer__a_plan_that_fails_body(ddp_model *m)
{
    BRG_TRY(works(m, 0));
    for (size_t i = 0; i < DDP_MODEL_N; i++)
        BRG_TRY(fail_on_the_way(m, i));
    return works(m, 9);
}
ON_RANKS(test_captured_reducer__a_plan_that_fails, false)

static brg_status keep(brg_tensor *grad, brg_tensor **replacement, void *user)
{
    (void)grad, (void)replacement, (void)user;
    return BRG_OK;
}

static brg_status cannot_write(brg_tensor **grads, size_t n,
                               brg_tensor *const *others, size_t n_others,
                               void *user)
{
    (void)grads, (void)n, (void)others, (void)n_others, (void)user;
    return brg_error_set(BRG_ERR_CALLBACK, __FILE__, __LINE__, "not this one");
}

/* Rank 0 cannot even make its plan, and may not run eagerly: it says so. */
static brg_status
test_captured_reducer__a_plan_that_cannot_be_made_body(ddp_model *m)
{
    brg_hook *hook = NULL;
    int scope;
    brg_compile_options full = BRG_COMPILE_OPTIONS_INIT;
    full.fullgraph = true;
    if (m->rank == 0) {
        BRG_TRY(brg_tensor_add_hook(&hook, m->params[3], keep, NULL, NULL));
        BRG_TRY(brg_hook_set_capture(hook, cannot_write, 0));
    }
    BRG_TRY(brg_compile_begin(&scope, &full));
    brg_status status = ddp_model_backward(m, 0, DDP_MODEL_ALL);
    if (m->rank == 0)
        RANK_FAILS(status, BRG_ERR_UNSUPPORTED, "not this one");
    else
        RANK_FAILS(status, BRG_ERR_PEER, "backward failed on rank 0");
    BRG_TRY(brg_compile_end(scope));
    BRG_TRY(works(m, 1)); /* eagerly on rank 0 */
    brg_hook_remove(hook);
    return works(m, 2);
}
ON_RANKS(test_captured_reducer__a_plan_that_cannot_be_made, false)

/* A rank whose plan starts buckets in another order, before data moves; and
 * again in a group of its own, after that. */
static brg_status order_rank(brg_pg *pg, void *user)
{
    (void)user;
    return order_check(pg);
}

static void test_captured_reducer__a_plan_of_another_order(void **state)
{
    (void)state;
    for (int n = 1; n <= 4; n++)
        for (uint64_t seed = 0; seed < 4; seed++) {
            brg_sim_options options = BRG_SIM_OPTIONS_INIT;
            options.seed = seed;
            assert_brg_ok(brg_sim_run(n, &options, order_rank, NULL));
        }
}

/* A rank whose plan lacks a gradient, and what only looks like it. */
static brg_status lacking_rank(brg_pg *pg, void *user)
{
    const int *c = user;
    return lacking_check(pg, c[0], c[1] != 0);
}

static brg_status lacking_others_rank(brg_pg *pg, void *user)
{
    (void)user;
    return lacking_others(pg);
}

static void test_captured_reducer__a_plan_that_lacks_a_gradient(void **state)
{
    (void)state;
    for (int n = 2; n <= 4; n++)
        for (int k = 0; k < 4; k++)
            for (uint64_t seed = 0; seed < 3; seed++) {
                brg_sim_options options = BRG_SIM_OPTIONS_INIT;
                int c[2] = {k / 2, k % 2};
                options.seed = seed;
                assert_brg_ok(brg_sim_run(n, &options, lacking_rank, c));
            }
}

static void test_captured_reducer__what_only_the_tail_can_tell(void **state)
{
    (void)state;
    for (int n = 1; n <= 4; n++)
        assert_brg_ok(brg_sim_run(n, NULL, lacking_others_rank, NULL));
}

/* One rank makes its plan anew, the others replay theirs: no call more than
 * one for each bucket on any of them. */
static brg_status
test_captured_reducer__agreeing_sends_nothing_body(ddp_model *m)
{
    for (int step = 0; step < 8; step++) {
        brg_pg_stats before, after;
        size_t n = brg_reducer_n_buckets(brg_ddp_reducer(m->ddp));
        if (step > 3 && m->rank == step - 4)
            BRG_TRY(brg_compile_reset());
        BRG_TRY(ddp_model_zero(m, false));
        brg_pg_get_stats(m->pg, &before);
        BRG_TRY(compiled(m, step, DDP_MODEL_ALL));
        brg_pg_get_stats(m->pg, &after);
        size_t n_calls = (size_t)(after.n_collectives - before.n_collectives);
        RANK_CHECK(step == 0 || n_calls == n,
                   "step %d: %zu calls for %zu buckets", step, n_calls, n);
        BRG_TRY(ddp_model_check(m, step, step + 1));
    }
    return BRG_OK;
}
ON_RANKS(test_captured_reducer__agreeing_sends_nothing, false)

/* ---- Beside hooks, graphs kept, parts of the model ------------------------------------------- */

typedef struct seen {
    double sum;
    int n;
} seen;

static brg_status look(brg_tensor *leaf, void *user)
{
    seen *s = user;
    const float *at = brg_tensor_data(brg_tensor_grad(leaf));
    s->sum += (double)at[0];
    s->n++;
    return BRG_OK;
}

/* User hooks before and behind the reducer's see this rank's gradient, and one
 * before it may change what is reduced. */
static brg_status halve(brg_tensor *leaf, void *user)
{
    (void)user;
    return brg_mul_scalar_(brg_tensor_grad(leaf), 0.5);
}

static brg_status hooks_around(brg_pg *pg, void *user)
{
    (void)user;
    ddp_model m = {0};
    seen before = {0}, after = {0};
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    BRG_TRY(ddp_model_init(&m, pg));
    BRG_TRY(brg_tensor_add_post_accumulate_hook(NULL, m.params[0], look,
                                                &before, NULL));
    BRG_TRY(brg_tensor_add_post_accumulate_hook(NULL, m.params[0], halve, NULL,
                                                NULL));
    brg_status status = ddp_model_wrap(&m, &options);
    if (status == BRG_OK)
        status = brg_tensor_add_post_accumulate_hook(NULL, m.params[0], look,
                                                     &after, NULL);
    if (status == BRG_OK)
        status = compiled(&m, 3, DDP_MODEL_ALL);
    double mine = ranks_gradient(m.rank, 3, 0, 0);
    double want = ranks_average(m.world_size, 3, 0, 0) / 2, got = 0;
    if (status == BRG_OK)
        got = (double)*(float *)brg_tensor_data(brg_tensor_grad(m.params[0]));
    ddp_model_deinit(&m);
    BRG_TRY(status);
    RANK_CHECK(before.n == 1 && after.n == 1, "the hooks ran %d and %d times",
               before.n, after.n);
    RANK_CHECK(before.sum == mine && got > want - 1e-6 && got < want + 1e-6,
               "%g before, %g of %g at the end", before.sum, got, want);
    return BRG_OK;
}

static void test_captured_reducer__between_hooks_of_the_user(void **state)
{
    (void)state;
    for (int n = 1; n <= 3; n++)
        assert_brg_ok(brg_sim_run(n, NULL, hooks_around, NULL));
}

/* Two ddps in one model: one sums, one averages; buckets of their own. */
static brg_status two_ddps(brg_pg *pg, void *user)
{
    (void)user;
    int world = brg_pg_world_size(pg), scope;
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    brg_ddp *ddps[2] = {NULL, NULL};
    brg_scope *own = brg_scope_begin();
    brg_tensor *w[2];
    brg_status status = BRG_OK;
    for (int k = 0; status == BRG_OK && k < 2; k++) {
        w[k] = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(4));
        options.sum = k == 1;
        status = brg_set_requires_grad(w[k], true);
        if (status == BRG_OK)
            status = brg_ddp_create(&ddps[k], pg, &w[k], 1, NULL, 0, &options);
    }
    if (status == BRG_OK)
        status = brg_compile_begin(&scope, NULL);
    if (status == BRG_OK)
        status =
            brg_backward(brg_sum_all(brg_mul_scalar(brg_mul(w[0], w[1]), 3)));
    char text[4096] = "";
    (void)brg_compile_print(0, text, sizeof text);
    float got[2] = {0};
    for (int k = 0; status == BRG_OK && k < 2; k++)
        got[k] = *(float *)brg_tensor_data(brg_tensor_grad(w[k]));
    if (status == BRG_OK)
        status = brg_compile_end(scope);
    brg_ddp_destroy(ddps[0]);
    brg_ddp_destroy(ddps[1]);
    brg_scope_end(own);
    BRG_TRY(status);
    RANK_CHECK(got[0] == 3 && got[1] == (float)(3 * world), "%g and %g",
               (double)got[0], (double)got[1]);
    RANK_CHECK(strstr(text, "[r0.b0") && strstr(text, "[r1.b0"),
               "not two reductions: %.300s", text);
    return BRG_OK;
}

static void test_captured_reducer__two_reducers_in_one_plan(void **state)
{
    (void)state;
    for (int n = 2; n <= 3; n++)
        assert_brg_ok(brg_sim_run(n, NULL, two_ddps, NULL));
}

/* A graph kept and gone through again; only some leaves asked for. */
static brg_status test_captured_reducer__graphs_kept_body(ddp_model *m)
{
    int token;
    brg_backward_options keep_graph = BRG_BACKWARD_OPTIONS_INIT;
    keep_graph.retain_graph = true;
    brg_scope *scope = brg_scope_begin();
    brg_tensor *loss = ddp_model_loss(m, 5, DDP_MODEL_ALL);
    brg_status status = brg_compile_begin(&token, NULL);
    for (int round = 0; status == BRG_OK && round < 2; round++) {
        status = ddp_model_zero(m, round);
        if (status == BRG_OK)
            status = brg_backward_with(&loss, 1, &keep_graph);
        if (status == BRG_OK)
            status = ddp_model_check(m, 5, 6);
    }
    keep_graph.inputs = m->params;
    keep_graph.n_inputs = 3;
    if (status == BRG_OK)
        status = ddp_model_zero(m, false);
    if (status == BRG_OK)
        status = brg_backward_with(&loss, 1, &keep_graph);
    for (size_t i = 0; status == BRG_OK && i < 3; i++)
        status = ddp_model_check_param(m, i, 5, 6, DDP_MODEL_EVERY_RANK);
    brg_scope_end(scope);
    BRG_TRY(brg_compile_end(token));
    return status;
}
ON_RANKS(test_captured_reducer__graphs_kept, true)

/* No more is copied into buckets than in an eager backward, and the
 * statistics say what happened. */
static brg_status test_captured_reducer__statistics_body(ddp_model *m)
{
    brg_reducer_stats eager, plan;
    for (int step = 0; step < 3; step++) {
        BRG_TRY(ddp_model_zero(m, false));
        BRG_TRY(ddp_model_backward(m, step, DDP_MODEL_ALL));
    }
    brg_ddp_get_stats(m->ddp, &eager);
    BRG_TRY(ddp_model_zero(m, false));
    BRG_TRY(compiled(m, 2, DDP_MODEL_ALL));
    brg_ddp_get_stats(m->ddp, &plan);
    RANK_CHECK(
        plan.n_packed_bytes <= eager.n_packed_bytes &&
            plan.n_early == eager.n_early && plan.n_steps == eager.n_steps + 1,
        "packed %zu of %zu, early %zu of %zu", (size_t)plan.n_packed_bytes,
        (size_t)eager.n_packed_bytes, plan.n_early, eager.n_early);
    RANK_CHECK(
        (plan.n_early == 0 || plan.first_launch_ns < plan.last_ready_ns) &&
            plan.total_wait_ns == eager.total_wait_ns + plan.wait_ns,
        "first start %llu, last gradient %llu",
        (unsigned long long)plan.first_launch_ns,
        (unsigned long long)plan.last_ready_ns);
    for (size_t i = 0; i < DDP_MODEL_N; i++) {
        size_t bucket, offset;
        brg_bucket_info info;
        BRG_TRY(
            brg_ddp_gradient_bucket(m->ddp, m->params[i], &bucket, &offset));
        BRG_TRY(brg_reducer_get_bucket(brg_ddp_reducer(m->ddp), bucket, &info));
        RANK_CHECK(brg_tensor_data(brg_tensor_grad(m->params[i])) ==
                       (const char *)info.data + offset,
                   "gradient %zu is not in its bucket", i);
    }
    return BRG_OK;
}
ON_RANKS(test_captured_reducer__statistics, false)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_captured_reducer__three_buckets_of_four_layers),
        cmocka_unit_test(
            test_captured_reducer__first_start_before_last_gradient),
        cmocka_unit_test(test_captured_reducer__beside_eager_ranks),
        cmocka_unit_test(test_captured_reducer__unused_parameters),
        cmocka_unit_test(test_captured_reducer__no_sync_is_in_the_key),
        cmocka_unit_test(test_captured_reducer__a_plan_that_fails),
        cmocka_unit_test(test_captured_reducer__a_plan_that_cannot_be_made),
        cmocka_unit_test(test_captured_reducer__a_plan_of_another_order),
        cmocka_unit_test(test_captured_reducer__a_plan_that_lacks_a_gradient),
        cmocka_unit_test(test_captured_reducer__what_only_the_tail_can_tell),
        cmocka_unit_test(test_captured_reducer__agreeing_sends_nothing),
        cmocka_unit_test(test_captured_reducer__between_hooks_of_the_user),
        cmocka_unit_test(test_captured_reducer__two_reducers_in_one_plan),
        cmocka_unit_test(test_captured_reducer__graphs_kept),
        cmocka_unit_test(test_captured_reducer__statistics),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
