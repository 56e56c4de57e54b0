/* SPDX-License-Identifier: Apache-2.0
 * Status names and the thread's error record. */
#include <pthread.h>

#include "core/base/error.h"
#include "tests/support/brg_test.h"

static void test_error__every_code_has_name_and_text(void **state)
{
    (void)state;
    for (int code = 0; code >= -19; code--) {
        assert_memory_equal(brg_status_name((brg_status)code), "BRG_", 4);
        assert_string_not_equal(brg_status_name((brg_status)code),
                                "BRG_ERR_UNKNOWN");
        assert_string_not_equal(brg_status_text((brg_status)code),
                                "unknown status");
    }
    assert_string_equal(brg_status_name(BRG_OK), "BRG_OK");
    assert_string_equal(brg_status_name(BRG_ERR_SHAPE), "BRG_ERR_SHAPE");
    assert_string_equal(brg_status_text(BRG_ERR_NOMEM), "out of memory");
    assert_string_equal(brg_status_name((brg_status)-9999), "BRG_ERR_UNKNOWN");
    assert_string_equal(brg_status_text((brg_status)7), "unknown status");
}

static void test_error__values_are_never_reused(void **state)
{
    (void)state;
    /* Published values: a change here breaks programs already compiled. */
    assert_int_equal(BRG_OK, 0);
    assert_int_equal(BRG_ERR_NOMEM, -1);
    assert_int_equal(BRG_ERR_ARG, -2);
    assert_int_equal(BRG_ERR_STATE, -6);
    assert_int_equal(BRG_ERR_COMM, -11);
    assert_int_equal(BRG_ERR_INTERNAL, -19);
}

static void test_error__fail_fills_the_record(void **state)
{
    (void)state;
    brg_error_clear();
    assert_int_equal(brg_error_code(), BRG_OK);
    assert_string_equal(brg_error_message(), "");
    assert_string_equal(brg_error_file(), "");
    int line = __LINE__ + 1;
    brg_status status = BRG_FAIL(BRG_ERR_DTYPE, "got %s, %d times", "f16", 3);
    assert_int_equal(status, BRG_ERR_DTYPE);
    assert_int_equal(brg_error_code(), BRG_ERR_DTYPE);
    assert_string_equal(brg_error_message(), "got f16, 3 times");
    assert_int_equal(brg_error_line(), line);
    assert_non_null(strstr(brg_error_file(), "test_error.c"));
    brg_error_clear();
    assert_int_equal(brg_error_line(), 0);
}

static void test_error__file_is_a_path_in_the_repository(void **state)
{
    (void)state;
    (void)BRG_FAIL(BRG_ERR_ARG, "here");
    assert_string_equal(brg_error_file(), "tests/base/test_error.c");
}

static void test_error__long_message_is_cut(void **state)
{
    (void)state;
    char text[2 * BRG_ERROR_TEXT_MAX];
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    (void)BRG_FAIL(BRG_ERR_ARG, "%s", text);
    assert_int_equal(strlen(brg_error_message()), BRG_ERROR_TEXT_MAX - 1);
    (void)brg__error_prefix("%s", text);
    assert_int_equal(strlen(brg_error_message()), BRG_ERROR_TEXT_MAX - 1);
    (void)brg__error_prefix("in front: ");
    assert_memory_equal(brg_error_message(), "in front: xxx", 13);
    assert_int_equal(strlen(brg_error_message()), BRG_ERROR_TEXT_MAX - 1);
}

static void test_error__message_may_quote_the_old_one(void **state)
{
    (void)state;
    (void)BRG_FAIL(BRG_ERR_ARG, "inner");
    (void)BRG_FAIL(BRG_ERR_COMM, "outer, because: %s", brg_error_message());
    assert_string_equal(brg_error_message(), "outer, because: inner");
    (void)brg__error_prefix("[%s] ", brg_error_message());
    assert_string_equal(brg_error_message(),
                        "[outer, because: inner] outer, because: inner");
}

static void test_error__prefix_keeps_code_and_place(void **state)
{
    (void)state;
    (void)BRG_FAIL(BRG_ERR_SHAPE, "bad shape");
    int line = brg_error_line();
    assert_int_equal(brg__error_prefix("in layer %d: ", 3), BRG_ERR_SHAPE);
    assert_string_equal(brg_error_message(), "in layer 3: bad shape");
    assert_int_equal(brg_error_line(), line);
}

static void test_error__save_and_restore(void **state)
{
    (void)state;
    brg__error_record record;
    (void)BRG_FAIL(BRG_ERR_IO, "first");
    brg__error_save(&record);
    (void)BRG_FAIL(BRG_ERR_NAN, "second");
    brg__error_restore(&record);
    assert_int_equal(brg_error_code(), BRG_ERR_IO);
    assert_string_equal(brg_error_message(), "first");
}

static void test_error__pending_keeps_the_first(void **state)
{
    (void)state;
    (void)BRG_FAIL(BRG_ERR_SHAPE, "the cause");
    assert_int_equal(brg__error_pending("x"), BRG_ERR_SHAPE);
    assert_string_equal(brg_error_message(), "the cause");
    assert_brg_fails_with(brg__error_pending("brg_relu: x"), BRG_ERR_ARG,
                          "brg_relu: x is NULL");
}

static brg_status passes_up(brg_status inner, int *n_after)
{
    BRG_TRY(inner);
    ++*n_after;
    return BRG_OK;
}

static brg_status cleans_up(brg_status inner, int *n_cleanups)
{
    brg_status status = BRG_OK;
    BRG_TRY_GOTO(inner, out);
out:
    ++*n_cleanups;
    return status;
}

static void test_error__try_passes_up(void **state)
{
    (void)state;
    int n = 0;
    assert_int_equal(passes_up(BRG_ERR_IO, &n), BRG_ERR_IO);
    assert_int_equal(n, 0);
    assert_brg_ok(passes_up(BRG_OK, &n));
    assert_int_equal(n, 1);
    assert_int_equal(cleans_up(BRG_ERR_IO, &n), BRG_ERR_IO);
    assert_brg_ok(cleans_up(BRG_OK, &n));
    assert_int_equal(n, 3);
}

static void *other_thread(void *filled)
{
    brg_status *codes = filled;
    codes[0] = brg_error_code();
    codes[1] = BRG_FAIL(BRG_ERR_PEER, "from another thread");
    return NULL;
}

static void test_error__record_belongs_to_the_thread(void **state)
{
    (void)state;
    (void)BRG_FAIL(BRG_ERR_IO, "mine");
    brg_status codes[2];
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, other_thread, codes), 0);
    pthread_join(thread, NULL);
    assert_int_equal(codes[0], BRG_OK);
    assert_int_equal(codes[1], BRG_ERR_PEER);
    assert_string_equal(brg_error_message(), "mine");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_error__every_code_has_name_and_text),
        cmocka_unit_test(test_error__values_are_never_reused),
        cmocka_unit_test(test_error__fail_fills_the_record),
        cmocka_unit_test(test_error__file_is_a_path_in_the_repository),
        cmocka_unit_test(test_error__long_message_is_cut),
        cmocka_unit_test(test_error__message_may_quote_the_old_one),
        cmocka_unit_test(test_error__prefix_keeps_code_and_place),
        cmocka_unit_test(test_error__save_and_restore),
        cmocka_unit_test(test_error__pending_keeps_the_first),
        cmocka_unit_test(test_error__try_passes_up),
        cmocka_unit_test(test_error__record_belongs_to_the_thread),
    };
    return cmocka_run_group_tests_name("error", tests, NULL, NULL);
}
