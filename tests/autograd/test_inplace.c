/* SPDX-License-Identifier: Apache-2.0
 * Changes in place under recording, of tensors, of views, and seen through
 * views; gradients against differences. */
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
        scoped_test(test_inplace__assembled_from_parts),
        scoped_test(test_inplace__zeros_come_to_require_gradients),
        scoped_test(test_inplace__second_order),
        scoped_test(test_inplace__a_leaf_may_not_be_changed),
        scoped_test(test_inplace__a_saved_tensor_may_not_be_changed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
