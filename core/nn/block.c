/* SPDX-License-Identifier: Apache-2.0
 * The transformer block of GPT-2. */
#include <brigade/nn.h>

#include <math.h>
#include <stdio.h>

#include <brigade/ops_pointwise.h>

#include "core/base/error.h"
#include "core/base/options.h"

#define MAX_PREFIX 192

static brg_status check_options(const brg_nn_options *nn, const char *name,
                                const brg_nn_block_options *o)
{
    BRG_CHECK_ARG(nn && name && name[0],
                  "block: the options are NULL or the name is empty");
    BRG_CHECK_ARG(o && o->dim > 0 && o->n_heads > 0 && o->n_blocks > 0 &&
                      o->dim % o->n_heads == 0,
                  "block '%s': dim %lld, n_heads %lld and n_blocks %lld must "
                  "be positive, and the heads divide the dim",
                  name, o ? (long long)o->dim : 0,
                  o ? (long long)o->n_heads : 0,
                  o ? (long long)o->n_blocks : 0);
    return BRG_OK;
}

brg_status brg_nn_block_init(brg_nn_block *filled, const brg_nn_options *nn,
                             const char *name,
                             const brg_nn_block_options *options)
{
    BRG_CHECK_ARG(filled, "brg_nn_block_init: block is NULL");
    BRG_TRY(check_options(nn, name, options));
    brg_nn_options inner = BRG_NN_OPTIONS_INIT;
    BRG_TRY(BRG_TAKE_OPTIONS(&inner, nn, name, BRG_NN_OPTIONS_INIT));
    char prefix[MAX_PREFIX];
    int n = snprintf(prefix, sizeof prefix, "%s%s.",
                     inner.prefix ? inner.prefix : "", name);
    BRG_CHECK_ARG(n < MAX_PREFIX, "block '%s': the name is too long", name);
    int64_t dim = options->dim;
    inner.prefix = prefix;
    inner.init = BRG_NN_INIT_NORMAL;
    inner.std = inner.std > 0.0 ? inner.std : 0.02;
    brg_nn_options into = inner; /* into the residual stream */
    into.std = inner.std / sqrt(2.0 * (double)options->n_blocks);
    brg_nn_block *b = filled;
    *b = (brg_nn_block){.n_heads = options->n_heads};
    BRG_TRY(brg_nn_layer_norm_init(&b->norm1, &inner, "ln_1", dim));
    BRG_TRY(brg_nn_linear_init(&b->qkv, &inner, "attn.c_attn", dim, 3 * dim));
    BRG_TRY(brg_nn_linear_init(&b->proj, &into, "attn.c_proj", dim, dim));
    BRG_TRY(brg_nn_layer_norm_init(&b->norm2, &inner, "ln_2", dim));
    BRG_TRY(brg_nn_linear_init(&b->fc, &inner, "mlp.c_fc", dim, 4 * dim));
    return brg_nn_linear_init(&b->fc_proj, &into, "mlp.c_proj", 4 * dim, dim);
}

brg_tensor *brg_nn_block_forward(const brg_nn_block *block, brg_tensor *x)
{
    brg_attention_options causal = BRG_ATTENTION_OPTIONS_INIT;
    causal.is_causal = true;
    brg_tensor *h = brg_nn_layer_norm_forward(&block->norm1, x);
    h = brg_attention_qkv(brg_nn_linear_forward(&block->qkv, h), block->n_heads,
                          &causal);
    x = brg_add(x, brg_nn_linear_forward(&block->proj, h));
    h = brg_nn_layer_norm_forward(&block->norm2, x);
    h = brg_gelu(brg_nn_linear_forward(&block->fc, h));
    return brg_add(x, brg_nn_linear_forward(&block->fc_proj, h));
}
