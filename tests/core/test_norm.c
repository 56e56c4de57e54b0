/* SPDX-License-Identifier: Apache-2.0
 * Softmax, layer norm and batch norm beyond op_cases_shape.def: extreme
 * values, what a large mean does, running statistics, errors. */
#include <brigade/random.h>

#include "core/ops/op.h"
#include "tests/support/values.h"

/* ---- Softmax --------------------------------------------------------- */

static void test_softmax__of_extreme_values(void **state)
{
    (void)state;
    brg_tensor *x = TENSOR_OF(BRG_DTYPE_F32, float, BRG_SHAPE(3, 3), 1e4, 1e4,
                              -1e4, -INFINITY, 0, 0, 3e38, -3e38, 0);
    assert_values(brg_softmax(x, 1), 1e-6, .5, .5, 0, 0, .5, .5, 1, 0, 0);
    brg_tensor *y = brg_log_softmax(x, 1);
    assert_true(value_at(y, 3) == -INFINITY);
    assert_true(fabs(value_at(y, 0) + log(2.0)) < 1e-6);
    assert_true(value_at(y, 2) < -19999.0);
    brg_tensor *bad = TENSOR_OF(BRG_DTYPE_F32, float, BRG_SHAPE(2, 2), NAN, 0,
                                -INFINITY, -INFINITY);
    assert_values(brg_softmax(bad, 1), 0, NAN, NAN, NAN, NAN);
}

static void test_softmax__rows_add_up_to_one(void **state)
{
    (void)state;
    uint64_t seed = brg_test_seed(21);
    for (int64_t n = 1; n < 2200; n = n * 3 + 1) {
        brg_tensor *x = brg_empty(BRG_DTYPE_F32, BRG_SHAPE(3, n));
        float *v = brg_tensor_data(x);
        for (int64_t i = 0; i < 3 * n; i++)
            v[i] = (float)brg_test_uniform(&seed, -30, 30);
        brg_tensor *sum = brg_sum(brg_softmax(x, -1), BRG_DIMS(1), false);
        assert_values(sum, 1e-6, 1, 1, 1);
        brg_tensor *logs = brg_exp(brg_log_softmax(x, -1));
        assert_values(brg_sum(logs, BRG_DIMS(1), false), 4e-6, 1, 1, 1);
    }
}

static void test_softmax__of_an_empty_dim(void **state)
{
    (void)state;
    brg_tensor *x = brg_empty(BRG_DTYPE_F32, BRG_SHAPE(2, 0));
    assert_shape_is(brg_softmax(x, 1), BRG_SHAPE(2, 0));
    assert_brg_null_with(brg_softmax(x, 2), BRG_ERR_SHAPE, "softmax: dim 2");
}

/* ---- Layer norm ------------------------------------------------------ */

static void test_layer_norm__survives_a_large_mean(void **state)
{
    (void)state;
    brg_tensor *x = TENSOR_OF(BRG_DTYPE_F32, float, BRG_SHAPE(1, 4), 10001,
                              10002, 10003, 10004);
    double s = sqrt(1.25);
    assert_values(brg_layer_norm(x, NULL, NULL, 1, 0), 1e-5, -1.5 / s, -0.5 / s,
                  0.5 / s, 1.5 / s);
}

static void test_layer_norm__names_what_does_not_fit(void **state)
{
    (void)state;
    brg_tensor *x = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(2, 3));
    brg_tensor *w = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(4));
    brg_tensor *d = brg_ones(BRG_DTYPE_F64, BRG_SHAPE(3));
    assert_brg_null_with(brg_layer_norm(x, w, NULL, 1, 0), BRG_ERR_SHAPE,
                         "weight (input 1) is f32[4], expected shape [3]");
    assert_brg_null_with(brg_layer_norm(x, NULL, w, 1, 0), BRG_ERR_SHAPE,
                         "bias (input 2)");
    assert_brg_null(brg_layer_norm(x, d, NULL, 1, 0), BRG_ERR_DTYPE);
    assert_brg_null(brg_layer_norm(x, NULL, NULL, 3, 0), BRG_ERR_SHAPE);
    assert_brg_null(brg_layer_norm(x, NULL, NULL, 0, 0), BRG_ERR_SHAPE);
}

static void test_layer_norm__gives_only_wanted_gradients(void **state)
{
    (void)state;
    brg_tensor *x =
        TENSOR_OF(BRG_DTYPE_F32, float, BRG_SHAPE(2, 2), 1, 3, 2, 0);
    brg_tensor *w = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(2));
    brg_tensor *b = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(2));
    assert_brg_ok(brg_set_requires_grad(b, true));
    brg_tensor *y = brg_layer_norm(x, w, b, 1, 0);
    assert_values(y, 1e-6, -1, 1, 1, -1);
    assert_brg_ok(brg_backward(brg_sum_all(y)));
    assert_values(brg_tensor_grad(b), 0, 2, 2);
    assert_null(brg_tensor_grad(x));
    assert_null(brg_tensor_grad(w));
}

/* The merged row gives what its parts give, with and without what is added. */
static void test_layer_norm__with_the_sum_of_its_gradient(void **state)
{
    (void)state;
    const brg_attrs attrs = {.i = {1}};
    for (int has_add = 0; has_add < 2; has_add++) {
        brg_tensor *in[6], *out[3], *all[4];
        brg_seed(brg_test_seed(31));
        for (int i = 0; i < 6; i++)
            in[i] = i == 2 ? brg_randn(BRG_DTYPE_F32, BRG_SHAPE(5))
                    : i == 3 || i == 4
                        ? brg_randn(BRG_DTYPE_F32, BRG_SHAPE(2, 3, 1))
                    : i < 5 || has_add
                        ? brg_randn(BRG_DTYPE_F32, BRG_SHAPE(2, 3, 5))
                        : NULL;
        assert_brg_ok(
            brg_op_apply(&brg__op_layer_norm_grad, 5, in, &attrs, out));
        assert_brg_ok(
            brg_op_apply(&brg__op_layer_norm_grad_sum, 6, in, &attrs, all));
        brg_tensor *gx = has_add ? brg_add(out[0], in[5]) : out[0];
        brg_tensor *want[] = {gx, out[1], out[2],
                              brg_sum(gx, BRG_DIMS(0, 1), false)};
        for (int k = 0; k < 4; k++) {
            assert_int_equal(brg_tensor_numel(all[k]),
                             brg_tensor_numel(want[k]));
            for (int64_t i = 0; i < brg_tensor_numel(want[k]); i++)
                assert_true(value_at(all[k], i) == value_at(want[k], i));
        }
    }
}

/* ---- Batch norm ------------------------------------------------------ */

static const brg_batch_norm_options training = {
    .struct_size = sizeof training, .training = true, .momentum = 0.25};

static void test_batch_norm__moves_running_statistics(void **state)
{
    (void)state;
    brg_tensor *x =
        TENSOR_OF(BRG_DTYPE_F32, float, BRG_SHAPE(2, 2), 1, 10, 3, 30);
    brg_tensor *mean = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(2));
    brg_tensor *var = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(2));
    brg_tensor *y = brg_batch_norm(x, NULL, NULL, mean, var, &training);
    assert_values(y, 1e-4, -1, -1, 1, 1);
    /* 3/4 old + 1/4 new; the new variances are 2 and 200 (unbiased). */
    assert_values(mean, 1e-6, 0.5, 5);
    assert_values(var, 1e-6, 1.25, 50.75);
    assert_int_equal(brg_tensor_version(mean), 1);
    assert_int_equal(brg_tensor_version(var), 1);
    y = brg_batch_norm(x, NULL, NULL, mean, var, NULL);
    assert_values(y, 1e-4, 0.5 / sqrt(1.25), 5 / sqrt(50.75), 2.5 / sqrt(1.25),
                  25 / sqrt(50.75));
    assert_values(mean, 1e-6, 0.5, 5);
}

static void test_batch_norm__leaves_empty_batches_alone(void **state)
{
    (void)state;
    brg_tensor *x = brg_empty(BRG_DTYPE_F32, BRG_SHAPE(0, 2, 3));
    brg_tensor *mean = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(2));
    brg_tensor *var = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(2));
    assert_shape_is(brg_batch_norm(x, NULL, NULL, mean, var, &training),
                    BRG_SHAPE(0, 2, 3));
    assert_values(mean, 0, 0, 0);
    assert_values(var, 0, 1, 1);
}

static void test_batch_norm__says_what_it_needs(void **state)
{
    (void)state;
    brg_tensor *x = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(2, 3));
    brg_tensor *one = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(1, 3));
    brg_tensor *v = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(3));
    assert_brg_null_with(brg_batch_norm(x, NULL, NULL, NULL, NULL, NULL),
                         BRG_ERR_ARG, "running_mean");
    assert_brg_null(brg_batch_norm(x, NULL, NULL, v, NULL, &training),
                    BRG_ERR_ARG);
    assert_brg_null_with(brg_batch_norm(one, NULL, NULL, NULL, NULL, &training),
                         BRG_ERR_SHAPE, "more than one value per channel");
    assert_brg_null(brg_batch_norm(v, NULL, NULL, v, v, NULL), BRG_ERR_SHAPE);
    brg_tensor *i = brg_ones(BRG_DTYPE_I64, BRG_SHAPE(3));
    assert_brg_null(brg_batch_norm(x, NULL, NULL, i, i, NULL), BRG_ERR_DTYPE);
}

/* 16-bit activations with f32 running statistics. */
static void test_batch_norm__of_16_bits(void **state)
{
    (void)state;
    brg_tensor *x =
        brg_cast(brg_arange(BRG_DTYPE_F32, 0, 12, 1), BRG_DTYPE_BF16);
    x = brg_reshape(x, BRG_SHAPE(2, 2, 3));
    brg_tensor *mean = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(2));
    brg_tensor *var = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(2));
    brg_tensor *y = brg_batch_norm(x, NULL, NULL, mean, var, &training);
    assert_int_equal(brg_tensor_dtype(y), BRG_DTYPE_BF16);
    assert_values(mean, 1e-6, 1, 1.75);
    assert_values(brg_sum_all(y), 0.05, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_SCOPE(test_softmax__of_extreme_values),
        IN_SCOPE(test_softmax__rows_add_up_to_one),
        IN_SCOPE(test_softmax__of_an_empty_dim),
        IN_SCOPE(test_layer_norm__with_the_sum_of_its_gradient),
        IN_SCOPE(test_layer_norm__survives_a_large_mean),
        IN_SCOPE(test_layer_norm__names_what_does_not_fit),
        IN_SCOPE(test_layer_norm__gives_only_wanted_gradients),
        IN_SCOPE(test_batch_norm__moves_running_statistics),
        IN_SCOPE(test_batch_norm__leaves_empty_batches_alone),
        IN_SCOPE(test_batch_norm__says_what_it_needs),
        IN_SCOPE(test_batch_norm__of_16_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
