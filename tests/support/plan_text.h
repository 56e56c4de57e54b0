/* SPDX-License-Identifier: Apache-2.0
 * The text of plans, for tests that look at it. */
#ifndef BRG_TESTS_SUPPORT_PLAN_TEXT_H
#define BRG_TESTS_SUPPORT_PLAN_TEXT_H

#include <brigade/compile.h>

#include "tests/support/brg_test.h"

/* All of plan i, until the next call; fails where there is none. */
static inline const char *plan_text(size_t i)
{
    static char text[1 << 16];
    const size_t n = brg_compile_print(i, text, sizeof text);
    assert_in_range(n, 1, sizeof text - 1);
    return text;
}

#endif
