/* SPDX-License-Identifier: Apache-2.0
 * Recording errors: BRG_FAIL where one is detected, BRG_TRY on the way up.
 * The record is thread-local, has a fixed size and never allocates. */
#ifndef BRG_CORE_BASE_ERROR_H
#define BRG_CORE_BASE_ERROR_H

#include <brigade/status.h>

#define BRG_ERROR_TEXT_MAX 512

typedef struct brg__error_record {
    brg_status code;
    int line;
    const char *file;
    char text[BRG_ERROR_TEXT_MAX];
} brg__error_record;

/* Record and return `code`. */
#define BRG_FAIL(code, ...)                                                    \
    brg_error_set((code), __FILE__, __LINE__, __VA_ARGS__)

/* Out of memory: says what was asked for. */
#define BRG_FAIL_NOMEM(what, nbytes)                                           \
    BRG_FAIL(BRG_ERR_NOMEM, "out of memory: %zu bytes for %s",                 \
             (size_t)(nbytes), (what))

/* A public entry point's check of one of its arguments. */
#define BRG_CHECK_ARG(cond, ...)                                               \
    do {                                                                       \
        if (!(cond))                                                           \
            return BRG_FAIL(BRG_ERR_ARG, __VA_ARGS__);                         \
    } while (0)

/* The same for functions that return a pointer. */
#define BRG_CHECK_ARG_NULL(cond, ...)                                          \
    do {                                                                       \
        if (!(cond)) {                                                         \
            (void)BRG_FAIL(BRG_ERR_ARG, __VA_ARGS__);                          \
            return NULL;                                                       \
        }                                                                      \
    } while (0)

/* The code of the record, or BRG_ERR_ARG if nothing failed yet: what a call
 * returns that was handed the NULL of a failed expression. */
brg_status brg__error_pending(const char *format, ...) BRG_PRINTF(1, 2);

/* Carrying a record from one thread to another. */
void brg__error_save(brg__error_record *filled);
void brg__error_restore(const brg__error_record *record);

/* Puts words before the recorded message ("in layer 3: ..."); keeps code and
 * place. Returns the recorded code. */
brg_status brg__error_prefix(const char *format, ...) BRG_PRINTF(1, 2);

/* After a callback of the user's: a failure that it has not recorded becomes a
 * record that names it; one of before must not speak for it. */
#define BRG_EXPLAIN(status, ...)                                               \
    do {                                                                       \
        if ((status) != BRG_OK && (status) != brg_error_code())                \
            brg__error_explain((status), __FILE__, __LINE__, __VA_ARGS__);     \
    } while (0)

void brg__error_explain(brg_status status, const char *file, int line,
                        const char *format, ...) BRG_PRINTF(4, 5);

#endif
