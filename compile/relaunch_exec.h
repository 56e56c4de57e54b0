/* SPDX-License-Identifier: Apache-2.0
 * The ops of a compiled backward on a device, recorded once and launched again.
 * The graph reads parameters where they lie; everything else that a run brings
 * is copied to where the graph reads it, a number from the host too, and what
 * leaves and callers get is copied from where it left it. */
#ifndef BRG_COMPILE_RELAUNCH_EXEC_H
#define BRG_COMPILE_RELAUNCH_EXEC_H

#include "compile/run_inside.h"

/* Of an executable that brg__replay_allows: exec->again, or NULL if the device
 * of what was collected does not record. */
brg_status brg__exec_again_create(brg__exec *exec, const brg__collected *c);
void brg__exec_again_destroy(brg__exec *exec);

/* Whether the next run is recorded or launched; counts it. */
bool brg__exec_again_serves(const brg__exec *exec);
/* All steps of the run. */
brg_status brg__exec_again_run(brg__running *r);

#endif
