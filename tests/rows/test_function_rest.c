/* SPDX-License-Identifier: Apache-2.0
 * Rows of the suite `function` on what surrounds a function: autocast, code
 * that a compiler cannot look into, the bundle of smoke cases. */
#include <brigade/autocast.h>

#include "tests/rows/checks.h"

/* ---- Autocast -------------------------------------------------------------------- */

static brg_dtype seen_dtype;

FORWARD(amp_forward)
{
    SAVE(ARG(0), ARG(1));
    OUT(0, brg_matmul(ARG(0), ARG(1)));
    return BRG_OK;
}

BACKWARD(amp_backward)
{
    SAVED(x, 0);
    SAVED(w, 1);
    GRAD(0, brg_matmul(g[0], brg_transpose(w, 0, 1)));
    GRAD(1, brg_matmul(brg_transpose(x, 0, 1), g[0]));
    seen_dtype = brg_tensor_dtype(gi[0]);
    return BRG_OK;
}

static void test_amp_custom_fwd_bwd_checks(void)
{
    brg_function *f = function_of("MyMM", amp_forward, amp_backward, 1);
    brg_tensor *x = leaf_full(2, BRG_SHAPE(8, 8)),
               *w = leaf_full(1, BRG_SHAPE(8, 8));
    brg_autocast on = {true, BRG_DTYPE_BF16}, before;
    assert_brg_ok(brg_autocast_set(on, &before));
    brg_tensor *y = CALL(f, x, w);
    assert_brg_ok(brg_autocast_set(before, NULL));
    assert_int_equal(brg_tensor_dtype(y), BRG_DTYPE_BF16);
    expect_all(brg_cast(y, BRG_DTYPE_F32), 16);
    seen_dtype = BRG_DTYPE_F64;
    assert_brg_ok(brg_backward(brg_sum_all(brg_cast(y, BRG_DTYPE_F32))));
    assert_int_equal(seen_dtype, BRG_DTYPE_BF16); /* the policy of forward */
    expect_all(brg_tensor_grad(x), 8);
    expect_all(brg_tensor_grad(w), 16);
    assert_false(brg_autocast_get().is_on);
    brg_function_release(f);
}
CHECK_ROW(test_amp_custom_fwd_bwd, 1)

/* ---- Forward and backward that a compiler cannot look into ---------------------------- */

static int n_side_effects;

FORWARD(opaque_forward)
{
    brg_tensor *half = brg_mul_scalar(ARG(0), 0.5);
    n_side_effects++; /* between two ops */
    OUT(0, brg_add(half, half));
    return brg_context_save(ctx, &half, 1);
}

BACKWARD(opaque_backward)
{
    SAVED(half, 0);
    n_side_effects++;
    GRAD(0, brg_mul(g[0], brg_add_scalar(brg_mul_scalar(half, 0), 1)));
    return BRG_OK;
}

/* The two models: the function alone, and between ops. */
static brg_tensor *split_model(const brg_function *f, int model, brg_tensor *x)
{
    return model == 0 ? CALL(f, x)
                      : brg_mul_scalar(CALL(f, brg_mul_scalar(x, 4)), 0.25);
}

static void check_split_model(const brg_function *f, int model, bool with_grad)
{
    bool mode = brg_grad_mode_set(with_grad);
    n_side_effects = 0;
    for (int i = 1; i <= 3; i++) {
        brg_tensor *x = leaf_full(i, BRG_SHAPE(3));
        brg_tensor *y = split_model(f, model, x);
        expect_all(y, i);
        assert_int_equal(brg_requires_grad(y), with_grad);
        if (with_grad) {
            backward_of_sum(y);
            expect_all(brg_tensor_grad(x), 1);
        }
        assert_int_equal(n_side_effects, with_grad ? 2 * i : i);
    }
    brg_grad_mode_set(mode);
}

/* Compiled whole, a model is cut at the function, which reads a value: what
 * lies before and behind it are two pieces, the same in each call. */
typedef struct split_user {
    const brg_function *f;
    int model;
} split_user;

static brg_status split_call(brg_tensor *const *in, size_t n_in,
                             brg_tensor **out, size_t n_out, void *user)
{
    const split_user *s = user;
    (void)n_in;
    (void)n_out;
    brg_tensor *h = brg_add(in[0], in[0]);
    if (s->model == 1)
        h = brg_mul_scalar(brg_exp(brg_log(h)), 4);
    brg_value arg = brg_value_tensor(h);
    h = brg_function_call(s->f, &arg, 1);
    out[0] = brg_mul_scalar(h, s->model == 1 ? 0.125 : 0.5);
    return out[0] ? BRG_OK : brg_error_code();
}

static void check_split_compiled(const brg_function *f, int model,
                                 bool with_grad)
{
    split_user user = {f, model};
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    brg_compiled *c;
    brg_compile_stats before, after;
    options.whole = true;
    assert_brg_ok(brg_compiled_create(&c, split_call, &user, &options));
    bool mode = brg_grad_mode_set(with_grad);
    brg_compile_get_stats(&before);
    n_side_effects = 0;
    for (int i = 1; i <= 3; i++) {
        brg_tensor *x = leaf_full(i, BRG_SHAPE(3)), *y;
        assert_brg_ok(brg_compiled_call(c, &x, 1, &y, 1));
        expect_all(y, i);
        assert_int_equal(brg_requires_grad(y), with_grad);
        if (with_grad) {
            backward_of_sum(y);
            expect_all(brg_tensor_grad(x), 1);
        }
        assert_int_equal(n_side_effects, with_grad ? 2 * i : i);
        brg_compile_get_stats(&after);
        assert_int_equal(after.function_pieces - before.function_pieces, 2);
    }
    brg_grad_mode_set(mode);
    brg_compiled_destroy(c);
}

static void test_autograd_function_has_graph_break(void **state)
{
    (void)state;
    brg_function *f =
        function_of("CustomFunc3", opaque_forward, opaque_backward, 1);
    for (int model = 0; model < 2; model++)
        for (int with_grad = 0; with_grad < 2; with_grad++)
            check_split_model(f, model, with_grad);
    for (int model = 0; model < 2; model++)
        for (int with_grad = 0; with_grad < 2; with_grad++)
            check_split_compiled(f, model, with_grad);
    brg_function_release(f);
}

/* fullgraph names the function and runs nothing of the backward; without it
 * the plan is cut once. */
static void test_print_in_bwd(void **state)
{
    (void)state;
    brg_function *f = function_traced(BRG_FUNCTION_UNTRACEABLE, "PrintInBwd",
                                      opaque_forward, opaque_backward, 1);
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    for (int round = 0; round < 2; round++) { /* a miss, then a hit */
        brg_tensor *x = leaf_full(1, BRG_SHAPE(3)), *y = CALL(f, x);
        brg_tensor *loss = brg_sum_all(y);
        brg_compile_stats before, after;
        int scope;
        n_side_effects = 0;
        brg_compile_get_stats(&before);
        options.fullgraph = true;
        assert_brg_ok(brg_compile_begin(&scope, &options));
        assert_brg_fails_with(brg_backward(loss), BRG_ERR_UNSUPPORTED,
                              "fullgraph: the plan would be cut at the "
                              "backward of PrintInBwd (NodeCall ");
        assert_brg_ok(brg_compile_end(scope));
        assert_int_equal(n_side_effects, 0);
        assert_null(brg_tensor_grad(x));
        options.fullgraph = false;
        assert_brg_ok(brg_compile_begin(&scope, &options));
        assert_brg_ok(brg_backward(loss)); /* the graph is whole */
        assert_brg_ok(brg_compile_end(scope));
        brg_compile_get_stats(&after);
        assert_int_equal(n_side_effects, 1);
        expect_all(brg_tensor_grad(x), 1);
        assert_int_equal(after.splits - before.splits, round == 0);
        assert_int_equal(after.compiles - before.compiles, round == 0 ? 2 : 0);
    }
    brg_function_release(f);
}

/* ---- The bundle ------------------------------------------------------------------------------ */

/* x^2, saving input and output. */
FORWARD(square_forward)
{
    OUT(0, brg_square(ARG(0)));
    SAVE(ARG(0), out[0].as.tensor);
    return BRG_OK;
}

BACKWARD(square_backward)
{
    SAVED(x, 0);
    SAVED(y, 1);
    /* 2 x g, by way of the output: 2 y / x. */
    GRAD(0, brg_mul(g[0], brg_mul_scalar(brg_div(y, x), 2)));
    return BRG_OK;
}

/* Returns its input, and a sum of it. */
FORWARD(identity_and_sum_forward)
{
    OUT(0, ARG(0));
    OUT(1, brg_sum_all(ARG(0)));
    return BRG_OK;
}

BACKWARD(identity_and_sum_backward)
{
    GRAD(0, brg_add(g[0], g[1]));
    return BRG_OK;
}

FORWARD(add_in_place_forward)
{
    BRG_TRY(brg_add_(ARG(0), ARG(1), 1));
    BRG_TRY(brg_context_mark_dirty(ctx, (brg_tensor *[]){ARG(0)}, 1));
    OUT(0, ARG(0));
    return BRG_OK;
}

BACKWARD(add_in_place_backward)
{
    GRAD(0, g[0]);
    GRAD(1, g[0]);
    return BRG_OK;
}

FORWARD(dirty_not_returned_forward)
{
    BRG_TRY(brg_context_mark_dirty(ctx, (brg_tensor *[]){ARG(0)}, 1));
    OUT(0, brg_copy(ARG(0)));
    return BRG_OK;
}

BACKWARD(nan_backward)
{
    GRAD(0, brg_mul_scalar(g[0], NAN));
    return BRG_OK;
}

FORWARD(view_forward)
{
    OUT(0, brg_transpose(ARG(0), 0, 1));
    return BRG_OK;
}

BACKWARD(view_backward)
{
    GRAD(0, brg_transpose(g[0], 0, 1));
    return BRG_OK;
}

static void smoke_saved(void)
{
    brg_function *f = function_of("Double", square_forward, square_backward, 1);
    brg_tensor *x = leaf_full(3, BRG_SHAPE(2)), *grad, *second;
    brg_tensor *y = brg_sum_all(CALL(f, x));
    brg_backward_options options = BRG_BACKWARD_OPTIONS_INIT;
    options.create_graph = true;
    assert_brg_ok(brg_grad(&grad, &y, 1, &x, 1, &options));
    expect_all(grad, 6);
    brg_tensor *sum = brg_sum_all(grad);
    assert_brg_ok(brg_grad(&second, &sum, 1, &x, 1, NULL));
    expect_all(second, 2); /* through the saved output's own history */
    brg_function_release(f);
}

/* Another function with the forward of Double. */
BACKWARD(square_by_input_backward)
{
    SAVED(x, 0);
    GRAD(0, brg_mul(g[0], brg_mul_scalar(x, 2)));
    return BRG_OK;
}

static void smoke_derived(void)
{
    brg_function *f =
        function_of("Double2", square_forward, square_by_input_backward, 1);
    brg_tensor *x = leaf_full(3, BRG_SHAPE(2)), *y = CALL(f, x);
    expect_all(y, 9);
    assert_string_equal(brg_grad_fn_name(y), "Double2");
    backward_of_sum(y);
    expect_all(brg_tensor_grad(x), 6);
    brg_function_release(f);
}

static void smoke_identity(void)
{
    brg_function *f = function_of("Identity", identity_and_sum_forward,
                                  identity_and_sum_backward, 2);
    brg_tensor *x = leaf_full(3, BRG_SHAPE(2));
    brg_value out[2];
    assert_brg_ok(APPLY(f, out, brg_value_tensor(x)));
    assert_ptr_not_equal(out[0].as.tensor, x); /* a view of it */
    assert_true(brg_tensor_shares_storage(out[0].as.tensor, x));
    assert_string_equal(brg_grad_fn_name(out[0].as.tensor), "Identity");
    expect_all(out[1].as.tensor, 6);
    backward_of_sum(
        brg_add(brg_mul_scalar(out[0].as.tensor, 2), out[1].as.tensor));
    expect_all(brg_tensor_grad(x), 4);
    brg_function_release(f);
}

static void smoke_dirty(void)
{
    brg_function *f =
        function_of("MyAdder", add_in_place_forward, add_in_place_backward, 1);
    brg_tensor *x = leaf_full(3, BRG_SHAPE(2)), *y = leaf_full(1, BRG_SHAPE(2));
    brg_tensor *h = brg_mul_scalar(x, 2);
    uint32_t version = brg_tensor_version(h);
    brg_tensor *z = CALL(f, h, y);
    assert_ptr_equal(z, h);
    assert_true(brg_tensor_version(h) > version);
    assert_string_equal(brg_grad_fn_name(h), "MyAdder");
    expect_all(h, 7);
    backward_of_sum(brg_mul(h, h));
    expect_all(brg_tensor_grad(x), 28);
    expect_all(brg_tensor_grad(y), 14);
    brg_value out[1];
    assert_brg_fails_with(
        APPLY(f, out, brg_value_tensor(x), brg_value_tensor(y)), BRG_ERR_STATE,
        "a leaf Variable that requires grad has been used in "
        "an in-place operation");
    brg_function_release(f);
    f = function_of("MyAdder", dirty_not_returned_forward,
                    add_in_place_backward, 1);
    assert_brg_fails_with(
        APPLY(f, out, brg_value_tensor(brg_mul_scalar(x, 2))), BRG_ERR_CALLBACK,
        "Some elements marked as dirty during the forward method were not "
        "returned as output");
    brg_function_release(f);
}

static void smoke_nan_and_view(void)
{
    brg_function *f = function_of("MyFunc2", view_forward, nan_backward, 1);
    brg_tensor *x = leaf_full(3, BRG_SHAPE(2, 2));
    backward_of_sum(CALL(f, x));
    assert_true(isnan(element(brg_tensor_grad(x), 0)));
    brg_function_release(f);
    f = function_of("MyFn3", view_forward, view_backward, 1);
    brg_tensor *v = leaf_from(0, BRG_SHAPE(2, 2)), *turned = CALL(f, v);
    brg_tensor *w =
        brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(2, 2), (float[]){1, 2, 3, 4});
    assert_true(brg_tensor_shares_storage(turned, v));
    backward_of_sum(brg_mul(turned, w));
    EXPECT_VALUES(brg_tensor_grad(v), 1, 3, 2, 4);
    brg_function_release(f);
}

static void test_smoke_from_test_autograd(void **state)
{
    (void)state;
    smoke_saved();
    smoke_derived();
    smoke_identity();
    smoke_dirty();
    smoke_nan_and_view();
    brg_compile_stats stats; /* compiled, all of it is in plans */
    brg_compile_get_stats(&stats);
    assert_int_equal(stats.fallbacks, 0);
    assert_int_equal(stats.captures > 0, is_compiled_run());
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_amp_custom_fwd_bwd),
        scoped_test(test_autograd_function_has_graph_break),
        scoped_test(test_print_in_bwd),
        scoped_test(test_smoke_from_test_autograd),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
