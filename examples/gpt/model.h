/* SPDX-License-Identifier: Apache-2.0
 * A decoder-only transformer over bytes, in the form of GPT-2: norms before
 * the blocks' two parts, learned positions, output weights shared with the
 * embedding. */
#ifndef EXAMPLES_GPT_MODEL_H
#define EXAMPLES_GPT_MODEL_H

#include <brigade/nn.h>

#define GPT_VOCAB 256
#define GPT_MAX_LAYERS 48

typedef struct gpt_config {
    int64_t n_layers;
    int64_t dim;
    int64_t n_heads;
    int64_t context; /* T, the longest sequence */
} gpt_config;

typedef struct gpt {
    gpt_config config;
    brg_params *params;
    brg_nn_embedding tokens;    /* (256, dim), the output weights too */
    brg_nn_embedding positions; /* (T, dim) */
    brg_nn_block blocks[GPT_MAX_LAYERS];
    brg_nn_layer_norm norm;
} gpt;

/* Initial values follow from the seed. Freed by gpt_free, also after a
 * failure. */
BRG_NODISCARD brg_status gpt_create(gpt *out, const gpt_config *config,
                                    uint64_t seed);
void gpt_free(gpt *m);

/* ids (B, t), i64, t <= T, to scores of the next byte (B, t, 256). */
brg_tensor *gpt_forward(const gpt *m, brg_tensor *ids);

#endif
