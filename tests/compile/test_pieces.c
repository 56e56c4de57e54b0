/* SPDX-License-Identifier: Apache-2.0
 * Functions that run in pieces: with host code between the ops, and, with
 * segments in plans, where tensors share memory or come in other strides, as
 * random functions (tests/fuzz/test_fuzz_whole.c) found. */
#include <brigade/random.h>

#include "tests/compile/chains.h"
#include "tests/compile/functions.h"
#include "tests/support/values.h"

static brg_function *function;

/* Two calls, eagerly, then compiled, then with a compiled backward too: the
 * same results and gradients. */
static void check(brg_compiled_fn fn)
{
    double want[13], got[13];
    for (int k = 0; k < 3; k++) {
        brg_tensor *x = leaf_from(1, BRG_SHAPE(3, 4)), *y;
        brg_compiled *c = NULL;
        brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
        options.whole = true;
        if (k)
            assert_brg_ok(brg_compiled_create(&c, fn, NULL, &options));
        for (int i = 0; i < 2; i++) {
            assert_brg_ok(c ? brg_compiled_call(c, &x, 1, &y, 1)
                            : fn(&x, 1, &y, 1, NULL));
            assert_brg_ok(backward_as(y, k == 2));
        }
        double *to = k ? got : want;
        to[12] = element(y, 0);
        for (int i = 0; i < 12; i++)
            to[i] = element(brg_tensor_grad(x), i);
        brg_compiled_destroy(c);
        if (k)
            assert_memory_equal(want, got, sizeof want);
    }
}

/* ---- Parts of a result changed in place ------------------------------------------ */

FUNCTION(doubles_row)
{
    brg_tensor *h = brg_mul(in[0], in[0]), *row = brg_select(h, 0, 1);
    const brg_value arg = brg_value_tensor(row);
    if (!brg_function_call(function, &arg, 1))
        return brg_error_code();
    out[0] = brg_add(brg_sum_all(row), brg_mul_scalar(brg_sum_all(h), 4));
    return out[0] ? BRG_OK : brg_error_code();
}

FUNCTION(adds_to_row)
{
    brg_tensor *h = brg_mul(in[0], in[0]), *row = brg_select(h, 0, 1);
    BRG_TRY(brg_add_(row, brg_select(in[0], 0, 0), 8));
    out[0] = brg_add(brg_sum_all(row), brg_mul_scalar(brg_sum_all(h), 4));
    return out[0] ? BRG_OK : brg_error_code();
}

static void test_pieces__a_part_changed_in_place(void **state)
{
    (void)state;
    for (int traced = 0; traced < 2; traced++) {
        function = make_function("double", 1, double_forward, double_backward,
                                 traced ? BRG_FUNCTION_TRACEABLE
                                        : BRG_FUNCTION_OPAQUE);
        check(doubles_row);
        brg_function_release(function);
    }
    check(adds_to_row);
}

/* ---- A view of all of a result, which the backward reads --------------------------- */

FUNCTION(reads_whole_view)
{
    double value;
    brg_tensor *h = brg_add(in[0], in[0]);
    brg_tensor *all = brg_slice(h, 0, 0, BRG_TO_END, 1);
    brg_tensor *s = brg_sin(all);
    BRG_TRY(brg_tensor_item(brg_sum_all(brg_detach(s)), &value));
    out[0] = brg_sum_all(brg_mul(brg_mul_scalar(s, value), h));
    return out[0] ? BRG_OK : brg_error_code();
}

static void test_pieces__a_view_of_all_of_a_result(void **state)
{
    (void)state;
    check(reads_whole_view);
}

/* ---- Zeros for gradients that are not there ------------------------------------------ */

static brg_status pair_forward(brg_context *ctx, const brg_value *args,
                               size_t n, brg_value *out)
{
    (void)n;
    out[0] = brg_value_tensor(brg_sin(args[0].as.tensor));
    out[1] = brg_value_tensor(brg_square(args[0].as.tensor));
    return brg_context_save(ctx, &args[0].as.tensor, 1);
}

static brg_status pair_backward(brg_context *ctx, brg_tensor *const *g,
                                brg_tensor **gi, size_t *n)
{
    (void)n;
    brg_tensor *x;
    BRG_TRY(brg_context_saved(ctx, 0, &x));
    gi[0] =
        brg_add(brg_mul(g[0], brg_cos(x)), brg_mul(g[1], brg_mul_scalar(x, 2)));
    return gi[0] ? BRG_OK : brg_error_code();
}

FUNCTION(uses_one_of_two)
{
    brg_value outputs[2];
    const brg_value arg = brg_value_tensor(in[0]);
    BRG_TRY(brg_function_apply(function, &arg, 1, outputs));
    out[0] = brg_sum_all(outputs[1].as.tensor);
    return out[0] ? BRG_OK : brg_error_code();
}

static void test_pieces__zeros_for_what_is_not_used(void **state)
{
    (void)state;
    function = make_function("pair", 2, pair_forward, pair_backward,
                             BRG_FUNCTION_TRACEABLE);
    check(uses_one_of_two);
    brg_function_release(function);
}

/* ---- Strides that allow no view ------------------------------------------------------ */

/* A row-major gradient, or one in columns; as it comes, or from a loose plan. */
static brg_tensor *reshaped_gradient(bool is_strided, bool creates)
{
    brg_backward_options options = BRG_BACKWARD_OPTIONS_INIT;
    brg_tensor *x = leaf_from(1, BRG_SHAPE(12)), *grad;
    brg_tensor *g = leaf_from(0, BRG_SHAPE(3, 4));
    if (is_strided)
        g = brg_transpose(brg_contiguous(brg_transpose(brg_detach(g), 0, 1)), 0,
                          1);
    brg_tensor *y = brg_reshape(brg_mul(x, x), BRG_SHAPE(3, 4));
    brg_tensor *from = brg_detach(g);
    assert_int_equal(brg_tensor_is_contiguous(from), !is_strided);
    options.grad_outputs = &from;
    options.create_graph = creates;
    assert_brg_ok(brg_grad(&grad, &y, 1, &x, 1, &options));
    return assert_brg_some(grad);
}

static void test_pieces__gradients_of_reshape_in_any_strides(void **state)
{
    (void)state;
    int scope = begin_with((brg_compile_options)BRG_COMPILE_OPTIONS_INIT);
    for (int k = 0; k < 8; k++) {
        brg_tensor *grad = reshaped_gradient((k + k / 4) % 2, k / 2 % 2);
        for (int i = 0; i < 12; i++)
            assert_float_equal(element(grad, i), 2.0 * i * (1 + i), 0);
    }
    assert_int_equal(compile_stats().captures, 2);
    assert_int_equal(compile_stats().fallbacks, 0);
    assert_brg_ok(brg_compile_end(scope));
}

FUNCTION(joins)
{
    brg_tensor *h = brg_reshape(brg_mul(in[0], in[0]), BRG_SHAPE(4, 3));
    h = brg_add_scalar(h, 1); /* whose gradient goes on as it comes */
    double value;
    BRG_TRY(brg_tensor_item(brg_sum_all(brg_detach(h)), &value));
    brg_tensor *both = brg_cat((brg_tensor *[]){h, brg_detach(h)}, 2, 1);
    BRG_TRY(brg_tensor_item(brg_sum_all(brg_detach(both)), &value));
    out[0] = brg_sum_all(brg_mul_scalar(both, value));
    return out[0] ? BRG_OK : brg_error_code();
}

static void test_pieces__a_gradient_that_is_a_part(void **state)
{
    (void)state;
    check(joins);
}

/* ---- More than a node can have ----------------------------------------------------- */

enum { N_MANY = 700 };

static brg_tensor *many[N_MANY];

FUNCTION(uses_many_parameters)
{
    out[0] = brg_sum_all(in[0]);
    for (int i = 0; i < N_MANY; i++)
        out[0] = brg_add(out[0], brg_mul(many[i], out[0]));
    return out[0] ? BRG_OK : brg_error_code();
}

FUNCTION(has_many_results)
{
    double first;
    brg_tensor *h[N_MANY];
    for (int i = 0; i < N_MANY; i++)
        h[i] = brg_mul_scalar(in[0], 1.0 / (i + 1));
    BRG_TRY(brg_tensor_item(brg_sum_all(brg_detach(h[0])), &first));
    out[0] = brg_mul_scalar(brg_sum_all(h[0]), first);
    for (int i = N_MANY - 1; i > 0; i -= 100)
        out[0] = brg_add(out[0], brg_sum_all(h[i]));
    return out[0] ? BRG_OK : brg_error_code();
}

static void test_pieces__more_gradients_than_a_node_has(void **state)
{
    (void)state;
    double want[2] = {0}, got[2] = {0};
    for (int k = 0; k < 3; k++) {
        double *to = k ? got : want;
        brg_tensor *x = leaf_from(1, BRG_SHAPE(2)), *y;
        brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
        brg_compiled *c = NULL;
        options.whole = true;
        for (int i = 0; i < N_MANY; i++)
            many[i] = leaf_from(1e-6 * i, BRG_SCALAR);
        if (k)
            assert_brg_ok(
                brg_compiled_create(&c, uses_many_parameters, NULL, &options));
        assert_brg_ok(c ? brg_compiled_call(c, &x, 1, &y, 1)
                        : uses_many_parameters(&x, 1, &y, 1, NULL));
        assert_brg_ok(backward_as(y, k == 2));
        to[0] = element(brg_tensor_grad(many[N_MANY - 1]), 0);
        to[1] = element(brg_tensor_grad(x), 1);
        brg_compiled_destroy(c);
        if (k)
            assert_memory_equal(want, got, sizeof want);
    }
    check(has_many_results);
}

/* ---- Several backwards ---------------------------------------------------------------- */

FUNCTION(two_losses)
{
    out[0] = brg_sum_all(brg_mul(in[0], in[0]));
    out[1] = brg_sum_all(brg_sin(in[0]));
    return out[1] ? BRG_OK : brg_error_code();
}

static void test_pieces__a_segment_is_one_node(void **state)
{
    (void)state;
    brg_tensor *x = leaf_from(1, BRG_SHAPE(3, 4)), *losses[2];
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    brg_backward_options keep = BRG_BACKWARD_OPTIONS_INIT;
    brg_compiled *c;
    options.whole = true;
    keep.retain_graph = true;
    assert_brg_ok(brg_compiled_create(&c, two_losses, NULL, &options));
    assert_brg_ok(brg_compiled_call(c, &x, 1, losses, 2));
    assert_brg_ok(brg_backward_with(&losses[0], 1, &keep));
    assert_brg_ok(brg_backward(losses[1]));
    assert_brg_ok(brg_compiled_call(c, &x, 1, losses, 2));
    assert_brg_ok(brg_backward(losses[0]));
    assert_brg_fails_with(brg_backward(losses[1]), BRG_ERR_STATE,
                          "a second time");
    brg_compiled_destroy(c);
}

/* ---- More pieces than a function keeps ----------------------------------------------- */

#define N_KINDS 70 /* above BRG__MAX_PIECES */

static int n_sines;

FUNCTION(some_sines)
{
    double value;
    brg_tensor *h = brg_mul(in[0], in[0]);
    BRG_TRY(brg_tensor_item(brg_sum_all(brg_detach(h)), &value));
    for (int i = 0; i < n_sines; i++)
        h = brg_sin(h);
    out[0] = brg_sum_all(brg_mul_scalar(h, value));
    return out[0] ? BRG_OK : brg_error_code();
}

static void expect_sines(int n, brg_tensor *x, brg_tensor *y)
{
    brg_tensor *same = leaf_from(0.5, BRG_SHAPE(3)), *want;
    n_sines = n;
    assert_brg_ok(some_sines(&same, 1, &want, 1, NULL));
    assert_true(item(y) == item(want));
    assert_brg_ok(brg_backward(want));
    assert_brg_ok(brg_backward(y));
    for (int i = 0; i < 3; i++)
        assert_true(element(brg_tensor_grad(x), i) ==
                    element(brg_tensor_grad(same), i));
}

/* The oldest go, and are made again; results that they gave keep what their
 * backward needs. */
static void test_pieces__the_oldest_make_room(void **state)
{
    (void)state;
    brg_tensor *first_x = leaf_from(0.5, BRG_SHAPE(3)), *first_y;
    brg_compiled *c = compile_loosely(some_sines, NULL);
    n_sines = 0;
    assert_brg_ok(brg_compiled_call(c, &first_x, 1, &first_y, 1));
    for (int k = 0; k <= N_KINDS; k++) {
        brg_tensor *x = leaf_from(0.5, BRG_SHAPE(3)), *y;
        n_sines = k % N_KINDS; /* at last the first again */
        assert_brg_ok(brg_compiled_call(c, &x, 1, &y, 1));
        expect_sines(k % N_KINDS, x, y);
    }
    expect_sines(0, first_x, first_y);
    brg_compiled_destroy(c);
}

/* ---- Host code between pieces ---------------------------------------------------------- */

typedef struct mixture {
    brg_tensor *w, *buffer;
    int n_calls, n_big;
} mixture;

/* Host code that decides by values, in the middle of ops; views, in-place
 * changes, dropout, a tensor of its own. */
FUNCTION(mixes)
{
    mixture *m = user;
    double sum;
    m->n_calls++;
    brg_tensor *h = brg_mul(in[0], m->w), *turned = brg_transpose(h, 0, 1);
    BRG_TRY(brg_tensor_item(brg_sum_all(brg_detach(h)), &sum));
    m->n_big += sum > 10;
    h = sum > 10 ? brg_sin(h) : brg_exp(h);
    h = brg_dropout(h, 0.25, true);
    static const float data[4] = {1, 2, 3, 4};
    h = brg_add(h, brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(4), data));
    brg_tensor *own = brg_mul_scalar(h, 3);
    BRG_TRY(brg_add_(own, h, 0.5)); /* recorded */
    bool mode = brg_grad_mode_set(false);
    BRG_TRY(brg_add_(m->buffer, brg_rand(BRG_DTYPE_F32, BRG_SHAPE(3, 4)), 1));
    BRG_TRY(brg_mul_scalar_(m->buffer, 0.5));
    brg_grad_mode_set(mode);
    own = brg_add(own, m->buffer);
    out[0] = brg_add(own, brg_transpose(turned, 0, 1));
    return out[0] ? BRG_OK : brg_error_code();
}

static void test_pieces__do_what_the_function_does(void **state)
{
    (void)state;
    mixture m[2];
    brg_tensor *x[2];
    for (int k = 0; k < 2; k++) {
        m[k] = (mixture){.w = leaf_from(0.25, BRG_SHAPE(4)),
                         .buffer = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(3, 4))};
        x[k] = leaf_from(-1, BRG_SHAPE(3, 4));
    }
    brg_compiled *c = compile_loosely(mixes, &m[1]);
    for (int i = 0; i < 6; i++) {
        brg_tensor *want, *got, *in[2];
        for (int k = 0; k < 2; k++)
            in[k] = brg_mul_scalar(x[k], i % 2 ? 0.125 : 1);
        brg_seed((uint64_t)i);
        assert_brg_ok(mixes(&in[0], 1, &want, 1, &m[0]));
        assert_brg_ok(brg_backward(brg_sum_all(brg_mul(want, want))));
        brg_seed((uint64_t)i);
        assert_brg_ok(brg_compiled_call(c, &in[1], 1, &got, 1));
        assert_brg_ok(backward_as(brg_sum_all(brg_mul(got, got)), i >= 3));
        for (int k = 0; k < 12; k++) {
            assert_true(value_at(want, k) == value_at(got, k));
            assert_true(value_at(m[0].buffer, k) == value_at(m[1].buffer, k));
            assert_float_equal(value_at(brg_tensor_grad(x[0]), k),
                               value_at(brg_tensor_grad(x[1]), k), 1e-3);
        }
        for (int k = 0; k < 4; k++)
            assert_float_equal(value_at(brg_tensor_grad(m[0].w), k),
                               value_at(brg_tensor_grad(m[1].w), k), 1e-2);
    }
    assert_int_equal(m[0].n_big, m[1].n_big);
    assert_int_equal(m[0].n_calls + 1, m[1].n_calls); /* once with symbols */
    assert_int_equal(compile_stats().functions, 0);
    assert_int_equal(compile_stats().function_fallbacks, 6);
    assert_true(compile_stats().function_pieces > 2 &&
                compile_stats().function_pieces < 20);
    brg_compiled_destroy(c);
}

FUNCTION(trains_and_looks)
{
    const mixture *m = user;
    double value;
    out[0] = brg_sum_all(brg_mul(in[0], m->w));
    BRG_TRY(brg_tensor_item(out[0], &value));
    BRG_TRY(brg_backward(brg_mul_scalar(out[0], value > 0 ? 1 : 2)));
    out[1] = brg_mul_scalar(brg_tensor_grad(m->w), 0.5);
    return out[1] ? BRG_OK : brg_error_code();
}

static void test_pieces__a_step_in_pieces(void **state)
{
    (void)state;
    mixture m = {.w = leaf_from(1, BRG_SHAPE(3, 4))};
    brg_tensor *x = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(3, 4)), *out[2];
    brg_compiled *c = compile_loosely(trains_and_looks, &m);
    for (int i = 1; i <= 3; i++) {
        assert_brg_ok(brg_compiled_call(c, &x, 1, out, 2));
        assert_float_equal(value_at(brg_tensor_grad(m.w), 5), i, 0);
        assert_float_equal(value_at(out[1], 5), 0.5 * i, 0);
        assert_float_equal(value_at(out[0], 0), 78, 0);
    }
    brg_compiled_destroy(c);
}

FUNCTION(fails_late)
{
    (void)out;
    brg_tensor *h = brg_mul_scalar(in[0], 2);
    BRG_TRY(brg_tensor_item(brg_sum_all(h), &(double){0}));
    h = brg_add(h, h);
    return brg_error_set(BRG_ERR_CALLBACK, __FILE__, __LINE__, "as asked");
}

static void test_pieces__a_failure_between_pieces(void **state)
{
    (void)state;
    brg_tensor *x = leaf_from(1, BRG_SHAPE(3, 4)), *y;
    brg_compiled *c = compile_loosely(fails_late, NULL);
    for (int i = 0; i < 2; i++)
        assert_brg_fails_with(brg_compiled_call(c, &x, 1, &y, 1),
                              BRG_ERR_CALLBACK, "as asked");
    brg_compiled_destroy(c);
    y = brg_mul_scalar(x, 2); /* nothing is put off any more */
    assert_float_equal(value_at(y, 0), 2, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_pieces__a_part_changed_in_place),
        scoped_test(test_pieces__a_view_of_all_of_a_result),
        scoped_test(test_pieces__zeros_for_what_is_not_used),
        scoped_test(test_pieces__gradients_of_reshape_in_any_strides),
        scoped_test(test_pieces__a_gradient_that_is_a_part),
        scoped_test(test_pieces__more_gradients_than_a_node_has),
        scoped_test(test_pieces__a_segment_is_one_node),
        scoped_test(test_pieces__the_oldest_make_room),
        scoped_test(test_pieces__do_what_the_function_does),
        scoped_test(test_pieces__a_step_in_pieces),
        scoped_test(test_pieces__a_failure_between_pieces),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
