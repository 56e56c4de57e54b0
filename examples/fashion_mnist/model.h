/* SPDX-License-Identifier: Apache-2.0
 * The two models: a perceptron 784-512-512-10, and a small convolutional
 * network. */
#ifndef EXAMPLES_FASHION_MNIST_MODEL_H
#define EXAMPLES_FASHION_MNIST_MODEL_H

#include <brigade/nn.h>

typedef struct model {
    bool is_cnn;
    brg_params *params;
    brg_nn_conv2d convs[2];
    brg_nn_linear layers[3];
} model;

/* `kind` is "mlp" or "cnn"; initial values follow from the seed. Freed by
 * model_free, also after a failure. */
BRG_NODISCARD brg_status model_create(model *out, const char *kind,
                                      uint64_t seed);
void model_free(model *m);

/* Images (n, 1, 28, 28) to one score per class (n, 10). */
brg_tensor *model_forward(const model *m, brg_tensor *images);

#endif
