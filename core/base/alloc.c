/* SPDX-License-Identifier: Apache-2.0
 * The allocator hook, its accounting, and the thread's free lists.
 *
 * Accounting counts what is handed out. Small objects that sit in a free list
 * count as cached, so `in_use` returns to its old value when everything that
 * was made has been released. */
#include "core/base/alloc.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "core/base/error.h"

#define HUGE_PAGE ((size_t)2 << 20)
#define HEADER BRG_CACHE_LINE
#define OBJ_STEP 64
#define OBJ_MAX BRG__OBJ_MAX
#define OBJ_CLASSES (OBJ_MAX / OBJ_STEP)

#if defined(__has_feature) /* clang's way to say the same */
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define OBJ_CACHED 0 /* keep the sanitizer's sight of every object */
#else
#define OBJ_CACHED 1
#endif

static void *system_alloc(void *user, size_t nbytes, size_t alignment)
{
    (void)user;
    void *ptr = NULL;
    bool is_huge = nbytes >= 2 * HUGE_PAGE;
    if (is_huge && alignment < HUGE_PAGE)
        alignment = HUGE_PAGE;
    if (posix_memalign(&ptr, alignment, nbytes) != 0)
        return NULL;
    if (is_huge)
        madvise(ptr, nbytes, MADV_HUGEPAGE); /* advice: failing is harmless */
    return ptr;
}

static void system_free(void *user, void *ptr, size_t nbytes, size_t alignment)
{
    (void)user;
    (void)nbytes;
    (void)alignment;
    free(ptr);
}

static const brg_allocator system_allocator = {
    .struct_size = sizeof(brg_allocator),
    .alloc = system_alloc,
    .free = system_free,
};

static struct {
    brg_allocator allocator;
    _Atomic uint64_t held; /* bytes that the hook gave and has not got back */
    _Atomic uint64_t idle; /* of these, in free lists of small objects */
    _Atomic uint64_t peak;
    _Atomic uint64_t n_allocs;
    brg__trim_fn trim_cache;
    brg__trim_fn trim_scratch;
    uint64_t (*cache_bytes)(void);
    uint64_t (*cache_requests)(void);
} heap = {.allocator = {.struct_size = sizeof(brg_allocator),
                        .alloc = system_alloc,
                        .free = system_free}};

/* Bytes that this thread's free lists gained (or lost) since it last told the
 * heap: a locked addition for each object would cost more than the object. So
 * a thread sees its own bytes exactly, those of others within IDLE_SLACK. */
#define IDLE_SLACK ((int64_t)1 << 18)
static _Thread_local int64_t idle_untold;

static void tell_idle(void)
{
    atomic_fetch_add(&heap.idle, (uint64_t)idle_untold); /* wraps back */
    idle_untold = 0;
}

static void note_idle(int64_t more)
{
    idle_untold += more;
    if (idle_untold > IDLE_SLACK || idle_untold < -IDLE_SLACK)
        tell_idle();
}

static uint64_t bytes_idle(void)
{
    return atomic_load(&heap.idle) + (uint64_t)idle_untold;
}

static uint64_t bytes_in_use(void)
{
    uint64_t cached = bytes_idle();
    if (heap.cache_bytes)
        cached += heap.cache_bytes();
    uint64_t held = atomic_load(&heap.held);
    return held > cached ? held - cached : 0;
}

void brg__alloc_note_peak(void)
{
    uint64_t now = bytes_in_use();
    uint64_t peak = atomic_load_explicit(&heap.peak, memory_order_relaxed);
    while (now > peak &&
           !atomic_compare_exchange_weak(&heap.peak, &peak, now)) {
    }
}

static void *hook_alloc(size_t nbytes, size_t alignment)
{
    void *ptr = heap.allocator.alloc(heap.allocator.user, nbytes ? nbytes : 1,
                                     alignment);
    if (!ptr)
        return NULL;
    atomic_fetch_add(&heap.held, nbytes);
    atomic_fetch_add(&heap.n_allocs, 1);
    return ptr;
}

void *brg__block_alloc(size_t nbytes, size_t alignment, const char *what)
{
    void *ptr = hook_alloc(nbytes, alignment);
    if (!ptr && heap.trim_cache) {
        heap.trim_cache(); /* cached blocks of other sizes may be in the way */
        ptr = hook_alloc(nbytes, alignment);
    }
    if (!ptr) {
        (void)BRG_FAIL_NOMEM(what, nbytes);
        return NULL;
    }
    brg__alloc_note_peak();
    return ptr;
}

void brg__block_free(void *ptr, size_t nbytes, size_t alignment)
{
    if (!ptr)
        return;
    atomic_fetch_sub(&heap.held, nbytes);
    heap.allocator.free(heap.allocator.user, ptr, nbytes ? nbytes : 1,
                        alignment);
}

void *brg__mem_alloc(size_t nbytes, const char *what)
{
    size_t total;
    if (!brg__add_size(nbytes, HEADER, &total)) {
        (void)BRG_FAIL_NOMEM(what, nbytes);
        return NULL;
    }
    unsigned char *ptr = brg__block_alloc(total, BRG_CACHE_LINE, what);
    if (!ptr)
        return NULL;
    memset(ptr, 0, total);
    memcpy(ptr, &nbytes, sizeof nbytes);
    return ptr + HEADER;
}

void *brg__mem_alloc_array(size_t n, size_t nbytes_each, const char *what)
{
    size_t total;
    if (!brg__mul_size(n, nbytes_each, &total)) {
        (void)BRG_FAIL(
            BRG_ERR_NOMEM,
            "out of memory: %zu x %zu bytes for %s do not fit a size", n,
            nbytes_each, what);
        return NULL;
    }
    return brg__mem_alloc(total, what);
}

static size_t mem_size(const void *ptr)
{
    size_t nbytes;
    memcpy(&nbytes, (const unsigned char *)ptr - HEADER, sizeof nbytes);
    return nbytes;
}

void *brg__mem_realloc(void *ptr, size_t nbytes, const char *what)
{
    if (!ptr)
        return brg__mem_alloc(nbytes, what);
    void *grown = brg__mem_alloc(nbytes, what);
    if (!grown)
        return NULL;
    size_t old = mem_size(ptr);
    memcpy(grown, ptr, old < nbytes ? old : nbytes);
    brg__mem_free(ptr);
    return grown;
}

void brg__mem_free(void *ptr)
{
    if (ptr)
        brg__block_free((unsigned char *)ptr - HEADER, mem_size(ptr) + HEADER,
                        BRG_CACHE_LINE);
}

char *brg__mem_strdup(const char *text)
{
    size_t n = strlen(text) + 1;
    char *copy = brg__mem_alloc(n, "a string");
    if (copy)
        memcpy(copy, text, n);
    return copy;
}

/* Free lists of the thread: objects of one class linked through their first
 * word. A key's destructor gives them back when the thread ends. */
typedef struct free_object {
    struct free_object *next;
} free_object;

static _Thread_local free_object *free_lists[OBJ_CLASSES];
static _Thread_local bool is_registered;
static pthread_key_t exit_key;
static pthread_once_t exit_once = PTHREAD_ONCE_INIT;

static void on_thread_exit(void *unused)
{
    (void)unused;
    brg__obj_trim();
    tell_idle();
    is_registered = false; /* other destructors may yet free objects */
}

static void make_exit_key(void)
{
    (void)pthread_key_create(&exit_key, on_thread_exit);
}

static void register_thread(void)
{
    pthread_once(&exit_once, make_exit_key);
    (void)pthread_setspecific(exit_key, &is_registered);
    is_registered = true;
}

void *brg__obj_alloc_raw(size_t nbytes, const char *what)
{
    size_t size = brg__round_up(nbytes ? nbytes : 1, OBJ_STEP);
    if (OBJ_CACHED && size <= OBJ_MAX) {
        free_object **list = &free_lists[size / OBJ_STEP - 1];
        free_object *object = *list;
        if (object) {
            *list = object->next;
            note_idle(-(int64_t)size);
            return object;
        }
    }
    return brg__block_alloc(size, BRG_CACHE_LINE, what);
}

void *brg__obj_alloc(size_t nbytes, const char *what)
{
    void *object = brg__obj_alloc_raw(nbytes, what);
    if (object)
        memset(object, 0, nbytes);
    return object;
}

void brg__obj_free(void *ptr, size_t nbytes)
{
    if (!ptr)
        return;
    size_t size = brg__round_up(nbytes ? nbytes : 1, OBJ_STEP);
    if (!OBJ_CACHED || size > OBJ_MAX) {
        brg__block_free(ptr, size, BRG_CACHE_LINE);
        return;
    }
    if (!is_registered)
        register_thread();
    free_object *object = ptr;
    object->next = free_lists[size / OBJ_STEP - 1];
    free_lists[size / OBJ_STEP - 1] = object;
    note_idle((int64_t)size);
}

void brg__obj_trim(void)
{
    for (size_t i = 0; i < OBJ_CLASSES; i++) {
        size_t size = (i + 1) * OBJ_STEP;
        while (free_lists[i]) {
            free_object *object = free_lists[i];
            free_lists[i] = object->next;
            note_idle(-(int64_t)size);
            brg__block_free(object, size, BRG_CACHE_LINE);
        }
    }
}

void brg__alloc_set_cache(brg__trim_fn trim, uint64_t (*cached_bytes)(void),
                          uint64_t (*n_requests)(void))
{
    heap.trim_cache = trim;
    heap.cache_bytes = cached_bytes;
    heap.cache_requests = n_requests;
}

void brg__alloc_set_scratch(brg__trim_fn trim)
{
    heap.trim_scratch = trim;
}

void brg__alloc_count_idle(size_t more, size_t less)
{
    note_idle((int64_t)more - (int64_t)less);
}

brg_status brg_set_allocator(const brg_allocator *allocator)
{
    if (allocator) {
        BRG_CHECK_ARG(allocator->struct_size >= sizeof(brg_allocator),
                      "brg_set_allocator: struct_size is %zu, expected %zu",
                      allocator->struct_size, sizeof(brg_allocator));
        BRG_CHECK_ARG(allocator->alloc && allocator->free,
                      "brg_set_allocator: alloc and free must both be set");
    }
    brg_memory_trim();
    uint64_t held = atomic_load(&heap.held);
    if (held != 0)
        return BRG_FAIL(BRG_ERR_STATE,
                        "brg_set_allocator: %llu bytes of the old allocator "
                        "are still in use",
                        (unsigned long long)held);
    heap.allocator = allocator ? *allocator : system_allocator;
    return BRG_OK;
}

void brg_memory_get_stats(brg_memory_stats *filled)
{
    brg__alloc_note_peak(); /* objects from free lists do not note it */
    uint64_t cached = bytes_idle();
    if (heap.cache_bytes)
        cached += heap.cache_bytes();
    filled->in_use = bytes_in_use();
    filled->cached = cached;
    filled->peak = atomic_load(&heap.peak);
    filled->n_allocs = atomic_load(&heap.n_allocs);
    filled->n_requests = heap.cache_requests ? heap.cache_requests() : 0;
}

void brg_memory_reset_peak(void)
{
    atomic_store(&heap.peak, bytes_in_use());
}

void brg_memory_trim(void)
{
    if (heap.trim_cache)
        heap.trim_cache();
    if (heap.trim_scratch)
        heap.trim_scratch();
    brg__obj_trim();
}
