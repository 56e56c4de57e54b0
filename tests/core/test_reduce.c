/* SPDX-License-Identifier: Apache-2.0
 * Reductions beyond op_cases_shape.def: accuracy over many elements, NaN,
 * ties, empty inputs, wide integers, memory of a steady step. */
#include <brigade/runtime.h>

#include "tests/support/values.h"

#define MANY 1000000

static brg_tensor *random_f32(uint64_t *state, int64_t n, double low,
                              double high)
{
    brg_tensor *x = assert_brg_some(brg_empty(BRG_DTYPE_F32, BRG_SHAPE(n)));
    float *v = brg_tensor_data(x);
    for (int64_t i = 0; i < n; i++)
        v[i] = (float)brg_test_uniform(state, low, high);
    return x;
}

static void test_sum__stays_accurate_over_many_elements(void **state)
{
    (void)state;
    uint64_t seed = brg_test_seed(11);
    brg_tensor *x = random_f32(&seed, MANY, 0, 1);
    const float *v = brg_tensor_data(x);
    double exact = 0, got;
    for (int64_t i = 0; i < MANY; i++)
        exact += (double)v[i];
    /* The f32 result is the exact sum rounded, or its neighbour. */
    assert_brg_ok(brg_tensor_item(brg_sum_all(x), &got));
    assert_true(fabs(got - exact) <= exact * 0x1p-23);
    brg_tensor *tall = brg_reshape(x, BRG_SHAPE(MANY / 4, 4));
    double column = 0;
    for (int64_t i = 0; i < MANY; i += 4)
        column += (double)v[i];
    got = value_at(brg_sum(tall, BRG_DIMS(0), false), 0);
    assert_true(fabs(got - column) <= column * 0x1p-22);
    got = value_at(brg_var(x, BRG_ALL_DIMS, 1, false), 0);
    assert_true(fabs(got - 1.0 / 12.0) < 1e-3);
}

static void test_sum__of_16_bits_is_rounded_once(void **state)
{
    (void)state;
    for (int d = BRG_DTYPE_F16; d <= BRG_DTYPE_BF16; d++) {
        brg_tensor *x =
            brg_full((brg_dtype)d, BRG_SHAPE(3000, 2), 1.0); /* > 2048 */
        assert_values(brg_sum(x, BRG_DIMS(0), false), 1e-3,
                      d == BRG_DTYPE_F16 ? 3000 : 3008,
                      d == BRG_DTYPE_F16 ? 3000 : 3008);
        brg_tensor *t = brg_sum(brg_transpose(x, 0, 1), BRG_DIMS(1), false);
        assert_values(t, 1e-3, d == BRG_DTYPE_F16 ? 3000 : 3008,
                      d == BRG_DTYPE_F16 ? 3000 : 3008);
    }
}

static void test_var__survives_a_large_mean(void **state)
{
    (void)state;
    uint64_t seed = brg_test_seed(12);
    brg_tensor *x = random_f32(&seed, 4096, 4000, 4001);
    const float *v = brg_tensor_data(x);
    double mean = 0, sum = 0;
    for (int i = 0; i < 4096; i++)
        mean += (double)v[i] / 4096;
    for (int i = 0; i < 4096; i++)
        sum += ((double)v[i] - mean) * ((double)v[i] - mean);
    double got = value_at(brg_var(x, BRG_ALL_DIMS, 0, false), 0);
    assert_true(fabs(got - sum / 4096) < 1e-5);
}

static void test_sum__of_integers_is_i64(void **state)
{
    (void)state;
    brg_tensor *x = TENSOR_OF(BRG_DTYPE_I64, int64_t, BRG_SHAPE(3),
                              INT64_C(1) << 60, INT64_C(1) << 60, 1);
    int64_t sum;
    assert_brg_ok(brg_tensor_read(brg_sum_all(x), &sum, sizeof sum));
    assert_true(sum == (INT64_C(1) << 61) + 1);
    brg_tensor *u8 = brg_full(BRG_DTYPE_U8, BRG_SHAPE(10, 2), 200);
    brg_tensor *total = brg_sum(u8, BRG_DIMS(0), false);
    assert_int_equal(brg_tensor_dtype(total), BRG_DTYPE_I64);
    assert_values(total, 0, 2000, 2000);
    brg_tensor *flags = brg_ones(BRG_DTYPE_BOOL, BRG_SHAPE(300));
    assert_values(brg_sum_all(flags), 0, 300);
    brg_tensor *top = brg_amax(x, BRG_ALL_DIMS, false);
    assert_int_equal(brg_tensor_dtype(top), BRG_DTYPE_I64);
}

static void test_extremes__let_a_nan_win(void **state)
{
    (void)state;
    brg_tensor *x = TENSOR_OF(BRG_DTYPE_F32, float, BRG_SHAPE(3, 3), 1, NAN, 3,
                              4, 5, 6, -INFINITY, 8, INFINITY);
    assert_values(brg_amax(x, BRG_DIMS(1), false), 0, NAN, 6, INFINITY);
    assert_values(brg_amax(x, BRG_DIMS(0), false), 0, 4, NAN, INFINITY);
    assert_values(brg_amin(x, BRG_DIMS(1), false), 0, NAN, 4, -INFINITY);
    assert_values(brg_amin(x, BRG_DIMS(0), false), 0, -INFINITY, NAN, 3);
    assert_values(brg_argmax(x, 1, false), 0, 1, 2, 2);
    assert_values(brg_argmin(x, 1, false), 0, 1, 0, 0);
}

static void test_argmax__takes_the_first(void **state)
{
    (void)state;
    brg_tensor *x = TENSOR_OF(BRG_DTYPE_F64, double, BRG_SHAPE(2, 4), 1, 7, 7,
                              2, -1, -1, -1, -1);
    assert_values(brg_argmax(x, -1, false), 0, 1, 0);
    assert_values(brg_argmin(brg_cast(x, BRG_DTYPE_I32), 1, false), 0, 0, 0);
    assert_shape_is(brg_argmax(x, 0, true), BRG_SHAPE(1, 4));
    brg_tensor *big = TENSOR_OF(BRG_DTYPE_I64, int64_t, BRG_SHAPE(2),
                                INT64_MAX - 1, INT64_MAX);
    assert_values(brg_argmax(big, 0, false), 0, 1);
    assert_brg_null(brg_argmax(x, 2, false), BRG_ERR_SHAPE);
}

static void test_amax__shares_the_gradient_of_ties(void **state)
{
    (void)state;
    brg_tensor *x =
        TENSOR_OF(BRG_DTYPE_F32, float, BRG_SHAPE(2, 3), 5, 1, 5, 2, 2, 2);
    assert_brg_ok(brg_set_requires_grad(x, true));
    brg_tensor *y = brg_amax(x, BRG_DIMS(1), false);
    assert_brg_ok(brg_backward(brg_sum_all(brg_mul_scalar(y, 6))));
    assert_values(brg_tensor_grad(x), 1e-6, 3, 0, 3, 2, 2, 2);
}

static void test_reductions__of_nothing(void **state)
{
    (void)state;
    brg_tensor *x = brg_empty(BRG_DTYPE_F32, BRG_SHAPE(0, 2));
    assert_values(brg_sum_all(x), 0, 0);
    assert_values(brg_mean_all(x), 0, NAN);
    assert_values(brg_mean(x, BRG_DIMS(0), false), 0, NAN, NAN);
    assert_values(brg_var(x, BRG_DIMS(0), 1, false), 0, NAN, NAN);
    assert_shape_is(brg_mean(x, BRG_DIMS(1), false), BRG_SHAPE(0));
    assert_brg_null_with(brg_amax(x, BRG_DIMS(0), false), BRG_ERR_SHAPE,
                         "f32[0, 2]");
    assert_shape_is(brg_amax(x, BRG_DIMS(1), false), BRG_SHAPE(0));
    brg_tensor *one = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(1));
    assert_values(brg_var(one, BRG_ALL_DIMS, 1, false), 0, NAN);
    brg_tensor *scalar = brg_full(BRG_DTYPE_F32, BRG_SCALAR, 3);
    assert_values(brg_mean_all(scalar), 0, 3);
    assert_values(brg_sum(scalar, BRG_ALL_DIMS, true), 0, 3);
}

static void test_reductions__check_their_dims(void **state)
{
    (void)state;
    brg_tensor *x = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(2, 3));
    assert_brg_null_with(brg_sum(x, BRG_DIMS(1, -1), false), BRG_ERR_SHAPE,
                         "dim 1 is given twice");
    assert_brg_null_with(brg_mean(x, BRG_DIMS(2), false), BRG_ERR_SHAPE,
                         "mean: dim 2");
}

/* The same values in another layout give the same sum up to its order. */
static void test_sum__of_any_strides(void **state)
{
    (void)state;
    uint64_t seed = brg_test_seed(13);
    brg_tensor *x = brg_reshape(random_f32(&seed, 2 * 30 * 70 * 11, -1, 1),
                                BRG_SHAPE(2, 30, 70, 11));
    brg_tensor *y = brg_slice(brg_permute(x, 4, (const int[]){3, 1, 0, 2}), 1,
                              1, BRG_TO_END, 3);
    brg_tensor *copy = brg_copy(y);
    for (int a = 0; a < 4; a++)
        for (int b = 0; b < 4; b++) {
            if (a == b)
                continue;
            brg_tensor *p = brg_sum(y, BRG_DIMS(a, b), true);
            brg_tensor *q = brg_sum(copy, BRG_DIMS(a, b), true);
            brg_tensor *off = brg_abs(brg_sub(p, q));
            assert_true(value_at(brg_amax(off, BRG_ALL_DIMS, false), 0) < 2e-5);
            p = brg_amin(y, BRG_DIMS(a, b), true);
            q = brg_amin(copy, BRG_DIMS(a, b), true);
            off = brg_abs(brg_sub(p, q));
            assert_values(brg_amax(off, BRG_ALL_DIMS, false), 0, 0);
        }
}

static void one_step(brg_tensor *x, brg_tensor *w, brg_tensor *ids)
{
    brg_scope *scope = brg_scope_begin();
    brg_tensor *h = brg_layer_norm(x, w, w, 1, 1e-5);
    h = brg_add(h, brg_embedding(x, ids));
    h = brg_softmax(brg_transpose(h, 0, 1), 1);
    h = brg_batch_norm(
        h, NULL, NULL, NULL, NULL,
        &(brg_batch_norm_options){.struct_size = sizeof(brg_batch_norm_options),
                                  .training = true});
    brg_tensor *loss = brg_cross_entropy(brg_transpose(h, 0, 1), ids);
    loss = brg_add(loss, brg_mean_all(brg_var(h, BRG_DIMS(0), 1, true)));
    assert_brg_ok(brg_backward(loss));
    assert_non_null(brg_argmax(h, 0, false));
    brg_scope_end(scope);
}

static void test_kernels__allocate_nothing_once_warm(void **state)
{
    (void)state;
    brg_memory_stats before, after;
    brg_tensor *x = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(40, 50));
    brg_tensor *w = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(50));
    brg_tensor *ids = brg_arange(BRG_DTYPE_I64, 0, 40, 1);
    assert_brg_ok(brg_set_requires_grad(x, true));
    assert_brg_ok(brg_set_requires_grad(w, true));
    for (int i = 0; i < 3; i++)
        one_step(x, w, ids);
    brg_memory_get_stats(&before);
    one_step(x, w, ids);
    brg_memory_get_stats(&after);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    assert_int_equal(after.n_allocs, before.n_allocs);
#endif
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_SCOPE(test_sum__stays_accurate_over_many_elements),
        IN_SCOPE(test_sum__of_16_bits_is_rounded_once),
        IN_SCOPE(test_var__survives_a_large_mean),
        IN_SCOPE(test_sum__of_integers_is_i64),
        IN_SCOPE(test_extremes__let_a_nan_win),
        IN_SCOPE(test_argmax__takes_the_first),
        IN_SCOPE(test_amax__shares_the_gradient_of_ties),
        IN_SCOPE(test_reductions__of_nothing),
        IN_SCOPE(test_reductions__check_their_dims),
        IN_SCOPE(test_sum__of_any_strides),
        IN_SCOPE(test_kernels__allocate_nothing_once_warm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
