/* SPDX-License-Identifier: Apache-2.0
 * Rows of the suite `backward` on custom functions in a plan. */
#include "tests/rows/both.h"
#include "tests/support/fake_device.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))

static const int64_t six_sizes[] = {10, 100, 10, 15, 20, 25};

static brg_tensor *random_leaf(int ndim, const int64_t *shape)
{
    brg_tensor *t = brg_randn(BRG_DTYPE_F32, ndim, shape);
    assert_brg_ok(brg_set_requires_grad(t, true));
    return t;
}

/* What backward makes of a gradient of 1 at x, one of n elements. */
typedef double (*slope_fn)(double x, int64_t n);

/* For each of six sizes: x -> f, a sine -> sin -> sum; value and gradient. */
static void six_steps(yields *y, brg_function *f, slope_fn slope)
{
    for (size_t i = 0; i < COUNT(six_sizes); i++) {
        const int64_t n = six_sizes[i];
        brg_tensor *x = random_leaf(BRG_SHAPE(n));
        brg_tensor *out = CALL(f, x);
        assert_brg_ok(brg_backward(brg_sum_all(brg_sin(out))));
        for (int64_t k = 0; k < n; k++) {
            double at = element(x, k);
            assert_float_equal(element(out, k), sin(at), 1e-5);
            assert_float_equal(element(brg_tensor_grad(x), k),
                               cos(sin(at)) * slope(at, n), 1e-5 * (double)n);
        }
        yield(y, out);
        yield_grad(y, x);
    }
    brg_function_release(f);
}

/* ---- A sine ------------------------------------------------------------------------ */

FORWARD(sin_forward)
{
    SAVE(ARG(0));
    OUT(0, brg_sin(ARG(0)));
    return BRG_OK;
}

BACKWARD(sin_backward)
{
    SAVED(x, 0);
    GRAD(0, brg_mul(g[0], brg_cos(x)));
    return BRG_OK;
}

static double sin_slope(double x, int64_t n)
{
    (void)n;
    return cos(x);
}

static void test_custom_fn_saved_tensors_body(yields *y)
{
    six_steps(y, function_of("MySin", sin_forward, sin_backward, 1), sin_slope);
}
BOTH_ROW(test_custom_fn_saved_tensors, 1)

/* A backward that writes to the outside, twice. */
static char printed[256];

BACKWARD(printing_backward)
{
    SAVED(x, 0);
    strcat(printed, "a");
    brg_tensor *slope = brg_cos(x);
    strcat(printed, "b");
    GRAD(0, brg_mul(g[0], slope));
    return BRG_OK;
}

static void bw_graph_break_body(yields *y)
{
    printed[0] = '\0';
    six_steps(y,
              function_traced(BRG_FUNCTION_UNTRACEABLE, "MySin", sin_forward,
                              printing_backward, 1),
              sin_slope);
    assert_string_equal(printed, "abababababab");
}

static void test_custom_fn_bw_graph_break(void **state)
{
    (void)state;
    run_counted(bw_graph_break_body, 1, 2);
    assert_int_equal(both_stats().hits, 5);
}

/* ---- What it saves -------------------------------------------------------------------- */

FORWARD(two_forward)
{
    SAVE(ARG(0), ARG(1));
    OUT(0, brg_sin(ARG(0)));
    OUT(1, brg_sin(ARG(1)));
    return BRG_OK;
}

BACKWARD(two_backward)
{
    SAVED(x, 0);
    SAVED(y, 1);
    GRAD(0, brg_mul(g[0], brg_cos(x)));
    GRAD(1, brg_mul(g[1], brg_cos(y)));
    return BRG_OK;
}

static void test_custom_fn_saved_multiple_tensors_body(yields *y)
{
    brg_function *f = function_of("MyFn", two_forward, two_backward, 2);
    for (size_t i = 0; i < COUNT(six_sizes); i++) {
        brg_value out[2];
        brg_tensor *a = random_leaf(BRG_SHAPE(six_sizes[i]));
        brg_tensor *b = random_leaf(BRG_SHAPE(six_sizes[i]));
        assert_brg_ok(APPLY(f, out, brg_value_tensor(a), brg_value_tensor(b)));
        assert_brg_ok(brg_backward(
            brg_sum_all(brg_mul(out[0].as.tensor, out[1].as.tensor))));
        yield_grad(y, a);
        yield_grad(y, b);
        /* d/da sin(a) sin(b): the saved list kept its order. */
        assert_float_equal(element(brg_tensor_grad(a), 0),
                           cos(element(a, 0)) * sin(element(b, 0)), 1e-5);
        assert_float_equal(element(brg_tensor_grad(b), 0),
                           sin(element(a, 0)) * cos(element(b, 0)), 1e-5);
    }
    brg_function_release(f);
}
BOTH_ROW(test_custom_fn_saved_multiple_tensors, 1)

FORWARD(same_twice_forward)
{
    SAVE(ARG(0), ARG(0));
    OUT(0, brg_sin(ARG(0)));
    return BRG_OK;
}

BACKWARD(same_twice_backward)
{
    SAVED(x, 0);
    SAVED(y, 1);
    if (brg_tensor_data(x) != brg_tensor_data(y))
        return brg_error_set(BRG_ERR_INTERNAL, __FILE__, __LINE__, "two");
    GRAD(0, brg_add(brg_mul(g[0], brg_cos(x)), brg_mul(g[0], y)));
    return BRG_OK;
}

static double same_twice_slope(double x, int64_t n)
{
    (void)n;
    return cos(x) + x;
}

static void dedup_body(yields *y)
{
    six_steps(y,
              function_of("MyFn", same_twice_forward, same_twice_backward, 1),
              same_twice_slope);
}

/* An op saves for itself: the plan is brought one tensor, not two. */
static void dedup_op_body(yields *y)
{
    for (int round = 0; round < 2; round++) {
        brg_tensor *a = random_leaf(BRG_SHAPE(5));
        assert_brg_ok(brg_backward(brg_sum_all(brg_mul(a, a))));
        for (int64_t k = 0; k < 5; k++)
            assert_float_equal(element(brg_tensor_grad(a), k),
                               2 * element(a, k), 1e-5);
        yield_grad(y, a);
    }
}

static void dedup_pair_body(yields *y)
{
    brg_tensor *a = random_leaf(BRG_SHAPE(5)), *b = random_leaf(BRG_SHAPE(5));
    assert_brg_ok(brg_backward(brg_sum_all(brg_mul(a, b))));
    yield_grad(y, a);
    yield_grad(y, b);
}

static void test_custom_fn_saved_multiple_tensors_dedup(void **state)
{
    (void)state;
    run_both(dedup_body, 1);
    run_both(dedup_op_body, 1);
    /* The sum's sizes, a, the root's gradient. */
    assert_true(plan_has(0, "in2)"));
    assert_false(plan_has(0, "in3"));
    run_both(dedup_pair_body, 1);
    assert_true(plan_has(0, "in3"));
}

/* ---- Sizes as numbers ------------------------------------------------------------------- */

BACKWARD(length_backward)
{
    SAVED(x, 0);
    GRAD(0, brg_mul_scalar(g[0], (double)brg_tensor_shape(x)[0]));
    return BRG_OK;
}

static double length_slope(double x, int64_t n)
{
    (void)x;
    return (double)n;
}

static void test_custom_fn_saved_shape_tensor_body(yields *y)
{
    six_steps(y, function_of("MyFn", sin_forward, length_backward, 1),
              length_slope);
}
BOTH_ROW(test_custom_fn_saved_shape_tensor, 1)

FORWARD(shape_forward)
{
    BRG_TRY(brg_context_set(ctx, "shape",
                            brg_value_int(brg_tensor_shape(ARG(0))[0])));
    OUT(0, brg_sin(ARG(0)));
    return BRG_OK;
}

BACKWARD(shape_backward)
{
    double shape = (double)brg_context_get(ctx, "shape").as.integer;
    GRAD(0, brg_mul_scalar(g[0], shape));
    return BRG_OK;
}

static void test_custom_fn_saved_attr_body(yields *y)
{
    six_steps(y, function_of("MyFn", shape_forward, shape_backward, 1),
              length_slope);
}
BOTH_ROW(test_custom_fn_saved_attr, 1)

/* ---- Which function it is ----------------------------------------------------------------- */

FORWARD(times_forward)
{
    OUT(0, brg_mul_scalar(ARG(0), *(double *)brg_context_user(ctx)));
    return BRG_OK;
}

BACKWARD(times_backward)
{
    GRAD(0, brg_mul_scalar(g[0], *(double *)brg_context_user(ctx)));
    return BRG_OK;
}

static void test_custom_fn_dynamically_defined_class_body(yields *y)
{
    double factors[] = {10, 20, 30};
    for (int i = 0; i < 3; i++) {
        brg_function *f =
            new_function(.name = "MyFn", .n_outputs = 1,
                         .forward = times_forward, .backward = times_backward,
                         .user = &factors[i]);
        brg_tensor *x = random_leaf(BRG_SHAPE(10));
        assert_brg_ok(brg_backward(brg_sum_all(CALL(f, x))));
        expect_all(brg_tensor_grad(x), factors[i]);
        yield_grad(y, x);
        brg_function_release(f);
    }
}
BOTH_ROW(test_custom_fn_dynamically_defined_class, 3)

FORWARD(sin_forward_again)
{
    SAVE(ARG(0));
    OUT(0, brg_sin(ARG(0)));
    return BRG_OK;
}

BACKWARD(sin_backward_again)
{
    SAVED(x, 0);
    GRAD(0, brg_mul(g[0], brg_cos(x)));
    return BRG_OK;
}

static void same_graph_body(yields *y)
{
    brg_function *f[] = {
        function_of("MyFn", sin_forward, sin_backward, 1),
        function_of("MyFn", sin_forward_again, sin_backward_again, 1)};
    for (int i = 0; i < 4; i++) {
        brg_tensor *x = random_leaf(BRG_SHAPE(10));
        assert_brg_ok(brg_backward(brg_sum_all(CALL(f[i % 2], x))));
        for (int64_t k = 0; k < 10; k++)
            assert_float_equal(element(brg_tensor_grad(x), k),
                               cos(element(x, k)), 1e-5);
        yield_grad(y, x);
    }
    brg_function_release(f[0]);
    brg_function_release(f[1]);
}

static void test_custom_fn_with_same_graph(void **state)
{
    (void)state;
    run_both(same_graph_body, 2);
    assert_int_equal(both_stats().hits, 2);
}

/* ---- Arguments and outputs ------------------------------------------------------------------ */

FORWARD(sum_and_second_forward)
{
    OUT(0, brg_add(ARG(0), ARG(1)));
    out[1] = args[1];
    return BRG_OK;
}

BACKWARD(sum_and_second_backward)
{
    GRAD(0, g[0]);
    GRAD(1, g[1]);
    return BRG_OK;
}

static void test_custom_fn_multiple_grads_body(yields *y)
{
    brg_function *f =
        function_of("MyFn", sum_and_second_forward, sum_and_second_backward, 2);
    for (size_t i = 0; i < COUNT(six_sizes); i++) {
        brg_value out[2];
        brg_tensor *a = random_leaf(BRG_SHAPE(six_sizes[i]));
        brg_tensor *b = random_leaf(BRG_SHAPE(six_sizes[i]));
        assert_brg_ok(APPLY(f, out, brg_value_tensor(a), brg_value_tensor(b)));
        brg_tensor *second = out[1].as.tensor;
        assert_ptr_not_equal(second, b); /* a view: it has a new edge */
        assert_true(brg_tensor_shares_storage(second, b));
        assert_brg_ok(
            brg_backward(brg_add(brg_sum_all(out[0].as.tensor),
                                 brg_sum_all(brg_mul_scalar(second, 3)))));
        expect_all(brg_tensor_grad(a), 1);
        expect_all(brg_tensor_grad(b), 3);
        yield_grad(y, a);
        yield_grad(y, b);
    }
    brg_function_release(f);
}
BOTH_ROW(test_custom_fn_multiple_grads, 1)

FORWARD(middle_forward)
{
    brg_tensor *x = ARG(0), *z = ARG(2);
    double middle = (double)args[1].as.integer;
    BRG_TRY(brg_context_set(ctx, "middle", args[1]));
    OUT(0, brg_mul_scalar(x, middle));
    OUT(1, brg_mul_scalar(z, middle));
    return BRG_OK;
}

static bool is_middle_wrong; /* gives a gradient for the number too */

BACKWARD(middle_backward)
{
    double middle = (double)brg_context_get(ctx, "middle").as.integer;
    GRAD(0, brg_mul_scalar(g[0], middle));
    GRAD(2, brg_mul_scalar(g[1], middle + 1));
    if (is_middle_wrong)
        GRAD(1, g[0]);
    return BRG_OK;
}

static void test_custom_fn_non_variable_input_body(yields *y)
{
    brg_function *f = function_of("MyFn", middle_forward, middle_backward, 2);
    for (size_t i = 0; i < COUNT(six_sizes) + 1; i++) {
        int64_t n = six_sizes[i % COUNT(six_sizes)];
        brg_value out[2];
        brg_tensor *x = random_leaf(BRG_SHAPE(n)),
                   *z = random_leaf(BRG_SHAPE(n));
        assert_brg_ok(APPLY(f, out, brg_value_tensor(x), brg_value_int(2),
                            brg_value_tensor(z)));
        brg_tensor *loss =
            brg_sum_all(brg_add(out[0].as.tensor, out[1].as.tensor));
        is_middle_wrong = i == COUNT(six_sizes);
        if (is_middle_wrong) {
            assert_brg_fails_with(brg_backward(loss), BRG_ERR_CALLBACK,
                                  "returned a gradient different than None");
            continue;
        }
        assert_brg_ok(brg_backward(loss));
        expect_all(brg_tensor_grad(x), 2);
        expect_all(brg_tensor_grad(z), 3);
        yield_grad(y, x);
        yield_grad(y, z);
    }
    brg_function_release(f);
}
BOTH_ROW(test_custom_fn_non_variable_input, 1)

static brg_device metadata_device; /* of the tensors, HOME at first */

BACKWARD(same_metadata_backward)
{
    if (brg_tensor_dtype(g[0]) != BRG_DTYPE_F16 || brg_tensor_ndim(g[0]) != 1 ||
        brg_tensor_shape(g[0])[0] != 12 ||
        brg_tensor_device(g[0]).type != metadata_device.type)
        return brg_error_set(BRG_ERR_INTERNAL, __FILE__, __LINE__, "metadata");
    GRAD(0, g[0]);
    return BRG_OK;
}

FORWARD(same_forward)
{
    OUT(0, brg_mul_scalar(ARG(0), 1));
    return BRG_OK;
}

static void output_metadata_body(yields *y)
{
    brg_function *f =
        function_of("Identity", same_forward, same_metadata_backward, 1);
    brg_tensor *x = brg_full(BRG_DTYPE_F16, BRG_SHAPE(3, 4), 2);
    assert_brg_ok(brg_set_requires_grad(x, true));
    brg_tensor *out = CALL(f, brg_reshape(x, BRG_SHAPE(12)));
    assert_brg_ok(brg_backward(brg_sum_all(out)));
    brg_tensor *grad = brg_tensor_grad(x);
    assert_int_equal(brg_tensor_dtype(grad), BRG_DTYPE_F16);
    assert_int_equal(brg_tensor_device(grad).type, metadata_device.type);
    yield_grad(y, x);
    brg_function_release(f);
}

/* On another device: nothing is moved, and the bits are the same. */
static void check_metadata_there(void)
{
    yields home = run_one(output_metadata_body, false);
    assert_brg_ok(brg_device_register(BRG_DEVICE_CUDA, &fake));
    assert_brg_ok(brg_device_set(THERE));
    metadata_device = THERE;
    int64_t before = seen.n_copies;
    yields there = run_one(output_metadata_body, false);
    /* The one element of the root's gradient, and the test's look at .grad. */
    assert_in_range(seen.n_copies - before, 1, 2);
    metadata_device = HOME;
    assert_brg_ok(brg_device_set(HOME));
    assert_int_equal(seen.n_blocks, 0);
    assert_int_equal(home.n, there.n);
    assert_memory_equal(home.at, there.at, home.n);
    free(home.at);
    free(there.at);
}

static void test_custom_fn_output_metadata(void **state)
{
    (void)state;
    run_both(output_metadata_body, 1);
    assert_false(plan_has(0, "cast"));
    assert_false(plan_has(0, "= copy("));
    assert_false(plan_has(0, "to_device("));
    check_metadata_there();
}

/* ---- Side effects ---------------------------------------------------------------------------- */

BACKWARD(drawing_backward)
{
    SAVED(x, 0);
    if (!brg_randn(BRG_DTYPE_F32, BRG_SHAPE(10))) /* used by nobody */
        return brg_error_code();
    GRAD(0, brg_mul(g[0], brg_cos(x)));
    return BRG_OK;
}

static void dont_dce_body(yields *y)
{
    brg_function *f = function_of("MyFn", sin_forward, drawing_backward, 1);
    for (int i = 0; i < 3; i++) {
        brg_tensor *x = random_leaf(BRG_SHAPE(10));
        brg_tensor *loss = brg_sum_all(CALL(f, x));
        brg_random_state before, after;
        brg_random_get_state(&before);
        assert_brg_ok(brg_backward(loss));
        brg_random_get_state(&after);
        assert_int_equal(after.offset - before.offset, 3); /* ceil(10 / 4) */
        yield_grad(y, x);
        yield(y, brg_randn(BRG_DTYPE_F32, BRG_SHAPE(4)));
    }
    brg_function_release(f);
}

static void test_dont_dce_side_effects(void **state)
{
    (void)state;
    run_both(dont_dce_body, 1);
    assert_true(plan_has(0, "call@"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_custom_fn_bw_graph_break),
        scoped_test(test_custom_fn_dynamically_defined_class),
        scoped_test(test_custom_fn_multiple_grads),
        scoped_test(test_custom_fn_non_variable_input),
        scoped_test(test_custom_fn_output_metadata),
        scoped_test(test_custom_fn_saved_attr),
        scoped_test(test_custom_fn_saved_multiple_tensors),
        scoped_test(test_custom_fn_saved_multiple_tensors_dedup),
        scoped_test(test_custom_fn_saved_shape_tensor),
        scoped_test(test_custom_fn_saved_tensors),
        scoped_test(test_custom_fn_with_same_graph),
        scoped_test(test_dont_dce_side_effects),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
