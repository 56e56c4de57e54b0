/* SPDX-License-Identifier: Apache-2.0
 * What is done to a plan between capture and the first executable: the rows of
 * passes.def, in their order. A pass takes a verified plan and leaves one; it
 * edits with ir_edit.c. If it fails, the plan is no good any more. */
#ifndef BRG_COMPILE_PASSES_H
#define BRG_COMPILE_PASSES_H

#include <brigade/compile.h>

#include "compile/ir.h"

#define BRG_PASS(name, backend, why) brg_status brg__pass_##name(brg__ir *ir);
#include "compile/passes/passes.def"
#undef BRG_PASS

/* Those of the backend; the plan is verified before the first and after each.
 * With BRG_COMPILE_DUMP=1 it is logged before and after each. */
brg_status brg__passes_run(brg__ir *ir, brg_compile_backend backend);

#endif
