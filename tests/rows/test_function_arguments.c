/* SPDX-License-Identifier: Apache-2.0
 * Rows of the suite `function` on arguments: optional ones, constants, tuples,
 * tensors inside lists and objects. */
#include <brigade/random.h>

#include "tests/rows/checks.h"

/* ---- Optional and constant arguments ------------------------------------------------------------ */

FORWARD(default_forward)
{
    double scale = n_args > 1 ? args[1].as.real : 2.0;
    BRG_TRY(brg_context_set(ctx, "scale", brg_value_float(scale)));
    OUT(0, brg_mul_scalar(ARG(0), scale));
    return BRG_OK;
}

BACKWARD(default_backward)
{
    GRAD(0, brg_mul_scalar(g[0], brg_context_get(ctx, "scale").as.real));
    return BRG_OK;
}

static void test_default_values_checks(void)
{
    brg_function *f = function_of("Foo", default_forward, default_backward, 1);
    brg_tensor *x = leaf_full(1, BRG_SHAPE(2));
    brg_value out[1];
    brg_tensor *y = CALL(f, x);
    expect_all(y, 2);
    assert_brg_ok(APPLY(f, out, brg_value_tensor(x), brg_value_float(5)));
    expect_all(out[0].as.tensor, 5);
    backward_of_sum(out[0].as.tensor);
    expect_all(brg_tensor_grad(x), 5);
    assert_brg_ok(brg_tensor_set_grad(x, NULL));
    backward_of_sum(y);
    expect_all(brg_tensor_grad(x), 2); /* the default, not the last value */
    bool mode = brg_grad_mode_set(false);
    expect_all(CALL(f, x), 2);
    brg_grad_mode_set(mode);
    brg_function_release(f);
}

/* Scales by 2, and by its negative if the second argument says so. */
FORWARD(default_sign_forward)
{
    bool is_negative = n_args > 1 && args[1].as.truth;
    BRG_TRY(brg_context_set(ctx, "is_negative", brg_value_bool(is_negative)));
    OUT(0, brg_mul_scalar(ARG(0), is_negative ? -2 : 2));
    return BRG_OK;
}

BACKWARD(default_sign_backward)
{
    bool is_negative = brg_context_get(ctx, "is_negative").as.truth;
    GRAD(0, brg_mul_scalar(g[0], is_negative ? -2 : 2));
    return BRG_OK;
}

/* Calls with one more argument than the function needs. */
static void expect_sign(const brg_function *f, int given, double want)
{
    brg_tensor *x = leaf_full(1, BRG_SHAPE(2));
    brg_value args[] = {brg_value_tensor(x), brg_value_bool(given == 1)};
    brg_tensor *y =
        assert_brg_some(brg_function_call(f, args, given < 0 ? 1 : 2));
    expect_all(y, want);
    backward_of_sum(y);
    expect_all(brg_tensor_grad(x), want);
}

static void default_sign_checks(void)
{
    brg_function *f =
        function_traced(BRG_FUNCTION_TRACEABLE, "Sign", default_sign_forward,
                        default_sign_backward, 1);
    expect_sign(f, 0, 2);
    expect_sign(f, 1, -2);
    expect_sign(f, 0, 2);
    expect_sign(f, 1, -2);
    brg_function_release(f);
}

static void left_out_checks(void)
{
    brg_function *f =
        function_traced(BRG_FUNCTION_TRACEABLE, "Sign", default_sign_forward,
                        default_sign_backward, 1);
    expect_sign(f, -1, 2);
    expect_sign(f, 1, -2);
    expect_sign(f, -1, 2);
    brg_function_release(f);
}

/* A number is read at each run, so that one plan serves the default and any
 * other; a truth value, given or not, is in the key. */
static void test_default_values(void **state)
{
    (void)state;
    check_both(test_default_values_checks, 2);
    check_both(default_sign_checks, 2);
    assert_int_equal(both_stats().hits, 2);
    assert_int_equal(count_calls(), 0);
    check_both(left_out_checks, 2);
    assert_int_equal(both_stats().hits, 1);
}

enum { ENUM_SIN, ENUM_COS };

FORWARD(enum_forward)
{
    SAVE(ARG(0));
    BRG_TRY(brg_context_set(ctx, "kind", args[1]));
    OUT(0, args[1].as.integer == ENUM_SIN ? brg_sin(ARG(0)) : brg_cos(ARG(0)));
    return BRG_OK;
}

BACKWARD(enum_backward)
{
    SAVED(x, 0);
    bool is_sin = brg_context_get(ctx, "kind").as.integer == ENUM_SIN;
    GRAD(0, brg_mul(g[0], is_sin ? brg_cos(x) : brg_neg(brg_sin(x))));
    return BRG_OK;
}

/* A constant of the key is given inside a list. */
FORWARD(enum_list_forward)
{
    SAVE(ARG(0));
    BRG_TRY(brg_context_set(ctx, "kind", brg_value_list(&args[1], 1)));
    OUT(0, args[1].as.integer == ENUM_SIN ? brg_sin(ARG(0)) : brg_cos(ARG(0)));
    return BRG_OK;
}

BACKWARD(enum_list_backward)
{
    SAVED(x, 0);
    brg_value kind = brg_context_get(ctx, "kind").as.list.items[0];
    GRAD(0, brg_mul(g[0], kind.as.integer == ENUM_SIN ? brg_cos(x)
                                                      : brg_neg(brg_sin(x))));
    return BRG_OK;
}

/* Traced, each value has its plan, in which the other branch is not. */
static void check_enum_plans(void)
{
    brg_function *f = function_traced(BRG_FUNCTION_TRACEABLE, "SomeEnum",
                                      enum_list_forward, enum_list_backward, 1);
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    options.backend = BRG_COMPILE_BACKEND_EAGER;
    brg_compile_stats stats;
    brg_value out[1];
    int scope;
    assert_brg_ok(brg_compile_reset());
    assert_brg_ok(brg_compile_begin(&scope, &options));
    for (int i = 0; i < 4; i++) {
        brg_tensor *x = leaf_full(0.5, BRG_SHAPE(2));
        assert_brg_ok(APPLY(f, out, brg_value_tensor(x), brg_value_int(i % 2)));
        backward_of_sum(out[0].as.tensor);
        expect_all(brg_tensor_grad(x), i % 2 ? -sin(0.5) : cos(0.5));
    }
    assert_brg_ok(brg_compile_end(scope));
    brg_compile_get_stats(&stats);
    assert_int_equal(stats.captures, 2);
    assert_int_equal(stats.hits, 2);
    for (size_t kind = 0; kind < 2; kind++) {
        const char *text = plan_text(kind);
        assert_null(strstr(text, "call@"));
        assert_int_equal(strstr(text, "cos(") != NULL, kind == ENUM_SIN);
        assert_int_equal(strstr(text, "sin(") != NULL, kind == ENUM_COS);
    }
    brg_function_release(f);
}

static void test_enum_arg(void **state)
{
    (void)state;
    check_enum_plans();
    brg_function *f = function_of("SomeEnum", enum_forward, enum_backward, 1);
    const double value[] = {sin(0.5), cos(0.5)},
                 slope[] = {cos(0.5), -sin(0.5)};
    brg_value out[1];
    for (int kind = ENUM_SIN; kind <= ENUM_COS; kind++) {
        brg_tensor *x = leaf_full(0.5, BRG_SHAPE(2));
        assert_brg_ok(APPLY(f, out, brg_value_tensor(x), brg_value_int(kind)));
        expect_all(out[0].as.tensor, value[kind]);
        backward_of_sum(out[0].as.tensor);
        expect_all(brg_tensor_grad(x), slope[kind]);
    }
    brg_function_release(f);
}

/* ---- Tensors inside other arguments ------------------------------------------------------ */

typedef struct pair {
    brg_tensor *a, *b;
} pair;

/* x * a + z * list[0], with a from a struct. */
FORWARD(nested_forward)
{
    const pair *p = args[1].as.pointer;
    brg_tensor *first = args[3].as.list.items[0].as.tensor;
    SAVE(p->a, first);
    OUT(0, brg_add(brg_mul(ARG(0), p->a), brg_mul(ARG(2), first)));
    return BRG_OK;
}

BACKWARD(nested_backward)
{
    SAVED(a, 0);
    SAVED(first, 1);
    GRAD(0, brg_mul(g[0], a));
    GRAD(2, brg_mul(g[0], first));
    return BRG_OK;
}

static void test_multiple_different_non_tensor_inputs(void **state)
{
    (void)state;
    brg_function *f = function_of("Foo", nested_forward, nested_backward, 1);
    brg_tensor *x = leaf_full(1, BRG_SHAPE(2)), *z = leaf_full(1, BRG_SHAPE(2));
    pair p = {leaf_full(4.375, BRG_SHAPE(2)), leaf_full(1, BRG_SHAPE(2))};
    brg_tensor *in_list = leaf_full(2, BRG_SHAPE(2));
    brg_value list[] = {brg_value_tensor(in_list)}, out[1];
    assert_brg_ok(APPLY(f, out, brg_value_tensor(x), brg_value_pointer(&p),
                        brg_value_tensor(z), brg_value_list(list, 1)));
    expect_all(out[0].as.tensor, 6.375);
    backward_of_sum(out[0].as.tensor);
    expect_all(brg_tensor_grad(x), 4.375);
    expect_all(brg_tensor_grad(z), 2);
    assert_null(brg_tensor_grad(p.a));
    assert_null(brg_tensor_grad(p.b));
    assert_null(brg_tensor_grad(in_list));
    brg_function_release(f);
}

FORWARD(list_forward)
{
    const brg_value *items = args[1].as.list.items;
    brg_tensor *sum = brg_add(items[0].as.tensor, items[1].as.tensor);
    SAVE(sum);
    OUT(0, brg_mul(ARG(0), sum));
    return BRG_OK;
}

BACKWARD(list_backward)
{
    SAVED(sum, 0);
    GRAD(0, brg_mul(g[0], sum));
    return BRG_OK;
}

static void test_tensor_list_as_input(void **state)
{
    (void)state;
    brg_function *f = function_of("Foo", list_forward, list_backward, 1);
    brg_tensor *x = leaf_full(1, BRG_SHAPE(2));
    brg_tensor *a = leaf_full(3, BRG_SHAPE(2)), *b = leaf_full(4, BRG_SHAPE(2));
    brg_value list[] = {brg_value_tensor(a), brg_value_tensor(b)}, out[1];
    assert_brg_ok(APPLY(f, out, brg_value_tensor(x), brg_value_list(list, 2)));
    backward_of_sum(out[0].as.tensor);
    expect_all(brg_tensor_grad(x), 7);
    assert_null(brg_tensor_grad(a));
    assert_null(brg_tensor_grad(b));
    brg_function_release(f);
}

/* x * (a * z + b): the struct's tensors get no gradient. */
FORWARD(object_forward)
{
    const pair *p = args[1].as.pointer;
    SAVE(ARG(0), ARG(2), p->a, p->b);
    OUT(0, brg_mul(ARG(0), brg_add(brg_mul(p->a, ARG(2)), p->b)));
    return BRG_OK;
}

BACKWARD(object_backward)
{
    SAVED(x, 0);
    SAVED(z, 1);
    SAVED(a, 2);
    SAVED(b, 3);
    GRAD(0, brg_mul(g[0], brg_add(brg_mul(a, z), b)));
    GRAD(2, brg_mul(g[0], brg_mul(x, a)));
    return BRG_OK;
}

static brg_function_tracing object_tracing;

static void test_user_defined_object_as_input_checks(void)
{
    brg_function *f = function_traced(object_tracing, "Foo", object_forward,
                                      object_backward, 1);
    brg_tensor *x = leaf_full(1, BRG_SHAPE(2)), *z = leaf_full(4, BRG_SHAPE(2));
    pair p = {leaf_full(2, BRG_SHAPE(2)), leaf_full(0.75, BRG_SHAPE(2))};
    brg_value out[1];
    assert_brg_ok(APPLY(f, out, brg_value_tensor(x), brg_value_pointer(&p),
                        brg_value_tensor(z)));
    expect_all(out[0].as.tensor, 8.75);
    backward_of_sum(out[0].as.tensor);
    expect_all(brg_tensor_grad(x), 8.75);
    expect_all(brg_tensor_grad(z), 2);
    assert_null(brg_tensor_grad(p.a));
    assert_null(brg_tensor_grad(p.b));
    brg_function_release(f);
}

/* The struct's tensors are saved beside the arguments 0 and 2; the struct's
 * place has no gradient. */
static void test_user_defined_object_as_input(void **state)
{
    (void)state;
    for (int k = 0; k < 2; k++) {
        object_tracing = k ? BRG_FUNCTION_TRACEABLE : BRG_FUNCTION_OPAQUE;
        check_both(test_user_defined_object_as_input_checks, 1);
        assert_true(plan_has(0, "Foo(3 -> 1): saved 4, of arguments 0 2, "
                                "tensors 0 2, gradients 0 2, "
                                "non-differentiable none\n"));
    }
    /* Traced, they are inputs of the plan: x, z, a, b and the root's. */
    assert_int_equal(count_calls(), 0);
    assert_true(plan_has(0, "in4"));
    assert_false(plan_has(0, "in6"));
}

/* ---- A tuple of sizes ------------------------------------------------------------------- */

FORWARD(tuple_forward)
{
    const brg_value *items = args[1].as.list.items;
    brg_tensor *noise = brg_rand(
        BRG_DTYPE_F32, BRG_SHAPE(items[0].as.integer, items[1].as.integer));
    SAVE(noise);
    OUT(0, brg_mul(ARG(0), noise));
    return BRG_OK;
}

BACKWARD(tuple_backward)
{
    SAVED(noise, 0);
    GRAD(0, brg_mul(g[0], noise));
    return BRG_OK;
}

static void test_tuple_arg_checks(void)
{
    brg_function *f = function_of("TupleArg", tuple_forward, tuple_backward, 1);
    brg_tensor *x = leaf_full(1, BRG_SHAPE(10, 10));
    brg_value shape[] = {brg_value_int(10), brg_value_int(10)}, out[1];
    assert_brg_ok(APPLY(f, out, brg_value_tensor(x), brg_value_list(shape, 2)));
    brg_random_state before, after;
    brg_random_get_state(&before);
    backward_of_sum(out[0].as.tensor);
    brg_random_get_state(&after);
    assert_int_equal(before.offset, after.offset); /* nothing drawn again */
    brg_tensor *grad = brg_tensor_grad(x);
    assert_int_equal(brg_tensor_size(grad, 0), 10);
    assert_int_equal(brg_tensor_size(grad, 1), 10);
    for (int64_t i = 0; i < 100; i++)
        assert_float_equal(element(grad, i), element(out[0].as.tensor, i), 0);
    brg_function_release(f);
}
CHECK_ROW(test_tuple_arg, 1)

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_default_values),
        scoped_test(test_enum_arg),
        scoped_test(test_multiple_different_non_tensor_inputs),
        scoped_test(test_tensor_list_as_input),
        scoped_test(test_tuple_arg),
        scoped_test(test_user_defined_object_as_input),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
