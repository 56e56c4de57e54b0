/* SPDX-License-Identifier: Apache-2.0
 * Captures that fail at a chosen step, and what must be left of them: nothing. */
#ifndef BRG_TESTS_COMPILE_FAILING_STEP_H
#define BRG_TESTS_COMPILE_FAILING_STEP_H

#include "compile/capture.h"
#include "tests/compile/chains.h"

static int steps_left;

static brg_status fails_at_last(void)
{
    if (steps_left-- > 0)
        return BRG_OK;
    return BRG_FAIL(BRG_ERR_CALLBACK, "this step fails");
}

/* From now on step n fails, if a capture gets as far. */
static inline void fail_step(int n)
{
    steps_left = n;
    brg__capture_step = fails_at_last;
}

/* Whether it did. */
static inline bool has_step_failed(void)
{
    brg__capture_step = NULL;
    return steps_left < 0;
}

static inline uint64_t bytes_in_use(void)
{
    brg_memory_stats memory;
    assert_brg_ok(brg_compile_reset());
    brg_memory_trim();
    brg_memory_get_stats(&memory);
    return memory.in_use;
}

#endif
