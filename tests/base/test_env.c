/* SPDX-License-Identifier: Apache-2.0
 * Environment variables: rows, defaults, texts that are not numbers. */
#include <string.h>

#include "core/base/env.h"
#include "tests/support/brg_test.h"
#include "tests/support/decimal_comma.h"

static struct {
    int n_calls;
    char message[512];
} heard;

static void listen(brg_log_level level, const char *area, const char *message,
                   void *user)
{
    (void)user;
    assert_int_equal(level, BRG_LOG_WARN);
    assert_string_equal(area, "env");
    heard.n_calls++;
    snprintf(heard.message, sizeof heard.message, "%s", message);
}

static int setup(void **state)
{
    (void)state;
    memset(&heard, 0, sizeof heard);
    brg_set_log_sink(listen, NULL);
    brg_set_log_level(BRG_LOG_WARN);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    use_decimal_point();
    brg_set_log_sink(NULL, NULL);
    unsetenv("BRG_TIMEOUT_S");
    unsetenv("BRG_POLL_US");
    unsetenv("BRG_ISA");
    return 0;
}

static void test_env__rows_are_complete(void **state)
{
    (void)state;
    size_t n = 0;
    for (const brg_env_info *row; (row = brg_env_at(n)) != NULL; n++) {
        assert_memory_equal(row->name, "BRG_", 4);
        assert_non_null(row->default_value);
        assert_true(strlen(row->doc) > 10);
        for (size_t i = 0; i < n; i++)
            assert_string_not_equal(brg_env_at(i)->name, row->name);
    }
    assert_int_equal(n, BRG__N_ENV);
    assert_null(brg_env_at(SIZE_MAX));
}

static void test_env__default_and_value(void **state)
{
    (void)state;
    unsetenv("BRG_TIMEOUT_S");
    assert_string_equal(brg__env_text(BRG__ENV_TIMEOUT_S), "300");
    assert_int_equal(brg__env_int(BRG__ENV_TIMEOUT_S), 300);
    setenv("BRG_TIMEOUT_S", "2.5", 1);
    assert_true(brg__env_double(BRG__ENV_TIMEOUT_S) == 2.5);
    assert_int_equal(brg__env_int(BRG__ENV_TIMEOUT_S), 2);
    setenv("BRG_ISA", "avx2", 1);
    assert_string_equal(brg__env_text(BRG__ENV_ISA), "avx2");
    assert_int_equal(heard.n_calls, 0);
}

static void test_env__decimal_point_in_any_locale(void **state)
{
    (void)state;
    use_decimal_comma();
    setenv("BRG_TIMEOUT_S", "2.5", 1);
    assert_true(brg__env_double(BRG__ENV_TIMEOUT_S) == 2.5);
    setenv("BRG_TIMEOUT_S", "1e-3", 1);
    assert_true(brg__env_double(BRG__ENV_TIMEOUT_S) == 1e-3);
    assert_int_equal(heard.n_calls, 0);
    setenv("BRG_TIMEOUT_S", "2,5", 1);
    assert_true(brg__env_double(BRG__ENV_TIMEOUT_S) == 300.0);
    assert_int_equal(heard.n_calls, 1);
}

static void test_env__bad_number_gives_the_default(void **state)
{
    (void)state;
    static const char *const bad[] = {"soon", "", "3 s", "12x", "nan", "inf"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        setenv("BRG_TIMEOUT_S", bad[i], 1);
        assert_true(brg__env_double(BRG__ENV_TIMEOUT_S) == 300.0);
        assert_int_equal(brg__env_int(BRG__ENV_TIMEOUT_S), 300);
    }
}

/* Read at each step, a bad value must not fill the log. */
static void test_env__bad_number_is_logged_once(void **state)
{
    (void)state;
    setenv("BRG_POLL_US", "often", 1);
    for (int i = 0; i < 5; i++)
        assert_int_equal(brg__env_int(BRG__ENV_POLL_US), 0);
    assert_int_equal(heard.n_calls, 1);
    assert_non_null(strstr(heard.message, "BRG_POLL_US=often"));
}

static void test_env__huge_number_is_kept_in_range(void **state)
{
    (void)state;
    setenv("BRG_TIMEOUT_S", "1e300", 1);
    assert_true(brg__env_int(BRG__ENV_TIMEOUT_S) == INT64_MAX);
    setenv("BRG_TIMEOUT_S", "-1e300", 1);
    assert_true(brg__env_int(BRG__ENV_TIMEOUT_S) == INT64_MIN);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        TEST(test_env__rows_are_complete),
        TEST(test_env__default_and_value),
        TEST(test_env__decimal_point_in_any_locale),
        TEST(test_env__bad_number_is_logged_once),
        TEST(test_env__bad_number_gives_the_default),
        TEST(test_env__huge_number_is_kept_in_range),
#undef TEST
    };
    return cmocka_run_group_tests_name("env", tests, NULL, NULL);
}
