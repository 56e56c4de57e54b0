/* SPDX-License-Identifier: Apache-2.0
 * Scheduling, selection and lifetime of backward. */
#include <pthread.h>

#include "tests/autograd/graph.h"

static void test_engine__product_rule(void **state)
{
    (void)state;
    brg_tensor *a = leaf_from(3, BRG_SCALAR), *b = leaf_from(5, BRG_SCALAR);
    assert_brg_ok(brg_backward(brg_mul(brg_mul(a, b), a))); /* a^2 b */
    assert_float_equal(item(brg_tensor_grad(a)), 30, 0);
    assert_float_equal(item(brg_tensor_grad(b)), 9, 0);
}

static void test_engine__fan_in_is_summed(void **state)
{
    (void)state;
    brg_tensor *x = leaf_from(2, BRG_SCALAR);
    brg_tensor *y = brg_mul(x, x);
    brg_tensor *z = brg_add(brg_add(brg_mul(y, y), y), brg_mul_scalar(y, 3));
    assert_brg_ok(brg_backward(z)); /* y^2 + 4y, y = x^2: (2y + 4) 2x */
    assert_float_equal(item(brg_tensor_grad(x)), 48, 0);
}

static void test_engine__gradients_accumulate_over_backwards(void **state)
{
    (void)state;
    brg_tensor *x = leaf_from(2, BRG_SCALAR);
    for (int i = 1; i <= 3; i++) {
        assert_brg_ok(brg_backward(brg_mul(x, x)));
        assert_float_equal(item(brg_tensor_grad(x)), 4.0 * i, 0);
    }
}

static void test_engine__broadcast_gradient_is_summed(void **state)
{
    (void)state;
    brg_tensor *x = leaf_from(0, BRG_SHAPE(4, 3));
    brg_tensor *row = leaf_from(1, BRG_SHAPE(3));
    assert_brg_ok(brg_backward(brg_sum_all(brg_mul(x, row))));
    assert_int_equal(brg_tensor_ndim(brg_tensor_grad(row)), 1);
    assert_float_equal(element(brg_tensor_grad(row), 1), 1 + 4 + 7 + 10, 0);
    assert_float_equal(element(brg_tensor_grad(x), 5), 3, 0);
}

/* ---- Order -------------------------------------------------------------------- */

typedef struct trace {
    char text[256];
} trace;

typedef struct mark {
    trace *log;
    const char *name;
} mark;

static void append(trace *log, const char *name)
{
    strncat(log->text, name, sizeof log->text - strlen(log->text) - 1);
}

static brg_status note_grad(brg_tensor *grad, brg_tensor **replacement,
                            void *user)
{
    (void)grad;
    (void)replacement;
    mark *m = user;
    append(m->log, m->name);
    return BRG_OK;
}

static brg_status note_leaf(brg_tensor *leaf, void *user)
{
    (void)leaf;
    mark *m = user;
    append(m->log, m->name);
    return BRG_OK;
}

static void test_engine__accumulate_runs_the_moment_it_is_ready(void **state)
{
    (void)state;
    trace log = {""};
    brg_tensor *w1 = leaf_from(2, BRG_SCALAR), *w2 = leaf_from(3, BRG_SCALAR);
    brg_tensor *w3 = leaf_from(4, BRG_SCALAR);
    brg_tensor *h1 = brg_mul(w1, w1);
    brg_tensor *h2 = brg_mul(h1, w2);
    brg_tensor *h3 = brg_mul(h2, w3);
    mark m1 = {&log, "W1 "}, m2 = {&log, "W2 "}, m3 = {&log, "W3 "};
    mark g1 = {&log, "h1 "}, g2 = {&log, "h2 "};
    assert_brg_ok(
        brg_tensor_add_post_accumulate_hook(NULL, w1, note_leaf, &m1, NULL));
    assert_brg_ok(
        brg_tensor_add_post_accumulate_hook(NULL, w2, note_leaf, &m2, NULL));
    assert_brg_ok(
        brg_tensor_add_post_accumulate_hook(NULL, w3, note_leaf, &m3, NULL));
    assert_brg_ok(brg_tensor_add_hook(NULL, h1, note_grad, &g1, NULL));
    assert_brg_ok(brg_tensor_add_hook(NULL, h2, note_grad, &g2, NULL));
    assert_brg_ok(brg_backward(h3));
    assert_string_equal(log.text, "W3 h2 W2 h1 W1 ");
}

static void test_engine__later_recorded_nodes_run_first(void **state)
{
    (void)state;
    trace log = {""};
    brg_tensor *x = leaf_from(2, BRG_SCALAR);
    brg_tensor *early = brg_mul_scalar(x, 2), *late = brg_mul_scalar(x, 3);
    mark m1 = {&log, "early "}, m2 = {&log, "late "};
    assert_brg_ok(brg_tensor_add_hook(NULL, early, note_grad, &m1, NULL));
    assert_brg_ok(brg_tensor_add_hook(NULL, late, note_grad, &m2, NULL));
    assert_brg_ok(brg_backward(brg_add(early, late)));
    assert_string_equal(log.text, "late early ");
    assert_float_equal(item(brg_tensor_grad(x)), 5, 0);
}

/* ---- Lifetime ------------------------------------------------------------------ */

static void test_engine__second_backward_needs_retain_graph(void **state)
{
    (void)state;
    brg_tensor *x = leaf_from(2, BRG_SCALAR);
    brg_tensor *y = brg_mul(x, x);
    brg_backward_options keep = BRG_BACKWARD_OPTIONS_INIT;
    keep.retain_graph = true;
    assert_brg_ok(brg_backward_with(&y, 1, &keep));
    assert_brg_ok(brg_backward_with(&y, 1, &keep));
    assert_brg_ok(brg_backward(y));
    assert_float_equal(item(brg_tensor_grad(x)), 12, 0);
    assert_brg_fails_with(brg_backward(y), BRG_ERR_STATE, "a second time");
}

static void
test_engine__saved_values_are_freed_as_their_node_is_done(void **state)
{
    (void)state;
    DIVERGES_WHEN_COMPILED("a plan keeps its arena for the next run");
    brg_tensor *x = leaf_from(1, BRG_SHAPE(1000));
    brg_scope *scope = brg_scope_begin();
    brg_tensor *y = brg_sum_all(brg_mul(brg_exp(x), brg_exp(x)));
    brg_scope_return(scope, y);
    brg_memory_stats before, after;
    brg_memory_get_stats(&before);
    assert_brg_ok(brg_backward(y));
    brg_memory_get_stats(&after);
    /* Two saved exps go, one gradient comes. */
    assert_true(after.in_use < before.in_use);
}

static void test_engine__deep_graph_is_freed_without_recursion(void **state)
{
    (void)state;
    brg_tensor *x = leaf_from(1, BRG_SCALAR);
    brg_scope *scope = brg_scope_begin();
    brg_tensor *y = x;
    for (int i = 0; i < 200000; i++)
        y = brg_add_scalar(y, 1e-6);
    y = brg_scope_return(scope, y);
    assert_non_null(y);
    assert_brg_ok(brg_backward(y));
    assert_float_equal(item(brg_tensor_grad(x)), 1, 0);
}

/* ---- Selection ------------------------------------------------------------------ */

static brg_status must_not_run(brg_tensor *grad, brg_tensor **replacement,
                               void *user)
{
    (void)grad;
    (void)replacement;
    *(int *)user += 1;
    return BRG_OK;
}

static void test_engine__grad_leaves_grad_fields_alone(void **state)
{
    (void)state;
    brg_tensor *x = leaf_from(3, BRG_SCALAR), *w = leaf_from(4, BRG_SCALAR);
    brg_tensor *h = brg_mul(x, x), *y = brg_mul(h, w);
    brg_tensor *inputs[] = {h, x}, *grads[2];
    assert_brg_ok(brg_grad(grads, &y, 1, inputs, 2, NULL));
    assert_float_equal(item(grads[0]), 4, 0);
    assert_float_equal(item(grads[1]), 24, 0);
    assert_null(brg_tensor_grad(x));
    assert_null(brg_tensor_grad(w));
}

static void test_engine__grad_prunes_what_no_input_needs(void **state)
{
    (void)state;
    int runs = 0;
    brg_tensor *x = leaf_from(3, BRG_SCALAR), *w = leaf_from(4, BRG_SCALAR);
    brg_tensor *side = brg_mul(w, w);
    assert_brg_ok(brg_tensor_add_hook(NULL, side, must_not_run, &runs, NULL));
    brg_tensor *y = brg_mul(x, side), *grad;
    assert_brg_ok(brg_grad(&grad, &y, 1, &x, 1, NULL));
    assert_float_equal(item(grad), 16, 0);
    assert_int_equal(runs, 0);
}

static void test_engine__grad_of_an_unrelated_input_is_null(void **state)
{
    (void)state;
    brg_tensor *x = leaf_from(3, BRG_SCALAR), *w = leaf_from(4, BRG_SCALAR);
    brg_tensor *y = brg_mul(x, x), *grad = y;
    assert_brg_ok(brg_grad(&grad, &y, 1, &w, 1, NULL));
    assert_null(grad);
}

static void test_engine__backward_into_some_leaves(void **state)
{
    (void)state;
    brg_tensor *x = leaf_from(3, BRG_SCALAR), *w = leaf_from(4, BRG_SCALAR);
    brg_tensor *y = brg_mul(x, w);
    brg_backward_options options = BRG_BACKWARD_OPTIONS_INIT;
    options.inputs = &w;
    options.n_inputs = 1;
    assert_brg_ok(brg_backward_with(&y, 1, &options));
    assert_float_equal(item(brg_tensor_grad(w)), 3, 0);
    assert_null(brg_tensor_grad(x));
}

static void test_engine__create_graph_gives_higher_orders(void **state)
{
    (void)state;
    brg_tensor *x = leaf_from(2, BRG_SCALAR);
    brg_tensor *y = brg_mul(brg_mul(x, x), x);
    const double expected[] = {12, 12, 6, 0};
    brg_backward_options options = BRG_BACKWARD_OPTIONS_INIT;
    options.create_graph = true;
    for (int order = 0; order < 3; order++) {
        brg_tensor *grad;
        assert_brg_ok(brg_grad(&grad, &y, 1, &x, 1, &options));
        assert_float_equal(item(grad), expected[order], 1e-6);
        y = grad;
    }
}

static void test_engine__reuse_of_one_output_twice(void **state)
{
    (void)state;
    brg_tensor *x = leaf_from(2, BRG_SCALAR);
    brg_tensor *y = brg_mul(x, x);
    brg_tensor *outputs[] = {y, y, x};
    assert_brg_ok(brg_backward_with(outputs, 3, NULL));
    assert_float_equal(item(brg_tensor_grad(x)), 9, 0);
}

/* ---- Bad input ------------------------------------------------------------------- */

static void test_engine__bad_calls_are_named(void **state)
{
    (void)state;
    brg_tensor *x = leaf_from(2, BRG_SHAPE(3));
    brg_tensor *plain = brg_zeros(BRG_DTYPE_F32, BRG_SCALAR);
    assert_brg_fails_with(brg_backward(plain), BRG_ERR_STATE,
                          "does not require grad");
    assert_brg_fails_with(brg_backward(brg_mul(x, x)), BRG_ERR_SHAPE,
                          "only for scalar outputs");
    brg_backward_options options = BRG_BACKWARD_OPTIONS_INIT;
    brg_tensor *wrong = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(2));
    options.grad_outputs = &wrong;
    brg_tensor *y = brg_mul(x, x);
    assert_brg_fails_with(brg_backward_with(&y, 1, &options), BRG_ERR_SHAPE,
                          "grad_outputs[0]");
    brg_tensor *grad;
    assert_brg_fails_with(brg_grad(&grad, &y, 1, &x, 0, NULL), BRG_ERR_ARG,
                          "requires non-empty inputs");
    brg_error_clear();
    assert_int_equal(
        brg_backward(brg_mul(x, brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(7)))),
        BRG_ERR_SHAPE); /* the op's own error comes through */
}

static void test_engine__changing_a_saved_tensor_is_detected(void **state)
{
    (void)state;
    brg_tensor *x = leaf_from(2, BRG_SCALAR);
    brg_tensor *h = brg_mul_scalar(x, 2), *y = brg_mul(h, h);
    bool mode = brg_grad_mode_set(false);
    assert_brg_ok(brg_fill_(brg_detach(h), 0));
    brg_grad_mode_set(mode);
    assert_brg_fails_with(brg_backward(y), BRG_ERR_MODIFIED,
                          "at version 1; expected version 0");
}

static void test_engine__no_grad_records_nothing(void **state)
{
    (void)state;
    brg_tensor *x = leaf_from(2, BRG_SCALAR);
    bool mode = brg_grad_mode_set(false);
    assert_false(brg_requires_grad(brg_mul(x, x)));
    brg_grad_mode_set(mode);
    assert_true(brg_requires_grad(brg_mul(x, x)));
    assert_string_equal(brg_grad_fn_name(brg_mul(x, x)), "mul");
    assert_string_equal(brg_grad_fn_name(x), "accumulate");
}

/* ---- Backward inside backward, and beside it ---------------------------------------- */

static brg_status inner_backward(brg_tensor *grad, brg_tensor **replacement,
                                 void *user)
{
    (void)grad;
    (void)replacement;
    brg_tensor *x = user;
    bool mode = brg_grad_mode_set(true);
    brg_status status = brg_backward(brg_mul(x, x));
    brg_grad_mode_set(mode);
    return status;
}

static void test_engine__backward_inside_a_hook(void **state)
{
    (void)state;
    brg_tensor *inner = leaf_from(5, BRG_SCALAR), *x = leaf_from(2, BRG_SCALAR);
    brg_tensor *h = brg_mul_scalar(x, 3);
    assert_brg_ok(brg_tensor_add_hook(NULL, h, inner_backward, inner, NULL));
    assert_brg_ok(brg_backward(h));
    assert_float_equal(item(brg_tensor_grad(inner)), 10, 0);
    assert_float_equal(item(brg_tensor_grad(x)), 3, 0);
}

#define N_THREADS 4
#define N_ROUNDS 200

static void *own_backward(void *shared)
{
    brg_scope *scope = brg_scope_begin();
    brg_status status = scope ? BRG_OK : BRG_ERR_NOMEM;
    for (int i = 0; status == BRG_OK && i < N_ROUNDS; i++)
        status = brg_backward(brg_mul_scalar((brg_tensor *)shared, 2));
    brg_scope_end(scope);
    return (void *)(intptr_t)status;
}

static void test_engine__threads_share_a_leaf(void **state)
{
    (void)state;
    brg_tensor *x = leaf_from(2, BRG_SCALAR);
    pthread_t threads[N_THREADS];
    for (int i = 0; i < N_THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, own_backward, x), 0);
    for (int i = 0; i < N_THREADS; i++) {
        void *status;
        pthread_join(threads[i], &status);
        assert_int_equal((int)(intptr_t)status, BRG_OK);
    }
    assert_float_equal(item(brg_tensor_grad(x)), 2.0 * N_THREADS * N_ROUNDS, 0);
}

/* Each backward starts another in its hook, `left` times. */
static brg_status deeper(brg_tensor *grad, brg_tensor **replacement, void *user)
{
    (void)grad;
    (void)replacement;
    int *left = user;
    if (--*left == 0)
        return BRG_OK;
    bool mode = brg_grad_mode_set(true);
    brg_tensor *x = leaf_from(1, BRG_SCALAR);
    brg_status status = brg_tensor_add_hook(NULL, x, deeper, user, NULL);
    if (status == BRG_OK)
        status = brg_backward(brg_mul(x, x));
    brg_grad_mode_set(mode);
    return status;
}

static brg_status backward_levels(int n)
{
    brg_tensor *x = leaf_from(1, BRG_SCALAR);
    assert_brg_ok(brg_tensor_add_hook(NULL, x, deeper, &n, NULL));
    return brg_backward(brg_mul(x, x));
}

static void test_engine__depth_of_backwards_is_guarded(void **state)
{
    (void)state;
    assert_brg_ok(backward_levels(60));
    assert_brg_fails_with(backward_levels(61), BRG_ERR_STATE,
                          "backward called from inside backward 60 levels");
    assert_true(brg_grad_mode());
    assert_brg_ok(backward_levels(60)); /* nothing of it is left */
}

/* ---- A steady step ----------------------------------------------------------------- */

static brg_status step(brg_tensor *x, brg_tensor *w)
{
    brg_scope *scope = brg_scope_begin();
    brg_status status =
        brg_backward(brg_sum_all(brg_tanh(brg_matmul(brg_mul(x, x), w))));
    brg_scope_end(scope);
    return status;
}

static void test_engine__steady_step_does_not_allocate(void **state)
{
    (void)state;
#if defined(__SANITIZE_ADDRESS__)
    skip(); /* the caches are off there */
#endif
    brg_tensor *x = leaf_from(1, BRG_SHAPE(8, 16));
    brg_tensor *w = leaf_from(0, BRG_SHAPE(16, 4));
    for (int i = 0; i < 3; i++)
        assert_brg_ok(step(x, w));
    brg_memory_stats before, after;
    brg_memory_get_stats(&before);
    for (int i = 0; i < 10; i++)
        assert_brg_ok(step(x, w));
    brg_memory_get_stats(&after);
    assert_int_equal(after.n_allocs - before.n_allocs, 0);
    assert_int_equal(after.in_use, before.in_use);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_engine__product_rule),
        scoped_test(test_engine__fan_in_is_summed),
        scoped_test(test_engine__gradients_accumulate_over_backwards),
        scoped_test(test_engine__broadcast_gradient_is_summed),
        scoped_test(test_engine__accumulate_runs_the_moment_it_is_ready),
        scoped_test(test_engine__later_recorded_nodes_run_first),
        scoped_test(test_engine__second_backward_needs_retain_graph),
        scoped_test(test_engine__saved_values_are_freed_as_their_node_is_done),
        scoped_test(test_engine__deep_graph_is_freed_without_recursion),
        scoped_test(test_engine__grad_leaves_grad_fields_alone),
        scoped_test(test_engine__grad_prunes_what_no_input_needs),
        scoped_test(test_engine__grad_of_an_unrelated_input_is_null),
        scoped_test(test_engine__backward_into_some_leaves),
        scoped_test(test_engine__create_graph_gives_higher_orders),
        scoped_test(test_engine__reuse_of_one_output_twice),
        scoped_test(test_engine__bad_calls_are_named),
        scoped_test(test_engine__changing_a_saved_tensor_is_detected),
        scoped_test(test_engine__no_grad_records_nothing),
        scoped_test(test_engine__backward_inside_a_hook),
        scoped_test(test_engine__threads_share_a_leaf),
        scoped_test(test_engine__depth_of_backwards_is_guarded),
        scoped_test(test_engine__steady_step_does_not_allocate),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
