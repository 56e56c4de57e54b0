/* SPDX-License-Identifier: Apache-2.0
 * What is said when a wait has lasted too long: who has come and who has not,
 * and of those who have not, what they did last, and when. */
#include "comm/call.h"
#include "comm/trace.h"
#include "core/base/text.h"

#include <stdio.h>

#define MAX_DETAILS 2 /* ranks of which more than their number is said */

/* ---- What a rank did last ---------------------------------------------------- */

static double seconds(uint64_t ns)
{
    return 1e-9 * (double)ns;
}

/* A record may be newer than the look at the clock. */
static double age(uint64_t now, const brg_trace_record *r)
{
    return now > r->time_ns ? seconds(now - r->time_ns) : 0;
}

static void add_call(brg__text *text, const brg_trace_record *r)
{
    const char *name =
        r->coll < BRG_N_COLLS ? brg__coll_rows[r->coll].name : "a collective";
    brg__text_add(text, "%s #%llu", name, (unsigned long long)r->u.call.seq);
}

/* The reducers of a group are the same on all ranks, and so are their names;
 * numbers of groups are, where all ranks make them in one order. */
static void add_param(brg__text *text, const brg_pg *pg,
                      const brg_trace_record *r)
{
    char begin[48], name[160];
    snprintf(begin, sizeof begin, "param\t%u\t%u\t%d\t", r->group, r->reducer,
             (int)r->u.call.param);
    if (brg__record_find(pg->trace, begin, name, sizeof name))
        brg__text_add(text, "%s", name);
    else
        brg__text_add(text, "parameter %d", (int)r->u.call.param);
}

static void add_place(brg__text *text, const brg_pg *pg, const brg_peer *peer)
{
    brg__record_place *place = (void *)(uintptr_t)peer->place;
    brg_trace_record r;
    uint64_t now = peer->now_ns ? peer->now_ns : brg__record_now(NULL);
    if (!place)
        return;
    if (brg__record_read(&place->last, &r) && r.kind == BRG_TRACE_WAIT) {
        brg__text_add(text, "; waiting %.3g s for ", age(now, &r));
        add_call(text, &r);
    }
    if (brg__record_read(&place->gradient, &r)) {
        brg__text_add(text, "; %.3g s ago gradient of ", age(now, &r));
        add_param(text, pg, &r);
    }
    if (brg__record_read(&place->mark, &r)) {
        r.u.text[BRG_TRACE_TEXT_MAX - 1] = '\0';
        brg__text_add(text, "; %.3g s %s %s", age(now, &r),
                      r.kind == BRG_TRACE_BEGIN ? "in" : "after", r.u.text);
    }
}

/* ---- Who is late ---------------------------------------------------------------- */

/* How the others stand to a call. While some have not come, only they are late:
 * those that have come wait for them too. */
typedef struct view {
    const brg_pg *pg;
    const brg_call *call;
    size_t n_missing;
    size_t n_come;
    size_t n_unseen;
} view;

static bool look(const view *v, int rank, brg_peer *filled)
{
    const brg_group *end = &v->pg->end;
    *filled = (brg_peer){.is_visible = false};
    if (rank != end->rank)
        end->ops->look(end->group, v->call, rank, filled);
    return filled->is_visible;
}

static view look_around(const brg_pg *pg, const brg_call *call)
{
    view v = {.pg = pg, .call = call};
    for (int r = 0; r < pg->end.world_size; r++) {
        brg_peer peer;
        bool is_seen = look(&v, r, &peer);
        v.n_unseen += !is_seen && r != pg->end.rank;
        v.n_come += is_seen && peer.has_come;
        v.n_missing += is_seen && !peer.has_come && peer.owes;
    }
    return v;
}

static bool is_late(const view *v, const brg_peer *peer)
{
    return peer->owes && (v->n_missing == 0 || !peer->has_come);
}

static void add_late(brg__text *text, const brg_pg *pg, int rank,
                     const brg_peer *peer)
{
    char last[160];
    brg__text_add(text, "rank %d %s", rank, peer->owes);
    if (peer->has_last) {
        brg__signature_describe(&peer->last, last, sizeof last);
        brg__text_add(text, " (its last: %s", last);
    } else {
        brg__text_add(text, " (nor any other");
    }
    add_place(text, pg, peer);
    brg__text_add(text, ")");
}

typedef enum standing { HAS_COME, IS_LATE, IS_UNSEEN } standing;

static standing standing_of(const view *v, int rank)
{
    brg_peer peer;
    if (!look(v, rank, &peer))
        return IS_UNSEEN;
    return is_late(v, &peer) ? IS_LATE : HAS_COME;
}

/* "rank 0, 3 and 5 more": the others that stand so. */
static void add_ranks(brg__text *text, const view *v, standing which, int first)
{
    size_t n = 0;
    for (int r = first; r < v->pg->end.world_size; r++) {
        const bool is_mine = r == v->pg->end.rank;
        if (standing_of(v, r) != which || (is_mine && which == IS_UNSEEN))
            continue;
        if (n < 8)
            brg__text_add(text, "%s %d", n == 0 ? " rank" : ",", r);
        n++;
    }
    if (n > 8)
        brg__text_add(text, " and %zu more", n - 8);
}

static void add_all_late(brg__text *text, const view *v)
{
    size_t n_late = 0;
    int rest = 0; /* late ranks from here on are only named */
    for (int r = 0; r < v->pg->end.world_size; r++) {
        brg_peer peer;
        if (!look(v, r, &peer) || !is_late(v, &peer) || n_late++ >= MAX_DETAILS)
            continue;
        brg__text_add(text, n_late > 1 ? ", " : "; ");
        add_late(text, v->pg, r, &peer);
        rest = r + 1;
    }
    if (n_late > MAX_DETAILS) {
        brg__text_add(text, ", nor have come:");
        add_ranks(text, v, IS_LATE, rest);
    }
}

static void add_peers(brg__text *text, const view *v)
{
    if (v->n_come > 0 && v->n_missing > 0 && !brg__coll_is_p2p(v->call->coll)) {
        brg__text_add(text, "; here:");
        add_ranks(text, v, HAS_COME, 0);
    }
    add_all_late(text, v);
    if (v->n_missing == 0 && v->n_unseen > 0) {
        brg__text_add(text, "; of other nodes one has not come:");
        add_ranks(text, v, IS_UNSEEN, 0);
    }
}

brg_status brg__work_fail_timeout(const brg_work *work)
{
    const brg_pg *pg = work->pg;
    char call[160], why[BRG_ERROR_TEXT_MAX] = "", more[160] = "";
    brg__text text = brg__text_begin(why, sizeof why);
    brg__call_describe(&work->call, call, sizeof call);
    if (pg->end.ops->look) {
        view v = look_around(pg, &work->call);
        add_peers(&text, &v);
    }
    if (pg->end.ops->explain)
        pg->end.ops->explain(pg->end.group, &work->call, more, sizeof more);
    return BRG_FAIL(BRG_ERR_TIMEOUT, "rank %d: %s timed out after %g s%s%s%s",
                    pg->end.rank, call, seconds(pg->timeout_ns), why,
                    more[0] ? "; " : "", more);
}

brg_status brg__work_fail_peer(const brg_work *work)
{
    const brg_pg *pg = work->pg;
    char why[BRG_ERROR_TEXT_MAX] = "";
    brg__error_record first;
    brg__text text = brg__text_begin(why, sizeof why);
    if (!pg->end.ops->look)
        return BRG_ERR_PEER;
    view v = look_around(pg, &work->call);
    add_all_late(&text, &v);
    brg__error_save(&first);
    return brg_error_set(first.code, first.file, first.line, "%s%s", first.text,
                         why);
}
