/* SPDX-License-Identifier: Apache-2.0
 * Anomaly mode around functions compiled whole: captures see no values, plans
 * are looked at where they end. */
#include <brigade/debug.h>

#include <math.h>

#include "tests/compile/world_functions.h"

/* The gradient of the root of x is infinite at 0, and 0 times that is none. */
FUNCTION(roots)
{
    out[0] = brg_mul_scalar(brg_sqrt(brg_mul(in[0], W->w[0])), 2);
    DONE(out[0]);
}

FUNCTION(roots_step)
{
    BRG_TRY(roots(in, n_in, out, n_out, user));
    out[0] = brg_sum_all(out[0]);
    return brg_backward(out[0]);
}

FUNCTION(roots_in_pieces)
{
    double v;
    BRG_TRY(brg_tensor_item(brg_sum_all(brg_detach(in[0])), &v));
    return roots_step(in, n_in, out, n_out, user);
}

FUNCTION(turns_it_on)
{
    bool before = brg_anomaly_mode_set(true);
    brg_status status = roots_step(in, n_in, out, n_out, user);
    (void)brg_anomaly_mode_set(before);
    return status;
}

static const char after_text[] =
    "Compiled Autograd returned NaN gradients for parameters: #";
static const char before_text[] =
    "Compiled Autograd was given parameters already having NaN gradient";
static const char node_text[] = "returned nan values in its";

static void fill(world *w, float first)
{
    float values[12];
    for (int i = 0; i < 12; i++)
        values[i] = i ? 1 : first;
    w->x[0] = brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(3, 4), values);
    w->w[0] = leaf_from(1, BRG_SHAPE(3, 4));
}

static brg_status call(world *w, brg_compiled *c, bool is_step, bool is_planned)
{
    brg_tensor *out[1];
    BRG_TRY(brg_compiled_call(c, w->x, 1, out, 1));
    return is_step ? BRG_OK : backward_as(brg_sum_all(out[0]), is_planned);
}

/* A good call, a bad one, a good one: what the mode finds, and when it is off. */
static void check_mode(brg_compiled_fn fn, bool is_step, bool is_planned,
                       const char *text)
{
    world w;
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    brg_compiled *c;
    options.whole = true;
    make_world(&w);
    fill(&w, 1);
    assert_brg_ok(brg_compiled_create(&c, fn, &w, &options));
    bool is_inside = fn == turns_it_on;
    (void)brg_anomaly_mode_set(!is_inside);
    for (int i = 0; i < 3; i++) {
        float *x = brg_tensor_data(w.x[0]);
        x[0] = i == 1 ? 0 : 1;
        if (i == 1)
            assert_brg_fails_with(call(&w, c, is_step, is_planned), BRG_ERR_NAN,
                                  text);
        else
            assert_brg_ok(call(&w, c, is_step, is_planned));
        assert_brg_ok(brg_tensor_set_grad(w.w[0], NULL));
    }
    (void)brg_anomaly_mode_set(false);
    ((float *)brg_tensor_data(w.x[0]))[0] = 0;
    if (!is_inside)
        assert_brg_ok(call(&w, c, is_step, is_planned));
    brg_compiled_destroy(c);
    free_world(&w);
}

static void test_anomaly__functions_compiled_whole(void **state)
{
    (void)state;
    check_mode(roots, false, false, node_text);
    check_mode(roots, false, true, after_text);
    check_mode(roots_step, true, false, after_text);
    check_mode(roots_in_pieces, true, false, after_text);
    check_mode(turns_it_on, true, false, after_text);
}

/* A step is refused before it adds to a gradient that has one already. */
static void test_anomaly__a_step_over_bad_gradients(void **state)
{
    (void)state;
    world w;
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    brg_compiled *c;
    options.whole = options.fullgraph = true;
    make_world(&w);
    fill(&w, 1);
    assert_brg_ok(brg_compiled_create(&c, roots_step, &w, &options));
    assert_brg_ok(call(&w, c, true, false));
    assert_brg_ok(brg_tensor_set_grad(
        w.w[0], brg_full(BRG_DTYPE_F32, BRG_SHAPE(3, 4), (double)NAN)));
    (void)brg_anomaly_mode_set(true);
    assert_brg_fails_with(call(&w, c, true, false), BRG_ERR_NAN, before_text);
    assert_brg_ok(brg_tensor_set_grad(w.w[0], NULL));
    assert_brg_ok(call(&w, c, true, false));
    (void)brg_anomaly_mode_set(false);
    brg_compiled_destroy(c);
    free_world(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_anomaly__functions_compiled_whole),
        scoped_test(test_anomaly__a_step_over_bad_gradients),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
