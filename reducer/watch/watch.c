/* SPDX-License-Identifier: Apache-2.0
 * free, realloc, munmap and mremap, which note what they take away from watched
 * buffers. See watch.h.
 *
 * They note it before they do it: as soon as memory is gone, another thread may
 * be given it and have it watched. Where it may stay, the note is preliminary
 * until it is known. */
#include "reducer/watch/watch.h"

#include <dlfcn.h>
#include <malloc.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define EXPORT __attribute__((visibility("default")))
#define CALLER __builtin_return_address(0)

EXPORT brg_watch_add_fn brg_watch_add;
EXPORT brg_watch_remove_fn brg_watch_remove;

/* ---- The watched ---------------------------------------------------------- */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
/* This thread holds the lock, to fork. */
static _Thread_local __attribute__((tls_model("initial-exec"))) bool is_forking;
static brg_watch **watches; /* by begin */
static size_t n_watches, n_room;
/* All lie in [low, high); high 0: there are none. Read without the lock: a
 * thread that frees a buffer has heard of it, and so of these, from the one
 * that had it watched. */
static _Atomic uintptr_t low, high;

static const char under_way[] = "realloc, munmap or mremap";

static void lock_all(void)
{
    pthread_mutex_lock(&lock);
}

static void unlock_all(void)
{
    pthread_mutex_unlock(&lock);
}

/* The first that begins at or behind `at`. */
static size_t find(uintptr_t at)
{
    size_t first = 0, n = n_watches;
    while (n > 0) {
        const size_t half = n / 2;
        const bool is_behind = watches[first + half]->begin >= at;
        first += is_behind ? 0 : half + 1;
        n = is_behind ? half : n - half - 1;
    }
    return first;
}

static bool has_any(uintptr_t begin, uintptr_t end)
{
    return begin < atomic_load_explicit(&high, memory_order_relaxed) &&
           end > atomic_load_explicit(&low, memory_order_relaxed);
}

/* What lies in [begin, end), wholly or in part, and is noted as `from`; those
 * that end by `kept` become NULL, the others `to`. */
static void renote(uintptr_t begin, uintptr_t end, const char *from,
                   uintptr_t kept, const brg_watch *to)
{
    if (!has_any(begin, end) || is_forking)
        return;
    lock_all();
    size_t i = find(begin);
    while (i > 0 && watches[i - 1]->end > begin)
        i--;
    for (; i < n_watches && watches[i]->begin < end; i++) {
        brg_watch *watch = watches[i];
        const bool is_kept = watch->end <= kept;
        if (atomic_load(&watch->by) != from)
            continue;
        watch->caller = to->caller;
        atomic_store(&watch->by, is_kept ? NULL : atomic_load(&to->by));
    }
    unlock_all();
}

static void note(uintptr_t begin, uintptr_t end, const char *by, void *caller)
{
    renote(begin, end, NULL, 0, &(brg_watch){.by = by, .caller = caller});
}

/* A call that was noted as under way has left what lies before `kept`. */
static void settle(uintptr_t begin, uintptr_t end, uintptr_t kept,
                   const char *by, void *caller)
{
    renote(begin, end, under_way, kept,
           &(brg_watch){.by = by, .caller = caller});
}

/* ---- The functions ---------------------------------------------------------- */

/* Those that would have been called. */
static struct {
    _Atomic(void *) free, realloc, munmap, mremap;
} next;

static _Thread_local bool is_looking
    __attribute__((tls_model("initial-exec"))); /* that may free itself */

static void *look_up(_Atomic(void *) *where, const char *name)
{
    void *found = atomic_load_explicit(where, memory_order_acquire);
    if (!found && !is_looking) {
        is_looking = true;
        found = dlsym(RTLD_NEXT, name);
        is_looking = false;
        atomic_store_explicit(where, found, memory_order_release);
    }
    return found;
}

#define NEXT(name) ((__typeof__(name) *)look_up(&next.name, #name))

static uintptr_t end_of(void *block)
{
    const uintptr_t begin = (uintptr_t)block;
    return has_any(begin, UINTPTR_MAX) ? begin + malloc_usable_size(block)
                                       : begin;
}

EXPORT void free(void *block)
{
    __typeof__(free) *call = NEXT(free);
    note((uintptr_t)block, end_of(block), "free", CALLER);
    if (call) /* else dlsym's own, once */
        call(block);
}

EXPORT void *realloc(void *block, size_t size)
{
    const uintptr_t begin = (uintptr_t)block, end = end_of(block);
    note(begin, end, under_way, CALLER);
    void *now = NEXT(realloc)(block, size);
    uintptr_t kept = 0;
    if ((uintptr_t)now == begin)
        kept = end_of(now);
    else if (!now && size > 0)
        kept = end;
    settle(begin, end, kept, "realloc", CALLER);
    return now;
}

EXPORT int munmap(void *at, size_t size)
{
    const uintptr_t begin = (uintptr_t)at;
    note(begin, begin + size, under_way, CALLER);
    const int status = NEXT(munmap)(at, size);
    settle(begin, begin + size, status == 0 ? 0 : UINTPTR_MAX, "munmap",
           CALLER);
    return status;
}

EXPORT void *mremap(void *at, size_t size, size_t new_size, int flags, ...)
{
    const uintptr_t begin = (uintptr_t)at;
    va_list rest;
    va_start(rest, flags);
    void *to = flags & MREMAP_FIXED ? va_arg(rest, void *) : NULL;
    va_end(rest);
    note(begin, begin + size, under_way, CALLER);
    void *now = NEXT(mremap)(at, size, new_size, flags, to);
    uintptr_t kept = 0;
    if (now == MAP_FAILED)
        kept = UINTPTR_MAX;
    else if (now == at)
        kept = begin + new_size;
    settle(begin, begin + size, kept, "mremap", CALLER);
    return now;
}

/* ---- Adding and removing ------------------------------------------------------ */

/* Room for one more: memory is taken and given back without the lock. */
static bool make_room(void)
{
    lock_all();
    const size_t had = n_room, n = n_watches;
    unlock_all();
    if (n < had)
        return true;
    brg_watch **more = malloc((2 * had + 64) * sizeof *more), **old = more;
    if (!more)
        return false;
    lock_all();
    if (n_room == had) {
        old = watches;
        if (n_watches > 0)
            memcpy(more, watches, n_watches * sizeof *more);
        watches = more;
        n_room = 2 * had + 64;
    }
    unlock_all();
    free(old);
    return true;
}

bool brg_watch_add(brg_watch *watch, const void *at, size_t nbytes)
{
    bool is_in = false;
    *watch = (brg_watch){.begin = (uintptr_t)at, .end = (uintptr_t)at + nbytes};
    while (!is_in && make_room()) {
        lock_all();
        is_in = n_watches < n_room; /* another thread may have taken it */
        if (is_in) {
            const size_t i = find(watch->begin);
            memmove(&watches[i + 1], &watches[i],
                    (n_watches++ - i) * sizeof *watches);
            watches[i] = watch;
            if (n_watches == 1 || watch->begin < low)
                low = watch->begin;
            if (watch->end > high)
                high = watch->end;
        }
        unlock_all();
    }
    if (!is_in)
        watch->begin = 0;
    return is_in;
}

void brg_watch_remove(brg_watch *watch)
{
    if (watch->begin == 0)
        return;
    lock_all();
    size_t i = find(watch->begin);
    while (watches[i] != watch)
        i++;
    memmove(&watches[i], &watches[i + 1], (--n_watches - i) * sizeof *watches);
    brg_watch **last = n_watches == 0 ? watches : NULL;
    if (last) {
        watches = NULL;
        n_room = 0;
        low = high = 0;
    }
    unlock_all();
    watch->begin = 0;
    free(last);
}

/* A child of fork must not find the lock taken by a thread that it lacks. Other
 * handlers of the fork may free meanwhile. */
static void before_fork(void)
{
    lock_all();
    is_forking = true;
}

static void after_fork(void)
{
    is_forking = false;
    unlock_all();
}

__attribute__((constructor)) static void begin(void)
{
    pthread_atfork(before_fork, after_fork, after_fork);
    (void)NEXT(free);
    (void)NEXT(realloc);
    (void)NEXT(munmap);
    (void)NEXT(mremap);
}
