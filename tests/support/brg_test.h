/* SPDX-License-Identifier: Apache-2.0
 * What every test includes: cmocka, and asserts that print the library's own
 * message. */
#ifndef BRG_TESTS_SUPPORT_BRG_TEST_H
#define BRG_TESTS_SUPPORT_BRG_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <brigade/runtime.h>
#include <brigade/status.h>
#include <brigade/types.h>

/* The expression must give BRG_OK; prints message and place if not. */
#define assert_brg_ok(expr) brg_test__ok((expr), #expr, __FILE__, __LINE__)

/* It must give `code` with a fresh, non-empty message. */
#define assert_brg_fails(expr, code)                                           \
    (brg_error_clear(),                                                        \
     brg_test__fails((expr), (code), NULL, #expr, __FILE__, __LINE__))

/* The same, and the message must contain `text`. */
#define assert_brg_fails_with(expr, code, text)                                \
    (brg_error_clear(),                                                        \
     brg_test__fails((expr), (code), (text), #expr, __FILE__, __LINE__))

/* An expression that returns a pointer: not NULL, or NULL with this error. */
#define assert_brg_some(expr) brg_test__some((expr), #expr, __FILE__, __LINE__)
#define assert_brg_null(expr, code)                                            \
    (brg_error_clear(),                                                        \
     brg_test__null((expr), (code), NULL, #expr, __FILE__, __LINE__))
#define assert_brg_null_with(expr, code, text)                                 \
    (brg_error_clear(),                                                        \
     brg_test__null((expr), (code), (text), #expr, __FILE__, __LINE__))

void brg_test__ok(brg_status status, const char *expr, const char *file,
                  int line);
void brg_test__fails(brg_status status, brg_status code, const char *text,
                     const char *expr, const char *file, int line);
void *brg_test__some(void *ptr, const char *expr, const char *file, int line);
void brg_test__null(void *ptr, brg_status code, const char *text,
                    const char *expr, const char *file, int line);

/* BRG_TEST_DEVICE ("cuda") is where tensors are made, if it is set; a program
 * that finds no such device says so and exits with this status. */
#define BRG_TEST_SKIPPED 77

/* BRG_TEST_SEED or `fallback`; printed, so that a failure can be repeated. */
uint64_t brg_test_seed(uint64_t fallback);

/* A small generator for test data: splitmix64. */
uint64_t brg_test_random(uint64_t *state);
/* Uniform in [low, high). */
double brg_test_uniform(uint64_t *state, double low, double high);

/* How often the word stands in the text. */
size_t brg_test_count(const char *text, const char *word);

#endif
