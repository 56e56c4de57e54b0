/* SPDX-License-Identifier: Apache-2.0
 * The two models. */
#include "model.h"

#include <string.h>

#include <brigade/ops.h>
#include <brigade/random.h>

#include "data.h"

static brg_status create_mlp(model *m, const brg_nn_options *nn)
{
    BRG_TRY(brg_nn_linear_init(&m->layers[0], nn, "fc1",
                               IMAGE_SIZE * IMAGE_SIZE, 512));
    BRG_TRY(brg_nn_linear_init(&m->layers[1], nn, "fc2", 512, 512));
    return brg_nn_linear_init(&m->layers[2], nn, "fc3", 512, N_CLASSES);
}

/* Two 3x3 convolutions without padding, 28 -> 26 -> 24; the pool halves. */
static brg_status create_cnn(model *m, const brg_nn_options *nn)
{
    const brg_nn_conv2d_options conv1 = {
        .n_in = 1, .n_out = 32, .kernel = {3, 3}};
    const brg_nn_conv2d_options conv2 = {
        .n_in = 32, .n_out = 64, .kernel = {3, 3}};
    BRG_TRY(brg_nn_conv2d_init(&m->convs[0], nn, "conv1", &conv1));
    BRG_TRY(brg_nn_conv2d_init(&m->convs[1], nn, "conv2", &conv2));
    BRG_TRY(brg_nn_linear_init(&m->layers[0], nn, "fc1", 64 * 12 * 12, 128));
    return brg_nn_linear_init(&m->layers[1], nn, "fc2", 128, N_CLASSES);
}

brg_status model_create(model *out, const char *kind, uint64_t seed)
{
    *out = (model){.is_cnn = strcmp(kind, "cnn") == 0};
    BRG_TRY(brg_params_create(&out->params));
    brg_nn_options nn = BRG_NN_OPTIONS_INIT;
    nn.params = out->params;
    nn.init = BRG_NN_INIT_KAIMING_UNIFORM;
    brg_seed(seed);
    return out->is_cnn ? create_cnn(out, &nn) : create_mlp(out, &nn);
}

void model_free(model *m)
{
    brg_params_destroy(m->params);
    *m = (model){0};
}

static brg_tensor *forward_cnn(const model *m, brg_tensor *images)
{
    const brg_pool2d_options pool = {.struct_size = sizeof pool,
                                     .kernel = {2, 2}};
    brg_tensor *h = brg_relu(brg_nn_conv2d_forward(&m->convs[0], images));
    h = brg_max_pool2d(brg_nn_conv2d_forward(&m->convs[1], h), &pool);
    h = brg_flatten(brg_relu(h), 1, -1);
    h = brg_relu(brg_nn_linear_forward(&m->layers[0], h));
    return brg_nn_linear_forward(&m->layers[1], h);
}

brg_tensor *model_forward(const model *m, brg_tensor *images)
{
    if (m->is_cnn)
        return forward_cnn(m, images);
    brg_tensor *h = brg_flatten(images, 1, -1);
    h = brg_relu(brg_nn_linear_forward(&m->layers[0], h));
    h = brg_relu(brg_nn_linear_forward(&m->layers[1], h));
    return brg_nn_linear_forward(&m->layers[2], h);
}
