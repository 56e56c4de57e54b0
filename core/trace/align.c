/* SPDX-License-Identifier: Apache-2.0
 * Clocks of several ranks, from what they did together: no rank leaves an
 * all-reduce before every rank has come to it. With o the number to be added
 * to clock b,
 *
 *     start_a <= complete_b + o       start_b + o <= complete_a
 *
 * for every such collective, so o lies between the largest start_a - complete_b
 * and the smallest complete_a - start_b. */
#include <stdlib.h>
#include <string.h>

#include <brigade/ext/backend.h>

#include "core/base/array.h"
#include "core/trace/ring.h"

/* A collective as one rank saw it; 0: not. */
typedef struct meeting {
    uint64_t group;
    uint64_t seq;
    uint64_t start;
    uint64_t complete;
} meeting;

typedef BRG__ARRAY(meeting) meetings;

static bool holds_all(uint8_t coll)
{
    return coll == BRG_COLL_ALL_REDUCE || coll == BRG_COLL_REDUCE_SCATTER ||
           coll == BRG_COLL_ALL_GATHER || coll == BRG_COLL_BARRIER ||
           coll == BRG_COLL_SUM_LEAVES;
}

static int compare(const void *a, const void *b)
{
    const meeting *x = a, *y = b;
    if (x->group != y->group)
        return x->group < y->group ? -1 : 1;
    if (x->seq != y->seq)
        return x->seq < y->seq ? -1 : 1;
    return 0;
}

/* One entry a collective, sorted; false: no memory. */
static bool list_meetings(meetings *list, const brg_trace *trace)
{
    size_t n, n_merged = 0;
    const brg_trace_record *r = brg_trace_records(trace, &n);
    for (size_t i = 0; i < n; i++) {
        bool is_start = r[i].kind == BRG_TRACE_START;
        if ((!is_start && r[i].kind != BRG_TRACE_COMPLETE) ||
            !holds_all(r[i].coll))
            continue;
        meeting m = {.group = r[i].group, .seq = r[i].u.call.seq};
        *(is_start ? &m.start : &m.complete) = r[i].time_ns;
        if (brg__array_push(list, m) != BRG_OK)
            return false;
    }
    if (list->n)
        qsort(list->at, list->n, sizeof(meeting), compare);
    for (size_t i = 0; i < list->n; i++) {
        meeting *last = n_merged ? &list->at[n_merged - 1] : NULL;
        if (!last || compare(last, &list->at[i]) != 0) {
            list->at[n_merged++] = list->at[i];
            continue;
        }
        last->start = last->start ? last->start : list->at[i].start;
        last->complete = last->complete ? last->complete : list->at[i].complete;
    }
    list->n = n_merged;
    return true;
}

typedef struct bounds {
    bool is_bound;
    int64_t low;
    int64_t high;
} bounds;

/* What two ranks did together. */
static void narrow(bounds *limit, const meetings *a, const meetings *b)
{
    for (size_t i = 0, j = 0; i < a->n && j < b->n;) {
        const meeting *x = &a->at[i], *y = &b->at[j];
        int order = compare(x, y);
        i += order <= 0;
        j += order >= 0;
        if (order != 0 || !x->start || !x->complete || !y->start ||
            !y->complete)
            continue;
        int64_t low = (int64_t)(x->start - y->complete);
        int64_t high = (int64_t)(x->complete - y->start);
        limit->low = !limit->is_bound || low > limit->low ? low : limit->low;
        limit->high =
            !limit->is_bound || high < limit->high ? high : limit->high;
        limit->is_bound = true;
    }
}

/* Of the clock of trace r. */
static int64_t offset_of(brg_trace *const *traces, const meetings *lists,
                         size_t n, size_t r)
{
    const brg_trace_header *first = brg_trace_get_header(traces[0]);
    const brg_trace_header *mine = brg_trace_get_header(traces[r]);
    bounds limit = {.is_bound = false};
    if (mine->clock == first->clock)
        return 0;
    for (size_t a = 0; a < n; a++)
        for (size_t b = 0; b < n; b++)
            if (brg_trace_get_header(traces[a])->clock == first->clock &&
                brg_trace_get_header(traces[b])->clock == mine->clock)
                narrow(&limit, &lists[a], &lists[b]);
    if (limit.is_bound)
        return limit.low + (limit.high - limit.low) / 2;
    return (mine->wall_ns - (int64_t)mine->time_ns) -
           (first->wall_ns - (int64_t)first->time_ns);
}

brg_status brg_trace_align(brg_trace *const *traces, size_t n, int64_t *filled)
{
    bool is_listed = true;
    BRG_CHECK_ARG(traces && filled && n > 0,
                  "brg_trace_align: there are no traces");
    memset(filled, 0, n * sizeof *filled);
    meetings *lists =
        brg__mem_alloc_array(n + 1, sizeof *lists, "collectives of traces");
    for (size_t r = 0; lists && r < n && is_listed; r++)
        is_listed = list_meetings(&lists[r], traces[r]);
    for (size_t r = 0; lists && is_listed && r < n; r++)
        filled[r] = offset_of(traces, lists, n, r);
    for (size_t r = 0; lists && r < n; r++)
        brg__array_deinit(&lists[r]);
    is_listed &= lists != NULL;
    brg__mem_free(lists);
    return is_listed ? BRG_OK : BRG_ERR_NOMEM;
}
