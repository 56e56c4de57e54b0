/* SPDX-License-Identifier: Apache-2.0
 * Scratch memory stays between requests, counts as cached, and is given back
 * by a trim and at the end of a thread. */
#include <pthread.h>

#include "core/ops/op.h"
#include "tests/support/brg_test.h"

static brg_memory_stats stats(void)
{
    brg_memory_stats now;
    brg_memory_get_stats(&now);
    return now;
}

static void test_scratch__stays_and_counts_as_cached(void **state)
{
    (void)state;
    brg_memory_trim();
    brg_memory_stats before = stats();
    void *a = assert_brg_some(brg__scratch(0, 10000, "a test"));
    void *b = assert_brg_some(brg__scratch(1, 10000, "a test"));
    assert_ptr_not_equal(a, b);
    assert_int_equal((uintptr_t)a % 64, 0);
    memset(a, 1, 10000);
    assert_ptr_equal(brg__scratch(0, 5000, "a test"), a);
    assert_ptr_equal(brg__scratch(0, 10000, "a test"), a);
    assert_int_equal(stats().in_use, before.in_use);
    assert_true(stats().cached >= before.cached + 20000);
    brg_memory_trim();
    assert_int_equal(stats().cached, before.cached);
    assert_brg_ok(brg_set_allocator(NULL));
}

static void test_scratch__too_much_is_an_error(void **state)
{
    (void)state;
    assert_brg_null_with(brg__scratch(2, SIZE_MAX - 10, "a test"),
                         BRG_ERR_NOMEM, "a test");
    assert_brg_some(brg__scratch(2, 100, "a test"));
    brg_memory_trim();
}

static void *use_scratch(void *unused)
{
    (void)unused;
    return brg__scratch(0, 1 << 20, "a test");
}

static void test_scratch__ends_with_its_thread(void **state)
{
    (void)state;
    brg_memory_stats before = stats();
    pthread_t thread;
    void *had = NULL;
    assert_int_equal(pthread_create(&thread, NULL, use_scratch, NULL), 0);
    assert_int_equal(pthread_join(thread, &had), 0);
    assert_non_null(had);
    assert_int_equal(stats().cached, before.cached);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scratch__stays_and_counts_as_cached),
        cmocka_unit_test(test_scratch__too_much_is_an_error),
        cmocka_unit_test(test_scratch__ends_with_its_thread),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
