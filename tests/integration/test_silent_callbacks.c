/* SPDX-License-Identifier: Apache-2.0
 * Callbacks that return an error and record none: the call fails all the same,
 * with their status and a message that names them, not with one from before. */
#include <brigade/brigade.h>
#include <brigade/ext/op.h>

#include "tests/support/brg_test.h"

static const brg_status silent = BRG_ERR_IO;

static brg_tensor *leaf(void)
{
    brg_tensor *t = brg_ones(BRG_DTYPE_F64, BRG_SHAPE(2));
    assert_brg_ok(brg_set_requires_grad(t, true));
    return t;
}

/* ---- One silent callback of each kind ------------------------------------------ */

static brg_status on_grad(brg_tensor *grad, brg_tensor **by, void *user)
{
    (void)grad, (void)by, (void)user;
    return silent;
}

static brg_status on_leaf(brg_tensor *t, void *user)
{
    (void)t, (void)user;
    return silent;
}

static brg_status on_pre(brg_tensor **grads, size_t n, void *user)
{
    (void)grads, (void)n, (void)user;
    return silent;
}

static brg_status on_post(brg_tensor **grad_in, size_t n_in,
                          brg_tensor *const *grad_out, size_t n_out, void *user)
{
    (void)grad_in, (void)n_in, (void)grad_out, (void)n_out, (void)user;
    return silent;
}

static brg_status on_end(void *user)
{
    (void)user;
    return silent;
}

static brg_status queue_end(brg_tensor *t, void *user)
{
    (void)t;
    return brg_queue_final_callback(on_end, user);
}

static brg_status pack(brg_tensor *t, void **packed, void *user)
{
    (void)t, (void)packed, (void)user;
    return silent;
}

static brg_status keep(brg_tensor *t, void **packed, void *user)
{
    (void)user;
    *packed = brg_retain(t);
    return BRG_OK;
}

static brg_status unpack(void *packed, brg_tensor **out, void *user)
{
    (void)packed, (void)out, (void)user;
    return silent;
}

static void free_packed(void *packed, void *user)
{
    (void)user;
    brg_release(packed);
}

static brg_status forward(brg_context *ctx, const brg_value *args,
                          size_t n_args, brg_value *outputs)
{
    (void)n_args;
    outputs[0] = brg_value_tensor(brg_mul_scalar(args[0].as.tensor, 2));
    return brg_context_user(ctx) ? silent : BRG_OK;
}

static brg_status backward(brg_context *ctx, brg_tensor *const *grad_out,
                           brg_tensor **grad_in, size_t *n_grad_in)
{
    (void)ctx, (void)grad_out, (void)grad_in, (void)n_grad_in;
    return silent;
}

static brg_status observe(const brg_observation *seen, void *user)
{
    (void)seen, (void)user;
    return silent;
}

static brg_status of_tensors(brg_tensor *const *in, brg_tensor **out,
                             void *user)
{
    (void)in, (void)out, (void)user;
    return silent;
}

static brg_status region(brg_tensor *const *in, size_t n_in, brg_tensor **out,
                         size_t n_out, void *user)
{
    (void)in, (void)n_in, (void)out, (void)n_out, (void)user;
    return silent;
}

static brg_status part(brg_tensor *const *parts, size_t n, brg_tensor **result,
                       void *user)
{
    (void)parts, (void)n, (void)result, (void)user;
    return silent;
}

static int fails_in; /* 0: infer, 1: run, 2: vjp */

static brg_status same_infer(brg_op_call *call)
{
    call->info[0] = (brg_out_info){.dtype = BRG_DTYPE_F64, .ndim = 1};
    call->info[0].shape[0] = brg_tensor_size(call->in[0], 0);
    return fails_in == 0 ? silent : BRG_OK;
}

static brg_status same_run(brg_op_call *call)
{
    memcpy(brg_tensor_data(call->out[0]), brg_tensor_data(call->in[0]),
           brg_tensor_nbytes(call->in[0]));
    return fails_in == 1 ? silent : BRG_OK;
}

static brg_status same_vjp(brg_vjp *v)
{
    (void)v;
    return silent;
}

static const brg_op same_op = {
    .abi = BRG_OP_ABI,
    .struct_size = sizeof(brg_op),
    .name = "same",
    .n_in = 1,
    .n_out = 1,
    .n_diff_out = 1,
    .infer = same_infer,
    .run = {same_run},
    .vjp = same_vjp,
};

/* ---- The engine ---------------------------------------------------------------- */

static void fails(brg_tensor *loss, const char *who)
{
    char text[96];
    snprintf(text, sizeof text, "%s returned BRG_ERR_IO", who);
    assert_brg_fails_with(brg_backward(loss), silent, text);
}

static void test_silent_callbacks__hooks(void **state)
{
    (void)state;
    brg_scope *scope = brg_scope_begin();
    brg_tensor *x = leaf(), *y = brg_square(x);
    assert_brg_ok(brg_tensor_add_hook(NULL, y, on_grad, NULL, NULL));
    fails(brg_sum_all(y), "a tensor hook");

    brg_node *node;
    y = brg_square(leaf());
    assert_brg_ok(brg_tensor_node(&node, y));
    assert_brg_ok(brg_node_add_pre_hook(NULL, node, on_pre, NULL, NULL));
    brg_node_release(node);
    fails(brg_sum_all(y), "a pre-hook of square");
    y = brg_square(leaf());
    assert_brg_ok(brg_tensor_node(&node, y));
    assert_brg_ok(brg_node_add_post_hook(NULL, node, on_post, NULL, NULL));
    brg_node_release(node);
    fails(brg_sum_all(y), "a post-hook of square");

    x = leaf();
    assert_brg_ok(brg_tensor_set_name(x, "fc1.bias"));
    assert_brg_ok(
        brg_tensor_add_post_accumulate_hook(NULL, x, on_leaf, NULL, NULL));
    fails(brg_sum_all(brg_square(x)), "a post-accumulate hook of fc1.bias");
    x = leaf();
    assert_brg_ok(
        brg_tensor_add_post_accumulate_hook(NULL, x, queue_end, NULL, NULL));
    fails(brg_sum_all(brg_square(x)), "a final callback");
    brg_scope_end(scope);
}

static void test_silent_callbacks__pack_hooks(void **state)
{
    (void)state;
    brg_scope *scope = brg_scope_begin();
    brg_pack_hooks hooks = BRG_PACK_HOOKS_INIT;
    hooks.pack = pack;
    hooks.unpack = unpack;
    assert_brg_ok(brg_pack_hooks_push(&hooks));
    assert_brg_null_with(brg_square(leaf()), silent,
                         "a pack hook returned BRG_ERR_IO");
    assert_brg_ok(brg_pack_hooks_pop());
    hooks.pack = keep;
    hooks.free = free_packed;
    assert_brg_ok(brg_pack_hooks_push(&hooks));
    brg_tensor *y = brg_square(leaf());
    assert_brg_ok(brg_pack_hooks_pop());
    fails(brg_sum_all(y), "an unpack hook");
    brg_scope_end(scope);
}

static void test_silent_callbacks__functions(void **state)
{
    (void)state;
    brg_scope *scope = brg_scope_begin();
    brg_function_def def = BRG_FUNCTION_DEF_INIT;
    def.name = "mine";
    def.n_outputs = 1;
    def.forward = forward;
    def.backward = backward;
    brg_function *function;
    assert_brg_ok(brg_function_create(&function, &def));
    const brg_value arg = brg_value_tensor(leaf());
    fails(brg_sum_all(brg_function_call(function, &arg, 1)),
          "backward of mine: its backward");
    brg_function_release(function);
    def.user = &def;
    assert_brg_ok(brg_function_create(&function, &def));
    assert_brg_null_with(brg_function_call(function, &arg, 1), silent,
                         "mine: its forward returned BRG_ERR_IO");
    brg_function_release(function);
    brg_scope_end(scope);
}

static void test_silent_callbacks__ops(void **state)
{
    (void)state;
    brg_scope *scope = brg_scope_begin();
    brg_tensor *x = leaf(), *y;
    fails_in = 0;
    assert_brg_fails_with(brg_op_apply(&same_op, 1, &x, NULL, &y), silent,
                          "same: its infer returned BRG_ERR_IO");
    assert_null(y);
    fails_in = 1;
    assert_brg_fails_with(brg_op_apply(&same_op, 1, &x, NULL, &y), silent,
                          "same: its run returned BRG_ERR_IO");
    assert_null(y);
    fails_in = 2;
    assert_brg_ok(brg_op_apply(&same_op, 1, &x, NULL, &y));
    fails(brg_sum_all(y), "backward of same: its vjp");
    brg_scope_end(scope);
}

static void test_silent_callbacks__functions_of_tensors(void **state)
{
    (void)state;
    brg_scope *scope = brg_scope_begin();
    brg_tensor *x = leaf(), *out;
    assert_brg_fails_with(brg_gradcheck(of_tensors, NULL, &x, 1, NULL), silent,
                          "the function returned BRG_ERR_IO");
    assert_brg_fails_with(brg_recompute(&out, of_tensors, NULL, &x, 1, NULL),
                          silent, "the stretch returned BRG_ERR_IO");
    brg_composite *pair, *result;
    assert_brg_ok(brg_pair_create(&pair, x, x));
    assert_brg_fails_with(brg_composite_map(&result, part, NULL, &pair, 1),
                          silent, "the function returned BRG_ERR_IO");
    brg_composite_release(pair);
    assert_brg_ok(brg_observer_push(observe, NULL));
    assert_brg_null_with(brg_square(x), silent,
                         "an observer of square returned BRG_ERR_IO");
    assert_brg_ok(brg_observer_pop());
    for (int whole = 0; whole < 2; whole++) {
        brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
        brg_compiled *compiled;
        options.whole = whole;
        assert_brg_ok(brg_compiled_create(&compiled, region, NULL, &options));
        assert_brg_fails_with(brg_compiled_call(compiled, &x, 1, &out, 1),
                              silent, "the function returned BRG_ERR_IO");
        brg_compiled_destroy(compiled);
    }
    brg_scope_end(scope);
}

/* ---- Ranks --------------------------------------------------------------------- */

static brg_status on_bucket(brg_reducer *reducer, size_t bucket, void *user)
{
    (void)reducer, (void)bucket, (void)user;
    return silent;
}

static brg_status reduce(brg_pg *pg, void *user)
{
    (void)user;
    double grad = 1;
    const brg_reducer_param param = {
        .grad = &grad, .count = 1, .dtype = BRG_DTYPE_F64};
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    if (brg_pg_rank(pg) == 0)
        options.on_bucket = on_bucket;
    brg_reducer *reducer;
    BRG_TRY(brg_reducer_create(&reducer, pg, &param, 1, &options));
    BRG_TRY(brg_reducer_mark_ready(reducer, 0));
    brg_error_clear();
    brg_status status = brg_reducer_wait(reducer);
    brg_reducer_destroy(reducer);
    return status;
}

static brg_status program(brg_pg *pg, void *user)
{
    (void)user;
    return brg_pg_rank(pg) == 1 ? silent : BRG_OK;
}

static brg_status program_after_another_error(brg_pg *pg, void *user)
{
    brg_scope *scope = brg_scope_begin();
    (void)brg_matmul(leaf(), brg_ones(BRG_DTYPE_F64, BRG_SHAPE(3)));
    brg_scope_end(scope);
    return program(pg, user);
}

static void test_silent_callbacks__ranks(void **state)
{
    (void)state;
    assert_brg_fails_with(brg_sim_run(2, NULL, reduce, NULL), silent,
                          "on_bucket returned BRG_ERR_IO");
    assert_brg_fails_with(brg_sim_run(2, NULL, program, NULL), silent,
                          "rank 1: the program returned BRG_ERR_IO");
    assert_brg_fails_with(
        brg_sim_run(2, NULL, program_after_another_error, NULL), silent,
        "rank 1: the program returned BRG_ERR_IO (input or output failed) "
        "without a message of its own; the last error before it: matmul");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_silent_callbacks__hooks),
        cmocka_unit_test(test_silent_callbacks__pack_hooks),
        cmocka_unit_test(test_silent_callbacks__functions),
        cmocka_unit_test(test_silent_callbacks__ops),
        cmocka_unit_test(test_silent_callbacks__functions_of_tensors),
        cmocka_unit_test(test_silent_callbacks__ranks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
