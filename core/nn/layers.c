/* SPDX-License-Identifier: Apache-2.0
 * Making the tensors of layers, and one expression each for their forward. */
#include <brigade/nn.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

#include <brigade/device.h>
#include <brigade/ops_pointwise.h>

#include "core/base/alloc.h"
#include "core/base/error.h"
#include "core/base/options.h"
#include "core/tensor/tensor.h"

#define MAX_NAME 256

/* *nn: to be read from `taken` from now on. */
static brg_status take_options(brg_nn_options *taken, const brg_nn_options **nn,
                               const char *name)
{
    *taken = (brg_nn_options)BRG_NN_OPTIONS_INIT;
    BRG_CHECK_ARG(name && name[0], "layer: the name is empty");
    BRG_TRY(BRG_TAKE_OPTIONS(taken, *nn, name, BRG_NN_OPTIONS_INIT));
    BRG_CHECK_ARG(*nn && taken->params,
                  "layer '%s': the options are NULL or without params", name);
    *nn = taken;
    return BRG_OK;
}

static brg_status join_name(char text[MAX_NAME], const brg_nn_options *nn,
                            const char *name, const char *part)
{
    int n = snprintf(text, MAX_NAME, "%s%s.%s", nn->prefix ? nn->prefix : "",
                     name, part);
    BRG_CHECK_ARG(n > 0 && n < MAX_NAME,
                  "layer '%s': the name of its %s is longer than %d", name,
                  part, MAX_NAME - 1);
    return BRG_OK;
}

/* A tensor of a layer still to be filled. */
typedef struct part {
    const char *name;
    brg_param_kind kind;
    int ndim;
    int64_t shape[4];
    brg_nn_init init;
    brg_nn_fans fans;
    double value; /* not 0: of all elements, instead of init */
} part;

static brg_status fill_part(brg_tensor *t, const part *p)
{
    return p->value != 0.0 ? brg_fill_(t, p->value)
                           : brg_nn_fill(t, p->init, &p->fans);
}

/* *out: borrowed from nn->params. */
static brg_status add_part(brg_tensor **out, const brg_nn_options *nn,
                           const char *name, const part *p)
{
    char text[MAX_NAME];
    brg__layout layout;
    brg_tensor *t;
    *out = NULL;
    BRG_TRY(join_name(text, nn, name, p->name));
    BRG_TRY(brg__layout_init(&layout, text, nn->dtype, p->ndim, p->shape));
    layout.device = brg_device_get();
    BRG_TRY(brg__tensor_new(&t, &layout));
    brg_status status = fill_part(t, p);
    if (status == BRG_OK)
        status = brg_params_add(nn->params, text, t, p->kind);
    brg_release(t); /* params holds it */
    if (status == BRG_OK)
        *out = t;
    return status;
}

/* The bias of a layer whose weight has these fans. */
static brg_status add_bias(brg_tensor **out, const brg_nn_options *nn,
                           const char *name, const brg_nn_fans *fans)
{
    *out = NULL;
    if (nn->no_bias)
        return BRG_OK;
    bool is_default = nn->init == BRG_NN_INIT_DEFAULT;
    part bias = {.name = "bias",
                 .ndim = 1,
                 .shape = {fans->out},
                 .init = is_default ? BRG_NN_INIT_DEFAULT : BRG_NN_INIT_ZEROS,
                 .fans = *fans};
    return add_part(out, nn, name, &bias);
}

/* n elements that are all `value`. */
static brg_status add_constant(brg_tensor **out, const brg_nn_options *nn,
                               const char *name, const part *p)
{
    part constant = *p;
    constant.ndim = 1;
    constant.init = BRG_NN_INIT_ZEROS;
    return add_part(out, nn, name, &constant);
}

/* ---- Linear ----------------------------------------------------------------------- */

brg_status brg_nn_linear_init(brg_nn_linear *filled, const brg_nn_options *nn,
                              const char *name, int64_t n_in, int64_t n_out)
{
    brg_nn_options taken;
    BRG_TRY(take_options(&taken, &nn, name));
    BRG_CHECK_ARG(filled && n_in > 0 && n_out > 0,
                  "linear '%s': n_in %lld and n_out %lld must be positive",
                  name, (long long)n_in, (long long)n_out);
    part weight = {.name = "weight",
                   .ndim = 2,
                   .shape = {n_out, n_in},
                   .init = nn->init,
                   .fans = {n_in, n_out, nn->std}};
    *filled = (brg_nn_linear){0};
    BRG_TRY(add_part(&filled->weight, nn, name, &weight));
    return add_bias(&filled->bias, nn, name, &weight.fans);
}

brg_tensor *brg_nn_linear_forward(const brg_nn_linear *layer, brg_tensor *x)
{
    return brg_linear(x, layer->weight, layer->bias);
}

/* ---- Convolution --------------------------------------------------------------------- */

static brg_status check_conv2d(const char *name, const brg_nn_conv2d_options *o,
                               int64_t groups)
{
    BRG_CHECK_ARG(o && o->n_in > 0 && o->n_out > 0 && o->kernel[0] > 0 &&
                      o->kernel[1] > 0,
                  "conv2d '%s': n_in, n_out and kernel must be positive", name);
    BRG_CHECK_ARG(groups > 0 && o->n_in % groups == 0 && o->n_out % groups == 0,
                  "conv2d '%s': %lld groups do not divide %lld channels in and "
                  "%lld out",
                  name, (long long)groups, (long long)o->n_in,
                  (long long)o->n_out);
    return BRG_OK;
}

brg_status brg_nn_conv2d_init(brg_nn_conv2d *filled, const brg_nn_options *nn,
                              const char *name,
                              const brg_nn_conv2d_options *options)
{
    const brg_nn_conv2d_options *o = options;
    int64_t groups = o && o->groups ? o->groups : 1;
    brg_nn_options taken;
    BRG_TRY(take_options(&taken, &nn, name));
    BRG_CHECK_ARG(filled, "conv2d '%s': layer is NULL", name);
    BRG_TRY(check_conv2d(name, o, groups));
    int64_t area = o->kernel[0] * o->kernel[1];
    part weight = {
        .name = "weight",
        .ndim = 4,
        .shape = {o->n_out, o->n_in / groups, o->kernel[0], o->kernel[1]},
        .init = nn->init,
        .fans = {o->n_in / groups * area, o->n_out / groups * area, nn->std}};
    *filled = (brg_nn_conv2d){.options = BRG_CONV2D_OPTIONS_INIT};
    memcpy(filled->options.stride, o->stride, sizeof o->stride);
    memcpy(filled->options.padding, o->padding, sizeof o->padding);
    memcpy(filled->options.dilation, o->dilation, sizeof o->dilation);
    filled->options.groups = groups;
    BRG_TRY(add_part(&filled->weight, nn, name, &weight));
    brg_nn_fans fans = {weight.fans.in, o->n_out, nn->std};
    return add_bias(&filled->bias, nn, name, &fans);
}

brg_tensor *brg_nn_conv2d_forward(const brg_nn_conv2d *layer, brg_tensor *x)
{
    return brg_conv2d(x, layer->weight, layer->bias, &layer->options);
}

/* ---- Embedding --------------------------------------------------------------------------- */

brg_status brg_nn_embedding_init(brg_nn_embedding *filled,
                                 const brg_nn_options *nn, const char *name,
                                 int64_t n, int64_t dim)
{
    brg_nn_options taken;
    BRG_TRY(take_options(&taken, &nn, name));
    BRG_CHECK_ARG(filled && n > 0 && dim > 0,
                  "embedding '%s': n %lld and dim %lld must be positive", name,
                  (long long)n, (long long)dim);
    bool is_normal = nn->init == BRG_NN_INIT_NORMAL;
    part weight = {.name = "weight",
                   .ndim = 2,
                   .shape = {n, dim},
                   .init = BRG_NN_INIT_NORMAL,
                   .fans = {n, dim, is_normal ? nn->std : 1.0}};
    return add_part(&filled->weight, nn, name, &weight);
}

brg_tensor *brg_nn_embedding_forward(const brg_nn_embedding *layer,
                                     brg_tensor *ids)
{
    return brg_embedding(layer->weight, ids);
}

/* ---- Norms ------------------------------------------------------------------------------------ */

static brg_status add_norm(brg_tensor **weight, brg_tensor **bias,
                           const brg_nn_options *nn, const char *name,
                           int64_t n)
{
    brg_nn_options taken;
    BRG_TRY(take_options(&taken, &nn, name));
    BRG_CHECK_ARG(n > 0, "norm '%s': its size %lld must be positive", name,
                  (long long)n);
    part ones = {.name = "weight", .shape = {n}, .value = 1.0};
    part zeros = {.name = "bias", .shape = {n}};
    BRG_TRY(add_constant(weight, nn, name, &ones));
    return nn->no_bias ? BRG_OK : add_constant(bias, nn, name, &zeros);
}

brg_status brg_nn_layer_norm_init(brg_nn_layer_norm *filled,
                                  const brg_nn_options *nn, const char *name,
                                  int64_t dim)
{
    BRG_CHECK_ARG(filled, "brg_nn_layer_norm_init: layer is NULL");
    *filled = (brg_nn_layer_norm){.eps = 1e-5};
    return add_norm(&filled->weight, &filled->bias, nn, name, dim);
}

brg_tensor *brg_nn_layer_norm_forward(const brg_nn_layer_norm *layer,
                                      brg_tensor *x)
{
    return brg_layer_norm(x, layer->weight, layer->bias, 1, layer->eps);
}

brg_status brg_nn_batch_norm_init(brg_nn_batch_norm *filled,
                                  const brg_nn_options *nn, const char *name,
                                  int64_t n_channels)
{
    BRG_CHECK_ARG(filled, "brg_nn_batch_norm_init: layer is NULL");
    *filled = (brg_nn_batch_norm){.momentum = 0.1, .eps = 1e-5};
    BRG_TRY(add_norm(&filled->weight, &filled->bias, nn, name, n_channels));
    part mean = {.name = "running_mean",
                 .kind = BRG_PARAM_BUFFER,
                 .shape = {n_channels}};
    part variance = {.name = "running_var",
                     .kind = BRG_PARAM_BUFFER,
                     .shape = {n_channels},
                     .value = 1.0};
    BRG_TRY(add_constant(&filled->running_mean, nn, name, &mean));
    return add_constant(&filled->running_var, nn, name, &variance);
}

brg_tensor *brg_nn_batch_norm_forward(const brg_nn_batch_norm *layer,
                                      brg_tensor *x, bool is_training)
{
    brg_batch_norm_options options = BRG_BATCH_NORM_OPTIONS_INIT;
    options.training = is_training;
    options.momentum = layer->momentum;
    options.eps = layer->eps;
    return brg_batch_norm(x, layer->weight, layer->bias, layer->running_mean,
                          layer->running_var, &options);
}
