/* SPDX-License-Identifier: Apache-2.0
 * Hooks with a capture callback: what it calls is written into the plan, in the
 * hook's place, and gives the bits that the hook gives. */
#include "tests/rows/both.h"

/* ---- A hook and what it is in a plan --------------------------------------------- */

typedef struct scaling {
    double factor;
    int n_calls;    /* of the hook */
    int n_captures; /* of the callback */
} scaling;

static brg_status on_tensor(brg_tensor *grad, brg_tensor **replacement,
                            void *user)
{
    scaling *s = user;
    s->n_calls++;
    *replacement = brg_mul_scalar(grad, s->factor);
    return *replacement ? BRG_OK : brg_error_code();
}

static brg_status on_pre(brg_tensor **grads, size_t n, void *user)
{
    (void)n;
    return on_tensor(grads[0], &grads[0], user);
}

static brg_status on_post(brg_tensor **grad_in, size_t n_in,
                          brg_tensor *const *grad_out, size_t n_out, void *user)
{
    (void)n_out;
    scaling *s = user;
    s->n_calls++;
    for (size_t i = 0; i < n_in; i++)
        if (grad_in[i] &&
            !(grad_in[i] = brg_add(brg_mul_scalar(grad_in[i], s->factor),
                                   brg_mean_all(grad_out[0]))))
            return brg_error_code();
    return BRG_OK;
}

static brg_status on_accumulated(brg_tensor *leaf, void *user)
{
    brg_tensor *grad = NULL;
    BRG_TRY(on_tensor(brg_tensor_grad(leaf), &grad, user));
    return brg_tensor_set_grad(leaf, grad);
}

/* Of tensor hooks, pre-hooks and post-accumulate hooks. */
static brg_status write_scaling(brg_tensor **grads, size_t n,
                                brg_tensor *const *others, size_t n_others,
                                void *user)
{
    (void)others;
    scaling *s = user;
    s->n_captures++;
    if (n != 1 || n_others != 0)
        return brg_error_set(BRG_ERR_INTERNAL, __FILE__, __LINE__,
                             "%zu and %zu gradients", n, n_others);
    grads[0] = brg_mul_scalar(grads[0], s->factor);
    return grads[0] ? BRG_OK : brg_error_code();
}

static brg_status write_post(brg_tensor **grads, size_t n,
                             brg_tensor *const *others, size_t n_others,
                             void *user)
{
    scaling *s = user;
    s->n_captures++;
    int n_calls = s->n_calls;
    brg_status status = on_post(grads, n, others, n_others, user);
    s->n_calls = n_calls;
    return status;
}

/* ---- Each kind ---------------------------------------------------------------------- */

typedef struct kinds {
    scaling tensor, pre, post, accumulated;
} kinds;

static void add_all(kinds *k, brg_tensor *w, brg_tensor *h)
{
    brg_hook *hooks[4];
    brg_node *node;
    assert_brg_ok(
        brg_tensor_add_hook(&hooks[0], h, on_tensor, &k->tensor, NULL));
    assert_brg_ok(brg_tensor_node(&node, h));
    assert_brg_ok(
        brg_node_add_pre_hook(&hooks[1], node, on_pre, &k->pre, NULL));
    assert_brg_ok(
        brg_node_add_post_hook(&hooks[2], node, on_post, &k->post, NULL));
    brg_node_release(node);
    assert_brg_ok(brg_tensor_add_post_accumulate_hook(
        &hooks[3], w, on_accumulated, &k->accumulated, NULL));
    assert_brg_ok(brg_hook_set_capture(hooks[2], write_post, 0));
    for (int i = 0; i < 4; i++) {
        if (i != 2)
            assert_brg_ok(brg_hook_set_capture(hooks[i], write_scaling, 0));
        if (i != 3)
            brg_hook_release(hooks[i]);
    }
    k->accumulated.n_captures = 0;
    brg_hook_release(hooks[3]);
}

static kinds all_kinds;

static void every_kind_body(yields *y)
{
    for (int round = 0; round < 3; round++) {
        all_kinds = (kinds){{2, 0, 0}, {3, 0, 0}, {0.5, 0, 0}, {7, 0, 0}};
        brg_tensor *w = leaf_from(0.25, BRG_SHAPE(4, 3));
        brg_tensor *x = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(2 + round, 3));
        brg_tensor *h = brg_linear(x, w, NULL);
        add_all(&all_kinds, w, h);
        assert_brg_ok(brg_backward(brg_sum_all(brg_sigmoid(h))));
        yield_grad(y, w);
        const scaling *all[] = {&all_kinds.tensor, &all_kinds.pre,
                                &all_kinds.post, &all_kinds.accumulated};
        for (int i = 0; i < 4; i++) {
            assert_int_equal(all[i]->n_calls, y->is_compiled ? 0 : 1);
            assert_int_equal(all[i]->n_captures, y->is_compiled && !round);
        }
    }
}

static void test_capture_hooks__every_kind(void **state)
{
    (void)state;
    run_both(every_kind_body, 1);
    assert_int_equal(both_stats().hits, 2);
    const char *text = plan_text(0);
    assert_null(strstr(text, "_hooks@"));
    assert_null(strstr(text, "post_accumulate@"));
    assert_non_null(strstr(text, "set_grad@"));
}

/* ---- The key ---------------------------------------------------------------------------- */

static double grad_with(double factor, scaling *s, uint64_t version)
{
    brg_tensor *w = leaf_from(1, BRG_SHAPE(3));
    brg_hook *hook;
    s->factor = factor;
    assert_brg_ok(brg_tensor_add_hook(&hook, w, on_tensor, s, NULL));
    assert_brg_ok(brg_hook_set_capture(hook, write_scaling, version));
    brg_hook_release(hook);
    int scope;
    assert_brg_ok(brg_compile_begin(&scope, NULL));
    assert_brg_ok(brg_backward(brg_sum_all(w)));
    assert_brg_ok(brg_compile_end(scope));
    return element(brg_tensor_grad(w), 0);
}

static void
test_capture_hooks__callback_user_and_version_are_keyed(void **state)
{
    (void)state;
    scaling a = {0}, b = {0};
    assert_float_equal(grad_with(2, &a, 1), 2, 0);
    assert_float_equal(grad_with(2, &a, 1), 2, 0);
    assert_int_equal(both_stats().captures, 1); /* the same: a hit */
    assert_float_equal(grad_with(5, &a, 2), 5, 0);
    assert_int_equal(both_stats().captures, 2); /* another version */
    assert_float_equal(grad_with(7, &b, 2), 7, 0);
    assert_int_equal(both_stats().captures, 3); /* another user */
    assert_float_equal(grad_with(2, &a, 1), 2, 0);
    assert_int_equal(both_stats().captures, 3);
    assert_int_equal(a.n_calls + b.n_calls, 0);
}

/* ---- Beside hooks that the plan calls ------------------------------------------------------ */

typedef struct trail {
    char text[128];
    brg_hook *removed; /* by the hook named "b" */
} trail;

typedef struct mark {
    trail *trail;
    const char *name;
} mark;

static brg_status on_mark(brg_tensor *leaf, void *user)
{
    mark *m = user;
    size_t n = strlen(m->trail->text);
    snprintf(m->trail->text + n, sizeof m->trail->text - n, "%s%g ", m->name,
             element(brg_tensor_grad(leaf), 0));
    if (strcmp(m->name, "b") == 0 && m->trail->removed) {
        brg_hook_remove(m->trail->removed);
        m->trail->removed = NULL;
    }
    return BRG_OK;
}

/* a, x2, b (which removes a), c, x3, d: in this order, both times. */
static void mixed_body(yields *y)
{
    trail t = {.removed = NULL};
    mark marks[] = {{&t, "a"}, {&t, "b"}, {&t, "c"}, {&t, "d"}};
    static scaling twice = {2, 0, 0}, thrice = {3, 0, 0};
    brg_tensor *w = leaf_from(1, BRG_SHAPE(3));
    for (int i = 0; i < 4; i++) {
        brg_hook *hook;
        assert_brg_ok(brg_tensor_add_post_accumulate_hook(&hook, w, on_mark,
                                                          &marks[i], NULL));
        if (i == 0)
            t.removed = hook;
        else
            brg_hook_release(hook);
        if (i % 2)
            continue;
        assert_brg_ok(brg_tensor_add_post_accumulate_hook(
            &hook, w, on_accumulated, i ? &thrice : &twice, NULL));
        assert_brg_ok(brg_hook_set_capture(hook, write_scaling, 0));
        brg_hook_release(hook);
    }
    for (int round = 0; round < 2; round++) {
        assert_brg_ok(brg_tensor_set_grad(w, NULL));
        assert_brg_ok(brg_backward(brg_sum_all(brg_mul_scalar(w, 5))));
        yield_grad(y, w);
    }
    assert_string_equal(t.text, "a5 b10 c10 d30 b10 c10 d30 ");
    yield_text(y, t.text);
}

static void test_capture_hooks__order_beside_called_ones(void **state)
{
    (void)state;
    run_both(mixed_body, 2); /* with a, and without */
    const char *text = plan_text(0);
    assert_non_null(strstr(text, "post_accumulate@"));
    const char *first = strstr(text, "[0..0]()"),
               *then = strstr(text, "[2..3]");
    assert_non_null(first);
    assert_non_null(then);
    assert_true(first < strstr(text, "set_grad@"));
    assert_true(strstr(text, "set_grad@") < then);
}

/* Tensor hooks of a leaf: called, written, called. */
static void mixed_tensor_body(yields *y)
{
    static scaling s[3] = {{2, 0, 0}, {3, 0, 0}, {5, 0, 0}};
    brg_tensor *w = leaf_from(1, BRG_SHAPE(3));
    for (int i = 0; i < 3; i++) {
        brg_hook *hook;
        s[i].n_calls = 0;
        assert_brg_ok(brg_tensor_add_hook(&hook, w, on_tensor, &s[i], NULL));
        if (i == 1)
            assert_brg_ok(brg_hook_set_capture(hook, write_scaling, 0));
        brg_hook_release(hook);
    }
    backward_of_sum(brg_mul(w, w));
    expect_all(brg_tensor_grad(w) ? brg_div(brg_tensor_grad(w), w) : NULL, 60);
    yield_grad(y, w);
    assert_int_equal(s[0].n_calls, 1);
    assert_int_equal(s[1].n_calls, !y->is_compiled);
    assert_int_equal(s[2].n_calls, 1);
}

static void test_capture_hooks__tensor_hooks_in_a_row(void **state)
{
    (void)state;
    run_both(mixed_tensor_body, 1);
}

/* ---- What a callback cannot do ---------------------------------------------------------------- */

typedef brg_tensor *(*bad_fn)(brg_tensor *grad);

static brg_tensor *draws(brg_tensor *grad)
{
    return brg_dropout(grad, 0.5, true);
}

static brg_tensor *changes_in_place(brg_tensor *grad)
{
    return brg_mul_scalar_(grad, 2) == BRG_OK ? grad : NULL;
}

static brg_tensor *makes_its_own(brg_tensor *grad)
{
    return brg_ones(BRG_DTYPE_F32, brg_tensor_ndim(grad),
                    brg_tensor_shape(grad));
}

static brg_tensor *changes_the_shape(brg_tensor *grad)
{
    return brg_sum_all(grad);
}

static brg_tensor *reads_values(brg_tensor *grad)
{
    double unused;
    return brg_tensor_read(grad, &unused, sizeof unused) == BRG_OK ? grad
                                                                   : NULL;
}

static brg_status write_bad(brg_tensor **grads, size_t n,
                            brg_tensor *const *others, size_t n_others,
                            void *user)
{
    (void)n, (void)others, (void)n_others;
    bad_fn *bad = user;
    grads[0] = (*bad)(grads[0]);
    return grads[0] ? BRG_OK : brg_error_code();
}

static brg_status keep(brg_tensor *grad, brg_tensor **replacement, void *user)
{
    (void)grad, (void)replacement, (void)user;
    return BRG_OK;
}

static void expect_eager(bad_fn bad, const char *why)
{
    brg_tensor *w = leaf_from(1, BRG_SHAPE(1, 3));
    brg_hook *hook;
    brg_compile_options full = BRG_COMPILE_OPTIONS_INIT;
    full.fullgraph = true;
    int scope;
    assert_brg_ok(brg_compile_reset());
    assert_brg_ok(brg_tensor_add_hook(&hook, w, keep, &bad, NULL));
    assert_brg_ok(brg_hook_set_capture(hook, write_bad, 0));
    brg_tensor *loss = brg_sum_all(brg_mul(w, w));
    assert_brg_ok(brg_compile_begin(&scope, &full));
    assert_brg_fails_with(brg_backward(loss), BRG_ERR_UNSUPPORTED, why);
    assert_non_null(strstr(brg_error_message(), "capture callback"));
    assert_brg_ok(brg_compile_end(scope));
    assert_null(brg_tensor_grad(w)); /* nothing ran, nothing was freed */
    assert_brg_ok(brg_compile_begin(&scope, NULL));
    assert_brg_ok(brg_backward(loss));
    assert_brg_ok(brg_compile_end(scope));
    assert_float_equal(element(brg_tensor_grad(w), 2), 6, 0);
    assert_int_equal(both_stats().fallbacks, 1);
    assert_int_equal(both_stats().captures, 0);
    brg_hook_remove(hook);
}

static void
test_capture_hooks__what_cannot_be_written_runs_eagerly(void **state)
{
    (void)state;
    expect_eager(draws, "draws random numbers");
    expect_eager(changes_in_place, "");
    expect_eager(makes_its_own, "was not made from its gradients");
    expect_eager(changes_the_shape, "size");
    expect_eager(reads_values, "");
}

static void test_capture_hooks__bad_arguments(void **state)
{
    (void)state;
    assert_brg_fails(brg_hook_set_capture(NULL, write_bad, 0), BRG_ERR_ARG);
}

/* ---- A capture inside a capture -------------------------------------------------- */

static brg_tensor *inside[2]; /* a result and its gradient */

static brg_status write_backward(brg_tensor **grads, size_t n,
                                 brg_tensor *const *others, size_t n_others,
                                 void *user)
{
    (void)grads;
    (void)n;
    (void)others;
    (void)n_others;
    (void)user;
    brg_backward_options options = BRG_BACKWARD_OPTIONS_INIT;
    options.grad_outputs = &inside[1];
    return brg_backward_with(&inside[0], 1, &options);
}

static brg_status write_reset(brg_tensor **grads, size_t n,
                              brg_tensor *const *others, size_t n_others,
                              void *user)
{
    (void)grads;
    (void)n;
    (void)others;
    (void)n_others;
    (void)user;
    return brg_compile_reset();
}

/* The backward inside is refused; the one around it runs eagerly and says why,
 * or fails with that under fullgraph, and both graphs are as they were. */
static void check_inside(brg_status (*write)(brg_tensor **, size_t,
                                             brg_tensor *const *, size_t,
                                             void *),
                         const char *text)
{
    brg_compile_options whole = BRG_COMPILE_OPTIONS_INIT;
    brg_hook *hook;
    int scope;
    brg_tensor *v = leaf_from(1, BRG_SHAPE(3)), *w = leaf_from(1, BRG_SHAPE(3));
    brg_tensor *inner = brg_mul_scalar(v, 2);
    scaling s = {.factor = 1};
    inside[0] = inner;
    inside[1] = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(3));
    brg_tensor *outer = brg_sum_all(brg_mul_scalar(w, 3));
    assert_brg_ok(brg_tensor_add_hook(&hook, w, on_tensor, &s, NULL));
    assert_brg_ok(brg_hook_set_capture(hook, write, 0));
    assert_brg_ok(brg_compile_reset());
    whole.fullgraph = true;
    assert_brg_ok(brg_compile_begin(&scope, &whole));
    assert_brg_fails_with(brg_backward(outer), BRG_ERR_UNSUPPORTED, text);
    assert_null(brg_tensor_grad(v));
    assert_null(brg_tensor_grad(w));
    assert_brg_ok(brg_compile_end(scope));
    assert_brg_ok(brg_compile_begin(&scope, NULL));
    assert_brg_ok(brg_backward(outer));
    assert_non_null(strstr(brg_compile_reason(), text));
    assert_null(brg_tensor_grad(v));
    expect_all(brg_tensor_grad(w), 3);
    brg_hook_remove(hook);
    backward_of_sum(inner);
    assert_brg_ok(brg_compile_end(scope));
    expect_all(brg_tensor_grad(v), 2);
}

static void test_capture_hooks__no_capture_inside_a_capture(void **state)
{
    (void)state;
    check_inside(write_backward,
                 "Trying to run compiled autograd within another compiled "
                 "autograd call, this is not supported yet.");
    check_inside(write_reset, "a plan is being captured");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_capture_hooks__every_kind),
        scoped_test(test_capture_hooks__callback_user_and_version_are_keyed),
        scoped_test(test_capture_hooks__order_beside_called_ones),
        scoped_test(test_capture_hooks__tensor_hooks_in_a_row),
        scoped_test(test_capture_hooks__what_cannot_be_written_runs_eagerly),
        scoped_test(test_capture_hooks__bad_arguments),
        scoped_test(test_capture_hooks__no_capture_inside_a_capture),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
