/* SPDX-License-Identifier: Apache-2.0
 * Layers: the tensors that trainers make again and again, named and started
 * right. There is no framework: a layer is a plain struct of tensors that
 * `params` owns, and its forward is one expression. */
#ifndef BRG_NN_H
#define BRG_NN_H

#include <brigade/ops_nn.h>
#include <brigade/params.h>

BRG_BEGIN_DECLS

/* ---- Starting values ------------------------------------------------------------
 * fan_in is the number of inputs that one output sums over, fan_out the
 * reverse. U(a) is uniform in [-a, a), N(s) normal with deviation s; both draw
 * from the thread's generator (random.h). */
typedef enum brg_nn_init {
    /* U(1 / sqrt(fan_in)): what PyTorch does to linear and convolution. */
    BRG_NN_INIT_DEFAULT = 0,
    /* U(sqrt(6 / fan_in)) and N(sqrt(2 / fan_in)), before a ReLU. (K. He et
     * al., "Delving Deep into Rectifiers", 2015, section 2.2.) */
    BRG_NN_INIT_KAIMING_UNIFORM = 1,
    BRG_NN_INIT_KAIMING_NORMAL = 2,
    /* U(sqrt(6 / (fan_in + fan_out))) and N(sqrt(2 / (fan_in + fan_out))).
     * (X. Glorot, Y. Bengio, "Understanding the difficulty of training deep
     * feedforward neural networks", 2010, section 4.2.1.) */
    BRG_NN_INIT_XAVIER_UNIFORM = 3,
    BRG_NN_INIT_XAVIER_NORMAL = 4,
    BRG_NN_INIT_NORMAL = 5, /* N(std) */
    BRG_NN_INIT_ZEROS = 6
} brg_nn_init;

typedef struct brg_nn_fans {
    int64_t in;
    int64_t out;
    double std; /* of BRG_NN_INIT_NORMAL */
} brg_nn_fans;

/* Fills a tensor that does not require gradients (yet). */
BRG_API BRG_NODISCARD brg_status brg_nn_fill(brg_tensor *filled,
                                             brg_nn_init init,
                                             const brg_nn_fans *fans);

/* ---- Making layers ----------------------------------------------------------------- */

/* How the tensors of layers are made. */
typedef struct brg_nn_options {
    size_t struct_size;
    brg_params *params; /* where they are added; owns them */
    const char *prefix; /* before every name, "encoder."; NULL: nothing */
    brg_dtype dtype;
    brg_nn_init init; /* of weights */
    double std;       /* of BRG_NN_INIT_NORMAL */
    bool no_bias;
} brg_nn_options;

#define BRG_NN_OPTIONS_INIT                                                    \
    BRG_INIT_WITH(brg_nn_options, BRG_SET(dtype, BRG_DTYPE_F32))

/* Each init function fills the struct with tensors borrowed from nn->params,
 * to which it adds them as "<prefix><name>.weight" and so on; on failure some
 * may have been added. Each forward returns a tensor that belongs to the
 * scope, and NULL for a NULL x. */

/* y = x weight^T + bias: weight (out, in), bias (out): zeros, or like the
 * weight by BRG_NN_INIT_DEFAULT. */
typedef struct brg_nn_linear {
    brg_tensor *weight;
    brg_tensor *bias; /* NULL: none */
} brg_nn_linear;

BRG_API BRG_NODISCARD brg_status brg_nn_linear_init(brg_nn_linear *filled,
                                                    const brg_nn_options *nn,
                                                    const char *name,
                                                    int64_t n_in,
                                                    int64_t n_out);
BRG_API brg_tensor *brg_nn_linear_forward(const brg_nn_linear *layer,
                                          brg_tensor *x);

/* weight (out, in / groups, kernel[0], kernel[1]), bias (out), as above. */
typedef struct brg_nn_conv2d {
    brg_tensor *weight;
    brg_tensor *bias;
    brg_conv2d_options options;
} brg_nn_conv2d;

typedef struct brg_nn_conv2d_options {
    int64_t n_in;
    int64_t n_out;
    int64_t kernel[2];
    int64_t stride[2]; /* 0: 1, here and below */
    int64_t padding[2];
    int64_t dilation[2];
    int64_t groups;
} brg_nn_conv2d_options;

BRG_API BRG_NODISCARD brg_status
brg_nn_conv2d_init(brg_nn_conv2d *filled, const brg_nn_options *nn,
                   const char *name, const brg_nn_conv2d_options *options);
BRG_API brg_tensor *brg_nn_conv2d_forward(const brg_nn_conv2d *layer,
                                          brg_tensor *x);

/* weight (n, dim): N(1), or N(std) by BRG_NN_INIT_NORMAL. */
typedef struct brg_nn_embedding {
    brg_tensor *weight;
} brg_nn_embedding;

BRG_API BRG_NODISCARD brg_status brg_nn_embedding_init(brg_nn_embedding *filled,
                                                       const brg_nn_options *nn,
                                                       const char *name,
                                                       int64_t n, int64_t dim);
BRG_API brg_tensor *brg_nn_embedding_forward(const brg_nn_embedding *layer,
                                             brg_tensor *ids);

/* Over the last dim: weight (dim) of ones, bias (dim) of zeros. */
typedef struct brg_nn_layer_norm {
    brg_tensor *weight;
    brg_tensor *bias;
    double eps; /* 1e-5 */
} brg_nn_layer_norm;

BRG_API BRG_NODISCARD brg_status
brg_nn_layer_norm_init(brg_nn_layer_norm *filled, const brg_nn_options *nn,
                       const char *name, int64_t dim);
BRG_API brg_tensor *brg_nn_layer_norm_forward(const brg_nn_layer_norm *layer,
                                              brg_tensor *x);

/* Over all dims of x but channel dim 1: weight of ones, bias of zeros; the
 * running statistics are buffers "running_mean" (0) and "running_var" (1). */
typedef struct brg_nn_batch_norm {
    brg_tensor *weight;
    brg_tensor *bias;
    brg_tensor *running_mean;
    brg_tensor *running_var;
    double momentum; /* 0.1 */
    double eps;      /* 1e-5 */
} brg_nn_batch_norm;

BRG_API BRG_NODISCARD brg_status
brg_nn_batch_norm_init(brg_nn_batch_norm *filled, const brg_nn_options *nn,
                       const char *name, int64_t n_channels);
BRG_API brg_tensor *brg_nn_batch_norm_forward(const brg_nn_batch_norm *layer,
                                              brg_tensor *x, bool is_training);

/* ---- A block of a transformer ---------------------------------------------------------
 * The one of GPT-2: x + attention(norm(x)), then x + mlp(norm(x)), with GPT-2's
 * names ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc",
 * "mlp.c_proj"). (A. Radford et al., "Language Models are Unsupervised
 * Multitask Learners", 2019, section 2.3.) */
typedef struct brg_nn_block {
    brg_nn_layer_norm norm1;
    brg_nn_linear qkv; /* dim -> 3 dim */
    brg_nn_linear proj;
    brg_nn_layer_norm norm2;
    brg_nn_linear fc; /* dim -> 4 dim */
    brg_nn_linear fc_proj;
    int64_t n_heads;
} brg_nn_block;

/* Weights are N(nn->std), those that lead into the residual stream
 * N(nn->std / sqrt(2 n_blocks)), biases zero; nn->init is not used, and a std
 * of 0 means 0.02. */
typedef struct brg_nn_block_options {
    int64_t dim;
    int64_t n_heads;  /* divides dim */
    int64_t n_blocks; /* of the whole model */
} brg_nn_block_options;

BRG_API BRG_NODISCARD brg_status
brg_nn_block_init(brg_nn_block *filled, const brg_nn_options *nn,
                  const char *name, const brg_nn_block_options *options);
/* x (B, T, dim); position i sees positions 0..i. */
BRG_API brg_tensor *brg_nn_block_forward(const brg_nn_block *block,
                                         brg_tensor *x);

BRG_END_DECLS

#endif
