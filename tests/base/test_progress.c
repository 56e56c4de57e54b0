/* SPDX-License-Identifier: Apache-2.0
 * Progress functions: registration, the rate limit, no polls within polls.
 * Time is the test's own: nothing depends on what else the machine does. */
#include <pthread.h>

#include "core/base/clock.h"
#include "core/base/progress.h"
#include "tests/support/brg_test.h"

#define LOOK_NS 1000 /* what a look at the clock takes */

static _Thread_local uint64_t now_ns;

/* In the place of the library's. */
uint64_t brg__clock_ns(void)
{
    return now_ns += LOOK_NS;
}

uint64_t brg__clock_quick_ns(void)
{
    return brg__clock_ns();
}

static void spend_ns(uint64_t ns)
{
    now_ns += ns;
}

static void count(void *user)
{
    ++*(int *)user;
}

static void take_time(void *user)
{
    ++*(int *)user;
    spend_ns(100000);
}

static void poll_again(void *user)
{
    ++*(int *)user;
    brg__progress_poll();
}

/* Past any pause that an earlier poll has earned. */
static void poll_surely(int *n)
{
    int before = *n;
    uint64_t give_up = brg__clock_ns() + 5000000000u;
    while (*n == before && brg__clock_ns() < give_up)
        brg__progress_poll();
    assert_true(*n > before);
}

static void test_progress__nothing_registered_costs_nothing(void **state)
{
    (void)state;
    uint64_t before, after, spent;
    brg__progress_stats(&before, &spent);
    for (int i = 0; i < 100; i++)
        brg__progress_poll();
    brg__progress_stats(&after, &spent);
    assert_int_equal(after, before);
}

static void test_progress__registered_functions_are_called(void **state)
{
    (void)state;
    int a = 0, b = 0;
    assert_brg_ok(brg__progress_register(count, &a));
    assert_brg_ok(brg__progress_register(count, &b));
    poll_surely(&a);
    assert_int_equal(a, b);
    brg__progress_unregister(count, &a);
    int was = a;
    poll_surely(&b);
    assert_int_equal(a, was);
    brg__progress_unregister(count, &a); /* not there: nothing happens */
    brg__progress_unregister(count, &b);
    assert_int_equal(brg__progress_n, 0);
}

static void test_progress__polls_take_a_small_share(void **state)
{
    (void)state;
    int n = 0;
    assert_brg_ok(brg__progress_register(take_time, &n));
    uint64_t n_before, spent_before, n_after, spent;
    poll_surely(&n); /* earns a pause */
    brg__progress_stats(&n_before, &spent_before);
    uint64_t start = brg__clock_ns();
    while (brg__clock_ns() < start + 50000000)
        brg__progress_poll();
    uint64_t took = brg__clock_ns() - start;
    brg__progress_stats(&n_after, &spent);
    spent -= spent_before;
    print_message("%llu polls, %.1f%% of the time\n",
                  (unsigned long long)(n_after - n_before),
                  100.0 * (double)spent / (double)took);
    assert_true(n_after > n_before);
    assert_true(spent <= took / 50 + 100000 + LOOK_NS); /* 2%, and the first */
    brg__progress_unregister(take_time, &n);
}

/* A poll that has something to do must not delay the next one: its work waits
 * there too. */
static void work_mostly(void *user)
{
    if (++*(int *)user % 4 != 0)
        spend_ns(100000);
}

static void test_progress__work_is_not_put_off(void **state)
{
    (void)state;
    int n = 0;
    assert_brg_ok(brg__progress_register(work_mostly, &n));
    for (int i = 0; i < 5; i++)
        poll_surely(&n); /* one of them in vain */
    n = 0;
    uint64_t start = brg__clock_ns();
    while (brg__clock_ns() < start + 50000000)
        brg__progress_poll();
    print_message("%d polls in 50 ms, most with 0.1 ms of work\n", n);
    assert_true(n > 60); /* 11 if each earned 50 times its cost */
    brg__progress_unregister(work_mostly, &n);
}

static void test_progress__least_pause_is_kept(void **state)
{
    (void)state;
    int n = 0;
    setenv("BRG_POLL_US", "20000", 1);
    assert_brg_ok(brg__progress_register(count, &n));
    poll_surely(&n);
    n = 0;
    uint64_t start = brg__clock_ns();
    while (brg__clock_ns() < start + 50000000)
        brg__progress_poll();
    assert_int_equal(n, 2);
    brg__progress_unregister(count, &n);
    setenv("BRG_POLL_US", "-5", 1); /* no sense: as 0 */
    assert_brg_ok(brg__progress_register(count, &n));
    poll_surely(&n);
    poll_surely(&n);
    brg__progress_unregister(count, &n);
    unsetenv("BRG_POLL_US");
}

/* A poll that was slow by accident (the system ran something else) must not
 * stop polling for long. */
static void slow_once(void *user)
{
    if ((*(int *)user)++ == 0)
        spend_ns(60000000);
}

static void test_progress__one_slow_poll_is_forgiven(void **state)
{
    (void)state;
    int n = 0;
    assert_brg_ok(brg__progress_register(slow_once, &n));
    poll_surely(&n);
    uint64_t start = brg__clock_ns();
    poll_surely(&n);
    uint64_t pause = brg__clock_ns() - start;
    print_message("pause after a poll of 60 ms: %.1f ms\n",
                  1e-6 * (double)pause);
    assert_true(pause < 11000000); /* 50 times the cost would be 3 s */
    brg__progress_unregister(slow_once, &n);
}

static void test_progress__a_poll_does_not_poll(void **state)
{
    (void)state;
    int n = 0;
    assert_brg_ok(brg__progress_register(poll_again, &n));
    poll_surely(&n);
    assert_int_equal(n, 1);
    brg__progress_unregister(poll_again, &n);
}

static void test_progress__too_many_are_refused(void **state)
{
    (void)state;
    int n[17] = {0};
    for (int i = 0; i < 16; i++)
        assert_brg_ok(brg__progress_register(count, &n[i]));
    assert_brg_fails(brg__progress_register(count, &n[16]), BRG_ERR_STATE);
    for (int i = 0; i < 16; i++)
        brg__progress_unregister(count, &n[i]);
    assert_int_equal(brg__progress_n, 0);
}

static void *count_registered(void *filled)
{
    *(int *)filled = brg__progress_n;
    brg__progress_poll();
    return NULL;
}

static void test_progress__registration_belongs_to_the_thread(void **state)
{
    (void)state;
    int n = 0, seen = -1;
    assert_brg_ok(brg__progress_register(count, &n));
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, count_registered, &seen), 0);
    pthread_join(thread, NULL);
    assert_int_equal(seen, 0);
    assert_int_equal(n, 0);
    brg__progress_unregister(count, &n);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_progress__nothing_registered_costs_nothing),
        cmocka_unit_test(test_progress__registered_functions_are_called),
        cmocka_unit_test(test_progress__polls_take_a_small_share),
        cmocka_unit_test(test_progress__work_is_not_put_off),
        cmocka_unit_test(test_progress__least_pause_is_kept),
        cmocka_unit_test(test_progress__one_slow_poll_is_forgiven),
        cmocka_unit_test(test_progress__a_poll_does_not_poll),
        cmocka_unit_test(test_progress__too_many_are_refused),
        cmocka_unit_test(test_progress__registration_belongs_to_the_thread),
    };
    return cmocka_run_group_tests_name("progress", tests, NULL, NULL);
}
