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

struct brg_context {
    brg_function *function; /* retained */
    brg_node *node;         /* that owns it; NULL until recorded */
    uint32_t tensors;       /* bit i: argument i is a tensor */
    uint32_t needs;         /* bit i: argument i requires gradients */
    size_t n_args;
    bool is_materializing;
    brg_autocast autocast; /* as forward found it; in force for backward */
    /* Forward only; retained. */
    brg__tensor_list saved;
    brg__tensor_list dirty;
    brg__tensor_list non_differentiable;
    BRG__ARRAY(brg__attribute) attributes;
};

/* True for the node of a custom function: its payload is a context. */
bool brg__node_is_function(const brg_node *node);
brg_status brg__context_new(brg_context **out, brg_function *function);
void brg__context_free(brg_context *ctx);
/* What only the forward needed. */
void brg__context_drop_lists(brg_context *ctx);
bool brg__tensor_list_has(const brg__tensor_list *list, const brg_tensor *t);

#endif
