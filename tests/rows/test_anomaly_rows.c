/* SPDX-License-Identifier: Apache-2.0
 * Rows of the suite `backward` on anomaly mode with a compiled backward. */
#include <brigade/debug.h>

#include "tests/rows/both.h"

typedef struct counted {
    int n_backward;
    int n_hook;
} counted;

static counted calls;

FORWARD(nan_forward)
{
    OUT(0, brg_mul_scalar(ARG(0), 1));
    return BRG_OK;
}

BACKWARD(nan_backward)
{
    calls.n_backward++;
    GRAD(0, brg_mul_scalar(g[0], NAN));
    return BRG_OK;
}

BACKWARD(fine_backward)
{
    calls.n_backward++;
    GRAD(0, brg_mul_scalar(g[0], 2));
    return BRG_OK;
}

typedef struct setting {
    brg_function *f;
    brg_tensor *x, *w;
    brg_tensor *loss;
    int scope;
} setting;

/* loss = sum(f(x) * w), compiled and watched for NaN from here on. */
static setting begin(bool gives_nan)
{
    setting s;
    calls = (counted){0};
    s.f = function_of("MyFn", nan_forward,
                      gives_nan ? nan_backward : fine_backward, 1);
    s.x = leaf_from(1, BRG_SHAPE(3));
    s.w = leaf_from(1, BRG_SHAPE(3));
    assert_brg_ok(brg_tensor_set_name(s.x, "x.weight"));
    assert_brg_ok(brg_tensor_set_name(s.w, "w.weight"));
    s.loss = brg_sum_all(brg_mul(CALL(s.f, s.x), s.w));
    assert_brg_ok(brg_compile_reset());
    assert_brg_ok(brg_compile_begin(&s.scope, NULL));
    brg_anomaly_mode_set(true);
    return s;
}

static void end(setting *s)
{
    brg_anomaly_mode_set(false);
    assert_brg_ok(brg_compile_end(s->scope));
    brg_function_release(s->f);
}

static void test_anomaly_mode_already_nan(void **state)
{
    (void)state;
    setting s = begin(false);
    brg_tensor *bad = brg_full(BRG_DTYPE_F32, BRG_SHAPE(3), NAN);
    assert_brg_ok(brg_tensor_set_grad(s.x, bad));
    assert_brg_fails_with(
        brg_backward(s.loss), BRG_ERR_NAN,
        "already having NaN gradient. This is not supported.");
    assert_non_null(strstr(brg_error_message(), "x.weight"));
    assert_null(strstr(brg_error_message(), "w.weight"));
    /* Nothing ran, nothing was freed. */
    assert_int_equal(calls.n_backward, 0);
    assert_null(brg_tensor_grad(s.w));
    assert_ptr_equal(brg_tensor_grad(s.x), bad);
    assert_brg_ok(brg_tensor_set_grad(s.x, NULL));
    assert_brg_ok(brg_backward(s.loss));
    EXPECT_VALUES(brg_tensor_grad(s.x), 2, 4, 6);
    assert_int_equal(both_stats().fallbacks, 0);
    end(&s);
}

static void test_anomaly_mode_backward(void **state)
{
    (void)state;
    setting s = begin(true);
    assert_brg_fails_with(
        brg_backward(s.loss), BRG_ERR_NAN,
        "Compiled Autograd returned NaN gradients for parameters");
    assert_non_null(strstr(brg_error_message(), "x.weight"));
    assert_null(strstr(brg_error_message(), "w.weight"));
    assert_int_equal(calls.n_backward, 1);
    assert_int_equal(both_stats().captures, 1);
    end(&s);
    /* All of them in one error. */
    s = begin(true);
    brg_tensor *loss = brg_sum_all(brg_mul(CALL(s.f, s.x), CALL(s.f, s.w)));
    assert_brg_fails_with(
        brg_backward(loss), BRG_ERR_NAN,
        "Compiled Autograd returned NaN gradients for parameters");
    assert_non_null(strstr(brg_error_message(), "x.weight"));
    assert_non_null(strstr(brg_error_message(), "w.weight"));
    end(&s);
}

static void test_anomaly_mode_grad(void **state)
{
    (void)state;
    setting s = begin(true);
    brg_tensor *inputs[] = {s.w, s.x}, *grads[2];
    assert_brg_fails_with(
        brg_grad(grads, &s.loss, 1, inputs, 2, NULL), BRG_ERR_NAN,
        "Compiled Autograd returned NaN gradients for output nodes");
    assert_non_null(strstr(brg_error_message(), "#1"));
    assert_null(strstr(brg_error_message(), "#0"));
    assert_null(brg_tensor_grad(s.x));
    assert_int_equal(both_stats().captures, 1);
    end(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_anomaly_mode_already_nan),
        scoped_test(test_anomaly_mode_backward),
        scoped_test(test_anomaly_mode_grad),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
