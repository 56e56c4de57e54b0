/* SPDX-License-Identifier: Apache-2.0
 * Rows of the suite `function` on contexts, ways to call, outputs, marking. */
#include "tests/rows/checks.h"

/* ---- Sizes and flags saved in the context ------------------------------------------ */

FORWARD(scale_by_size_forward)
{
    BRG_TRY(brg_context_set(ctx, "size",
                            brg_value_int(brg_tensor_size(ARG(0), 0))));
    OUT(0, brg_mul_scalar(ARG(0), 2));
    return BRG_OK;
}

BACKWARD(scale_by_size_backward)
{
    double size = (double)brg_context_get(ctx, "size").as.integer;
    GRAD(0, brg_mul_scalar(g[0], size));
    return BRG_OK;
}

static void test_allow_in_graph_checks(void)
{
    brg_function *f = function_of("AllowInGraph", scale_by_size_forward,
                                  scale_by_size_backward, 1);
    brg_tensor *x = leaf_full(3, BRG_SHAPE(5)), *y = CALL(f, x);
    expect_all(y, 6);
    backward_of_sum(y);
    expect_all(brg_tensor_grad(x), 5);
    brg_function_release(f);
}

static void test_allow_in_graph(void **state)
{
    (void)state;
    check_both(test_allow_in_graph_checks, 1);
    assert_int_equal(count_calls(), 1);
}

static void test_smuggle_symint_issue_111031_checks(void)
{
    brg_function *f =
        function_of("Foo", scale_by_size_forward, scale_by_size_backward, 1);
    for (int64_t size = 2; size <= 4; size++) {
        brg_tensor *x = leaf_full(1, BRG_SHAPE(size));
        backward_of_sum(CALL(f, x));
        expect_all(brg_tensor_grad(x), (double)size);
    }
    brg_function_release(f);
}
CHECK_ROW(test_smuggle_symint_issue_111031, 1)

/* ---- add-self, called every way ------------------------------------------------------ */

FORWARD(add_self_forward)
{
    OUT(0, brg_add(ARG(0), ARG(0)));
    return BRG_OK;
}

BACKWARD(add_self_backward)
{
    GRAD(0, brg_add(g[0], g[0]));
    return BRG_OK;
}

static brg_tensor *apply_one(const brg_function *f, brg_tensor *x)
{
    brg_value out[1];
    assert_brg_ok(APPLY(f, out, brg_value_tensor(x)));
    return out[0].as.tensor;
}

static void check_add_self(brg_tensor *y, const brg_tensor *x,
                           bool requires_grad)
{
    expect_all(y, 2);
    assert_int_equal(brg_requires_grad(y), requires_grad);
    if (!requires_grad) {
        assert_null(brg_grad_fn_name(y)); /* no node */
        return;
    }
    brg_tensor *grad, *sum = brg_sum_all(y);
    brg_tensor *inputs[] = {(brg_tensor *)x};
    assert_brg_ok(brg_grad(&grad, &sum, 1, inputs, 1, NULL));
    expect_all(grad, 2);
}

static void test_autograd_function_equivalence(void **state)
{
    (void)state;
    brg_function *f =
        function_of("CustomFunc1", add_self_forward, add_self_backward, 1);
    brg_function *again =
        function_of("CustomFunc1", add_self_forward, add_self_backward, 1);
    brg_tensor *x = leaf_full(1, BRG_SHAPE(3));
    brg_tensor *plain = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(3));
    for (int with_grad = 0; with_grad < 2; with_grad++) {
        bool mode = brg_grad_mode_set(with_grad);
        check_add_self(CALL(f, x), x, with_grad);
        check_add_self(apply_one(f, x), x, with_grad);
        check_add_self(CALL(again, x), x, with_grad);
        check_add_self(apply_one(again, x), x, with_grad);
        check_add_self(CALL(f, plain), plain, false);
        brg_grad_mode_set(mode);
    }
    brg_function_release(f);
    brg_function_release(again);
}

/* The functions of a descriptor get at what it was made with. */
FORWARD(shake_forward)
{
    OUT(0, brg_mul_scalar(ARG(0), *(const double *)brg_context_user(ctx)));
    return BRG_OK;
}

BACKWARD(shake_backward)
{
    GRAD(0, brg_mul_scalar(g[0], *(const double *)brg_context_user(ctx)));
    return BRG_OK;
}

static void count_destroyed(void *user)
{
    *(double *)user = -1;
}

static void test_classmethod(void **state)
{
    (void)state;
    double factor = 4;
    brg_function *f =
        new_function(.name = "Shake", .n_outputs = 1, .forward = shake_forward,
                     .backward = shake_backward, .user = &factor,
                     .destroy = count_destroyed);
    brg_scope *scope = brg_scope_begin();
    brg_tensor *x = leaf_full(1, BRG_SHAPE(2)), *y = CALL(f, x);
    brg_function_release(f); /* the graph keeps it */
    expect_all(y, 4);
    backward_of_sum(y);
    expect_all(brg_tensor_grad(x), 4);
    brg_scope_end(scope);
    assert_float_equal(factor, -1, 0);
}

/* ---- Null gradients --------------------------------------------------------------------- */

FORWARD(mul_forward)
{
    SAVE(ARG(0), ARG(1));
    OUT(0, brg_mul(ARG(0), ARG(1)));
    return BRG_OK;
}

BACKWARD(mul_first_only_backward)
{
    SAVED(y, 1);
    GRAD(0, brg_mul(g[0], y));
    return BRG_OK;
}

static void test_backward_returns_none_for_tensor_input(void **state)
{
    (void)state;
    brg_function *f =
        function_of("MulY", mul_forward, mul_first_only_backward, 1);
    brg_tensor *x = leaf_full(2, BRG_SHAPE(2)), *y = leaf_full(3, BRG_SHAPE(2));
    backward_of_sum(CALL(f, x, y));
    expect_all(brg_tensor_grad(x), 3);
    assert_null(brg_tensor_grad(y));
    brg_function_release(f);
}

/* ---- In-place writes through an alias, inside backward -------------------------------------- */

FORWARD(identity_forward)
{
    SAVE(ARG(0));
    OUT(0, brg_copy(ARG(0)));
    return BRG_OK;
}

BACKWARD(mask_in_place_backward)
{
    SAVED(x, 0);
    brg_tensor *grad = brg_copy(g[0]), *alias = brg_detach(grad);
    if (!alias)
        return brg_error_code();
    float *at = brg_tensor_data(alias);
    const float *values = brg_tensor_data(x);
    for (int64_t i = 0; i < brg_tensor_numel(x); i++)
        if (values[i] < 1)
            at[i] = 0;
    uint32_t version = brg_tensor_version(grad);
    brg_tensor_touch(alias);
    if (brg_tensor_version(grad) == version)
        return brg_error_set(BRG_ERR_INTERNAL, __FILE__, __LINE__,
                             "the write through the alias was not seen");
    GRAD(0, grad);
    return BRG_OK;
}

static void test_data_in_bwd(void **state)
{
    (void)state;
    brg_function *f =
        function_of("LowerBound", identity_forward, mask_in_place_backward, 1);
    brg_tensor *x = leaf_from(0, BRG_SHAPE(3));
    assert_brg_ok(brg_backward(brg_sum_all(brg_mul_scalar(CALL(f, x), 3))));
    EXPECT_VALUES(brg_tensor_grad(x), 0, 3, 3);
    brg_function_release(f);
}

/* ---- Outputs that are no tensors -------------------------------------------------------------------- */

static const brg_value sizes[] = {{BRG_VALUE_INT, {.integer = 3}},
                                  {BRG_VALUE_INT, {.integer = 4}}};

FORWARD(constant_forward)
{
    OUT(0, brg_mul_scalar(ARG(0), 2));
    out[1] = brg_value_list(sizes, 2);
    return BRG_OK;
}

BACKWARD(constant_backward)
{
    if (g[1])
        return brg_error_set(BRG_ERR_INTERNAL, __FILE__, __LINE__,
                             "a list has a gradient");
    GRAD(0, brg_mul_scalar(g[0], 2));
    return BRG_OK;
}

static void test_forward_returns_constant(void **state)
{
    (void)state;
    brg_function *f =
        function_of("Foo", constant_forward, constant_backward, 2);
    brg_tensor *x = leaf_full(1, BRG_SHAPE(2));
    brg_value out[2];
    assert_brg_ok(APPLY(f, out, brg_value_tensor(x)));
    expect_all(out[0].as.tensor, 2);
    assert_int_equal(out[1].kind, BRG_VALUE_LIST);
    assert_int_equal(out[1].as.list.n, 2);
    assert_int_equal(out[1].as.list.items[0].as.integer, 3);
    assert_int_equal(out[1].as.list.items[1].as.integer, 4);
    backward_of_sum(out[0].as.tensor);
    expect_all(brg_tensor_grad(x), 2);
    brg_function_release(f);
}

/* ---- Marking and saving, in either order ---------------------------------------------------------------- */

/* Returns its input, marked and saved, and its double. */
FORWARD(mark_then_save_forward)
{
    BRG_TRY(
        brg_context_mark_non_differentiable(ctx, (brg_tensor *[]){ARG(0)}, 1));
    SAVE(ARG(0));
    OUT(0, ARG(0));
    OUT(1, brg_mul_scalar(ARG(0), 2));
    return BRG_OK;
}

FORWARD(save_then_mark_forward)
{
    SAVE(ARG(0));
    BRG_TRY(
        brg_context_mark_non_differentiable(ctx, (brg_tensor *[]){ARG(0)}, 1));
    OUT(0, ARG(0));
    OUT(1, brg_mul_scalar(ARG(0), 2));
    return BRG_OK;
}

BACKWARD(times_saved_backward)
{
    SAVED(x, 0);
    if (g[0])
        return brg_error_set(BRG_ERR_INTERNAL, __FILE__, __LINE__,
                             "the marked output has a gradient");
    GRAD(0, brg_mul(g[1], brg_mul_scalar(x, 2)));
    return BRG_OK;
}

static void check_marked(brg_status (*forward)(brg_context *, const brg_value *,
                                               size_t, brg_value *))
{
    brg_function *f =
        function_of("ContextMark", forward, times_saved_backward, 2);
    brg_tensor *x = leaf_full(2, BRG_SHAPE(2));
    brg_value out[2];
    bool mode = brg_grad_mode_set(false);
    assert_brg_ok(APPLY(f, out, brg_value_tensor(x)));
    brg_grad_mode_set(mode);
    expect_all(out[0].as.tensor, 2);
    assert_false(brg_requires_grad(out[1].as.tensor));
    assert_brg_ok(APPLY(f, out, brg_value_tensor(x)));
    expect_all(out[0].as.tensor, 2);
    assert_false(brg_requires_grad(out[0].as.tensor));
    assert_true(brg_requires_grad(out[1].as.tensor));
    assert_true(brg_requires_grad(x)); /* the input keeps what it had */
    backward_of_sum(out[1].as.tensor);
    expect_all(brg_tensor_grad(x), 4); /* by what was saved */
    brg_function_release(f);
}

static void test_function_context_mark_and_save(void **state)
{
    (void)state;
    check_marked(mark_then_save_forward);
}

static void test_function_context_save_and_mark(void **state)
{
    (void)state;
    check_marked(save_then_mark_forward);
}

/* Saves a tensor that is neither input nor output. */
FORWARD(bound_forward)
{
    brg_tensor *bound = brg_full(BRG_DTYPE_F32, BRG_SCALAR, 1.5);
    SAVE(ARG(0), bound);
    OUT(0, brg_maximum(ARG(0), bound));
    return BRG_OK;
}

BACKWARD(bound_backward)
{
    SAVED(x, 0);
    SAVED(bound, 1);
    GRAD(0, brg_where(brg_ge(x, bound), g[0], brg_zeros_like(g[0])));
    return BRG_OK;
}

static void test_function_with_bound_free_variable(void **state)
{
    (void)state;
    brg_function *f =
        function_of("LowerBound", bound_forward, bound_backward, 1);
    brg_tensor *x = leaf_from(0, BRG_SHAPE(3)), *y = CALL(f, x);
    EXPECT_VALUES(y, 1.5, 1.5, 2);
    backward_of_sum(y);
    EXPECT_VALUES(brg_tensor_grad(x), 0, 0, 1);
    brg_function_release(f);
}

/* ---- Grad mode ------------------------------------------------------------------------------------------- */

FORWARD(no_grad_forward)
{
    if (brg_grad_mode())
        return brg_error_set(BRG_ERR_STATE, __FILE__, __LINE__,
                             "grad mode is on");
    brg_tensor *y = brg_exp(ARG(0));
    if (!y)
        return brg_error_code();
    BRG_TRY(brg_mul_scalar_(y, 1)); /* in place: only without recording */
    if (args[1].as.truth)
        return brg_error_set(BRG_ERR_CALLBACK, __FILE__, __LINE__, "as asked");
    SAVE(y);
    OUT(0, y);
    return BRG_OK;
}

BACKWARD(exp_backward)
{
    SAVED(y, 0);
    GRAD(0, brg_mul(g[0], y));
    return BRG_OK;
}

static void test_fwd_no_grad(void **state)
{
    (void)state;
    brg_function *f = function_of("MyExp", no_grad_forward, exp_backward, 1);
    brg_tensor *x = leaf_full(1, BRG_SHAPE(2));
    brg_value out[1];
    assert_brg_ok(APPLY(f, out, brg_value_tensor(x), brg_value_bool(false)));
    assert_true(brg_grad_mode());
    expect_all(out[0].as.tensor, exp(1));
    backward_of_sum(out[0].as.tensor);
    expect_all(brg_tensor_grad(x), exp(1));
    assert_brg_fails_with(
        APPLY(f, out, brg_value_tensor(x), brg_value_bool(true)),
        BRG_ERR_CALLBACK, "as asked");
    assert_true(brg_grad_mode());
    brg_function_release(f);
}

BACKWARD(half_backward)
{
    SAVED(x, 0);
    (void)x;
    GRAD(0, brg_mul_scalar(g[0], 1.5));
    return BRG_OK;
}

static void test_fwd_propogation_correctness(void **state)
{
    (void)state;
    brg_function *f = function_of("MyCube", identity_forward, half_backward, 1);
    brg_tensor *x = leaf_full(1, BRG_SHAPE(2));
    brg_tensor *once = CALL(f, x), *twice = CALL(f, once);
    assert_true(brg_requires_grad(once));
    backward_of_sum(twice);
    expect_all(brg_tensor_grad(x), 2.25);
    brg_function_release(f);
}

/* ---- setup_context ---------------------------------------------------------------------------------------- */

FORWARD(linear_forward)
{
    brg_tensor *y = brg_matmul(ARG(0), brg_transpose(ARG(1), 0, 1));
    OUT(0, ARG(2) ? brg_add(y, ARG(2)) : y);
    return BRG_OK;
}

static brg_status linear_setup(brg_context *ctx, const brg_value *args,
                               size_t n_args, const brg_value *outputs)
{
    (void)n_args;
    (void)outputs;
    SAVE(ARG(0), ARG(1), ARG(2));
    return BRG_OK;
}

static int linear_wants; /* bit i: asked for the gradient of argument i */

BACKWARD(linear_backward)
{
    SAVED(x, 0);
    SAVED(w, 1);
    SAVED(b, 2);
    linear_wants = 0;
    for (size_t i = 0; i < 3; i++)
        linear_wants |= (int)brg_context_needs_grad(ctx, i) << i;
    if (brg_context_n_saved(ctx) != 3)
        return brg_error_set(BRG_ERR_INTERNAL, __FILE__, __LINE__,
                             "%zu tensors are saved", brg_context_n_saved(ctx));
    if (brg_context_needs_grad(ctx, 0))
        GRAD(0, brg_matmul(g[0], w));
    if (brg_context_needs_grad(ctx, 1))
        GRAD(1, brg_matmul(brg_transpose(g[0], 0, 1), x));
    if (b && brg_context_needs_grad(ctx, 2))
        GRAD(2, brg_sum(g[0], 1, (int[]){0}, false));
    return BRG_OK;
}

static void test_linear_setup_context_checks(void)
{
    brg_function *f =
        new_function(.name = "LinearFunction", .n_outputs = 1,
                     .forward = linear_forward, .setup_context = linear_setup,
                     .backward = linear_backward);
    brg_tensor *x = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(2, 3));
    brg_tensor *w = leaf_from(0, BRG_SHAPE(4, 3)), *y = CALL(f, x, w, NULL);
    for (int64_t i = 0; i < 8; i++)
        assert_float_equal(element(y, i), 3 + 9 * (double)(i % 4), 1e-5);
    backward_of_sum(y);
    expect_all(brg_tensor_grad(w), 2);
    assert_int_equal(linear_wants, 2); /* w only */
    brg_function_release(f);
}
CHECK_ROW(test_linear_setup_context, 1)

/* ---- Outputs without gradient --------------------------------------------------------------------------------- */

FORWARD(mark_outputs_forward)
{
    for (int j = 0; j < 3; j++)
        OUT(j, brg_mul_scalar(ARG(j), 2 + j));
    return brg_context_mark_non_differentiable(
        ctx, (brg_tensor *[]){out[1].as.tensor, out[2].as.tensor}, 2);
}

BACKWARD(mark_outputs_backward)
{
    if (g[1] || g[2])
        return brg_error_set(BRG_ERR_INTERNAL, __FILE__, __LINE__,
                             "a marked output has a gradient");
    for (int i = 0; i < 3; i++) /* arguments 1, 2: of marked outputs only */
        GRAD(i, brg_mul_scalar(g[0], 2 + i));
    return BRG_OK;
}

static void test_mark_multi_output_non_differentiable(void **state)
{
    (void)state;
    brg_function *f = function_of("MyFunction", mark_outputs_forward,
                                  mark_outputs_backward, 3);
    brg_tensor *x[3];
    brg_value args[3], out[3];
    for (int i = 0; i < 3; i++) {
        x[i] = leaf_full(1, BRG_SHAPE(2));
        args[i] = brg_value_tensor(x[i]);
    }
    assert_brg_ok(brg_function_apply(f, args, 3, out));
    const bool requires_grad[] = {true, false, false};
    for (int j = 0; j < 3; j++) {
        assert_int_equal(brg_requires_grad(out[j].as.tensor), requires_grad[j]);
        expect_all(out[j].as.tensor, 2 + j);
    }
    backward_of_sum(out[0].as.tensor);
    for (int i = 0; i < 3; i++)
        expect_all(brg_tensor_grad(x[i]), 2 + i);
    brg_function_release(f);
}

FORWARD(mark_second_forward)
{
    OUT(0, brg_mul_scalar(ARG(0), 2));
    OUT(1, brg_mul_scalar(ARG(0), 3));
    return brg_context_mark_non_differentiable(
        ctx, (brg_tensor *[]){out[1].as.tensor}, 1);
}

BACKWARD(mark_second_backward)
{
    if (g[1])
        return brg_error_set(BRG_ERR_INTERNAL, __FILE__, __LINE__,
                             "the marked output has a gradient");
    GRAD(0, brg_mul_scalar(g[0], 2));
    return BRG_OK;
}

static void test_mark_non_differentiable_checks(void)
{
    brg_function *f =
        function_of("MyFunction", mark_second_forward, mark_second_backward, 2);
    brg_tensor *x = leaf_full(1, BRG_SHAPE(2));
    brg_value out[2];
    assert_brg_ok(APPLY(f, out, brg_value_tensor(x)));
    assert_true(brg_requires_grad(out[0].as.tensor));
    assert_false(brg_requires_grad(out[1].as.tensor));
    backward_of_sum(out[0].as.tensor);
    expect_all(brg_tensor_grad(x), 2);
    brg_function_release(f);
}

static void test_mark_non_differentiable(void **state)
{
    (void)state;
    check_both(test_mark_non_differentiable_checks, 1);
    assert_true(plan_has(0, "MyFunction(1 -> 2): saved 0, of arguments none, "
                            "tensors 0, gradients 0, non-differentiable 1\n"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_allow_in_graph),
        scoped_test(test_autograd_function_equivalence),
        scoped_test(test_backward_returns_none_for_tensor_input),
        scoped_test(test_classmethod),
        scoped_test(test_data_in_bwd),
        scoped_test(test_forward_returns_constant),
        scoped_test(test_function_context_mark_and_save),
        scoped_test(test_function_context_save_and_mark),
        scoped_test(test_function_with_bound_free_variable),
        scoped_test(test_fwd_no_grad),
        scoped_test(test_fwd_propogation_correctness),
        scoped_test(test_linear_setup_context),
        scoped_test(test_mark_multi_output_non_differentiable),
        scoped_test(test_mark_non_differentiable),
        scoped_test(test_smuggle_symint_issue_111031),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
