/* SPDX-License-Identifier: Apache-2.0
 * Clipping by norm and by value, and the schedules. */
#include <brigade/autograd.h>
#include <brigade/optim.h>
#include <brigade/tensor.h>

#include <math.h>

#include "core/base/dtype.h"
#include "tests/support/brg_test.h"

#define N 37

typedef struct fixture {
    brg_scope *scope;
    brg_params *params;
    brg_tensor *grad[2];
} fixture;

static void fixture_init(fixture *f, brg_dtype dtype)
{
    const char *names[] = {"first", "second"};
    f->scope = brg_scope_begin();
    assert_brg_ok(brg_params_create(&f->params));
    for (int i = 0; i < 2; i++) {
        brg_tensor *t = brg_zeros(dtype, BRG_SHAPE(N));
        assert_brg_ok(
            brg_params_add(f->params, names[i], t, BRG_PARAM_TRAINED));
        f->grad[i] = brg_zeros(dtype, BRG_SHAPE(N));
        assert_brg_ok(brg_tensor_set_grad(t, f->grad[i]));
    }
    brg_tensor *none = brg_zeros(dtype, BRG_SHAPE(N));
    assert_brg_ok(brg_params_add(f->params, "none", none, BRG_PARAM_TRAINED));
}

static void fixture_deinit(fixture *f)
{
    brg_params_destroy(f->params);
    brg_scope_end(f->scope);
}

static void fill_f32(fixture *f, double *squares)
{
    uint64_t seed = 9;
    *squares = 0;
    for (int i = 0; i < 2; i++)
        for (int k = 0; k < N; k++) {
            float x = (float)brg_test_uniform(&seed, -3, 3);
            ((float *)brg_tensor_data(f->grad[i]))[k] = x;
            *squares += (double)x * (double)x;
        }
}

static void test_clip__norm(void **state)
{
    (void)state;
    fixture f;
    double squares, norm, again;
    fixture_init(&f, BRG_DTYPE_F32);
    fill_f32(&f, &squares);
    uint32_t version = brg_tensor_version(f.grad[0]);
    assert_brg_ok(brg_clip_grad_norm(&norm, f.params, INFINITY, true));
    assert_true(fabs(norm - sqrt(squares)) < 1e-12 * norm);
    assert_brg_ok(brg_clip_grad_norm(&norm, f.params, norm * 1.01, true));
    assert_int_equal(brg_tensor_version(f.grad[0]), version);
    float before = ((float *)brg_tensor_data(f.grad[1]))[5];
    assert_brg_ok(brg_clip_grad_norm(NULL, f.params, 0.5, true));
    assert_brg_ok(brg_clip_grad_norm(&again, f.params, INFINITY, true));
    assert_true(fabs(again - 0.5) < 1e-6);
    assert_true(brg_tensor_version(f.grad[0]) != version);
    float expected = before * (float)(0.5 / (norm + 1e-6));
    assert_true(((float *)brg_tensor_data(f.grad[1]))[5] == expected);
    fixture_deinit(&f);
}

static void test_clip__norm_of_other_dtypes(void **state)
{
    (void)state;
    fixture f;
    double norm;
    fixture_init(&f, BRG_DTYPE_F64);
    for (int k = 0; k < N; k++)
        ((double *)brg_tensor_data(f.grad[1]))[k] = 2.0;
    assert_brg_ok(brg_clip_grad_norm(&norm, f.params, 1.0, true));
    assert_true(fabs(norm - 2 * sqrt(N)) < 1e-12);
    assert_true(fabs(((double *)brg_tensor_data(f.grad[1]))[3] - 1 / sqrt(N)) <
                1e-6);
    fixture_deinit(&f);
    fixture_init(&f, BRG_DTYPE_BF16);
    for (int k = 0; k < N; k++)
        ((uint16_t *)brg_tensor_data(f.grad[0]))[k] = brg__f32_to_bf16(2.0f);
    assert_brg_ok(brg_clip_grad_norm(&norm, f.params, sqrt(N), true));
    assert_true(fabs(norm - 2 * sqrt(N)) < 1e-12);
    uint16_t bits = ((uint16_t *)brg_tensor_data(f.grad[0]))[N - 1];
    assert_true(fabsf(brg__bf16_to_f32(bits) - 1.0f) < 0.01f);
    fixture_deinit(&f);
}

static void test_clip__names_the_parameter_that_is_not_finite(void **state)
{
    (void)state;
    const float bad[] = {NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < 3; i++) {
        fixture f;
        double squares, norm = 0;
        fixture_init(&f, BRG_DTYPE_F32);
        fill_f32(&f, &squares);
        float *at = brg_tensor_data(f.grad[1]);
        at[30] = bad[i];
        float before = at[0];
        assert_brg_fails_with(brg_clip_grad_norm(&norm, f.params, 1, true),
                              BRG_ERR_NAN, "'second'");
        assert_false(isfinite(norm));
        assert_brg_ok(brg_clip_grad_norm(&norm, f.params, 1, false));
        assert_false(isfinite(norm));
        assert_true(at[0] == before);
        fixture_deinit(&f);
    }
}

static void test_clip__value(void **state)
{
    (void)state;
    fixture f;
    fixture_init(&f, BRG_DTYPE_F32);
    float *at = brg_tensor_data(f.grad[0]);
    at[0] = 5;
    at[1] = -5;
    at[2] = 0.5f;
    at[36] = NAN;
    assert_brg_ok(brg_clip_grad_value(f.params, 1));
    assert_true(at[0] == 1 && at[1] == -1 && at[2] == 0.5f);
    assert_true(isnan(at[36]));
    assert_brg_fails(brg_clip_grad_value(f.params, -1), BRG_ERR_ARG);
    assert_brg_fails(brg_clip_grad_value(NULL, 1), BRG_ERR_ARG);
    assert_brg_fails(brg_clip_grad_norm(NULL, f.params, 0, true), BRG_ERR_ARG);
    assert_brg_fails(brg_clip_grad_norm(NULL, NULL, 1, true), BRG_ERR_ARG);
    fixture_deinit(&f);
}

static void test_clip__scale(void **state)
{
    (void)state;
    fixture f;
    fixture_init(&f, BRG_DTYPE_F32);
    float *at = brg_tensor_data(f.grad[0]);
    float *second = brg_tensor_data(f.grad[1]);
    at[0] = 5;
    at[36] = -INFINITY;
    second[0] = -3;
    uint32_t version = brg_tensor_version(f.grad[0]);
    assert_brg_ok(brg_scale_grad(f.params, 0.25));
    assert_true(at[0] == 1.25f && at[36] == -INFINITY && second[0] == -0.75f);
    assert_true(brg_tensor_version(f.grad[0]) != version);
    assert_brg_fails_with(brg_scale_grad(f.params, INFINITY), BRG_ERR_ARG,
                          "factor inf must be finite");
    assert_brg_fails(brg_scale_grad(NULL, 1), BRG_ERR_ARG);
    fixture_deinit(&f);
}

static void test_clip__strided_gradient(void **state)
{
    (void)state;
    brg_scope *scope = brg_scope_begin();
    brg_params *params;
    assert_brg_ok(brg_params_create(&params));
    brg_tensor *w = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(2, 2));
    assert_brg_ok(brg_params_add(params, "w", w, BRG_PARAM_TRAINED));
    const float values[] = {3, 4, 0, 0};
    brg_tensor *base = brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(2, 2), values);
    assert_brg_ok(brg_tensor_set_grad(
        w, brg_as_strided(base, BRG_SHAPE(2, 2), (const int64_t[]){1, 2}, 0)));
    double norm;
    assert_brg_ok(brg_clip_grad_norm(&norm, params, 2.5, true));
    assert_true(norm == 5);
    const float *at = brg_tensor_data(brg_tensor_grad(w));
    assert_true(fabsf(at[0] - 1.5f) < 1e-5f && fabsf(at[2] - 2.0f) < 1e-5f);
    brg_params_destroy(params);
    brg_scope_end(scope);
}

/* ---- Schedules ------------------------------------------------------------------------ */

static void test_schedule__cosine_with_warm_up(void **state)
{
    (void)state;
    brg_lr_cosine s = {.lr = 1, .lr_min = 0.1, .n_warmup = 10, .n_steps = 110};
    assert_true(fabs(brg_lr_cosine_at(&s, 0) - 0.1) < 1e-15);
    assert_true(fabs(brg_lr_cosine_at(&s, 9) - 1.0) < 1e-15);
    assert_true(fabs(brg_lr_cosine_at(&s, 10) - 1.0) < 1e-15);
    assert_true(fabs(brg_lr_cosine_at(&s, 60) - 0.55) < 1e-15);
    assert_true(brg_lr_cosine_at(&s, 110) == 0.1);
    assert_true(brg_lr_cosine_at(&s, 1000) == 0.1);
    for (int64_t i = 10; i < 110; i++)
        assert_true(brg_lr_cosine_at(&s, i + 1) < brg_lr_cosine_at(&s, i));
    brg_lr_cosine none = {.lr = 1};
    assert_true(brg_lr_cosine_at(&none, 0) == 0);
}

static void test_schedule__steps(void **state)
{
    (void)state;
    brg_lr_step s = {.lr = 0.1, .gamma = 0.5, .every = 30};
    assert_true(brg_lr_step_at(&s, 0) == 0.1);
    assert_true(brg_lr_step_at(&s, 29) == 0.1);
    assert_true(brg_lr_step_at(&s, 30) == 0.05);
    assert_true(brg_lr_step_at(&s, 60) == 0.025);
    s.every = 0;
    assert_true(brg_lr_step_at(&s, 60) == 0.1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_clip__norm),
        cmocka_unit_test(test_clip__norm_of_other_dtypes),
        cmocka_unit_test(test_clip__names_the_parameter_that_is_not_finite),
        cmocka_unit_test(test_clip__value),
        cmocka_unit_test(test_clip__scale),
        cmocka_unit_test(test_clip__strided_gradient),
        cmocka_unit_test(test_schedule__cosine_with_warm_up),
        cmocka_unit_test(test_schedule__steps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
