/* SPDX-License-Identifier: Apache-2.0
 * A compiled backward that fails at any point leaves a graph that can be used
 * eagerly, and nothing behind: out of memory at each allocation of a capture, a
 * specialisation and a run; scopes and resets where they must not be. */
#include <brigade/function.h>

#include "tests/compile/chains.h"
#include "tests/support/fail_alloc.h"

/* Two leaves, products and reductions, a hook. */
static brg_status doubled(brg_tensor *grad, brg_tensor **replacement,
                          void *user)
{
    (void)user;
    *replacement = brg_mul_scalar(grad, 2);
    return *replacement ? BRG_OK : brg_error_code();
}

static brg_tensor *loss_of(brg_tensor *x, brg_tensor *w)
{
    brg_tensor *h = brg_tanh(brg_linear(x, w, NULL));
    assert_brg_ok(brg_tensor_add_hook(NULL, h, doubled, NULL, NULL));
    return assert_brg_some(brg_sum_all(brg_mul(h, h)));
}

static void expect_grads(const brg_tensor *w, const float *want)
{
    assert_non_null(brg_tensor_grad(w));
    for (int64_t i = 0; i < 6; i++)
        assert_float_equal(element(brg_tensor_grad(w), i), want[i], 0);
}

/* One compiled backward with n allocations; true if it went through. */
static bool try_with(int64_t n, bool is_new_size, const float *want)
{
    brg_scope *scope = brg_scope_begin();
    brg_tensor *w = leaf_from(0.1, BRG_SHAPE(2, 3));
    brg_tensor *x = leaf_from(-1, BRG_SHAPE(4, 3));
    brg_backward_options keep = BRG_BACKWARD_OPTIONS_INIT;
    keep.retain_graph = true;
    int token;
    assert_brg_ok(brg_compile_begin(&token, NULL));
    if (is_new_size) { /* the plan is there, for another size */
        brg_tensor *other = leaf_from(-1, BRG_SHAPE(5, 3));
        assert_brg_ok(brg_backward(loss_of(other, w)));
        assert_brg_ok(brg_tensor_set_grad(w, NULL));
    }
    brg_tensor *loss = loss_of(x, w);
    fail_alloc_arm(n);
    brg_status status = brg_backward_with(&loss, 1, &keep);
    int64_t n_refused = fail_alloc_disarm();
    if (n_refused > 0)
        assert_int_equal(status, BRG_ERR_NOMEM);
    else
        assert_brg_ok(status);
    assert_brg_ok(brg_compile_end(token));
    if (status == BRG_OK)
        expect_grads(w, want);
    /* Eagerly, on the same graph. */
    assert_brg_ok(brg_tensor_set_grad(w, NULL));
    assert_brg_ok(brg_backward(loss));
    expect_grads(w, want);
    brg_scope_end(scope);
    return status == BRG_OK;
}

static void sweep(bool is_new_size)
{
    float want[6];
    brg_tensor *w = leaf_from(0.1, BRG_SHAPE(2, 3));
    brg_tensor *x = leaf_from(-1, BRG_SHAPE(4, 3));
    assert_brg_ok(brg_backward(loss_of(x, w)));
    assert_brg_ok(brg_tensor_read(brg_tensor_grad(w), want, sizeof want));
    int64_t n = 0;
    do
        assert_brg_ok(brg_compile_reset());
    while (!try_with(n++, is_new_size, want) && n < 2000);
    assert_in_range(n, 10, 1999); /* it did fail at many points */
}

static void test_failures__out_of_memory_in_a_capture(void **state)
{
    (void)state;
    sweep(false);
}

static void test_failures__out_of_memory_in_a_specialisation(void **state)
{
    (void)state;
    sweep(true);
}

/* ---- Where they must not be ------------------------------------------------------- */

static brg_status resets(brg_tensor *grad, brg_tensor **replacement, void *user)
{
    (void)grad;
    (void)replacement;
    *(brg_status *)user = brg_compile_reset();
    return BRG_OK;
}

static void test_failures__no_reset_while_a_plan_runs(void **state)
{
    (void)state;
    brg_status status = BRG_OK;
    brg_tensor *x = leaf_from(1, BRG_SHAPE(3));
    assert_brg_ok(brg_tensor_add_hook(NULL, x, resets, &status, NULL));
    int scope = begin_with((brg_compile_options)BRG_COMPILE_OPTIONS_INIT);
    assert_brg_ok(brg_backward(brg_sum_all(chain(x, 2, 0))));
    assert_int_equal(status, BRG_ERR_STATE);
    assert_true(brg_compile_is_on());
    assert_int_equal(stats().captures, 1);
    assert_brg_ok(brg_compile_end(scope));
}

int main(void)
{
    fail_alloc_install();
    const struct CMUnitTest tests[] = {
        compile_test(test_failures__out_of_memory_in_a_capture),
        compile_test(test_failures__out_of_memory_in_a_specialisation),
        compile_test(test_failures__no_reset_while_a_plan_runs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
