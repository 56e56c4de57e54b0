/* SPDX-License-Identifier: Apache-2.0
 * Hooks of leaves in functions compiled whole: they run in each call, and what
 * they change is seen. */
#include "tests/autograd/graph.h"
#include "tests/support/values.h"

typedef struct seen {
    int n_hooks, n_posts, n_finals;
} seen;

static brg_status on_grad(brg_tensor *grad, brg_tensor **replacement,
                          void *user)
{
    ((seen *)user)->n_hooks++;
    *replacement = brg_mul_scalar(grad, 10);
    return *replacement ? BRG_OK : brg_error_code();
}

static brg_status on_final(void *user)
{
    ((seen *)user)->n_finals++;
    return BRG_OK;
}

static brg_status on_accumulated(brg_tensor *leaf, void *user)
{
    ((seen *)user)->n_posts++;
    assert_non_null(brg_tensor_grad(leaf));
    return brg_queue_final_callback(on_final, user);
}

FUNCTION(trains)
{
    out[0] = brg_sum_all(brg_mul(in[0], user));
    return brg_backward(out[0]);
}

/* They come and go without a new plan. */
static void test_whole_hooks__of_leaves_run_in_a_step(void **state)
{
    (void)state;
    seen s = {0};
    brg_tensor *w = leaf_from(2, BRG_SHAPE(3, 4)), *y;
    brg_tensor *x = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(3, 4));
    brg_compiled *c = compile_whole(trains, w);
    brg_hook *hooks[2];
    assert_brg_ok(brg_compiled_call(c, &x, 1, &y, 1));
    assert_float_equal(value_at(brg_tensor_grad(w), 0), 1, 0);
    assert_false(brg_requires_grad(y));
    assert_brg_ok(brg_tensor_add_hook(&hooks[0], w, on_grad, &s, NULL));
    assert_brg_ok(brg_tensor_add_post_accumulate_hook(
        &hooks[1], w, on_accumulated, &s, NULL));
    assert_brg_ok(brg_compiled_call(c, &x, 1, &y, 1));
    assert_float_equal(value_at(brg_tensor_grad(w), 0), 11, 0);
    assert_int_equal(s.n_hooks, 1);
    assert_int_equal(s.n_posts, 1);
    assert_int_equal(s.n_finals, 1);
    for (int i = 0; i < 2; i++)
        brg_hook_remove(hooks[i]);
    assert_brg_ok(brg_compiled_call(c, &x, 1, &y, 1));
    assert_float_equal(value_at(brg_tensor_grad(w), 0), 12, 0);
    assert_int_equal(s.n_hooks, 1);
    assert_int_equal(compile_stats().functions, 1);
    brg_compiled_destroy(c);
}

static brg_status fails(brg_tensor *leaf, void *user)
{
    (void)leaf;
    ((seen *)user)->n_posts++;
    return brg_error_set(BRG_ERR_CALLBACK, __FILE__, __LINE__, "as asked");
}

static brg_status halve_leaf(brg_tensor *leaf, void *user)
{
    (void)user;
    return brg_mul_scalar_(leaf, 0.5);
}

FUNCTION(multiplies)
{
    brg_tensor *const *leaves = user;
    out[0] = brg_mul(in[0], brg_matmul(leaves[0], leaves[1]));
    return out[0] ? BRG_OK : brg_error_code();
}

FUNCTION(trains_two)
{
    BRG_TRY(multiplies(in, 1, out, 1, user));
    out[0] = brg_sum_all(out[0]);
    return brg_backward(out[0]);
}

/* What a hook makes of its leaf is read by no gradient of this backward: in a
 * step, and where the plan of a backward holds a segment's. */
static void check_leaf_hooks(brg_compiled_fn fn, bool is_step, int changed)
{
    double grads[2][2] = {{0}}, after[2] = {0};
    for (int k = 0; k < 2; k++) {
        brg_tensor *leaves[2] = {leaf_from(2, BRG_SHAPE(3, 4)),
                                 leaf_from(3, BRG_SHAPE(4, 3))};
        brg_tensor *x = brg_full(BRG_DTYPE_F32, BRG_SHAPE(3, 3), 5), *y;
        brg_compiled *c = k ? compile_whole(fn, leaves) : NULL;
        assert_brg_ok(brg_tensor_add_post_accumulate_hook(
            NULL, leaves[changed], halve_leaf, NULL, NULL));
        assert_brg_ok(c ? brg_compiled_call(c, &x, 1, &y, 1)
                        : fn(&x, 1, &y, 1, leaves));
        if (!is_step)
            assert_brg_ok(backward_as(brg_sum_all(y), k));
        for (int i = 0; i < 2; i++)
            grads[k][i] = value_at(brg_tensor_grad(leaves[i]), 7);
        after[k] = value_at(leaves[changed], 7);
        brg_compiled_destroy(c);
    }
    for (int i = 0; i < 2; i++)
        assert_true(grads[0][i] == grads[1][i]);
    assert_true(after[0] == after[1]);
}

static void test_whole_hooks__that_change_leaves_of_a_step(void **state)
{
    (void)state;
    for (int changed = 0; changed < 2; changed++)
        check_leaf_hooks(trains_two, true, changed);
    assert_int_equal(compile_stats().functions, 2);
}

static void test_whole_hooks__that_change_leaves_of_a_segment(void **state)
{
    (void)state;
    for (int changed = 0; changed < 2; changed++)
        check_leaf_hooks(multiplies, false, changed);
    assert_int_equal(compile_stats().functions, 2);
    assert_int_equal(compile_stats().captures, 2);
}

static void test_whole_hooks__a_failed_step_can_be_called_again(void **state)
{
    (void)state;
    seen s = {0};
    brg_tensor *w = leaf_from(2, BRG_SHAPE(3, 4)), *y;
    brg_tensor *x = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(3, 4));
    brg_compiled *c = compile_whole(trains, w);
    brg_hook *hook;
    assert_brg_ok(
        brg_tensor_add_post_accumulate_hook(&hook, w, fails, &s, NULL));
    assert_brg_fails_with(brg_compiled_call(c, &x, 1, &y, 1), BRG_ERR_CALLBACK,
                          "as asked");
    assert_null(y);
    brg_hook_remove(hook);
    assert_brg_fails(brg_queue_final_callback(on_final, &s), BRG_ERR_STATE);
    assert_brg_ok(brg_compiled_call(c, &x, 1, &y, 1));
    brg_tensor *z = brg_sum_all(brg_mul(w, w)); /* and the engine is whole */
    assert_brg_ok(brg_backward(z));
    brg_compiled_destroy(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_whole_hooks__of_leaves_run_in_a_step),
        scoped_test(test_whole_hooks__that_change_leaves_of_a_segment),
        scoped_test(test_whole_hooks__that_change_leaves_of_a_step),
        scoped_test(test_whole_hooks__a_failed_step_can_be_called_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
