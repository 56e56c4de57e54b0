/* SPDX-License-Identifier: Apache-2.0
 * The checker of gradients must find wrong ones, and leave things as they
 * were. */
#include <math.h>
#include <string.h>

#include "tests/autograd/graph.h"

#define N 3

/* a a: right. */
static brg_status square(brg_tensor *const *in, brg_tensor **out, void *user)
{
    (void)user;
    out[0] = brg_mul(in[0], in[0]);
    return out[0] ? BRG_OK : brg_error_code();
}

/* a a + b (b): half of b's gradient is lost. */
static brg_status half_lost(brg_tensor *const *in, brg_tensor **out, void *user)
{
    (void)user;
    out[0] = brg_add(brg_mul(in[0], in[0]), brg_mul(in[1], brg_detach(in[1])));
    return out[0] ? BRG_OK : brg_error_code();
}

static brg_status exponential(brg_tensor *const *in, brg_tensor **out,
                              void *user)
{
    (void)user;
    out[0] = brg_exp(in[0]);
    return out[0] ? BRG_OK : brg_error_code();
}

static brg_status narrow(brg_tensor *const *in, brg_tensor **out, void *user)
{
    (void)user;
    out[0] = brg_cast(in[0], BRG_DTYPE_F32);
    return out[0] ? BRG_OK : brg_error_code();
}

static brg_status constant(brg_tensor *const *in, brg_tensor **out, void *user)
{
    (void)user;
    out[0] = brg_detach(in[0]);
    return out[0] ? BRG_OK : brg_error_code();
}

static brg_status nothing(brg_tensor *const *in, brg_tensor **out, void *user)
{
    (void)in;
    (void)out;
    (void)user;
    return BRG_OK;
}

/* Fails at the call that *user counts down to. */
static brg_status fails_late(brg_tensor *const *in, brg_tensor **out,
                             void *user)
{
    int *n_left = user;
    if ((*n_left)-- == 0)
        return brg_error_set(BRG_ERR_CALLBACK, "here", 1, "not again");
    return square(in, out, NULL);
}

static brg_tensor *leaf(double value, bool requires_grad)
{
    brg_tensor *t = brg_full(BRG_DTYPE_F64, BRG_SHAPE(N), value);
    assert_brg_ok(brg_set_requires_grad(t, requires_grad));
    return t;
}

static void test_gradcheck__finds_the_wrong_gradient(void **state)
{
    (void)state;
    brg_tensor *in[] = {leaf(2.0, true), leaf(0.5, true)};
    assert_brg_ok(brg_gradcheck(square, NULL, in, 1, NULL));
    assert_brg_fails_with(brg_gradcheck(half_lost, NULL, in, 2, NULL),
                          BRG_ERR_MISMATCH, "input 1 (f64[3]), element 0");
    /* an input that requires none is not looked at */
    in[1] = leaf(0.5, false);
    assert_brg_ok(brg_gradcheck(half_lost, NULL, in, 2, NULL));
}

/* The differences are infinite there: nothing can be said for the gradient. */
static void test_gradcheck__an_infinite_difference_is_none(void **state)
{
    (void)state;
    brg_tensor *x = leaf(log(1.7e308), true);
    brg_gradcheck_options o = BRG_GRADCHECK_OPTIONS_INIT;
    o.eps = 1.0; /* the value above is infinite, the one below is not */
    assert_brg_fails_with(brg_gradcheck(exponential, NULL, &x, 1, &o),
                          BRG_ERR_MISMATCH, "inf");
    x = leaf(NAN, true);
    assert_brg_fails_with(brg_gradcheck(exponential, NULL, &x, 1, NULL),
                          BRG_ERR_MISMATCH, "nan");
}

static void test_gradcheck__bad_input(void **state)
{
    (void)state;
    brg_tensor *x = leaf(2.0, true), *fixed = leaf(2.0, false), *none = NULL;
    brg_tensor *low = brg_full(BRG_DTYPE_F32, BRG_SHAPE(N), 1.0);
    brg_tensor *many[65] = {x};
    assert_brg_ok(brg_set_requires_grad(low, true));
    assert_brg_fails(brg_gradcheck(NULL, NULL, &x, 1, NULL), BRG_ERR_ARG);
    assert_brg_fails(brg_gradcheck(square, NULL, NULL, 1, NULL), BRG_ERR_ARG);
    assert_brg_fails_with(brg_gradcheck(square, NULL, many, 65, NULL),
                          BRG_ERR_ARG, "at most");
    brg_error_clear();
    assert_brg_fails_with(brg_gradcheck(square, NULL, &none, 1, NULL),
                          BRG_ERR_ARG, "an input");
    assert_brg_fails_with(brg_gradcheck(square, NULL, &low, 1, NULL),
                          BRG_ERR_DTYPE, "input 0 is f32[3]");
    assert_brg_fails_with(brg_gradcheck(square, NULL, &fixed, 1, NULL),
                          BRG_ERR_ARG, "no input requires");
    assert_brg_fails_with(brg_gradcheck(narrow, NULL, &x, 1, NULL),
                          BRG_ERR_DTYPE, "output 0 is f32[3]");
    assert_brg_fails_with(brg_gradcheck(constant, NULL, &x, 1, NULL),
                          BRG_ERR_ARG, "no output depends");
    brg_error_clear();
    assert_brg_fails_with(brg_gradcheck(nothing, NULL, &x, 1, NULL),
                          BRG_ERR_ARG, "an output");
}

static void test_gradcheck__leaves_things_as_they_were(void **state)
{
    (void)state;
    brg_tensor *x = leaf(2.0, true);
    double before[N];
    memcpy(before, brg_tensor_data(x), sizeof before);
    uint32_t version = brg_tensor_version(x);
    for (int at = 0; at < 2 * N + 1; at++) {
        int n_left = at;
        assert_brg_fails_with(brg_gradcheck(fails_late, &n_left, &x, 1, NULL),
                              BRG_ERR_CALLBACK, "not again");
        assert_true(brg_grad_mode());
        assert_memory_equal(brg_tensor_data(x), before, sizeof before);
        assert_int_equal(brg_tensor_version(x), version);
        assert_null(brg_tensor_grad(x));
    }
    int n_left = 2 * N + 1;
    assert_brg_ok(brg_gradcheck(fails_late, &n_left, &x, 1, NULL));
    assert_int_equal(n_left, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_gradcheck__finds_the_wrong_gradient),
        scoped_test(test_gradcheck__an_infinite_difference_is_none),
        scoped_test(test_gradcheck__bad_input),
        scoped_test(test_gradcheck__leaves_things_as_they_were),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
