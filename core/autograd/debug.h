/* SPDX-License-Identifier: Apache-2.0
 * Inside of anomaly mode, places and observers. */
#ifndef BRG_CORE_AUTOGRAD_DEBUG_H
#define BRG_CORE_AUTOGRAD_DEBUG_H

#include <brigade/debug.h>
#include <brigade/ext/op.h>

#include "core/autograd/node.h"

/* How many observers are to be told, 0 while paused; read before brg__observe is
 * called. */
extern _Thread_local int brg__n_observers;
/* While paused nobody is told, whoever is pushed meanwhile. Returns what it
 * was. */
bool brg__observers_pause(bool is_paused);
brg_status brg__observe(const brg_op_call *call);

/* The place of the op call that is being made, or file NULL. */
void brg__place_current(const char **file, int *line);

extern _Thread_local bool brg__anomaly_is_on;
/* Fails if a gradient that `node` gave has a NaN. */
brg_status brg__anomaly_check(const brg_node *node, brg_tensor *const *grad_in);
brg_status brg__has_nan(brg_tensor *t, bool *out);

#endif
