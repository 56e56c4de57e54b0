/* SPDX-License-Identifier: Apache-2.0
 * A locale with a decimal comma, which few build machines have installed: its
 * one file, in glibc's format, is written to the test program's folder. */
#ifndef BRG_TESTS_SUPPORT_DECIMAL_COMMA_H
#define BRG_TESTS_SUPPORT_DECIMAL_COMMA_H

#include <libgen.h>
#include <locale.h>

#include "tests/support/brg_test.h"
#include "tests/support/temp_dir.h"

static inline void use_decimal_point(void)
{
    setlocale(LC_NUMERIC, "C");
}

/* Numbers are printed and read with a comma from now on. Skips the test where
 * the C library reads locales of another format. */
static inline void use_decimal_comma(void)
{
    /* Six fields: decimal point, separator of thousands, grouping, the first
     * two as wide characters, the character set. */
    static const struct {
        uint32_t magic, n, offsets[6];
        char point[2], separator[1], grouping[1];
        uint32_t wide_point, wide_separator;
        char charset[16];
    } file = {0x20031114, 6, {32, 34, 35, 36, 40, 44}, {","}, {'\0'}, {'\x7f'},
              ',',        0, "ANSI_X3.4-1968"};
    char path[4096], copy[4096], text[8];
    snprintf(path, sizeof path, "%s",
             temp_file("LC_NUMERIC", &file, sizeof file));
    char *folder = dirname(path);
    snprintf(copy, sizeof copy, "%s", folder);
    setenv("LOCPATH", dirname(copy), 1);
    if (!setlocale(LC_NUMERIC, basename(folder))) {
        print_message("no locale with a decimal comma can be made\n");
        skip();
    }
    snprintf(text, sizeof text, "%.1f", 2.5);
    assert_string_equal(text, "2,5");
}

#endif
