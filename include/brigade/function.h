/* SPDX-License-Identifier: Apache-2.0
 * Custom functions: a forward and a backward of your own, as one node. */
#ifndef BRG_FUNCTION_H
#define BRG_FUNCTION_H

#include <brigade/autograd.h>
#include <brigade/tensor.h>

BRG_BEGIN_DECLS

/* ---- Values: what a function takes and gives besides tensors ----------------- */

typedef enum brg_value_kind {
    BRG_VALUE_NONE,
    BRG_VALUE_TENSOR,
    BRG_VALUE_INT,
    BRG_VALUE_FLOAT,
    BRG_VALUE_BOOL,
    BRG_VALUE_STRING,
    BRG_VALUE_LIST,
    BRG_VALUE_POINTER /* anything of the caller's */
} brg_value_kind;

typedef struct brg_value brg_value;
struct brg_value {
    brg_value_kind kind;
    union {
        brg_tensor *tensor;
        int64_t integer;
        double real;
        bool truth;
        const char *text;
        struct {
            const brg_value *items;
            size_t n;
        } list;
        void *pointer;
    } as;
};

/* Only tensors given directly get gradients: those inside lists and structs
 * are plain data to the function. */
static inline brg_value brg_value_tensor(brg_tensor *t)
{
    brg_value v = {BRG_VALUE_TENSOR, {0}};
    v.as.tensor = t;
    return v;
}

static inline brg_value brg_value_int(int64_t integer)
{
    brg_value v = {BRG_VALUE_INT, {0}};
    v.as.integer = integer;
    return v;
}

static inline brg_value brg_value_float(double real)
{
    brg_value v = {BRG_VALUE_FLOAT, {0}};
    v.as.real = real;
    return v;
}

static inline brg_value brg_value_bool(bool truth)
{
    brg_value v = {BRG_VALUE_BOOL, {0}};
    v.as.truth = truth;
    return v;
}

static inline brg_value brg_value_string(const char *text)
{
    brg_value v = {BRG_VALUE_STRING, {0}};
    v.as.text = text;
    return v;
}

static inline brg_value brg_value_list(const brg_value *items, size_t n)
{
    brg_value v = {BRG_VALUE_LIST, {0}};
    v.as.list.items = items;
    v.as.list.n = n;
    return v;
}

static inline brg_value brg_value_pointer(void *pointer)
{
    brg_value v = {BRG_VALUE_POINTER, {0}};
    v.as.pointer = pointer;
    return v;
}

/* ---- Functions ----------------------------------------------------------------- */

typedef struct brg_function brg_function;
typedef struct brg_context brg_context;

#define BRG_MAX_FUNCTION_ARGS 32
#define BRG_MAX_FUNCTION_OUTPUTS 16

/* What a plan of a compiled backward (compile.h) makes of a call. */
typedef enum brg_function_tracing {
    BRG_FUNCTION_OPAQUE, /* the plan calls backward */
    /* backward is called while the plan is captured, and the ops that it calls
     * become part of the plan, which serves all later calls. It sees tensors
     * without values: it must not depend on their sizes or values other than
     * through ops, takes numbers that may differ from call to call as tensors
     * (brg_context_get_tensor), and has no other effects. One that asks for
     * more (a size, a pointer, a number) is called by the plan after all. */
    BRG_FUNCTION_TRACEABLE,
    /* It does what no plan can hold (prints, waits for something): the plan
     * calls it and is cut there into two pieces; fullgraph refuses it. */
    BRG_FUNCTION_UNTRACEABLE
} brg_function_tracing;

typedef struct brg_function_def {
    size_t struct_size;
    const char *name; /* copied */
    size_t n_outputs;

    /* All run on the calling thread, the last two on that of the backward; a
     * failure is returned to the caller, the function's name before its text.
     *
     * Required. Fills outputs[0..n_outputs) (tensors borrowed from the scope;
     * inputs may be returned). Grad mode is off. */
    brg_status (*forward)(brg_context *ctx, const brg_value *args,
                          size_t n_args, brg_value *outputs);
    /* (optional) Does the saving and marking, after forward. */
    brg_status (*setup_context)(brg_context *ctx, const brg_value *args,
                                size_t n_args, const brg_value *outputs);
    /* Required if gradients are ever asked for. grad_out has n_outputs
     * entries (undefined ones are zeros, or NULL with materialising off; always
     * NULL for outputs that are not differentiable tensors). Fills
     * grad_in[0..*n_grad_in), which comes in as all NULL and n_args: one per
     * argument, NULL for "none". Grad mode is on only under create_graph; the
     * autocast policy is that of the forward. */
    brg_status (*backward)(brg_context *ctx, brg_tensor *const *grad_out,
                           brg_tensor **grad_in, size_t *n_grad_in);
    /* backward uses things that cannot be differentiated: it runs with grad
     * mode off, and differentiating its result is an error. */
    bool once_differentiable;
    /* (optional) Handed to the callbacks by brg_context_user; destroyed with
     * the function. */
    void *user;
    void (*destroy)(void *user);
    brg_function_tracing tracing;
    /* (optional) For TRACEABLE: called in the place of backward. */
    brg_status (*capture)(brg_context *ctx, brg_tensor *const *grad_out,
                          brg_tensor **grad_in, size_t *n_grad_in);
} brg_function_def;

#define BRG_FUNCTION_DEF_INIT BRG_INIT(brg_function_def)

/* *out: owned, one reference; recorded calls hold their own. Immutable: any
 * thread may apply it. */
BRG_API BRG_NODISCARD brg_status
brg_function_create(brg_function **out, const brg_function_def *def);
BRG_API void brg_function_release(brg_function *function);
/* Unique among all functions ever created in this process. */
BRG_API uint64_t brg_function_id(const brg_function *function);
BRG_API size_t brg_function_n_outputs(const brg_function *function);

/* Calls it; recorded if a tensor argument requires gradients. Tensors in
 * outputs[0..n_outputs) are borrowed from the scope, NULL on failure. An
 * argument that forward returns unchanged comes out as a view of it. A NULL
 * tensor argument is allowed (an absent one).
 * Errors: those of forward and setup_context; BRG_ERR_STATE for a leaf that
 * requires gradients and was changed in place, BRG_ERR_CALLBACK for a tensor
 * that was marked dirty and not returned. In backward: BRG_ERR_CALLBACK for a
 * wrong number of gradients or one for an argument that is no tensor,
 * BRG_ERR_SHAPE for one that cannot be summed to its argument. */
BRG_API BRG_NODISCARD brg_status
brg_function_apply(const brg_function *function, const brg_value *args,
                   size_t n_args, brg_value *outputs);

/* The same for a function of one tensor output; NULL on failure. */
BRG_API brg_tensor *brg_function_call(const brg_function *function,
                                      const brg_value *args, size_t n_args);

/* ---- The context: what forward leaves for backward ---------------------------------
 * Lives as long as the recorded call; for the callbacks it is handed to only. */

/* Forward. The last call wins; entries may be NULL; inputs, outputs and
 * temporaries may be saved. Versions are checked at their use. */
BRG_API BRG_NODISCARD brg_status brg_context_save(brg_context *ctx,
                                                  brg_tensor *const *tensors,
                                                  size_t n);
/* Inputs that forward changed in place; each must be returned, and is the
 * output then, with this call as its history and a higher version. */
BRG_API BRG_NODISCARD brg_status
brg_context_mark_dirty(brg_context *ctx, brg_tensor *const *tensors, size_t n);
/* Outputs that carry no gradient. */
BRG_API BRG_NODISCARD brg_status brg_context_mark_non_differentiable(
    brg_context *ctx, brg_tensor *const *tensors, size_t n);
/* Whether backward gets zeros for undefined gradients; on by default. */
BRG_API void brg_context_set_materialize_grads(brg_context *ctx, bool is_on);

/* Backward. The i-th saved tensor, borrowed from the scope, in *out; NULL if
 * NULL was saved. BRG_ERR_MODIFIED if it was changed in place since,
 * BRG_ERR_STATE if an earlier backward has freed it. */
BRG_API BRG_NODISCARD brg_status brg_context_saved(brg_context *ctx, size_t i,
                                                   brg_tensor **out);
BRG_API size_t brg_context_n_saved(const brg_context *ctx);
/* Whether argument i wants a gradient (in this backward); false past the last
 * argument. */
BRG_API bool brg_context_needs_grad(const brg_context *ctx, size_t i);

/* Both. Named attributes of any kind; copied, tensors retained (without
 * version check). A name set again is replaced. */
BRG_API BRG_NODISCARD brg_status brg_context_set(brg_context *ctx,
                                                 const char *name,
                                                 brg_value value);
/* BRG_VALUE_NONE if there is no such attribute; borrowed from ctx. */
BRG_API brg_value brg_context_get(const brg_context *ctx, const char *name);
/* Backward. The number or tensor of that name as a tensor (a number: 0-dim)
 * of this dtype, borrowed from the scope; NULL if it is neither. A captured
 * plan reads it at each run. */
BRG_API brg_tensor *brg_context_get_tensor(const brg_context *ctx,
                                           const char *name, brg_dtype dtype);
/* `user` of the definition. */
BRG_API void *brg_context_user(const brg_context *ctx);

BRG_END_DECLS

#endif
