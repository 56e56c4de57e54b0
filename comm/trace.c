/* SPDX-License-Identifier: Apache-2.0
 * Records of a group's collectives. */
#include "comm/trace.h"

static void put_call(brg_pg *pg, const brg_call *call,
                     const brg_trace_record *given)
{
    brg_trace_record record = *given;
    record.coll = (uint8_t)call->coll;
    record.group = pg->number;
    record.reducer = call->reducer;
    record.bucket = brg__record_bucket(call->bucket);
    record.u.call.seq = call->seq;
    record.u.call.nbytes = call->nbytes;
    record.u.call.param = -1;
    record.u.call.peer = call->peer;
    brg__record_put(pg->trace, pg->end.place, &record);
}

void brg__record_call(brg_pg *pg, const brg_call *call, brg_trace_kind kind,
                      uint64_t span_ns)
{
    brg_trace_record record = {.kind = (uint8_t)kind};
    record.u.call.span_ns = span_ns;
    put_call(pg, call, &record);
}

void brg__record_complete_at(brg_work *work, uint64_t time_ns)
{
    brg_trace_record record = {.time_ns = time_ns, .kind = BRG_TRACE_COMPLETE};
    work->is_noted = true;
    put_call(work->pg, &work->call, &record);
}

void brg__record_completed(brg_pg *pg)
{
    for (brg_work *work = pg->in_flight; work; work = work->next)
        if (work->call.is_done)
            brg__record_complete(work);
}

void brg__record_progressed_at(const brg_call *call, int stage,
                               uint64_t time_ns)
{
    brg_pg *pg = brg__work_of(call)->pg;
    brg_trace_record record = {.time_ns = time_ns, .kind = BRG_TRACE_PROGRESS};
    record.u.call.value = stage;
    if (pg)
        put_call(pg, call, &record);
}

void brg__record_progressed(const brg_call *call, int stage)
{
    brg__record_progressed_at(call, stage, 0);
}

void brg__record_failure(brg_pg *pg)
{
    brg_trace_record record = {
        .kind = BRG_TRACE_FAIL, .group = pg->number, .bucket = -1};
    record.coll = UINT8_MAX;
    record.u.call.param = record.u.call.peer = -1;
    record.u.call.value = pg->error.code;
    brg__record_put(pg->trace, pg->end.place, &record);
    brg__error_restore(&pg->error);
    brg__record_dump_failed(pg->trace);
}
