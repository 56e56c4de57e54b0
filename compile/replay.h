/* SPDX-License-Identifier: Apache-2.0
 * Whether an executable can be replayed as one graph of device kernels: all it
 * does is queued on one device, with the same arguments each time. */
#ifndef BRG_COMPILE_REPLAY_H
#define BRG_COMPILE_REPLAY_H

#include "compile/plan_cache.h"

/* False: why[0..size) says what is in the way. A host tensor of one number that
 * only built-in ops read is no obstacle: it can be moved once. */
bool brg__replay_allows(const brg__plan *plan, const brg__task *task,
                        const brg__collected *c, char *why, size_t size);

#endif
