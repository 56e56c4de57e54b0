/* SPDX-License-Identifier: Apache-2.0
 * brigade trace: what the ranks' traces say together: who is late, how much of
 * the communication was hidden; a file for Perfetto, a picture of one step. */
#include <stdlib.h>
#include <string.h>

#include "tools/commands.h"
#include "tools/trace_view.h"

const char tool_trace_help[] =
    "usage: brigade trace [option...] <folder or file...>\n"
    "Puts the traces of several ranks on one clock and says what they show:\n"
    "steps and how long they waited, who was last to start collectives, and\n"
    "after a failure which rank is late.\n"
    "  --json <file>   writes trace events, for ui.perfetto.dev\n"
    "  --svg <file>    draws one step: buckets under the backward pass\n"
    "  --step <n>      of that picture, from 1 (the last whole one)\n"
    "A folder's files are those that end in .trace.\n";

typedef struct options {
    const char *json;
    const char *svg;
    size_t step; /* 0: the last */
    char **paths;
    size_t n_paths;
} options;

static int parse(int argc, char **argv, options *o)
{
    for (int i = 1; i < argc; i++) {
        const char **text = strcmp(argv[i], "--json") == 0  ? &o->json
                            : strcmp(argv[i], "--svg") == 0 ? &o->svg
                                                            : NULL;
        bool is_step = strcmp(argv[i], "--step") == 0;
        if ((text || is_step) && i + 1 == argc)
            return tool_usage("trace", "expected something after", argv[i]);
        if (text)
            *text = argv[++i];
        else if (is_step && !tool_parse_bytes(argv[++i], &o->step))
            return tool_usage("trace", "expected a number after", argv[i - 1]);
        else if (!is_step && argv[i][0] == '-')
            return tool_usage("trace", "unexpected argument", argv[i]);
        else if (!is_step)
            o->paths[o->n_paths++] = argv[i];
    }
    return o->n_paths ? 0 : tool_usage("trace", "missing argument", "folder");
}

/* ---- What was hidden ------------------------------------------------------------- */

/* Of all buckets of a rank, in ns: how long one was on its way at least, and
 * waited for. */
typedef struct overlap {
    int64_t busy;
    int64_t waited;
} overlap;

static overlap measure(const lane *l)
{
    overlap o = {0, 0};
    int64_t until = INT64_MIN;
    for (size_t i = 0; i < l->n; i++) {
        const item *it = &l->items[i];
        if (it->is_open || it->record->bucket < 0)
            continue;
        if (it->kind == ITEM_WAIT)
            o.waited += it->end - it->begin;
        if (it->kind != ITEM_CALL || it->end <= until)
            continue;
        o.busy += it->end - (it->begin > until ? it->begin : until);
        until = it->end;
    }
    return o;
}

static size_t count_steps(const view *v)
{
    int64_t begin, end;
    size_t n = 0;
    while (view_step(v, n, &begin, &end))
        n++;
    return n;
}

static void print_ranks(const view *v)
{
    for (size_t i = 0; i < v->n; i++) {
        const lane *l = &v->lanes[i];
        const brg_trace_header *h = brg_trace_get_header(l->trace);
        overlap o = measure(l);
        size_t n;
        (void)brg_trace_records(l->trace, &n);
        printf("rank %d: %zu records, %llu lost, clock %+.3f us", l->rank, n,
               (unsigned long long)h->n_lost, 1e-3 * (double)l->offset);
        if (o.busy > 0)
            printf("; buckets %.3f ms on their way, %.3f ms waited, %.1f%% "
                   "hidden",
                   1e-6 * (double)o.busy, 1e-6 * (double)o.waited,
                   o.waited < o.busy
                       ? 100 - 100 * (double)o.waited / (double)o.busy
                       : 0);
        printf("\n");
    }
}

/* ---- Who comes last --------------------------------------------------------------- */

/* Of a rank: in how many collectives it was the last, and how long after the
 * one before it, altogether. */
typedef struct straggler {
    size_t n;
    int64_t behind;
    size_t at; /* the lane's items below are over */
} straggler;

static bool is_collective(const item *it)
{
    uint8_t coll = it->record->coll;
    return it->kind == ITEM_CALL && coll != BRG_COLL_SEND &&
           coll != BRG_COLL_RECV;
}

/* The same collective in this lane, which has them in order. */
static const item *match(const lane *l, const item *call, straggler *s)
{
    for (size_t i = s->at; i < l->n; i++) {
        const item *it = &l->items[i];
        if (is_collective(it) && it->record->group == call->record->group &&
            it->record->u.call.seq == call->record->u.call.seq) {
            s->at = i;
            return it;
        }
    }
    return NULL;
}

static bool count_last(const view *v, const item *call, straggler *all)
{
    int64_t last = call->begin, before = INT64_MIN;
    size_t who = 0;
    for (size_t r = 1; r < v->n; r++) {
        const item *it = match(&v->lanes[r], call, &all[r]);
        if (!it)
            return false;
        before = it->begin > last     ? last
                 : it->begin > before ? it->begin
                                      : before;
        who = it->begin > last ? r : who;
        last = it->begin > last ? it->begin : last;
    }
    all[who].n++;
    all[who].behind += last - before;
    return true;
}

static void print_stragglers(const view *v)
{
    straggler *all = calloc(v->n, sizeof *all);
    size_t n = 0;
    for (size_t i = 0; all && v->n > 1 && i < v->lanes[0].n; i++)
        if (is_collective(&v->lanes[0].items[i]))
            n += count_last(v, &v->lanes[0].items[i], all);
    for (size_t r = 0; all && r < v->n; r++)
        if (all[r].n > 0)
            printf("rank %d: the last to start %zu of %zu collectives, %.3f ms "
                   "behind the one before it\n",
                   v->lanes[r].rank, all[r].n, n, 1e-6 * (double)all[r].behind);
    free(all);
}

/* ---- Who is late ------------------------------------------------------------------ */

/* The newest item of a kind in this group; NULL: none. */
static const item *last_of(const lane *l, item_kind kind, int group)
{
    for (size_t i = l->n; i-- > 0;)
        if (l->items[i].kind == kind && l->items[i].record->group == group)
            return &l->items[i];
    return NULL;
}

static const item *failure_of(const lane *l)
{
    for (size_t i = l->n; i-- > 0;)
        if (l->items[i].record->kind == BRG_TRACE_FAIL)
            return &l->items[i];
    return NULL;
}

static void print_place(const lane *l, int group)
{
    char name[160];
    const item *call = last_of(l, ITEM_CALL, group);
    const item *gradient = last_of(l, ITEM_GRADIENT, group);
    if (call) {
        view_name(l, call, name, sizeof name);
        printf(" last started %s", name);
        if (call->record->bucket >= 0)
            printf(" (bucket %d)", call->record->bucket);
    } else {
        printf(" started nothing");
    }
    if (gradient) {
        view_name(l, gradient, name, sizeof name);
        printf(", last gradient %s", name);
    }
    for (size_t i = 0; i < l->n; i++)
        if (l->items[i].kind == ITEM_SPAN && l->items[i].is_open)
            printf(", in %s", l->items[i].record->u.text);
    printf("\n");
}

/* Ranks that have started fewer collectives than others. */
static void print_late(const view *v)
{
    const item *failure = NULL;
    uint64_t newest = 0;
    for (size_t i = 0; i < v->n && !failure; i++)
        failure = failure_of(&v->lanes[i]);
    if (!failure)
        return;
    int group = failure->record->group;
    for (size_t i = 0; i < v->n; i++) {
        const item *call = last_of(&v->lanes[i], ITEM_CALL, group);
        if (call && call->record->u.call.seq > newest)
            newest = call->record->u.call.seq;
    }
    for (size_t i = 0; i < v->n; i++) {
        const lane *l = &v->lanes[i];
        const item *call = last_of(l, ITEM_CALL, group);
        bool is_late = !call || call->record->u.call.seq < newest;
        printf("rank %d%s:", l->rank, is_late ? " is late" : "");
        print_place(l, group);
        if (brg_trace_error(l->trace))
            printf("  %s\n", brg_trace_error(l->trace));
    }
    int world_size = brg_trace_get_header(v->lanes[0].trace)->world_size;
    if ((size_t)world_size > v->n)
        printf("%zu of %d ranks wrote nothing\n", (size_t)world_size - v->n,
               world_size);
}

/* ---- Output ------------------------------------------------------------------------- */

static int write_file(const char *path, const view *v, const int64_t step[2])
{
    FILE *file = fopen(path, "w");
    bool is_good = file && (step ? view_write_svg(v, step[0], step[1], file)
                                 : view_write_json(v, file));
    if (file)
        is_good = fclose(file) == 0 && is_good;
    if (!is_good)
        fprintf(stderr, "brigade trace: cannot write %s\n", path);
    return is_good ? 0 : 1;
}

static int draw(const options *o, const view *v, size_t n_steps)
{
    int64_t step[2];
    size_t k = o->step ? o->step : n_steps;
    if (k == 0 || !view_step(v, k - 1, &step[0], &step[1]) ||
        step[1] <= step[0]) {
        fprintf(stderr, "brigade trace: there is no step %zu of %zu\n", k,
                n_steps);
        return 1;
    }
    return write_file(o->svg, v, step);
}

static int run(const options *o, const view *v)
{
    size_t n_steps = count_steps(v);
    printf("%zu ranks, %.3f ms, %zu steps\n", v->n, 1e-6 * (double)v->length,
           n_steps);
    print_ranks(v);
    print_stragglers(v);
    print_late(v);
    int code = o->json ? write_file(o->json, v, NULL) : 0;
    if (o->svg && code == 0)
        code = draw(o, v, n_steps);
    return code;
}

int tool_trace(int argc, char **argv)
{
    options o = {0};
    view v;
    o.paths = calloc((size_t)argc, sizeof *o.paths);
    if (!o.paths)
        return 1;
    int code = parse(argc, argv, &o);
    if (code == 0) {
        code = view_load(&v, o.paths, o.n_paths) ? run(&o, &v) : 1;
        view_free(&v);
    }
    free(o.paths);
    return code;
}
