/* SPDX-License-Identifier: Apache-2.0
 * A collective carried out at once, when the calls of all ranks are in this
 * process: what the group of one and the simulated world compute with. */
#ifndef BRG_COMM_LOCAL_H
#define BRG_COMM_LOCAL_H

#include <brigade/ext/backend.h>

#define BRG__LOCAL_MAX_RANKS 256

/* calls[r] is rank r's; all have the same signature. Sums run as in a world
 * whose nodes hold `node_size` ranks, the last one what remains (0: one
 * node). */
void brg__local_run(brg_call *const *calls, int n, int node_size);

#endif
