/* SPDX-License-Identifier: Apache-2.0
 * Recorded runs as arrivals of calls in the simulated world. */
#include <brigade/trace.h>

#include "comm/call.h"
#include "comm/sim/world.h"

/* One rank's records of the group. */
typedef struct lane {
    const brg_trace_record *records;
    size_t n;
    int rank;
    int group;
    int64_t offset;
    bool has_failed;
    uint64_t first_seq; /* of a collective that it started; none: UINT64_MAX */
    uint64_t last_seq;  /* none: UINT64_MAX */
} lane;

static bool is_start(const lane *l, size_t i)
{
    return l->records[i].kind == BRG_TRACE_START &&
           l->records[i].group == l->group;
}

static bool is_collective(const brg_trace_record *r)
{
    return !brg__coll_is_p2p((brg_coll)r->coll);
}

static void scan(lane *l)
{
    l->first_seq = l->last_seq = UINT64_MAX;
    for (size_t i = 0; i < l->n; i++) {
        if (!is_start(l, i) || !is_collective(&l->records[i]))
            continue;
        uint64_t seq = l->records[i].u.call.seq;
        l->first_seq = l->first_seq == UINT64_MAX ? seq : l->first_seq;
        l->last_seq = seq;
    }
}

/* When the call of a START record came: then, or as a later record says. */
static uint64_t arrival_of(const lane *l, size_t i)
{
    const brg_trace_record *start = &l->records[i];
    uint64_t at = start->time_ns;
    for (size_t k = i + 1; k < l->n && !is_start(l, k); k++) {
        const brg_trace_record *r = &l->records[k];
        if (r->kind == BRG_TRACE_PROGRESS && r->group == l->group &&
            r->u.call.value == BRG_TRACE_ARRIVED && r->coll == start->coll &&
            r->u.call.seq == start->u.call.seq)
            at = r->time_ns;
    }
    return (uint64_t)((int64_t)at + l->offset);
}

typedef struct list {
    struct brg_sim_arrival *at;
    size_t size;
    size_t n;
} list;

static void push(list *out, int rank, uint64_t call, uint64_t at)
{
    if (out->n < out->size)
        out->at[out->n] = (struct brg_sim_arrival){rank, call, at};
    out->n++;
}

/* From the start of collective `first` on. */
static void list_lane(list *out, const lane *l, uint64_t first, uint64_t last)
{
    uint64_t call = 0;
    bool has_begun = false;
    for (size_t i = 0; i < l->n; i++) {
        const brg_trace_record *r = &l->records[i];
        if (!is_start(l, i))
            continue;
        has_begun |= is_collective(r) && r->u.call.seq == first;
        if (has_begun)
            push(out, l->rank, call++, arrival_of(l, i));
    }
    bool is_behind =
        last != UINT64_MAX && (l->last_seq == UINT64_MAX || l->last_seq < last);
    if (is_behind && l->has_failed)
        push(out, l->rank, call, UINT64_MAX);
}

/* Time 0 is the first arrival. */
static void rebase(list *out)
{
    size_t n = out->n < out->size ? out->n : out->size;
    uint64_t first = UINT64_MAX;
    for (size_t i = 0; i < n; i++)
        first = out->at[i].at_ns < first ? out->at[i].at_ns : first;
    for (size_t i = 0; i < n; i++)
        if (out->at[i].at_ns != UINT64_MAX)
            out->at[i].at_ns -= first;
}

static void list_all(list *out, lane *lanes, size_t n)
{
    uint64_t first = 0, last = UINT64_MAX;
    bool has_failed = false;
    for (size_t r = 0; r < n; r++) {
        scan(&lanes[r]);
        has_failed |= lanes[r].has_failed;
        if (lanes[r].first_seq != UINT64_MAX && lanes[r].first_seq > first)
            first = lanes[r].first_seq;
        if (lanes[r].last_seq != UINT64_MAX &&
            (last == UINT64_MAX || lanes[r].last_seq > last))
            last = lanes[r].last_seq;
    }
    for (size_t r = 0; r < n; r++) {
        lanes[r].has_failed = has_failed;
        list_lane(out, &lanes[r], first, last);
    }
    rebase(out);
}

brg_status brg_sim_arrivals_of(struct brg_sim_arrival *filled, size_t size,
                               size_t *n, struct brg_trace *const *traces,
                               size_t n_traces, int group)
{
    BRG_CHECK_ARG(n && traces && n_traces > 0 && (filled || size == 0),
                  "brg_sim_arrivals_of: an argument is missing");
    *n = 0;
    lane *lanes = brg__mem_alloc_array(n_traces, sizeof *lanes, "traces");
    int64_t *offsets =
        brg__mem_alloc_array(n_traces, sizeof *offsets, "offsets of clocks");
    brg_status status = lanes && offsets ? BRG_OK : BRG_ERR_NOMEM;
    if (status == BRG_OK)
        status = brg_trace_align(traces, n_traces, offsets);
    list out = {.at = filled, .size = size};
    for (size_t r = 0; r < n_traces && status == BRG_OK; r++) {
        const brg_trace_header *header = brg_trace_get_header(traces[r]);
        lanes[r] = (lane){.rank = header->rank,
                          .group = group,
                          .offset = offsets[r],
                          .has_failed = header->reason == BRG_TRACE_FAILED};
        lanes[r].records = brg_trace_records(traces[r], &lanes[r].n);
    }
    if (status == BRG_OK)
        list_all(&out, lanes, n_traces);
    *n = out.n;
    brg__mem_free(lanes);
    brg__mem_free(offsets);
    return status;
}
