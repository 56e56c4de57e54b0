/* SPDX-License-Identifier: Apache-2.0
 * Rows of the backward suite: hooks of all kinds inside a plan, in eager order
 * and with eager values. */
#include "tests/rows/both.h"

/* ---- Hooks: x -> x * factor + offset ------------------------------------------- */

typedef struct affine {
    double factor, offset;
} affine;

static brg_tensor *apply_affine(brg_tensor *x, const affine *a)
{
    return brg_add_scalar(brg_mul_scalar(x, a->factor), a->offset);
}

static brg_status on_tensor(brg_tensor *grad, brg_tensor **replacement,
                            void *user)
{
    *replacement = apply_affine(grad, user);
    return *replacement ? BRG_OK : brg_error_code();
}

static brg_status on_pre(brg_tensor **grads, size_t n, void *user)
{
    for (size_t i = 0; i < n; i++)
        if (grads[i] && !(grads[i] = apply_affine(grads[i], user)))
            return brg_error_code();
    return BRG_OK;
}

/* Binds .grad anew. */
static brg_status rebind(brg_tensor *leaf, void *user)
{
    brg_tensor *grad = apply_affine(brg_tensor_grad(leaf), user);
    return grad ? brg_tensor_set_grad(leaf, grad) : brg_error_code();
}

/* The post-hook of an accumulate node knows its leaf from its user pointer. */
typedef struct leaf_affine {
    brg_tensor *leaf;
    affine change;
} leaf_affine;

static brg_status on_accumulated(brg_tensor **grad_in, size_t n_in,
                                 brg_tensor *const *grad_out, size_t n_out,
                                 void *user)
{
    (void)grad_in;
    (void)grad_out;
    leaf_affine *l = user;
    if (n_in != 0 || n_out != 1)
        return brg_error_set(BRG_ERR_INTERNAL, __FILE__, __LINE__,
                             "%zu and %zu gradients", n_in, n_out);
    return rebind(l->leaf, &l->change);
}

/* ---- Two layers ------------------------------------------------------------------- */

typedef struct layers {
    brg_tensor *x, *w[2];
} layers;

static layers make_layers(void)
{
    layers l;
    l.x = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(4, 3));
    for (int k = 0; k < 2; k++) {
        l.w[k] = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(3, 3));
        assert_brg_ok(brg_set_requires_grad(l.w[k], true));
    }
    return l;
}

static brg_tensor *loss_of(const layers *l)
{
    brg_tensor *h = brg_sigmoid(brg_linear(l->x, l->w[0], NULL));
    return brg_sum_all(brg_sigmoid(brg_linear(h, l->w[1], NULL)));
}

/* The gradients without any hook, from copies of the weights. */
static layers plain_of(const layers *l)
{
    layers plain = {.x = l->x};
    int scope;
    for (int k = 0; k < 2; k++) {
        plain.w[k] = brg_copy(brg_detach(l->w[k]));
        assert_brg_ok(brg_set_requires_grad(plain.w[k], true));
    }
    assert_brg_ok(brg_compile_disable_begin(&scope));
    assert_brg_ok(brg_backward(loss_of(&plain)));
    assert_brg_ok(brg_compile_end(scope));
    return plain;
}

/* .grad of weight k is the plain one, changed one after the other. */
static void expect_changed(const layers *l, int k, const affine *changes, int n)
{
    layers plain = plain_of(l);
    const brg_tensor *grad = brg_tensor_grad(plain.w[k]);
    for (int64_t i = 0; i < 9; i++) {
        double want = element(grad, i);
        for (int j = 0; j < n; j++)
            want = want * changes[j].factor + changes[j].offset;
        assert_float_equal(element(brg_tensor_grad(l->w[k]), i), want, 1e-5);
    }
}

static void yield_grads(yields *y, const layers *l)
{
    yield_grad(y, l->w[0]);
    yield_grad(y, l->w[1]);
}

static void backward_and_yield(yields *y, const layers *l)
{
    assert_brg_ok(brg_backward(loss_of(l)));
    yield_grads(y, l);
}

static brg_node *node_of(brg_tensor *t)
{
    brg_node *node;
    assert_brg_ok(brg_tensor_node(&node, t));
    return node;
}

static void add_pre(brg_tensor *t, affine *a)
{
    brg_node *node = node_of(t);
    assert_brg_ok(brg_node_add_pre_hook(NULL, node, on_pre, a, NULL));
    brg_node_release(node);
}

static void add_post(brg_tensor *t, brg_node_post_hook_fn fn, void *user)
{
    brg_node *node = node_of(t);
    assert_brg_ok(brg_node_add_post_hook(NULL, node, fn, user, NULL));
    brg_node_release(node);
}

/* Accumulate nodes live as long as somebody needs them: these hold them. */
typedef struct kept_nodes {
    brg_node *at[2];
} kept_nodes;

static kept_nodes keep_nodes(const layers *l)
{
    return (kept_nodes){{node_of(l->w[0]), node_of(l->w[1])}};
}

static void drop_nodes(kept_nodes k)
{
    brg_node_release(k.at[0]);
    brg_node_release(k.at[1]);
}

/* ---- Orders ------------------------------------------------------------------------- */

static void test_reorder_all_bwd_hooks_body(yields *y)
{
    static affine minus_2 = {1, -2}, fifth = {0.2, 0}, plus_3 = {1, 3};
    static const affine all[] = {{1, -2}, {0.2, 0}, {1, 3}, {0.5, 0}};
    layers l = make_layers();
    kept_nodes kept = keep_nodes(&l);
    leaf_affine half[2];
    for (int k = 0; k < 2; k++) {
        half[k] = (leaf_affine){l.w[k], {0.5, 0}};
        assert_brg_ok(
            brg_tensor_add_hook(NULL, l.w[k], on_tensor, &minus_2, NULL));
        add_pre(l.w[k], &fifth);
        assert_brg_ok(brg_tensor_add_post_accumulate_hook(NULL, l.w[k], rebind,
                                                          &plus_3, NULL));
        add_post(l.w[k], on_accumulated, &half[k]);
    }
    backward_and_yield(y, &l);
    for (int k = 0; k < 2; k++)
        expect_changed(&l, k, all, 4);
    drop_nodes(kept);
}
BOTH_ROW(test_reorder_all_bwd_hooks, 1)

static void test_reorder_multi_post_hooks_body(yields *y)
{
    static const affine changes[2][2] = {{{0.5, 0}, {1, -0.3}},
                                         {{0.3, 0}, {1, -0.5}}};
    layers l = make_layers();
    kept_nodes kept = keep_nodes(&l);
    leaf_affine hooks[2][2];
    for (int k = 0; k < 2; k++)
        for (int j = 0; j < 2; j++) {
            hooks[k][j] = (leaf_affine){l.w[k], changes[k][j]};
            add_post(l.w[k], on_accumulated, &hooks[k][j]);
        }
    backward_and_yield(y, &l);
    for (int k = 0; k < 2; k++)
        expect_changed(&l, k, changes[k], 2);
    drop_nodes(kept);
}
BOTH_ROW(test_reorder_multi_post_hooks, 1)

static void test_reorder_multi_pre_hooks_body(yields *y)
{
    static affine changes[] = {{0.2, 0}, {1, -0.3}};
    layers l = make_layers();
    kept_nodes kept = keep_nodes(&l);
    for (int k = 0; k < 2; k++) {
        add_pre(l.w[k], &changes[0]);
        add_pre(l.w[k], &changes[1]);
    }
    backward_and_yield(y, &l);
    for (int k = 0; k < 2; k++)
        expect_changed(&l, k, changes, 2);
    drop_nodes(kept);
}
BOTH_ROW(test_reorder_multi_pre_hooks, 1)

static void test_reorder_multi_tensor_pre_hooks_body(yields *y)
{
    static affine changes[] = {{1, -2}, {0.5, 0}};
    layers l = make_layers();
    for (int k = 0; k < 2; k++)
        for (int j = 0; j < 2; j++)
            assert_brg_ok(brg_tensor_add_hook(NULL, l.w[k], on_tensor,
                                              &changes[j], NULL));
    backward_and_yield(y, &l);
    for (int k = 0; k < 2; k++)
        expect_changed(&l, k, changes, 2);
}
BOTH_ROW(test_reorder_multi_tensor_pre_hooks, 1)

static void test_reorder_post_hook1_body(yields *y)
{
    layers l = make_layers();
    kept_nodes kept = keep_nodes(&l);
    leaf_affine quarter[2];
    for (int k = 0; k < 2; k++) {
        quarter[k] = (leaf_affine){l.w[k], {0.25, 0}};
        add_post(l.w[k], on_accumulated, &quarter[k]);
    }
    backward_and_yield(y, &l);
    for (int k = 0; k < 2; k++)
        expect_changed(&l, k, &quarter[k].change, 1);
    drop_nodes(kept);
}
BOTH_ROW(test_reorder_post_hook1, 1)

/* ---- Hooks of nodes in the middle ------------------------------------------------------ */

/* Each gradient of the inputs becomes twice it. */
static brg_status double_in(brg_tensor **grad_in, size_t n_in,
                            brg_tensor *const *grad_out, size_t n_out,
                            void *user)
{
    (void)grad_out;
    (void)n_out;
    (void)user;
    for (size_t i = 0; i < n_in; i++)
        if (grad_in[i] && !(grad_in[i] = brg_mul_scalar(grad_in[i], 2)))
            return brg_error_code();
    return BRG_OK;
}

/* The gradient of the only input becomes twice that of the output. */
static brg_status double_out(brg_tensor **grad_in, size_t n_in,
                             brg_tensor *const *grad_out, size_t n_out,
                             void *user)
{
    (void)user;
    if (n_in != 1 || n_out != 1)
        return brg_error_set(BRG_ERR_INTERNAL, __FILE__, __LINE__,
                             "%zu and %zu gradients", n_in, n_out);
    grad_in[0] = brg_mul_scalar(grad_out[0], 2);
    return grad_in[0] ? BRG_OK : brg_error_code();
}

static void test_reorder_post_hook2_body(yields *y)
{
    brg_backward_options keep = BRG_BACKWARD_OPTIONS_INIT;
    keep.retain_graph = true;
    brg_tensor *x = leaf_full(0.5, BRG_SHAPE(4, 4));
    brg_tensor *a = brg_cos(x), *b = brg_sin(a);
    brg_tensor *loss = brg_sum_all(b);
    add_post(a, double_out, NULL); /* x.grad = 2 gO of the cosine */
    add_post(b, double_in, NULL);  /* which is 2 cos(cos(x)) */
    for (int round = 0; round < 2; round++) {
        assert_brg_ok(brg_tensor_set_grad(x, NULL));
        assert_brg_ok(brg_backward_with(&loss, 1, &keep));
        expect_all(brg_tensor_grad(x), 4 * cos(cos(0.5)));
        yield_grad(y, x);
    }
}
BOTH_ROW(test_reorder_post_hook2, 1)

static brg_status double_weight(brg_tensor **grad_in, size_t n_in,
                                brg_tensor *const *grad_out, size_t n_out,
                                void *user)
{
    (void)grad_out;
    (void)n_out;
    (void)user;
    if (n_in < 2 || grad_in[0] || !grad_in[1])
        return brg_error_set(BRG_ERR_INTERNAL, __FILE__, __LINE__,
                             "expected a gradient of the weight only");
    grad_in[1] = brg_mul_scalar(grad_in[1], 2);
    return grad_in[1] ? BRG_OK : brg_error_code();
}

static void test_reorder_post_hook3_body(yields *y)
{
    brg_tensor *x = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(2, 3, 8, 8));
    brg_tensor *w[2]; /* hooked, and not */
    w[0] = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(4, 3, 3, 3));
    w[1] = brg_copy(w[0]);
    for (int k = 0; k < 2; k++) {
        assert_brg_ok(brg_set_requires_grad(w[k], true));
        brg_tensor *h = brg_conv2d(x, w[k], NULL, NULL);
        if (k == 0)
            add_post(h, double_weight, NULL);
        int scope = 0;
        if (k == 1)
            assert_brg_ok(brg_compile_disable_begin(&scope));
        backward_of_sum(brg_sigmoid(h));
        if (k == 1)
            assert_brg_ok(brg_compile_end(scope));
        yield_grad(y, w[k]);
    }
    for (int64_t i = 0; i < brg_tensor_numel(w[0]); i++)
        assert_float_equal(element(brg_tensor_grad(w[0]), i),
                           2 * element(brg_tensor_grad(w[1]), i), 0);
}
BOTH_ROW(test_reorder_post_hook3, 1)

/* ---- Accumulation right after what made it ----------------------------------------------- */

static void test_reorder_acc_grad_body(yields *y)
{
    brg_tensor *x = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(1, 2, 8, 8));
    brg_tensor *p[4] = {brg_randn(BRG_DTYPE_F32, BRG_SHAPE(3, 2, 3, 3)),
                        brg_randn(BRG_DTYPE_F32, BRG_SHAPE(3)),
                        brg_randn(BRG_DTYPE_F32, BRG_SHAPE(4, 3, 3, 3)),
                        brg_randn(BRG_DTYPE_F32, BRG_SHAPE(4))};
    for (int k = 0; k < 4; k++)
        assert_brg_ok(brg_set_requires_grad(p[k], true));
    brg_tensor *h = brg_sigmoid(brg_conv2d(x, p[0], p[1], NULL));
    brg_tensor *loss = brg_sum_all(brg_conv2d(h, p[2], p[3], NULL));
    brg_backward_options keep = BRG_BACKWARD_OPTIONS_INIT;
    keep.retain_graph = true;
    assert_brg_ok(brg_backward_with(&loss, 1, &keep));
    for (int k = 0; k < 4; k++)
        yield_grad(y, p[k]);
}

/* The later layer's parameters get their gradients before the backward goes
 * through the sigmoid to the earlier layer. */
static void test_reorder_acc_grad(void **state)
{
    (void)state;
    run_both(test_reorder_acc_grad_body, 1);
    const char *text = plan_text(0);
    const char *sigmoid = strstr(text, "sigmoid"), *at = text;
    assert_non_null(sigmoid);
    int n_before = 0, n_after = 0;
    while ((at = strstr(at, "accumulate@"))) {
        if (at++ < sigmoid)
            n_before++;
        else
            n_after++;
    }
    assert_int_equal(n_before, 2);
    assert_int_equal(n_after, 2);
}

/* ---- Hooks on networks made anew ------------------------------------------------------------ */

static void test_tensor_grad_hook1_body(yields *y)
{
    static affine twice = {2, 0};
    for (int net = 0; net < 3; net++) {
        layers l = make_layers();
        assert_brg_ok(
            brg_tensor_add_hook(NULL, l.w[0], on_tensor, &twice, NULL));
        backward_and_yield(y, &l);
        expect_changed(&l, 0, &twice, 1);
        expect_changed(&l, 1, NULL, 0);
    }
}
BOTH_ROW(test_tensor_grad_hook1, 1)

static void test_tensor_grad_hook2_body(yields *y)
{
    static affine plus_1 = {1, 1};
    static const affine twice = {2, 0}; /* the root's 1 is 2 now */
    for (int net = 0; net < 3; net++) {
        layers l = make_layers();
        brg_tensor *loss = loss_of(&l);
        add_pre(loss, &plus_1);
        assert_brg_ok(brg_backward(loss));
        yield_grads(y, &l);
        for (int k = 0; k < 2; k++)
            expect_changed(&l, k, &twice, 1);
    }
}
BOTH_ROW(test_tensor_grad_hook2, 1)

/* sin(gI) + gO */
static brg_status mix(brg_tensor **grad_in, size_t n_in,
                      brg_tensor *const *grad_out, size_t n_out, void *user)
{
    (void)user;
    if (n_in != 1 || n_out != 1)
        return brg_error_set(BRG_ERR_INTERNAL, __FILE__, __LINE__,
                             "%zu and %zu gradients", n_in, n_out);
    grad_in[0] = brg_add(brg_sin(grad_in[0]), grad_out[0]);
    return grad_in[0] ? BRG_OK : brg_error_code();
}

static void test_tensor_grad_hook3_body(yields *y)
{
    for (int net = 0; net < 3; net++) {
        layers l = make_layers();
        brg_tensor *loss = loss_of(&l);
        add_post(loss, mix, NULL);
        assert_brg_ok(brg_backward(loss));
        yield_grads(y, &l);
        const affine mixed = {sin(1) + 1, 0}; /* of ones */
        for (int k = 0; k < 2; k++)
            expect_changed(&l, k, &mixed, 1);
    }
}
BOTH_ROW(test_tensor_grad_hook3, 1)

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_reorder_acc_grad),
        scoped_test(test_reorder_all_bwd_hooks),
        scoped_test(test_reorder_multi_post_hooks),
        scoped_test(test_reorder_multi_pre_hooks),
        scoped_test(test_reorder_multi_tensor_pre_hooks),
        scoped_test(test_reorder_post_hook1),
        scoped_test(test_reorder_post_hook2),
        scoped_test(test_reorder_post_hook3),
        scoped_test(test_tensor_grad_hook1),
        scoped_test(test_tensor_grad_hook2),
        scoped_test(test_tensor_grad_hook3),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
