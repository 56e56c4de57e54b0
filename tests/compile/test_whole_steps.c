/* SPDX-License-Identifier: Apache-2.0
 * Whole steps with all that a function may use, against the function itself
 * (worlds.h): inputs, gradients, updates, results. What else runs inside of them:
 * test_whole_inside.c. */
#include "tests/compile/world_functions.h"

/* ---- Inputs ---------------------------------------------------------------- */

FUNCTION(step_input_is_param)
{
    out[0] = brg_sum_all(brg_mul(in[0], W->w[0]));
    return brg_backward(out[0]);
}

static void x_is_w_hook(world *w, int i)
{
    w->x[0] = w->w[0];
    if (i == 0)
        assert_brg_ok(
            brg_tensor_add_hook(NULL, w->w[0], count_hook, w->buffer, NULL));
}

FUNCTION(grad_input_is_param)
{
    brg_tensor *y = brg_sum_all(brg_mul(in[0], W->w[0])), *g;
    BRG_TRY(brg_grad(&g, &y, 1, &W->w[0], 1, NULL));
    out[0] = g;
    DONE(out[0]);
}

FUNCTION(step_nonleaf)
{
    out[0] = brg_sum_all(brg_mul(brg_mul(in[0], W->w[0]), W->w[1]));
    return brg_backward(out[0]);
}

static void x_nonleaf(world *w, int i)
{
    if (i % 2)
        w->x[0] = brg_mul(w->w[0], w->w[1]);
    else
        w->x[0] = w->x[1];
}

FUNCTION(step_modifies_input)
{
    out[0] = brg_sum_all(brg_mul(in[0], W->w[0]));
    BRG_TRY(brg_backward(out[0]));
    bool mode = brg_grad_mode_set(false);
    brg_status s = brg_mul_scalar_(in[1], 0.5);
    brg_grad_mode_set(mode);
    return s;
}

static void grads_come_and_go(world *w, int i)
{
    if (!brg_is_leaf(w->x[0]))
        return;
    assert_brg_ok(brg_set_requires_grad(w->x[0], i % 2));
}

static void test_whole_steps__inputs(void **state)
{
    (void)state;
    CHECK(step_input_is_param, 1, 1, .is_step = true, .between = x_is_w_hook);
    CHECK(grad_input_is_param, 1, 1, .is_step = true, .between = x_is_w);
    CHECK(step_nonleaf, 1, 1, .is_step = true, .in_pieces = true,
          .between = x_nonleaf);
    CHECK(step_modifies_input, 2, 1, .is_step = true, .in_pieces = true);
    CHECK(step_simple, 1, 1, .is_step = true, .between = freezes);
    CHECK(step_simple, 1, 1, .is_step = true, .between = grads_come_and_go);
    CHECK(step_simple, 1, 1, .is_step = true, .between = grows);
}

/* ---- What changes ---------------------------------------------------------- */

FUNCTION(step_freeze_inside)
{
    BRG_TRY(freeze_inside(in, n_in, out, n_out, user));
    out[0] = brg_sum_all(out[0]);
    return brg_backward(out[0]);
}

FUNCTION(gan)
{
    BRG_TRY(brg_set_requires_grad(W->w[0], false));
    brg_tensor *g = brg_sum_all(brg_mul(brg_mul(in[0], W->w[1]), W->w[0]));
    BRG_TRY(brg_backward(g));
    BRG_TRY(brg_set_requires_grad(W->w[0], true));
    out[0] = brg_sum_all(brg_mul(in[0], W->w[0]));
    return brg_backward(out[0]);
}

FUNCTION(step_changed_after_use)
{
    out[0] = brg_sum_all(brg_mul(W->w[0], W->buffer));
    bool mode = brg_grad_mode_set(false);
    brg_status s = brg_mul_scalar_(W->buffer, 0.5);
    brg_grad_mode_set(mode);
    BRG_TRY(s);
    return brg_backward(out[0]);
}

FUNCTION(steps_before_backward)
{
    brg_tensor *squares = brg_mul(W->w[0], W->w[0]);
    out[0] = brg_mean_all(brg_mul(in[0], squares));
    BRG_TRY(brg_optim_step(W->sgd));
    return brg_backward(out[0]);
}

static void has_gradient(world *w, int i)
{
    (void)i;
    assert_brg_ok(brg_tensor_set_grad(w->w[0], brg_ones_like(w->w[0])));
}

FUNCTION(steps_another)
{
    out[0] = brg_mean_all(brg_linear(in[0], W->w[2], NULL));
    BRG_TRY(brg_backward(brg_mean_all(brg_mul(in[0], W->w[0]))));
    BRG_TRY(brg_optim_step(W->sgd));
    return brg_backward(out[0]);
}

FUNCTION(only_effect)
{
    bool mode = brg_grad_mode_set(false);
    brg_status s = brg_add_(W->w[0], in[0], 0.5);
    brg_grad_mode_set(mode);
    (void)out;
    return s;
}

FUNCTION(ema)
{
    out[0] = brg_mean_all(brg_square(brg_mul(in[0], W->w[0])));
    BRG_TRY(brg_backward(out[0]));
    BRG_TRY(brg_optim_step(W->sgd));
    BRG_TRY(brg_optim_zero_grad(W->sgd, false));
    bool mode = brg_grad_mode_set(false);
    brg_status s = brg_mul_scalar_(W->buffer, 0.9);
    if (s == BRG_OK)
        s = brg_add_(W->buffer, W->w[0], 0.1);
    brg_grad_mode_set(mode);
    BRG_TRY(s);
    out[1] = brg_copy(W->buffer);
    DONE(out[1]);
}

FUNCTION(opt_state_read)
{
    brg_tensor *m = brg_optim_state_at(W->sgd, 1)->tensor;
    out[0] = brg_mean_all(brg_mul(brg_mul(in[0], W->w[0]), brg_detach(m)));
    BRG_TRY(brg_backward(out[0]));
    BRG_TRY(brg_optim_step(W->sgd));
    BRG_TRY(brg_optim_zero_grad(W->sgd, false));
    out[1] = brg_copy(m);
    out[2] = m;
    DONE(out[1]);
}

FUNCTION(sets_param)
{
    out[0] = brg_mean_all(brg_mul(brg_mul(in[0], W->w[0]), W->w[1]));
    BRG_TRY(brg_backward(out[0]));
    BRG_TRY(brg_optim_set_param(W->sgd, "w0", W->call % 2 ? 2 : 0.5, 0.25));
    return brg_optim_step(W->sgd);
}

static void test_whole_steps__what_changes(void **state)
{
    (void)state;
    CHECK(sets_param, 1, 1, .is_step = true, .in_pieces = true);
    CHECK(step_freeze_inside, 1, 1, .is_step = true, .in_pieces = true);
    CHECK(gan, 1, 1, .is_step = true, .in_pieces = true);
    CHECK(step_changed_after_use, 0, 1, .may_fail = true, .is_step = true,
          .in_pieces = true);
    CHECK(steps_before_backward, 1, 1, .may_fail = true, .is_step = true,
          .in_pieces = true, .between = has_gradient);
    CHECK(steps_another, 1, 1, .is_step = true);
    CHECK(only_effect, 1, 0, .is_step = true);
    CHECK(ema, 1, 2, .is_step = true);
    CHECK(opt_state_read, 1, 3, .is_step = true);
}

/* ---- Backwards ------------------------------------------------------------- */

FUNCTION(step_twice)
{
    brg_tensor *h = brg_tanh(brg_mul(in[0], W->w[0]));
    brg_backward_options o = BRG_BACKWARD_OPTIONS_INIT;
    o.retain_graph = true;
    brg_tensor *a = brg_sum_all(h), *b = brg_sum_all(brg_mul(h, W->w[1]));
    BRG_TRY(brg_backward_with(&a, 1, &o));
    BRG_TRY(brg_backward(b));
    out[0] = a, out[1] = b;
    return BRG_OK;
}

FUNCTION(inputs_step)
{
    brg_tensor *y =
        brg_sum_all(brg_sin(brg_mul(brg_mul(in[0], W->w[0]), W->w[1])));
    brg_backward_options o = BRG_BACKWARD_OPTIONS_INIT;
    o.inputs = &W->w[1];
    o.n_inputs = 1;
    out[0] = y;
    return brg_backward_with(&y, 1, &o);
}

FUNCTION(grad_outputs_step)
{
    brg_tensor *y[2] = {brg_sin(brg_mul(in[0], W->w[0])),
                        brg_mul(in[0], W->w[1])};
    brg_tensor *g[2] = {W->buffer, in[1]};
    brg_backward_options o = BRG_BACKWARD_OPTIONS_INIT;
    o.grad_outputs = g;
    out[0] = brg_detach(y[0]);
    return brg_backward_with(y, 2, &o);
}

FUNCTION(create_graph_step)
{
    brg_tensor *y = brg_sum_all(brg_sin(brg_mul(in[0], W->w[0])));
    brg_backward_options o = BRG_BACKWARD_OPTIONS_INIT;
    o.create_graph = true;
    BRG_TRY(brg_backward_with(&y, 1, &o));
    out[0] = brg_mul_scalar(y, 2);
    DONE(out[0]);
}

FUNCTION(grad_double_step)
{
    BRG_TRY(grad_double(in, n_in, out, n_out, user));
    return brg_backward(out[0]);
}

FUNCTION(grad_of_unused)
{
    brg_tensor *y = brg_sum_all(in[0]), *g[2], *wrt[2] = {in[0], W->w[0]};
    BRG_TRY(brg_grad(g, &y, 1, wrt, 2, NULL));
    out[0] = g[1] ? g[1] : brg_mul(g[0], W->w[0]);
    DONE(out[0]);
}

FUNCTION(leaf_inside)
{
    brg_tensor *leaf = brg_detach(in[0]);
    BRG_TRY(brg_set_requires_grad(leaf, true));
    brg_tensor *y = brg_sum_all(brg_sin(brg_mul(leaf, W->w[0])));
    BRG_TRY(brg_backward(y));
    out[0] = brg_tensor_grad(leaf);
    out[1] = y;
    DONE(out[0]);
}

static void test_whole_steps__backwards(void **state)
{
    (void)state;
    CHECK(step_twice, 1, 2, .is_step = true);
    CHECK(inputs_step, 1, 1, .is_step = true);
    CHECK(grad_outputs_step, 2, 1, .is_step = true);
    CHECK(create_graph_step, 1, 1, .is_step = true, .in_pieces = true);
    CHECK(grad_double_step, 1, 1, .is_step = true);
    CHECK(grad_of_unused, 1, 1, .is_step = true);
    CHECK(leaf_inside, 1, 2, .is_step = true, .in_pieces = true);
}

/* ---- Optimizers ------------------------------------------------------------ */

FUNCTION(step_two_optims)
{
    BRG_TRY(brg_optim_zero_grad(W->sgd, true));
    BRG_TRY(brg_optim_zero_grad(W->adam, false));
    brg_tensor *h = brg_linear(brg_mul(in[0], W->w[0]), W->w[2], W->w[1]);
    out[0] = brg_mean_all(brg_square(h));
    BRG_TRY(brg_backward(out[0]));
    BRG_TRY(brg_clip_grad_norm(NULL, W->params, 0.01, false));
    BRG_TRY(brg_clip_grad_value(W->second, 0.001));
    BRG_TRY(brg_scale_grad(W->second, 0.75));
    BRG_TRY(brg_optim_step(W->sgd));
    BRG_TRY(brg_optim_zero_grad(W->sgd, true));
    out[1] = brg_mean_all(
        brg_square(brg_linear(brg_mul(in[0], W->w[0]), W->w[2], W->w[1])));
    BRG_TRY(brg_backward(out[1]));
    return brg_optim_step(W->adam);
}

FUNCTION(sparse_embedding_step)
{
    BRG_TRY(sparse_embedding(in, n_in, out, n_out, user));
    out[0] = brg_mean_all(out[0]);
    BRG_TRY(brg_backward(out[0]));
    return brg_optim_step(W->adam);
}

FUNCTION(set_grad)
{
    BRG_TRY(brg_tensor_set_grad(W->w[0], NULL));
    BRG_TRY(brg_tensor_set_grad(in[0], NULL));
    out[0] = brg_mean_all(brg_mul(in[0], W->w[0]));
    BRG_TRY(brg_backward(out[0]));
    BRG_TRY(brg_tensor_set_grad(W->w[0], NULL));
    out[1] = brg_mean_all(brg_mul(brg_mul(in[0], W->w[0]), W->w[1]));
    return brg_backward(out[1]);
}

FUNCTION(set_grad_other)
{
    out[0] = brg_mean_all(brg_mul(in[0], W->w[0]));
    BRG_TRY(brg_tensor_set_grad(W->w[0], brg_ones_like(W->w[0])));
    return brg_backward(out[0]);
}

static void test_whole_steps__optimizers(void **state)
{
    (void)state;
    CHECK(step_two_optims, 1, 2, .is_step = true);
    CHECK(sparse_embedding_step, 0, 1, .is_step = true, .in_pieces = true);
    CHECK(set_grad, 1, 2, .is_step = true);
    CHECK(set_grad_other, 1, 1, .is_step = true, .in_pieces = true);
}

/* ---- Results --------------------------------------------------------------- */

FUNCTION(step_results)
{
    brg_tensor *h = brg_mul(in[0], W->w[0]);
    out[0] = brg_mean_all(h);
    BRG_TRY(brg_backward(out[0]));
    out[1] = in[0];
    out[2] = brg_transpose(W->buffer, 0, 1);
    bool mode = brg_grad_mode_set(false);
    brg_status s = brg_mul_scalar_(W->buffer, 0.5);
    brg_grad_mode_set(mode);
    return s;
}

FUNCTION(nonleaf_own_grad)
{
    brg_tensor *h = brg_sin(brg_mul(in[0], W->w[0]));
    out[0] = brg_mean_all(h);
    BRG_TRY(brg_backward(out[0]));
    out[1] = h;
    out[2] = brg_mul(h, W->w[0]);
    DONE(out[2]);
}

FUNCTION(empty_step)
{
    BRG_TRY(nothing(in, n_in, out, n_out, user));
    return brg_backward(out[0]);
}

FUNCTION(dtypes_step)
{
    BRG_TRY(dtypes(in, n_in, out, n_out, user));
    brg_tensor *l = brg_add(brg_cast(brg_mean_all(out[0]), BRG_DTYPE_F64),
                            brg_mean_all(out[2]));
    l = brg_add(l, brg_cast(brg_sum_all(out[1]), BRG_DTYPE_F64));
    return brg_backward(l);
}

FUNCTION(autocast_step)
{
    BRG_TRY(autocast(in, n_in, out, n_out, user));
    out[0] = brg_mean_all(out[0]);
    BRG_TRY(brg_backward(out[0]));
    brg_autocast before, low = {true, BRG_DTYPE_BF16};
    BRG_TRY(brg_optim_step(W->adam));
    BRG_TRY(brg_autocast_set(low, &before));
    out[1] = brg_linear(in[0], W->w[2], W->w[1]);
    BRG_TRY(brg_autocast_set(before, NULL));
    DONE(out[1]);
}

static void test_whole_steps__results(void **state)
{
    (void)state;
    CHECK(step_results, 1, 3, .is_step = true);
    CHECK(nonleaf_own_grad, 1, 3, .is_step = true);
    CHECK(empty_step, 1, 3, .is_step = true);
    CHECK(dtypes_step, 1, 3, .is_step = true);
    CHECK(autocast_step, 1, 2, .is_step = true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_whole_steps__inputs),
        scoped_test(test_whole_steps__what_changes),
        scoped_test(test_whole_steps__backwards),
        scoped_test(test_whole_steps__optimizers),
        scoped_test(test_whole_steps__results),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
