/* SPDX-License-Identifier: Apache-2.0
 * Checks of the user's buffers. See guard.h. */
#include "reducer/guard.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/base/alloc.h"
#include "core/base/assert.h"

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
    if (!m->grad || m->nbytes == 0 || is_there(m))
        return BRG_OK;
    return BRG_FAIL(BRG_ERR_STATE,
                    "rank %d: the buffer of %s (%zu bytes at %p) was freed or "
                    "has moved since it was registered; keep it until the "
                    "reducer is destroyed, or call brg_reducer_set_grad",
                    r->rank, brg__member_name(r, i), m->nbytes, m->grad);
}

#else

brg_status brg__guard_buffer(const brg_reducer *r, size_t i)
{
    (void)r;
    (void)i;
    return BRG_OK;
}

#endif
