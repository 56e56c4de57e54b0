/* SPDX-License-Identifier: Apache-2.0
 * Tensor ops: nn. */
#ifndef BRG_OPS_NN_H
#define BRG_OPS_NN_H

#include <brigade/tensor.h>

BRG_BEGIN_DECLS

/* ==== Norms, embedding, losses ============================================= */

/* exp(x - max) / sum(exp(x - max)) along dim, and its logarithm. */
BRG_API brg_tensor *brg_softmax(brg_tensor *x, int dim);
BRG_API brg_tensor *brg_log_softmax(brg_tensor *x, int dim);

/* (x - mean) / sqrt(var + eps) * weight + bias, mean and (biased) variance over
 * the last n_norm_dims dims; weight and bias have those dims or are NULL. */
BRG_API brg_tensor *brg_layer_norm(brg_tensor *x, brg_tensor *weight,
                                   brg_tensor *bias, int n_norm_dims,
                                   double eps);

typedef struct brg_batch_norm_options {
    size_t struct_size;
    bool training;   /* statistics of the batch; else the running ones */
    double momentum; /* 0: 0.1 */
    double eps;      /* 0: 1e-5 */
} brg_batch_norm_options;

#define BRG_BATCH_NORM_OPTIONS_INIT BRG_INIT(brg_batch_norm_options)

/* The same per channel of x (N,C,...) over all other dims; weight, bias (C) or
 * NULL. Training moves running_mean and running_var (C), if given, by momentum
 * to the batch's mean and unbiased variance, in place and not recorded, and
 * needs two values per channel. NULL options: all default. */
BRG_API brg_tensor *brg_batch_norm(brg_tensor *x, brg_tensor *weight,
                                   brg_tensor *bias, brg_tensor *running_mean,
                                   brg_tensor *running_var,
                                   const brg_batch_norm_options *options);

/* y[.., :] = weight[ids[..], :]: weight (V,D), ids i64 or i32 of any shape. An
 * id outside [0, V) is BRG_ERR_ARG, naming position and value. The gradient
 * adds up in the order of ids. */
BRG_API brg_tensor *brg_embedding(brg_tensor *weight, brg_tensor *ids);

typedef struct brg_cross_entropy_options {
    size_t struct_size;
    int64_t ignore_index;   /* rows with this target do not count */
    double label_smoothing; /* e: target (1 - e) onehot + e / C */
    /* 0: all columns. Else C of the formulas: columns behind it are padding, of
     * probability and gradient zero. */
    int64_t n_classes;
} brg_cross_entropy_options;

#define BRG_CROSS_ENTROPY_OPTIONS_INIT                                         \
    BRG_INIT_WITH(brg_cross_entropy_options, BRG_SET(ignore_index, -100))

/* The mean over rows of log(sum_c exp(x[c])) - x[target]: logits (..,C), classes
 * in the last dim, targets (..) i64 or i32. A target outside [0, C) is
 * BRG_ERR_ARG, naming row and value. No row that counts: NaN. Of 16-bit logits
 * the loss is f32. */
BRG_API brg_tensor *brg_cross_entropy(brg_tensor *logits, brg_tensor *targets);
BRG_API brg_tensor *
brg_cross_entropy_with(brg_tensor *logits, brg_tensor *targets,
                       const brg_cross_entropy_options *options);
/* The mean over rows of -log_probs[target]; shapes as above. */
BRG_API brg_tensor *brg_nll(brg_tensor *log_probs, brg_tensor *targets);
/* mean((prediction - target)^2); equal shapes and float dtypes. */
BRG_API brg_tensor *brg_mse(brg_tensor *prediction, brg_tensor *target);
/* mean(log(1 + exp(x)) - x t): x logits, t in [0, 1], same float dtype. */
BRG_API brg_tensor *brg_binary_cross_entropy_with_logits(brg_tensor *logits,
                                                         brg_tensor *targets);

/* ==== end of norms, embedding, losses ====================================== */

/* ==== Matrix products, convolution, pooling, attention ==================== */

/* a (..,m,k) times b (..,k,n); batch dims broadcast. A 1-D a is a row, a 1-D b
 * a column, and that dim is left out of the result. Transposed views cost
 * nothing. Floats only. */
BRG_API brg_tensor *brg_matmul(brg_tensor *a, brg_tensor *b);

/* x (..,in) weight^T + bias: weight (out,in), bias (out) or NULL. */
BRG_API brg_tensor *brg_linear(brg_tensor *x, brg_tensor *weight,
                               brg_tensor *bias);

/* [0] is the vertical axis; 0 stands for 1 except in padding. */
typedef struct brg_conv2d_options {
    size_t struct_size;
    int64_t stride[2];
    int64_t padding[2]; /* zeros on each side */
    int64_t dilation[2];
    int64_t groups;
} brg_conv2d_options;

#define BRG_CONV2D_OPTIONS_INIT BRG_INIT(brg_conv2d_options)

/* x (n,c,h,w), weight (o,c/groups,kh,kw), bias (o) or NULL. Result
 * (n,o,oh,ow). NULL options: all default. */
BRG_API brg_tensor *brg_conv2d(brg_tensor *x, brg_tensor *weight,
                               brg_tensor *bias,
                               const brg_conv2d_options *options);

typedef struct brg_pool2d_options {
    size_t struct_size;
    int64_t kernel[2];
    int64_t stride[2];  /* 0: the kernel's size */
    int64_t padding[2]; /* at most half the kernel */
    /* avg_pool2d: divide by the pixels inside the image only. */
    bool exclude_padding;
} brg_pool2d_options;

#define BRG_POOL2D_OPTIONS_INIT BRG_INIT(brg_pool2d_options)

/* x (n,c,h,w). The gradient goes to the first of equal maxima. */
BRG_API brg_tensor *brg_max_pool2d(brg_tensor *x,
                                   const brg_pool2d_options *options);
BRG_API brg_tensor *brg_avg_pool2d(brg_tensor *x,
                                   const brg_pool2d_options *options);

typedef struct brg_attention_options {
    size_t struct_size;
    bool is_causal; /* query i sees keys 0..i */
    double scale;   /* of the scores; 0: 1 / sqrt(head size) */
} brg_attention_options;

#define BRG_ATTENTION_OPTIONS_INIT BRG_INIT(brg_attention_options)

/* softmax(scale q k^T) v: q (b,heads,t,d), k and v (b,heads,s,d). Never holds
 * all scores. NULL options: all default. */
BRG_API brg_tensor *
brg_scaled_dot_product_attention(brg_tensor *q, brg_tensor *k, brg_tensor *v,
                                 const brg_attention_options *options);

/* The same for the three parts of one projection: qkv (b,t,3*heads*d), queries
 * first, to (b,t,heads*d). What a transformer block uses: nothing is copied
 * or transposed on the way. */
BRG_API brg_tensor *brg_attention_qkv(brg_tensor *qkv, int64_t n_heads,
                                      const brg_attention_options *options);

/* ==== end of matrix products, convolution, pooling, attention ============= */

BRG_END_DECLS

#endif
