/* SPDX-License-Identifier: Apache-2.0
 * Checks of the user's buffers. See guard.h. */
#include "reducer/guard.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/base/alloc.h"
#include "core/base/assert.h"
#include "reducer/watch/watch.h"

/* ---- Overlap -------------------------------------------------------------- */

typedef struct range {
    uintptr_t begin;
    uintptr_t end;
    size_t i;
} range;

static int compare_ranges(const void *a, const void *b)
{
    const range *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return x->i < y->i ? -1 : x->i > y->i;
}

static brg_status fail_overlap(const brg_reducer *r, const range *a,
                               const range *b)
{
    bool is_same = a->begin == b->begin && a->end == b->end;
    return BRG_FAIL(BRG_ERR_ARG,
                    "rank %d: %s (%zu) and %s (%zu) %s; each gradient needs "
                    "memory of its own",
                    r->rank, brg__member_name(r, a->i), a->i,
                    brg__member_name(r, b->i), b->i,
                    is_same ? "are the same buffer, registered twice"
                            : "have buffers that overlap");
}

brg_status brg__guard_distinct(const brg_reducer *r)
{
    size_t n = 0;
    range *ranges =
        brg__mem_alloc_array(r->n_params, sizeof *ranges, "a list of buffers");
    if (!ranges)
        return BRG_ERR_NOMEM;
    for (size_t i = 0; i < r->n_params; i++) {
        uintptr_t begin = (uintptr_t)r->members[i].grad;
        if (begin && r->members[i].nbytes > 0)
            ranges[n++] = (range){begin, begin + r->members[i].nbytes, i};
    }
    qsort(ranges, n, sizeof *ranges, compare_ranges);
    brg_status status = BRG_OK;
    for (size_t k = 1; k < n && status == BRG_OK; k++)
        if (ranges[k].begin < ranges[k - 1].end)
            status = fail_overlap(r, &ranges[k - 1], &ranges[k]);
    brg__mem_free(ranges);
    return status;
}

/* ---- Memory that has gone ------------------------------------------------- */

#if BRG_DEBUG >= 1

#if defined(__SANITIZE_ADDRESS__)
void *__asan_region_is_poisoned(void *begin, size_t size);

static bool is_freed(void *at, size_t nbytes)
{
    return __asan_region_is_poisoned(at, nbytes) != NULL;
}
#else
static bool is_freed(void *at, size_t nbytes)
{
    (void)at;
    (void)nbytes;
    return false;
}
#endif

static brg_watch_add_fn *find_add(void)
{
    brg_watch_add_fn *add;
    *(void **)&add = dlsym(RTLD_DEFAULT, BRG_WATCH_ADD);
    return add;
}

static void watch(brg_reducer *r, size_t i)
{
    const brg__member *m = &r->members[i];
    brg_watch_add_fn *add = find_add();
    if (add && m->grad && m->nbytes > 0 && m->device.type == BRG_DEVICE_CPU)
        (void)add(&r->watches[i], m->grad, m->nbytes);
}

static void unwatch(brg_reducer *r, size_t i)
{
    brg_watch_remove_fn *remove;
    *(void **)&remove = dlsym(RTLD_DEFAULT, BRG_WATCH_REMOVE);
    if (remove)
        remove(&r->watches[i]);
}

brg_status brg__guard_begin(brg_reducer *r)
{
    if (!find_add())
        return BRG_OK;
    r->watches = brg__mem_alloc_array(r->n_params, sizeof *r->watches,
                                      "watched buffers");
    for (size_t i = 0; r->watches && i < r->n_params; i++)
        watch(r, i);
    return r->watches ? BRG_OK : BRG_ERR_NOMEM;
}

void brg__guard_move(brg_reducer *r, size_t i)
{
    if (!r->watches)
        return;
    unwatch(r, i);
    watch(r, i);
}

void brg__guard_end(brg_reducer *r)
{
    for (size_t i = 0; r->watches && i < r->n_params; i++)
        unwatch(r, i);
    brg__mem_free(r->watches);
    r->watches = NULL;
}

/* " (by free, called at ./trainer+0x12e4)", in `text`; "": nobody has seen it. */
static bool was_seen(const brg_reducer *r, size_t i, char text[300])
{
    const char *by = r->watches ? atomic_load(&r->watches[i].by) : NULL;
    Dl_info info;
    text[0] = '\0';
    if (!by)
        return false;
    void *caller = r->watches[i].caller;
    if (dladdr(caller, &info) && info.dli_fname)
        snprintf(text, 300, " (by %s, called at %s+%#zx)", by, info.dli_fname,
                 (size_t)((char *)caller - (char *)info.dli_fbase));
    else
        snprintf(text, 300, " (by %s, called at %p)", by, caller);
    return true;
}

/* Asking the kernel to write pages back finds those that do not exist. */
static bool is_unmapped(void *at, size_t nbytes)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t begin = (uintptr_t)at & ~(page - 1);
    size_t length = (uintptr_t)at + nbytes - begin;
    return msync((void *)begin, length, MS_ASYNC) != 0 && errno == ENOMEM;
}

static bool is_there(const brg__member *m)
{
    const brg_device_vtable *table;
    if (m->device.type == BRG_DEVICE_CPU)
        return !is_unmapped(m->grad, m->nbytes) &&
               !is_freed(m->grad, m->nbytes);
    return brg__device_find(m->device, &table) != BRG_OK || !table->holds ||
           table->holds(m->device, m->grad, m->nbytes);
}

brg_status brg__guard_buffer(const brg_reducer *r, size_t i)
{
    const brg__member *m = &r->members[i];
    char how[300];
    if (!m->grad || m->nbytes == 0 || (!was_seen(r, i, how) && is_there(m)))
        return BRG_OK;
    return BRG_FAIL(BRG_ERR_STATE,
                    "rank %d: the buffer of %s (%zu bytes at %p) was freed or "
                    "has moved since it was registered%s; keep it until the "
                    "reducer is destroyed, or call brg_reducer_set_grad",
                    r->rank, brg__member_name(r, i), m->nbytes, m->grad, how);
}

#else

brg_status brg__guard_begin(brg_reducer *r)
{
    (void)r;
    return BRG_OK;
}

void brg__guard_move(brg_reducer *r, size_t i)
{
    (void)r;
    (void)i;
}

void brg__guard_end(brg_reducer *r)
{
    (void)r;
}

brg_status brg__guard_buffer(const brg_reducer *r, size_t i)
{
    (void)r;
    (void)i;
    return BRG_OK;
}

#endif
