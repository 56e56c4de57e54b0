/* SPDX-License-Identifier: Apache-2.0
 * Text put together piece by piece in a buffer of fixed size: what does not
 * fit is counted and left out. For messages and dumps. Numbers in a text. */
#ifndef BRG_CORE_BASE_TEXT_H
#define BRG_CORE_BASE_TEXT_H

#include <stdbool.h>
#include <stddef.h>

#include <brigade/export.h>

typedef struct brg__text {
    char *at;
    size_t size;
    size_t length; /* of the whole text */
} brg__text;

/* `at` is terminated from now on, if size > 0. NULL: the text is only counted. */
brg__text brg__text_begin(char *at, size_t size);
void brg__text_add(brg__text *text, const char *format, ...) BRG_PRINTF(2, 3);

/* The finite number that the whole text is, with a decimal point under any
 * locale; false if it is none. */
bool brg__text_number(const char *text, double *filled);

#endif
