/* SPDX-License-Identifier: Apache-2.0
 * Rows of the function suite: composite tensors inside functions. */
#include <brigade/composite.h>

#include "tests/rows/checks.h"

/* The second part carries what the first stands for, scaled. */
static brg_status wrap(brg_composite **out, brg_tensor *t)
{
    return brg_pair_create(out, t, brg_mul_scalar(t, 3));
}

/* Takes the wrapped tensor apart and gives another, built from its parts. */
static brg_status rewrap(brg_composite **out, const brg_composite *c)
{
    brg_tensor *parts[BRG_MAX_COMPOSITE_TENSORS], *swapped[2];
    size_t n;
    BRG_TRY(brg_composite_flatten(c, parts, &n));
    swapped[0] = brg_mul(parts[0], parts[1]);
    swapped[1] = parts[0];
    return brg_composite_unflatten(out, c, swapped, 2);
}

FORWARD(through_composites_forward)
{
    brg_composite *outer = NULL, *inner = NULL;
    brg_tensor *parts[BRG_MAX_COMPOSITE_TENSORS];
    size_t n;
    SAVE(ARG(0));
    brg_status status = wrap(&outer, ARG(0));
    if (status == BRG_OK)
        status = rewrap(&inner, outer);
    if (status == BRG_OK)
        status = brg_composite_flatten(inner, parts, &n);
    /* x * 3x, the intermediary composites gone */
    if (status == BRG_OK)
        out[0] = brg_value_tensor(parts[0]);
    brg_composite_release(inner);
    brg_composite_release(outer);
    return status;
}

BACKWARD(through_composites_backward)
{
    SAVED(x, 0);
    GRAD(0, brg_mul(g[0], brg_mul_scalar(x, 6)));
    return BRG_OK;
}

static brg_function_tracing tracing;

static void test_tensor_subclass_intermediary_input_checks(void)
{
    brg_function *f =
        function_traced(tracing, "FooFunction", through_composites_forward,
                        through_composites_backward, 1);
    brg_tensor *x = leaf_from(1, BRG_SHAPE(4));
    brg_tensor *y = CALL(f, x);
    EXPECT_VALUES(y, 3, 12, 27, 48);
    backward_of_sum(y);
    EXPECT_VALUES(brg_tensor_grad(x), 6, 12, 18, 24);
    /* The same composites outside a function: recorded op by op. */
    brg_tensor *x2 = leaf_from(1, BRG_SHAPE(4)), *parts[2];
    brg_composite *outer, *inner;
    size_t n;
    assert_brg_ok(wrap(&outer, x2));
    assert_brg_ok(rewrap(&inner, outer));
    assert_brg_ok(brg_composite_flatten(inner, parts, &n));
    backward_of_sum(parts[0]);
    EXPECT_VALUES(brg_tensor_grad(x2), 6, 12, 18, 24);
    brg_composite_release(inner);
    brg_composite_release(outer);
    brg_function_release(f);
}

/* Of a pair (a, b): (a b, a). */
FORWARD(join_forward)
{
    SAVE(ARG(0), ARG(1));
    OUT(0, brg_mul(ARG(0), ARG(1)));
    OUT(1, brg_mul_scalar(ARG(0), 1));
    return BRG_OK;
}

BACKWARD(join_backward)
{
    SAVED(a, 0);
    SAVED(b, 1);
    GRAD(0, brg_add(brg_mul(g[0], b), g[1]));
    GRAD(1, brg_mul(g[0], a));
    return BRG_OK;
}

/* A pair goes in and a pair comes out: d(a b + 5 a) = b + 5, a. */
static void join_step(const brg_function *f, int64_t n)
{
    brg_tensor *a = leaf_full(2, BRG_SHAPE(n)), *b = leaf_full(3, BRG_SHAPE(n));
    brg_composite *in, *out;
    brg_tensor *parts[BRG_MAX_COMPOSITE_TENSORS];
    size_t n_parts;
    assert_brg_ok(brg_pair_create(&in, a, b));
    assert_brg_ok(brg_composite_apply(&out, f, &in, 1));
    assert_brg_ok(brg_composite_flatten(out, parts, &n_parts));
    assert_int_equal(n_parts, 2);
    backward_of_sum(brg_add(parts[0], brg_mul_scalar(parts[1], 5)));
    expect_all(brg_tensor_grad(a), 8);
    expect_all(brg_tensor_grad(b), 2);
    brg_composite_release(out);
    brg_composite_release(in);
}

static void join_checks(void)
{
    brg_function *f =
        function_traced(tracing, "Join", join_forward, join_backward, 2);
    join_step(f, 4);
    join_step(f, 7);
    brg_function_release(f);
}

/* Compiled whole: parts come in, the composite is made of them inside. */
static brg_status rewrap_whole(brg_tensor *const *in, size_t n_in,
                               brg_tensor **out, size_t n_out, void *user)
{
    (void)n_in;
    (void)n_out;
    (void)user;
    brg_composite *outer = NULL, *inner = NULL;
    brg_tensor *parts[BRG_MAX_COMPOSITE_TENSORS];
    size_t n;
    brg_status status = brg_pair_create(&outer, in[0], in[1]);
    if (status == BRG_OK)
        status = rewrap(&inner, outer);
    if (status == BRG_OK)
        status = brg_composite_flatten(inner, parts, &n);
    if (status == BRG_OK)
        memcpy(out, parts, 2 * sizeof *out);
    brg_composite_release(inner);
    brg_composite_release(outer);
    return status;
}

static void whole_step(brg_compiled *c)
{
    brg_tensor *in[] = {leaf_full(2, BRG_SHAPE(4)), leaf_full(3, BRG_SHAPE(4))};
    brg_tensor *out[2] = {NULL, NULL};
    assert_brg_ok(brg_compiled_call(c, in, 2, out, 2));
    brg_composite *made;
    assert_brg_ok(brg_pair_create(&made, out[0], out[1]));
    expect_all(out[0], 6);
    expect_all(out[1], 2);
    assert_true(brg_composite_requires_grad(made));
    brg_composite_release(made);
    backward_of_sum(brg_add(out[0], brg_mul_scalar(out[1], 5)));
    expect_all(brg_tensor_grad(in[0]), 8);
    expect_all(brg_tensor_grad(in[1]), 2);
}

static void check_whole(void)
{
    assert_brg_ok(brg_compile_reset());
    brg_compiled *c = compile_whole(rewrap_whole, NULL);
    whole_step(c);
    whole_step(c);
    assert_int_equal(both_stats().functions, 1);
    assert_int_equal(both_stats().function_hits, 1);
    assert_int_equal(both_stats().function_fallbacks, 0);
    brg_compiled_destroy(c);
}

static void test_tensor_subclass_intermediary_input(void **state)
{
    (void)state;
    for (int k = 0; k < 2; k++) {
        tracing = k ? BRG_FUNCTION_TRACEABLE : BRG_FUNCTION_OPAQUE;
        check_both(test_tensor_subclass_intermediary_input_checks, 2);
        check_both(join_checks, 1);
        assert_int_equal(both_stats().hits, 1);
    }
    /* The components are inputs of the plan, beside the root's gradient. */
    assert_int_equal(count_calls(), 0);
    assert_true(plan_has(0, "Join(2 -> 2): saved 2, of arguments 0 1"));
    assert_true(plan_has(0, "in1"));
    check_whole();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_tensor_subclass_intermediary_input),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
