/* SPDX-License-Identifier: Apache-2.0
 * Autocast: dtypes of results and gradients, kept casts, what runs later. */
#include <brigade/autocast.h>
#include <brigade/debug.h>
#include <brigade/function.h>
#include <brigade/recompute.h>

#include "tests/autograd/graph.h"

static const brg_autocast to_bf16 = {true, BRG_DTYPE_BF16};

static brg_dtype dtype_of(const brg_tensor *t)
{
    assert_non_null(t);
    return brg_tensor_dtype(t);
}

static void test_autocast__products_go_low_and_losses_stay_f32(void **state)
{
    (void)state;
    brg_tensor *x = leaf_from(0, BRG_SHAPE(2, 3)),
               *w = leaf_from(1, BRG_SHAPE(4, 3));
    brg_autocast before;
    assert_brg_ok(brg_autocast_set(to_bf16, &before));
    assert_false(before.is_on);
    brg_tensor *h = brg_linear(x, w, NULL);
    assert_int_equal(dtype_of(h), BRG_DTYPE_BF16);
    assert_int_equal(dtype_of(brg_relu(h)), BRG_DTYPE_BF16);
    assert_int_equal(
        dtype_of(brg_add(h, brg_ones(BRG_DTYPE_F32, BRG_SHAPE(4)))),
        BRG_DTYPE_F32);
    brg_tensor *loss = brg_mean_all(brg_softmax(h, -1));
    assert_int_equal(dtype_of(brg_softmax(h, -1)), BRG_DTYPE_F32);
    assert_int_equal(dtype_of(loss), BRG_DTYPE_F32);
    assert_int_equal(
        dtype_of(brg_matmul(brg_ones(BRG_DTYPE_F64, BRG_SHAPE(2, 2)),
                            brg_ones(BRG_DTYPE_F64, BRG_SHAPE(2, 2)))),
        BRG_DTYPE_F64);
    assert_brg_ok(brg_autocast_set(before, NULL));
    assert_int_equal(dtype_of(brg_linear(x, w, NULL)), BRG_DTYPE_F32);
    assert_brg_ok(brg_backward(loss));
    assert_int_equal(dtype_of(brg_tensor_grad(w)), BRG_DTYPE_F32);
}

static brg_status count_casts(const brg_observation *o, void *user)
{
    if (strcmp(o->name, "cast") == 0)
        ++*(int *)user;
    return BRG_OK;
}

static void test_autocast__a_weight_is_cast_once(void **state)
{
    (void)state;
    int n_casts = 0;
    brg_tensor *x = brg_ones(BRG_DTYPE_BF16, BRG_SHAPE(2, 3));
    brg_tensor *w = leaf_from(1, BRG_SHAPE(4, 3));
    assert_brg_ok(brg_autocast_set(to_bf16, NULL));
    assert_brg_ok(brg_observer_push(count_casts, &n_casts));
    brg_tensor *a = brg_linear(x, w, NULL);
    brg_tensor *b = brg_linear(x, w, NULL);
    assert_brg_ok(brg_observer_pop());
    assert_int_equal(n_casts, 1);
    bool mode = brg_grad_mode_set(false);
    assert_brg_ok(brg_zero_(w)); /* changed: cast again */
    brg_grad_mode_set(mode);
    brg_tensor *c = brg_cast(brg_linear(x, w, NULL), BRG_DTYPE_F32);
    assert_float_equal(element(c, 0), 0, 0);
    assert_brg_ok(brg_autocast_set((brg_autocast){0}, NULL));
    assert_brg_ok(brg_backward(brg_sum_all(brg_add(a, b))));
    assert_float_equal(element(brg_tensor_grad(w), 0), 4, 0);
}

static brg_status custom_forward(brg_context *ctx, const brg_value *args,
                                 size_t n, brg_value *out)
{
    (void)n;
    brg_tensor *saved[] = {args[0].as.tensor, args[1].as.tensor};
    BRG_TRY(brg_context_save(ctx, saved, 2));
    out[0] = brg_value_tensor(brg_matmul(saved[0], saved[1]));
    return out[0].as.tensor ? BRG_OK : brg_error_code();
}

static brg_dtype seen_in_backward;

static brg_status custom_backward(brg_context *ctx, brg_tensor *const *g,
                                  brg_tensor **gi, size_t *n)
{
    (void)n;
    brg_tensor *x, *w;
    BRG_TRY(brg_context_saved(ctx, 0, &x));
    BRG_TRY(brg_context_saved(ctx, 1, &w));
    gi[0] = brg_matmul(g[0], brg_transpose(w, 0, 1));
    gi[1] = brg_matmul(brg_transpose(x, 0, 1), g[0]);
    if (!gi[0] || !gi[1])
        return brg_error_code();
    seen_in_backward = brg_tensor_dtype(gi[0]);
    return BRG_OK;
}

static void
test_autocast__custom_backward_sees_the_policy_of_its_forward(void **state)
{
    (void)state;
    brg_function *f =
        new_function(.name = "matmul", .n_outputs = 1,
                     .forward = custom_forward, .backward = custom_backward);
    brg_tensor *x = leaf_from(0, BRG_SHAPE(2, 3)),
               *w = leaf_from(0, BRG_SHAPE(3, 2));
    brg_value args[] = {brg_value_tensor(x), brg_value_tensor(w)};
    assert_brg_ok(brg_autocast_set(to_bf16, NULL));
    brg_tensor *y = brg_function_call(f, args, 2);
    assert_int_equal(dtype_of(y), BRG_DTYPE_BF16);
    assert_brg_ok(brg_autocast_set((brg_autocast){0}, NULL));
    seen_in_backward = BRG_DTYPE_F64;
    assert_brg_ok(brg_backward(brg_sum_all(y)));
    assert_int_equal(seen_in_backward, BRG_DTYPE_BF16);
    assert_int_equal(dtype_of(brg_tensor_grad(x)), BRG_DTYPE_F32);
    brg_function_release(f);
}

static brg_dtype seen_in_stretch[2];
static int n_stretch;

static brg_status stretch(brg_tensor *const *in, brg_tensor **out, void *user)
{
    (void)user;
    brg_tensor *h = brg_matmul(in[0], in[0]);
    if (!h)
        return brg_error_code();
    seen_in_stretch[n_stretch++] = brg_tensor_dtype(h);
    out[0] = brg_tanh(h);
    return BRG_OK;
}

static void test_autocast__recomputation_sees_it_too(void **state)
{
    (void)state;
    for (int is_reentrant = 0; is_reentrant < 2; is_reentrant++) {
        brg_recompute_options options = BRG_RECOMPUTE_OPTIONS_INIT;
        options.is_reentrant = is_reentrant;
        brg_tensor *x = leaf_from(0, BRG_SHAPE(2, 2)), *y;
        n_stretch = 0;
        assert_brg_ok(brg_autocast_set(to_bf16, NULL));
        assert_brg_ok(brg_recompute(&y, stretch, NULL, &x, 1, &options));
        assert_brg_ok(brg_autocast_set((brg_autocast){0}, NULL));
        assert_brg_ok(brg_backward(brg_sum_all(y)));
        assert_int_equal(n_stretch, 2);
        assert_int_equal(seen_in_stretch[0], BRG_DTYPE_BF16);
        assert_int_equal(seen_in_stretch[1], BRG_DTYPE_BF16);
        assert_false(brg_autocast_get().is_on);
    }
}

/* The other 16-bit float, and every class of op that stays in f32. */
static void test_autocast__f16_and_norms(void **state)
{
    (void)state;
    brg_tensor *x = leaf_from(0, BRG_SHAPE(2, 3)),
               *w = leaf_from(1, BRG_SHAPE(4, 3));
    assert_brg_ok(brg_autocast_set((brg_autocast){true, BRG_DTYPE_F16}, NULL));
    brg_tensor *h = brg_linear(x, w, NULL);
    assert_int_equal(dtype_of(h), BRG_DTYPE_F16);
    assert_int_equal(dtype_of(brg_layer_norm(h, NULL, NULL, 1, 1e-5)),
                     BRG_DTYPE_F32);
    assert_int_equal(dtype_of(brg_exp(h)), BRG_DTYPE_F32);
    assert_int_equal(dtype_of(brg_sum_all(h)), BRG_DTYPE_F32);
    brg_tensor *loss = brg_mse(h, brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(2, 4)));
    assert_int_equal(dtype_of(loss), BRG_DTYPE_F32);
    assert_brg_ok(brg_autocast_set((brg_autocast){0}, NULL));
    assert_brg_ok(brg_backward(loss));
    assert_int_equal(dtype_of(brg_tensor_grad(w)), BRG_DTYPE_F32);
}

static void test_autocast__only_16_bit_floats(void **state)
{
    (void)state;
    assert_brg_fails_with(
        brg_autocast_set((brg_autocast){true, BRG_DTYPE_F32}, NULL),
        BRG_ERR_DTYPE, "expected bf16 or f16");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_autocast__products_go_low_and_losses_stay_f32),
        scoped_test(test_autocast__a_weight_is_cast_once),
        scoped_test(
            test_autocast__custom_backward_sees_the_policy_of_its_forward),
        scoped_test(test_autocast__recomputation_sees_it_too),
        scoped_test(test_autocast__f16_and_norms),
        scoped_test(test_autocast__only_16_bit_floats),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
