/* SPDX-License-Identifier: Apache-2.0
 * Rows of the suite `backward` on plans of small networks: one plan for many
 * networks and batch sizes, order of hooks, disabling. */
#include "tests/rows/both.h"

/* ---- A network of two layers ------------------------------------------------------ */

typedef struct mlp {
    brg_tensor *params[4];
} mlp;

static mlp make_mlp(void)
{
    mlp m = {{brg_randn(BRG_DTYPE_F32, BRG_SHAPE(16, 4)),
              brg_randn(BRG_DTYPE_F32, BRG_SHAPE(16)),
              brg_randn(BRG_DTYPE_F32, BRG_SHAPE(8, 16)),
              brg_randn(BRG_DTYPE_F32, BRG_SHAPE(8))}};
    for (int i = 0; i < 4; i++)
        assert_brg_ok(brg_set_requires_grad(m.params[i], true));
    return m;
}

static brg_tensor *forward_mlp(const mlp *m, brg_tensor *x)
{
    brg_tensor *h = brg_relu(brg_linear(x, m->params[0], m->params[1]));
    return brg_linear(h, m->params[2], m->params[3]);
}

static brg_tensor *apply_mlp(const mlp *m, int64_t batch)
{
    return forward_mlp(m, brg_randn(BRG_DTYPE_F32, BRG_SHAPE(batch, 4)));
}

/* Yields the four gradients and removes them. */
static void yield_mlp(yields *y, const mlp *m)
{
    for (int i = 0; i < 4; i++) {
        assert_non_null(brg_tensor_grad(m->params[i]));
        yield_grad(y, m->params[i]);
        assert_brg_ok(brg_tensor_set_grad(m->params[i], NULL));
    }
}

static void train(yields *y, const mlp *m, int64_t batch)
{
    assert_brg_ok(brg_backward(brg_sum_all(apply_mlp(m, batch))));
    yield_mlp(y, m);
}

/* The gradients of unit k of the first layer, and of its column in the second,
 * for a gradient of ones of the output. */
static void check_unit(const mlp *m, const brg_tensor *x, int64_t batch, int k)
{
    double column = 0, sum = 0, n_on = 0, by_input[4] = {0};
    for (int j = 0; j < 8; j++)
        column += element(m->params[2], 16 * j + k);
    for (int64_t b = 0; b < batch; b++) {
        double h = element(m->params[1], k);
        for (int i = 0; i < 4; i++)
            h += element(x, 4 * b + i) * element(m->params[0], 4 * k + i);
        if (h <= 0)
            continue;
        sum += h;
        n_on++;
        for (int i = 0; i < 4; i++)
            by_input[i] += element(x, 4 * b + i);
    }
    for (int i = 0; i < 4; i++)
        assert_float_equal(element(brg_tensor_grad(m->params[0]), 4 * k + i),
                           column * by_input[i], 1e-4);
    assert_float_equal(element(brg_tensor_grad(m->params[1]), k), column * n_on,
                       1e-4);
    for (int j = 0; j < 8; j++)
        assert_float_equal(element(brg_tensor_grad(m->params[2]), 16 * j + k),
                           sum, 1e-4);
}

static void test_basic_body(yields *y)
{
    mlp m = make_mlp();
    brg_tensor *x = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(3, 4));
    assert_brg_ok(brg_backward(brg_sum_all(forward_mlp(&m, x))));
    for (int k = 0; k < 16; k++)
        check_unit(&m, x, 3, k);
    expect_all(brg_tensor_grad(m.params[3]), 3);
    yield_mlp(y, &m);
}
BOTH_ROW(test_basic, 1)

static void cache_hit_body(yields *y)
{
    for (int i = 0; i < 3; i++) {
        mlp m = make_mlp();
        train(y, &m, 3);
    }
}

static void test_cache_hit(void **state)
{
    (void)state;
    run_both(cache_hit_body, 1);
    assert_int_equal(both_stats().hits, 2);
    assert_int_equal(both_stats().specialisations, 1);
}

/* ---- Sizes -------------------------------------------------------------------------- */

static void dynamic_shapes_body(yields *y)
{
    mlp m = make_mlp();
    for (int64_t batch = 10; batch <= 90; batch += 10)
        train(y, &m, batch);
}

static void test_dynamic_shapes(void **state)
{
    (void)state;
    run_both(dynamic_shapes_body, 1);
    assert_int_equal(both_stats().hits, 8);
}

/* The size stands in an op of the graph, not only in its tensors. */
static void eager_node_body(yields *y)
{
    static const int64_t sizes[] = {2, 4, 8};
    mlp m = make_mlp();
    for (int i = 0; i < 3; i++) {
        int64_t s = sizes[i];
        brg_tensor *out = brg_reshape(apply_mlp(&m, 8), BRG_SHAPE(s, -1));
        assert_int_equal(brg_tensor_shape(out)[1], 64 / s);
        assert_brg_ok(brg_backward(brg_sum_all(out)));
        yield_mlp(y, &m);
    }
}

static void test_dynamic_shapes_eager_node(void **state)
{
    (void)state;
    run_both(eager_node_body, 1);
    assert_int_equal(both_stats().hits, 2);
}

/* ---- Compiled functions -------------------------------------------------------------- */

typedef struct training {
    yields *y;
    mlp m;
    int64_t batch;
} training;

static brg_status train_fn(brg_tensor *const *in, size_t n_in, brg_tensor **out,
                           size_t n_out, void *user)
{
    (void)in, (void)n_in, (void)out, (void)n_out;
    const training *t = user;
    train(t->y, &t->m, t->batch);
    return BRG_OK;
}

/* Trains with batches of 1, 2, 3: as a compiled function, or in a scope that
 * has the sizes of one. */
static void train_compiled(yields *y, brg_compile_options options,
                           bool is_scope)
{
    training t = {.y = y};
    brg_compiled *compiled;
    int scope = 0;
    brg_seed(7);
    t.m = make_mlp();
    options.dynamic = is_scope ? BRG_COMPILE_DYNAMIC_CHANGED : options.dynamic;
    assert_brg_ok(brg_compiled_create(&compiled, train_fn, &t, &options));
    if (is_scope)
        assert_brg_ok(brg_compile_begin(&scope, &options));
    for (t.batch = 1; t.batch <= 3; t.batch++)
        assert_brg_ok(is_scope ? train_fn(NULL, 0, NULL, 0, &t)
                               : brg_compiled_call(compiled, NULL, 0, NULL, 0));
    if (is_scope)
        assert_brg_ok(brg_compile_end(scope));
    brg_compiled_destroy(compiled);
}

/* Two ways to ask for it, three backends. */
static void test_compile_api(void **state)
{
    (void)state;
    yields eager = {0};
    brg_seed(7);
    mlp m = make_mlp();
    for (int64_t batch = 1; batch <= 3; batch++)
        train(&eager, &m, batch);
    for (int variant = 0; variant < 6; variant++) {
        brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
        options.backend = BRG_COMPILE_BACKEND_EAGER + variant % 3;
        yields compiled = {.is_compiled = true};
        assert_brg_ok(brg_compile_reset());
        train_compiled(&compiled, options, variant / 3 > 0);
        assert_int_equal(compiled.n, eager.n);
        assert_memory_equal(compiled.at, eager.at, eager.n);
        assert_int_equal(both_stats().captures, 2); /* static, then dynamic */
        assert_int_equal(both_stats().fallbacks, 0);
        free(compiled.at);
    }
    free(eager.at);
}

/* ---- Disabled -------------------------------------------------------------------------- */

/* Six ways to ask for compiled backwards: with two kinds of options, around
 * the backward, around the step, or around all. */
static void disabled_body(yields *y)
{
    for (int variant = 0; variant < 6; variant++) {
        brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
        options.fullgraph = variant % 2;
        mlp m = make_mlp();
        for (int64_t batch = 1; batch <= 3; batch++) {
            int outer = 0, inner = 0;
            if (y->is_compiled && variant / 2 > 0)
                assert_brg_ok(brg_compile_begin(&outer, &options));
            brg_tensor *loss = brg_sum_all(apply_mlp(&m, batch));
            if (y->is_compiled && variant / 2 != 1)
                assert_brg_ok(brg_compile_begin(&inner, &options));
            assert_false(brg_compile_is_on());
            assert_brg_ok(brg_backward(loss));
            if (inner)
                assert_brg_ok(brg_compile_end(inner));
            if (outer)
                assert_brg_ok(brg_compile_end(outer));
            yield_mlp(y, &m);
        }
    }
}

static void disabled_outside_body(yields *y)
{
    int scope;
    assert_brg_ok(brg_compile_disable_begin(&scope));
    disabled_body(y);
    assert_brg_ok(brg_compile_end(scope));
    assert_int_equal(brg_compile_is_on(), y->is_compiled);
}

static void test_compile_api_disable(void **state)
{
    (void)state;
    run_both(disabled_outside_body, 0);
    const brg_compile_stats none = {0}, stats = both_stats();
    assert_memory_equal(&stats, &none, sizeof none);
}

/* ---- Order of hooks ---------------------------------------------------------------------- */

typedef struct note {
    yields *y;
    const char *text;
} note;

static char order[256];

static void add_order(const char *kind, const char *node)
{
    size_t n = strlen(order);
    assert_in_range(
        snprintf(order + n, sizeof order - n, "%s %s\n", kind, node), 1,
        sizeof order - n - 1);
}

static brg_status on_tensor(brg_tensor *grad, brg_tensor **replacement,
                            void *user)
{
    (void)replacement;
    note *n = user;
    add_order("tensor", "w");
    yield(n->y, grad);
    return BRG_OK;
}

static brg_status on_accumulated(brg_tensor *leaf, void *user)
{
    note *n = user;
    add_order("post-accumulate", "w");
    yield_grad(n->y, leaf);
    return BRG_OK;
}

static brg_status on_pre(brg_tensor **grads, size_t n_grads, void *user)
{
    (void)grads;
    note *n = user;
    add_order("pre", n->text);
    yield_bytes(n->y, &n_grads, sizeof n_grads);
    return BRG_OK;
}

static brg_status on_post(brg_tensor **grad_in, size_t n_in,
                          brg_tensor *const *grad_out, size_t n_out, void *user)
{
    (void)grad_in;
    note *n = user;
    add_order("post", n->text);
    yield_bytes(n->y, &n_in, sizeof n_in);
    for (size_t i = 0; i < n_out; i++)
        yield(n->y, grad_out[i]);
    return BRG_OK;
}

static void hook_node(note *n, brg_tensor *t, const char *name)
{
    brg_node *node;
    assert_brg_ok(brg_tensor_node(&node, t));
    assert_string_equal(brg_node_name(node), name);
    n->text = name;
    assert_brg_ok(brg_node_add_pre_hook(NULL, node, on_pre, n, NULL));
    assert_brg_ok(brg_node_add_post_hook(NULL, node, on_post, n, NULL));
    brg_node_release(node);
}

static void test_backward_hook_relative_ordering_partial_body(yields *y)
{
    brg_tensor *x = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(10, 10));
    brg_tensor *w = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(10, 10));
    assert_brg_ok(brg_set_requires_grad(w, true));
    brg_tensor *out = brg_linear(x, w, NULL), *loss = brg_sum_all(out);
    note notes[4] = {{y, ""}, {y, ""}, {y, ""}, {y, ""}};
    hook_node(&notes[0], loss, brg_grad_fn_name(loss));
    hook_node(&notes[1], out, brg_grad_fn_name(out));
    hook_node(&notes[2], w, "accumulate");
    assert_brg_ok(brg_tensor_add_hook(NULL, w, on_tensor, &notes[3], NULL));
    assert_brg_ok(brg_tensor_add_post_accumulate_hook(NULL, w, on_accumulated,
                                                      &notes[3], NULL));
    assert_int_equal(y->n, 0);
    order[0] = '\0';
    assert_brg_ok(brg_backward(loss));
    yield_grad(y, w);
    assert_string_equal(order, "pre sum\n"
                               "post sum\n"
                               "pre linear\n"
                               "post linear\n"
                               "tensor w\n"
                               "pre accumulate\n"
                               "post-accumulate w\n"
                               "post accumulate\n");
    yield_text(y, order);
}
BOTH_ROW(test_backward_hook_relative_ordering_partial, 1)

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_backward_hook_relative_ordering_partial),
        scoped_test(test_basic),
        scoped_test(test_cache_hit),
        scoped_test(test_compile_api),
        scoped_test(test_compile_api_disable),
        scoped_test(test_dynamic_shapes),
        scoped_test(test_dynamic_shapes_eager_node),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
