/* SPDX-License-Identifier: Apache-2.0
 * Capture: the walk of the engine with symbols instead of tensors. Nothing of
 * the graph is changed, no user code runs. */
#ifndef BRG_COMPILE_CAPTURE_H
#define BRG_COMPILE_CAPTURE_H

#include "compile/collect.h"
#include "compile/ir.h"

/* Fills an empty ir from a task whose roots are ready. The task is as before
 * afterwards, whether it succeeds or fails. */
brg_status brg__capture_task(brg__ir *ir, brg__task *task,
                             const brg__collected *c);

/* Asked at each step of a capture, unless it is NULL: a test makes them fail.
 * Steps are each visit's beginning, what comes before its rule, the rule, what
 * comes after it, and each op that a rule calls; of a function's capture, each
 * op, effect, leaf and result, and what comes before and after the call. */
extern brg_status (*brg__capture_step)(void);
brg_status brg__capture_point(void);

#endif
