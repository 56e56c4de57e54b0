/* SPDX-License-Identifier: Apache-2.0
 * Hooks: order, replacement, removal, payloads, failures. */
#include <brigade/function.h>

#include "tests/autograd/graph.h"

typedef struct recorder {
    char text[256];
} recorder;

typedef struct step {
    recorder *log;
    const char *name;
    double factor;   /* of a replacement; 0: none */
    brg_status fail; /* returned */
    brg_hook *self;  /* removed from inside */
} step;

static void note(step *s)
{
    size_t n = strlen(s->log->text);
    snprintf(s->log->text + n, sizeof s->log->text - n, "%s ", s->name);
}

static brg_status outcome(step *s)
{
    if (s->self) {
        brg_hook_remove(s->self);
        s->self = NULL;
    }
    return s->fail
               ? brg_error_set(s->fail, __FILE__, __LINE__, "hook %s", s->name)
               : BRG_OK;
}

static brg_status on_grad(brg_tensor *grad, brg_tensor **replacement,
                          void *user)
{
    step *s = user;
    note(s);
    if (s->factor != 0)
        *replacement = brg_mul_scalar(grad, s->factor);
    return outcome(s);
}

static brg_status on_accumulated(brg_tensor *leaf, void *user)
{
    step *s = user;
    note(s);
    if (s->factor != 0)
        BRG_TRY(brg_mul_scalar_(brg_tensor_grad(leaf), s->factor));
    return outcome(s);
}

static brg_status on_pre(brg_tensor **grads, size_t n, void *user)
{
    step *s = user;
    note(s);
    for (size_t i = 0; i < n && s->factor != 0; i++)
        if (grads[i])
            grads[i] = brg_mul_scalar(grads[i], s->factor);
    return outcome(s);
}

static brg_status on_post(brg_tensor **grad_in, size_t n_in,
                          brg_tensor *const *grad_out, size_t n_out, void *user)
{
    (void)grad_out;
    (void)n_out;
    step *s = user;
    note(s);
    for (size_t i = 0; i < n_in && s->factor != 0; i++)
        if (grad_in[i])
            grad_in[i] = brg_mul_scalar(grad_in[i], s->factor);
    return outcome(s);
}

static void test_hooks__order_at_a_leaf(void **state)
{
    (void)state;
    recorder log = {""};
    step tensor = {.log = &log, .name = "tensor", .factor = 2};
    step pre = {.log = &log, .name = "pre", .factor = 3};
    step done = {.log = &log, .name = "accumulated", .factor = 5};
    step post = {.log = &log, .name = "post"};
    brg_tensor *x = leaf_from(4, BRG_SCALAR);
    brg_node *node;
    assert_brg_ok(brg_tensor_node(&node, x));
    assert_brg_ok(brg_node_add_post_hook(NULL, node, on_post, &post, NULL));
    assert_brg_ok(brg_tensor_add_post_accumulate_hook(NULL, x, on_accumulated,
                                                      &done, NULL));
    assert_brg_ok(brg_node_add_pre_hook(NULL, node, on_pre, &pre, NULL));
    assert_brg_ok(brg_tensor_add_hook(NULL, x, on_grad, &tensor, NULL));
    assert_brg_ok(brg_backward(brg_mul_scalar(x, 1)));
    assert_string_equal(log.text, "tensor pre accumulated post ");
    assert_float_equal(item(brg_tensor_grad(x)), 30, 0);
    brg_node_release(node);
}

static void test_hooks__order_at_a_node(void **state)
{
    (void)state;
    recorder log = {""};
    step first = {.log = &log, .name = "first", .factor = 2};
    step second = {.log = &log, .name = "second", .factor = -1};
    step pre = {.log = &log, .name = "pre", .factor = 3};
    step post = {.log = &log, .name = "post", .factor = 5};
    brg_tensor *x = leaf_from(4, BRG_SCALAR), *y = brg_mul_scalar(x, 7);
    brg_node *node;
    assert_brg_ok(brg_tensor_node(&node, y));
    assert_string_equal(brg_node_name(node), "mul_scalar");
    assert_brg_ok(brg_node_add_post_hook(NULL, node, on_post, &post, NULL));
    assert_brg_ok(brg_node_add_pre_hook(NULL, node, on_pre, &pre, NULL));
    assert_brg_ok(brg_tensor_add_hook(NULL, y, on_grad, &first, NULL));
    assert_brg_ok(brg_tensor_add_hook(NULL, y, on_grad, &second, NULL));
    brg_node_release(node);
    assert_brg_ok(brg_retain_grad(y));
    assert_brg_ok(brg_backward(y));
    assert_string_equal(log.text, "first second pre post ");
    assert_float_equal(item(brg_tensor_grad(y)), -2, 0); /* before pre-hooks */
    assert_float_equal(item(brg_tensor_grad(x)), -2.0 * 3 * 7 * 5, 0);
}

static void test_hooks__remove_by_handle(void **state)
{
    (void)state;
    recorder log = {""};
    step a = {.log = &log, .name = "a"}, b = {.log = &log, .name = "b"};
    brg_tensor *x = leaf_from(4, BRG_SCALAR);
    brg_hook *hook;
    assert_brg_ok(brg_tensor_add_hook(&hook, x, on_grad, &a, NULL));
    assert_brg_ok(brg_tensor_add_hook(NULL, x, on_grad, &b, NULL));
    assert_brg_ok(brg_backward(brg_mul(x, x)));
    brg_hook_remove(hook);
    assert_brg_ok(brg_backward(brg_mul(x, x)));
    assert_string_equal(log.text, "a b b ");
}

static void test_hooks__remove_itself_while_running(void **state)
{
    (void)state;
    recorder log = {""};
    step a = {.log = &log, .name = "a"}, b = {.log = &log, .name = "b"};
    step c = {.log = &log, .name = "c"};
    brg_tensor *x = leaf_from(4, BRG_SCALAR);
    assert_brg_ok(brg_tensor_add_hook(&a.self, x, on_grad, &a, NULL));
    assert_brg_ok(brg_tensor_add_hook(NULL, x, on_grad, &b, NULL));
    assert_brg_ok(brg_tensor_add_hook(&c.self, x, on_grad, &c, NULL));
    assert_brg_ok(brg_backward(brg_mul(x, x)));
    assert_brg_ok(brg_backward(brg_mul(x, x)));
    assert_string_equal(log.text, "a b c b ");
}

static void count_destroyed(void *user)
{
    ++*(int *)user;
}

static brg_status do_nothing(brg_tensor *grad, brg_tensor **replacement,
                             void *user)
{
    (void)grad;
    (void)replacement;
    (void)user;
    return BRG_OK;
}

static void test_hooks__payload_is_destroyed_once(void **state)
{
    (void)state;
    int n_removed = 0, n_died = 0, n_node = 0;
    brg_scope *scope = brg_scope_begin();
    brg_tensor *x = leaf_from(4, BRG_SCALAR), *y = brg_mul(x, x);
    brg_hook *hook, *kept;
    assert_brg_ok(
        brg_tensor_add_hook(&hook, x, do_nothing, &n_removed, count_destroyed));
    assert_brg_ok(
        brg_tensor_add_hook(&kept, x, do_nothing, &n_died, count_destroyed));
    assert_brg_ok(
        brg_tensor_add_hook(NULL, y, do_nothing, &n_node, count_destroyed));
    brg_hook_remove(hook);
    assert_int_equal(n_removed, 1);
    brg_hook_release(kept);
    assert_int_equal(n_died, 0);
    brg_scope_end(scope);
    assert_int_equal(n_removed, 1);
    assert_int_equal(n_died, 1);
    assert_int_equal(n_node, 1);
}

static void test_hooks__handle_may_outlive_its_owner(void **state)
{
    (void)state;
    brg_scope *scope = brg_scope_begin();
    int n = 0;
    brg_tensor *x = leaf_from(4, BRG_SCALAR);
    brg_hook *hook;
    assert_brg_ok(
        brg_tensor_add_hook(&hook, x, do_nothing, &n, count_destroyed));
    brg_scope_end(scope);
    brg_hook_remove(hook);
    assert_int_equal(n, 1);
}

static void
test_hooks__failure_ends_backward_and_keeps_what_arrived(void **state)
{
    (void)state;
    recorder log = {""};
    step bad = {.log = &log, .name = "bad", .fail = BRG_ERR_CALLBACK};
    brg_tensor *w1 = leaf_from(2, BRG_SCALAR), *w2 = leaf_from(3, BRG_SCALAR);
    brg_tensor *h = brg_mul(w1, w1), *y = brg_mul(h, w2);
    brg_hook *hook;
    assert_brg_ok(brg_tensor_add_hook(&hook, h, on_grad, &bad, NULL));
    brg_backward_options keep = BRG_BACKWARD_OPTIONS_INIT;
    keep.retain_graph = true;
    assert_brg_fails_with(brg_backward_with(&y, 1, &keep), BRG_ERR_CALLBACK,
                          "hook bad");
    assert_float_equal(item(brg_tensor_grad(w2)), 4, 0);
    assert_null(brg_tensor_grad(w1));
    brg_hook_remove(hook); /* and the engine still works */
    assert_brg_ok(brg_backward(y));
    assert_float_equal(item(brg_tensor_grad(w1)), 12, 0);
}

static brg_status wrong_size(brg_tensor *grad, brg_tensor **replacement,
                             void *user)
{
    (void)grad;
    (void)user;
    *replacement = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(2));
    return BRG_OK;
}

static brg_status wrong_dtype(brg_tensor *grad, brg_tensor **replacement,
                              void *user)
{
    (void)user;
    *replacement = brg_cast(grad, BRG_DTYPE_F64);
    return BRG_OK;
}

static brg_status drop_value(brg_tensor **grads, size_t n, void *user)
{
    (void)n;
    (void)user;
    grads[0] = NULL;
    return BRG_OK;
}

static void test_hooks__bad_replacements_are_named(void **state)
{
    (void)state;
    brg_tensor *x = leaf_from(2, BRG_SCALAR);
    brg_hook *hook;
    assert_brg_ok(brg_tensor_add_hook(&hook, x, wrong_size, NULL, NULL));
    assert_brg_fails_with(brg_backward(brg_mul(x, x)), BRG_ERR_CALLBACK,
                          "has changed the size of value");
    brg_hook_remove(hook);
    assert_brg_ok(brg_tensor_add_hook(&hook, x, wrong_dtype, NULL, NULL));
    assert_brg_fails_with(brg_backward(brg_mul(x, x)), BRG_ERR_CALLBACK,
                          "has changed the type of value");
    brg_hook_remove(hook);
    brg_node *node;
    assert_brg_ok(brg_tensor_node(&node, x));
    assert_brg_ok(brg_node_add_pre_hook(&hook, node, drop_value, NULL, NULL));
    assert_brg_fails_with(brg_backward(brg_mul(x, x)), BRG_ERR_CALLBACK,
                          "incorrect number of values");
    brg_hook_remove(hook);
    brg_node_release(node);
    assert_null(brg_tensor_grad(x));
}

static void test_hooks__need_a_tensor_that_requires_gradients(void **state)
{
    (void)state;
    brg_tensor *plain = brg_zeros(BRG_DTYPE_F32, BRG_SCALAR);
    brg_tensor *y = brg_mul_scalar(leaf_from(1, BRG_SCALAR), 2);
    assert_brg_fails_with(
        brg_tensor_add_hook(NULL, plain, do_nothing, NULL, NULL), BRG_ERR_STATE,
        "does not require gradients");
    assert_brg_fails_with(brg_tensor_add_post_accumulate_hook(
                              NULL, y, on_accumulated, NULL, NULL),
                          BRG_ERR_STATE, "only a leaf accumulates");
}

/* ---- Asked for by brg_grad -------------------------------------------------------------- */

/* The node of a tensor that is asked for, but leads to nothing that is, does
 * not run: its tensor hooks do, and what they make is the result. */
static void test_hooks__of_a_node_that_is_not_needed(void **state)
{
    (void)state;
    for (int is_needed = 0; is_needed < 2; is_needed++) {
        recorder log = {""};
        step tensor = {.log = &log, .name = "tensor", .factor = 2};
        step pre = {.log = &log, .name = "pre", .factor = 3};
        step post = {.log = &log, .name = "post"};
        brg_tensor *x = leaf_from(4, BRG_SCALAR), *h = brg_mul_scalar(x, 7);
        brg_tensor *y = brg_mul_scalar(h, 5), *grads[2];
        brg_node *node;
        assert_brg_ok(brg_tensor_node(&node, h));
        assert_brg_ok(brg_tensor_add_hook(NULL, h, on_grad, &tensor, NULL));
        assert_brg_ok(brg_node_add_pre_hook(NULL, node, on_pre, &pre, NULL));
        assert_brg_ok(brg_node_add_post_hook(NULL, node, on_post, &post, NULL));
        brg_node_release(node);
        assert_brg_ok(brg_grad(grads, &y, 1, (brg_tensor *[]){h, x},
                               1 + (size_t)is_needed, NULL));
        assert_string_equal(log.text,
                            is_needed ? "tensor pre post " : "tensor ");
        assert_float_equal(item(grads[0]), 10, 0); /* after the tensor hook */
        if (is_needed)
            assert_float_equal(item(grads[1]), 10.0 * 3 * 7, 0);
        assert_null(brg_tensor_grad(x));
    }
}

static brg_status no_gradient(brg_context *ctx, brg_tensor *const *g,
                              brg_tensor **gi, size_t *n)
{
    (void)ctx;
    (void)g;
    (void)gi;
    (void)n;
    return BRG_OK;
}

static brg_status copy_forward(brg_context *ctx, const brg_value *args,
                               size_t n_args, brg_value *out)
{
    (void)ctx;
    (void)n_args;
    out[0] = brg_value_tensor(brg_copy(args[0].as.tensor));
    return BRG_OK;
}

/* An undefined gradient: no tensor hook, but what a reducer hangs on. */
static void test_hooks__of_an_undefined_gradient(void **state)
{
    (void)state;
    recorder log = {""};
    step tensor = {.log = &log, .name = "tensor"};
    step done = {.log = &log, .name = "accumulated"};
    brg_function *f =
        new_function(.name = "NoGradient", .n_outputs = 1,
                     .forward = copy_forward, .backward = no_gradient);
    brg_tensor *x = leaf_from(4, BRG_SCALAR);
    assert_brg_ok(brg_tensor_add_hook(NULL, x, on_grad, &tensor, NULL));
    assert_brg_ok(brg_tensor_add_post_accumulate_hook(NULL, x, on_accumulated,
                                                      &done, NULL));
    const brg_value arg = brg_value_tensor(x);
    assert_brg_ok(brg_backward(brg_function_call(f, &arg, 1)));
    assert_string_equal(log.text, "accumulated ");
    assert_null(brg_tensor_grad(x));
    brg_function_release(f);
}

/* ---- Nested pack hooks -------------------------------------------------------------------- */

static brg_status keep_pack(brg_tensor *t, void **packed, void *user)
{
    ++*(int *)user;
    *packed = brg_retain(t);
    return BRG_OK;
}

static brg_status keep_unpack(void *packed, brg_tensor **out, void *user)
{
    (void)user;
    *out = packed;
    return BRG_OK;
}

static void keep_free(void *packed, void *user)
{
    (void)user;
    brg_release(packed);
}

static void push_counter(int *n_packed)
{
    brg_pack_hooks hooks = BRG_PACK_HOOKS_INIT;
    hooks.pack = keep_pack;
    hooks.unpack = keep_unpack;
    hooks.free = keep_free;
    hooks.user = n_packed;
    assert_brg_ok(brg_pack_hooks_push(&hooks));
}

static void test_hooks__the_innermost_pack_hooks_are_in_force(void **state)
{
    (void)state;
    int outer = 0, inner = 0;
    brg_tensor *x = leaf_from(2, BRG_SCALAR);
    push_counter(&outer);
    brg_tensor *y = brg_square(x);
    push_counter(&inner);
    y = brg_square(y);
    assert_int_equal(outer, 1);
    assert_int_equal(inner, 1);
    assert_brg_ok(brg_pack_hooks_pop());
    y = brg_square(y);
    assert_brg_ok(brg_pack_hooks_pop());
    y = brg_square(y);
    assert_int_equal(outer, 2);
    assert_int_equal(inner, 1);
    assert_brg_ok(brg_backward(y));
    assert_float_equal(item(brg_tensor_grad(x)), 16 * 32768.0, 0);
}

/* ---- Final callbacks ------------------------------------------------------------- */

static brg_status callback(void *user)
{
    step *s = user;
    note(s);
    if (s->factor != 0) {
        s->factor = 0;
        BRG_TRY(brg_queue_final_callback(callback, s));
    }
    return outcome(s);
}

static brg_status queue(brg_tensor *leaf, void *user)
{
    (void)leaf;
    step *s = user;
    snprintf(s->log->text, sizeof s->log->text, "queued ");
    return brg_queue_final_callback(callback, s);
}

static void
test_hooks__final_callbacks_run_last_and_may_queue_more(void **state)
{
    (void)state;
    recorder log = {""};
    step s = {.log = &log, .name = "final", .factor = 1};
    step late = {.log = &log, .name = "leaf"};
    brg_tensor *x = leaf_from(2, BRG_SCALAR), *w = leaf_from(2, BRG_SCALAR);
    brg_tensor *y = brg_mul(brg_mul(x, x), w);
    assert_brg_ok(
        brg_tensor_add_post_accumulate_hook(NULL, w, queue, &s, NULL));
    assert_brg_ok(brg_tensor_add_post_accumulate_hook(NULL, x, on_accumulated,
                                                      &late, NULL));
    assert_brg_ok(brg_backward(y));
    assert_string_equal(log.text, "queued leaf final final ");
    assert_brg_fails_with(brg_queue_final_callback(callback, &s), BRG_ERR_STATE,
                          "during backward pass");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_hooks__order_at_a_leaf),
        scoped_test(test_hooks__order_at_a_node),
        scoped_test(test_hooks__remove_by_handle),
        scoped_test(test_hooks__remove_itself_while_running),
        scoped_test(test_hooks__payload_is_destroyed_once),
        scoped_test(test_hooks__handle_may_outlive_its_owner),
        scoped_test(test_hooks__failure_ends_backward_and_keeps_what_arrived),
        scoped_test(test_hooks__bad_replacements_are_named),
        scoped_test(test_hooks__need_a_tensor_that_requires_gradients),
        scoped_test(test_hooks__of_a_node_that_is_not_needed),
        scoped_test(test_hooks__of_an_undefined_gradient),
        scoped_test(test_hooks__the_innermost_pack_hooks_are_in_force),
        scoped_test(test_hooks__final_callbacks_run_last_and_may_queue_more),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
