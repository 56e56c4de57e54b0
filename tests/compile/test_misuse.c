/* SPDX-License-Identifier: Apache-2.0
 * Calls of <brigade/compile.h> that make no sense, or come where they may not:
 * from hooks, while a plan runs, while something is captured. Each is an error
 * that says what is wrong, and nothing has changed. */
#include "tests/compile/chains.h"

static brg_status sines(brg_tensor *const *in, size_t n_in, brg_tensor **out,
                        size_t n_out, void *user)
{
    (void)n_in, (void)n_out, (void)user;
    out[0] = brg_sum_all(brg_sin(in[0]));
    return out[0] ? BRG_OK : brg_error_code();
}

/* ---- Arguments --------------------------------------------------------------- */

static void refuse_options(const brg_compile_options *options, brg_status code,
                           const char *text)
{
    int scope = -7;
    brg_compiled *c = (brg_compiled *)&scope;
    assert_brg_fails_with(brg_compile_begin(&scope, options), code, text);
    assert_int_equal(scope, -7);
    assert_false(brg_compile_is_on());
    assert_brg_fails_with(brg_compiled_create(&c, sines, NULL, options), code,
                          text);
    assert_null(c);
}

static void test_misuse__options(void **state)
{
    (void)state;
    brg_compile_options o = BRG_COMPILE_OPTIONS_INIT;
    o.struct_size = 0;
    refuse_options(&o, BRG_ERR_ARG, "BRG_COMPILE_OPTIONS_INIT");
    o = (brg_compile_options)BRG_COMPILE_OPTIONS_INIT;
    o.dynamic = (brg_compile_dynamic)17;
    refuse_options(&o, BRG_ERR_ARG, "dynamic is 17");
    o.dynamic = (brg_compile_dynamic)-1;
    refuse_options(&o, BRG_ERR_ARG, "dynamic is -1");
    o = (brg_compile_options)BRG_COMPILE_OPTIONS_INIT;
    o.backend = (brg_compile_backend)4;
    refuse_options(&o, BRG_ERR_ARG, "backend is 4");
}

static void test_misuse__null(void **state)
{
    (void)state;
    brg_compiled *c;
    brg_tensor *x = leaf_from(1, BRG_SHAPE(3)), *y = NULL;
    char text[8] = "before";
    assert_brg_fails_with(brg_compile_begin(NULL, NULL), BRG_ERR_ARG, "scope");
    assert_brg_fails_with(brg_compile_disable_begin(NULL), BRG_ERR_ARG,
                          "scope");
    assert_brg_fails_with(brg_compiled_create(NULL, sines, NULL, NULL),
                          BRG_ERR_ARG, "out is NULL");
    assert_brg_fails_with(brg_compiled_create(&c, NULL, NULL, NULL),
                          BRG_ERR_ARG, "fn is NULL");
    assert_brg_fails_with(brg_compiled_call(NULL, &x, 1, &y, 1), BRG_ERR_ARG,
                          "compiled is NULL");
    assert_brg_fails_with(brg_compiled_mark_dynamic(NULL, 0, 0), BRG_ERR_ARG,
                          "compiled is NULL");
    brg_compiled_destroy(NULL);
    assert_int_equal(brg_compiled_print(NULL, 0, text, sizeof text), 0);
    brg_compile_get_stats(NULL);
    assert_false(brg_compile_get_record(0, NULL));
    assert_brg_ok(brg_compiled_create(&c, sines, NULL, NULL));
    assert_brg_fails_with(brg_compiled_call(c, NULL, 1, &y, 1), BRG_ERR_ARG,
                          "inputs is NULL");
    assert_brg_fails_with(brg_compiled_call(c, &x, 1, NULL, 1), BRG_ERR_ARG,
                          "outputs is NULL");
    brg_compiled_destroy(c);
}

/* What is filled may be too small, or not there. */
static void test_misuse__texts(void **state)
{
    (void)state;
    brg_compile_options o = BRG_COMPILE_OPTIONS_INIT;
    brg_compiled *c;
    brg_tensor *x = leaf_from(1, BRG_SHAPE(3)), *y;
    char text[8];
    int scope = begin_with(o);
    backward_of_chain(2, 3, 0);
    assert_brg_ok(brg_compile_end(scope));
    o.whole = true;
    assert_brg_ok(brg_compiled_create(&c, sines, NULL, &o));
    assert_int_equal(brg_compiled_print(c, 0, text, sizeof text), 0);
    assert_brg_ok(brg_compiled_call(c, &x, 1, &y, 1));
    for (int k = 0; k < 3; k++) {
        size_t n = k == 0   ? brg_compile_print(0, NULL, 0)
                   : k == 1 ? brg_compile_print_dot(0, NULL, 0)
                            : brg_compiled_print(c, 0, NULL, 0);
        assert_true(n > sizeof text);
        size_t again = k == 0   ? brg_compile_print(0, text, sizeof text)
                       : k == 1 ? brg_compile_print_dot(0, text, sizeof text)
                                : brg_compiled_print(c, 0, text, sizeof text);
        assert_int_equal(n, again);
        assert_int_equal(strlen(text), sizeof text - 1);
        again = k == 0   ? brg_compile_print(0, NULL, sizeof text)
                : k == 1 ? brg_compile_print_dot(0, NULL, sizeof text)
                         : brg_compiled_print(c, 0, NULL, sizeof text);
        assert_int_equal(n, again);
    }
    assert_int_equal(brg_compile_print(99, text, sizeof text), 0);
    assert_int_equal(brg_compile_print(SIZE_MAX, text, sizeof text), 0);
    assert_int_equal(brg_compile_print_dot(99, text, sizeof text), 0);
    assert_int_equal(brg_compiled_print(c, 99, text, sizeof text), 0);
    brg_compile_record r;
    assert_false(brg_compile_get_record(64, &r));
    assert_false(brg_compile_get_record(SIZE_MAX, &r));
    brg_compiled_destroy(c);
}

static void test_misuse__sizes_are_marked_before_the_first_call(void **state)
{
    (void)state;
    brg_compile_options o = BRG_COMPILE_OPTIONS_INIT;
    brg_compiled *c;
    brg_tensor *x = leaf_from(1, BRG_SHAPE(3)), *y;
    o.whole = true;
    assert_brg_ok(brg_compiled_create(&c, sines, NULL, &o));
    assert_brg_fails_with(brg_compiled_mark_dynamic(c, 16, 0), BRG_ERR_ARG,
                          "input 16, dim 0: expected below");
    assert_brg_fails_with(brg_compiled_mark_dynamic(c, 0, -1), BRG_ERR_ARG,
                          "dim -1");
    assert_brg_fails_with(brg_compiled_mark_dynamic(c, 0, BRG_MAX_DIMS),
                          BRG_ERR_ARG, "expected below");
    assert_brg_ok(brg_compiled_mark_dynamic(c, 0, 0));
    assert_brg_ok(brg_compiled_call(c, &x, 1, &y, 1));
    assert_brg_fails_with(brg_compiled_mark_dynamic(c, 0, 0), BRG_ERR_STATE,
                          "before its first call");
    brg_compiled_destroy(c);
}

/* ---- Scopes -------------------------------------------------------------------- */

static void test_misuse__scopes(void **state)
{
    (void)state;
    int scope[40], n = 0;
    assert_brg_fails_with(brg_compile_end(0), BRG_ERR_STATE, "0 are open");
    assert_brg_fails_with(brg_compile_end(-1), BRG_ERR_STATE, "scope -1");
    assert_brg_fails_with(brg_compile_end(1), BRG_ERR_STATE, "scope 1");
    while (n < 40 && brg_compile_begin(&scope[n], NULL) == BRG_OK)
        n++;
    assert_int_equal(n, 32);
    assert_non_null(strstr(brg_error_message(), "nest 32 deep at most"));
    assert_brg_fails_with(brg_compile_disable_begin(&scope[n]), BRG_ERR_STATE,
                          "32 deep");
    assert_true(brg_compile_is_on());
    while (n-- > 0)
        assert_brg_ok(brg_compile_end(scope[n]));
    assert_false(brg_compile_is_on());
}

/* What is on is what brg_compile_is_on says. */
static void check_is_on(bool is_on)
{
    uint64_t before = compile_stats().captures + compile_stats().hits;
    brg_scope *scope = brg_scope_begin();
    brg_tensor *x = leaf_from(0.25, BRG_SHAPE(4));
    assert_int_equal(brg_compile_is_on(), is_on);
    assert_brg_ok(brg_backward(brg_sum_all(brg_tanh(x))));
    assert_int_equal(compile_stats().captures + compile_stats().hits > before,
                     is_on);
    brg_scope_end(scope);
}

typedef struct called_from {
    brg_status (*what)(struct called_from *from);
    int scope;
    brg_status status;
    char text[256];
    int n_calls;
} called_from;

static brg_status calls(called_from *from)
{
    from->n_calls++;
    from->status = from->what(from);
    snprintf(from->text, sizeof from->text, "%s",
             from->status == BRG_OK ? "" : brg_error_message());
    return BRG_OK;
}

static brg_status on_gradient(brg_tensor *grad, brg_tensor **replacement,
                              void *user)
{
    (void)grad;
    (void)replacement;
    return calls(user);
}

static brg_status resets(called_from *from)
{
    (void)from;
    return brg_compile_reset();
}

static brg_status ends(called_from *from)
{
    return brg_compile_end(from->scope);
}

static brg_status begins(called_from *from)
{
    return brg_compile_begin(&from->scope, NULL);
}

static brg_status begins_and_ends(called_from *from)
{
    int scope;
    (void)from;
    BRG_TRY(brg_compile_begin(&scope, NULL));
    return brg_compile_end(scope);
}

static void backward_with_hook(called_from *from)
{
    brg_tensor *x = leaf_from(0.5, BRG_SHAPE(5));
    assert_brg_ok(brg_tensor_add_hook(NULL, x, on_gradient, from, NULL));
    assert_brg_ok(brg_backward(brg_sum_all(brg_exp(brg_tanh(x)))));
    assert_int_equal(from->n_calls, 1);
}

static void test_misuse__from_a_hook_of_a_plan(void **state)
{
    (void)state;
    called_from from = {.what = resets};
    assert_brg_ok(brg_compile_begin(&from.scope, NULL));
    backward_with_hook(&from);
    assert_int_equal(from.status, BRG_ERR_STATE);
    assert_non_null(strstr(from.text, "a plan is running"));
    check_is_on(true);
    int scope = from.scope;
    from = (called_from){.what = begins};
    backward_with_hook(&from);
    assert_int_equal(from.status, BRG_OK);
    check_is_on(true);
    assert_brg_ok(brg_compile_end(from.scope));
    from = (called_from){.what = begins_and_ends};
    backward_with_hook(&from);
    check_is_on(true);
    /* The scope around it. */
    from = (called_from){.what = ends, .scope = scope};
    backward_with_hook(&from);
    assert_int_equal(from.status, BRG_OK);
    check_is_on(false);
    assert_brg_fails_with(brg_compile_end(scope), BRG_ERR_STATE, "0 are open");
    check_is_on(false);
}

static void test_misuse__from_a_hook_of_an_eager_backward(void **state)
{
    (void)state;
    called_from from = {.what = begins};
    backward_with_hook(&from);
    check_is_on(true);
    assert_brg_ok(brg_compile_end(from.scope));
    check_is_on(false);
    from = (called_from){.what = begins_and_ends};
    backward_with_hook(&from);
    check_is_on(false);
}

/* ---- Whole functions -------------------------------------------------------------- */

typedef struct whole {
    brg_tensor *w;
    called_from *inside; /* called by the function */
} whole;

static brg_status steps(brg_tensor *const *in, size_t n_in, brg_tensor **out,
                        size_t n_out, void *user)
{
    whole *v = user;
    (void)n_in, (void)n_out;
    out[0] = brg_sum_all(brg_sin(brg_mul(in[0], v->w)));
    if (!out[0])
        return brg_error_code();
    if (v->inside) {
        BRG_TRY(calls(v->inside));
        BRG_TRY(v->inside->status);
    }
    return brg_backward(out[0]);
}

static brg_status call_whole(whole *v, brg_compiled **c, bool is_whole)
{
    brg_compile_options o = BRG_COMPILE_OPTIONS_INIT;
    brg_tensor *x = brg_full(BRG_DTYPE_F32, BRG_SHAPE(2, 3), 0.5), *y;
    o.whole = is_whole;
    if (!*c) {
        v->w = leaf_from(1, BRG_SHAPE(2, 3));
        assert_brg_ok(brg_compiled_create(c, steps, v, &o));
    }
    return brg_compiled_call(*c, &x, 1, &y, 1);
}

/* A step is a plan, too. */
static void test_misuse__from_a_hook_of_a_step(void **state)
{
    (void)state;
    whole v = {0};
    brg_compiled *c = NULL;
    assert_brg_ok(call_whole(&v, &c, true));
    called_from from = {.what = resets};
    assert_brg_ok(brg_tensor_add_hook(NULL, v.w, on_gradient, &from, NULL));
    assert_brg_ok(call_whole(&v, &c, true));
    assert_int_equal(from.n_calls, 1);
    assert_int_equal(from.status, BRG_ERR_STATE);
    assert_non_null(strstr(from.text, "a plan is running"));
    check_is_on(false);
    from = (called_from){.what = begins_and_ends};
    assert_brg_ok(call_whole(&v, &c, true));
    assert_int_equal(from.status, BRG_OK);
    check_is_on(false);
    from = (called_from){.what = begins};
    assert_brg_fails_with(call_whole(&v, &c, true), BRG_ERR_STATE,
                          "left scopes of its own open");
    check_is_on(false);
    from = (called_from){.what = ends, .scope = 1};
    assert_brg_fails_with(call_whole(&v, &c, true), BRG_ERR_STATE, "Nested");
    check_is_on(false);
    brg_compiled_destroy(c);
}

static void check_inside(brg_status (*what)(called_from *), bool is_whole,
                         const char *text)
{
    called_from from = {.what = what, .scope = 1};
    whole v = {.inside = &from};
    brg_compiled *c = NULL;
    assert_brg_fails_with(call_whole(&v, &c, is_whole), BRG_ERR_STATE, text);
    check_is_on(false);
    v.inside = NULL;
    assert_brg_ok(call_whole(&v, &c, is_whole));
    check_is_on(false);
    brg_compiled_destroy(c);
}

static void test_misuse__inside_a_function(void **state)
{
    (void)state;
    check_inside(resets, true,
                 "brg_compile_reset: a function is being captured");
    check_inside(resets, false, "Nested");
    for (int k = 0; k < 2; k++) {
        check_inside(ends, k, "Nested");
        check_inside(begins, k, "left scopes of its own open");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_misuse__options),
        scoped_test(test_misuse__null),
        scoped_test(test_misuse__texts),
        scoped_test(test_misuse__sizes_are_marked_before_the_first_call),
        scoped_test(test_misuse__scopes),
        scoped_test(test_misuse__from_a_hook_of_a_plan),
        scoped_test(test_misuse__from_a_hook_of_an_eager_backward),
        scoped_test(test_misuse__from_a_hook_of_a_step),
        scoped_test(test_misuse__inside_a_function),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
