/* SPDX-License-Identifier: Apache-2.0
 * Atomic reference counts. */
#ifndef BRG_CORE_BASE_REFCOUNT_H
#define BRG_CORE_BASE_REFCOUNT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct brg__refcount {
    _Atomic int32_t n;
} brg__refcount;

static inline void brg__ref_init(brg__refcount *r)
{
    atomic_init(&r->n, 1);
}

static inline void brg__ref_retain(brg__refcount *r)
{
    atomic_fetch_add_explicit(&r->n, 1, memory_order_relaxed);
}

/* True for the release that drops the last reference. */
static inline bool brg__ref_release(brg__refcount *r)
{
    if (atomic_load_explicit(&r->n, memory_order_acquire) == 1) {
        atomic_store_explicit(&r->n, 0, memory_order_relaxed);
        return true; /* sole owner: nobody else can retain or release */
    }
    return atomic_fetch_sub_explicit(&r->n, 1, memory_order_acq_rel) == 1;
}

/* The same where weak references exist: brg__ref_try_retain may come in
 * between, so there is no short cut for the last owner. */
static inline bool brg__ref_release_shared(brg__refcount *r)
{
    return atomic_fetch_sub_explicit(&r->n, 1, memory_order_acq_rel) == 1;
}

/* Retain unless the count has already dropped to zero (weak references); then
 * what its owners did has happened before. */
static inline bool brg__ref_try_retain(brg__refcount *r)
{
    int32_t n = atomic_load_explicit(&r->n, memory_order_acquire);
    while (n > 0)
        if (atomic_compare_exchange_weak(&r->n, &n, n + 1))
            return true;
    return false;
}

static inline int32_t brg__ref_count(const brg__refcount *r)
{
    return atomic_load_explicit(&r->n, memory_order_acquire);
}

#endif
