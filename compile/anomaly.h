/* SPDX-License-Identifier: Apache-2.0
 * Anomaly mode of a compiled backward: NaN is looked for at the plan's ends,
 * so that what lies between stays as it is without the mode. */
#ifndef BRG_COMPILE_ANOMALY_H
#define BRG_COMPILE_ANOMALY_H

#include "core/autograd/engine.h"

/* Both do nothing while the mode is off. Before: fails if a .grad that the task
 * adds to has a NaN. After: fails naming all leaves, or all outputs of
 * brg_grad, that have one. */
brg_status brg__anomaly_before(const brg__task *task);
brg_status brg__anomaly_after(const brg__task *task);

#endif
