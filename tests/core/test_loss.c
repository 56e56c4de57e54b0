/* SPDX-License-Identifier: Apache-2.0
 * Losses beyond op_cases_shape.def: options, targets out of range, large
 * logits. */
#include "core/ops/op.h"
#include "tests/support/values.h"

static brg_tensor *logits_of(brg_dtype dtype)
{
    brg_tensor *x = TENSOR_OF(BRG_DTYPE_F64, double, BRG_SHAPE(3, 4), 1, -2, 0,
                              3, 2, 2, 2, 2, -1, 4, .5, 0);
    x = brg_detach(brg_cast(x, dtype));
    assert_brg_ok(brg_set_requires_grad(x, true));
    return x;
}

static void test_cross_entropy__ignores_rows(void **state)
{
    (void)state;
    brg_tensor *all = logits_of(BRG_DTYPE_F32), *two = logits_of(BRG_DTYPE_F32);
    brg_tensor *t = TENSOR_OF(BRG_DTYPE_I64, int64_t, BRG_SHAPE(3), 3, -100, 1);
    brg_tensor *u = TENSOR_OF(BRG_DTYPE_I64, int64_t, BRG_SHAPE(2), 3, 1);
    brg_tensor *rows = brg_slice(two, 0, 0, BRG_TO_END, 2);
    brg_tensor *a = brg_cross_entropy(all, t), *b = brg_cross_entropy(rows, u);
    assert_true(value_at(a, 0) == value_at(b, 0));
    assert_brg_ok(brg_backward(a));
    assert_brg_ok(brg_backward(b));
    for (int64_t i = 0; i < 12; i++)
        assert_true(value_at(brg_tensor_grad(all), i) ==
                    value_at(brg_tensor_grad(two), i));
    brg_cross_entropy_options o = BRG_CROSS_ENTROPY_OPTIONS_INIT;
    o.ignore_index = 3;
    t = TENSOR_OF(BRG_DTYPE_I64, int64_t, BRG_SHAPE(3), 3, 3, 3);
    assert_values(brg_cross_entropy_with(all, t, &o), 0, NAN);
}

static void test_cross_entropy__names_a_target_out_of_range(void **state)
{
    (void)state;
    brg_tensor *x = logits_of(BRG_DTYPE_F32);
    brg_tensor *t = TENSOR_OF(BRG_DTYPE_I64, int64_t, BRG_SHAPE(3), 0, 4, 1);
    assert_brg_null_with(brg_cross_entropy(x, t), BRG_ERR_ARG,
                         "target 4 of row 1 is out of range [0, 4)");
    t = TENSOR_OF(BRG_DTYPE_I32, int32_t, BRG_SHAPE(3), 0, 1, -1);
    assert_brg_null_with(brg_cross_entropy(x, t), BRG_ERR_ARG,
                         "target -1 of row 2");
    t = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(3));
    assert_brg_null_with(brg_cross_entropy(x, t), BRG_ERR_DTYPE, "i64 or i32");
    brg_cross_entropy_options o = BRG_CROSS_ENTROPY_OPTIONS_INIT;
    o.label_smoothing = 1.5;
    assert_brg_null(brg_cross_entropy_with(x, t, &o), BRG_ERR_ARG);
}

static void test_cross_entropy__of_large_logits(void **state)
{
    (void)state;
    brg_tensor *x =
        TENSOR_OF(BRG_DTYPE_F32, float, BRG_SHAPE(2, 2), 1e5, -1e5, 1e5, 1e5);
    brg_tensor *t = TENSOR_OF(BRG_DTYPE_I64, int64_t, BRG_SHAPE(2), 0, 1);
    assert_brg_ok(brg_set_requires_grad(x, true));
    brg_tensor *loss = brg_cross_entropy(x, t);
    assert_values(loss, 0.02, log(2.0) / 2);
    assert_brg_ok(brg_backward(loss));
    assert_true(fabs(value_at(brg_tensor_grad(x), 0)) < 1e-6);
}

static void test_cross_entropy__equals_nll_of_log_softmax(void **state)
{
    (void)state;
    for (int d = 0; d <= BRG_DTYPE_BF16; d++) {
        brg_tensor *x = logits_of((brg_dtype)d);
        brg_tensor *t =
            TENSOR_OF(BRG_DTYPE_I64, int64_t, BRG_SHAPE(3), 3, 0, 2);
        double a = value_at(brg_cross_entropy(x, t), 0);
        double b = value_at(brg_nll(brg_log_softmax(x, -1), t), 0);
        assert_true(fabs(a - b) < (d == 0 ? 1e-12 : d == 1 ? 1e-6 : 0.02));
    }
}

/* A captured rule serves every width. */
static void check_recorded(int64_t width, int64_t n_classes)
{
    brg_tensor *x = assert_brg_some(
        brg_sin(brg_arange(BRG_DTYPE_F64, 0, (double)(2 * width), 1)));
    brg_tensor *t = TENSOR_OF(BRG_DTYPE_I64, int64_t, BRG_SHAPE(2), 0, 2);
    brg_tensor *grad[2];
    x = brg_detach(brg_reshape(x, BRG_SHAPE(2, width)));
    assert_brg_ok(brg_set_requires_grad(x, true));
    brg_cross_entropy_options o = BRG_CROSS_ENTROPY_OPTIONS_INIT;
    o.n_classes = n_classes;
    for (int i = 0; i < 2; i++) {
        brg_backward_options b = BRG_BACKWARD_OPTIONS_INIT;
        b.create_graph = i == 1;
        brg_tensor *loss = brg_cross_entropy_with(x, t, &o);
        assert_brg_ok(brg_grad(&grad[i], &loss, 1, &x, 1, &b));
    }
    for (int64_t i = 0; i < 2 * width; i++)
        assert_true(fabs(value_at(grad[0], i) - value_at(grad[1], i)) < 1e-12);
}

static void test_cross_entropy__recorded_gradients_at_any_width(void **state)
{
    (void)state;
    const int64_t widths[] = {5, 9, 4};
    for (int i = 0; i < 3; i++) {
        check_recorded(widths[i], 0);
        check_recorded(widths[i], 3);
    }
}

/* The merged row gives what the two give; a row is ignored, columns are padding,
 * the loss is weighted. */
static void test_cross_entropy__with_its_gradient(void **state)
{
    (void)state;
    const brg_attrs attrs = {.i = {2, 3}, .f = {0.1, 0.25}};
    for (int d = 0; d <= BRG_DTYPE_BF16; d++) {
        if (!brg_dtype_is_float((brg_dtype)d))
            continue;
        brg_tensor *x = brg_detach(logits_of((brg_dtype)d));
        brg_tensor *two[2], *both[3], *one;
        brg_tensor *t =
            TENSOR_OF(BRG_DTYPE_I64, int64_t, BRG_SHAPE(3), 1, 2, 0);
        assert_brg_ok(brg_op_apply(&brg__op_cross_entropy, 2,
                                   (brg_tensor *[]){x, t}, &attrs, two));
        brg_tensor *g = brg_full_like(two[0], 0.25);
        assert_brg_ok(brg_op_apply(&brg__op_cross_entropy_grad, 4,
                                   (brg_tensor *[]){g, x, t, two[1]}, &attrs,
                                   &one));
        assert_brg_ok(brg_op_apply(&brg__op_cross_entropy_with_grad, 2,
                                   (brg_tensor *[]){x, t}, &attrs, both));
        brg_tensor *want[] = {two[0], two[1], one};
        for (int k = 0; k < 3; k++) {
            assert_int_equal(brg_tensor_dtype(both[k]),
                             brg_tensor_dtype(want[k]));
            assert_int_equal(brg_tensor_numel(both[k]),
                             brg_tensor_numel(want[k]));
            for (int64_t i = 0; i < brg_tensor_numel(want[k]); i++)
                assert_true(value_at(both[k], i) == value_at(want[k], i));
        }
    }
}

static void test_mse__has_both_gradients(void **state)
{
    (void)state;
    brg_tensor *a = TENSOR_OF(BRG_DTYPE_F32, float, BRG_SHAPE(2), 1, 5);
    brg_tensor *b = TENSOR_OF(BRG_DTYPE_F32, float, BRG_SHAPE(2), 3, 4);
    assert_brg_ok(brg_set_requires_grad(a, true));
    assert_brg_ok(brg_set_requires_grad(b, true));
    brg_tensor *loss = brg_mse(a, b);
    assert_values(loss, 0, 2.5);
    assert_brg_ok(brg_backward(loss));
    assert_values(brg_tensor_grad(a), 0, -2, 1);
    assert_values(brg_tensor_grad(b), 0, 2, -1);
    assert_values(brg_mse(brg_empty(BRG_DTYPE_F32, BRG_SHAPE(0)),
                          brg_empty(BRG_DTYPE_F32, BRG_SHAPE(0))),
                  0, NAN);
}

static void test_binary_cross_entropy__of_logits(void **state)
{
    (void)state;
    brg_tensor *x =
        TENSOR_OF(BRG_DTYPE_F64, double, BRG_SHAPE(4), 0, 2, -3, 800);
    brg_tensor *t =
        TENSOR_OF(BRG_DTYPE_F64, double, BRG_SHAPE(4), 1, 0, .25, 1);
    double want =
        log(2.0) + (2 + log1p(exp(-2))) + (.25 * 3 + log1p(exp(-3))) + 0;
    assert_values(brg_binary_cross_entropy_with_logits(x, t), 1e-12, want / 4);
}

/* Messages name the loss, not the ops that it is made of; targets of another
 * shape would broadcast. */
static void test_losses__say_which_targets_they_expect(void **state)
{
    (void)state;
    brg_tensor *x = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(4, 1));
    brg_tensor *ids = brg_zeros(BRG_DTYPE_I64, BRG_SHAPE(4, 1));
    assert_brg_null_with(brg_nll(x, ids), BRG_ERR_SHAPE,
                         "nll: targets (input 1) is i64[4, 1], expected shape "
                         "[4]");
    assert_brg_null_with(brg_nll(x, x), BRG_ERR_DTYPE,
                         "nll: targets (input 1) is f32[4, 1], expected dtype "
                         "i64 or i32");
    assert_brg_null_with(brg_binary_cross_entropy_with_logits(x, ids),
                         BRG_ERR_DTYPE,
                         "binary_cross_entropy_with_logits: targets (input 1) "
                         "is i64[4, 1], expected a float dtype");
    assert_brg_null_with(
        brg_binary_cross_entropy_with_logits(
            x, brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(4))),
        BRG_ERR_SHAPE,
        "binary_cross_entropy_with_logits: targets (input 1) is f32[4], "
        "expected shape [4, 1]");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_SCOPE(test_cross_entropy__ignores_rows),
        IN_SCOPE(test_cross_entropy__names_a_target_out_of_range),
        IN_SCOPE(test_cross_entropy__of_large_logits),
        IN_SCOPE(test_cross_entropy__equals_nll_of_log_softmax),
        IN_SCOPE(test_cross_entropy__recorded_gradients_at_any_width),
        IN_SCOPE(test_cross_entropy__with_its_gradient),
        IN_SCOPE(test_mse__has_both_gradients),
        IN_SCOPE(test_binary_cross_entropy__of_logits),
        IN_SCOPE(test_losses__say_which_targets_they_expect),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
