/* SPDX-License-Identifier: Apache-2.0
 * Records to intervals. */
#include "tools/trace_view.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* ---- Files -------------------------------------------------------------------- */

static bool add_file(view *v, const char *path)
{
    lane *grown = realloc(v->lanes, (v->n + 1) * sizeof *grown);
    if (!grown)
        return false;
    v->lanes = grown;
    v->lanes[v->n] = (lane){.rank = 0};
    if (brg_trace_load(&v->lanes[v->n].trace, path) != BRG_OK) {
        fprintf(stderr, "brigade trace: %s\n", brg_error_message());
        return false;
    }
    v->lanes[v->n].rank = brg_trace_get_header(v->lanes[v->n].trace)->rank;
    v->n++;
    return true;
}

static int is_trace(const struct dirent *entry)
{
    const char *end = strrchr(entry->d_name, '.');
    return end && strcmp(end, ".trace") == 0;
}

static bool add_folder(view *v, const char *path)
{
    struct dirent **entries;
    char file[4096];
    int n = scandir(path, &entries, is_trace, alphasort);
    bool is_good = n > 0;
    if (n <= 0)
        fprintf(stderr, "brigade trace: %s: there is no *.trace\n", path);
    for (int i = 0; i < n; i++) {
        snprintf(file, sizeof file, "%s/%s", path, entries[i]->d_name);
        is_good = is_good && add_file(v, file);
        free(entries[i]);
    }
    if (n >= 0)
        free(entries);
    return is_good;
}

static int compare_lanes(const void *a, const void *b)
{
    const lane *x = a, *y = b;
    return x->rank < y->rank ? -1 : x->rank > y->rank;
}

static bool are_distinct(const view *v)
{
    for (size_t i = 1; i < v->n; i++)
        if (v->lanes[i].rank == v->lanes[i - 1].rank) {
            fprintf(stderr, "brigade trace: two files are of rank %d\n",
                    v->lanes[i].rank);
            return false;
        }
    return true;
}

/* ---- One clock ------------------------------------------------------------------- */

static bool align(view *v)
{
    brg_trace **traces = malloc(v->n * sizeof *traces);
    int64_t *offsets = malloc(v->n * sizeof *offsets);
    bool is_good = traces && offsets;
    for (size_t i = 0; is_good && i < v->n; i++)
        traces[i] = v->lanes[i].trace;
    is_good = is_good && brg_trace_align(traces, v->n, offsets) == BRG_OK;
    for (size_t i = 0; is_good && i < v->n; i++)
        v->lanes[i].offset = offsets[i];
    free(traces);
    free(offsets);
    return is_good;
}

static int64_t time_of(const lane *l, const brg_trace_record *r)
{
    return (int64_t)r->time_ns + l->offset;
}

/* ---- Intervals -------------------------------------------------------------------- */

static bool is_same_call(const brg_trace_record *a, const brg_trace_record *b)
{
    return a->group == b->group && a->coll == b->coll &&
           a->u.call.seq == b->u.call.seq;
}

static bool is_same(item_kind kind, const brg_trace_record *a,
                    const brg_trace_record *b)
{
    if (kind == ITEM_SPAN)
        return a->thread == b->thread && strcmp(a->u.text, b->u.text) == 0;
    if (kind == ITEM_GRADIENT)
        return a->group == b->group && a->reducer == b->reducer &&
               a->u.call.param == b->u.call.param;
    return is_same_call(a, b);
}

/* The newest open item that this record belongs to, or NULL. What was not ended
 * within so many items never will be. */
static item *find_open(lane *l, item_kind kind, const brg_trace_record *r)
{
    size_t last = l->n > 20000 ? l->n - 20000 : 0;
    for (size_t i = l->n; i-- > last;)
        if (l->items[i].is_open && l->items[i].kind == kind &&
            is_same(kind, l->items[i].record, r))
            return &l->items[i];
    return NULL;
}

static void open_item(lane *l, item_kind kind, const brg_trace_record *r,
                      bool is_open)
{
    l->items[l->n++] = (item){.kind = kind,
                              .record = r,
                              .begin = time_of(l, r),
                              .met = -1,
                              .end = time_of(l, r),
                              .is_open = is_open};
}

static void close_item(lane *l, item_kind kind, const brg_trace_record *r)
{
    item *found = find_open(l, kind, r);
    if (!found)
        return;
    found->end = time_of(l, r);
    found->is_open = false;
}

static void take_progress(lane *l, const brg_trace_record *r)
{
    item *call = find_open(l, ITEM_CALL, r);
    if (call && r->u.call.value == BRG_TRACE_MET)
        call->met = time_of(l, r);
}

static void take_record(lane *l, const brg_trace_record *r)
{
    switch (r->kind) {
    case BRG_TRACE_HOOK:
        open_item(l, ITEM_GRADIENT, r, r->u.call.value == 0);
        break;
    case BRG_TRACE_COPY:
        if (find_open(l, ITEM_GRADIENT, r))
            close_item(l, ITEM_GRADIENT, r);
        else
            open_item(l, ITEM_GRADIENT, r, false);
        break;
    case BRG_TRACE_START:
        open_item(l, ITEM_CALL, r, true);
        break;
    case BRG_TRACE_PROGRESS:
        take_progress(l, r);
        break;
    case BRG_TRACE_COMPLETE:
        close_item(l, ITEM_CALL, r);
        break;
    case BRG_TRACE_WAIT:
        open_item(l, ITEM_WAIT, r, true);
        break;
    case BRG_TRACE_WAKE:
        close_item(l, ITEM_WAIT, r);
        break;
    case BRG_TRACE_BEGIN:
        open_item(l, ITEM_SPAN, r, true);
        break;
    case BRG_TRACE_END:
        close_item(l, ITEM_SPAN, r);
        break;
    default:
        open_item(l, ITEM_MOMENT, r, false);
    }
}

static int compare_items(const void *a, const void *b)
{
    const item *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return x->record < y->record ? -1 : x->record > y->record;
}

static bool list_items(lane *l)
{
    size_t n;
    int64_t last = INT64_MIN;
    const brg_trace_record *records = brg_trace_records(l->trace, &n);
    l->items = calloc(n + 1, sizeof *l->items);
    if (!l->items)
        return false;
    for (size_t i = 0; i < n; i++) {
        take_record(l, &records[i]);
        last = time_of(l, &records[i]) > last ? time_of(l, &records[i]) : last;
    }
    for (size_t i = 0; i < l->n; i++)
        if (l->items[i].is_open)
            l->items[i].end = last;
    qsort(l->items, l->n, sizeof *l->items, compare_items);
    return true;
}

/* Time 0 is the first record. */
static void rebase(view *v)
{
    int64_t first = INT64_MAX;
    for (size_t i = 0; i < v->n; i++)
        if (v->lanes[i].n > 0 && v->lanes[i].items[0].begin < first)
            first = v->lanes[i].items[0].begin;
    for (size_t i = 0; i < v->n; i++)
        for (size_t k = 0; k < v->lanes[i].n; k++) {
            item *it = &v->lanes[i].items[k];
            it->begin -= first;
            it->end -= first;
            it->met -= it->met >= 0 ? first : 0;
            v->length = it->end > v->length ? it->end : v->length;
        }
}

bool view_load(view *filled, char *const *paths, size_t n)
{
    struct stat info;
    *filled = (view){.n = 0};
    for (size_t i = 0; i < n; i++) {
        bool is_folder = stat(paths[i], &info) == 0 && S_ISDIR(info.st_mode);
        if (!(is_folder ? add_folder(filled, paths[i])
                        : add_file(filled, paths[i])))
            return false;
    }
    qsort(filled->lanes, filled->n, sizeof *filled->lanes, compare_lanes);
    if (!are_distinct(filled))
        return false;
    bool is_good = align(filled);
    for (size_t i = 0; i < filled->n && is_good; i++)
        is_good = list_items(&filled->lanes[i]);
    if (is_good)
        rebase(filled);
    else
        fprintf(stderr, "brigade trace: out of memory\n");
    return is_good;
}

void view_free(view *v)
{
    for (size_t i = 0; i < v->n; i++) {
        free(v->lanes[i].items);
        brg_trace_free(v->lanes[i].trace);
    }
    free(v->lanes);
}

/* ---- Names ------------------------------------------------------------------------- */

static const char *const coll_names[BRG_N_COLLS] = {
#define COLL_NAME(name, value, text, send, recv, reduces, peer) [value] = text,
    BRG_COLL_MAP(COLL_NAME)
#undef COLL_NAME
};

void view_name(const lane *l, const item *it, char *text, size_t size)
{
    const brg_trace_record *r = it->record;
    const char *param = NULL;
    if (it->kind == ITEM_GRADIENT)
        param = brg_trace_param_name(l->trace, r->group, r->reducer,
                                     r->u.call.param);
    if (it->kind == ITEM_SPAN || r->kind == BRG_TRACE_MARK)
        snprintf(text, size, "%s", r->u.text);
    else if (param)
        snprintf(text, size, "%s", param);
    else if (it->kind == ITEM_GRADIENT)
        snprintf(text, size, "parameter %d", (int)r->u.call.param);
    else if (r->kind == BRG_TRACE_FAIL)
        snprintf(text, size, "failed: %s",
                 brg_status_text((brg_status)r->u.call.value));
    else
        snprintf(text, size, "%s #%llu",
                 r->coll < BRG_N_COLLS ? coll_names[r->coll] : "call",
                 (unsigned long long)r->u.call.seq);
}

/* ---- Steps -------------------------------------------------------------------------- */

static bool is_step(const item *it)
{
    return it->kind == ITEM_SPAN && !it->is_open &&
           strcmp(it->record->u.text, "step") == 0;
}

static bool find_span(const lane *l, size_t k, int64_t *begin, int64_t *end)
{
    for (size_t i = 0; i < l->n; i++)
        if (is_step(&l->items[i]) && k-- == 0) {
            *begin = l->items[i].begin;
            *end = l->items[i].end;
            return true;
        }
    return false;
}

/* Bucket 0 sets out once a step; what came before it since the last bucket of
 * the step before is of this step. */
static bool find_buckets(const lane *l, size_t k, int64_t *begin, int64_t *end)
{
    bool is_in = false, has_begun = false;
    int64_t first = 0, last = INT64_MIN;
    for (size_t i = 0; i < l->n; i++) {
        const item *it = &l->items[i];
        bool is_bucket = it->kind == ITEM_CALL && it->record->bucket >= 0;
        if (is_bucket && it->record->bucket == 0 && is_in)
            break;
        if (!has_begun && it->begin > last &&
            (it->kind == ITEM_GRADIENT || it->kind == ITEM_SPAN)) {
            first = it->begin;
            has_begun = true;
        }
        if (!is_bucket)
            continue;
        if (it->record->bucket == 0)
            is_in = k-- == 0;
        last = it->end > last ? it->end : last;
        if (!is_in)
            has_begun = false;
        else if (it->is_open)
            return false;
    }
    *begin = first;
    *end = last;
    return is_in;
}

bool view_step(const view *v, size_t k, int64_t *begin, int64_t *end)
{
    if (v->n == 0)
        return false;
    const lane *l = &v->lanes[0];
    int64_t unused[2];
    if (find_span(l, 0, &unused[0], &unused[1]))
        return find_span(l, k, begin, end);
    return find_buckets(l, k, begin, end);
}
