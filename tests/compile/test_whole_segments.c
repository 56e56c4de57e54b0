/* SPDX-License-Identifier: Apache-2.0
 * Segments, and functions in pieces, with all that a function may use, against
 * the function itself (worlds.h). */
#include <brigade/control.h>

#include "tests/compile/world_functions.h"

/* ---- Inputs ---------------------------------------------------------------- */

FUNCTION(input_is_param)
{
    out[0] = brg_mul(in[0], W->w[0]);
    DONE(out[0]);
}

FUNCTION(same_input)
{
    out[0] = brg_mul(in[0], in[1]);
    DONE(out[0]);
}

static void same_inputs(world *w, int i)
{
    if (i == 2)
        w->x[1] = w->x[0];
}

FUNCTION(null_input)
{
    out[0] = brg_mul(in[0] ? in[0] : W->w[0], in[1] ? in[1] : W->w[1]);
    out[1] = NULL;
    DONE(out[0]);
}

static void null_inputs(world *w, int i)
{
    if (i == 1)
        w->x[1] = NULL;
    if (i == 2)
        w->x[0] = NULL;
}

static void grads_come_and_go(world *w, int i)
{
    assert_brg_ok(brg_set_requires_grad(w->x[0], i % 2));
}

static void mode_off(world *w, int i)
{
    (void)w;
    brg_grad_mode_set(i % 2);
}

FUNCTION(turns_on)
{
    bool mode = brg_grad_mode_set(true);
    out[0] = brg_sin(brg_mul(in[0], W->w[0]));
    out[1] = brg_transpose(out[0], 0, 1);
    brg_grad_mode_set(mode);
    out[2] = brg_mul(out[0], out[0]);
    DONE(out[2]);
}

FUNCTION(turns_on_input_view)
{
    bool mode = brg_grad_mode_set(true);
    out[0] = brg_transpose(in[0], 0, 1);
    brg_grad_mode_set(mode);
    out[1] = brg_transpose(in[0], 0, 1);
    DONE(out[1]);
}

FUNCTION(fails_first)
{
    brg_tensor *h = brg_mul(in[0], W->w[0]);
    if (W->call == 0)
        return brg_error_set(BRG_ERR_CALLBACK, __FILE__, __LINE__, "as asked");
    out[0] = brg_sin(h);
    DONE(out[0]);
}

static void test_whole_segments__inputs(void **state)
{
    (void)state;
    CHECK(input_is_param, 1, 1, .between = x_is_w);
    CHECK(same_input, 2, 1, .between = same_inputs);
    CHECK(null_input, 2, 2, .between = null_inputs);
    CHECK(linear, 1, 1, .between = grads_come_and_go);
    CHECK(linear, 1, 1, .between = freezes);
    CHECK(linear, 1, 1, .between = mode_off);
    CHECK(linear, 1, 1, .between = grows);
    CHECK(turns_on, 1, 3, .is_step = true, .between = mode_off);
    CHECK(turns_on_input_view, 1, 2, .is_step = true, .between = mode_off);
    CHECK(fails_first, 1, 1, .may_fail = true);
}

/* ---- Results --------------------------------------------------------------- */

FUNCTION(results_twice)
{
    out[0] = brg_sin(brg_mul(in[0], W->w[0]));
    out[1] = out[0];
    out[2] = brg_reshape(out[0], BRG_SHAPE(12));
    DONE(out[2]);
}

FUNCTION(twice_views)
{
    brg_tensor *h = brg_sin(brg_mul(in[0], W->w[0]));
    out[0] = brg_transpose(h, 0, 1);
    out[1] = out[0];
    out[2] = brg_reshape(h, BRG_SHAPE(12));
    DONE(out[2]);
}

FUNCTION(results_alias)
{
    out[0] = in[0];
    out[1] = W->w[0];
    out[2] = brg_transpose(W->w[0], 0, 1);
    DONE(out[2]);
}

FUNCTION(results_detached)
{
    out[0] = brg_detach(in[0]);
    out[1] = brg_detach(brg_mul(in[0], in[0]));
    out[2] = brg_mul(in[0], W->w[0]);
    DONE(out[2]);
}

FUNCTION(retain_grad)
{
    brg_tensor *h = brg_mul(in[0], W->w[0]);
    BRG_TRY(brg_retain_grad(h));
    out[0] = brg_sin(h);
    out[1] = h;
    DONE(out[0]);
}

static void test_whole_segments__results(void **state)
{
    (void)state;
    CHECK(results_twice, 1, 3);
    CHECK(twice_views, 1, 3);
    CHECK(results_alias, 1, 3);
    CHECK(results_detached, 1, 3);
    CHECK(retain_grad, 1, 2, .in_pieces = true);
}

/* ---- Hooks added inside ---------------------------------------------------- */

FUNCTION(hook_inside)
{
    brg_tensor *h = brg_mul(in[0], W->w[0]);
    BRG_TRY(brg_tensor_add_hook(NULL, h, count_hook, W->buffer, NULL));
    out[0] = brg_sin(h);
    DONE(out[0]);
}

FUNCTION(node_hook)
{
    brg_tensor *h = brg_mul(in[0], W->w[0]);
    brg_node *node;
    BRG_TRY(brg_tensor_node(&node, h));
    brg_status s = brg_node_add_pre_hook(NULL, node, pre_hook, NULL, NULL);
    brg_node_release(node);
    BRG_TRY(s);
    out[0] = brg_sin(h);
    DONE(out[0]);
}

static void test_whole_segments__hooks_added_inside(void **state)
{
    (void)state;
    CHECK(hook_inside, 1, 1, .in_pieces = true);
    CHECK(node_hook, 1, 1);
}

/* ---- Dtypes and sizes ------------------------------------------------------ */

FUNCTION(scalar)
{
    brg_tensor *s = brg_sum_all(in[0]);
    out[0] = brg_mul(brg_tanh(s), brg_mean_all(W->w[0]));
    out[1] = brg_expand(out[0], BRG_SHAPE(2, 3));
    DONE(out[1]);
}

FUNCTION(ints)
{
    brg_tensor *i = brg_argmax(in[0], 1, false);
    out[1] = i;
    out[2] = brg_gt(in[0], W->w[0]);
    out[0] = brg_mul(brg_index_select(W->w[3], 0, i),
                     brg_where(out[2], in[0], W->w[0]));
    DONE(out[0]);
}

FUNCTION(embedding)
{
    out[0] = brg_mul(brg_embedding(W->w[3], W->ids), W->w[1]);
    DONE(out[0]);
}

FUNCTION(many_leaves)
{
    brg_tensor *h = in[0];
    for (int i = 0; i < 1200; i++) {
        brg_tensor *p = brg_detach(W->w[0]);
        BRG_TRY(brg_set_requires_grad(p, true));
        h = brg_add(h, p);
    }
    double v;
    BRG_TRY(brg_tensor_item(brg_sum_all(brg_detach(h)), &v));
    out[0] = h;
    DONE(out[0]);
}

static void test_whole_segments__dtypes_and_sizes(void **state)
{
    (void)state;
    CHECK(nothing, 1, 3);
    CHECK(scalar, 1, 2);
    CHECK(ints, 1, 3);
    CHECK(dtypes, 1, 3);
    CHECK(embedding, 0, 1);
    CHECK(sparse_embedding, 0, 1, .in_pieces = true);
    CHECK(many_leaves, 1, 1, .in_pieces = true, .is_loose = true);
}

/* ---- Autocast -------------------------------------------------------------- */

static void autocast_around(world *w, int i)
{
    (void)w;
    brg_autocast low = {i % 2, BRG_DTYPE_BF16};
    assert_brg_ok(brg_autocast_set(low, NULL));
}

static void test_whole_segments__autocast(void **state)
{
    (void)state;
    CHECK(autocast, 1, 2);
    CHECK(linear, 1, 1, .between = autocast_around);
}

/* ---- Functions inside ------------------------------------------------------ */

FUNCTION(inner_no_input)
{
    out[0] = brg_mul(W->w[0], W->buffer);
    DONE(out[0]);
}

FUNCTION(nested_no_input)
{
    BRG_TRY(brg_compiled_call(W->inner, NULL, 0, out, 1));
    out[0] = brg_mul(out[0], in[0]);
    bool mode = brg_grad_mode_set(false);
    brg_status s = brg_mul_scalar_(W->flat, 0.5);
    brg_grad_mode_set(mode);
    DONE(s == BRG_OK ? out[0] : NULL);
}

FUNCTION(nested_param)
{
    BRG_TRY(brg_compiled_call(W->inner, &W->w[0], 1, out, 1));
    out[0] = brg_mul(out[0], in[0]);
    DONE(out[0]);
}

FUNCTION(nested_pieces)
{
    double v;
    brg_tensor *h = brg_mul(in[0], W->w[0]);
    BRG_TRY(brg_tensor_item(brg_mean_all(brg_detach(h)), &v));
    BRG_TRY(brg_compiled_call(W->inner, &h, 1, out, 1));
    out[0] = brg_mul_scalar(brg_mul(out[0], h), v);
    DONE(out[0]);
}

static void test_whole_segments__functions_inside(void **state)
{
    (void)state;
    CHECK(nested_no_input, 1, 1, .inner = inner_no_input);
    CHECK(nested_param, 1, 1, .inner = sines);
    CHECK(nested_pieces, 1, 1, .in_pieces = true, .is_loose = true,
          .inner = sines);
}

/* ---- What changes ---------------------------------------------------------- */

FUNCTION(changed_after_use)
{
    out[0] = brg_mul(W->w[0], W->buffer);
    bool mode = brg_grad_mode_set(false);
    brg_status s = brg_mul_scalar_(W->buffer, 0.5);
    brg_grad_mode_set(mode);
    return s;
}

FUNCTION(buffer_view)
{
    brg_tensor *view = brg_select(W->buffer, 0, 1);
    bool mode = brg_grad_mode_set(false);
    brg_status s = brg_add_(view, brg_select(in[0], 0, 0), 1);
    if (s == BRG_OK)
        s = brg_copy_(
            brg_transpose(brg_reshape(W->flat, BRG_SHAPE(4, 3)), 0, 1),
            W->buffer);
    brg_grad_mode_set(mode);
    BRG_TRY(s);
    out[0] = brg_mul(in[0], brg_reshape(W->flat, BRG_SHAPE(3, 4)));
    DONE(out[0]);
}

FUNCTION(batch_norm)
{
    brg_batch_norm_options o = {.struct_size = sizeof o,
                                .training = true,
                                .momentum = 0.1,
                                .eps = 1e-5};
    brg_tensor *mean = brg_select(brg_reshape(W->flat, BRG_SHAPE(3, 4)), 0, 0);
    brg_tensor *var = brg_select(brg_reshape(W->flat, BRG_SHAPE(3, 4)), 0, 1);
    out[0] =
        brg_batch_norm(brg_mul(in[0], W->w[0]), W->w[1], NULL, mean, var, &o);
    DONE(out[0]);
}

static void test_whole_segments__what_changes(void **state)
{
    (void)state;
    CHECK(freeze_inside, 1, 1, .in_pieces = true, .is_loose = true);
    CHECK(changed_after_use, 0, 1, .may_fail = true, .in_pieces = true);
    CHECK(buffer_view, 1, 1, .in_pieces = true);
    CHECK(batch_norm, 1, 1);
}

/* ---- Gradients inside ------------------------------------------------------ */

FUNCTION(grad_double_pieces)
{
    double v;
    BRG_TRY(grad_double(in, n_in, out, n_out, user));
    BRG_TRY(brg_tensor_item(out[0], &v));
    out[0] = brg_mul_scalar(out[0], v);
    DONE(out[0]);
}

static void test_whole_segments__gradients_inside(void **state)
{
    (void)state;
    CHECK(grad_double, 1, 1);
    CHECK(grad_double_pieces, 1, 1, .in_pieces = true, .is_loose = true);
}

/* ---- Branches -------------------------------------------------------------- */

FUNCTION(cond_pieces)
{
    double v;
    BRG_TRY(brg_tensor_item(brg_sum_all(brg_detach(in[0])), &v));
    return branches(in, n_in, out, n_out, user);
}

static void test_whole_segments__branches(void **state)
{
    (void)state;
    CHECK(branches, 1, 1);
    CHECK(cond_pieces, 1, 1, .in_pieces = true, .is_loose = true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_whole_segments__inputs),
        scoped_test(test_whole_segments__results),
        scoped_test(test_whole_segments__hooks_added_inside),
        scoped_test(test_whole_segments__dtypes_and_sizes),
        scoped_test(test_whole_segments__autocast),
        scoped_test(test_whole_segments__functions_inside),
        scoped_test(test_whole_segments__what_changes),
        scoped_test(test_whole_segments__gradients_inside),
        scoped_test(test_whole_segments__branches),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
