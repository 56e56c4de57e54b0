/* SPDX-License-Identifier: Apache-2.0
 * Rows of the suite `function` on what a backward sees and what was saved for
 * it: layouts, several outputs, orders of differentiation. */
#include "tests/rows/checks.h"

/* ---- Layouts that backward can see ------------------------------------------------ */

FORWARD(matmul_forward)
{
    SAVE(ARG(0), ARG(1));
    OUT(0, brg_matmul(ARG(0), ARG(1)));
    return BRG_OK;
}

static brg_status expect_contiguous(const brg_tensor *t, const char *what)
{
    if (brg_tensor_is_contiguous(t))
        return BRG_OK;
    return brg_error_set(BRG_ERR_INTERNAL, __FILE__, __LINE__,
                         "%s is not contiguous", what);
}

BACKWARD(matmul_contiguous_backward)
{
    SAVED(x, 0);
    SAVED(w, 1);
    GRAD(0, brg_matmul(g[0], brg_transpose(w, 0, 1)));
    GRAD(1, brg_matmul(brg_transpose(x, 0, 1), g[0]));
    BRG_TRY(expect_contiguous(gi[0], "the gradient of x"));
    if (brg_tensor_is_contiguous(brg_transpose(gi[1], 0, 1)))
        return brg_error_set(BRG_ERR_INTERNAL, __FILE__, __LINE__,
                             "a transposed product says it is contiguous");
    return expect_contiguous(gi[1], "the gradient of w");
}

static void test_assert_is_contiguous_after_matmul_checks(void)
{
    brg_function *f =
        function_of("MyMM", matmul_forward, matmul_contiguous_backward, 1);
    brg_tensor *x = leaf_full(1, BRG_SHAPE(4, 3)),
               *w = leaf_full(2, BRG_SHAPE(3, 5));
    brg_tensor *y = CALL(f, x, w);
    expect_all(y, 6);
    backward_of_sum(y);
    expect_all(brg_tensor_grad(x), 10);
    expect_all(brg_tensor_grad(w), 4);
    brg_function_release(f);
}
CHECK_ROW(test_assert_is_contiguous_after_matmul, 1)

FORWARD(copy_forward)
{
    OUT(0, brg_copy(ARG(0)));
    return BRG_OK;
}

static bool was_contiguous; /* gO, as it came */

BACKWARD(contiguous_grad_backward)
{
    was_contiguous = brg_tensor_is_contiguous(g[0]);
    brg_tensor *rows = brg_contiguous(g[0]);
    BRG_TRY(expect_contiguous(rows, "gO"));
    if (brg_tensor_shares_storage(rows, g[0]) != was_contiguous)
        return brg_error_set(BRG_ERR_INTERNAL, __FILE__, __LINE__,
                             "row-major gO was copied, or other was not");
    GRAD(0, brg_mul_scalar(rows, 2));
    return BRG_OK;
}

/* Fails unless gO is row-major. */
BACKWARD(assert_contiguous_backward)
{
    BRG_TRY(expect_contiguous(g[0], "gO"));
    GRAD(0, brg_mul_scalar(g[0], 2));
    return BRG_OK;
}

static bool is_turned; /* gO comes transposed */

static void contiguous_in_plan_body(yields *y)
{
    brg_function *f =
        function_traced(BRG_FUNCTION_TRACEABLE, "MyFunction", copy_forward,
                        assert_contiguous_backward, 1);
    for (int64_t n = 2; n < 5; n++) {
        brg_tensor *x = leaf_from(0, BRG_SHAPE(n, 3));
        brg_tensor *w = brg_detach(leaf_from(1, BRG_SHAPE(3, n)));
        brg_tensor *out = CALL(f, x);
        /* Eagerly the function refuses what only a plan makes row-major. */
        bool turns = is_turned && y->is_compiled;
        backward_of_sum(turns ? brg_mul(brg_transpose(out, 0, 1), w)
                              : brg_mul(out, brg_copy(brg_transpose(w, 0, 1))));
        yield(y, brg_tensor_grad(x));
        for (int64_t i = 0; i < n; i++)
            for (int64_t k = 0; k < 3; k++)
                assert_float_equal(element(brg_tensor_grad(x), i * 3 + k),
                                   2 * (double)(1 + k * n + i), 0);
    }
    brg_function_release(f);
}

/* The product is row-major in any run; its transpose is copied, in the plan. */
static void check_contiguous_in_plan(void)
{
    for (int k = 0; k < 2; k++) {
        is_turned = k;
        both_backend = BRG_COMPILE_BACKEND_EAGER;
        run_both(contiguous_in_plan_body, 1);
        both_backend = BRG_COMPILE_BACKEND_DEFAULT;
        assert_int_equal(both_stats().hits, 2);
        assert_int_equal(count_calls(), 0);
        assert_int_equal(plan_has(0, "= copy("), k);
        run_both(contiguous_in_plan_body, 1);
    }
}

static void test_assert_is_contiguous_on_grad_output_directly(void **state)
{
    (void)state;
    brg_function *f =
        function_of("MyFunction", copy_forward, contiguous_grad_backward, 1);
    brg_tensor *x = leaf_from(0, BRG_SHAPE(2, 3));
    brg_tensor *w = brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(3, 2),
                                  (float[]){1, 2, 3, 4, 5, 6});
    backward_of_sum(brg_mul(CALL(f, x), brg_reshape(w, BRG_SHAPE(2, 3))));
    assert_true(was_contiguous);
    EXPECT_VALUES(brg_tensor_grad(x), 2, 4, 6, 8, 10, 12);
    assert_brg_ok(brg_tensor_set_grad(x, NULL));
    /* The gradient of a transpose arrives transposed. */
    backward_of_sum(brg_mul(brg_transpose(CALL(f, x), 0, 1), w));
    assert_false(was_contiguous);
    EXPECT_VALUES(brg_tensor_grad(x), 2, 6, 10, 4, 8, 12);
    brg_function_release(f);
    check_contiguous_in_plan();
}

BACKWARD(stride_backward)
{
    const int64_t *strides = brg_tensor_strides(g[0]);
    int last = brg_tensor_ndim(g[0]) - 1;
    GRAD(0, brg_mul_scalar(g[0], (double)strides[last]));
    return BRG_OK;
}

static void test_stride_in_bwd_checks(void)
{
    brg_function *f =
        function_of("StrideBwd", copy_forward, stride_backward, 1);
    brg_tensor *x = leaf_full(1, BRG_SHAPE(4, 3));
    brg_tensor *ones = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(4, 3));
    backward_of_sum(brg_mul(CALL(f, x), ones));
    expect_all(brg_tensor_grad(x), 1);
    brg_tensor *v = leaf_full(1, BRG_SHAPE(4, 3));
    brg_tensor *turned =
        brg_transpose(brg_ones(BRG_DTYPE_F32, BRG_SHAPE(3, 4)), 0, 1);
    brg_tensor *y = CALL(f, v);
    brg_backward_options options = BRG_BACKWARD_OPTIONS_INIT;
    options.grad_outputs = &turned; /* strides 1, 4 */
    assert_brg_ok(brg_backward_with(&y, 1, &options));
    expect_all(brg_tensor_grad(v), 4);
    brg_function_release(f);
}
CHECK_ROW(test_stride_in_bwd, 2)

/* ---- Several outputs ------------------------------------------------------------------ */

FORWARD(two_copies_forward)
{
    brg_context_set_materialize_grads(ctx, args[1].as.truth);
    OUT(0, brg_copy(ARG(0)));
    OUT(1, brg_copy(ARG(0)));
    return BRG_OK;
}

BACKWARD(count_defined_backward)
{
    int *n_defined = brg_context_user(ctx);
    *n_defined = (g[0] != NULL) + (g[1] != NULL);
    brg_tensor *sum = g[0] ? g[0] : g[1];
    if (g[0] && g[1])
        sum = brg_add(g[0], g[1]);
    GRAD(0, sum);
    return BRG_OK;
}

static brg_function *two_copies(int *n_defined)
{
    return new_function(.name = "MaterializingGrad", .n_outputs = 2,
                        .forward = two_copies_forward,
                        .backward = count_defined_backward, .user = n_defined);
}

static int defined_with(bool materializes)
{
    int n_defined = -1;
    brg_function *f = two_copies(&n_defined);
    brg_tensor *x = leaf_full(2, BRG_SHAPE(3));
    brg_value out[2];
    assert_brg_ok(
        APPLY(f, out, brg_value_tensor(x), brg_value_bool(materializes)));
    expect_all(out[0].as.tensor, 2);
    expect_all(out[1].as.tensor, 2);
    backward_of_sum(out[1].as.tensor);
    expect_all(brg_tensor_grad(x), 1);
    brg_function_release(f);
    return n_defined;
}

static void test_materialize_grad(void **state)
{
    (void)state;
    assert_int_equal(defined_with(false), 1);
    assert_int_equal(defined_with(true), 2);
}

static void test_multi_output(void **state)
{
    (void)state;
    int n_defined;
    brg_function *f = two_copies(&n_defined);
    brg_tensor *x = leaf_full(2, BRG_SHAPE(3));
    brg_value out[2];
    assert_brg_ok(APPLY(f, out, brg_value_tensor(x), brg_value_bool(true)));
    backward_of_sum(
        brg_add(out[0].as.tensor, brg_mul_scalar(out[1].as.tensor, 3)));
    expect_all(brg_tensor_grad(x), 4);
    brg_function_release(f);
}

static void test_set_materialize_grads_no_graph_break_checks(void)
{
    int n_defined;
    brg_function *f = two_copies(&n_defined);
    brg_tensor *x = leaf_full(1, BRG_SHAPE(1));
    brg_value out[2];
    assert_brg_ok(APPLY(f, out, brg_value_tensor(x), brg_value_bool(true)));
    backward_of_sum(brg_mul_scalar(out[0].as.tensor, 3));
    expect_all(brg_tensor_grad(x), 3);
    assert_int_equal(n_defined, 2);
    brg_function_release(f);
}

static void test_set_materialize_grads_no_graph_break(void **state)
{
    (void)state;
    check_both(test_set_materialize_grads_no_graph_break_checks, 1);
    assert_int_equal(count_calls(), 1);
}

/* ---- What backward branches on -------------------------------------------------------------- */

FORWARD(sin_forward)
{
    SAVE(ARG(0));
    OUT(0, brg_sin(ARG(0)));
    return BRG_OK;
}

BACKWARD(needs_backward)
{
    SAVED(x, 0);
    if (brg_context_needs_grad(ctx, 0))
        GRAD(0, brg_mul(g[0], brg_cos(x)));
    if (brg_context_needs_grad(ctx, 1))
        return brg_error_set(BRG_ERR_INTERNAL, __FILE__, __LINE__,
                             "the second argument needs no gradient");
    return BRG_OK;
}

/* Traced, the branch that is not taken is not in the plan: what is left is the
 * product and the cosine. */
static void check_dead_branch(void)
{
    brg_function *f = function_traced(BRG_FUNCTION_TRACEABLE, "NeedsInputGrad",
                                      sin_forward, needs_backward, 1);
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    options.backend = BRG_COMPILE_BACKEND_EAGER;
    brg_tensor *x = leaf_full(0.3, BRG_SHAPE(4, 2));
    brg_tensor *plain = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(4, 2));
    int scope;
    assert_brg_ok(brg_compile_reset());
    assert_brg_ok(brg_compile_begin(&scope, &options));
    backward_of_sum(CALL(f, x, plain));
    assert_brg_ok(brg_compile_end(scope));
    expect_all(brg_tensor_grad(x), cos(0.3));
    const char *text = plan_text(0);
    assert_null(strstr(text, "call@"));
    const char *product = strstr(text, "= mul("), *slope = strstr(text, "cos(");
    assert_non_null(product);
    assert_non_null(slope);
    assert_null(strstr(product + 1, "= mul("));
    assert_null(strstr(slope + 1, "cos("));
    brg_function_release(f);
}

static void test_needs_input_grad(void **state)
{
    (void)state;
    check_dead_branch();
    brg_function *f =
        function_of("NeedsInputGrad", sin_forward, needs_backward, 1);
    brg_tensor *x = leaf_full(0.3, BRG_SHAPE(4, 2));
    brg_tensor *plain = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(4, 2));
    backward_of_sum(CALL(f, x, plain));
    assert_int_equal(brg_tensor_size(brg_tensor_grad(x), 0), 4);
    expect_all(brg_tensor_grad(x), cos(0.3));
    /* Pruned in this backward only. */
    brg_tensor *w = leaf_full(1, BRG_SHAPE(4, 2));
    brg_tensor *y = brg_sum_all(CALL(f, x, w)), *grad;
    assert_brg_ok(brg_grad(&grad, &y, 1, &x, 1, NULL));
    expect_all(grad, cos(0.3));
    brg_function_release(f);
}

BACKWARD(requires_grad_backward)
{
    SAVED(x, 0);
    brg_tensor *moved = brg_add_scalar(x, brg_requires_grad(g[0]) ? 2 : 1);
    GRAD(0, brg_mul(g[0], brg_cos(moved)));
    return BRG_OK;
}

static void test_requires_grad_in_bwd_checks(void)
{
    brg_function *f =
        function_of("Foo", sin_forward, requires_grad_backward, 1);
    brg_tensor *x = leaf_full(0.3, BRG_SHAPE(2));
    backward_of_sum(CALL(f, x));
    expect_all(brg_tensor_grad(x), cos(1.3));
    brg_function_release(f);
}

static void test_requires_grad_in_bwd(void **state)
{
    (void)state;
    check_both(test_requires_grad_in_bwd_checks, 1);
    /* The other branch: gO depends on x, and gradients are recorded. */
    brg_function *f =
        function_of("Foo", sin_forward, requires_grad_backward, 1);
    brg_tensor *x = leaf_full(0.3, BRG_SHAPE(2)), *grad;
    brg_tensor *y = CALL(f, x), *loss = brg_sum_all(brg_mul(y, y));
    brg_backward_options options = BRG_BACKWARD_OPTIONS_INIT;
    options.create_graph = true;
    assert_brg_ok(brg_grad(&grad, &loss, 1, &x, 1, &options));
    expect_all(grad, 2 * sin(0.3) * cos(2.3));
    brg_function_release(f);
}

BACKWARD(plain_half_backward)
{
    if (brg_grad_mode())
        return brg_error_set(BRG_ERR_INTERNAL, __FILE__, __LINE__,
                             "grad mode is on");
    GRAD(0, brg_mul_scalar(g[0], 0.5));
    return BRG_OK;
}

static void test_once_differentiable(void **state)
{
    (void)state;
    brg_function *f =
        new_function(.name = "ScaleGradient", .n_outputs = 1,
                     .forward = copy_forward, .backward = plain_half_backward,
                     .once_differentiable = true);
    brg_tensor *x = leaf_full(3, BRG_SHAPE(2)), *grad, *second;
    brg_tensor *y = CALL(f, x), *loss = brg_sum_all(brg_mul(y, y));
    expect_all(y, 3);
    brg_backward_options options = BRG_BACKWARD_OPTIONS_INIT;
    options.create_graph = true;
    assert_brg_ok(brg_grad(&grad, &loss, 1, &x, 1, &options));
    expect_all(grad, 3);
    brg_tensor *sum = brg_sum_all(grad);
    assert_brg_fails_with(brg_grad(&second, &sum, 1, &x, 1, NULL),
                          BRG_ERR_STATE,
                          "trying to differentiate twice a function that was "
                          "marked with @once_differentiable");
    brg_function_release(f);
}

/* ---- Saving -------------------------------------------------------------------------------------- */

FORWARD(save_twice_forward)
{
    SAVE(ARG(0));
    SAVE(ARG(0), ARG(1));
    OUT(0, brg_mul(ARG(0), ARG(1)));
    return BRG_OK;
}

BACKWARD(save_twice_backward)
{
    if (brg_context_n_saved(ctx) != 2)
        return brg_error_set(BRG_ERR_INTERNAL, __FILE__, __LINE__,
                             "%zu tensors are saved", brg_context_n_saved(ctx));
    SAVED(x, 0);
    SAVED(y, 1);
    GRAD(0, brg_mul(g[0], y));
    GRAD(1, brg_mul(g[0], x));
    return BRG_OK;
}

static void test_repeated_save_for_backward_calls(void **state)
{
    (void)state;
    brg_function *f =
        function_of("Foo", save_twice_forward, save_twice_backward, 1);
    brg_tensor *x = leaf_full(2, BRG_SHAPE(2)), *y = leaf_full(3, BRG_SHAPE(2));
    backward_of_sum(CALL(f, x, y));
    expect_all(brg_tensor_grad(x), 3);
    expect_all(brg_tensor_grad(y), 2);
    brg_function_release(f);
}

FORWARD(save_temporary_forward)
{
    brg_tensor *cos = brg_cos(ARG(0));
    SAVE(cos);
    OUT(0, brg_sin(ARG(0)));
    return BRG_OK;
}

BACKWARD(save_temporary_backward)
{
    SAVED(cos, 0);
    GRAD(0, brg_mul(g[0], cos));
    return BRG_OK;
}

static void test_save_for_bwd(void **state)
{
    (void)state;
    brg_function *f = function_of("SaveForBwd", save_temporary_forward,
                                  save_temporary_backward, 1);
    brg_tensor *x = leaf_full(0.4, BRG_SHAPE(3));
    backward_of_sum(CALL(f, x));
    expect_all(brg_tensor_grad(x), cos(0.4));
    brg_function_release(f);
}

static int64_t second_int = 5;

FORWARD(smuggle_forward)
{
    brg_value ints[] = {brg_value_int(2), brg_value_int(second_int)};
    BRG_TRY(brg_context_set(ctx, "x", brg_value_tensor(ARG(0))));
    BRG_TRY(brg_context_set(ctx, "ints", brg_value_list(ints, 2)));
    OUT(0, brg_square(ARG(0)));
    return BRG_OK;
}

BACKWARD(smuggle_backward)
{
    brg_value list = brg_context_get(ctx, "ints");
    double factor = (double)list.as.list.items[0].as.integer *
                    (double)list.as.list.items[1].as.integer;
    GRAD(0, brg_mul(g[0], brg_mul_scalar(brg_context_get(ctx, "x").as.tensor,
                                         factor)));
    return BRG_OK;
}

static brg_function_tracing smuggle_tracing;

static void test_smuggle_tensor_and_complex_structures_checks(void)
{
    brg_function *f = function_traced(smuggle_tracing, "Foo", smuggle_forward,
                                      smuggle_backward, 1);
    brg_tensor *x = leaf_full(3, BRG_SHAPE(2)), *h = brg_mul_scalar(x, 1);
    brg_tensor *y = CALL(f, h);
    assert_brg_ok(brg_mul_scalar_(h, 1)); /* no version check on attributes */
    backward_of_sum(y);
    expect_all(brg_tensor_grad(x), 30);
    /* Another tensor, of another size, in the same plan. */
    brg_tensor *x2 = leaf_full(7, BRG_SHAPE(5));
    backward_of_sum(CALL(f, brg_mul_scalar(x2, 1)));
    expect_all(brg_tensor_grad(x2), 70);
    /* Another list of ints is another plan. */
    second_int = 4;
    brg_tensor *x3 = leaf_full(7, BRG_SHAPE(5));
    backward_of_sum(CALL(f, brg_mul_scalar(x3, 1)));
    expect_all(brg_tensor_grad(x3), 56);
    second_int = 5;
    brg_function_release(f);
}

static void test_smuggle_tensor_and_complex_structures(void **state)
{
    (void)state;
    for (int k = 0; k < 2; k++) {
        smuggle_tracing = k ? BRG_FUNCTION_TRACEABLE : BRG_FUNCTION_OPAQUE;
        check_both(test_smuggle_tensor_and_complex_structures_checks, 2);
        assert_int_equal(both_stats().hits, 1);
        assert_int_equal(count_calls(), k ? 0 : 1);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_assert_is_contiguous_after_matmul),
        scoped_test(test_assert_is_contiguous_on_grad_output_directly),
        scoped_test(test_materialize_grad),
        scoped_test(test_multi_output),
        scoped_test(test_needs_input_grad),
        scoped_test(test_once_differentiable),
        scoped_test(test_repeated_save_for_backward_calls),
        scoped_test(test_requires_grad_in_bwd),
        scoped_test(test_save_for_bwd),
        scoped_test(test_set_materialize_grads_no_graph_break),
        scoped_test(test_smuggle_tensor_and_complex_structures),
        scoped_test(test_stride_in_bwd),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
