/* SPDX-License-Identifier: Apache-2.0
 * A compiled backward that fails at any point leaves a graph that can be used
 * eagerly, and nothing behind: out of memory at each allocation of a capture, a
 * specialisation and a run; each step of a capture of all that a graph may have;
 * scopes and resets where they must not be. */
#include "tests/compile/failing_step.h"
#include "tests/compile/functions.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/plain_pack.h"

/* Two leaves, products and reductions, a hook. */
static brg_status doubled(brg_tensor *grad, brg_tensor **replacement,
                          void *user)
{
    (void)user;
    *replacement = brg_mul_scalar(grad, 2);
    return *replacement ? BRG_OK : brg_error_code();
}

static brg_tensor *loss_of(brg_tensor *x, brg_tensor *w)
{
    brg_tensor *h = brg_tanh(brg_linear(x, w, NULL));
    assert_brg_ok(brg_tensor_add_hook(NULL, h, doubled, NULL, NULL));
    return assert_brg_some(brg_sum_all(brg_mul(h, h)));
}

static void expect_grads(const brg_tensor *w, const float *want)
{
    assert_non_null(brg_tensor_grad(w));
    for (int64_t i = 0; i < 6; i++)
        assert_float_equal(element(brg_tensor_grad(w), i), want[i], 0);
}

/* One compiled backward with n allocations; true if it went through. */
static bool try_with(int64_t n, bool is_new_size, const float *want)
{
    brg_scope *scope = brg_scope_begin();
    brg_tensor *w = leaf_from(0.1, BRG_SHAPE(2, 3));
    brg_tensor *x = leaf_from(-1, BRG_SHAPE(4, 3));
    brg_backward_options keep = BRG_BACKWARD_OPTIONS_INIT;
    keep.retain_graph = true;
    int token;
    assert_brg_ok(brg_compile_begin(&token, NULL));
    if (is_new_size) { /* the plan is there, for another size */
        brg_tensor *other = leaf_from(-1, BRG_SHAPE(5, 3));
        assert_brg_ok(brg_backward(loss_of(other, w)));
        assert_brg_ok(brg_tensor_set_grad(w, NULL));
    }
    brg_tensor *loss = loss_of(x, w);
    fail_alloc_arm(n);
    brg_status status = brg_backward_with(&loss, 1, &keep);
    int64_t n_refused = fail_alloc_disarm();
    if (n_refused > 0)
        assert_int_equal(status, BRG_ERR_NOMEM);
    else
        assert_brg_ok(status);
    assert_brg_ok(brg_compile_end(token));
    if (status == BRG_OK)
        expect_grads(w, want);
    /* Eagerly, on the same graph. */
    assert_brg_ok(brg_tensor_set_grad(w, NULL));
    assert_brg_ok(brg_backward(loss));
    expect_grads(w, want);
    brg_scope_end(scope);
    return status == BRG_OK;
}

static void sweep(bool is_new_size)
{
    float want[6];
    brg_tensor *w = leaf_from(0.1, BRG_SHAPE(2, 3));
    brg_tensor *x = leaf_from(-1, BRG_SHAPE(4, 3));
    assert_brg_ok(brg_backward(loss_of(x, w)));
    assert_brg_ok(brg_tensor_read(brg_tensor_grad(w), want, sizeof want));
    int64_t n = 0;
    do
        assert_brg_ok(brg_compile_reset());
    while (!try_with(n++, is_new_size, want) && n < 2000);
    assert_in_range(n, 10, 1999); /* it did fail at many points */
}

static void test_failures__out_of_memory_in_a_capture(void **state)
{
    (void)state;
    sweep(false);
}

static void test_failures__out_of_memory_in_a_specialisation(void **state)
{
    (void)state;
    sweep(true);
}

/* ---- Each step of a capture ------------------------------------------------------- */

static brg_status replaces_first(brg_tensor **grads, size_t n, void *user)
{
    (void)n;
    return doubled(grads[0], &grads[0], user);
}

static brg_status replaces_result(brg_tensor **grad_in, size_t n_in,
                                  brg_tensor *const *grad_out, size_t n_out,
                                  void *user)
{
    (void)grad_out;
    (void)n_out;
    return replaces_first(grad_in, n_in, user);
}

/* What tensor hooks and post-hooks are in a plan. */
static brg_status doubles_symbol(brg_tensor **grads, size_t n,
                                 brg_tensor *const *others, size_t n_others,
                                 void *user)
{
    (void)others;
    (void)n_others;
    return replaces_first(grads, n, user);
}

static int n_arrived;

static brg_status counts(brg_tensor *leaf, void *user)
{
    (void)leaf;
    (void)user;
    n_arrived++;
    return BRG_OK;
}

static brg_tensor *squared(brg_tensor *x, brg_function_tracing tracing)
{
    brg_function *f =
        make_function("Square", 1, square_forward, square_backward, tracing);
    brg_value args[] = {brg_value_tensor(x)};
    brg_tensor *y = assert_brg_some(brg_function_call(f, args, 1));
    brg_function_release(f);
    return y;
}

/* Hooks of each kind, called and captured; functions, called and captured;
 * packed tensors; broadcasting; a gradient from two sides. */
static brg_tensor *rich_loss(brg_tensor *x, brg_tensor *w)
{
    brg_node *node;
    brg_hook *hook;
    brg_pack_hooks packing = BRG_PACK_HOOKS_INIT;
    packing.pack = plain_pack;
    packing.unpack = plain_unpack;
    packing.free = plain_free;
    brg_tensor *h = brg_tanh(brg_linear(x, w, NULL));
    assert_brg_ok(brg_tensor_add_hook(NULL, h, doubled, NULL, NULL));
    assert_brg_ok(brg_tensor_node(&node, h));
    assert_brg_ok(
        brg_node_add_pre_hook(NULL, node, replaces_first, NULL, NULL));
    assert_brg_ok(
        brg_node_add_post_hook(&hook, node, replaces_result, NULL, NULL));
    assert_brg_ok(brg_hook_set_capture(hook, doubles_symbol, 0));
    brg_hook_release(hook);
    brg_node_release(node);
    brg_tensor *s = squared(h, BRG_FUNCTION_TRACEABLE);
    s = brg_add(s, squared(h, BRG_FUNCTION_OPAQUE));
    assert_brg_ok(brg_retain_grad(s));
    assert_brg_ok(brg_pack_hooks_push(&packing));
    s = brg_mul(s, brg_sum(h, 1, (const int[]){1}, true));
    assert_brg_ok(brg_pack_hooks_pop());
    return assert_brg_some(brg_sum_all(brg_exp(s)));
}

static void expect_backward(brg_tensor *loss, brg_tensor *w, bool keeps,
                            const float *want)
{
    brg_backward_options options = BRG_BACKWARD_OPTIONS_INIT;
    options.retain_graph = keeps;
    assert_brg_ok(brg_tensor_set_grad(w, NULL));
    n_arrived = 0;
    assert_brg_ok(brg_backward_with(&loss, 1, &options));
    assert_int_equal(n_arrived, 1);
    expect_grads(w, want);
}

/* True if step n was there and failed; the graph is as it was. */
static bool fails_at(int n, float *want)
{
    brg_scope *scope = brg_scope_begin();
    brg_tensor *w = leaf_from(0.01, BRG_SHAPE(2, 3));
    brg_tensor *x = leaf_from(-0.1, BRG_SHAPE(4, 3));
    assert_brg_ok(
        brg_tensor_add_post_accumulate_hook(NULL, w, counts, NULL, NULL));
    brg_tensor *loss = rich_loss(x, w);
    int token;
    assert_brg_ok(brg_compile_begin(&token, NULL));
    n_arrived = 0;
    fail_step(n);
    brg_backward_options keep = BRG_BACKWARD_OPTIONS_INIT;
    keep.retain_graph = true;
    brg_status status = brg_backward_with(&loss, 1, &keep);
    bool has_failed = has_step_failed();
    if (status == BRG_OK) { /* of a hook's own capture: the hook is called */
        assert_int_equal(compile_stats().captures + compile_stats().fallbacks,
                         1);
        assert_int_equal(n_arrived, 1);
        expect_grads(w, want);
    } else {
        assert_true(has_failed);
        assert_int_equal(status, BRG_ERR_CALLBACK);
        assert_non_null(strstr(brg_error_message(), "this step fails"));
        assert_int_equal(n_arrived, 0); /* nothing ran, nothing arrived */
        assert_null(brg_tensor_grad(w));
        assert_int_equal(compile_stats().captures, 0);
    }
    assert_brg_ok(brg_compile_end(token));
    expect_backward(loss, w, true, want);
    assert_brg_ok(brg_compile_reset());
    assert_brg_ok(brg_compile_begin(&token, NULL));
    expect_backward(loss, w, true, want); /* captured now */
    assert_int_equal(compile_stats().captures, 1);
    assert_int_equal(compile_stats().fallbacks, 0);
    assert_brg_ok(brg_compile_end(token));
    expect_backward(loss, w, false, want);
    brg_scope_end(scope);
    return has_failed;
}

static void test_failures__at_each_step_of_a_capture(void **state)
{
    (void)state;
    float want[6];
    brg_scope *scope = brg_scope_begin();
    brg_tensor *w = leaf_from(0.01, BRG_SHAPE(2, 3));
    brg_tensor *x = leaf_from(-0.1, BRG_SHAPE(4, 3));
    assert_brg_ok(brg_backward(rich_loss(x, w)));
    assert_brg_ok(brg_tensor_read(brg_tensor_grad(w), want, sizeof want));
    brg_scope_end(scope);
    assert_true(fails_at(0, want)); /* what stays for good is there */
    int n = 0;
    bool has_failed;
    do {
        uint64_t before = bytes_in_use();
        has_failed = fails_at(n++, want);
        assert_int_equal(bytes_in_use(), before);
    } while (has_failed && n < 1000);
    assert_in_range(n, 40, 999); /* it did fail at many steps */
}

/* ---- Where they must not be ------------------------------------------------------- */

static brg_status resets(brg_tensor *grad, brg_tensor **replacement, void *user)
{
    (void)grad;
    (void)replacement;
    *(brg_status *)user = brg_compile_reset();
    return BRG_OK;
}

static void test_failures__no_reset_while_a_plan_runs(void **state)
{
    (void)state;
    brg_status status = BRG_OK;
    brg_tensor *x = leaf_from(1, BRG_SHAPE(3));
    assert_brg_ok(brg_tensor_add_hook(NULL, x, resets, &status, NULL));
    int scope = begin_with((brg_compile_options)BRG_COMPILE_OPTIONS_INIT);
    assert_brg_ok(brg_backward(brg_sum_all(chain(x, 2, 0))));
    assert_int_equal(status, BRG_ERR_STATE);
    assert_true(brg_compile_is_on());
    assert_int_equal(compile_stats().captures, 1);
    assert_brg_ok(brg_compile_end(scope));
}

int main(void)
{
    fail_alloc_install();
    const struct CMUnitTest tests[] = {
        scoped_test(test_failures__out_of_memory_in_a_capture),
        scoped_test(test_failures__out_of_memory_in_a_specialisation),
        scoped_test(test_failures__at_each_step_of_a_capture),
        scoped_test(test_failures__no_reset_while_a_plan_runs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
