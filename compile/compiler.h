/* SPDX-License-Identifier: Apache-2.0
 * The compiler of a thread: what is in force (scopes.c), its plans
 * (plan_cache.c), why there are so many (reasons.c), and the runner that the
 * engine hands its tasks to (runner.c). */
#ifndef BRG_COMPILE_COMPILER_H
#define BRG_COMPILE_COMPILER_H

#include <brigade/compile.h>
#include <brigade/runtime.h>

#include "compile/plan_cache.h"
#include "core/autograd/engine.h"

#define BRG__MAX_COMPILE_SCOPES 32
#define BRG__MAX_RECORDS 64

typedef struct brg__compile_state {
    bool is_on;
    bool is_disabled;
    brg_compile_options options; /* no DEFAULT among them */
    brg_log_level log_level;     /* where the scope began */
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
    brg_compile_record records[BRG__MAX_RECORDS]; /* a ring */
    uint64_t n_records;
} brg__compiler;

/* Of the calling thread. */
brg__compiler *brg__compiler_mine(void);

/* The engine's runner while compiled backward is on (runner.c). */
brg_status brg__compiler_run(brg__runner *self, brg__task *task);

/* ---- scopes.c --------------------------------------------------------------------- */

/* Copies `given` (or the defaults) with `dynamic` in the place of DEFAULT. */
brg_status brg__compile_options_init(brg_compile_options *options,
                                     const brg_compile_options *given,
                                     brg_compile_dynamic dynamic);
/* Ends all scopes begun inside `scope`, and it. True if there were none. */
bool brg__compile_unwind(int scope);

/* Functions may be captured here: not in a disabled scope, and not in one that
 * is being captured, of which they become a part. */
bool brg__compile_may_capture(void);

/* Forced, or no scope is open any more: a hook, or what else a plan called, may
 * have ended it while the runner stayed. */
bool brg__compile_is_eager(void);

/* ---- reasons.c -------------------------------------------------------------------- */

/* Why there will be one plan more: no plan has the node, or `sibling` (or NULL)
 * has it all but for sizes. Before the capture; logged by the next. */
void brg__reason_of_miss(brg__compiler *c, const brg__task *task,
                         const brg__plan *sibling);
/* The plan captured for the last miss. */
void brg__reason_log_plan(const brg__compiler *c, const brg__task *task,
                          const brg__plan *plan);
void brg__reason_of_fallback(brg__compiler *c, const char *why);
/* `plan` NULL: it is a step's. */
void brg__reason_of_skip(brg__compiler *c, const brg__plan *plan,
                         const char *why);

#endif
