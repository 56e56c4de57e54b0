/* SPDX-License-Identifier: Apache-2.0
 * Activation checkpointing: values, how often a stretch runs, memory, random
 * numbers, policies, and what goes wrong. */
#include <brigade/debug.h>
#include <brigade/random.h>
#include <brigade/recompute.h>

#include "tests/autograd/graph.h"
#include "tests/support/fail_alloc.h"

typedef struct stretch {
    int n_runs;
    int n_destroyed;
    double dropout;
    int64_t width_later; /* other shapes in later runs */
    bool fails_later;
} stretch;

static brg_status run(brg_tensor *const *in, brg_tensor **out, void *user)
{
    stretch *s = user;
    s->n_runs++;
    if (s->fails_later && s->n_runs > 1)
        return brg_error_set(BRG_ERR_CALLBACK, __FILE__, __LINE__, "as asked");
    brg_tensor *h = brg_mul(brg_sin(in[0]), brg_cos(in[1]));
    if (s->dropout > 0)
        h = brg_dropout(h, s->dropout, true);
    if (s->width_later && s->n_runs > 1)
        h = brg_slice(brg_exp(h), 0, 0, s->width_later, 1);
    out[0] = brg_tanh(h);
    return BRG_OK;
}

static void destroyed(void *user)
{
    ((stretch *)user)->n_destroyed++;
}

static brg_tensor *apply(stretch *s, brg_tensor *x, brg_tensor *w,
                         brg_recompute_options options)
{
    brg_tensor *inputs[] = {x, w}, *y;
    options.struct_size = sizeof options;
    options.destroy = destroyed;
    assert_brg_ok(brg_recompute(&y, run, s, inputs, 2, &options));
    return y;
}

/* Gradients of both inputs, from the stretch itself. */
static void plain(double dropout, uint64_t seed, brg_tensor **gx,
                  brg_tensor **gw)
{
    stretch s = {.dropout = dropout};
    brg_tensor *x = leaf_from(0.5, BRG_SHAPE(6)),
               *w = leaf_from(1, BRG_SHAPE(6));
    brg_tensor *inputs[] = {x, w}, *y;
    brg_seed(seed);
    assert_brg_ok(run(inputs, &y, &s));
    assert_brg_ok(brg_backward(brg_sum_all(y)));
    *gx = brg_tensor_grad(x);
    *gw = brg_tensor_grad(w);
}

static void expect_equal(const brg_tensor *a, const brg_tensor *b)
{
    assert_non_null(a);
    for (int64_t i = 0; i < brg_tensor_numel(b); i++)
        assert_float_equal(element(a, i), element(b, i), 0);
}

static void check_equal(bool is_reentrant, double dropout)
{
    brg_tensor *gx, *gw;
    plain(dropout, 7, &gx, &gw);
    stretch s = {.dropout = dropout};
    brg_tensor *x = leaf_from(0.5, BRG_SHAPE(6)),
               *w = leaf_from(1, BRG_SHAPE(6));
    brg_seed(7);
    brg_scope *scope = brg_scope_begin();
    brg_tensor *y =
        apply(&s, x, w, (brg_recompute_options){.is_reentrant = is_reentrant});
    (void)brg_rand(BRG_DTYPE_F32, BRG_SHAPE(3)); /* moves the state on */
    brg_random_state before, after;
    brg_random_get_state(&before);
    assert_int_equal(s.n_runs, 1);
    assert_brg_ok(brg_backward(brg_sum_all(y)));
    assert_int_equal(s.n_runs, 2);
    brg_random_get_state(&after);
    assert_int_equal(before.offset, after.offset);
    expect_equal(brg_tensor_grad(x), gx);
    expect_equal(brg_tensor_grad(w), gw);
    brg_scope_end(scope);
    assert_int_equal(s.n_destroyed, 1);
}

static void test_recompute__same_gradients(void **state)
{
    (void)state;
    check_equal(false, 0);
    check_equal(true, 0);
}

/* A call that fails has no use for `user` any more, either. */
static void test_recompute__destroys_after_a_failed_call(void **state)
{
    (void)state;
    stretch s = {.dropout = 0};
    brg_recompute_options options = BRG_RECOMPUTE_OPTIONS_INIT;
    options.destroy = destroyed;
    brg_tensor *x = leaf_from(1, BRG_SHAPE(2)), *y = x;
    brg_tensor *inputs[] = {x, x};
    assert_brg_fails(brg_recompute(&y, NULL, &s, inputs, 2, &options),
                     BRG_ERR_ARG);
    assert_null(y);
    assert_int_equal(s.n_destroyed, 1);
}

/* One call and its end; fails if `user` was not destroyed once. */
static brg_status call_once(void *user)
{
    stretch s = {.dropout = 0};
    brg_recompute_options options = BRG_RECOMPUTE_OPTIONS_INIT;
    options.destroy = destroyed;
    options.is_reentrant = *(bool *)user;
    brg_scope *scope = brg_scope_begin();
    if (!scope)
        return BRG_ERR_NOMEM;
    brg_tensor *x = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(2)), *y;
    brg_tensor *inputs[] = {x, x};
    brg_status status = x ? brg_set_requires_grad(x, true) : brg_error_code();
    bool is_called = status == BRG_OK;
    if (is_called)
        status = brg_recompute(&y, run, &s, inputs, 2, &options);
    brg_scope_end(scope);
    if (s.n_destroyed != is_called)
        return brg_error_set(BRG_ERR_INTERNAL, __FILE__, __LINE__,
                             "destroyed %d times", s.n_destroyed);
    return status;
}

static void test_recompute__out_of_memory(void **state)
{
    (void)state;
    bool is_reentrant = false;
    assert_oom_clean(call_once, &is_reentrant);
    is_reentrant = true;
    assert_oom_clean(call_once, &is_reentrant);
}

static void test_recompute__same_random_numbers(void **state)
{
    (void)state;
    check_equal(false, 0.5);
    check_equal(true, 0.5);
}

static void test_recompute__reentrant_refuses_selected_inputs(void **state)
{
    (void)state;
    brg_scope *scope = brg_scope_begin(); /* ends before what it uses */
    stretch s = {0};
    brg_tensor *x = leaf_from(0.5, BRG_SHAPE(6)),
               *w = leaf_from(1, BRG_SHAPE(6));
    brg_tensor *y = brg_sum_all(
        apply(&s, x, w, (brg_recompute_options){.is_reentrant = true}));
    brg_tensor *grad;
    assert_brg_fails_with(brg_grad(&grad, &y, 1, &x, 1, NULL), BRG_ERR_STATE,
                          "is not compatible");
    brg_backward_options selected = BRG_BACKWARD_OPTIONS_INIT;
    selected.inputs = &x;
    selected.n_inputs = 1;
    y = brg_sum_all(
        apply(&s, x, w, (brg_recompute_options){.is_reentrant = true}));
    assert_brg_fails_with(brg_backward_with(&y, 1, &selected), BRG_ERR_STATE,
                          "when inputs is passed to backward");
    assert_null(brg_tensor_grad(x));
    brg_tensor *z = brg_sum_all(apply(&s, x, w, (brg_recompute_options){0}));
    assert_brg_ok(brg_grad(&grad, &z, 1, &x, 1, NULL));
    assert_non_null(grad);
    brg_scope_end(scope);
}

static void test_recompute__a_changed_stretch_is_detected(void **state)
{
    (void)state;
    brg_scope *scope = brg_scope_begin(); /* ends before what it uses */
    stretch s = {.width_later = 3};
    brg_tensor *x = leaf_from(0.5, BRG_SHAPE(6)),
               *w = leaf_from(1, BRG_SHAPE(6));
    brg_tensor *y = brg_sum_all(apply(&s, x, w, (brg_recompute_options){0}));
    assert_brg_fails_with(brg_backward(y), BRG_ERR_MISMATCH, "ifferent");
    stretch r = {.width_later = 3};
    y = brg_sum_all(
        apply(&r, x, w, (brg_recompute_options){.is_reentrant = true}));
    assert_brg_fails_with(brg_backward(y), BRG_ERR_SHAPE, "f32[3]");
    assert_null(brg_tensor_grad(x));
    stretch f = {.fails_later = true};
    y = brg_sum_all(apply(&f, x, w, (brg_recompute_options){0}));
    assert_brg_fails_with(brg_backward(y), BRG_ERR_CALLBACK, "as asked");
    assert_true(brg_grad_mode());
    check_equal(false, 0); /* and it still works */
    brg_scope_end(scope);
}

/* ---- Policies ---------------------------------------------------------------------- */

static brg_recompute_choice keep_sin(const brg_op *op, void *user)
{
    (void)user;
    return strcmp(op->name, "sin") == 0 ? BRG_RECOMPUTE_SAVE
                                        : BRG_RECOMPUTE_AGAIN;
}

static brg_status count_tanh(const brg_observation *o, void *user)
{
    if (strcmp(o->name, "tanh") == 0)
        ++*(int *)user;
    return BRG_OK;
}

static void test_recompute__policy_keeps_what_it_names(void **state)
{
    (void)state;
    brg_scope *scope = brg_scope_begin(); /* ends before what it uses */
    brg_tensor *gx, *gw;
    plain(0, 7, &gx, &gw);
    stretch s = {0};
    int n_tanh = 0;
    assert_brg_ok(brg_observer_push(count_tanh, &n_tanh));
    brg_tensor *x = leaf_from(0.5, BRG_SHAPE(6)),
               *w = leaf_from(1, BRG_SHAPE(6));
    brg_tensor *y =
        apply(&s, x, w, (brg_recompute_options){.policy = keep_sin});
    assert_brg_ok(brg_backward(brg_sum_all(y)));
    assert_brg_ok(brg_observer_pop());
    assert_int_equal(n_tanh, 2);
    expect_equal(brg_tensor_grad(x), gx);
    expect_equal(brg_tensor_grad(w), gw);
    brg_scope_end(scope);
}

/* ---- Memory ------------------------------------------------------------------------- */

#define WIDTH 65536

static brg_status layer(size_t i, brg_tensor *x, brg_tensor **y, void *user)
{
    (void)i;
    (void)user;
    *y = brg_tanh(brg_mul_scalar(x, 1.01));
    return BRG_OK;
}

/* Peak bytes beyond the start, in layers' outputs. */
static double peak_layers(size_t n, size_t n_segments)
{
    brg_tensor *x = leaf_from(0, BRG_SHAPE(WIDTH));
    brg_memory_stats before, after;
    brg_scope *scope = brg_scope_begin();
    brg_memory_get_stats(&before);
    brg_memory_reset_peak();
    brg_tensor *y = brg_recompute_chain(layer, NULL, n, n_segments, x);
    assert_brg_ok(brg_backward(brg_sum_all(assert_brg_some(y))));
    brg_memory_get_stats(&after);
    brg_scope_end(scope);
    return (double)(after.peak - before.in_use) / (WIDTH * sizeof(float));
}

static void test_recompute__memory_grows_with_the_square_root(void **state)
{
    (void)state;
    double p16 = peak_layers(16, 0), p64 = peak_layers(64, 0);
    double p256 = peak_layers(256, 0), whole = peak_layers(256, 1);
    print_message(
        "peak layers: 16: %.1f, 64: %.1f, 256: %.1f, 256 whole: %.1f\n", p16,
        p64, p256, whole);
    /* Four times the layers, twice the memory (and a constant). */
    assert_true(p64 < 2.3 * p16);
    assert_true(p256 < 2.3 * p64);
    assert_true(p256 < whole / 4);
}

int main(void)
{
    fail_alloc_install();
    const struct CMUnitTest tests[] = {
        scoped_test(test_recompute__same_gradients),
        scoped_test(test_recompute__destroys_after_a_failed_call),
        scoped_test(test_recompute__same_random_numbers),
        cmocka_unit_test(test_recompute__out_of_memory),
        scoped_test(test_recompute__reentrant_refuses_selected_inputs),
        scoped_test(test_recompute__a_changed_stretch_is_detected),
        scoped_test(test_recompute__policy_keeps_what_it_names),
        scoped_test(test_recompute__memory_grows_with_the_square_root),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
