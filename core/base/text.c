/* SPDX-License-Identifier: Apache-2.0
 * Text put together piece by piece. */
#include "core/base/text.h"

#include <stdarg.h>
#include <stdio.h>

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
