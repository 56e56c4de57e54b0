/* SPDX-License-Identifier: Apache-2.0
 * The quick clock: between two looks at the exact one, whatever pauses lie
 * between its calls, and never running back. */
#include <pthread.h>
#include <unistd.h>

#include "core/base/clock.h"
#include "tests/support/brg_test.h"

#define OFF_NS 1000 /* what clock.h allows */

/* One call between two looks, which bound it however long the machine takes. */
static uint64_t read_checked(uint64_t least)
{
    uint64_t before = brg__clock_ns();
    uint64_t now = brg__clock_quick_ns();
    uint64_t after = brg__clock_ns();
    if (now + OFF_NS < before || now > after + OFF_NS || now < least)
        fail_msg("the quick clock says %llu between %llu and %llu, after %llu",
                 (unsigned long long)now, (unsigned long long)before,
                 (unsigned long long)after, (unsigned long long)least);
    return now;
}

/* Bursts, then a pause: shorter and longer than the clock's own intervals. */
static void read_for(uint64_t ns)
{
    static const unsigned pause_us[] = {0, 50, 150, 250, 1000, 30000};
    uint64_t end = brg__clock_ns() + ns, last = 0;
    for (size_t k = 0; brg__clock_ns() < end; k++) {
        for (int i = 0; i < 2000; i++)
            last = read_checked(last);
        usleep(pause_us[k % (sizeof pause_us / sizeof *pause_us)]);
    }
}

static void test_clock__quick_is_the_time(void **state)
{
    (void)state;
    read_for(150000000);
}

static void *read_there(void *arg)
{
    read_for(60000000);
    return arg;
}

/* Each thread has its own looks. */
static void test_clock__quick_on_every_thread(void **state)
{
    pthread_t threads[3];
    (void)state;
    for (int i = 0; i < 3; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, read_there, NULL),
                         0);
    for (int i = 0; i < 3; i++)
        assert_int_equal(pthread_join(threads[i], NULL), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_clock__quick_is_the_time),
        cmocka_unit_test(test_clock__quick_on_every_thread),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
