/* SPDX-License-Identifier: Apache-2.0
 * Optimizers, gradient clipping, learning-rate schedules. */
#ifndef BRG_OPTIM_H
#define BRG_OPTIM_H

#include <brigade/params.h>

BRG_BEGIN_DECLS

/* ---- Optimizers --------------------------------------------------------------
 * One object over the trained tensors of a model, which it retains; those that
 * are added to `params` later it does not know. State is made at once, so a
 * step allocates nothing. Parameters are row-major on the CPU; those of f16 and
 * bf16 get f32 master weights in the state. One thread at a time.
 *
 * Of a sparse gradient (sparse.h), duplicates are added up, then the formulas
 * below hold for the elements of its places alone; all others keep value and
 * state, without decay. t counts the steps of the whole parameter. */
typedef struct brg_optim brg_optim;

/* Elements [first, first + n) of a parameter, counted row-major. */
typedef struct brg_optim_range {
    size_t first;
    size_t n;
} brg_optim_range;

/* Stochastic gradient descent. With g the gradient, p the parameter:
 *     g = g + weight_decay p
 *     b = momentum b + (1 - dampening) g        (b = g at the first step)
 *     p = p - lr (nesterov ? g + momentum b : b)
 * (I. Sutskever et al., "On the importance of initialization and momentum in
 * deep learning", 2013, section 2; as PyTorch's SGD writes it.) */
typedef struct brg_sgd_options {
    size_t struct_size;
    double lr;
    double momentum; /* 0: none, and no state */
    double dampening;
    double weight_decay;
    bool nesterov; /* needs momentum, no dampening */
    /* Weight decay only for parameters of at least so many dims: 2 leaves out
     * biases and norms. */
    int decay_min_ndim;
    /* What the optimizer updates and has state for, one range for each trained
     * tensor in their order (borrowed while it is made); elements outside stay
     * as they are. State tensors then have one dim of n elements. NULL: all
     * elements. */
    const brg_optim_range *ranges;
} brg_sgd_options;

#define BRG_SGD_OPTIONS_INIT BRG_INIT_WITH(brg_sgd_options, BRG_SET(lr, 0.01))

/* Adam with decoupled weight decay. At step t = 1, 2, ...
 *     p = p - lr weight_decay p
 *     m = beta1 m + (1 - beta1) g
 *     v = beta2 v + (1 - beta2) g^2
 *     p = p - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)
 * (I. Loshchilov, F. Hutter, "Decoupled Weight Decay Regularization", 2019,
 * algorithm 2, the decay scaled by lr as in PyTorch's AdamW.) */
typedef struct brg_adamw_options {
    size_t struct_size;
    double lr;
    double beta1;
    double beta2;
    double eps;
    double weight_decay;
    int decay_min_ndim;            /* as above */
    const brg_optim_range *ranges; /* as above */
} brg_adamw_options;

#define BRG_ADAMW_OPTIONS_INIT                                                 \
    BRG_INIT_WITH(brg_adamw_options,                                           \
                  BRG_SET(lr, 1e-3) BRG_SET(beta1, 0.9) BRG_SET(beta2, 0.999)  \
                      BRG_SET(eps, 1e-8) BRG_SET(weight_decay, 0.01))

/* *out: owned. Buffers of `params` are left out. `options` may be NULL. */
BRG_API BRG_NODISCARD brg_status brg_optim_create_sgd(
    brg_optim **out, const brg_params *params, const brg_sgd_options *options);
BRG_API BRG_NODISCARD brg_status
brg_optim_create_adamw(brg_optim **out, const brg_params *params,
                       const brg_adamw_options *options);
BRG_API void brg_optim_destroy(brg_optim *optim);

/* Updates every parameter that has a gradient; those without are passed over
 * and keep their own count of steps (if that is all of them, the log says so,
 * once). Checks all before it changes any; errors name the parameter. */
BRG_API BRG_NODISCARD brg_status brg_optim_step(brg_optim *optim);

/* Steps to come are left out (they change neither parameters nor state, nor
 * count) if found_inf, one f32 on the device of the parameters, is not 0 when
 * they run. With that of brg_ddp_found_inf: on all ranks alike, if gradients of
 * the step were not finite, and on a GPU without a wait (docs/autocast.md).
 * Retained; NULL: all steps are made, as at first. A step that is launched again
 * as one graph waits for what became of the one before. */
BRG_API BRG_NODISCARD brg_status brg_optim_set_found_inf(brg_optim *optim,
                                                         brg_tensor *found_inf);
/* How many were left out. On a GPU the last step is not known yet: it is taken
 * for made until the next. */
BRG_API uint64_t brg_optim_n_skipped(const brg_optim *optim);

/* Removes the gradients, so that the next backward may hand over its own
 * memory; with keep_memory fills them with zeros instead. */
BRG_API BRG_NODISCARD brg_status brg_optim_zero_grad(brg_optim *optim,
                                                     bool keep_memory);

BRG_API double brg_optim_lr(const brg_optim *optim);
/* Of the steps to come; not negative, finite. */
BRG_API BRG_NODISCARD brg_status brg_optim_set_lr(brg_optim *optim, double lr);

/* For one parameter, by name: lr is multiplied by lr_scale, and weight_decay
 * replaces the options' value. */
BRG_API BRG_NODISCARD brg_status brg_optim_set_param(brg_optim *optim,
                                                     const char *name,
                                                     double lr_scale,
                                                     double weight_decay);

/* "sgd" or "adamw". Static. */
BRG_API const char *brg_optim_kind(const brg_optim *optim);

/* The state, for checkpoints: the i-th named tensor ("exp_avg/fc1.weight",
 * and "steps", the count of each parameter), NULL past the last. Borrowed;
 * may be written between steps. */
BRG_API size_t brg_optim_state_count(const brg_optim *optim);
BRG_API const brg_named_tensor *brg_optim_state_at(const brg_optim *optim,
                                                   size_t i);
/* The parameter that the i-th belongs to, borrowed; NULL for "steps". */
BRG_API brg_tensor *brg_optim_state_param(const brg_optim *optim, size_t i);
/* Which elements of that parameter it is for; {0, 0} for "steps". */
BRG_API brg_optim_range brg_optim_state_range(const brg_optim *optim, size_t i);

/* ---- Gradients ----------------------------------------------------------------- */

/* Scales all gradients by min(1, max_norm / (norm + 1e-6)), where norm is the
 * Euclidean norm of all gradients together (of sparse ones with duplicates
 * added up), accumulated in f64 in a fixed order; fills it into *total_norm
 * (may be NULL). A norm that is not finite leaves the gradients as they are,
 * and fails with BRG_ERR_NAN, naming the first parameter to blame, if
 * error_if_nonfinite. max_norm may be INFINITY: only measure. On a device the
 * host waits only if total_norm or error_if_nonfinite asks for the norm. */
BRG_API BRG_NODISCARD brg_status brg_clip_grad_norm(double *total_norm,
                                                    const brg_params *params,
                                                    double max_norm,
                                                    bool error_if_nonfinite);

/* Limits each element to [-limit, limit]; NaN stays. */
BRG_API BRG_NODISCARD brg_status brg_clip_grad_value(const brg_params *params,
                                                     double limit);

/* Multiplies each element by `factor` (finite): how a scaled loss is undone
 * before the step (docs/autocast.md). */
BRG_API BRG_NODISCARD brg_status brg_scale_grad(const brg_params *params,
                                                double factor);

/* ---- Learning rates ------------------------------------------------------------
 * Pure functions of the step, counted from 0. */

/* Linear from lr / n_warmup to lr over the first n_warmup steps, then half a
 * cosine down to lr_min at n_steps, which stays. (I. Loshchilov, F. Hutter,
 * "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017, section 3, one
 * period.) */
typedef struct brg_lr_cosine {
    double lr;
    double lr_min;
    int64_t n_warmup;
    int64_t n_steps;
} brg_lr_cosine;

BRG_API double brg_lr_cosine_at(const brg_lr_cosine *schedule, int64_t step);

/* lr gamma^(step / every), the exponent rounded down. */
typedef struct brg_lr_step {
    double lr;
    double gamma;
    int64_t every;
} brg_lr_step;

BRG_API double brg_lr_step_at(const brg_lr_step *schedule, int64_t step);

BRG_END_DECLS

#endif
