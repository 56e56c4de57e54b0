/* SPDX-License-Identifier: Apache-2.0
 * A decoder-only transformer in the form of GPT-2: norms before the blocks' two
 * parts, learned positions, output weights shared with the embedding. */
#ifndef EXAMPLES_GPT_MODEL_H
#define EXAMPLES_GPT_MODEL_H

#include <brigade/nn.h>

#define GPT_BYTES 256
#define GPT_MAX_LAYERS 48

typedef struct gpt_config {
    int64_t n_layers;
    int64_t dim;
    int64_t n_heads;
    int64_t context;   /* T, the longest sequence */
    int64_t n_classes; /* tokens that there are */
    int64_t n_rows;    /* of the embedding: n_classes, padded */
    brg_dtype dtype;   /* of parameters and activations */
} gpt_config;

typedef struct gpt {
    gpt_config config;
    brg_params *params;
    brg_nn_embedding tokens;    /* (n_rows, dim), the output weights too */
    brg_nn_embedding positions; /* (T, dim) */
    brg_nn_block blocks[GPT_MAX_LAYERS];
    brg_nn_layer_norm norm;
} gpt;

/* Initial values follow from the seed. Freed by gpt_free, also after a
 * failure. */
BRG_NODISCARD brg_status gpt_create(gpt *out, const gpt_config *config,
                                    uint64_t seed);
void gpt_free(gpt *m);

/* A multiple of it is what matrix products like. */
#define GPT_PADDING 128

/* Floating-point operations of training on one token: 6 for each parameter but
 * the positions', and 12 dim T for each block's attention. (A. Chowdhery et al.,
 * "PaLM", 2022, appendix B.) */
double gpt_flops_per_token(const gpt *m);

/* ids (B, t), i32 or i64, t <= T, to scores of the next token (B, t, n_rows),
 * of which n_classes count. */
brg_tensor *gpt_forward(const gpt *m, brg_tensor *ids);

#endif
