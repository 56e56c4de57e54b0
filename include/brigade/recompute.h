/* SPDX-License-Identifier: Apache-2.0
 * Activation checkpointing: forward keeps a stretch's inputs only and backward
 * runs the stretch again to get at what it needs. */
#ifndef BRG_RECOMPUTE_H
#define BRG_RECOMPUTE_H

#include <brigade/autograd.h>
#include <brigade/ext/op.h>
#include <brigade/tensor.h>

BRG_BEGIN_DECLS

/* A stretch of a forward pass: fills outputs[0..n_outputs) (borrowed from the
 * scope) from its inputs, the same each time. */
typedef brg_status (*brg_stretch_fn)(brg_tensor *const *inputs,
                                     brg_tensor **outputs, void *user);

typedef enum brg_recompute_choice {
    BRG_RECOMPUTE_AGAIN, /* run the op again in backward */
    BRG_RECOMPUTE_SAVE   /* keep its outputs instead */
} brg_recompute_choice;

/* Chooses for each op of the stretch; the same each time. */
typedef brg_recompute_choice (*brg_recompute_policy_fn)(const brg_op *op,
                                                        void *user);

typedef struct brg_recompute_options {
    size_t struct_size;
    size_t n_outputs; /* 0: 1 */
    /* Run forward without recording and backward as a backward inside: needs
     * an input that requires gradients, and cannot serve brg_grad or
     * options.inputs. */
    bool is_reentrant;
    /* Do not put the random state back for the second run. */
    bool keeps_random_state;
    /* (optional) Which ops to keep; not with is_reentrant. */
    brg_recompute_policy_fn policy;
    /* (optional) Called with `user` once when no backward can come any more;
     * also if the call fails. */
    void (*destroy)(void *user);
} brg_recompute_options;

#define BRG_RECOMPUTE_OPTIONS_INIT BRG_INIT(brg_recompute_options)

/* outputs = fn(inputs), recorded so that its inner values are not kept; borrowed
 * from the scope, NULL on failure. `user` must stay valid until the backward
 * has run, or the outputs are gone. Entries of inputs may be NULL. The second
 * run is on the thread of the backward, with the random numbers and the
 * autocast policy of the first. If it saves other things than the first
 * (number, shapes or dtypes), backward fails with BRG_ERR_MISMATCH. */
BRG_API BRG_NODISCARD brg_status
brg_recompute(brg_tensor **outputs, brg_stretch_fn fn, void *user,
              brg_tensor *const *inputs, size_t n_inputs,
              const brg_recompute_options *options);

/* One layer of a chain: *y = layer i of x. */
typedef brg_status (*brg_layer_fn)(size_t i, brg_tensor *x, brg_tensor **y,
                                   void *user);

/* A chain of n layers in n_segments stretches (0: about sqrt(n), which makes
 * the values kept grow with the square root of n). NULL on failure. */
BRG_API brg_tensor *brg_recompute_chain(brg_layer_fn layer, void *user,
                                        size_t n, size_t n_segments,
                                        brg_tensor *x);

BRG_END_DECLS

#endif
