/* SPDX-License-Identifier: Apache-2.0
 * Records of a group's collectives. The group's thread calls all of this. */
#ifndef BRG_COMM_TRACE_H
#define BRG_COMM_TRACE_H

#include "comm/work.h"

/* A record of this call, now. */
void brg__record_call(brg_pg *pg, const brg_call *call, brg_trace_kind kind,
                      uint64_t span_ns);

/* A work that is done is noted once, at `time_ns` (0: now). */
void brg__record_complete_at(brg_work *work, uint64_t time_ns);
static inline void brg__record_complete(brg_work *work)
{
    if (!work->is_noted)
        brg__record_complete_at(work, 0);
}

/* All of a group's that are done and have not been. */
void brg__record_completed(brg_pg *pg);

/* brg_host.progressed; the same at a time. */
void brg__record_progressed(const brg_call *call, int stage);
void brg__record_progressed_at(const brg_call *call, int stage,
                               uint64_t time_ns);

/* The group has failed, with the thread's record: notes it, writes the rank's
 * records to the folder. */
void brg__record_failure(brg_pg *pg);

/* As records hold a bucket's number. */
static inline int16_t brg__record_bucket(int64_t bucket)
{
    return bucket >= 0 && bucket <= INT16_MAX ? (int16_t)bucket : -1;
}

#endif
