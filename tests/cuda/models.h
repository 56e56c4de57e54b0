/* SPDX-License-Identifier: Apache-2.0
 * Small models that the tests of training on a GPU share. */
#ifndef BRG_TESTS_CUDA_MODELS_H
#define BRG_TESTS_CUDA_MODELS_H

#include "tests/cuda/compare.h"

#define SIDE 12 /* of images */
#define N_CLASSES 7
#define VOCAB 29
#define CONTEXT 24
#define DIM 32

typedef enum kind { MLP, CNN, GPT, N_KINDS } kind;
static const char *const kind_names[N_KINDS] = {"mlp", "cnn", "gpt"};

typedef struct model_options {
    int64_t padding, groups;       /* of the second convolution */
    double dropout;                /* of the MLP; 0: none */
    double gpt_dropout;            /* of the GPT */
    double eps;                    /* of AdamW; 0: its default */
    int64_t context, dim, n_heads; /* of the GPT; 0: CONTEXT, DIM, 4 */
} model_options;

typedef struct model {
    kind kind;
    double dropout;
    int64_t context, dim, n_heads;
    brg_params *params;
    brg_optim *optim;
    brg_nn_linear linear[3];
    brg_nn_conv2d conv[2];
    brg_nn_batch_norm norm;
    brg_nn_embedding tokens, positions;
    brg_nn_block blocks[2];
    brg_nn_layer_norm last;
} model;

static inline void init_mlp(model *m, const brg_nn_options *nn)
{
    const int64_t sizes[] = {SIDE * SIDE, 64, 48, N_CLASSES};
    const char *const names[] = {"fc1", "fc2", "fc3"};
    for (int i = 0; i < 3; i++)
        assert_brg_ok(brg_nn_linear_init(&m->linear[i], nn, names[i], sizes[i],
                                         sizes[i + 1]));
}

static inline void init_cnn(model *m, const brg_nn_options *nn,
                            const model_options *o)
{
    const brg_nn_conv2d_options first = {
        .n_in = 1, .n_out = 8, .kernel = {3, 3}, .padding = {1, 1}};
    const brg_nn_conv2d_options second = {.n_in = 8,
                                          .n_out = 12,
                                          .kernel = {3, 3},
                                          .stride = {2, 2},
                                          .padding = {o->padding, o->padding},
                                          .groups = o->groups};
    const int64_t side = (SIDE / 2 + 2 * o->padding - 3) / 2 + 1;
    assert_brg_ok(brg_nn_conv2d_init(&m->conv[0], nn, "conv1", &first));
    assert_brg_ok(brg_nn_batch_norm_init(&m->norm, nn, "bn", 8));
    assert_brg_ok(brg_nn_conv2d_init(&m->conv[1], nn, "conv2", &second));
    assert_brg_ok(brg_nn_linear_init(&m->linear[0], nn, "fc", 12 * side * side,
                                     N_CLASSES));
}

static inline void init_gpt(model *m, const brg_nn_options *nn)
{
    const brg_nn_block_options block = {
        .dim = m->dim, .n_heads = m->n_heads, .n_blocks = 2};
    assert_brg_ok(brg_nn_embedding_init(&m->tokens, nn, "wte", VOCAB, m->dim));
    assert_brg_ok(
        brg_nn_embedding_init(&m->positions, nn, "wpe", m->context, m->dim));
    assert_brg_ok(brg_nn_block_init(&m->blocks[0], nn, "h.0", &block));
    assert_brg_ok(brg_nn_block_init(&m->blocks[1], nn, "h.1", &block));
    assert_brg_ok(brg_nn_layer_norm_init(&m->last, nn, "ln_f", m->dim));
}

static inline void model_init(model *m, kind k, brg_dtype dtype,
                              const model_options *o)
{
    *m = (model){.kind = k,
                 .dropout = k == GPT ? o->gpt_dropout : o->dropout,
                 .context = o->context ? o->context : CONTEXT,
                 .dim = o->dim ? o->dim : DIM,
                 .n_heads = o->n_heads ? o->n_heads : 4};
    assert_brg_ok(brg_params_create(&m->params));
    brg_nn_options nn = BRG_NN_OPTIONS_INIT;
    nn.params = m->params;
    nn.dtype = dtype;
    brg_seed(2);
    if (k == CNN)
        init_cnn(m, &nn, o);
    else
        (k == MLP ? init_mlp : init_gpt)(m, &nn);
    brg_adamw_options adamw = BRG_ADAMW_OPTIONS_INIT;
    brg_sgd_options sgd = BRG_SGD_OPTIONS_INIT;
    sgd.momentum = 0.9;
    sgd.lr = 0.05;
    adamw.lr = 3e-3;
    if (o->eps > 0)
        adamw.eps = o->eps;
    assert_brg_ok(k == MLP
                      ? brg_optim_create_sgd(&m->optim, m->params, &sgd)
                      : brg_optim_create_adamw(&m->optim, m->params, &adamw));
}

static inline void model_free(model *m)
{
    brg_optim_destroy(m->optim);
    brg_params_destroy(m->params);
}

static inline brg_tensor *forward_gpt(model *m, brg_tensor *x)
{
    x = brg_add(brg_nn_embedding_forward(&m->tokens, x), m->positions.weight);
    x = brg_dropout(x, m->dropout, true);
    for (int i = 0; i < 2; i++)
        x = brg_dropout(brg_nn_block_forward(&m->blocks[i], x), m->dropout,
                        true);
    x = brg_nn_layer_norm_forward(&m->last, x);
    return brg_linear(x, m->tokens.weight, NULL);
}

static inline brg_tensor *forward(model *m, brg_tensor *x)
{
    if (m->kind == GPT)
        return forward_gpt(m, x);
    if (m->kind == CNN) {
        const brg_pool2d_options pool = {.struct_size = sizeof pool,
                                         .kernel = {2, 2}};
        x = brg_nn_conv2d_forward(&m->conv[0], x);
        x = brg_relu(brg_nn_batch_norm_forward(&m->norm, x, true));
        x = brg_nn_conv2d_forward(&m->conv[1], brg_max_pool2d(x, &pool));
        return brg_nn_linear_forward(&m->linear[0],
                                     brg_flatten(brg_gelu(x), 1, -1));
    }
    x = brg_relu(brg_nn_linear_forward(&m->linear[0], brg_flatten(x, 1, -1)));
    x = brg_tanh(brg_nn_linear_forward(&m->linear[1], x));
    if (m->dropout > 0)
        x = brg_dropout(x, m->dropout, true);
    return brg_nn_linear_forward(&m->linear[2], x);
}

#endif
