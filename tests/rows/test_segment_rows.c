/* SPDX-License-Identifier: Apache-2.0
 * Rows of the suite `backward` on functions compiled whole, whose own backwards
 * become part of a compiled one. */
#include <brigade/control.h>

#include "tests/rows/both.h"

static brg_tensor *run(brg_compiled *c, brg_tensor *const *in, size_t n)
{
    brg_tensor *out = NULL;
    assert_brg_ok(brg_compiled_call(c, in, n, &out, 1));
    return out;
}

/* As captured, so that the plan's text shows where each op comes from. */
static void backward_with(brg_compile_backend backend, brg_tensor *y)
{
    int scope;
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    options.backend = backend;
    assert_brg_ok(brg_compile_begin(&scope, &options));
    backward_of_sum(y);
    assert_brg_ok(brg_compile_end(scope));
}

/* The plan as captured, which is what the texts below show. */
static void backward_compiled(brg_tensor *y)
{
    backward_with(BRG_COMPILE_BACKEND_EAGER, y);
}

/* ---- A network of two layers -------------------------------------------------------- */

typedef struct net {
    brg_tensor *w[2];
} net;

static net make_net(void)
{
    net n = {{brg_randn(BRG_DTYPE_F32, BRG_SHAPE(6, 4)),
              brg_randn(BRG_DTYPE_F32, BRG_SHAPE(3, 6))}};
    for (int i = 0; i < 2; i++)
        assert_brg_ok(brg_set_requires_grad(n.w[i], true));
    return n;
}

static brg_status forward(brg_tensor *const *in, size_t n_in, brg_tensor **out,
                          size_t n_out, void *user)
{
    const net *n = user;
    (void)n_in;
    (void)n_out;
    out[0] =
        brg_linear(brg_tanh(brg_linear(in[0], n->w[0], NULL)), n->w[1], NULL);
    return out[0] ? BRG_OK : brg_error_code();
}

static void expect_grads_of(const net *a, const net *b)
{
    yields x = {0}, y = {0};
    for (int i = 0; i < 2; i++) {
        yield_grad(&x, a->w[i]);
        yield_grad(&y, b->w[i]);
    }
    assert_int_equal(x.n, y.n);
    assert_memory_equal(x.at, y.at, x.n);
    free(x.at);
    free(y.at);
}

static void drop_grads(const net *n)
{
    for (int i = 0; i < 2; i++)
        assert_brg_ok(brg_tensor_set_grad(n->w[i], NULL));
}

/* What is kept for splicing is the backward as captured, and it runs: alone,
 * and inside another plan. */
static void test_aot_bwd_gm_runnable(void **state)
{
    (void)state;
    brg_seed(1);
    net a = make_net();
    brg_seed(1);
    net b = make_net();
    brg_compiled *c = compile_whole(forward, &b);
    assert_brg_ok(brg_compiled_mark_dynamic(c, 0, 0));
    for (int64_t batch = 2; batch < 8; batch++) {
        bool is_spliced = batch % 2;
        brg_tensor *x = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(batch, 4)), *y;
        assert_brg_ok(forward(&x, 1, &y, 1, &a));
        backward_of_sum(y);
        y = run(c, &x, 1);
        if (is_spliced)
            backward_compiled(y);
        else
            backward_of_sum(y);
        expect_grads_of(&a, &b);
        drop_grads(&a);
        drop_grads(&b);
    }
    assert_int_equal(both_stats().captures, 1);
    /* Line by line what the plan got from it. */
    static char pristine[1 << 16];
    size_t n = brg_compiled_print(c, 1, pristine, sizeof pristine);
    assert_true(n > 0 && n < sizeof pristine);
    const char *text = plan_text(0);
    for (const char *at = pristine; (at = strstr(at, " = ")); at++) {
        char name[48] = "/";
        sscanf(at + 3, "%40[a-z_0-9]", name + 1);
        assert_non_null(strstr(text, name));
    }
    brg_compiled_destroy(c);
}

/* ---- Sizes ------------------------------------------------------------------------------- */

typedef struct joined {
    brg_tensor *w;
} joined;

static brg_status join_and_map(brg_tensor *const *in, size_t n_in,
                               brg_tensor **out, size_t n_out, void *user)
{
    const joined *j = user;
    (void)n_in;
    (void)n_out;
    brg_tensor *both = brg_cat((brg_tensor *[]){in[0], in[0]}, 2, 0);
    out[0] = brg_reshape(brg_linear(both, j->w, NULL), BRG_SHAPE(-1));
    return out[0] ? BRG_OK : brg_error_code();
}

FORWARD(opaque_forward)
{
    OUT(0, brg_mul_scalar(ARG(0), 2));
    return BRG_OK;
}

BACKWARD(opaque_backward)
{
    GRAD(0, brg_mul_scalar(g[0], 2));
    return BRG_OK;
}

/* Two modules with an opaque function between them; returns the gradients. */
static void train_joined(yields *y, brg_compiled *const *c, const joined *j,
                         const brg_function *f, int64_t batch)
{
    brg_tensor *x = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(batch, 4)), *h = x;
    for (int k = 0; k < 2; k++) {
        if (c)
            h = run(c[k], &h, 1);
        else
            assert_brg_ok(join_and_map(&h, 1, &h, 1, (void *)(uintptr_t)&j[k]));
        h = CALL(f, h);
        h = brg_reshape(h, BRG_SHAPE(-1, 4));
    }
    backward_of_sum(brg_square(h));
    for (int k = 0; k < 2; k++) {
        yield_grad(y, j[k].w);
        assert_brg_ok(brg_tensor_set_grad(j[k].w, NULL));
    }
}

static void
test_compiled_autograd_does_not_specialize_on_bw_symints(void **state)
{
    (void)state;
    static const int64_t batches[] = {3, 7, 5, 11};
    yields eager = {0}, compiled = {0};
    joined j[2];
    brg_compiled *c[2];
    int scope;
    brg_function *f = function_of("Opaque", opaque_forward, opaque_backward, 1);
    for (int k = 0; k < 2; k++) {
        j[k].w = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(4, 4));
        assert_brg_ok(brg_set_requires_grad(j[k].w, true));
        c[k] = compile_whole(join_and_map, &j[k]);
    }
    for (int i = 0; i < 4; i++) {
        brg_seed((uint64_t)i);
        train_joined(&eager, NULL, j, f, batches[i]);
        brg_seed((uint64_t)i);
        assert_brg_ok(brg_compile_begin(&scope, NULL));
        train_joined(&compiled, c, j, f, batches[i]);
        assert_brg_ok(brg_compile_end(scope));
        assert_int_equal(both_stats().captures, i == 0 ? 1 : 2);
        assert_int_equal(both_stats().specialisations, i + 1);
    }
    assert_int_equal(eager.n, compiled.n);
    assert_memory_equal(eager.at, compiled.at, eager.n);
    free(eager.at);
    free(compiled.at);
    for (int k = 0; k < 2; k++)
        brg_compiled_destroy(c[k]);
    brg_function_release(f);
}

/* ---- One function three times in a graph ----------------------------------------------------- */

static brg_status wave(brg_tensor *const *in, size_t n_in, brg_tensor **out,
                       size_t n_out, void *user)
{
    (void)n_in;
    (void)n_out;
    (void)user;
    out[0] = brg_mul(brg_sin(in[0]), in[0]);
    return out[0] ? BRG_OK : brg_error_code();
}

static void test_logs_aot_bwd_reuse(void **state)
{
    (void)state;
    brg_compiled *c = compile_whole(wave, NULL);
    brg_tensor *x = leaf_full(0.5, BRG_SHAPE(4)), *h = x;
    for (int i = 0; i < 3; i++)
        h = run(c, &h, 1);
    backward_compiled(h);
    const char *text = plan_text(0);
    size_t n = brg_test_count(text, "_0/");
    assert_true(n > 0);
    assert_int_equal(brg_test_count(text, "_1/"), n);
    assert_int_equal(brg_test_count(text, "_2/"), n);
    assert_int_equal(brg_test_count(text, "_3/"), 0);
    double at = 0.5, slope = 1;
    for (int i = 0; i < 3; i++) {
        slope *= sin(at) + at * cos(at);
        at *= sin(at);
    }
    expect_all(brg_tensor_grad(x), slope);
    brg_compiled_destroy(c);
}

/* ---- Control flow inside a backward ----------------------------------------------------------- */

#define REGION(name)                                                           \
    static brg_status name(ROW_UNUSED brg_tensor *const *in,                   \
                           ROW_UNUSED size_t n_in, brg_tensor **out,           \
                           ROW_UNUSED size_t n_out, ROW_UNUSED void *user)

REGION(by_two)
{
    out[0] = brg_mul_scalar(in[0], 2);
    return out[0] ? BRG_OK : brg_error_code();
}

REGION(by_itself)
{
    out[0] = brg_mul(in[0], in[0]);
    return out[0] ? BRG_OK : brg_error_code();
}

REGION(sum_is_small)
{
    brg_tensor *sum = brg_sum_all(in[0]);
    out[0] = brg_lt(sum, brg_full_like(sum, 100));
    return out[0] ? BRG_OK : brg_error_code();
}

REGION(add_up)
{
    out[0] = brg_add(in[0], in[1]);
    out[1] = brg_mul(out[0], in[1]);
    return out[1] ? BRG_OK : brg_error_code();
}

FORWARD(region_forward)
{
    SAVE(ARG(0));
    OUT(0, brg_mul_scalar(ARG(0), 1));
    return BRG_OK;
}

typedef brg_tensor *(*region_use)(brg_tensor *g);

static brg_tensor *use_cond(brg_tensor *g)
{
    brg_tensor *out;
    brg_tensor *sum = brg_sum_all(g);
    const brg_region two = {by_two, NULL}, itself = {by_itself, NULL};
    return brg_cond(&out, 1, brg_gt(sum, brg_zeros_like(sum)), two, itself, &g,
                    1) == BRG_OK
               ? out
               : NULL;
}

static brg_tensor *use_loop(brg_tensor *g)
{
    brg_tensor *out, *start = brg_add_scalar(brg_mul(g, g), 1);
    const brg_region small = {sum_is_small, NULL}, two = {by_two, NULL};
    return brg_while_loop(&out, small, two, &start, 1) == BRG_OK ? out : NULL;
}

static brg_tensor *use_map(brg_tensor *g)
{
    brg_tensor *out;
    const brg_region itself = {by_itself, NULL};
    return brg_map(&out, 1, itself, &g, 1, NULL, 0) == BRG_OK ? out : NULL;
}

static brg_tensor *use_scan(brg_tensor *g)
{
    brg_tensor *out, *carry = brg_select(g, 0, 0);
    const brg_region add = {add_up, NULL};
    return brg_scan(&carry, 1, &out, 1, add, &g, 1) == BRG_OK
               ? brg_add(out, carry)
               : NULL;
}

static const region_use region_uses[] = {use_cond, use_loop, use_map, use_scan};

BACKWARD(region_backward)
{
    const region_use *use = brg_context_user(ctx);
    SAVED(x, 0);
    GRAD(0, (*use)(brg_mul(g[0], x)));
    return BRG_OK;
}

static void test_hops_in_bwd_body(yields *y)
{
    for (size_t k = 0; k < 4; k++) {
        brg_function *f =
            new_function(.name = "Region", .n_outputs = 1,
                         .forward = region_forward, .backward = region_backward,
                         .user = (void *)(uintptr_t)&region_uses[k]);
        for (int sign = -1; sign <= 1; sign += 2) {
            brg_tensor *x =
                brg_mul_scalar(brg_rand(BRG_DTYPE_F32, BRG_SHAPE(3, 4)), sign);
            assert_brg_ok(brg_set_requires_grad(x, true));
            brg_tensor *out = CALL(f, x);
            yield(y, out);
            backward_of_sum(out);
            yield_grad(y, x);
        }
        brg_function_release(f);
    }
}
BOTH_ROW(test_hops_in_bwd, 4)

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_aot_bwd_gm_runnable),
        scoped_test(test_compiled_autograd_does_not_specialize_on_bw_symints),
        scoped_test(test_logs_aot_bwd_reuse),
        scoped_test(test_hops_in_bwd),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
