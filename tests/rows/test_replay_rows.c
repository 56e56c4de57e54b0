/* SPDX-License-Identifier: Apache-2.0
 * Rows of the suite `backward` on plans that a device replays: which of them it
 * could. The device is made for tests. */
#include "tests/compile/replays.h"

/* ---- Numbers of the host that only ops read ---------------------------------------- */

/* A half-precision model whose loss is divided by a number of the host. */
static void test_cudagraphs_cpu_division(void **state)
{
    (void)state;
    yields first = {0}, now = {0};
    for (int i = 0; i < 4; i++) {
        brg_seed(7);
        brg_tensor *x = there(brg_randn(BRG_DTYPE_F16, BRG_SHAPE(10, 10)));
        brg_tensor *w = there(brg_randn(BRG_DTYPE_F16, BRG_SHAPE(10, 10)));
        brg_tensor *n = brg_full(BRG_DTYPE_F16, BRG_SHAPE(), 100);
        assert_brg_ok(brg_set_requires_grad(w, true));
        brg_tensor *sum = brg_sum_all(brg_linear(x, w, NULL));
        backward_replayed(brg_div(sum, there(n)));
        now.n = 0;
        yield(i ? &now : &first, brg_to(brg_tensor_grad(w), HOME));
        if (i == 0)
            continue;
        assert_int_equal(now.n, first.n);
        assert_memory_equal(now.at, first.at, first.n);
    }
    free(first.at);
    free(now.at);
    expect_counts(1, 1, 0); /* an executable is judged once */
    expect_launches(1, 2);
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

/* The bits of the CPU on the device made for tests, nearly so on a GPU. */
static void expect_near(const yields *got, const yields *want)
{
    assert_int_equal(got->n, want->n);
    for (size_t i = 0; i < want->n / sizeof(float); i++) {
        float a, b;
        memcpy(&a, (const char *)got->at + i * sizeof a, sizeof a);
        memcpy(&b, (const char *)want->at + i * sizeof b, sizeof b);
        assert_float_equal(a, b, 1e-5);
    }
}

/* ---- An op with a result beside its output ------------------------------------------------ */

static void test_cudagraphs_sdpa(void **state)
{
    (void)state;
    yields home = {0}, away = {0};
    for (int i = 0; i < 6; i++) {
        brg_tensor *in[3];
        brg_seed(5);
        for (int k = 0; k < 3; k++) {
            in[k] = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(2, 3, 8, 4));
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
        yield(i ? &away : &home, brg_to(brg_tensor_grad(in[0]), HOME));
        if (i > 0)
            expect_near(&away, &home);
    }
    free(home.at);
    free(away.at);
    expect_counts(1, 1, 0);
    expect_launches(2, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_cudagraphs_cpu_division),
        scoped_test(test_cudagraphs_cpu_graph),
        scoped_test(test_cudagraphs_cpu_scalar_used_in_cpp_custom_op),
        scoped_test(test_cudagraphs_cpu_scalar_used_in_python_custom_op),
        scoped_test(test_cudagraphs_sdpa),
    };
    return cmocka_run_group_tests(tests, register_fake_device, NULL);
}
