/* SPDX-License-Identifier: Apache-2.0
 * The budgeted allocator and the sweep over budgets. */
#include "tests/support/fail_alloc.h"

#include <stdatomic.h>

#include "tests/support/brg_test.h"

#define SWEEP_MAX 100000

static _Atomic int64_t budget = -1; /* negative: no limit */
static _Atomic int64_t n_refused;
static _Atomic int64_t n_live;

static bool may_alloc(void)
{
    int64_t left = atomic_load(&budget);
    while (left > 0)
        if (atomic_compare_exchange_weak(&budget, &left, left - 1))
            return true;
    if (left == 0)
        atomic_fetch_add(&n_refused, 1);
    return left < 0;
}

static void *budget_alloc(void *user, size_t nbytes, size_t alignment)
{
    (void)user;
    void *ptr = NULL;
    if (!may_alloc() || posix_memalign(&ptr, alignment, nbytes) != 0)
        return NULL;
    atomic_fetch_add(&n_live, 1);
    return ptr;
}

static void budget_free(void *user, void *ptr, size_t nbytes, size_t alignment)
{
    (void)user;
    (void)nbytes;
    (void)alignment;
    atomic_fetch_sub(&n_live, 1);
    free(ptr);
}

void fail_alloc_install(void)
{
    static const brg_allocator allocator = {
        .struct_size = sizeof(brg_allocator),
        .alloc = budget_alloc,
        .free = budget_free,
    };
    if (brg_set_allocator(&allocator) == BRG_OK)
        return;
    fprintf(stderr, "fail_alloc_install: %s\n", brg_error_message());
    exit(1);
}

void fail_alloc_arm(int64_t n)
{
    atomic_store(&n_refused, 0);
    atomic_store(&budget, n);
}

int64_t fail_alloc_disarm(void)
{
    atomic_store(&budget, -1);
    return atomic_load(&n_refused);
}

int64_t fail_alloc_live(void)
{
    return atomic_load(&n_live);
}

static uint64_t bytes_in_use(void)
{
    brg_memory_stats stats;
    brg_memory_get_stats(&stats);
    return stats.in_use;
}

static void complain(const char *name, int64_t n, const char *what,
                     const char *file, int line)
{
    fail_alloc_disarm();
    print_error("%s with %lld allocations allowed: %s; the record says %s: "
                "%s (%s:%d)\n",
                name, (long long)n, what, brg_status_name(brg_error_code()),
                brg_error_message(), brg_error_file(), brg_error_line());
    _fail(file, line);
}

int64_t fail_alloc_sweep(fail_alloc_body_fn body, void *user, const char *name,
                         const char *file, int line)
{
    /* Once without a limit: what stays for good (thread's arrays) is there
     * before the counting starts. */
    brg_test__ok(body(user), name, file, line);
    for (int64_t n = 0; n < SWEEP_MAX; n++) {
        brg_memory_trim();
        brg_error_clear();
        uint64_t before = bytes_in_use();
        fail_alloc_arm(n);
        brg_status status = body(user);
        int64_t refused = fail_alloc_disarm();
        if (bytes_in_use() != before)
            complain(name, n, "memory was lost", file, line);
        if (status == BRG_OK && refused == 0)
            return n;
        if (status != BRG_ERR_NOMEM || brg_error_code() != BRG_ERR_NOMEM ||
            brg_error_message()[0] == '\0')
            complain(name, n, "did not fail with BRG_ERR_NOMEM", file, line);
    }
    complain(name, SWEEP_MAX, "never succeeds", file, line);
    return -1;
}
