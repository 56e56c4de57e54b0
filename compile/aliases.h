/* SPDX-License-Identifier: Apache-2.0
 * Who shares memory with gradients that a backward adds to: a plan moves the
 * adding, so what reads them must not be in it. Each question has a mark of its
 * own, left in the storages of the gradients. */
#ifndef BRG_COMPILE_ALIASES_H
#define BRG_COMPILE_ALIASES_H

#include "core/autograd/node.h"
#include "core/tensor/tensor.h"

#define BRG__READS_GRADIENT                                                    \
    "it reads the memory of a .grad that its backward adds to"

uint64_t brg__mark_new(void);

static inline void brg__mark_tensor(const brg_tensor *t, uint64_t mark)
{
    if (t && t->storage)
        atomic_store_explicit(&t->storage->mark, mark, memory_order_relaxed);
}

/* Where the leaf's gradient lies, or will. `node` accumulates it; its lock is
 * held, since other threads may add to the same leaf. */
static inline void brg__mark_gradient(const brg_node *node, uint64_t mark)
{
    const brg__autograd *a = brg__autograd_of(node->leaf);
    brg__mark_tensor(a->grad ? a->grad : a->home, mark);
}

static inline bool brg__is_marked(const brg_tensor *t, uint64_t mark)
{
    return t && t->storage &&
           atomic_load_explicit(&t->storage->mark, memory_order_relaxed) ==
               mark;
}

#endif
