/* SPDX-License-Identifier: Apache-2.0
 * What the cases of op_cases_shape.def do not say of views and joining: what
 * shares memory, errors, NULL in NULL out, meta tensors. */
#include "core/tensor/tensor.h"
#include "tests/support/values.h"

static brg_tensor *count_to(int64_t n)
{
    return assert_brg_some(brg_arange(BRG_DTYPE_F32, 0, (double)n, 1));
}

static brg_tensor *grid(int64_t rows, int64_t cols)
{
    return assert_brg_some(
        brg_reshape(count_to(rows * cols), BRG_SHAPE(rows, cols)));
}

static void test_reshape__is_a_view_where_strides_allow(void **state)
{
    (void)state;
    brg_tensor *x = grid(4, 6);
    brg_tensor *y = brg_reshape(x, BRG_SHAPE(2, 2, -1));
    assert_shape_is(y, BRG_SHAPE(2, 2, 6));
    assert_true(brg_tensor_shares_storage(x, y));

    /* Splitting a dim of a transposed tensor needs no copy, joining does. */
    brg_tensor *t = brg_transpose(x, 0, 1);
    brg_tensor *split = brg_reshape(t, BRG_SHAPE(3, 2, 4));
    assert_true(brg_tensor_shares_storage(x, split));
    brg_tensor *joined = brg_reshape(t, BRG_SHAPE(24));
    assert_false(brg_tensor_shares_storage(x, joined));
    assert_true(value_at(joined, 1) == 6.0 && value_at(joined, 4) == 1.0);
    for (int64_t i = 0; i < 24; i++)
        assert_true(value_at(split, i) == value_at(joined, i));

    brg_tensor *narrow = brg_narrow(x, 1, 2, 3);
    assert_true(brg_tensor_shares_storage(
        x, brg_reshape(narrow, BRG_SHAPE(2, 2, 1, 3))));
    assert_false(
        brg_tensor_shares_storage(x, brg_reshape(narrow, BRG_SHAPE(12))));
}

static void test_reshape__names_both_shapes_on_failure(void **state)
{
    (void)state;
    brg_tensor *x = grid(4, 6);
    assert_brg_null_with(brg_reshape(x, BRG_SHAPE(5, -1)), BRG_ERR_SHAPE,
                         "f32[4, 6] cannot become [5, -1]");
    assert_brg_null(brg_reshape(x, BRG_SHAPE(-1, -1)), BRG_ERR_SHAPE);
    assert_brg_null(brg_reshape(x, BRG_SHAPE(-2, -12)), BRG_ERR_SHAPE);
    assert_brg_null(brg_reshape(x, 9, (const int64_t[9]){0}), BRG_ERR_SHAPE);
    brg_tensor *none = brg_reshape(count_to(0), BRG_SHAPE(0, 3));
    assert_brg_null(brg_reshape(none, BRG_SHAPE(0, -1)), BRG_ERR_SHAPE);
}

static void test_views__write_through(void **state)
{
    (void)state;
    brg_tensor *x = grid(3, 4);
    brg_tensor *column = brg_select(brg_transpose(x, 0, 1), 0, 1);
    assert_brg_ok(brg_fill_(column, 9.0));
    assert_values(x, 0, 0, 9, 2, 3, 4, 9, 6, 7, 8, 9, 10, 11);
}

static void test_slice__clips_its_ends(void **state)
{
    (void)state;
    brg_tensor *x = count_to(6);
    assert_values(brg_slice(x, 0, -2, BRG_TO_END, 1), 0, 4, 5);
    assert_values(brg_slice(x, 0, -100, 100, 4), 0, 0, 4);
    assert_values(brg_slice(x, 0, 1, -1, 3), 0, 1, 4);
    assert_shape_is(brg_slice(x, 0, 4, 2, 1), BRG_SHAPE(0));
    assert_shape_is(brg_slice(x, 0, 9, BRG_TO_END, 1), BRG_SHAPE(0));
    assert_brg_null_with(brg_slice(x, 0, 0, 6, 0), BRG_ERR_ARG, "step 0");
    assert_brg_null(brg_slice(x, 1, 0, 6, 1), BRG_ERR_SHAPE);
}

static void test_narrow_and_select__do_not_clip(void **state)
{
    (void)state;
    brg_tensor *x = grid(2, 3);
    assert_values(brg_narrow(x, -1, 1, 2), 0, 1, 2, 4, 5);
    assert_brg_null(brg_narrow(x, 1, 2, 2), BRG_ERR_SHAPE);
    assert_brg_null(brg_narrow(x, 1, -1, 1), BRG_ERR_SHAPE);
    assert_brg_null(brg_narrow(x, 1, 1, INT64_MAX), BRG_ERR_SHAPE);
    assert_brg_null(brg_select(x, 0, 2), BRG_ERR_SHAPE);
    assert_brg_null(brg_select(x, 0, -3), BRG_ERR_SHAPE);
    assert_brg_null(brg_select(x, 2, 0), BRG_ERR_SHAPE);
    assert_values(brg_select(x, 1, -1), 0, 2, 5);
}

static void test_split__cuts_into_views(void **state)
{
    (void)state;
    brg_tensor *x = grid(2, 6), *p[3];
    assert_brg_ok(brg_split(p, x, 1, 3, NULL));
    assert_values(p[1], 0, 2, 3, 8, 9);
    assert_true(brg_tensor_shares_storage(x, p[2]));
    assert_brg_ok(brg_split(p, x, -1, 3, (const int64_t[]){1, 0, 5}));
    assert_shape_is(p[1], BRG_SHAPE(2, 0));
    assert_values(p[0], 0, 0, 6);
    assert_brg_fails(brg_split(p, x, 1, 3, (const int64_t[]){1, 1, 5}),
                     BRG_ERR_SHAPE);
    assert_null(p[0]);
    assert_brg_fails(brg_split(p, x, 1, 0, NULL), BRG_ERR_ARG);
    p[0] = x;
    assert_brg_fails(brg_split(p, x, 0, 3, NULL), BRG_ERR_SHAPE);
    assert_null(p[0]);
}

static void test_split__gradient_is_that_of_the_whole(void **state)
{
    (void)state;
    brg_tensor *x = grid(2, 4), *p[2];
    assert_brg_ok(brg_set_requires_grad(x, true));
    assert_brg_ok(brg_split(p, x, 1, 2, NULL));
    assert_brg_ok(brg_backward(brg_sum_all(brg_mul(p[0], p[1]))));
    assert_values(brg_tensor_grad(x), 0, 2, 3, 0, 1, 6, 7, 4, 5);
}

static void test_cat__joins_any_number(void **state)
{
    (void)state;
    brg_tensor *parts[20];
    for (int i = 0; i < 20; i++) {
        parts[i] = brg_full(BRG_DTYPE_I64, BRG_SHAPE(i % 3), i);
        assert_non_null(parts[i]);
    }
    brg_tensor *all = assert_brg_some(brg_cat(parts, 20, 0));
    int64_t at = 0;
    for (int i = 0; i < 20; i++)
        for (int k = 0; k < i % 3; k++)
            assert_true(value_at(all, at++) == i);
    assert_int_equal(brg_tensor_numel(all), at);
    brg_tensor *one = brg_stack(parts + 1, 1, 0);
    assert_shape_is(one, BRG_SHAPE(1, 1));
    assert_brg_null(brg_cat(parts, 0, 0), BRG_ERR_ARG);
}

static void test_cat__keeps_the_error_of_a_part(void **state)
{
    (void)state;
    brg_tensor *x = grid(2, 3);
    brg_error_clear();
    brg_tensor *parts[] = {x, brg_reshape(x, BRG_SHAPE(4))};
    assert_null(brg_cat(parts, 2, 0));
    assert_int_equal(brg_error_code(), BRG_ERR_SHAPE);
    assert_non_null(strstr(brg_error_message(), "cannot become [4]"));
    assert_null(brg_stack(parts, 2, 0));
    assert_non_null(strstr(brg_error_message(), "cannot become [4]"));
}

static void test_shape_ops__null_in_null_out(void **state)
{
    (void)state;
    brg_tensor *x = grid(2, 3);
    brg_error_clear();
    brg_tensor *none = brg_reshape(x, BRG_SHAPE(4)), *p[1];
    brg_tensor *results[] = {
        brg_reshape(none, BRG_SHAPE(4)),
        brg_reshape_like(none, x),
        brg_reshape_like(x, none),
        brg_flatten(none, 0, 1),
        brg_permute(none, 2, (const int[]){1, 0}),
        brg_transpose(none, 0, 1),
        brg_squeeze(none, 0),
        brg_unsqueeze(none, 0),
        brg_expand(none, BRG_SHAPE(4)),
        brg_expand_like(none, x),
        brg_slice(none, 0, 0, 1, 1),
        brg_narrow(none, 0, 0, 1),
        brg_select(none, 0, 0),
        brg_sum_to_like(none, x),
        brg_zeros_like(none),
        brg_tril(none, 0),
        brg_sum_all(none),
        brg_argmax(none, 0, false),
        brg_softmax(none, 0),
        brg_gather(none, 0, x),
        brg_index_add(none, 0, x, x),
        brg_nll(none, x),
        brg_one_hot(none, 3, BRG_DTYPE_F32),
    };
    for (size_t i = 0; i < sizeof results / sizeof *results; i++)
        assert_null(results[i]);
    assert_int_equal(brg_split(p, none, 0, 1, NULL), BRG_ERR_SHAPE);
    assert_non_null(strstr(brg_error_message(), "cannot become [4]"));
}

static void test_permute__checks_its_dims(void **state)
{
    (void)state;
    brg_tensor *x = grid(2, 3);
    assert_brg_null(brg_permute(x, 2, (const int[]){0, 0}), BRG_ERR_SHAPE);
    assert_brg_null(brg_permute(x, 2, (const int[]){0, 2}), BRG_ERR_SHAPE);
    assert_brg_null(brg_permute(x, 1, (const int[]){0}), BRG_ERR_SHAPE);
    assert_brg_null(brg_transpose(x, 0, 2), BRG_ERR_SHAPE);
}

/* Gradient rules know shapes by reference: from tensors without memory. */
static void test_like__needs_no_values(void **state)
{
    (void)state;
    brg_tensor *x = grid(2, 3), *meta;
    assert_brg_ok(brg__tensor_new_meta(&meta, x));
    brg__scope_adopt(meta);
    assert_values(brg_ones_like(meta), 0, 1, 1, 1, 1, 1, 1);
    assert_values(brg_zeros_like(meta), 0, 0, 0, 0, 0, 0, 0);
    assert_values(brg_full_like(meta, -0.5), 0, -.5, -.5, -.5, -.5, -.5, -.5);
    assert_true(brg_sum_to_like(x, meta) == x);
    brg_tensor *big = brg_expand(x, BRG_SHAPE(4, 2, 3));
    assert_values(brg_sum_to_like(big, meta), 0, 0, 4, 8, 12, 16, 20);
    assert_shape_is(brg_expand_like(count_to(3), meta), BRG_SHAPE(2, 3));
    assert_shape_is(brg_reshape_like(count_to(6), meta), BRG_SHAPE(2, 3));
    brg_tensor *view = assert_brg_some(brg_transpose(meta, 0, 1));
    assert_true(brg__tensor_is_meta(view));
}

static void test_arange__counts(void **state)
{
    (void)state;
    assert_values(brg_arange(BRG_DTYPE_F64, 0, 1, 0.25), 0, 0, .25, .5, .75);
    assert_values(brg_arange(BRG_DTYPE_I32, 5, 0, -2), 0, 5, 3, 1);
    assert_shape_is(brg_arange(BRG_DTYPE_F32, 1, 1, 1), BRG_SHAPE(0));
    assert_shape_is(brg_arange(BRG_DTYPE_F32, 1, 0, 1), BRG_SHAPE(0));
    assert_brg_null(brg_arange(BRG_DTYPE_F32, 0, 1, 0), BRG_ERR_ARG);
    assert_brg_null(brg_arange(BRG_DTYPE_F32, 0, INFINITY, 1), BRG_ERR_ARG);
}

static void test_flatten__takes_a_range_of_dims(void **state)
{
    (void)state;
    brg_tensor *x = brg_reshape(count_to(24), BRG_SHAPE(2, 3, 4));
    assert_shape_is(brg_flatten(x, 0, -1), BRG_SHAPE(24));
    assert_shape_is(brg_flatten(x, 0, 1), BRG_SHAPE(6, 4));
    assert_shape_is(brg_flatten(x, 1, 1), BRG_SHAPE(2, 3, 4));
    assert_shape_is(brg_flatten(brg_sum_all(x), 0, 0), BRG_SHAPE(1));
    assert_brg_null(brg_flatten(x, 2, 1), BRG_ERR_ARG);
    assert_brg_null(brg_flatten(x, 0, 3), BRG_ERR_SHAPE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_SCOPE(test_reshape__is_a_view_where_strides_allow),
        IN_SCOPE(test_reshape__names_both_shapes_on_failure),
        IN_SCOPE(test_views__write_through),
        IN_SCOPE(test_slice__clips_its_ends),
        IN_SCOPE(test_narrow_and_select__do_not_clip),
        IN_SCOPE(test_split__cuts_into_views),
        IN_SCOPE(test_split__gradient_is_that_of_the_whole),
        IN_SCOPE(test_cat__joins_any_number),
        IN_SCOPE(test_cat__keeps_the_error_of_a_part),
        IN_SCOPE(test_shape_ops__null_in_null_out),
        IN_SCOPE(test_permute__checks_its_dims),
        IN_SCOPE(test_like__needs_no_values),
        IN_SCOPE(test_arange__counts),
        IN_SCOPE(test_flatten__takes_a_range_of_dims),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
