/* SPDX-License-Identifier: Apache-2.0
 * Text put together piece by piece, numbers read from one. */
#include "core/base/text.h"

#include <locale.h>
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

brg__text brg__text_begin(char *at, size_t size)
{
    if (!at)
        size = 0;
    if (size > 0)
        at[0] = '\0';
    return (brg__text){.at = at, .size = size};
}

void brg__text_add(brg__text *text, const char *format, ...)
{
    size_t used = text->length < text->size ? text->length : text->size;
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text->at ? text->at + used : NULL, text->size - used,
                      format, args);
    va_end(args);
    text->length += n > 0 ? (size_t)n : 0;
}

static locale_t c_locale; /* for good */

static void make_c_locale(void)
{
    c_locale = newlocale(LC_ALL_MASK, "C", (locale_t)0);
}

bool brg__text_number(const char *text, double *filled)
{
    static pthread_once_t is_made = PTHREAD_ONCE_INIT;
    char *end;
    (void)pthread_once(&is_made, make_c_locale);
    *filled = c_locale ? strtod_l(text, &end, c_locale) : strtod(text, &end);
    return end != text && *end == '\0' && isfinite(*filled);
}
