/* SPDX-License-Identifier: Apache-2.0
 * The recorded graph: nodes, edges, saved tensors, and what a tensor knows of
 * its gradient.
 *
 *     tensor --fn--> node --edges--> node ... --> accumulate --> leaf tensor
 *
 * References point backward only (from results to what they came from), so
 * there are no cycles: a node's own outputs are saved without their history,
 * and a leaf knows its accumulate node weakly. A node is one block: header,
 * edges, slots, saved tensors. */
#ifndef BRG_CORE_AUTOGRAD_NODE_H
#define BRG_CORE_AUTOGRAD_NODE_H

#include <pthread.h>

#include <brigade/ext/op.h>

#include "core/autograd/hooks.h"
#include "core/autograd/saved.h"
#include "core/tensor/shape.h"
#include "core/tensor/tensor.h"

/* What an output of the node looked like; its gradient must fit it. */
typedef struct brg__slot {
    uint8_t dtype;
    uint8_t ndim;
    bool is_differentiable;
    brg_device device;
    int64_t shape[BRG_MAX_DIMS];
    void *symbol; /* of the output, while a capture runs */
} brg__slot;

typedef struct brg__node_hooks {
    brg__hook_list tensor; /* of outputs, by slot */
    brg__hook_list retain; /* retain-grad writes, by slot */
    brg__hook_list pre;
    brg__hook_list post;
} brg__node_hooks;

typedef struct brg__node_class {
    const char *name; /* or, if it is NULL: */
    const char *(*name_of)(const brg_node *node);
    /* Gradients of the edges from gradients of the slots. `grad_out` are the
     * engine's references: an apply that keeps one retains it. grad_in is
     * borrowed from the scope. */
    brg_status (*apply)(brg_node *node, brg_tensor *const *grad_out,
                        brg_tensor **grad_in);
    /* Beside its own saved tensors. May be NULL. */
    void (*free_saved)(brg_node *node);
    /* The node goes. May be NULL. */
    void (*destroy)(brg_node *node);
    /* apply is called even if all of grad_out is undefined. */
    bool wants_undefined;
} brg__node_class;

struct brg_node {
    brg__refcount refs;
    const brg__node_class *cls;
    uint64_t sequence; /* later nodes run first; accumulate nodes before all */
    uint16_t n_edges;
    uint16_t n_slots;
    uint16_t n_saved;
    bool is_freed;  /* saved values are gone */
    bool has_attrs; /* false: they are all 0 */
    brg__edge *edges;
    brg__slot *slots;
    brg__saved *saved;
    brg__node_hooks *hooks; /* NULL: none */
    brg_node *next_dead;    /* chain of nodes being freed */
    size_t nbytes;
    void *payload;    /* of the class */
    const char *file; /* of the call that was recorded; NULL: not traced */
    int line;
    /* Op nodes. */
    const brg_op *op;
    brg_attrs attrs;
    uint32_t saves; /* those of the row's BRG_SAVE_* that are saved */
    uint8_t n_op_in;
    uint8_t n_op_out;
    /* Accumulate nodes. */
    brg_tensor *leaf; /* retained */
    pthread_mutex_t lock;
};

#define BRG__SEQUENCE_FIRST UINT64_MAX

brg_status brg__node_new(brg_node **out, const brg__node_class *cls,
                         int n_edges, int n_slots, int n_saved);
/* Makes it the latest: due once its edges are set, which may have made nodes
 * (of views) that must count as earlier. */
void brg__node_stamp(brg_node *node);
void brg__node_retain(brg_node *node);
void brg__node_free_saved(brg_node *node);
/* Fails if the saved values are gone. */
brg_status brg__node_check_alive(const brg_node *node);
/* The class of a node that does nothing and owns nothing. */
extern const brg__node_class brg__empty_class;
brg_status brg__node_hooks_get(brg_node *node, brg__node_hooks **out);
void brg__slot_set(brg__slot *slot, const brg_tensor *t);
/* Of a gradient that fits it, row-major. */
brg__layout brg__slot_layout(const brg__slot *slot);
/* The gradient has the slot's sizes, */
static inline bool brg__slot_has_sizes(const brg__slot *slot,
                                       const brg_tensor *grad)
{
    return brg__shape_equal(grad->ndim, grad->shape, slot->ndim, slot->shape);
}
/* or will have them once it is summed over dims that were broadcast. */
bool brg__slot_can_sum(const brg__slot *slot, const brg_tensor *grad);

/* ---- What a tensor knows --------------------------------------------------- */

typedef struct brg__autograd {
    brg__grad_info base;
    bool requires_grad;
    bool is_function_view;   /* an argument's memory, in a function's output */
    uint16_t slot;           /* which output of fn */
    uint32_t n_histories;    /* how often fn was set */
    uint32_t base_histories; /* of a view: its fn leads to this of its base's */
    brg_node *fn;            /* retained; NULL: leaf */
    brg_tensor *grad;
    /* Where grad should lie: a view of a bucket, borrowed from its reducer.
     * NULL: anywhere. */
    brg_tensor *home;
    brg_node *accumulate; /* weak; under the accumulate lock */
    brg__hook_list hooks; /* tensor hooks of a leaf */
    brg__hook_list post_accumulate;
    brg_hook *retain; /* of retain-grad, in fn */
} brg__autograd;

static inline brg__autograd *brg__autograd_of(const brg_tensor *t)
{
    return (brg__autograd *)t->grad_info;
}

static inline bool brg__requires_grad(const brg_tensor *t)
{
    if (t->grad_info && brg__autograd_of(t)->requires_grad)
        return true;
    const brg_tensor *base = t->base;
    return base && base->grad_info && brg__autograd_of(base)->requires_grad;
}

/* Makes it if it is not there. */
brg_status brg__autograd_get(brg_tensor *t, brg__autograd **out);

/* How often the history of t's base was set; 0 for no view. */
uint32_t brg__base_histories(const brg_tensor *t);

/* Brings the history of a view up to date with its base (inplace.c). */
brg_status brg__view_refresh(brg_tensor *t);

/* `change` changed a part of view's base in place: the base's new history. It
 * has the view's slot; its edge `edge` led to the old part. */
brg_status brg__inplace_rebase(brg_tensor *view, brg_node *change, int edge);

/* t was computed by `node`, as its output `slot`. Replaces any history. */
brg_status brg__tensor_set_history(brg_tensor *t, brg_node *node, int slot);

/* The edge that a gradient of t flows along: its node, or its accumulate
 * node; edge->node NULL if t does not require gradients. Retained. */
brg_status brg__edge_of(brg_tensor *t, brg__edge *edge);

/* ---- Accumulate nodes (accumulate.c) ------------------------------------------ */

/* The layout contract of gradients: like the leaf if that has no gaps, else
 * row-major. */
brg__layout brg__gradient_layout(const brg_tensor *leaf);
/* The leaf's accumulate node, made if there is none. Retained. */
brg_status brg__accumulate_node(brg_node **out, brg_tensor *leaf);
bool brg__node_is_accumulate(const brg_node *node);
/* Where the leaf's gradient should lie, if it may be written there at once: it
 * is the first, and no hook looks at it on its way (`meets_hooks`: those of the
 * leaf are still to come). NULL: anywhere. */
brg_tensor *brg__free_home(const brg_node *node, bool meets_hooks);
/* The two things that such a node does: .grad += grad, then its hooks. A
 * gradient with no more than n_refs references is kept as it is. */
brg_status brg__accumulate(brg_node *node, brg_tensor *grad, int n_refs);
brg_status brg__run_post_accumulate(brg_tensor *leaf, brg__hook_range range);

/* Grad mode (grad_mode.c). */
extern _Thread_local bool brg__grad_mode_is_off;

#endif
