/* SPDX-License-Identifier: Apache-2.0
 * The transformer, from the blocks of nn.h. */
#include "model.h"

#include <stdio.h>

#include <brigade/ops.h>
#include <brigade/random.h>

brg_status gpt_create(gpt *out, const gpt_config *config, uint64_t seed)
{
    *out = (gpt){.config = *config};
    BRG_TRY(brg_params_create(&out->params));
    brg_nn_options nn = BRG_NN_OPTIONS_INIT;
    nn.params = out->params;
    nn.init = BRG_NN_INIT_NORMAL;
    nn.std = 0.02;
    nn.dtype = config->dtype;
    const brg_nn_block_options block = {.dim = config->dim,
                                        .n_heads = config->n_heads,
                                        .n_blocks = config->n_layers};
    brg_seed(seed);
    BRG_TRY(brg_nn_embedding_init(&out->tokens, &nn, "wte", config->n_rows,
                                  config->dim));
    BRG_TRY(brg_nn_embedding_init(&out->positions, &nn, "wpe", config->context,
                                  config->dim));
    for (int64_t i = 0; i < config->n_layers; i++) {
        char name[32];
        snprintf(name, sizeof name, "h.%d", (int)i);
        BRG_TRY(brg_nn_block_init(&out->blocks[i], &nn, name, &block));
    }
    return brg_nn_layer_norm_init(&out->norm, &nn, "ln_f", config->dim);
}

void gpt_free(gpt *m)
{
    brg_params_destroy(m->params);
    *m = (gpt){0};
}

double gpt_flops_per_token(const gpt *m)
{
    const gpt_config *c = &m->config;
    double n = 0;
    for (size_t i = 0; i < brg_params_count(m->params); i++)
        n += (double)brg_tensor_numel(brg_params_at(m->params, i)->tensor);
    n -= (double)(c->context * c->dim);
    return 6 * n + 12 * (double)(c->n_layers * c->dim * c->context);
}

brg_tensor *gpt_forward(const gpt *m, brg_tensor *ids)
{
    int64_t t = ids != NULL ? brg_tensor_size(ids, 1) : 0;
    brg_tensor *x = brg_add(brg_nn_embedding_forward(&m->tokens, ids),
                            brg_narrow(m->positions.weight, 0, 0, t));
    for (int64_t i = 0; i < m->config.n_layers; i++)
        x = brg_nn_block_forward(&m->blocks[i], x);
    x = brg_nn_layer_norm_forward(&m->norm, x);
    return brg_linear(x, m->tokens.weight, NULL);
}
