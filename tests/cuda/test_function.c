/* SPDX-License-Identifier: Apache-2.0
 * A function of CUDA kernels of the user's inside of training steps on a GPU:
 * eager, with a compiled backward, as a compiled step, and as one that is
 * recorded and launched, whose graph has the kernels in it. */
#include "examples/cuda_function/softcap.h"
#include "tests/cuda/compare.h"
#include "tests/rows/rows.h"

#define N 1003
#define N_STEPS 8
#define CAP 2.0f

/* ---- The user's ops ----------------------------------------------------------------- */

static int n_calls; /* of kernels, by the host */

static brg_status check_cuda(int error)
{
    n_calls++;
    return error == 0 ? BRG_OK
                      : brg_error_set(BRG_ERR_DEVICE, __FILE__, __LINE__,
                                      "softcap: CUDA error %d", error);
}

static brg_status run_cap(brg_op_call *call)
{
    void *stream;
    brg_tensor *x = call->in[0], *y = call->out[0];
    BRG_TRY(brg_device_stream(brg_tensor_device(y), &stream));
    return check_cuda(softcap_forward(stream, brg_tensor_data(x),
                                      brg_tensor_data(y),
                                      (size_t)brg_tensor_numel(x), CAP));
}

static brg_status run_cap_grad(brg_op_call *call)
{
    void *stream;
    brg_tensor *g = call->in[0], *y = call->in[1], *gx = call->out[0];
    BRG_TRY(brg_device_stream(brg_tensor_device(y), &stream));
    return check_cuda(softcap_backward(stream, brg_tensor_data(g),
                                       brg_tensor_data(y), brg_tensor_data(gx),
                                       (size_t)brg_tensor_numel(y), CAP));
}

static brg_status infer_like(brg_op_call *call)
{
    brg_out_info *out = &call->info[0];
    out->dtype = brg_tensor_dtype(call->in[0]);
    out->ndim = brg_tensor_ndim(call->in[0]);
    memcpy(out->shape, brg_tensor_shape(call->in[0]), sizeof out->shape);
    return BRG_OK;
}

static const brg_op cap = {.abi = BRG_OP_ABI,
                           .struct_size = sizeof(brg_op),
                           .name = "softcap",
                           .n_in = 1,
                           .n_out = 1,
                           .n_diff_out = 1,
                           .infer = infer_like,
                           .run = {[BRG_DEVICE_CUDA] = run_cap}};

static const brg_op cap_grad = {.abi = BRG_OP_ABI,
                                .struct_size = sizeof(brg_op),
                                .name = "softcap_grad",
                                .n_in = 2,
                                .n_out = 1,
                                .n_diff_out = 1,
                                .infer = infer_like,
                                .run = {[BRG_DEVICE_CUDA] = run_cap_grad}};

/* ---- Functions of them ---------------------------------------------------------------- */

FORWARD(cap_forward)
{
    brg_tensor *x = brg_contiguous(ARG(0)), *y;
    BRG_TRY(brg_op_apply(&cap, 1, &x, NULL, &y));
    OUT(0, y);
    SAVE(y);
    return BRG_OK;
}

BACKWARD(cap_backward)
{
    SAVED(y, 0);
    brg_tensor *in[] = {brg_contiguous(g[0]), y}, *gx;
    BRG_TRY(brg_op_apply(&cap_grad, 2, in, NULL, &gx));
    GRAD(0, gx);
    return BRG_OK;
}

/* It also gives its argument back, and keeps what it made as an attribute. */
FORWARD(cap_both_forward)
{
    brg_tensor *x = brg_contiguous(ARG(0)), *y;
    BRG_TRY(brg_op_apply(&cap, 1, &x, NULL, &y));
    BRG_TRY(brg_context_set(ctx, "y", brg_value_tensor(y)));
    OUT(0, y);
    OUT(1, ARG(0));
    return BRG_OK;
}

BACKWARD(cap_both_backward)
{
    brg_tensor *y = brg_context_get(ctx, "y").as.tensor;
    brg_tensor *in[] = {brg_contiguous(g[0]), y}, *gx;
    BRG_TRY(brg_op_apply(&cap_grad, 2, in, NULL, &gx));
    GRAD(0, brg_add(gx, g[1]));
    return BRG_OK;
}

/* ---- Steps ------------------------------------------------------------------------------- */

typedef enum way { EAGER, BACKWARD_ALONE, STEP, LAUNCHED, N_WAYS } way;

typedef struct model {
    brg_function *function;
    size_t n_out;
    brg_tensor *w;
    brg_params *params;
    brg_optim *optim;
} model;

static brg_status run_step(brg_tensor *const *in, size_t n_in, brg_tensor **out,
                           size_t n_out, void *user)
{
    model *m = user;
    brg_value made[2] = {{0}};
    const brg_value arg = brg_value_tensor(brg_mul(in[0], m->w));
    (void)n_in;
    (void)n_out;
    BRG_TRY(brg_function_apply(m->function, &arg, 1, made));
    brg_tensor *y = made[0].as.tensor;
    if (m->n_out == 2)
        y = brg_sub(y, brg_mul_scalar(made[1].as.tensor, 0.1));
    out[0] = brg_mean_all(brg_square(brg_sub(y, in[1])));
    BRG_TRY(out[0] ? brg_backward(out[0]) : brg_error_code());
    BRG_TRY(brg_optim_step(m->optim));
    return brg_optim_zero_grad(m->optim, true);
}

static void model_make(model *m, brg_function *f, size_t n_out)
{
    brg_adamw_options adamw = BRG_ADAMW_OPTIONS_INIT;
    *m = (model){.function = f, .n_out = n_out};
    brg_seed(9);
    m->w = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(N));
    assert_brg_ok(brg_set_requires_grad(m->w, true));
    assert_brg_ok(brg_params_create(&m->params));
    assert_brg_ok(brg_params_add(m->params, "w", m->w, BRG_PARAM_TRAINED));
    adamw.lr = 0.05;
    assert_brg_ok(brg_optim_create_adamw(&m->optim, m->params, &adamw));
}

static void train(brg_function *f, size_t n_out, way w, float got[N_STEPS + N])
{
    model m;
    brg_compiled *c = NULL;
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    options.whole = options.fullgraph = w >= STEP;
    options.replay = w == LAUNCHED;
    model_make(&m, f, n_out);
    assert_brg_ok(brg_compile_reset());
    if (w != EAGER)
        assert_brg_ok(brg_compiled_create(&c, run_step, &m, &options));
    n_calls = 0;
    for (int k = 0; k < N_STEPS; k++) {
        brg_tensor *in[2], *out;
        brg_seed(50 + (uint64_t)k);
        in[0] = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(N));
        in[1] = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(N));
        assert_brg_ok(c ? brg_compiled_call(c, in, 2, &out, 1)
                        : run_step(in, 2, &out, 1, &m));
        assert_brg_ok(brg_tensor_read(out, &got[k], sizeof *got));
    }
    assert_brg_ok(brg_tensor_read(m.w, got + N_STEPS, N * sizeof *got));
    brg_compiled_destroy(c);
    brg_optim_destroy(m.optim);
    brg_params_destroy(m.params);
}

/* The same bits in each way; launched, the host calls no kernel. */
static void check_ways(brg_function_tracing tracing, row_forward forward,
                       row_backward backward, size_t n_out)
{
    static float want[N_STEPS + N], got[N_STEPS + N];
    brg_function *f =
        function_traced(tracing, "Softcap", forward, backward, n_out);
    assert_brg_ok(brg_device_set(GPU));
    /* a function that is no plan's is called: not in a step of one piece */
    const way end = tracing == BRG_FUNCTION_TRACEABLE ? N_WAYS : STEP;
    for (way w = EAGER; w < end; w++) {
        brg_compile_stats stats;
        brg_scope *scope = brg_scope_begin();
        train(f, n_out, w, w == EAGER ? want : got);
        brg_compile_get_stats(&stats);
        if (w != EAGER)
            assert_memory_equal(got, want, sizeof want);
        assert_int_equal(stats.fallbacks + stats.function_fallbacks, 0);
        assert_int_equal(stats.replay_skips, 0);
        assert_int_equal(stats.replay_launches,
                         w == LAUNCHED ? N_STEPS - 3 : 0);
        assert_int_equal(n_calls, 2 * (w == LAUNCHED ? 3 : N_STEPS));
        brg_scope_end(scope);
    }
    assert_true(want[0] != want[N_STEPS - 1]);
    assert_brg_ok(brg_device_set(CPU));
    brg_function_release(f);
}

static void test_function__in_each_way(void **state)
{
    (void)state;
    check_ways(BRG_FUNCTION_TRACEABLE, cap_forward, cap_backward, 1);
    check_ways(BRG_FUNCTION_OPAQUE, cap_forward, cap_backward, 1);
}

static void test_function__of_two_results(void **state)
{
    (void)state;
    check_ways(BRG_FUNCTION_TRACEABLE, cap_both_forward, cap_both_backward, 2);
    check_ways(BRG_FUNCTION_OPAQUE, cap_both_forward, cap_both_backward, 2);
}

int main(void)
{
    int missing = require_gpu();
    if (missing)
        return missing;
    const struct CMUnitTest tests[] = {
        gpu_test(test_function__in_each_way),
        gpu_test(test_function__of_two_results),
    };
    return cmocka_run_group_tests_name("function", tests, NULL, NULL);
}
