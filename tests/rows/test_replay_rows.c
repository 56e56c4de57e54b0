/* SPDX-License-Identifier: Apache-2.0
 * Rows of the suite `backward` on plans that a device replays: which of them it
 * could. The device is made for tests, or a GPU (BRG_TEST_REPLAYS=cuda). */
#include <math.h>

#include "tests/autograd/graph.h"
#include "tests/compile/replays.h"

/* ---- Numbers of the host that only ops read ---------------------------------------- */

/* The sum of what a layer makes, in half precision; w: its weights. */
static brg_tensor *sum_of_layer(brg_tensor **w)
{
    brg_seed(7);
    brg_tensor *x = there(brg_randn(BRG_DTYPE_F16, BRG_SHAPE(10, 10)));
    *w = there(brg_randn(BRG_DTYPE_F16, BRG_SHAPE(10, 10)));
    assert_brg_ok(brg_set_requires_grad(*w, true));
    return brg_sum_all(brg_linear(x, *w, NULL));
}

static void expect_same(yields *first, yields *now, int k, const brg_tensor *t)
{
    now->n = 0;
    yield(k ? now : first, brg_to((brg_tensor *)(uintptr_t)t, HOME));
    if (k == 0)
        return;
    assert_int_equal(now->n, first->n);
    assert_memory_equal(now->at, first->at, first->n);
}

/* A backward that begins with one: what the sum is divided by. */
static void check_division_in_a_backward(void)
{
    yields first = {0}, now = {0};
    for (int k = 0; k < 5; k++) {
        int scope = 0;
        brg_tensor *w, *sum = sum_of_layer(&w);
        brg_tensor *share = brg_full(BRG_DTYPE_F16, BRG_SHAPE(), 0.01);
        brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
        brg_backward_options given = BRG_BACKWARD_OPTIONS_INIT;
        options.replay = true;
        given.grad_outputs = &share;
        if (k > 0) /* the first is eager */
            assert_brg_ok(brg_compile_begin(&scope, &options));
        assert_brg_ok(brg_backward_with(&sum, 1, &given));
        if (k > 0)
            assert_brg_ok(brg_compile_end(scope));
        expect_same(&first, &now, k, brg_tensor_grad(w));
    }
    free(first.at);
    free(now.at);
    expect_counts(1, 1, 0); /* an executable is judged once */
    expect_launches(1, 2);
}

typedef struct layer {
    brg_tensor *w;
    brg_params *params;
    brg_optim *optim;
} layer;

/* A whole step, its loss divided by in[1], a number of the host. */
static brg_status divide(brg_tensor *const *in, size_t n_in, brg_tensor **out,
                         size_t n_out, void *user)
{
    layer *l = user;
    (void)n_in;
    (void)n_out;
    BRG_TRY(brg_optim_zero_grad(l->optim, true));
    brg_tensor *sum = brg_sum_all(brg_linear(in[0], l->w, NULL));
    out[0] = brg_div(sum, brg_to(in[1], THERE));
    return out[0] ? brg_backward(out[0]) : brg_error_code();
}

static void layer_make(layer *l)
{
    brg_sgd_options sgd = BRG_SGD_OPTIONS_INIT;
    (void)sum_of_layer(&l->w);
    assert_brg_ok(brg_params_create(&l->params));
    assert_brg_ok(brg_params_add(l->params, "w", l->w, BRG_PARAM_TRAINED));
    assert_brg_ok(brg_optim_create_sgd(&l->optim, l->params, &sgd));
}

static void run_divisions(bool is_compiled, yields *y)
{
    layer l;
    brg_compiled *compiled = NULL;
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    options.fullgraph = options.whole = options.replay = true;
    layer_make(&l);
    if (is_compiled)
        assert_brg_ok(brg_compiled_create(&compiled, divide, &l, &options));
    for (int k = 0; k < 6; k++) {
        brg_tensor *in[2], *out;
        in[0] = there(brg_randn(BRG_DTYPE_F16, BRG_SHAPE(10, 10)));
        in[1] = brg_full(BRG_DTYPE_F16, BRG_SHAPE(), 50 + 7 * k);
        assert_brg_ok(is_compiled ? brg_compiled_call(compiled, in, 2, &out, 1)
                                  : divide(in, 2, &out, 1, &l));
        yield(y, out);
        yield(y, brg_tensor_grad(l.w));
    }
    brg_compiled_destroy(compiled);
    brg_optim_destroy(l.optim);
    brg_params_destroy(l.params);
}

static void check_division_in_a_step(void)
{
    yields eager = {0}, launched = {0};
    run_divisions(false, &eager);
    run_divisions(true, &launched);
    assert_int_equal(launched.n, eager.n);
    assert_memory_equal(launched.at, eager.at, eager.n);
    free(eager.at);
    free(launched.at);
    assert_int_equal(both_stats().function_fallbacks, 0);
    assert_int_equal(both_stats().replay_skips, 0);
    expect_launches(1, 3);
}

static void test_cudagraphs_cpu_division(void **state)
{
    (void)state;
    check_division_in_a_backward();
    assert_brg_ok(brg_compile_reset());
    check_division_in_a_step();
}

/* ---- Nothing on a device ------------------------------------------------------------- */

static void test_cudagraphs_cpu_graph(void **state)
{
    (void)state;
    for (int i = 0; i < 3; i++) {
        brg_tensor *x = leaf_full(3, BRG_SHAPE(4));
        backward_replayed(brg_sum_all(brg_square(x)));
        expect_all(brg_tensor_grad(x), 6);
    }
    expect_counts(1, 0, 1);
    expect_skip("no tensor on a device");
}

/* ---- Numbers of the host that user code may read --------------------------------------- */

FORWARD(scale_forward)
{
    brg_tensor *kept = brg_full(BRG_DTYPE_F32, BRG_SHAPE(), 4);
    BRG_TRY(brg_context_set(ctx, "times", brg_value_int(2)));
    SAVE(kept);
    OUT(0, brg_mul_scalar(ARG(0), 2));
    return BRG_OK;
}

BACKWARD(scale_backward)
{
    brg_tensor *times = brg_context_get_tensor(ctx, "times", BRG_DTYPE_F32);
    SAVED(kept, 0);
    brg_tensor *factor = brg_mul(kept, times);
    GRAD(0, brg_mul(g[0], brg_to(factor, THERE)));
    return BRG_OK;
}

static void check_scale(brg_function_tracing tracing)
{
    brg_function *f =
        function_traced(tracing, "Scale", scale_forward, scale_backward, 1);
    for (int i = 0; i < 3; i++) {
        brg_tensor *x = leaf_there(3, BRG_SHAPE(4));
        backward_replayed(brg_sum_all(CALL(f, x)));
        expect_grad_there(x, 8);
    }
    expect_counts(1, 0, 1);
    expect_skip("a tensor on the host that is kept by Scale");
    brg_function_release(f);
}

static void test_cudagraphs_cpu_scalar_used_in_cpp_custom_op(void **state)
{
    (void)state;
    check_scale(BRG_FUNCTION_TRACEABLE);
}

static void test_cudagraphs_cpu_scalar_used_in_python_custom_op(void **state)
{
    (void)state;
    check_scale(BRG_FUNCTION_OPAQUE);
}

/* As f32. */
static void yield_wide(yields *y, brg_tensor *t)
{
    yield(y, brg_cast(brg_to(t, HOME), BRG_DTYPE_F32));
}

/* The bits of the CPU on the device made for tests, nearly so on a GPU: by the
 * largest value. */
static void expect_near(const yields *got, const yields *want, double tolerance)
{
    const size_t head = sizeof(brg_dtype) + 4 * sizeof(int64_t);
    double largest = 0, worst = 0;
    assert_int_equal(got->n, want->n);
    for (size_t at = head; at < want->n; at += sizeof(float)) {
        float a, b;
        memcpy(&a, got->at + at, sizeof a);
        memcpy(&b, want->at + at, sizeof b);
        largest = fmax(largest, fabs((double)b));
        worst = fmax(worst, fabs((double)a - (double)b));
        assert_true(a == a);
    }
    assert_true(largest > 0);
    if (worst > tolerance * largest)
        fail_msg("off by %g, the largest is %g", worst, largest);
}

/* ---- An op with a result beside its output ------------------------------------------------ */

/* The way that attention takes on a GPU depends on dtype and rows. */
static void check_sdpa(brg_dtype dtype, int64_t rows, int64_t dim,
                       double tolerance)
{
    yields home = {0}, away = {0}, first = {0};
    for (int i = 0; i < 6; i++) {
        brg_tensor *in[3];
        brg_seed(5);
        for (int k = 0; k < 3; k++) {
            in[k] = brg_cast(
                brg_randn(BRG_DTYPE_F32, BRG_SHAPE(2, 3, rows, dim)), dtype);
            if (i > 0)
                in[k] = there(in[k]);
        }
        assert_brg_ok(brg_set_requires_grad(in[0], true));
        brg_tensor *loss = brg_sum_all(brg_square(
            brg_scaled_dot_product_attention(in[0], in[1], in[2], NULL)));
        if (i == 0)
            assert_brg_ok(brg_backward(loss));
        else
            backward_replayed(loss);
        away.n = 0;
        yield_wide(i ? &away : &home, brg_tensor_grad(in[0]));
        if (i > 0)
            expect_near(&away, &home, tolerance);
        if (i == 1)
            yield_wide(&first, brg_tensor_grad(in[0]));
        if (i > 1) /* launched as it was op by op */
            assert_memory_equal(away.at, first.at, first.n);
    }
    free(home.at);
    free(away.at);
    free(first.at);
    expect_counts(1, 1, 0);
    expect_launches(2, 2);
}

static void test_cudagraphs_sdpa(void **state)
{
    (void)state;
    check_sdpa(BRG_DTYPE_F32, 8, 4, 1e-5);
    assert_brg_ok(brg_compile_reset());
    check_sdpa(BRG_DTYPE_F32, 128, 64, 3e-5); /* by products */
    assert_brg_ok(brg_compile_reset());
    check_sdpa(BRG_DTYPE_BF16, 128, 64, 0.05); /* by cuDNN */
}

/* ---- Attention with scores changed by a callback ----------------------------------------------- */

typedef brg_tensor *(*score_fn)(brg_tensor *scores);

typedef struct attention {
    score_fn score;
} attention;

static brg_tensor *squared(brg_tensor *scores)
{
    return brg_square(scores);
}

static brg_tensor *cubed(brg_tensor *scores)
{
    return brg_mul(brg_square(scores), scores);
}

static brg_status attend(brg_tensor *const *in, size_t n_in, brg_tensor **out,
                         size_t n_out, void *user)
{
    const attention *a = user;
    (void)n_in;
    (void)n_out;
    brg_tensor *scores = brg_matmul(in[0], brg_transpose(in[1], 1, 2));
    scores = brg_mul_scalar(scores, 0.25);
    out[0] = brg_matmul(brg_softmax(a->score(scores), 2), in[2]);
    return out[0] ? BRG_OK : brg_error_code();
}

typedef struct place {
    brg_dtype dtype;
    brg_device device;
} place;

static void attention_inputs(brg_tensor **in, int64_t n, place at)
{
    brg_seed((uint64_t)n);
    for (int i = 0; i < 3; i++) {
        in[i] = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(2, n, 16));
        in[i] = brg_to(brg_cast(in[i], at.dtype), at.device);
        assert_brg_ok(brg_set_requires_grad(in[i], true));
    }
}

static void check_attention(brg_compiled *c, attention *a, int64_t n, place at)
{
    int scope;
    brg_tensor *in[3], *same[3], *out;
    yields x = {0}, y = {0};
    attention_inputs(in, n, at);
    attention_inputs(same, n, at);
    assert_brg_ok(attend(in, 3, &out, 1, a));
    yield(&x, out);
    backward_of_sum(out);
    assert_brg_ok(brg_compiled_call(c, same, 3, &out, 1));
    yield(&y, out);
    assert_brg_ok(brg_compile_begin(&scope, NULL)); /* counts its pieces */
    backward_of_sum(out);
    assert_brg_ok(brg_compile_end(scope));
    for (int i = 0; i < 3; i++) {
        yield_grad(&x, in[i]);
        yield_grad(&y, same[i]);
    }
    assert_int_equal(x.n, y.n);
    assert_memory_equal(x.at, y.at, x.n);
    free(x.at);
    free(y.at);
}

static void check_three_sizes(place at)
{
    attention square = {squared}, cube = {cubed};
    assert_brg_ok(brg_compile_reset());
    brg_compiled *c = compile_whole(attend, &square),
                 *d = compile_whole(attend, &cube);
    for (int64_t n = 8; n <= 24; n += 8)
        check_attention(c, &square, n, at);
    assert_int_equal(both_stats().captures, 2); /* static, then dynamic */
    assert_int_equal(both_stats().compiles, 2);
    check_attention(d, &cube, 8, at); /* another callback: another segment */
    assert_int_equal(both_stats().captures, 3);
    assert_int_equal(both_stats().compiles, 3);
    brg_compiled_destroy(c);
    brg_compiled_destroy(d);
}

static void test_flex_attention(void **state)
{
    (void)state;
    check_three_sizes((place){BRG_DTYPE_F32, HOME});
    check_three_sizes((place){BRG_DTYPE_F32, THERE});
    check_three_sizes((place){BRG_DTYPE_BF16, THERE});
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_cudagraphs_cpu_division),
        scoped_test(test_cudagraphs_cpu_graph),
        scoped_test(test_cudagraphs_cpu_scalar_used_in_cpp_custom_op),
        scoped_test(test_cudagraphs_cpu_scalar_used_in_python_custom_op),
        scoped_test(test_cudagraphs_sdpa),
        scoped_test(test_flex_attention),
    };
    return cmocka_run_group_tests(tests, register_fake_device, NULL);
}
