/* SPDX-License-Identifier: Apache-2.0
 * Rows of the backward suite: which gradients a backward makes, where they
 * go, graphs used again, backwards inside a backward. */
#include "tests/rows/both.h"

static void backward_to(brg_tensor *loss, brg_tensor *const *inputs, size_t n,
                        bool retain)
{
    brg_backward_options options = BRG_BACKWARD_OPTIONS_INIT;
    options.inputs = inputs;
    options.n_inputs = n;
    options.retain_graph = retain;
    assert_brg_ok(brg_backward_with(&loss, 1, &options));
}

/* ---- Fan-in and accumulation ------------------------------------------------- */

static void test_implicit_add_body(yields *y)
{
    for (int step = 0; step < 3; step++) {
        brg_tensor *x = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(4, 3));
        assert_brg_ok(brg_set_requires_grad(x, true));
        brg_tensor *h = brg_sin(x);
        brg_tensor *z = brg_add(brg_mul(h, h), brg_mul_scalar(h, 3));
        backward_of_sum(brg_add(z, brg_exp(h)));
        for (int64_t i = 0; i < 12; i++) {
            double at = element(x, i), s = sin(at);
            assert_float_equal(element(brg_tensor_grad(x), i),
                               (2 * s + 3 + exp(s)) * cos(at), 1e-5);
        }
        yield_grad(y, x);
    }
}

/* Four arrivals at the sine: three sums, in the plan by name. */
static void test_implicit_add(void **state)
{
    (void)state;
    run_both(test_implicit_add_body, 1);
    const char *text = plan_text(0);
    assert_int_equal(brg_test_count(text, "= add("), 3);
}

static void test_inplace_grad_update_body(yields *y)
{
    brg_tensor *x = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(10, 10));
    brg_tensor *w[2];
    for (int k = 0; k < 2; k++) {
        w[k] = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(10, 10));
        assert_brg_ok(brg_set_requires_grad(w[k], true));
    }
    for (int step = 0; step < 10; step++) {
        brg_tensor *grads[2], *before[2], *fresh[2];
        const void *data[2];
        for (int k = 0; k < 2; k++) {
            grads[k] = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(10, 10));
            before[k] = brg_copy(grads[k]);
            data[k] = brg_tensor_data(grads[k]);
            assert_brg_ok(brg_tensor_set_grad(w[k], grads[k]));
        }
        brg_tensor *h = brg_relu(brg_linear(x, w[0], NULL));
        brg_tensor *loss = brg_sum_all(brg_linear(h, w[1], NULL));
        brg_backward_options keep = BRG_BACKWARD_OPTIONS_INIT;
        keep.retain_graph = true;
        int scope;
        assert_brg_ok(brg_compile_disable_begin(&scope));
        assert_brg_ok(brg_grad(fresh, &loss, 1, w, 2, &keep));
        assert_brg_ok(brg_compile_end(scope));
        assert_brg_ok(brg_backward(loss));
        for (int k = 0; k < 2; k++) {
            for (int64_t i = 0; i < 100; i++)
                assert_float_equal(element(grads[k], i),
                                   element(before[k], i) + element(fresh[k], i),
                                   1e-4);
            assert_ptr_equal(brg_tensor_grad(w[k]), grads[k]);
            assert_ptr_equal(brg_tensor_data(grads[k]), data[k]);
            yield_grad(y, w[k]);
        }
    }
}
BOTH_ROW(test_inplace_grad_update, 1)

/* ---- Graphs used again ---------------------------------------------------------- */

static void square_again(brg_tensor *x, brg_tensor *square, bool compiles,
                         yields *y)
{
    int scope = 0;
    assert_brg_ok(brg_tensor_set_grad(x, NULL));
    assert_brg_ok(compiles ? brg_compile_begin(&scope, NULL)
                           : brg_compile_disable_begin(&scope));
    backward_to(square, NULL, 0, true);
    assert_brg_ok(brg_compile_end(scope));
    assert_float_equal(item(brg_tensor_grad(x)), 4, 0);
    yield_grad(y, x);
}

static void test_keep_graph_simple_body(yields *y)
{
    brg_tensor *x = leaf_full(2, BRG_SCALAR), *square = brg_square(x);
    square_again(x, square, false, y);
    square_again(x, square, false, y);
    square_again(x, square, y->is_compiled, y);
    square_again(x, square, y->is_compiled, y);
}
BOTH_ROW(test_keep_graph_simple, 1)

static void test_keep_graph_usage_after_compiled_body(yields *y)
{
    brg_tensor *x = leaf_full(2, BRG_SCALAR), *square = brg_square(x);
    for (int round = 0; round < 5; round++) {
        square_again(x, square, y->is_compiled, y);
        square_again(x, square, false, y);
    }
}
BOTH_ROW(test_keep_graph_usage_after_compiled, 1)

/* ---- A backward inside a backward -------------------------------------------------- */

FORWARD(double_forward)
{
    OUT(0, brg_mul_scalar(ARG(0), 2));
    return BRG_OK;
}

BACKWARD(backward_inside)
{
    bool mode = brg_grad_mode_set(true);
    brg_tensor *x = leaf_full(3, BRG_SHAPE(2));
    brg_status status = brg_backward(brg_sum_all(brg_mul(x, x)));
    brg_grad_mode_set(mode);
    BRG_TRY(status);
    expect_all(brg_tensor_grad(x), 6);
    GRAD(0, brg_mul_scalar(g[0], 2));
    return BRG_OK;
}

static void test_no_nested_compiled_autograd_body(yields *y)
{
    brg_function *f =
        function_of("UnrelatedBackward", double_forward, backward_inside, 1);
    brg_tensor *x = leaf_from(1, BRG_SHAPE(3));
    backward_of_sum(CALL(f, x));
    expect_all(brg_tensor_grad(x), 2);
    yield_grad(y, x);
    brg_function_release(f);
}
BOTH_ROW(test_no_nested_compiled_autograd, 1)

/* ---- Which leaves -------------------------------------------------------------------- */

static void test_no_output_nodes_all_leaves_body(yields *y)
{
    for (int step = 0; step < 3; step++) {
        brg_tensor *a = leaf_from(step + 1, BRG_SHAPE(4));
        brg_tensor *b = leaf_from(step - 2, BRG_SHAPE(4));
        backward_of_sum(brg_sin(brg_add(brg_mul(a, b), a)));
        assert_non_null(brg_tensor_grad(a));
        assert_non_null(brg_tensor_grad(b));
        yield_grad(y, a);
        yield_grad(y, b);
    }
}

static void test_no_output_nodes_all_leaves(void **state)
{
    (void)state;
    run_both(test_no_output_nodes_all_leaves_body, 1);
    const char *text = plan_text(0);
    assert_int_equal(brg_test_count(text, "deliver"), 0); /* no outputs */
    assert_int_equal(brg_test_count(text, "accumulate@"), 2);
}

static void test_no_output_nodes_different_leaves_will_recompile_body(yields *y)
{
    brg_tensor *a = leaf_from(1, BRG_SHAPE(4)),
               *b = leaf_from(-2, BRG_SHAPE(4));
    brg_tensor *loss = brg_sum_all(brg_mul(brg_sin(a), brg_sin(b)));
    backward_to(loss, &a, 1, true);
    assert_null(brg_tensor_grad(b));
    yield_grad(y, a);
    backward_to(loss, &b, 1, true);
    yield_grad(y, a);
    yield_grad(y, b);
}
BOTH_ROW(test_no_output_nodes_different_leaves_will_recompile, 2)

FORWARD(copy_forward)
{
    OUT(0, brg_copy(ARG(0)));
    return BRG_OK;
}

BACKWARD(raising)
{
    return brg_error_set(BRG_ERR_CALLBACK, __FILE__, __LINE__,
                         "this branch was not asked for");
}

typedef struct branches {
    brg_function *f;
    brg_tensor *a, *b, *c; /* the path of a raises */
    brg_tensor *loss;
} branches;

static branches make_branches(void)
{
    branches n = {.f = function_of("Unreachable", copy_forward, raising, 1)};
    n.a = leaf_from(1, BRG_SHAPE(4));
    n.b = leaf_from(-2, BRG_SHAPE(4));
    n.c = leaf_from(3, BRG_SHAPE(4));
    brg_tensor *bc = brg_mul(brg_sin(n.b), n.c);
    n.loss = brg_sum_all(brg_mul(CALL(n.f, brg_exp(n.a)), bc));
    return n;
}

static void test_no_output_nodes_some_leaves_body(yields *y)
{
    branches n = make_branches();
    backward_to(n.loss, (brg_tensor *[]){n.b, n.c}, 2, true);
    assert_null(brg_tensor_grad(n.a));
    yield_grad(y, n.b);
    yield_grad(y, n.c);
    /* Without the pruning it does raise. */
    int scope;
    assert_brg_ok(brg_compile_disable_begin(&scope));
    assert_brg_fails_with(brg_backward(n.loss), BRG_ERR_CALLBACK,
                          "not asked for");
    assert_brg_ok(brg_compile_end(scope));
    brg_function_release(n.f);
}

static void test_no_output_nodes_some_leaves(void **state)
{
    (void)state;
    run_both(test_no_output_nodes_some_leaves_body, 1);
    const char *text = plan_text(0);
    assert_int_equal(brg_test_count(text, "call@"), 0);
    assert_int_equal(brg_test_count(text, "= exp("), 0);
    assert_int_equal(brg_test_count(text, "accumulate@"), 2);
}

static void test_output_nodes_all_leaves_body(yields *y)
{
    for (int step = 0; step < 3; step++) {
        brg_tensor *a = leaf_from(step + 1, BRG_SHAPE(4));
        brg_tensor *b = leaf_from(step - 2, BRG_SHAPE(4));
        brg_tensor *loss = brg_sum_all(brg_mul(brg_sin(a), b)), *grads[2];
        assert_brg_ok(
            brg_grad(grads, &loss, 1, (brg_tensor *[]){a, b}, 2, NULL));
        assert_null(brg_tensor_grad(a));
        assert_null(brg_tensor_grad(b));
        for (int64_t i = 0; i < 4; i++) {
            double p = element(a, i), q = element(b, i);
            assert_float_equal(element(grads[0], i), cos(p) * q, 1e-5);
            assert_float_equal(element(grads[1], i), sin(p), 1e-5);
        }
        yield(y, grads[0]);
        yield(y, grads[1]);
    }
}

static void test_output_nodes_all_leaves(void **state)
{
    (void)state;
    run_both(test_output_nodes_all_leaves_body, 1);
    const char *text = plan_text(0);
    assert_int_equal(brg_test_count(text, "deliver"), 2);
    assert_int_equal(brg_test_count(text, "accumulate@"), 0);
}

static void test_output_nodes_some_leaves_body(yields *y)
{
    branches n = make_branches();
    brg_tensor *grad;
    assert_brg_ok(brg_grad(&grad, &n.loss, 1, &n.c, 1, NULL));
    assert_null(brg_tensor_grad(n.c));
    assert_null(brg_tensor_grad(n.a));
    yield(y, grad);
    brg_function_release(n.f);
}

static void test_output_nodes_some_leaves(void **state)
{
    (void)state;
    run_both(test_output_nodes_some_leaves_body, 1);
    const char *text = plan_text(0);
    assert_int_equal(brg_test_count(text, "call@"), 0);
    assert_int_equal(brg_test_count(text, "deliver"), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_implicit_add),
        scoped_test(test_inplace_grad_update),
        scoped_test(test_keep_graph_simple),
        scoped_test(test_keep_graph_usage_after_compiled),
        scoped_test(test_no_nested_compiled_autograd),
        scoped_test(test_no_output_nodes_all_leaves),
        scoped_test(test_no_output_nodes_different_leaves_will_recompile),
        scoped_test(test_no_output_nodes_some_leaves),
        scoped_test(test_output_nodes_all_leaves),
        scoped_test(test_output_nodes_some_leaves),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
