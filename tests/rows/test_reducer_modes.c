/* SPDX-License-Identifier: Apache-2.0
 * Rows of the suite `backward` about reducers met by a compiled backward. */
#include <brigade/comm.h>
#include <brigade/compile.h>
#include <brigade/reducer.h>

#include "tests/rows/rows.h"
#include "tests/support/plan_text.h"

typedef struct wrapped {
    brg_pg *pg;
    brg_ddp *ddp;
    brg_tensor *params[4];
} wrapped;

/* An MLP under a ddp of two ranks, of which only this one exists. */
static wrapped wrap(brg_ddp_mode mode)
{
    wrapped w;
    assert_brg_ok(brg_compile_reset());
    w.params[0] = leaf_from(0.1, BRG_SHAPE(8, 4));
    w.params[1] = leaf_from(0.2, BRG_SHAPE(8));
    w.params[2] = leaf_from(0.3, BRG_SHAPE(2, 8));
    w.params[3] = leaf_from(0.4, BRG_SHAPE(2));
    assert_brg_ok(brg_tensor_set_name(w.params[0], "fc1.weight"));
    assert_brg_ok(brg_pg_create_fake(&w.pg, 0, 2));
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    options.mode = mode;
    assert_brg_ok(brg_ddp_create(&w.ddp, w.pg, w.params, 4, NULL, 0, &options));
    return w;
}

static void unwrap(wrapped *w)
{
    brg_ddp_destroy(w->ddp);
    brg_pg_destroy(w->pg);
}

static brg_tensor *loss_of(const wrapped *w)
{
    brg_tensor *x = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(3, 4));
    brg_tensor *h = brg_relu(brg_linear(x, w->params[0], w->params[1]));
    return brg_mean_all(brg_linear(h, w->params[2], w->params[3]));
}

static brg_status backward_compiled(brg_tensor *loss)
{
    int scope;
    assert_brg_ok(brg_compile_begin(&scope, NULL));
    brg_status status = brg_backward(loss);
    brg_error_clear();
    assert_brg_ok(brg_compile_end(scope));
    return status;
}

static uint64_t captures(void)
{
    brg_compile_stats stats;
    brg_compile_get_stats(&stats);
    return stats.captures;
}

static void expect_refused(wrapped *w)
{
    size_t n_calls = brg_fake_n_calls(w->pg);
    int scope;
    brg_tensor *loss = loss_of(w);
    assert_brg_ok(brg_compile_begin(&scope, NULL));
    assert_brg_fails_with(brg_backward(loss), BRG_ERR_STATE,
                          "Compiled autograd is not compatible with an eager "
                          "DDP reducer");
    assert_non_null(strstr(brg_error_message(), "BRG_DDP_EAGER"));
    assert_non_null(strstr(brg_error_message(), "BRG_DDP_AUTO"));
    assert_brg_ok(brg_compile_end(scope)); /* the scopes are as they were */
    assert_int_equal(brg_fake_n_calls(w->pg), n_calls); /* nothing sent */
    for (int i = 0; i < 4; i++)
        assert_null(brg_tensor_grad(w->params[i])); /* nothing touched */
    assert_brg_ok(brg_backward(loss)); /* nothing freed: runs eagerly */
    for (int i = 0; i < 4; i++) {
        assert_non_null(brg_tensor_grad(w->params[i]));
        assert_brg_ok(brg_tensor_set_grad(w->params[i], NULL));
    }
}

static void test_ddp_cpp_reducer_error(void **state)
{
    (void)state;
    wrapped w = wrap(BRG_DDP_EAGER);
    expect_refused(&w); /* on a miss */
    assert_int_equal(captures(), 0);
    brg_ddp_set_sync(w.ddp, false); /* whether it would reduce or not */
    expect_refused(&w);
    unwrap(&w);
    /* On a hit: the plan is there before the eager reducer is. */
    w = wrap(BRG_DDP_AUTO);
    assert_brg_ok(backward_compiled(loss_of(&w)));
    assert_int_equal(captures(), 1);
    brg_ddp_destroy(w.ddp);
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    options.mode = BRG_DDP_EAGER;
    assert_brg_ok(brg_ddp_create(&w.ddp, w.pg, w.params, 4, NULL, 0, &options));
    for (int i = 0; i < 4; i++)
        assert_brg_ok(brg_tensor_set_grad(w.params[i], NULL));
    expect_refused(&w);
    assert_int_equal(captures(), 1);
    unwrap(&w);
    options.mode = (brg_ddp_mode)7;
    brg_tensor *x = leaf_from(0, BRG_SHAPE(2));
    brg_pg *pg;
    assert_brg_ok(brg_pg_create_self(&pg));
    assert_brg_fails_with(brg_ddp_create(&w.ddp, pg, &x, 1, NULL, 0, &options),
                          BRG_ERR_ARG, "mode 7");
    brg_pg_destroy(pg);
}

static const char *expect_after(const char *at, const char *text)
{
    const char *found = strstr(at, text);
    if (!found)
        fail_msg("'%s' is not in: %s", text, at);
    return found;
}

/* The one plan: each parameter's gradient and its place in the reduction, then
 * the reduction, with its scale, then what comes of it for each parameter. */
static void expect_captured_reduction(void)
{
    char line[64];
    const char *text = plan_text(0);
    const char *start =
        expect_after(text, " = all_reduce_start[r0.b0, scale 1/2](");
    const char *wait = expect_after(start, " = wait[r0.b0](");
    for (int i = 0; i < 4; i++) {
        snprintf(line, sizeof line, "[r0.p%d]()\n", i);
        const char *pack = expect_after(text, line);
        assert_true(pack < start);
        snprintf(line, sizeof line, "[r0.p%d](v", i);
        assert_true(expect_after(text, line) > wait);
    }
    int n_accumulate = 0;
    for (const char *at = text; (at = strstr(at, "accumulate@")); at++)
        n_accumulate += at < start;
    assert_int_equal(n_accumulate, 4);
    assert_null(strstr(wait, "all_reduce_start"));
    assert_null(strstr(text, "post_accumulate"));
}

static void check_reduces(brg_ddp_mode mode)
{
    wrapped w = wrap(mode);
    size_t before = brg_fake_n_calls(w.pg);
    brg_compile_stats stats;
    assert_brg_ok(backward_compiled(loss_of(&w)));
    brg_compile_get_stats(&stats);
    assert_int_equal(stats.captures, 1);
    assert_int_equal(stats.fallbacks, 0);
    assert_int_equal(stats.buckets, 1);
    expect_captured_reduction();
    assert_true(brg_fake_n_calls(w.pg) > before);
    for (int i = 0; i < 4; i++)
        assert_non_null(brg_tensor_grad(w.params[i]));
    unwrap(&w);
}

static void test_ddp_python_reducer(void **state)
{
    (void)state;
    check_reduces(BRG_DDP_CAPTURED);
    check_reduces(BRG_DDP_AUTO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_ddp_cpp_reducer_error),
        scoped_test(test_ddp_python_reducer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
