/* SPDX-License-Identifier: Apache-2.0
 * Compiled backward against eager: the same bits, how often it captures, what
 * it does with hooks, retained graphs, failures. */
#include <math.h>

#include <brigade/sparse.h>

#include "tests/compile/small_net.h"
#include "tests/support/plan_text.h"

static void backward_by(brg_compile_backend backend, brg_tensor *loss)
{
    int scope;
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    options.backend = backend;
    assert_brg_ok(brg_compile_begin(&scope, &options));
    assert_brg_ok(brg_backward(loss));
    assert_brg_ok(brg_compile_end(scope));
}

static void backward_compiled(brg_tensor *loss)
{
    backward_by(BRG_COMPILE_BACKEND_DEFAULT, loss);
}

/* ---- Values and counts --------------------------------------------------------------- */

static void test_compiled__same_bits_as_eager(void **state)
{
    (void)state;
    net a = make_net(1), b = make_net(1);
    assert_brg_ok(brg_backward(loss_of(&a, 6)));
    backward_compiled(loss_of(&b, 6));
    expect_same_grads(&a, &b);
    assert_int_equal(compile_stats().captures, 1);
    assert_int_equal(compile_stats().fallbacks, 0);
}

static void test_compiled__one_plan_for_all_batch_sizes(void **state)
{
    (void)state;
    for (int64_t batch = 2; batch <= 90; batch += 11) {
        net a = make_net(2), b = make_net(2);
        assert_brg_ok(brg_backward(loss_of(&a, batch)));
        backward_compiled(loss_of(&b, batch));
        expect_same_grads(&a, &b);
    }
    assert_int_equal(compile_stats().captures, 1);
    assert_int_equal(compile_stats().hits, 8);
    assert_int_equal(compile_stats().specialisations, 9);
}

static void test_compiled__accumulating_is_a_second_plan(void **state)
{
    (void)state;
    net a = make_net(3), b = make_net(3);
    for (int i = 0; i < 10; i++) {
        assert_brg_ok(brg_backward(loss_of(&a, 4 + i)));
        backward_compiled(loss_of(&b, 4 + i));
        expect_same_grads(&a, &b);
    }
    assert_int_equal(compile_stats().captures, 2);
}

static void test_compiled__grad_of_chosen_inputs(void **state)
{
    (void)state;
    net a = make_net(4), b = make_net(4);
    brg_tensor *la = loss_of(&a, 5), *lb = loss_of(&b, 5);
    brg_tensor *ia[] = {a.w1, a.b2}, *ib[] = {b.w1, b.b2}, *ga[2], *gb[2];
    assert_brg_ok(brg_grad(ga, &la, 1, ia, 2, NULL));
    int scope;
    assert_brg_ok(brg_compile_begin(&scope, NULL));
    assert_brg_ok(brg_grad(gb, &lb, 1, ib, 2, NULL));
    assert_brg_ok(brg_compile_end(scope));
    expect_same_bits(ga[0], gb[0]);
    expect_same_bits(ga[1], gb[1]);
    assert_null(brg_tensor_grad(b.w1));
    assert_int_equal(compile_stats().captures, 1);
}

static void test_compiled__retained_graph_again_and_again(void **state)
{
    (void)state;
    brg_tensor *x = leaf_from(2, BRG_SCALAR), *y = brg_mul(x, x);
    brg_backward_options keep = BRG_BACKWARD_OPTIONS_INIT;
    keep.retain_graph = true;
    for (int round = 0; round < 6; round++) {
        int scope;
        assert_brg_ok(brg_tensor_set_grad(x, NULL));
        if (round % 2)
            assert_brg_ok(brg_compile_begin(&scope, NULL));
        assert_brg_ok(brg_backward_with(&y, 1, &keep));
        if (round % 2)
            assert_brg_ok(brg_compile_end(scope));
        assert_float_equal(item(brg_tensor_grad(x)), 4, 0);
    }
    assert_int_equal(compile_stats().captures, 1);
    assert_int_equal(compile_stats().hits, 2);
}

static void test_compiled__graph_is_freed_unless_retained(void **state)
{
    (void)state;
    brg_tensor *x = leaf_from(2, BRG_SCALAR), *y = brg_mul(x, x);
    backward_compiled(y);
    assert_brg_fails_with(brg_backward(y), BRG_ERR_STATE, "a second time");
}

static void test_compiled__random_ops_draw_the_same_mask(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 3; seed++) {
        brg_tensor *a = leaf_from(1, BRG_SHAPE(50)),
                   *b = leaf_from(1, BRG_SHAPE(50));
        brg_seed(seed);
        assert_brg_ok(brg_backward(brg_sum_all(brg_dropout(a, 0.5, true))));
        brg_seed(seed);
        backward_compiled(brg_sum_all(brg_dropout(b, 0.5, true)));
        expect_same_bits(brg_tensor_grad(a), brg_tensor_grad(b));
    }
    assert_int_equal(compile_stats().captures,
                     1); /* the seed is no part of the plan */
}

/* ---- Hooks and functions --------------------------------------------------------------- */

static brg_status double_it(brg_tensor *grad, brg_tensor **replacement,
                            void *user)
{
    *replacement = brg_mul_scalar(grad, *(double *)user);
    return *replacement ? BRG_OK : brg_error_code();
}

static brg_status note_leaf(brg_tensor *leaf, void *user)
{
    (void)leaf;
    ++*(int *)user;
    return BRG_OK;
}

static brg_status scale_pre(brg_tensor **grads, size_t n, void *user)
{
    (void)n;
    grads[0] = brg_mul_scalar(grads[0], *(double *)user);
    return grads[0] ? BRG_OK : brg_error_code();
}

static brg_status scale_post(brg_tensor **grad_in, size_t n_in,
                             brg_tensor *const *grad_out, size_t n_out,
                             void *user)
{
    (void)grad_out;
    (void)n_out;
    for (size_t i = 0; i < n_in; i++)
        if (grad_in[i])
            grad_in[i] = brg_mul_scalar(grad_in[i], *(double *)user);
    return BRG_OK;
}

static double factors[] = {2, 3, 5, 7};

static void hook_up(const net *n, brg_tensor *loss, int *n_leaves)
{
    brg_node *node;
    assert_brg_ok(
        brg_tensor_add_hook(NULL, n->w1, double_it, &factors[0], NULL));
    assert_brg_ok(
        brg_tensor_add_hook(NULL, loss, double_it, &factors[1], NULL));
    assert_brg_ok(brg_tensor_add_post_accumulate_hook(NULL, n->b1, note_leaf,
                                                      n_leaves, NULL));
    assert_brg_ok(brg_tensor_node(&node, loss));
    assert_brg_ok(
        brg_node_add_pre_hook(NULL, node, scale_pre, &factors[2], NULL));
    assert_brg_ok(
        brg_node_add_post_hook(NULL, node, scale_post, &factors[3], NULL));
    brg_node_release(node);
    assert_brg_ok(brg_retain_grad(loss));
}

static void test_compiled__hooks_run_in_the_plan(void **state)
{
    (void)state;
    int na = 0, nb = 0;
    net a = make_net(5), b = make_net(5);
    for (int i = 0; i < 3; i++) {
        brg_tensor *la = loss_of(&a, 4), *lb = loss_of(&b, 4);
        brg_tensor *grads[] = {a.w1, a.b1, a.w2, a.b2, b.w1, b.b1, b.w2, b.b2};
        for (int k = 0; k < 8; k++)
            assert_brg_ok(brg_tensor_set_grad(grads[k], NULL));
        if (i == 0) {
            hook_up(&a, la, &na);
            hook_up(&b, lb, &nb);
        }
        assert_brg_ok(brg_backward(la));
        backward_compiled(lb);
        expect_same_grads(&a, &b);
        if (i == 0)
            expect_same_bits(brg_tensor_grad(la), brg_tensor_grad(lb));
    }
    assert_int_equal(na, 3);
    assert_int_equal(nb, 3);
    assert_int_equal(compile_stats().captures,
                     2); /* with and without node hooks */
}

static brg_status square_forward(brg_context *ctx, const brg_value *args,
                                 size_t n, brg_value *out)
{
    (void)n;
    BRG_TRY(brg_context_save(ctx, (brg_tensor *[]){args[0].as.tensor}, 1));
    BRG_TRY(brg_context_set(ctx, "scale", args[1]));
    out[0] = brg_value_tensor(
        brg_mul_scalar(brg_square(args[0].as.tensor), args[1].as.real));
    return out[0].as.tensor ? BRG_OK : brg_error_code();
}

static brg_status square_backward(brg_context *ctx, brg_tensor *const *g,
                                  brg_tensor **gi, size_t *n)
{
    (void)n;
    brg_tensor *x;
    BRG_TRY(brg_context_saved(ctx, 0, &x));
    double scale = brg_context_get(ctx, "scale").as.real;
    gi[0] = brg_mul(g[0], brg_mul_scalar(x, 2 * scale));
    return gi[0] ? BRG_OK : brg_error_code();
}

static void test_compiled__custom_functions_are_called(void **state)
{
    (void)state;
    brg_function *f =
        new_function(.name = "Square", .n_outputs = 1,
                     .forward = square_forward, .backward = square_backward);
    const double scales[] = {1.1, 2.2, 3.3, 1.1};
    for (int i = 0; i < 4; i++) {
        brg_tensor *x = leaf_from(1, BRG_SHAPE(3 + i));
        brg_value args[] = {brg_value_tensor(brg_mul_scalar(x, 3)),
                            brg_value_float(scales[i])};
        brg_tensor *y = brg_function_call(f, args, 2);
        backward_compiled(brg_sum_all(brg_mul(y, y)));
        /* y = 9 s x^2; y^2: 4 * 81 s^2 x^3 */
        assert_float_equal(element(brg_tensor_grad(x), 1),
                           4 * 81 * scales[i] * scales[i] * 8, 0.05);
    }
    assert_int_equal(compile_stats().captures,
                     1); /* attributes are read at run time */
    brg_function_release(f);
}

static brg_status pair_forward(brg_context *ctx, const brg_value *args,
                               size_t n, brg_value *out)
{
    (void)ctx;
    (void)n;
    out[0] = brg_value_tensor(brg_mul_scalar(args[0].as.tensor, 2));
    out[1] = brg_value_tensor(brg_mul_scalar(args[0].as.tensor, 3));
    return out[0].as.tensor && out[1].as.tensor ? BRG_OK : brg_error_code();
}

static brg_status pair_backward(brg_context *ctx, brg_tensor *const *g,
                                brg_tensor **gi, size_t *n)
{
    (void)ctx;
    (void)n;
    gi[0] = brg_add(brg_mul_scalar(g[0], 2), brg_mul_scalar(g[1], 3));
    return gi[0] ? BRG_OK : brg_error_code();
}

/* Both outputs of the function get one and the same gradient. */
static void test_compiled__one_value_in_two_places_of_a_call(void **state)
{
    (void)state;
    brg_function *f =
        new_function(.name = "Pair", .n_outputs = 2, .forward = pair_forward,
                     .backward = pair_backward);
    brg_tensor *x = leaf_from(1, BRG_SHAPE(3));
    brg_value args[] = {brg_value_tensor(x)}, out[2];
    assert_brg_ok(brg_function_apply(f, args, 1, out));
    brg_tensor *sum = brg_add(out[0].as.tensor, out[1].as.tensor);
    backward_compiled(brg_sum_all(brg_mul(sum, sum)));
    assert_float_equal(element(brg_tensor_grad(x), 1), 2 * 10 * 5, 0);
    assert_int_equal(compile_stats().captures, 1);
    brg_function_release(f);
}

static brg_status fail_hook(brg_tensor *grad, brg_tensor **replacement,
                            void *user)
{
    (void)grad;
    (void)replacement;
    (void)user;
    return brg_error_set(BRG_ERR_CALLBACK, __FILE__, __LINE__, "as asked");
}

static void test_compiled__a_failing_hook_ends_it_cleanly(void **state)
{
    (void)state;
    brg_tensor *w1 = leaf_from(2, BRG_SCALAR), *w2 = leaf_from(3, BRG_SCALAR);
    brg_tensor *h = brg_mul(w1, w1), *y = brg_mul(h, w2);
    brg_hook *hook;
    assert_brg_ok(brg_tensor_add_hook(&hook, h, fail_hook, NULL, NULL));
    brg_backward_options keep = BRG_BACKWARD_OPTIONS_INIT;
    keep.retain_graph = true;
    int scope;
    assert_brg_ok(brg_compile_begin(&scope, NULL));
    assert_brg_fails_with(brg_backward_with(&y, 1, &keep), BRG_ERR_CALLBACK,
                          "as asked");
    assert_float_equal(item(brg_tensor_grad(w2)), 4, 0);
    assert_null(brg_tensor_grad(w1));
    brg_hook_remove(hook);
    assert_brg_ok(brg_backward(y));
    assert_brg_ok(brg_compile_end(scope));
    assert_float_equal(item(brg_tensor_grad(w1)), 12, 0);
}

/* ---- Scopes -------------------------------------------------------------------------------- */

static void test_compiled__scopes_nest_and_close_in_order(void **state)
{
    (void)state;
    int outer, inner, off;
    assert_false(brg_compile_is_on());
    assert_brg_ok(brg_compile_begin(&outer, NULL));
    assert_brg_ok(brg_compile_disable_begin(&off));
    assert_brg_ok(brg_compile_begin(&inner, NULL));
    assert_false(brg_compile_is_on()); /* disabled around it */
    assert_brg_fails_with(
        brg_compile_end(outer), BRG_ERR_STATE,
        "Nested Compiled Autograd Contexts must return before "
        "their parent context");
    assert_brg_ok(brg_compile_end(inner));
    assert_brg_ok(brg_compile_end(off));
    assert_true(brg_compile_is_on());
    assert_brg_ok(brg_compile_end(outer));
    assert_false(brg_compile_is_on());
}

static brg_status backward_inside(brg_tensor *grad, brg_tensor **replacement,
                                  void *user)
{
    (void)grad;
    (void)replacement;
    if (brg_compile_is_on())
        return brg_error_set(BRG_ERR_INTERNAL, __FILE__, __LINE__, "still on");
    bool mode = brg_grad_mode_set(true);
    brg_tensor *x = user;
    brg_status status = brg_backward(brg_mul(x, x));
    brg_grad_mode_set(mode);
    return status;
}

static void test_compiled__backward_inside_a_plan_is_eager(void **state)
{
    (void)state;
    brg_tensor *x = leaf_from(5, BRG_SCALAR), *w = leaf_from(2, BRG_SCALAR);
    brg_tensor *h = brg_mul_scalar(w, 3);
    assert_brg_ok(brg_tensor_add_hook(NULL, h, backward_inside, x, NULL));
    backward_compiled(brg_mul_scalar(h, 2));
    assert_float_equal(item(brg_tensor_grad(x)), 10, 0);
    assert_float_equal(item(brg_tensor_grad(w)), 6, 0);
    assert_int_equal(compile_stats().captures, 1);
}

/* x^3 and its derivatives: the plan's results are recorded. */
static void test_compiled__gradients_can_be_differentiated(void **state)
{
    (void)state;
    brg_backward_options options = BRG_BACKWARD_OPTIONS_INIT;
    options.create_graph = true;
    brg_compile_options full = BRG_COMPILE_OPTIONS_INIT;
    full.fullgraph = true;
    int scope;
    assert_brg_ok(brg_compile_begin(&scope, &full));
    for (int round = 0; round < 2; round++) {
        brg_tensor *x = leaf_from(2, BRG_SHAPE(3)), *grad, *second;
        brg_tensor *y = brg_sum_all(brg_mul(brg_square(x), brg_tanh(x)));
        assert_brg_ok(brg_grad(&grad, &y, 1, &x, 1, &options));
        assert_true(brg_requires_grad(grad));
        y = brg_sum_all(brg_square(grad));
        assert_brg_ok(brg_grad(&second, &y, 1, &x, 1, NULL));
        double at = 2, t = tanh(at), d = 1 - t * t;
        double first = 2 * at * t + at * at * d;
        double slope = 2 * t + 4 * at * d - 2 * at * at * t * d;
        assert_float_equal(element(grad, 0), first, 1e-4);
        assert_float_equal(element(second, 0), 2 * first * slope, 1e-3);
    }
    assert_brg_ok(brg_compile_end(scope));
    assert_int_equal(compile_stats().captures, 2);
    assert_int_equal(compile_stats().hits, 2);
    assert_int_equal(compile_stats().fallbacks, 0);
}

static void test_compiled__sparse_gradients_are_in_the_plan(void **state)
{
    (void)state;
    brg_tensor *ids =
        brg_from_data(BRG_DTYPE_I64, BRG_SHAPE(3), (int64_t[]){1, 4, 1});
    brg_embedding_options options = BRG_EMBEDDING_OPTIONS_INIT;
    options.sparse_grad = true;
    for (int round = 0; round < 2; round++) {
        brg_tensor *table = leaf_from(0, BRG_SHAPE(5, 2));
        backward_compiled(
            brg_sum_all(brg_embedding_with(table, ids, &options)));
        assert_true(brg_tensor_is_sparse(brg_tensor_grad(table)));
        brg_tensor *dense = brg_to_dense(brg_tensor_grad(table));
        assert_float_equal(element(dense, 2), 2, 0);
        assert_float_equal(element(dense, 8), 1, 0);
    }
    assert_int_equal(compile_stats().captures, 1);
    assert_int_equal(compile_stats().hits, 1);
    assert_int_equal(compile_stats().fallbacks, 0);
}

/* A rule that needs a dense gradient and gets a sparse one: the engine says
 * which. */
static void test_compiled__what_cannot_be_compiled_runs_eagerly(void **state)
{
    (void)state;
    brg_tensor *ids =
        brg_from_data(BRG_DTYPE_I64, BRG_SHAPE(3), (int64_t[]){1, 4, 1});
    brg_embedding_options options = BRG_EMBEDDING_OPTIONS_INIT;
    options.sparse_grad = true;
    brg_compile_options full = BRG_COMPILE_OPTIONS_INIT;
    int scope;
    for (int is_full = 0; is_full < 2; is_full++) {
        full.fullgraph = is_full;
        brg_tensor *table = leaf_from(0, BRG_SHAPE(5, 2));
        brg_tensor *y = brg_embedding_with(brg_tanh(table), ids, &options);
        assert_brg_ok(brg_compile_begin(&scope, &full));
        assert_brg_fails_with(brg_backward(brg_sum_all(y)), BRG_ERR_UNSUPPORTED,
                              is_full ? "fullgraph: this backward cannot be "
                                        "compiled: tanh_grad: input 0"
                                      : "backward of tanh");
        assert_brg_ok(brg_compile_end(scope));
        assert_int_equal(compile_stats().fallbacks, 1);
    }
    assert_int_equal(compile_stats().captures, 0);
}

/* ---- The plan ------------------------------------------------------------------------------------ */

static void test_compiled__plan_has_a_stable_text(void **state)
{
    (void)state;
    brg_tensor *w = leaf_from(1, BRG_SHAPE(3)), *b = leaf_from(1, BRG_SHAPE(3));
    brg_tensor *x = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(2, 3));
    backward_by(BRG_COMPILE_BACKEND_EAGER,
                brg_sum_all(brg_add(brg_mul(x, w), b)));
    char text[1024];
    size_t n = brg_compile_print(0, text, sizeof text);
    assert_true(n < sizeof text);
    assert_non_null(strstr(text, "accumulate@"));
    assert_non_null(strstr(text, "sum_to_like"));
    assert_non_null(strstr(text, "final_callbacks()"));
    /* b is complete, and accumulated, before w's gradient exists. */
    const char *first = strstr(text, "accumulate@"),
               *mul = strstr(text, "= mul(");
    assert_non_null(mul);
    assert_true(first < mul);
    assert_int_equal(brg_compile_print(1, text, sizeof text), 0);
}

/* Chains, fans and sums become one node; what a product reads first runs as
 * early as before. */
static void test_compiled__groups_have_a_stable_text(void **state)
{
    (void)state;
    brg_tensor *w = leaf_from(1, BRG_SHAPE(4, 3)),
               *b = leaf_from(1, BRG_SHAPE(4));
    brg_tensor *v = leaf_from(1, BRG_SHAPE(2, 4));
    brg_tensor *x = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(5, 3));
    brg_tensor *h = brg_linear(x, w, b);
    brg_tensor *square = brg_mul(h, h); /* arguments have no order in C */
    h = brg_add(brg_tanh(h), square);
    backward_by(BRG_COMPILE_BACKEND_PASSES,
                brg_sum_all(brg_linear(h, v, NULL)));
    const char *text = plan_text(0);
    assert_string_equal(
        text, "v2 f32/2 = unsqueeze(in0)\n"
              "v3 f32/2 = expand_like(v2, in1)\n"
              "v8 f32/2 = contract_rows(v3, in2)\n"
              "accumulate@3(v8)\n"
              "v7 f32/2 = matmul(v3, in3)\n"
              "v29 f32/2, v30 f32/1 = fused(v7, in4, in5, slot8.0) "
              "{t0 = tanh_grad(a0, a1); t1 = mul(a0, a2); t2 = add(t0, t1); "
              "t3 = add(t2, t1) -> o0; t4 = sum_to_like(t3, a3) -> o1}\n"
              "v24 f32/2 = contract_rows(v29, in6)\n"
              "accumulate@7(v24)\n"
              "accumulate@8(v30)\n"
              "final_callbacks()\n");
}

/* An optimizer inside of the backward, as a hook. */
static brg_status halve_leaf(brg_tensor *leaf, void *user)
{
    ++*(int *)user;
    return brg_mul_scalar_(leaf, 0.5);
}

/* The rule of mul reads each operand for the gradient of the other. */
static void check_changed_leaf(brg_compile_backend backend, bool is_viewed)
{
    brg_tensor *w[2], *v[2];
    int n_calls = 0;
    for (int k = 0; k < 2; k++) {
        w[k] = leaf_from(2, BRG_SHAPE(3, 4));
        v[k] = leaf_from(3, BRG_SHAPE(3, 4));
        assert_brg_ok(brg_tensor_add_post_accumulate_hook(
            NULL, w[k], halve_leaf, &n_calls, NULL));
        brg_tensor *y = is_viewed ? brg_mul(brg_reshape(w[k], BRG_SHAPE(12)),
                                            brg_reshape(v[k], BRG_SHAPE(12)))
                                  : brg_mul(w[k], v[k]);
        if (k)
            backward_by(backend, brg_sum_all(y));
        else
            assert_brg_ok(brg_backward(brg_sum_all(y)));
    }
    assert_int_equal(n_calls, 2);
    expect_same_bits(w[0], w[1]);
    expect_same_bits(brg_tensor_grad(w[0]), brg_tensor_grad(w[1]));
    expect_same_bits(brg_tensor_grad(v[0]), brg_tensor_grad(v[1]));
}

static void test_compiled__hooks_that_change_leaves(void **state)
{
    (void)state;
    for (int is_viewed = 0; is_viewed < 2; is_viewed++) {
        check_changed_leaf(BRG_COMPILE_BACKEND_EAGER, is_viewed);
        check_changed_leaf(BRG_COMPILE_BACKEND_PASSES, is_viewed);
    }
}

static void test_compiled__steady_run_does_not_allocate(void **state)
{
    (void)state;
#if defined(__SANITIZE_ADDRESS__)
    skip(); /* the caches are off there */
#endif
    net n = make_net(6);
    brg_tensor *params[] = {n.w1, n.b1, n.w2, n.b2};
    brg_memory_stats before, after;
    for (int i = 0; i < 12; i++) {
        if (i == 4)
            brg_memory_get_stats(&before);
        brg_scope *scope = brg_scope_begin();
        backward_compiled(loss_of(&n, 6));
        brg_scope_end(scope);
        for (int k = 0; k < 4; k++)
            assert_brg_ok(brg_tensor_set_grad(params[k], NULL));
    }
    brg_memory_get_stats(&after);
    assert_int_equal(after.n_allocs - before.n_allocs, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_compiled__same_bits_as_eager),
        scoped_test(test_compiled__one_plan_for_all_batch_sizes),
        scoped_test(test_compiled__accumulating_is_a_second_plan),
        scoped_test(test_compiled__grad_of_chosen_inputs),
        scoped_test(test_compiled__retained_graph_again_and_again),
        scoped_test(test_compiled__graph_is_freed_unless_retained),
        scoped_test(test_compiled__random_ops_draw_the_same_mask),
        scoped_test(test_compiled__hooks_run_in_the_plan),
        scoped_test(test_compiled__custom_functions_are_called),
        scoped_test(test_compiled__one_value_in_two_places_of_a_call),
        scoped_test(test_compiled__a_failing_hook_ends_it_cleanly),
        scoped_test(test_compiled__scopes_nest_and_close_in_order),
        scoped_test(test_compiled__backward_inside_a_plan_is_eager),
        scoped_test(test_compiled__what_cannot_be_compiled_runs_eagerly),
        scoped_test(test_compiled__gradients_can_be_differentiated),
        scoped_test(test_compiled__sparse_gradients_are_in_the_plan),
        scoped_test(test_compiled__plan_has_a_stable_text),
        scoped_test(test_compiled__groups_have_a_stable_text),
        scoped_test(test_compiled__hooks_that_change_leaves),
        scoped_test(test_compiled__steady_run_does_not_allocate),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
