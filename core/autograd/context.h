/* SPDX-License-Identifier: Apache-2.0
 * The context of one call of a custom function: filled by its forward, owned
 * by its node, read by its backward. */
#ifndef BRG_CORE_AUTOGRAD_CONTEXT_H
#define BRG_CORE_AUTOGRAD_CONTEXT_H

#include <brigade/function.h>

#include "core/autograd/autocast.h"
#include "core/autograd/node.h"
#include "core/base/array.h"

struct brg_function {
    brg__refcount refs;
    uint64_t id;
    char *name;
    brg_function_def def;
};

typedef struct brg__attribute {
    char *name;
    brg_value value; /* a deep copy */
} brg__attribute;

typedef BRG__ARRAY(brg_tensor *) brg__tensor_list;

/* While a capture calls the backward of a traceable function: what stands for
 * what its forward left. */
typedef struct brg__call_trace {
    brg_tensor *const *saved;      /* borrowed */
    brg_tensor *const *attributes; /* of numbers and tensors; NULL: others */
    bool has_read_value;           /* something that the plan cannot follow */
    bool has_asked_layout;         /* whether a gradient is row-major */
} brg__call_trace;

struct brg_context {
    brg_function *function; /* retained */
    brg_node *node;         /* that owns it; NULL until recorded */
    uint32_t tensors;       /* bit i: argument i is a tensor */
    uint32_t needs;         /* bit i: argument i requires gradients */
    uint32_t saved_args;    /* bit i: argument i is among what it saved */
    size_t n_args;
    bool is_materializing;
    brg__call_trace *trace; /* NULL: this is no capture */
    brg_autocast autocast;  /* as forward found it; in force for backward */
    /* Forward only; retained. */
    brg__tensor_list saved;
    brg__tensor_list dirty;
    brg__tensor_list non_differentiable;
    BRG__ARRAY(brg__attribute) attributes;
};

/* ---- function_backward.c: the node, whose payload is a context ------------------- */

extern const brg__node_class brg__function_class;
bool brg__node_is_function(const brg_node *node);
brg_function_tracing brg__node_tracing(const brg_node *node);
/* Calls the node's function with symbols. */
brg_status brg__function_trace(brg_node *node, brg__call_trace *trace,
                               brg_tensor *const *grad_out,
                               brg_tensor **grad_in);

/* ---- context.c ------------------------------------------------------------------- */

brg_status brg__context_new(brg_context **out, brg_function *function);
void brg__context_free(brg_context *ctx);
/* The number or tensor as a tensor (a number: 0-dim f64), borrowed from the
 * context or the scope; NULL: it is neither. */
brg_tensor *brg__attribute_tensor(const brg__attribute *attribute);
/* What only the forward needed. */
void brg__context_drop_lists(brg_context *ctx);
bool brg__tensor_list_has(const brg__tensor_list *list, const brg_tensor *t);

#endif
