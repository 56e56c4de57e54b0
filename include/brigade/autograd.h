/* SPDX-License-Identifier: Apache-2.0
 * Gradients: recording, backward, hooks. */
#ifndef BRG_AUTOGRAD_H
#define BRG_AUTOGRAD_H

#include <brigade/status.h>
#include <brigade/types.h>

BRG_BEGIN_DECLS

/* ---- Recording --------------------------------------------------------------
 * An op with an input that requires gradients is recorded, and its outputs
 * require gradients too; a tensor that was not computed so is a *leaf*, and
 * backward adds to its .grad.
 *
 * A tensor, its hooks and its graph are for one thread at a time, which need
 * not be the one that made them; threads may share leaves (brg_backward). Grad
 * mode and pack hooks are the thread's own. */

/* Marks a leaf of float dtype. BRG_ERR_DTYPE for any other dtype, BRG_ERR_STATE
 * for a tensor that was computed. */
BRG_API BRG_NODISCARD brg_status brg_set_requires_grad(brg_tensor *t,
                                                       bool requires_grad);
BRG_API bool brg_requires_grad(const brg_tensor *t);
BRG_API bool brg_is_leaf(const brg_tensor *t);

/* The accumulated gradient, or NULL; borrowed from t. */
BRG_API brg_tensor *brg_tensor_grad(const brg_tensor *t);
/* Replaces it (NULL: removes it). Same shape, dtype and device as t, or
 * BRG_ERR_SHAPE; retained. */
BRG_API BRG_NODISCARD brg_status brg_tensor_set_grad(brg_tensor *t,
                                                     brg_tensor *grad);

/* Keeps the gradient of a computed tensor in its .grad too, as its tensor hooks
 * leave it; one more backward adds to it. Nothing to do for a leaf;
 * BRG_ERR_STATE if t does not require gradients. */
BRG_API BRG_NODISCARD brg_status brg_retain_grad(brg_tensor *t);

/* Grad mode of the thread: on at start. Each returns the mode before, to be
 * put back:  bool mode = brg_grad_mode_set(false); ... brg_grad_mode_set(mode); */
BRG_API bool brg_grad_mode(void);
BRG_API bool brg_grad_mode_set(bool is_on);

/* The op that made t ("matmul"), "accumulate" for a leaf that requires
 * gradients, NULL for any other. */
BRG_API const char *brg_grad_fn_name(const brg_tensor *t);

/* ---- Backward ---------------------------------------------------------------- */

/* Adds d(loss)/d(leaf) to the .grad of every leaf that the one-element `loss`
 * was computed from. Frees what the graph saved. A NULL loss returns the
 * error that made it NULL. Other threads may run their own backward at the
 * same time; gradients of a shared leaf are added under its lock. May be called
 * from inside a backward, 60 deep.
 * Errors: BRG_ERR_SHAPE (more than one element), BRG_ERR_STATE (no history, its
 * saved values are gone, too deep), BRG_ERR_MODIFIED (a saved tensor was
 * changed in place), those of rules and hooks. Gradients that had arrived by
 * then stay. */
BRG_API BRG_NODISCARD brg_status brg_backward(brg_tensor *loss);

typedef struct brg_backward_options {
    size_t struct_size;
    /* One per output, of its shape and dtype, or NULL: one, for an output of
     * one element. All NULL: NULL. */
    brg_tensor *const *grad_outputs;
    /* Only these leaves get their .grad, and only what leads to them runs;
     * NULL: all. */
    brg_tensor *const *inputs;
    size_t n_inputs;
    bool retain_graph; /* the graph can be used again */
    bool create_graph; /* gradients are recorded; implies retain_graph */
} brg_backward_options;

#define BRG_BACKWARD_OPTIONS_INIT BRG_INIT(brg_backward_options)

/* brg_backward of the sum of outputs times their grad_outputs. */
BRG_API BRG_NODISCARD brg_status
brg_backward_with(brg_tensor *const *outputs, size_t n_outputs,
                  const brg_backward_options *options);

/* Gradients of `outputs` with respect to `inputs`, into grads[0..n_inputs):
 * borrowed from the scope; NULL where an output does not depend on the input.
 * No .grad changes. options->inputs is not used. */
BRG_API BRG_NODISCARD brg_status brg_grad(brg_tensor **grads,
                                          brg_tensor *const *outputs,
                                          size_t n_outputs,
                                          brg_tensor *const *inputs,
                                          size_t n_inputs,
                                          const brg_backward_options *options);

/* ---- Hooks -------------------------------------------------------------------
 * Run by the thread that runs the backward, in the order of their
 * registration, inside a scope of their own. A hook that fails ends the
 * backward with its status; gradients accumulated so far stay. One that gives
 * another shape, dtype or device, or something for nothing, ends it with
 * BRG_ERR_CALLBACK. docs/hooks.md has the order of the kinds. `destroy(user)`
 * is called once, when the hook is removed (after its run, if it runs) or its
 * owner dies; may be NULL. Adding a hook to a tensor that does not require
 * gradients is BRG_ERR_STATE. */

typedef struct brg_hook brg_hook;

/* Removes the hook; also from inside the running hook. NULL is allowed. The
 * handle is owned by whoever registered and is invalid afterwards. */
BRG_API void brg_hook_remove(brg_hook *hook);
/* Gives up the handle; the hook stays. NULL is allowed. */
BRG_API void brg_hook_release(brg_hook *hook);

/* (optional) What the hook is in a compiled backward (compile.h). Called while
 * a plan is captured, with symbols: tensors that have dtype and sizes, but no
 * values. Calls ops on them, which are written into the plan in the hook's
 * place, and puts results (borrowed from the scope) into `grads`, by the rules
 * of the hook's kind:
 *   tensor hook       grads[0] is the gradient
 *   pre-hook          grads are the gradients of the node's outputs
 *   post-hook         grads are those of its inputs; others: of its outputs
 *   post-accumulate   grads[0] is the leaf's .grad, which a result replaces
 * Entries are NULL where undefined. Must not depend on anything but the symbols
 * and `user` as `version` describes it; tensors used beside the symbols are
 * read when the plan runs. Draws no random numbers, changes nothing in place;
 * a failure makes this backward run eagerly, with the hook itself. */
typedef brg_status (*brg_hook_capture_fn)(brg_tensor **grads, size_t n,
                                          brg_tensor *const *others,
                                          size_t n_others, void *user);
/* `fn` NULL: the hook is called by the plan, as at first. A plan is captured
 * for each `fn`, `user` and `version`: to be called again with another version
 * when `fn` would write something else. */
BRG_API BRG_NODISCARD brg_status brg_hook_set_capture(brg_hook *hook,
                                                      brg_hook_capture_fn fn,
                                                      uint64_t version);

/* Sees the gradient of one tensor before it is used; not called if it is
 * undefined. *replacement starts as NULL: keep the gradient. A replacement,
 * borrowed from the scope, keeps shape, dtype and device. The gradient itself is
 * not to be changed: others may hold it. The hook belongs to t as it is now:
 * not to what a later change in place makes of it. */
typedef brg_status (*brg_grad_hook_fn)(brg_tensor *grad,
                                       brg_tensor **replacement, void *user);
/* *out (may be NULL): the handle, owned. */
BRG_API BRG_NODISCARD brg_status
brg_tensor_add_hook(brg_hook **out, brg_tensor *t, brg_grad_hook_fn fn,
                    void *user, void (*destroy)(void *user));

/* Runs right after a leaf's gradient has been accumulated: what a reducer
 * hangs on. Reads brg_tensor_grad(leaf), which is NULL if the gradient was
 * undefined and none was there. BRG_ERR_STATE for a tensor that was computed. */
typedef brg_status (*brg_post_accumulate_fn)(brg_tensor *leaf, void *user);
BRG_API BRG_NODISCARD brg_status brg_tensor_add_post_accumulate_hook(
    brg_hook **out, brg_tensor *leaf, brg_post_accumulate_fn fn, void *user,
    void (*destroy)(void *user));

/* Nodes of the graph. The node that made t, or for a leaf that requires
 * gradients its accumulate node. *out: owned, given back by
 * brg_node_release. */
BRG_API BRG_NODISCARD brg_status brg_tensor_node(brg_node **out, brg_tensor *t);
BRG_API void brg_node_release(brg_node *node);
BRG_API const char *brg_node_name(const brg_node *node);

/* Before a node runs: may replace entries of grads (its n output gradients,
 * NULL where undefined) by tensors borrowed from the scope. A NULL entry
 * cannot be replaced. */
typedef brg_status (*brg_node_pre_hook_fn)(brg_tensor **grads, size_t n,
                                           void *user);
BRG_API BRG_NODISCARD brg_status
brg_node_add_pre_hook(brg_hook **out, brg_node *node, brg_node_pre_hook_fn fn,
                      void *user, void (*destroy)(void *user));

/* After it ran: may replace entries of grad_in (n_in), seeing grad_out. For
 * an accumulate node n_in is 0. */
typedef brg_status (*brg_node_post_hook_fn)(brg_tensor **grad_in, size_t n_in,
                                            brg_tensor *const *grad_out,
                                            size_t n_out, void *user);
BRG_API BRG_NODISCARD brg_status
brg_node_add_post_hook(brg_hook **out, brg_node *node, brg_node_post_hook_fn fn,
                       void *user, void (*destroy)(void *user));

/* Inside a backward: `fn` runs on its thread when all its nodes have, in the
 * order queued; it may queue more. If the backward fails, those that have not
 * run are dropped. BRG_ERR_STATE outside one. */
typedef brg_status (*brg_final_callback_fn)(void *user);
BRG_API BRG_NODISCARD brg_status
brg_queue_final_callback(brg_final_callback_fn fn, void *user);

/* ---- Saved tensors -------------------------------------------------------------
 * What a recorded op saves for its gradient goes through the innermost pack
 * hooks of the thread, if any: they may move it to other memory or to a file
 * and bring it back. */

/* Whether a plan of a compiled backward (compile.h) is cut at an unpack: for
 * hooks that read files or run code that no plan can hold. */
typedef enum brg_pack_split {
    BRG_PACK_SPLIT_NEVER,
    BRG_PACK_SPLIT_EACH, /* at each tensor that is unpacked */
    BRG_PACK_SPLIT_FIRST /* at the first that was packed by the same push */
} brg_pack_split;

typedef struct brg_pack_hooks {
    size_t struct_size;
    /* Called once for each tensor saved, grad mode off; `t` has no history
     * and must not be changed. *packed is what unpack will get. */
    brg_status (*pack)(brg_tensor *t, void **packed, void *user);
    /* Called at each use, by the thread of the backward. *out: borrowed from
     * the scope, with the values, shape and dtype that were packed; another
     * shape or dtype is BRG_ERR_CALLBACK. */
    brg_status (*unpack)(void *packed, brg_tensor **out, void *user);
    /* (optional) Called once when the packed value is no longer needed. */
    void (*free)(void *packed, void *user);
    /* (optional) Called once when the hooks are popped and nothing packed by
     * them is left. */
    void (*destroy)(void *user);
    void *user;
    brg_pack_split split;
} brg_pack_hooks;

#define BRG_PACK_HOOKS_INIT BRG_INIT(brg_pack_hooks)

/* From now on, until the pop, on this thread; copied. Fails without effect:
 * destroy is not called. BRG_ERR_STATE if there are none to pop. */
BRG_API BRG_NODISCARD brg_status
brg_pack_hooks_push(const brg_pack_hooks *hooks);
BRG_API BRG_NODISCARD brg_status brg_pack_hooks_pop(void);

/* ---- Checking gradients ------------------------------------------------------- */

/* fn of f64 inputs to one or more outputs: fills outputs[0..n_outputs). */
typedef brg_status (*brg_gradcheck_fn)(brg_tensor *const *inputs,
                                       brg_tensor **outputs, void *user);

typedef struct brg_gradcheck_options {
    size_t struct_size;
    size_t n_outputs; /* 0: 1 */
    double eps;       /* step of the differences; 0: 1e-6 */
    double atol;      /* 0: 1e-5 */
    double rtol;      /* 0: 1e-3 */
    uint64_t seed;    /* of the random projection of the outputs */
} brg_gradcheck_options;

#define BRG_GRADCHECK_OPTIONS_INIT BRG_INIT(brg_gradcheck_options)

/* Compares the gradients of `fn` at `inputs` (f64; those that require
 * gradients are checked) with central differences. Fails with
 * BRG_ERR_MISMATCH naming the input, the element and both values. */
BRG_API BRG_NODISCARD brg_status
brg_gradcheck(brg_gradcheck_fn fn, void *user, brg_tensor *const *inputs,
              size_t n_inputs, const brg_gradcheck_options *options);

BRG_END_DECLS

#endif
