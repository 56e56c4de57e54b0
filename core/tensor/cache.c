/* SPDX-License-Identifier: Apache-2.0
 * The caching allocator of CPU tensor data.
 *
 * Sizes are rounded up to classes, eight to a power of two (waste under one
 * eighth); a freed block waits in its class's list for the next request of
 * the class. A training step asks for the same sizes each time, so after the
 * first it never reaches the allocator hook. One lock; a request holds it for
 * a few loads and stores. Small tensors take no lock: they come from the
 * thread's free lists of objects. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "core/base/alloc.h"
#include "core/base/env.h"
#include "core/base/error.h"
#include "core/tensor/device.h"

#define ALIGNMENT BRG_CACHE_LINE
#define STEP_LOG2 3 /* classes per power of two */
#define SMALLEST_LOG2 6
#define N_CLASSES ((64 - SMALLEST_LOG2) << STEP_LOG2)

/* A free block's first bytes link it to the next. */
typedef struct free_block {
    struct free_block *next;
} free_block;

static struct {
    pthread_mutex_t lock;
    bool is_on;
    free_block *lists[N_CLASSES];
    _Atomic uint64_t cached;
    _Atomic uint64_t n_requests;
} cache = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* Class i of power p holds blocks of 2^p + i 2^(p-3) bytes. */
static size_t class_of(size_t nbytes, size_t *rounded)
{
    if (nbytes < (size_t)1 << SMALLEST_LOG2)
        nbytes = (size_t)1 << SMALLEST_LOG2;
    unsigned power = 63u - (unsigned)__builtin_clzll(nbytes);
    size_t step = (size_t)1 << (power - STEP_LOG2);
    size_t i = (nbytes - ((size_t)1 << power) + step - 1) / step;
    *rounded = ((size_t)1 << power) + i * step;
    return ((power - SMALLEST_LOG2) << STEP_LOG2) + i;
}

static void trim(void)
{
    pthread_mutex_lock(&cache.lock);
    for (size_t i = 0; i < N_CLASSES; i++) {
        size_t power = (i >> STEP_LOG2) + SMALLEST_LOG2;
        size_t nbytes = ((size_t)1 << power) +
                        ((i & ((1u << STEP_LOG2) - 1)) << (power - STEP_LOG2));
        while (cache.lists[i]) {
            free_block *block = cache.lists[i];
            cache.lists[i] = block->next;
            atomic_fetch_sub(&cache.cached, nbytes);
            brg__block_free(block, nbytes, ALIGNMENT);
        }
    }
    pthread_mutex_unlock(&cache.lock);
}

static uint64_t cached_bytes(void)
{
    return atomic_load_explicit(&cache.cached, memory_order_relaxed);
}

static uint64_t n_requests(void)
{
    return atomic_load_explicit(&cache.n_requests, memory_order_relaxed);
}

static void make_ready(void)
{
#if defined(__SANITIZE_ADDRESS__)
    cache.is_on = false; /* the sanitizer must see every free */
#else
    cache.is_on = brg__env_int(BRG__ENV_CACHE) != 0;
#endif
    brg__alloc_set_cache(trim, cached_bytes, n_requests);
}

static pthread_once_t ready_once = PTHREAD_ONCE_INIT;

/* Small tensors come from the thread's own free lists, without a lock. */
static bool is_small(size_t nbytes)
{
    return cache.is_on && nbytes <= BRG__OBJ_MAX;
}

brg_status brg__cache_alloc(brg_device device, void **out, size_t nbytes)
{
    (void)device;
    if (nbytes > SIZE_MAX / 2) {
        *out = NULL;
        return BRG_FAIL_NOMEM("a tensor", nbytes);
    }
    size_t rounded;
    size_t i = class_of(nbytes, &rounded);
    atomic_fetch_add_explicit(&cache.n_requests, 1, memory_order_relaxed);
    pthread_once(&ready_once, make_ready);
    if (is_small(nbytes)) {
        *out = brg__obj_alloc_raw(nbytes, "a tensor");
        return *out ? BRG_OK : BRG_ERR_NOMEM;
    }
    pthread_mutex_lock(&cache.lock);
    free_block *block = cache.lists[i];
    if (block) {
        cache.lists[i] = block->next;
        atomic_fetch_sub_explicit(&cache.cached, rounded, memory_order_relaxed);
    }
    pthread_mutex_unlock(&cache.lock);
    if (block)
        brg__alloc_note_peak();
    *out = block ? block : brg__block_alloc(rounded, ALIGNMENT, "a tensor");
    return *out ? BRG_OK : BRG_ERR_NOMEM;
}

void brg__cache_free(brg_device device, void *ptr, size_t nbytes)
{
    (void)device;
    if (!ptr)
        return;
    size_t rounded;
    size_t i = class_of(nbytes, &rounded);
    if (is_small(nbytes)) {
        brg__obj_free(ptr, nbytes);
        return;
    }
    if (!cache.is_on) {
        brg__block_free(ptr, rounded, ALIGNMENT);
        return;
    }
    free_block *block = ptr;
    pthread_mutex_lock(&cache.lock);
    block->next = cache.lists[i];
    cache.lists[i] = block;
    atomic_fetch_add_explicit(&cache.cached, rounded, memory_order_relaxed);
    pthread_mutex_unlock(&cache.lock);
}
