/* SPDX-License-Identifier: Apache-2.0
 * Changes in place under recording, of tensors, of views, and seen through
 * views; gradients against differences. */
#include <brigade/function.h>

#include "tests/autograd/graph.h"

static brg_tensor *leaf64(double value, int ndim, const int64_t *shape)
{
    brg_tensor *t = assert_brg_some(brg_empty(BRG_DTYPE_F64, ndim, shape));
    double *at = brg_tensor_data(t);
    for (int64_t i = 0; i < brg_tensor_numel(t); i++)
        at[i] = value + 0.1 * (double)i;
    assert_brg_ok(brg_set_requires_grad(t, true));
    return t;
}

static brg_status whole(brg_tensor *const *in, brg_tensor **out, void *user)
{
    (void)user;
    brg_tensor *h = brg_mul(in[0], in[0]);
    if (!h)
        return brg_error_code();
    BRG_TRY(brg_add_(h, in[1], 3.0));
    BRG_TRY(brg_mul_scalar_(h, 0.5));
    out[0] = brg_mul(h, h);
    return BRG_OK;
}

/* A row of h is changed; h is then used whole. */
static brg_status part(brg_tensor *const *in, brg_tensor **out, void *user)
{
    (void)user;
    brg_tensor *h = brg_mul(in[0], in[0]);
    brg_tensor *row = brg_select(h, 0, 1);
    if (!row)
        return brg_error_code();
    BRG_TRY(brg_mul_scalar_(row, 3.0));
    BRG_TRY(brg_add_(row, brg_select(in[1], 0, 0), 2.0));
    out[0] = brg_mul(h, h);
    out[1] = brg_mul(row, row);
    return BRG_OK;
}

/* The base is changed after the view was made; the view is used after. */
static brg_status through_view(brg_tensor *const *in, brg_tensor **out,
                               void *user)
{
    (void)user;
    brg_tensor *h = brg_mul_scalar(in[0], 2.0);
    brg_tensor *view = brg_transpose(h, 0, 1);
    if (!view)
        return brg_error_code();
    BRG_TRY(brg_mul_scalar_(h, 3.0));
    out[0] = brg_mul(view, view);
    return BRG_OK;
}

/* Rows assigned into zeros: how code without cat assembles a tensor. */
static brg_status assemble(brg_tensor *const *in, brg_tensor **out, void *user)
{
    (void)user;
    brg_tensor *all = brg_zeros(BRG_DTYPE_F64, BRG_SHAPE(2, 2, 3));
    brg_tensor *first = brg_select(all, 0, 0), *second = brg_select(all, 0, 1);
    if (!first || !second)
        return brg_error_code();
    BRG_TRY(brg_copy_(first, in[0]));
    BRG_TRY(brg_copy_(second, in[1]));
    BRG_TRY(brg_fill_(brg_select(second, 0, 0), 7.0));
    out[0] = brg_mul(all, all);
    return BRG_OK;
}

/* A repeated view is used after a change of its base. */
static brg_status repeated(brg_tensor *const *in, brg_tensor **out, void *user)
{
    (void)user;
    brg_tensor *h = brg_mul_scalar(in[0], 2.0);
    brg_tensor *twice = brg_expand(brg_unsqueeze(h, 1), BRG_SHAPE(2, 4, 3));
    if (!twice)
        return brg_error_code();
    BRG_TRY(brg_add_(h, in[1], 3.0));
    out[0] = brg_mul(twice, twice);
    return BRG_OK;
}

/* A tensor is changed by a view of itself, which is used after. */
static brg_status by_itself(brg_tensor *const *in, brg_tensor **out, void *user)
{
    (void)user;
    brg_tensor *h = brg_mul(in[0], in[1]);
    brg_tensor *view = brg_narrow(h, 0, 0, 2);
    if (!view)
        return brg_error_code();
    BRG_TRY(brg_add_(h, view, -0.25));
    out[0] = brg_mul(view, view);
    return BRG_OK;
}

/* ---- Functions that change their argument --------------------------------------- */

/* y = exp(x) in place, saving y. */
static brg_status exp_forward(brg_context *ctx, const brg_value *args, size_t n,
                              brg_value *out)
{
    (void)n;
    brg_tensor *x = args[0].as.tensor;
    out[0] = args[0];
    BRG_TRY(brg_copy_(x, brg_exp(x)));
    BRG_TRY(brg_context_save(ctx, &x, 1));
    return brg_context_mark_dirty(ctx, &x, 1);
}

static brg_status exp_backward(brg_context *ctx, brg_tensor *const *g,
                               brg_tensor **gi, size_t *n)
{
    (void)n;
    brg_tensor *y;
    BRG_TRY(brg_context_saved(ctx, 0, &y));
    gi[0] = brg_mul(g[0], y);
    return gi[0] ? BRG_OK : brg_error_code();
}

static brg_tensor *exp_in_place(brg_tensor *x)
{
    brg_function *f =
        new_function(.name = "exp_", .n_outputs = 1, .forward = exp_forward,
                     .backward = exp_backward);
    brg_value arg = brg_value_tensor(x);
    brg_tensor *y = brg_function_call(f, &arg, 1);
    brg_function_release(f);
    return y;
}

static brg_status function_of_whole(brg_tensor *const *in, brg_tensor **out,
                                    void *user)
{
    (void)user;
    brg_tensor *h = brg_add(in[0], in[1]);
    out[0] = h ? exp_in_place(h) : NULL;
    return out[0] ? BRG_OK : brg_error_code();
}

static brg_status function_of_part(brg_tensor *const *in, brg_tensor **out,
                                   void *user)
{
    (void)user;
    brg_tensor *h = brg_add(in[0], in[1]);
    brg_tensor *row = brg_select(h, 0, 1);
    if (!row || !exp_in_place(row))
        return brg_error_code();
    out[0] = brg_sin(brg_mul_scalar(h, 1.5));
    out[1] = brg_mul_scalar(row, 2.0);
    return BRG_OK;
}

static void check(brg_gradcheck_fn fn, size_t n_outputs)
{
    brg_tensor *inputs[] = {leaf64(0.3, BRG_SHAPE(2, 3)),
                            leaf64(-0.7, BRG_SHAPE(2, 3))};
    brg_gradcheck_options options = BRG_GRADCHECK_OPTIONS_INIT;
    options.n_outputs = n_outputs;
    assert_brg_ok(brg_gradcheck(fn, NULL, inputs, 2, &options));
}

static void test_inplace__whole_tensor(void **state)
{
    (void)state;
    check(whole, 1);
}

static void test_inplace__part_of_a_tensor(void **state)
{
    (void)state;
    check(part, 2);
}

static void test_inplace__view_follows_its_base(void **state)
{
    (void)state;
    check(through_view, 1);
}

static void test_inplace__repeated_view_follows_its_base(void **state)
{
    (void)state;
    check(repeated, 1);
}

static void test_inplace__changed_by_a_view_of_itself(void **state)
{
    (void)state;
    check(by_itself, 1);
}

static void test_inplace__function_changes_its_argument(void **state)
{
    (void)state;
    check(function_of_whole, 1);
}

static void test_inplace__function_changes_a_part(void **state)
{
    (void)state;
    check(function_of_part, 2);
    brg_tensor *x = leaf64(1, BRG_SHAPE(2, 3));
    assert_null(exp_in_place(brg_select(x, 0, 1)));
    assert_int_equal(brg_error_code(), BRG_ERR_STATE);
    assert_non_null(strstr(brg_error_message(), "leaf"));
    bool mode = brg_grad_mode_set(false);
    assert_non_null(exp_in_place(x)); /* not recorded: allowed */
    brg_grad_mode_set(mode);
}

/* The node that a view gets when it is used after a change of its base counts
 * as earlier than the node of that use. */
static void test_inplace__selected_gradients_through_a_view(void **state)
{
    (void)state;
    brg_tensor *x = leaf64(1, BRG_SHAPE(2, 3)), *grad;
    brg_tensor *w = leaf64(2, BRG_SHAPE(3, 2));
    brg_tensor *h = brg_mul_scalar(x, 2.0);
    brg_tensor *view = brg_transpose(h, 0, 1);
    assert_brg_ok(brg_mul_scalar_(h, 3.0));
    brg_tensor *loss = brg_sum_all(brg_mul(view, w));
    assert_brg_ok(brg_grad(&grad, &loss, 1, &x, 1, NULL));
    assert_non_null(grad);
    double values[6];
    assert_brg_ok(brg_tensor_read(grad, values, sizeof values));
    assert_float_equal(values[1], 6 * 2.2, 1e-12); /* w[1][0] */
}

/* What a change of a part saved is freed with the backward that used it. */
static void test_inplace__second_backward_needs_retain_graph(void **state)
{
    (void)state;
    brg_tensor *h = brg_mul_scalar(leaf64(1, BRG_SHAPE(2, 3)), 2.0);
    assert_non_null(exp_in_place(brg_select(h, 0, 1)));
    brg_tensor *loss = brg_sum_all(h);
    assert_brg_ok(brg_backward(loss));
    assert_brg_fails_with(brg_backward(loss), BRG_ERR_STATE, "a second time");
}

static void test_inplace__assembled_from_parts(void **state)
{
    (void)state;
    check(assemble, 1);
}

static void test_inplace__zeros_come_to_require_gradients(void **state)
{
    (void)state;
    brg_tensor *x = leaf64(1, BRG_SHAPE(3));
    brg_tensor *all = brg_zeros(BRG_DTYPE_F64, BRG_SHAPE(2, 3));
    brg_tensor *other = brg_select(all, 0, 1);
    assert_true(brg_is_leaf(other));
    assert_brg_ok(brg_copy_(brg_select(all, 0, 0), x));
    assert_true(brg_requires_grad(all));
    assert_true(brg_requires_grad(other));
    assert_false(brg_is_leaf(other));
    assert_string_equal(brg_grad_fn_name(all), "copy_slices");
}

static void test_inplace__second_order(void **state)
{
    (void)state;
    brg_tensor *x = leaf64(2, BRG_SHAPE(2)), *grad, *second;
    brg_tensor *h = brg_mul(x, x);
    assert_brg_ok(brg_mul_scalar_(brg_select(h, 0, 0), 3.0));
    brg_tensor *y = brg_sum_all(brg_mul(h, x)); /* 3 a^3 + b^3 */
    brg_backward_options options = BRG_BACKWARD_OPTIONS_INIT;
    options.create_graph = true;
    assert_brg_ok(brg_grad(&grad, &y, 1, &x, 1, &options));
    brg_tensor *sum = brg_sum_all(grad);
    assert_brg_ok(brg_grad(&second, &sum, 1, &x, 1, NULL));
    const double *at = brg_tensor_data(brg_contiguous(second));
    assert_float_equal(at[0], 18 * 2.0, 1e-9);
    assert_float_equal(at[1], 6 * 2.1, 1e-9);
}

static void test_inplace__a_leaf_may_not_be_changed(void **state)
{
    (void)state;
    brg_tensor *x = leaf64(1, BRG_SHAPE(2, 2));
    assert_brg_fails_with(brg_mul_scalar_(x, 2), BRG_ERR_STATE,
                          "a leaf Variable that requires grad has been used");
    assert_brg_fails_with(brg_zero_(brg_select(x, 0, 0)), BRG_ERR_STATE,
                          "a view of a leaf Variable");
    bool mode = brg_grad_mode_set(false);
    assert_brg_ok(brg_mul_scalar_(x, 2));
    brg_grad_mode_set(mode);
}

static void test_inplace__a_saved_tensor_may_not_be_changed(void **state)
{
    (void)state;
    brg_tensor *x = leaf64(1, BRG_SHAPE(2));
    brg_tensor *h = brg_mul_scalar(x, 2), *y = brg_sum_all(brg_mul(h, h));
    assert_brg_ok(brg_mul_scalar_(h, 3));
    assert_brg_fails_with(brg_backward(y), BRG_ERR_MODIFIED, "mul: its input");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_inplace__whole_tensor),
        scoped_test(test_inplace__part_of_a_tensor),
        scoped_test(test_inplace__view_follows_its_base),
        scoped_test(test_inplace__repeated_view_follows_its_base),
        scoped_test(test_inplace__changed_by_a_view_of_itself),
        scoped_test(test_inplace__function_changes_its_argument),
        scoped_test(test_inplace__function_changes_a_part),
        scoped_test(test_inplace__selected_gradients_through_a_view),
        scoped_test(test_inplace__second_backward_needs_retain_graph),
        scoped_test(test_inplace__assembled_from_parts),
        scoped_test(test_inplace__zeros_come_to_require_gradients),
        scoped_test(test_inplace__second_order),
        scoped_test(test_inplace__a_leaf_may_not_be_changed),
        scoped_test(test_inplace__a_saved_tensor_may_not_be_changed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
