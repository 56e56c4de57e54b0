/* SPDX-License-Identifier: Apache-2.0
 * Rows whose body checks its values itself: run eagerly, then compiled. */
#ifndef BRG_TESTS_ROWS_CHECKS_H
#define BRG_TESTS_ROWS_CHECKS_H

#include "tests/rows/both.h"

/* `body` passes both ways; compiled, it takes so many captures and never runs
 * eagerly instead. */
static inline ROW_UNUSED void check_both(void (*body)(void),
                                         uint64_t n_captures)
{
    int token;
    assert_brg_ok(brg_compile_reset());
    brg_seed(123);
    body();
    assert_int_equal(both_stats().captures, 0);
    assert_brg_ok(brg_compile_begin(&token, NULL));
    brg_seed(123);
    body();
    assert_brg_ok(brg_compile_end(token));
    assert_int_equal(both_stats().captures, n_captures);
    assert_int_equal(both_stats().fallbacks, 0);
}

#define CHECK_ROW(name, n_captures)                                            \
    static void name(void **state)                                             \
    {                                                                          \
        (void)state;                                                           \
        check_both(name##_checks, (n_captures));                               \
    }

/* How often the function of the row is called in the first plan. */
static inline ROW_UNUSED size_t count_calls(void)
{
    return brg_test_count(plan_text(0), "call@");
}

#endif
