/* SPDX-License-Identifier: Apache-2.0
 * The thread's error record, and names and texts of the status codes. */
#include "core/base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static _Thread_local brg__error_record last = {BRG_OK, 0, "", ""};

const char *brg_status_name(brg_status status)
{
    switch (status) {
#define NAME_CASE(name, value, text)                                           \
    case BRG_##name:                                                           \
        return "BRG_" #name;
        BRG_STATUS_MAP(NAME_CASE)
#undef NAME_CASE
    }
    return "BRG_ERR_UNKNOWN";
}

const char *brg_status_text(brg_status status)
{
    switch (status) {
#define TEXT_CASE(name, value, text)                                           \
    case BRG_##name:                                                           \
        return text;
        BRG_STATUS_MAP(TEXT_CASE)
#undef TEXT_CASE
    }
    return "unknown status";
}

brg_status brg_error_code(void)
{
    return last.code;
}

const char *brg_error_message(void)
{
    return last.text;
}

const char *brg_error_file(void)
{
    return last.file;
}

int brg_error_line(void)
{
    return last.line;
}

void brg_error_clear(void)
{
    last.code = BRG_OK;
    last.file = "";
    last.line = 0;
    last.text[0] = '\0';
}

brg_status brg_error_set(brg_status code, const char *file, int line,
                         const char *format, ...)
{
    va_list args;
    va_start(args, format);
    /* Into a buffer of its own: the arguments may quote the old message. */
    char text[BRG_ERROR_TEXT_MAX];
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    memcpy(last.text, text, sizeof text);
    last.code = code;
    last.file = file;
    last.line = line;
    return code;
}

brg_status brg__error_pending(const char *format, ...)
{
    if (last.code != BRG_OK)
        return last.code;
    char what[96];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    return BRG_FAIL(BRG_ERR_ARG, "%s is NULL", what);
}

void brg__error_save(brg__error_record *filled)
{
    *filled = last;
}

void brg__error_restore(const brg__error_record *record)
{
    last = *record;
}

void brg__error_explain(brg_status status, const char *file, int line,
                        const char *format, ...)
{
    char who[128];
    va_list args;
    va_start(args, format);
    vsnprintf(who, sizeof who, format, args);
    va_end(args);
    (void)brg_error_set(
        status, file, line,
        "%s returned %s (%s) without a message of its own%s%s", who,
        brg_status_name(status), brg_status_text(status),
        last.code == BRG_OK ? "" : "; the last error before it: ", last.text);
}

brg_status brg__error_prefix(const char *format, ...)
{
    char text[BRG_ERROR_TEXT_MAX];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (n < 0 || (size_t)n >= sizeof text)
        n = (int)sizeof text - 1;
    snprintf(text + n, sizeof text - (size_t)n, "%s", last.text);
    memcpy(last.text, text, sizeof text);
    if (last.code == BRG_OK) /* a failure all the same */
        last.code = BRG_ERR_INTERNAL;
    return last.code;
}
