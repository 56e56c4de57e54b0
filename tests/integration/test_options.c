/* SPDX-License-Identifier: Apache-2.0
 * Options of callers built for other versions: one rule for all structs. */
#include <brigade/brigade.h>

#include "core/base/options.h"
#include "tests/support/brg_test.h"
#include "tests/support/plain_pack.h"

/* ---- The rule ---------------------------------------------------------------- */

typedef struct sample {
    size_t struct_size;
    int64_t first, second;
} sample;

typedef struct longer_sample {
    sample known;
    int64_t third;
} longer_sample;

static brg_status take(sample *filled, const void *given)
{
    *filled = (sample){.struct_size = sizeof *filled, .first = 1, .second = 2};
    return BRG_TAKE_OPTIONS(filled, given, "some_call", SAMPLE_INIT);
}

static void test_options__rule(void **state)
{
    (void)state;
    sample s, given = {sizeof given, 10, 20};
    assert_brg_ok(take(&s, NULL));
    assert_true(s.first == 1 && s.second == 2);
    assert_brg_ok(take(&s, &given));
    assert_true(s.first == 10 && s.second == 20);
    given.struct_size = offsetof(sample, second); /* an older caller */
    assert_brg_ok(take(&s, &given));
    assert_true(s.first == 10 && s.second == 2);
    assert_int_equal(s.struct_size, sizeof s);
    longer_sample newer = {{sizeof newer, 10, 20}, 0};
    assert_brg_ok(take(&s, &newer));
    assert_int_equal(s.struct_size, sizeof s);
    newer.third = 1;
    assert_brg_fails_with(take(&s, &newer), BRG_ERR_ABI, "newer library");
    given.struct_size = 0;
    assert_brg_fails_with(take(&s, &given), BRG_ERR_ARG,
                          "some_call: struct_size is 0, expected 24: start "
                          "from SAMPLE_INIT");
    given.struct_size = (size_t)1 << 40;
    assert_brg_fails_with(take(&s, &given), BRG_ERR_ARG, "struct_size");
}

/* ---- Every struct follows it --------------------------------------------------- */

static brg_tensor *x, *image;

static brg_status of(const void *result)
{
    return result ? BRG_OK : brg_error_code();
}

static brg_status call_backward(const void *o)
{
    brg_tensor *y = brg_sum_all(x);
    return brg_backward_with(&y, 1, o);
}

static brg_status call_grad(const void *o)
{
    brg_tensor *y = brg_sum_all(x), *grad;
    return brg_grad(&grad, &y, 1, &x, 1, o);
}

static brg_status square(brg_tensor *const *in, brg_tensor **out, void *user)
{
    (void)user;
    out[0] = brg_square(in[0]);
    return of(out[0]);
}

static brg_status call_gradcheck(const void *o)
{
    brg_tensor *in = brg_ones(BRG_DTYPE_F64, BRG_SHAPE(2));
    BRG_TRY(brg_set_requires_grad(in, true));
    return brg_gradcheck(square, NULL, &in, 1, o);
}

static brg_status call_recompute(const void *o)
{
    brg_tensor *out;
    return brg_recompute(&out, square, NULL, &x, 1, o);
}

static brg_status call_offload(const void *o)
{
    brg_status status = brg_offload_begin(o);
    return status == BRG_OK ? brg_offload_end() : status;
}

static brg_status call_compile(const void *o)
{
    int scope;
    brg_status status = brg_compile_begin(&scope, o);
    return status == BRG_OK ? brg_compile_end(scope) : status;
}

static brg_status call_pool(const void *o)
{
    return of(brg_max_pool2d(image, o));
}

static brg_status call_conv(const void *o)
{
    return of(brg_conv2d(image, image, NULL, o));
}

static brg_status call_attention(const void *o)
{
    return of(brg_scaled_dot_product_attention(image, image, image, o));
}

static brg_status call_batch_norm(const void *o)
{
    return of(brg_batch_norm(image, NULL, NULL,
                             brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(2)),
                             brg_ones(BRG_DTYPE_F32, BRG_SHAPE(2)), o));
}

static brg_status call_cross_entropy(const void *o)
{
    return of(brg_cross_entropy_with(brg_ones(BRG_DTYPE_F32, BRG_SHAPE(2, 3)),
                                     brg_zeros(BRG_DTYPE_I64, BRG_SHAPE(2)),
                                     o));
}

static brg_status call_embedding(const void *o)
{
    return of(brg_embedding_with(brg_ones(BRG_DTYPE_F32, BRG_SHAPE(4, 2)),
                                 brg_zeros(BRG_DTYPE_I64, BRG_SHAPE(2)), o));
}

static brg_status call_function(const void *o)
{
    brg_function *f;
    brg_status status = brg_function_create(&f, o);
    brg_function_release(f);
    return status;
}

static brg_status call_pack_hooks(const void *o)
{
    brg_status status = brg_pack_hooks_push(o);
    return status == BRG_OK ? brg_pack_hooks_pop() : status;
}

static brg_status call_sgd(const void *o)
{
    brg_params *params;
    brg_optim *optim;
    BRG_TRY(brg_params_create(&params));
    brg_status status = brg_optim_create_sgd(&optim, params, o);
    brg_optim_destroy(optim);
    brg_params_destroy(params);
    return status;
}

static brg_status call_adamw(const void *o)
{
    brg_params *params;
    brg_optim *optim;
    BRG_TRY(brg_params_create(&params));
    brg_status status = brg_optim_create_adamw(&optim, params, o);
    brg_optim_destroy(optim);
    brg_params_destroy(params);
    return status;
}

static brg_status call_nn(const void *o)
{
    brg_nn_linear layer;
    struct {
        brg_nn_options options;
        char beyond[8];
    } given;
    memcpy(&given, o, sizeof given);
    brg_params *params;
    BRG_TRY(brg_params_create(&params));
    given.options.params = params;
    brg_status status =
        brg_nn_linear_init(&layer, &given.options, "layer", 2, 3);
    brg_params_destroy(params);
    return status;
}

static brg_status call_sampler(const void *o)
{
    brg_sampler *sampler;
    brg_status status = brg_sampler_create(&sampler, o);
    brg_sampler_destroy(sampler);
    return status;
}

static brg_status call_pg(const void *o)
{
    brg_pg *pg;
    brg_status status = brg_pg_create(&pg, "self", o);
    brg_pg_destroy(pg);
    return status;
}

static brg_status do_nothing(brg_pg *pg, void *user)
{
    (void)pg;
    (void)user;
    return BRG_OK;
}

static brg_status call_sim(const void *o)
{
    return brg_sim_run(1, o, do_nothing, NULL);
}

static brg_status call_ddp(const void *o)
{
    brg_pg *pg;
    brg_ddp *ddp;
    BRG_TRY(brg_pg_create(&pg, "self", NULL));
    brg_status status = brg_ddp_create(&ddp, pg, &x, 1, NULL, 0, o);
    brg_ddp_destroy(ddp);
    brg_pg_destroy(pg);
    return status;
}

static brg_status nothing_forward(brg_context *ctx, const brg_value *args,
                                  size_t n_args, brg_value *outputs)
{
    (void)ctx;
    (void)n_args;
    outputs[0] = args[0];
    return BRG_OK;
}

static const brg_backward_options backward_options = BRG_BACKWARD_OPTIONS_INIT;
static const brg_gradcheck_options check_options = BRG_GRADCHECK_OPTIONS_INIT;
static const brg_recompute_options stretch_options = BRG_RECOMPUTE_OPTIONS_INIT;
static const brg_offload_options offload_options = BRG_OFFLOAD_OPTIONS_INIT;
static const brg_compile_options compile_options = BRG_COMPILE_OPTIONS_INIT;
static const brg_conv2d_options conv_options = BRG_CONV2D_OPTIONS_INIT;
static const brg_pool2d_options pool_options = {
    .struct_size = sizeof pool_options, .kernel = {1, 1}};
static const brg_attention_options attention_options =
    BRG_ATTENTION_OPTIONS_INIT;
static const brg_batch_norm_options norm_options = BRG_BATCH_NORM_OPTIONS_INIT;
static const brg_cross_entropy_options loss_options =
    BRG_CROSS_ENTROPY_OPTIONS_INIT;
static const brg_embedding_options row_options = BRG_EMBEDDING_OPTIONS_INIT;
static const brg_function_def function_def = {.struct_size =
                                                  sizeof function_def,
                                              .name = "nothing",
                                              .n_outputs = 1,
                                              .forward = nothing_forward};
static const brg_pack_hooks pack_hooks = {.struct_size = sizeof pack_hooks,
                                          .pack = plain_pack,
                                          .unpack = plain_unpack,
                                          .free = plain_free};
static const brg_sgd_options sgd_options = BRG_SGD_OPTIONS_INIT;
static const brg_adamw_options adamw_options = BRG_ADAMW_OPTIONS_INIT;
static const brg_nn_options nn_options = BRG_NN_OPTIONS_INIT;
static const brg_sampler_options sampler_options = {
    .struct_size = sizeof sampler_options, .n_samples = 4, .global_batch = 2};
static const brg_pg_options pg_options = BRG_PG_OPTIONS_INIT;
static const brg_sim_options sim_options = BRG_SIM_OPTIONS_INIT;
static const brg_ddp_options ddp_options = BRG_DDP_OPTIONS_INIT;

typedef struct options_case {
    const char *init;
    const void *good;
    size_t size;
    size_t older; /* a size that has what the call cannot do without */
    brg_status (*call)(const void *options);
} options_case;

#define CASE(init, good, older, call)                                          \
    {                                                                          \
#init, &(good), sizeof(good), (older), (call)                          \
    }
#define HEAD sizeof(size_t)

static const options_case cases[] = {
    CASE(BRG_BACKWARD_OPTIONS_INIT, backward_options, HEAD, call_backward),
    CASE(BRG_BACKWARD_OPTIONS_INIT, backward_options, HEAD, call_grad),
    CASE(BRG_GRADCHECK_OPTIONS_INIT, check_options, HEAD, call_gradcheck),
    CASE(BRG_RECOMPUTE_OPTIONS_INIT, stretch_options, HEAD, call_recompute),
    CASE(BRG_OFFLOAD_OPTIONS_INIT, offload_options, HEAD, call_offload),
    CASE(BRG_COMPILE_OPTIONS_INIT, compile_options, HEAD, call_compile),
    CASE(BRG_CONV2D_OPTIONS_INIT, conv_options, HEAD, call_conv),
    CASE(BRG_POOL2D_OPTIONS_INIT, pool_options,
         offsetof(brg_pool2d_options, stride), call_pool),
    CASE(BRG_ATTENTION_OPTIONS_INIT, attention_options, HEAD, call_attention),
    CASE(BRG_BATCH_NORM_OPTIONS_INIT, norm_options, HEAD, call_batch_norm),
    CASE(BRG_CROSS_ENTROPY_OPTIONS_INIT, loss_options, HEAD,
         call_cross_entropy),
    CASE(BRG_EMBEDDING_OPTIONS_INIT, row_options, HEAD, call_embedding),
    CASE(BRG_FUNCTION_DEF_INIT, function_def,
         offsetof(brg_function_def, setup_context), call_function),
    CASE(BRG_PACK_HOOKS_INIT, pack_hooks, offsetof(brg_pack_hooks, free),
         call_pack_hooks),
    CASE(BRG_SGD_OPTIONS_INIT, sgd_options, HEAD, call_sgd),
    CASE(BRG_ADAMW_OPTIONS_INIT, adamw_options, HEAD, call_adamw),
    CASE(BRG_NN_OPTIONS_INIT, nn_options, offsetof(brg_nn_options, prefix),
         call_nn),
    CASE(BRG_SAMPLER_OPTIONS_INIT, sampler_options,
         offsetof(brg_sampler_options, global_batch) + 8, call_sampler),
    CASE(BRG_PG_OPTIONS_INIT, pg_options, HEAD, call_pg),
    CASE(BRG_SIM_OPTIONS_INIT, sim_options, HEAD, call_sim),
    CASE(BRG_DDP_OPTIONS_INIT, ddp_options, HEAD, call_ddp),
};

static brg_status call_sized(const options_case *c, size_t size, char beyond)
{
    _Alignas(16) char memory[1024];
    memset(memory, 0x55, sizeof memory); /* beyond an older caller's struct */
    memcpy(memory, c->good, c->size);
    if (size > c->size)
        memset(memory + c->size, beyond, size - c->size);
    else
        memset(memory + size, 0x55, sizeof memory - size);
    memcpy(memory, &size, sizeof size);
    brg_scope *scope = brg_scope_begin();
    brg_status status = c->call(memory);
    brg_scope_end(scope);
    return status;
}

static void test_options__every_struct_follows_it(void **state)
{
    (void)state;
    brg_scope *scope = brg_scope_begin();
    x = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(3));
    image = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(2, 2, 2, 2));
    assert_brg_ok(brg_set_requires_grad(x, true));
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const options_case *c = &cases[i];
        print_message("%s\n", c->init);
        assert_brg_ok(call_sized(c, c->size, 0));
        assert_brg_ok(call_sized(c, c->older, 0));
        assert_brg_ok(call_sized(c, c->size + 8, 0));
        assert_brg_fails_with(call_sized(c, c->size + 8, 1), BRG_ERR_ABI,
                              "newer library");
        brg_error_clear();
        assert_int_equal(call_sized(c, 0, 0), BRG_ERR_ARG);
        assert_non_null(strstr(brg_error_message(), c->init));
    }
    brg_scope_end(scope);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_options__rule),
        cmocka_unit_test(test_options__every_struct_follows_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
