/* SPDX-License-Identifier: Apache-2.0
 * Rows of the suite `function` on kernels of the user inside a function, on the
 * host and on a device. */
#include "tests/rows/checks.h"
#include "tests/support/recording_device.h"

static void add_kernel(const float *a, const float *b, float *y, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = a[i] + b[i];
}

FORWARD(kernel_forward)
{
    brg_tensor *y = brg_empty(BRG_DTYPE_F32, brg_tensor_ndim(ARG(0)),
                              brg_tensor_shape(ARG(0)));
    if (!y)
        return brg_error_code();
    add_kernel(brg_tensor_data(ARG(0)), brg_tensor_data(ARG(1)),
               brg_tensor_data(y), brg_tensor_numel(y));
    OUT(0, y);
    return BRG_OK;
}

BACKWARD(kernel_backward)
{
    GRAD(0, g[0]);
    GRAD(1, g[0]);
    return BRG_OK;
}

static void test_triton_kernel_basic_checks(void)
{
    brg_function *f = function_of("Add", kernel_forward, kernel_backward, 1);
    brg_tensor *x = leaf_from(0, BRG_SHAPE(10)),
               *y = leaf_from(5, BRG_SHAPE(10));
    brg_tensor *z = CALL(f, x, y);
    for (int64_t i = 0; i < 10; i++)
        assert_float_equal(element(z, i), 2 * (double)i + 5, 0);
    backward_of_sum(z);
    expect_all(brg_tensor_grad(x), 1);
    expect_all(brg_tensor_grad(y), 1);
    brg_function_release(f);
}

/* The same kernel where the tensors are: launched on the device's queue, which
 * may be recording. */
typedef struct launch {
    const float *a, *b;
    float *y;
    int64_t n;
} launch;

static void run_launch(const void *bytes)
{
    const launch *l = bytes;
    seen.n_launches++;
    add_kernel(l->a, l->b, l->y, l->n);
}

static int64_t n_host_calls;

static brg_status launch_add(void *queue, const float *a, const float *b,
                             float *y, int64_t n)
{
    const launch l = {a, b, y, n};
    if (queue != &seen)
        return brg_error_set(BRG_ERR_INTERNAL, __FILE__, __LINE__, "queue");
    n_host_calls++;
    if (recording)
        record_work(run_launch, &l, sizeof l);
    else
        run_launch(&l);
    return BRG_OK;
}

static brg_status run_add_there(brg_op_call *call)
{
    void *queue;
    brg_tensor *y = call->out[0];
    BRG_TRY(brg_device_stream(brg_tensor_device(y), &queue));
    return launch_add(queue, brg_tensor_data(call->in[0]),
                      brg_tensor_data(call->in[1]), brg_tensor_data(y),
                      brg_tensor_numel(y));
}

static brg_status run_add(brg_op_call *call)
{
    brg_tensor *y = call->out[0];
    add_kernel(brg_tensor_data(call->in[0]), brg_tensor_data(call->in[1]),
               brg_tensor_data(y), brg_tensor_numel(y));
    return BRG_OK;
}

static brg_status infer_add(brg_op_call *call)
{
    brg_out_info *out = &call->info[0];
    out->dtype = brg_tensor_dtype(call->in[0]);
    out->ndim = brg_tensor_ndim(call->in[0]);
    memcpy(out->shape, brg_tensor_shape(call->in[0]), sizeof out->shape);
    return BRG_OK;
}

static const brg_op user_add = {
    .abi = BRG_OP_ABI,
    .struct_size = sizeof(brg_op),
    .name = "user_add",
    .n_in = 2,
    .n_out = 1,
    .n_diff_out = 1,
    .infer = infer_add,
    .run = {[BRG_DEVICE_CPU] = run_add, [BRG_DEVICE_CUDA] = run_add_there},
};

/* An op of the user without a rule: the function around it has the backward. */
FORWARD(launch_forward)
{
    brg_tensor *in[] = {ARG(0), ARG(1)}, *y;
    BRG_TRY(brg_op_apply(&user_add, 2, in, NULL, &y));
    OUT(0, y);
    return BRG_OK;
}

FORWARD(launch_multi_forward)
{
    BRG_TRY(launch_forward(ctx, args, n_args, out));
    BRG_TRY(brg_context_set(ctx, "x", args[0]));
    BRG_TRY(brg_context_set(ctx, "y", args[1]));
    OUT(1, ARG(0));
    return BRG_OK;
}

static void expect_there(const brg_tensor *t, double want)
{
    float got[4];
    assert_non_null(t);
    assert_int_equal(brg_tensor_device(t).type, BRG_DEVICE_CUDA);
    assert_brg_ok(brg_tensor_read(t, got, sizeof got));
    for (int i = 0; i < 4; i++)
        assert_float_equal(got[i], want, 0);
}

static void kernel_step_there(void)
{
    brg_function *f = function_of("Add", launch_forward, kernel_backward, 1);
    brg_tensor *x = leaf_full(2, BRG_SHAPE(4)), *y = leaf_full(3, BRG_SHAPE(4));
    brg_tensor *z = CALL(f, x, y);
    expect_there(z, 5);
    backward_of_sum(z);
    expect_there(brg_tensor_grad(x), 1);
    expect_there(brg_tensor_grad(y), 1);
    brg_function_release(f);
}

/* On a device with a queue, which the kernel is launched on. */
static void check_there(void (*step)(void))
{
    assert_brg_ok(brg_device_register(BRG_DEVICE_CUDA, &recording_device));
    assert_brg_ok(brg_device_set(THERE));
    seen.n_launches = 0;
    brg_scope *scope = assert_brg_some(brg_scope_begin());
    step();
    brg_scope_end(scope);
    assert_brg_ok(brg_device_set(HOME));
    assert_int_equal(seen.n_launches, 1);
    assert_int_equal(seen.n_blocks, 0);
}

/* Compiled whole: the op is a node of the forward plan. */
static brg_status add_whole(brg_tensor *const *in, size_t n_in,
                            brg_tensor **out, size_t n_out, void *user)
{
    (void)n_out;
    brg_value args[] = {brg_value_tensor(in[0]), brg_value_tensor(in[1])};
    out[0] = brg_function_call(user, args, n_in);
    return out[0] ? BRG_OK : brg_error_code();
}

static void check_kernel_whole(void)
{
    char text[2048];
    brg_function *f = function_traced(BRG_FUNCTION_TRACEABLE, "Add",
                                      launch_forward, kernel_backward, 1);
    assert_brg_ok(brg_compile_reset());
    brg_compiled *c = compile_whole(add_whole, f);
    for (int k = 0; k < 2; k++) {
        brg_tensor *in[] = {leaf_from(0, BRG_SHAPE(10)),
                            leaf_from(5, BRG_SHAPE(10))};
        brg_tensor *z = NULL;
        assert_brg_ok(brg_compiled_call(c, in, 2, &z, 1));
        for (int64_t i = 0; i < 10; i++)
            assert_float_equal(element(z, i), 2 * (double)i + 5, 0);
        backward_of_sum(z);
        expect_all(brg_tensor_grad(in[0]), 1);
        expect_all(brg_tensor_grad(in[1]), 1);
    }
    assert_int_equal(both_stats().functions, 1);
    assert_int_equal(both_stats().function_hits, 1);
    assert_int_equal(both_stats().function_fallbacks, 0);
    assert_in_range(brg_compiled_print(c, 0, text, sizeof text), 1, 2047);
    assert_non_null(strstr(text, "user_add("));
    brg_compiled_destroy(c);
    brg_function_release(f);
}

/* ---- In compiled steps on a device -------------------------------------------------- */

#define N_STEPS 7

typedef struct stepper {
    brg_function *function;
    size_t n_out;
    brg_tensor *p;
    brg_params *params;
    brg_optim *optim;
} stepper;

static brg_status kernel_step(brg_tensor *const *in, size_t n_in,
                              brg_tensor **out, size_t n_out, void *user)
{
    stepper *s = user;
    brg_value args[] = {brg_value_tensor(in[0]), brg_value_tensor(s->p)};
    brg_value made[2] = {{0}};
    (void)n_in;
    (void)n_out;
    BRG_TRY(brg_function_apply(s->function, args, 2, made));
    brg_tensor *y = made[0].as.tensor;
    if (s->n_out == 2) /* the second is the first argument */
        y = brg_add(y, brg_mul_scalar(made[1].as.tensor, 10));
    out[0] = brg_mean_all(brg_square(y));
    BRG_TRY(out[0] ? brg_backward(out[0]) : brg_error_code());
    BRG_TRY(brg_optim_step(s->optim));
    return brg_optim_zero_grad(s->optim, true);
}

typedef enum way { EAGER, BACKWARD, STEP, LAUNCHED, N_WAYS } way;

static void kernel_steps(brg_function *f, size_t n_out, way w,
                         float got[N_STEPS + 4])
{
    stepper s = {f, n_out, leaf_full(3, BRG_SHAPE(4)), NULL, NULL};
    brg_compiled *c = NULL;
    brg_sgd_options sgd = BRG_SGD_OPTIONS_INIT;
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    options.whole = options.fullgraph = w >= STEP;
    options.replay = w == LAUNCHED;
    assert_brg_ok(brg_params_create(&s.params));
    assert_brg_ok(brg_params_add(s.params, "p", s.p, BRG_PARAM_TRAINED));
    assert_brg_ok(brg_optim_create_sgd(&s.optim, s.params, &sgd));
    assert_brg_ok(brg_compile_reset());
    if (w != EAGER)
        assert_brg_ok(brg_compiled_create(&c, kernel_step, &s, &options));
    for (int k = 0; k < N_STEPS; k++) {
        brg_tensor *x = brg_full(BRG_DTYPE_F32, BRG_SHAPE(4), k), *out;
        assert_brg_ok(c ? brg_compiled_call(c, &x, 1, &out, 1)
                        : kernel_step(&x, 1, &out, 1, &s));
        assert_brg_ok(brg_tensor_read(out, &got[k], sizeof *got));
    }
    assert_brg_ok(brg_tensor_read(s.p, got + N_STEPS, 4 * sizeof *got));
    brg_compiled_destroy(c);
    brg_optim_destroy(s.optim);
    brg_params_destroy(s.params);
}

/* The same bits in each way; a launched step calls nothing of the user's. */
static void check_steps_there(row_forward forward, row_backward backward,
                              size_t n_out)
{
    float want[N_STEPS + 4], got[N_STEPS + 4];
    brg_function *f = function_traced(BRG_FUNCTION_TRACEABLE, "Add", forward,
                                      backward, n_out);
    assert_brg_ok(brg_device_register(BRG_DEVICE_CUDA, &recording_device));
    assert_brg_ok(brg_device_set(THERE));
    for (way w = EAGER; w < N_WAYS; w++) {
        brg_scope *scope = assert_brg_some(brg_scope_begin());
        seen.n_launches = n_host_calls = 0;
        kernel_steps(f, n_out, w, w == EAGER ? want : got);
        if (w != EAGER)
            assert_memory_equal(got, want, sizeof want);
        assert_int_equal(seen.n_launches, N_STEPS);
        assert_int_equal(n_host_calls, w == LAUNCHED ? 3 : N_STEPS);
        assert_int_equal(both_stats().replay_launches,
                         w == LAUNCHED ? N_STEPS - 3 : 0);
        assert_int_equal(both_stats().replay_skips, 0);
        brg_scope_end(scope);
    }
    assert_true(want[0] != want[N_STEPS - 1]);
    assert_brg_ok(brg_device_set(HOME));
    brg_function_release(f);
    assert_int_equal(seen.n_blocks, 0);
}

static void test_triton_kernel_basic(void **state)
{
    (void)state;
    check_both(test_triton_kernel_basic_checks, 1);
    check_kernel_whole();
    check_there(kernel_step_there);
    check_steps_there(launch_forward, kernel_backward, 1);
}

FORWARD(kernel_multi_forward)
{
    BRG_TRY(kernel_forward(ctx, args, n_args, out));
    BRG_TRY(brg_context_set(ctx, "x", args[0]));
    BRG_TRY(brg_context_set(ctx, "y", args[1]));
    OUT(1, ARG(0));
    return BRG_OK;
}

BACKWARD(kernel_multi_backward)
{
    brg_tensor *x = brg_context_get(ctx, "x").as.tensor;
    brg_tensor *y = brg_context_get(ctx, "y").as.tensor;
    GRAD(0, brg_add(brg_mul(g[0], x), g[1]));
    GRAD(1, brg_mul(g[0], y));
    return BRG_OK;
}

static void kernel_multi_step_there(void)
{
    brg_function *f =
        function_of("Add", launch_multi_forward, kernel_multi_backward, 2);
    brg_tensor *x = leaf_full(2, BRG_SHAPE(4)), *y = leaf_full(3, BRG_SHAPE(4));
    brg_value out[2];
    assert_brg_ok(APPLY(f, out, brg_value_tensor(x), brg_value_tensor(y)));
    expect_there(out[0].as.tensor, 5);
    assert_true(brg_tensor_shares_storage(out[1].as.tensor, x));
    backward_of_sum(
        brg_add(out[0].as.tensor, brg_mul_scalar(out[1].as.tensor, 10)));
    expect_there(brg_tensor_grad(x), 12);
    expect_there(brg_tensor_grad(y), 3);
    brg_function_release(f);
}

static brg_function_tracing kernel_tracing;

static void test_triton_kernel_multiple_out_checks(void)
{
    brg_function *f = function_traced(
        kernel_tracing, "Add", kernel_multi_forward, kernel_multi_backward, 2);
    brg_tensor *x = leaf_full(2, BRG_SHAPE(4)), *y = leaf_full(3, BRG_SHAPE(4));
    brg_value out[2];
    assert_brg_ok(APPLY(f, out, brg_value_tensor(x), brg_value_tensor(y)));
    expect_all(out[0].as.tensor, 5);
    assert_ptr_not_equal(out[1].as.tensor, x); /* an alias of its storage */
    assert_true(brg_tensor_shares_storage(out[1].as.tensor, x));
    assert_false(brg_is_leaf(out[1].as.tensor));
    brg_tensor *both =
        brg_add(out[0].as.tensor, brg_mul_scalar(out[1].as.tensor, 10));
    backward_of_sum(both);
    expect_all(brg_tensor_grad(x), 12);
    expect_all(brg_tensor_grad(y), 3);
    /* Other tensors, of other sizes. */
    brg_tensor *x2 = leaf_full(4, BRG_SHAPE(6)),
               *y2 = leaf_full(7, BRG_SHAPE(6));
    assert_brg_ok(APPLY(f, out, brg_value_tensor(x2), brg_value_tensor(y2)));
    backward_of_sum(
        brg_add(out[0].as.tensor, brg_mul_scalar(out[1].as.tensor, 10)));
    expect_all(brg_tensor_grad(x2), 14);
    expect_all(brg_tensor_grad(y2), 7);
    brg_function_release(f);
}

/* The tensors kept as attributes are inputs of the plan: one serves both. */
static void test_triton_kernel_multiple_out(void **state)
{
    (void)state;
    for (int k = 0; k < 2; k++) {
        kernel_tracing = k ? BRG_FUNCTION_TRACEABLE : BRG_FUNCTION_OPAQUE;
        check_both(test_triton_kernel_multiple_out_checks, 1);
        assert_int_equal(both_stats().hits, 1);
        assert_int_equal(count_calls(), k ? 0 : 1);
    }
    assert_true(plan_has(0, "in2")); /* x, y, the root's gradient */
    check_there(kernel_multi_step_there);
    check_steps_there(launch_multi_forward, kernel_multi_backward, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_triton_kernel_basic),
        scoped_test(test_triton_kernel_multiple_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
