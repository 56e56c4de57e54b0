/* SPDX-License-Identifier: Apache-2.0
 * The log sink: levels, text, nested calls, many threads. */
#include <pthread.h>
#include <stdatomic.h>

#include "core/base/log.h"
#include "tests/support/brg_test.h"

static struct {
    int n_calls;
    brg_log_level level;
    char area[32];
    char message[2048];
    atomic_int n_inside;
    bool overlapped;
} heard;

static void listen(brg_log_level level, const char *area, const char *message,
                   void *user)
{
    assert_ptr_equal(user, &heard);
    if (atomic_fetch_add(&heard.n_inside, 1) != 0)
        heard.overlapped = true;
    heard.n_calls++;
    heard.level = level;
    snprintf(heard.area, sizeof heard.area, "%s", area);
    snprintf(heard.message, sizeof heard.message, "%s", message);
    atomic_fetch_sub(&heard.n_inside, 1);
}

static int setup(void **state)
{
    (void)state;
    memset(&heard, 0, sizeof heard);
    brg_set_log_sink(listen, &heard);
    brg_set_log_level(BRG_LOG_WARN);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    brg_set_log_sink(NULL, NULL);
    brg_set_log_level(BRG_LOG_WARN);
    return 0;
}

static void test_log__message_reaches_the_sink(void **state)
{
    (void)state;
    brg__log(BRG_LOG_WARN, "reducer", "bucket %d of %s", 3, "rank 1");
    assert_int_equal(heard.n_calls, 1);
    assert_int_equal(heard.level, BRG_LOG_WARN);
    assert_string_equal(heard.area, "reducer");
    assert_string_equal(heard.message, "bucket 3 of rank 1");
}

static void test_log__level_decides(void **state)
{
    (void)state;
    for (int limit = BRG_LOG_OFF; limit <= BRG_LOG_DEBUG; limit++) {
        brg_set_log_level((brg_log_level)limit);
        assert_int_equal(brg_get_log_level(), limit);
        heard.n_calls = 0;
        for (int level = BRG_LOG_ERROR; level <= BRG_LOG_DEBUG; level++)
            brg__log((brg_log_level)level, "base", "x");
        assert_int_equal(heard.n_calls, limit);
    }
}

static void test_log__without_sink_nothing_happens(void **state)
{
    (void)state;
    brg_set_log_sink(NULL, NULL);
    brg__log(BRG_LOG_ERROR, "base", "nobody listens");
    assert_int_equal(heard.n_calls, 0);
}

static void test_log__long_message_is_cut(void **state)
{
    (void)state;
    char text[4096];
    memset(text, 'y', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    brg__log(BRG_LOG_ERROR, "base", "%s", text);
    assert_int_equal(strlen(heard.message), 1023);
}

static void log_again(brg_log_level level, const char *area,
                      const char *message, void *user)
{
    (void)level;
    (void)area;
    (void)message;
    ++*(int *)user;
    brg__log(BRG_LOG_ERROR, "base", "from inside the sink");
}

/* A sink that calls the library, which logs, must not wait for itself. */
static void test_log__sink_may_call_what_logs(void **state)
{
    (void)state;
    int n = 0;
    brg_set_log_sink(log_again, &n);
    brg__log(BRG_LOG_ERROR, "base", "outside");
    assert_int_equal(n, 1);
}

static void *chatter(void *unused)
{
    (void)unused;
    for (int i = 0; i < 1000; i++)
        brg__log(BRG_LOG_ERROR, "base", "message %d", i);
    return NULL;
}

static void test_log__one_call_at_a_time(void **state)
{
    (void)state;
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, chatter, NULL), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(heard.n_calls, 4000);
    assert_false(heard.overlapped);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        TEST(test_log__message_reaches_the_sink),
        TEST(test_log__level_decides),
        TEST(test_log__without_sink_nothing_happens),
        TEST(test_log__long_message_is_cut),
        TEST(test_log__sink_may_call_what_logs),
        TEST(test_log__one_call_at_a_time),
#undef TEST
    };
    return cmocka_run_group_tests_name("log", tests, NULL, NULL);
}
