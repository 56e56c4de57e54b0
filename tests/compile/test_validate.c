/* SPDX-License-Identifier: Apache-2.0
 * Gradients that do not fit, met by a plan: summed, cast or refused as the
 * engine does it, at the same place and with the same words. */
#include <brigade/ext/op.h>

#include "tests/rows/both.h"

/* ---- Functions with odd gradients ---------------------------------------------- */

FORWARD(double_forward)
{
    OUT(0, brg_mul_scalar(ARG(0), 2));
    return BRG_OK;
}

FORWARD(add_forward)
{
    OUT(0, brg_add(ARG(0), ARG(1)));
    return BRG_OK;
}

BACKWARD(of_other_shape)
{
    GRAD(0, brg_ones(BRG_DTYPE_F32, BRG_SHAPE(5)));
    return BRG_OK;
}

/* Three rows for each: broadcast, as it were. */
BACKWARD(wider)
{
    GRAD(0, brg_stack((brg_tensor *[]){g[0], g[0], g[0]}, 3, 0));
    return BRG_OK;
}

BACKWARD(of_other_dtype)
{
    GRAD(0, brg_cast(brg_mul_scalar(g[0], 0.1), BRG_DTYPE_F64));
    return BRG_OK;
}

BACKWARD(for_the_first_only)
{
    GRAD(0, brg_mul_scalar(g[0], 3));
    return BRG_OK;
}

/* Right for three elements. */
BACKWARD(first_three)
{
    GRAD(0, brg_slice(g[0], 0, 0, 3, 1));
    return BRG_OK;
}

static brg_function_tracing how; /* the next function is met by plans */

static brg_tensor *through(const char *name,
                           brg_status (*backward)(brg_context *,
                                                  brg_tensor *const *,
                                                  brg_tensor **, size_t *),
                           brg_tensor *x)
{
    brg_function *f = function_traced(how, name, double_forward, backward, 1);
    brg_tensor *y = CALL(f, x);
    brg_function_release(f);
    return y;
}

/* ---- Refused -------------------------------------------------------------------- */

static brg_status note(brg_tensor *grad, brg_tensor **replacement, void *user)
{
    (void)replacement;
    yields *y = user;
    yield(y, grad);
    return BRG_OK;
}

/* z + F(sin x): z and the sum have their gradients when F fails. */
static void fail_behind_a_leaf(yields *y)
{
    brg_tensor *x = leaf_from(1, BRG_SHAPE(2, 2));
    brg_tensor *z = leaf_from(2, BRG_SHAPE(2, 2));
    brg_tensor *inner = brg_sin(x);
    assert_brg_ok(brg_tensor_add_hook(NULL, inner, note, y, NULL));
    brg_tensor *out = through("MyFn", of_other_shape, inner);
    assert_brg_ok(brg_tensor_add_hook(NULL, out, note, y, NULL));
    assert_brg_fails_with(brg_backward(brg_sum_all(brg_add(out, z))),
                          BRG_ERR_SHAPE,
                          "MyFn returned an invalid gradient at index 0 - got "
                          "[5] but expected shape compatible with [2, 2]");
    yield_text(y, brg_error_message());
    yield_grad(y, x);
    yield_grad(y, z);
}

static void test_validate__a_function_fails_as_it_does_eagerly(void **state)
{
    (void)state;
    how = BRG_FUNCTION_OPAQUE;
    run_both(fail_behind_a_leaf, 1);
    assert_true(plan_has(0, "= validate@"));
    how = BRG_FUNCTION_UNTRACEABLE;
    run_both(fail_behind_a_leaf, 1);
    how = BRG_FUNCTION_TRACEABLE;
    run_both(fail_behind_a_leaf, 1);
}

/* The sizes that it was captured with happened to fit. */
static void fail_later(yields *y)
{
    for (int64_t n = 3; n < 6; n += 2) {
        brg_tensor *x = leaf_from(1, BRG_SHAPE(n));
        brg_status status =
            brg_backward(brg_sum_all(through("Three", first_three, x)));
        assert_int_equal(status, n == 3 ? BRG_OK : BRG_ERR_SHAPE);
        yield_text(y, n == 3 ? "" : brg_error_message());
        yield_grad(y, x);
    }
    assert_non_null(strstr(brg_error_message(),
                           "Three returned an invalid gradient at index 0 - "
                           "got [3] but expected shape compatible with [5]"));
}

static void
test_validate__a_traced_function_is_checked_for_each_size(void **state)
{
    (void)state;
    how = BRG_FUNCTION_TRACEABLE;
    run_both(fail_later, 2); /* two functions */
}

/* ---- Made to fit ----------------------------------------------------------------- */

static void make_fit(yields *y)
{
    brg_tensor *x = leaf_from(1, BRG_SHAPE(2, 3));
    brg_tensor *a = leaf_from(1, BRG_SHAPE(2)), *b = leaf_from(3, BRG_SHAPE(2));
    brg_function *f =
        function_traced(how, "FirstOnly", add_forward, for_the_first_only, 1);
    brg_tensor *h = through("OfOtherDtype", of_other_dtype, brg_sin(x));
    backward_of_sum(through("Wider", wider, h));
    backward_of_sum(brg_mul(CALL(f, a, brg_exp(b)), a));
    brg_function_release(f);
    yield_grad(y, x);
    yield_grad(y, a);
    yield_grad(y, b);
    assert_int_equal(brg_tensor_dtype(brg_tensor_grad(x)), BRG_DTYPE_F32);
    assert_float_equal(element(brg_tensor_grad(x), 0), 0.3 * cos(1), 1e-6);
    assert_null(brg_tensor_grad(b));
}

static void test_validate__gradients_are_made_to_fit(void **state)
{
    (void)state;
    const brg_compile_backend backends[] = {BRG_COMPILE_BACKEND_EAGER,
                                            BRG_COMPILE_BACKEND_PASSES,
                                            BRG_COMPILE_BACKEND_FUSED};
    const brg_function_tracing all[] = {
        BRG_FUNCTION_OPAQUE, BRG_FUNCTION_UNTRACEABLE, BRG_FUNCTION_TRACEABLE};
    for (int b = 0; b < 3; b++)
        for (int k = 0; k < 3; k++) {
            both_backend = backends[b];
            how = all[k];
            run_both(make_fit, 2);
        }
    both_backend = BRG_COMPILE_BACKEND_DEFAULT;
}

/* ---- An op whose rule is wrong ----------------------------------------------------- */

static brg_status sum_for_gradient(brg_vjp *v)
{
    BRG_VJP_SET(v, 0, brg_sum_all(v->grad_out[0]));
    return BRG_OK;
}

static void wrong_rule(yields *y)
{
    static brg_op odd;
    odd = *brg_op_find("sin");
    odd.name = "odd";
    odd.vjp = sum_for_gradient;
    brg_tensor *x = leaf_from(1, BRG_SHAPE(3)), *out[1];
    brg_tensor *z = leaf_from(1, BRG_SHAPE(3));
    assert_brg_ok(brg_op_apply(&odd, 1, &x, NULL, out));
    assert_brg_fails_with(
        brg_backward(brg_sum_all(brg_add(brg_exp(out[0]), z))), BRG_ERR_SHAPE,
        "returned an invalid gradient at index 0 - got [] but expected shape "
        "compatible with [3]");
    yield_text(y, brg_error_message());
    yield_grad(y, x);
    yield_grad(y, z);
}

static void test_validate__an_op_with_a_wrong_rule_is_named(void **state)
{
    (void)state;
    run_both(wrong_rule, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_validate__a_function_fails_as_it_does_eagerly),
        scoped_test(test_validate__a_traced_function_is_checked_for_each_size),
        scoped_test(test_validate__gradients_are_made_to_fit),
        scoped_test(test_validate__an_op_with_a_wrong_rule_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
