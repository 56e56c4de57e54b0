/* SPDX-License-Identifier: Apache-2.0
 * Saved tensors: what a node keeps of its forward call for its gradient rule.
 *
 *   input    the tensor itself, with its history
 *   output   its values without history, which would be a cycle; the history
 *            (this node) is put back when the result is differentiated again
 *   meta     sizes and dtype only
 *   packed   what the thread's pack hook made of it, given back by the unpack
 *            hook at each use
 *
 * Unless packed, a tensor is checked at its use: changed in place since it was
 * saved, it would give a wrong gradient. */
#ifndef BRG_CORE_AUTOGRAD_SAVED_H
#define BRG_CORE_AUTOGRAD_SAVED_H

#include <brigade/autograd.h>

#include "core/base/refcount.h"
#include "core/tensor/tensor.h"

/* Where a gradient goes next; node NULL: nowhere. */
typedef struct brg__edge {
    brg_node *node;
    uint32_t slot;
} brg__edge;

typedef enum brg__saved_kind {
    BRG__SAVED_NOTHING, /* the input was absent */
    BRG__SAVED_INPUT,
    BRG__SAVED_OUTPUT,
    BRG__SAVED_META
} brg__saved_kind;

/* A pair of pack hooks, kept alive by the tensors that it packed. */
typedef struct brg__pack_hooks {
    brg__refcount refs;
    brg_pack_hooks hooks;
    struct brg__pack_hooks *outer; /* of the thread's stack */
    /* A tracer that works piece by piece stands still while they are in force:
     * they get tensors. */
    struct brg__tracer *suspended;
} brg__pack_hooks;

typedef struct brg__saved {
    brg_tensor *tensor;    /* retained; packed: a meta one, NULL if sparse */
    uint32_t version;      /* when it was saved */
    uint8_t kind;          /* brg__saved_kind */
    uint8_t index;         /* which input or output of the call */
    brg__pack_hooks *pack; /* retained; NULL: not packed */
    void *packed;
    brg__edge history; /* of a packed input; retained */
} brg__saved;

/* Saves t (NULL: nothing); goes through the thread's pack hooks unless meta. */
brg_status brg__saved_init(brg__saved *saved, brg__saved_kind kind, int index,
                           brg_tensor *t);
void brg__saved_deinit(brg__saved *saved);

/* The tensor, borrowed from the node or the scope; NULL for nothing. `owner`
 * is the node that saved it. */
brg_status brg__saved_get(brg_node *owner, const brg__saved *saved,
                          brg_tensor **out);

/* Puts other pack hooks in force (NULL: none); returns those before. */
brg__pack_hooks *brg__pack_hooks_swap(brg__pack_hooks *pack);

/* A tracer ends: those in force that suspended it do not resume it. */
void brg__pack_hooks_forget(const struct brg__tracer *tracer);

/* The thread's pack hooks in force, or NULL. */
const brg_pack_hooks *brg__pack_hooks_innermost(void);

/* Inside a pack hook: the tensor it was given is (an alias of) a leaf that
 * requires gradients. */
bool brg__pack_source_is_leaf(void);

#endif
