/* SPDX-License-Identifier: Apache-2.0
 * The progress hook: what a process group wants called while its thread
 * computes, since nothing else moves its messages.
 *
 * The engine calls brg__progress_poll between graph nodes, and long kernels
 * call it at row-block boundaries. Registrations belong to the calling
 * thread. Polls are rate-limited by what one in vain costs: if the cheapest of
 * late took c, the next comes no sooner than 50 c after the last (2% of the
 * step) but at most 10 ms, and at least BRG_POLL_US. What a poll takes beyond
 * that is work (sums, copies to and from sockets) which has to be done anyway,
 * and which comes too late if it is put off. */
#ifndef BRG_CORE_BASE_PROGRESS_H
#define BRG_CORE_BASE_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

#include <brigade/status.h>

typedef void (*brg__progress_fn)(void *user);

brg_status brg__progress_register(brg__progress_fn fn, void *user);
void brg__progress_unregister(brg__progress_fn fn, void *user);

/* How many functions this thread has; read inline so that an idle poll costs
 * one load. */
extern _Thread_local int brg__progress_n;
void brg__progress_poll_now(void);

static inline void brg__progress_poll(void)
{
    if (brg__progress_n != 0)
        brg__progress_poll_now();
}

/* Polls of this thread so far, and nanoseconds spent in them. */
void brg__progress_stats(uint64_t *n_polls, uint64_t *spent_ns);

#endif
