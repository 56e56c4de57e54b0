/* SPDX-License-Identifier: Apache-2.0
 * An allocator with a budget, for out-of-memory sweeps.
 *
 *     int main(void)
 *     {
 *         fail_alloc_install();          before the library's first call
 *         ...cmocka_run_group_tests...
 *     }
 *
 *     static brg_status body(void *user) { make, use and give back all }
 *     assert_oom_clean(body, user);
 *
 * The sweep runs the body with a budget of 0, 1, 2... allocations until it
 * succeeds. Each failure must be BRG_ERR_NOMEM with a message, and must leave
 * as many bytes in use as there were before. */
#ifndef BRG_TESTS_SUPPORT_FAIL_ALLOC_H
#define BRG_TESTS_SUPPORT_FAIL_ALLOC_H

#include <stdint.h>

#include <brigade/status.h>

/* Makes it the library's allocator; prints and exits if it cannot. */
void fail_alloc_install(void);

/* Lets n more allocations succeed and fails all after them. */
void fail_alloc_arm(int64_t n);
/* No limit again; returns how many were refused. */
int64_t fail_alloc_disarm(void);

/* Blocks that the library holds now, cached ones included. */
int64_t fail_alloc_live(void);

typedef brg_status (*fail_alloc_body_fn)(void *user);

#define assert_oom_clean(body, user)                                           \
    fail_alloc_sweep((body), (user), #body, __FILE__, __LINE__)

/* Returns the number of failing runs before the first that succeeded. */
int64_t fail_alloc_sweep(fail_alloc_body_fn body, void *user, const char *name,
                         const char *file, int line);

#endif
