/* SPDX-License-Identifier: Apache-2.0
 * The compiler of a thread: what is in force (scopes.c), its plans
 * (plan_cache.c), why there are so many (reasons.c), and the runner that the
 * engine hands its tasks to (runner.c). */
#ifndef BRG_COMPILE_COMPILER_H
#define BRG_COMPILE_COMPILER_H

#include <brigade/compile.h>

#include "compile/plan_cache.h"
#include "core/autograd/engine.h"

#define BRG__MAX_COMPILE_SCOPES 32

typedef struct brg__compile_state {
    bool is_on;
    bool is_disabled;
    brg_compile_options options;
} brg__compile_state;

typedef struct brg__compiler {
    brg__runner base;
    brg__collected collected;
    brg__plan_cache cache;
    brg__compile_state now;
    brg__compile_state saved[BRG__MAX_COMPILE_SCOPES];
    int n_scopes;
    brg_compile_stats stats;
    bool is_running;
    bool is_registered; /* to be emptied when the thread exits */
    char reason[256];
} brg__compiler;

/* Of the calling thread. */
brg__compiler *brg__compiler_mine(void);

/* The engine's runner while compiled backward is on (runner.c). */
brg_status brg__compiler_run(brg__runner *self, brg__task *task);

/* ---- reasons.c ------------------------------------------------------------------- */

/* Why `plan` had to be captured; logged, and the plan with it. */
void brg__reason_of_capture(brg__compiler *c, const brg__plan *plan);
void brg__reason_of_fallback(brg__compiler *c, const char *why);

#endif
