/* SPDX-License-Identifier: Apache-2.0
 * Steps that are left out because gradients were not finite: nothing changes,
 * and those that are made have the bits of a training without the others. */
#include <math.h>
#include <string.h>

#include <brigade/brigade.h>

#include "tests/support/brg_test.h"

#define N 5
#define N_STEPS 8

typedef struct training {
    brg_tensor *p[2]; /* f32; bf16 with a master copy */
    brg_params *params;
    brg_optim *optim;
} training;

static void training_make(training *t, bool is_adamw)
{
    const float values[N] = {1, -2, 0.5F, 3, -0.25F};
    const brg_dtype dtypes[2] = {BRG_DTYPE_F32, BRG_DTYPE_BF16};
    assert_brg_ok(brg_params_create(&t->params));
    for (int i = 0; i < 2; i++) {
        t->p[i] = assert_brg_some(brg_cast(
            brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(N), values), dtypes[i]));
        assert_brg_ok(brg_set_requires_grad(t->p[i], true));
        assert_brg_ok(brg_params_add(t->params, i ? "half" : "p", t->p[i],
                                     BRG_PARAM_TRAINED));
    }
    brg_sgd_options sgd = BRG_SGD_OPTIONS_INIT;
    sgd.momentum = 0.9;
    assert_brg_ok(is_adamw ? brg_optim_create_adamw(&t->optim, t->params, NULL)
                           : brg_optim_create_sgd(&t->optim, t->params, &sgd));
}

static void training_free(training *t)
{
    brg_optim_destroy(t->optim);
    brg_params_destroy(t->params);
}

static void step_of(training *t, double grad)
{
    for (int i = 0; i < 2; i++)
        assert_brg_ok(brg_tensor_set_grad(
            t->p[i], brg_full(brg_tensor_dtype(t->p[i]), BRG_SHAPE(N), grad)));
    assert_brg_ok(brg_optim_step(t->optim));
}

static void read_all(const training *t, float values[2 * N])
{
    for (int i = 0; i < 2; i++)
        assert_brg_ok(
            brg_tensor_read(brg_cast(brg_detach(t->p[i]), BRG_DTYPE_F32),
                            values + N * i, N * sizeof *values));
}

static bool is_bad(int step)
{
    return step == 0 || step == 3 || step == 4;
}

static void check_training(bool is_adamw)
{
    training left, plain;
    float got[2 * N], want[2 * N];
    brg_scope *scope = brg_scope_begin();
    training_make(&left, is_adamw);
    training_make(&plain, is_adamw);
    brg_tensor *flag = assert_brg_some(brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(1)));
    assert_brg_ok(brg_optim_set_found_inf(left.optim, flag));
    for (int step = 0; step < N_STEPS; step++) {
        const double grad = 0.1 * (step + 1);
        assert_brg_ok(brg_fill_(flag, is_bad(step) ? 0.5 : 0));
        step_of(&left, is_bad(step) ? NAN : grad);
        if (!is_bad(step))
            step_of(&plain, grad);
        read_all(&left, got);
        read_all(&plain, want);
        assert_memory_equal(got, want, sizeof got);
    }
    assert_int_equal(brg_optim_n_skipped(left.optim), 3);
    assert_int_equal(brg_optim_n_skipped(plain.optim), 0);
    for (size_t i = 0; i < brg_optim_state_count(left.optim); i++) {
        const brg_tensor *a = brg_optim_state_at(left.optim, i)->tensor;
        const brg_tensor *b = brg_optim_state_at(plain.optim, i)->tensor;
        assert_memory_equal(brg_tensor_data((brg_tensor *)a),
                            brg_tensor_data((brg_tensor *)b),
                            brg_tensor_nbytes(a));
    }
    assert_brg_ok(brg_fill_(flag, NAN)); /* is not 0 either */
    step_of(&left, NAN);
    assert_int_equal(brg_optim_n_skipped(left.optim), 4);
    assert_brg_ok(brg_optim_set_found_inf(left.optim, NULL));
    step_of(&left, 1);
    step_of(&plain, 1);
    read_all(&left, got);
    read_all(&plain, want);
    assert_memory_equal(got, want, sizeof got);
    training_free(&left);
    training_free(&plain);
    brg_scope_end(scope);
}

static void test_skip__bits_of_the_other_steps(void **state)
{
    (void)state;
    check_training(false);
    check_training(true);
}

static void test_skip__what_cannot_be(void **state)
{
    (void)state;
    training t;
    brg_scope *scope = brg_scope_begin();
    training_make(&t, false);
    assert_brg_fails_with(brg_optim_set_found_inf(
                              t.optim, brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(2))),
                          BRG_ERR_SHAPE, "expected one f32");
    assert_brg_fails_with(brg_optim_set_found_inf(
                              t.optim, brg_zeros(BRG_DTYPE_F64, BRG_SHAPE(1))),
                          BRG_ERR_SHAPE, "expected one f32");
    assert_brg_fails_with(brg_optim_set_found_inf(NULL, NULL), BRG_ERR_ARG,
                          "optim is NULL");
    assert_brg_ok(brg_optim_set_found_inf(t.optim, NULL));
    step_of(&t, 1); /* as if nothing had been asked */
    assert_int_equal(brg_optim_n_skipped(t.optim), 0);
    training_free(&t);
    brg_scope_end(scope);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_skip__bits_of_the_other_steps),
        cmocka_unit_test(test_skip__what_cannot_be),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
