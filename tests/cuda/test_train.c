/* SPDX-License-Identifier: Apache-2.0
 * Training on one GPU equals training on the CPU: the same starting values and
 * data, then the losses of each step and the parameters after the last. */
#include "tests/cuda/compare.h"

#define N_STEPS 12
#define BATCH 16
#define SIDE 12 /* of images */
#define N_CLASSES 7
#define VOCAB 29
#define CONTEXT 24
#define DIM 32

typedef enum kind { MLP, CNN, GPT } kind;

typedef struct model {
    kind kind;
    brg_params *params;
    brg_optim *optim;
    brg_nn_linear linear[3];
    brg_nn_conv2d conv[2];
    brg_nn_batch_norm norm;
    brg_nn_embedding tokens, positions;
    brg_nn_block blocks[2];
    brg_nn_layer_norm last;
} model;

static void init_mlp(model *m, const brg_nn_options *nn)
{
    const int64_t sizes[] = {SIDE * SIDE, 64, 48, N_CLASSES};
    const char *const names[] = {"fc1", "fc2", "fc3"};
    for (int i = 0; i < 3; i++)
        assert_brg_ok(brg_nn_linear_init(&m->linear[i], nn, names[i], sizes[i],
                                         sizes[i + 1]));
}

static void init_cnn(model *m, const brg_nn_options *nn)
{
    const brg_nn_conv2d_options first = {
        .n_in = 1, .n_out = 8, .kernel = {3, 3}, .padding = {1, 1}};
    const brg_nn_conv2d_options second = {.n_in = 8,
                                          .n_out = 12,
                                          .kernel = {3, 3},
                                          .stride = {2, 2},
                                          .padding = {1, 1},
                                          .groups = 2};
    assert_brg_ok(brg_nn_conv2d_init(&m->conv[0], nn, "conv1", &first));
    assert_brg_ok(brg_nn_batch_norm_init(&m->norm, nn, "bn", 8));
    assert_brg_ok(brg_nn_conv2d_init(&m->conv[1], nn, "conv2", &second));
    assert_brg_ok(
        brg_nn_linear_init(&m->linear[0], nn, "fc", 12 * 3 * 3, N_CLASSES));
}

static void init_gpt(model *m, const brg_nn_options *nn)
{
    const brg_nn_block_options block = {
        .dim = DIM, .n_heads = 4, .n_blocks = 2};
    assert_brg_ok(brg_nn_embedding_init(&m->tokens, nn, "wte", VOCAB, DIM));
    assert_brg_ok(
        brg_nn_embedding_init(&m->positions, nn, "wpe", CONTEXT, DIM));
    assert_brg_ok(brg_nn_block_init(&m->blocks[0], nn, "h.0", &block));
    assert_brg_ok(brg_nn_block_init(&m->blocks[1], nn, "h.1", &block));
    assert_brg_ok(brg_nn_layer_norm_init(&m->last, nn, "ln_f", DIM));
}

static void model_init(model *m, kind k, brg_dtype dtype)
{
    *m = (model){.kind = k};
    assert_brg_ok(brg_params_create(&m->params));
    brg_nn_options nn = BRG_NN_OPTIONS_INIT;
    nn.params = m->params;
    nn.dtype = dtype;
    brg_seed(2);
    (k == MLP ? init_mlp : k == CNN ? init_cnn : init_gpt)(m, &nn);
    brg_adamw_options adamw = BRG_ADAMW_OPTIONS_INIT;
    brg_sgd_options sgd = BRG_SGD_OPTIONS_INIT;
    sgd.momentum = 0.9;
    sgd.lr = 0.05;
    adamw.lr = 3e-3;
    /* Some gradients are zero but for rounding (a bias in front of batch norm,
     * the bias of keys); AdamW would make whole steps of that. */
    adamw.eps = 1e-4;
    assert_brg_ok(k == MLP
                      ? brg_optim_create_sgd(&m->optim, m->params, &sgd)
                      : brg_optim_create_adamw(&m->optim, m->params, &adamw));
}

static void model_free(model *m)
{
    brg_optim_destroy(m->optim);
    brg_params_destroy(m->params);
}

static brg_tensor *forward_cnn(model *m, brg_tensor *x)
{
    const brg_pool2d_options pool = {.struct_size = sizeof pool,
                                     .kernel = {2, 2}};
    x = brg_nn_conv2d_forward(&m->conv[0], x);
    x = brg_relu(brg_nn_batch_norm_forward(&m->norm, x, true));
    x = brg_nn_conv2d_forward(&m->conv[1], brg_max_pool2d(x, &pool));
    return brg_nn_linear_forward(&m->linear[0],
                                 brg_flatten(brg_gelu(x), 1, -1));
}

static brg_tensor *forward_mlp(model *m, brg_tensor *x)
{
    x = brg_relu(brg_nn_linear_forward(&m->linear[0], brg_flatten(x, 1, -1)));
    x = brg_tanh(brg_nn_linear_forward(&m->linear[1], x));
    return brg_nn_linear_forward(&m->linear[2], brg_dropout(x, 0.1, true));
}

static brg_tensor *forward_gpt(model *m, brg_tensor *ids)
{
    brg_tensor *x =
        brg_add(brg_nn_embedding_forward(&m->tokens, ids), m->positions.weight);
    for (int i = 0; i < 2; i++)
        x = brg_nn_block_forward(&m->blocks[i], x);
    x = brg_nn_layer_norm_forward(&m->last, x);
    return brg_linear(x, m->tokens.weight, NULL);
}

/* Data of a step, drawn on the CPU and moved. */
static brg_tensor *loss_of(model *m, int step, brg_dtype dtype)
{
    brg_device device = brg_device_get();
    brg_seed(1000 + (uint64_t)step);
    if (m->kind == GPT) {
        brg_tensor *ids = brg_randint(0, VOCAB, BRG_SHAPE(BATCH, CONTEXT));
        brg_tensor *next = brg_randint(0, VOCAB, BRG_SHAPE(BATCH, CONTEXT));
        return brg_cross_entropy(forward_gpt(m, ids), next);
    }
    brg_tensor *x = brg_cast(
        brg_randn(BRG_DTYPE_F32, BRG_SHAPE(BATCH, 1, SIDE, SIDE)), dtype);
    brg_tensor *t = brg_randint(0, N_CLASSES, BRG_SHAPE(BATCH));
    assert_int_equal(brg_tensor_device(x).type, device.type);
    return brg_cross_entropy((m->kind == MLP ? forward_mlp : forward_cnn)(m, x),
                             t);
}

/* The losses, and all parameters and buffers in one row; borrowed. */
static brg_tensor *train(kind k, brg_dtype dtype, brg_device device,
                         double losses[N_STEPS])
{
    model m;
    brg_tensor *flat[128];
    assert_brg_ok(brg_device_set(device));
    model_init(&m, k, dtype);
    for (int step = 0; step < N_STEPS; step++) {
        brg_scope *scope = brg_scope_begin();
        brg_tensor *loss = assert_brg_some(loss_of(&m, step, dtype));
        assert_brg_ok(brg_backward(loss));
        double norm;
        assert_brg_ok(brg_clip_grad_norm(&norm, m.params, 1.0, true));
        assert_brg_ok(brg_optim_step(m.optim));
        assert_brg_ok(brg_optim_zero_grad(m.optim, step % 2 == 0));
        assert_brg_ok(brg_tensor_item(loss, &losses[step]));
        brg_scope_end(scope);
    }
    size_t n = brg_params_count(m.params);
    assert_true(n < 128);
    bool mode = brg_grad_mode_set(false);
    for (size_t i = 0; i < n; i++)
        flat[i] = brg_flatten(
            brg_cast(brg_params_at(m.params, i)->tensor, BRG_DTYPE_F32), 0, -1);
    brg_tensor *all = assert_brg_some(brg_cat(flat, (int)n, 0));
    (void)brg_grad_mode_set(mode);
    model_free(&m);
    return all;
}

static void check(kind k, brg_dtype dtype, double tolerance)
{
    static const char *const names[] = {"mlp", "cnn", "gpt"};
    double here[N_STEPS], there[N_STEPS];
    brg_scope *scope = brg_scope_begin();
    brg_tensor *want = train(k, dtype, CPU, here);
    brg_tensor *got = train(k, dtype, GPU, there);
    assert_brg_ok(brg_device_set(CPU));
    double d = distance(got, want), worst = 0;
    for (int i = 0; i < N_STEPS; i++)
        worst = fmax(worst, fabs(here[i] - there[i]));
    printf("%s %s: parameters off by %.2g, losses by %.2g, %.4f to %.4f\n",
           names[k], brg_dtype_name(dtype), d, worst, here[0],
           here[N_STEPS - 1]);
    assert_true(d <= tolerance && worst <= 10 * tolerance);
    brg_scope_end(scope);
}

static void test_train__f32(void **state)
{
    (void)state;
    check(MLP, BRG_DTYPE_F32, 1e-5);
    check(CNN, BRG_DTYPE_F32, 1e-4);
    check(GPT, BRG_DTYPE_F32, 1e-4);
}

static void test_train__f64(void **state)
{
    (void)state;
    check(MLP, BRG_DTYPE_F64, 1e-7); /* the row that is compared is f32 */
    check(CNN, BRG_DTYPE_F64, 1e-7);
    check(GPT, BRG_DTYPE_F64, 1e-7);
}

static void test_train__bf16_with_f32_master_weights(void **state)
{
    (void)state;
    check(MLP, BRG_DTYPE_BF16, 2e-2);
    check(CNN, BRG_DTYPE_BF16, 3e-2);
    check(GPT, BRG_DTYPE_BF16, 3e-2);
}

int main(void)
{
    int missing = require_gpu();
    if (missing)
        return missing;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_train__f64),
        cmocka_unit_test(test_train__f32),
        cmocka_unit_test(test_train__bf16_with_f32_master_weights),
    };
    return cmocka_run_group_tests_name("train", tests, NULL, NULL);
}
