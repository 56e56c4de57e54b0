/* SPDX-License-Identifier: Apache-2.0
 * The trace-event format, which Perfetto and chrome://tracing read: a rank is a
 * process; its tracks are the threads that marked spans, gradients, waiting,
 * and each bucket. Other collectives are asynchronous events. */
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>

#include "tools/trace_view.h"

/* Threads come first, from 1 on; then these, with the buckets of all reducers. */
enum { TRACK_GRADIENTS = 100000, TRACK_WAITS, TRACK_BUCKETS = 200000 };
#define BUCKETS_EACH (INT16_MAX + 1)

typedef struct writer {
    FILE *file;
    size_t n; /* events so far */
    bool is_good;
} writer;

/* Takes the event over. */
static void write_event(writer *w, cJSON *event)
{
    char *text = event ? cJSON_PrintUnformatted(event) : NULL;
    w->is_good = w->is_good && text &&
                 fprintf(w->file, "%s%s", w->n++ ? ",\n" : "", text) > 0;
    cJSON_free(text);
    cJSON_Delete(event);
}

static cJSON *new_event(const char *phase, const char *name, int rank,
                        int track)
{
    cJSON *event = cJSON_CreateObject();
    cJSON_AddStringToObject(event, "ph", phase);
    cJSON_AddStringToObject(event, "name", name);
    cJSON_AddNumberToObject(event, "pid", rank);
    cJSON_AddNumberToObject(event, "tid", track);
    return event;
}

static void add_time(cJSON *event, const char *key, int64_t ns)
{
    cJSON_AddNumberToObject(event, key, (double)ns / 1000);
}

static void name_track(writer *w, const char *what, int rank, int track,
                       const char *name)
{
    cJSON *event = new_event("M", what, rank, track);
    cJSON_AddStringToObject(cJSON_AddObjectToObject(event, "args"), "name",
                            name);
    write_event(w, event);
}

static int track_of(const item *it)
{
    if (it->kind == ITEM_GRADIENT)
        return TRACK_GRADIENTS;
    if (it->kind == ITEM_WAIT)
        return TRACK_WAITS;
    if (it->kind == ITEM_CALL)
        return TRACK_BUCKETS + BUCKETS_EACH * it->record->reducer +
               it->record->bucket;
    return it->record->thread + 1;
}

/* Of a bucket or a thread. */
static void name_numbered(writer *w, int rank, int track)
{
    char name[48];
    int at = track - TRACK_BUCKETS, reducer = at / BUCKETS_EACH;
    if (at < 0)
        snprintf(name, sizeof name, "thread %d", track - 1);
    else if (reducer <= 1)
        snprintf(name, sizeof name, "bucket %d", at % BUCKETS_EACH);
    else
        snprintf(name, sizeof name, "bucket %d of reducer %d",
                 at % BUCKETS_EACH, reducer);
    name_track(w, "thread_name", rank, track, name);
}

static int compare_tracks(const void *a, const void *b)
{
    int x = *(const int *)a, y = *(const int *)b;
    return (x > y) - (x < y);
}

static void name_tracks(writer *w, const lane *l)
{
    char name[48];
    size_t n = 0;
    int *tracks = malloc((l->n + 1) * sizeof *tracks);
    w->is_good = w->is_good && tracks;
    snprintf(name, sizeof name, "rank %d", l->rank);
    name_track(w, "process_name", l->rank, 0, name);
    name_track(w, "thread_name", l->rank, TRACK_GRADIENTS, "gradients");
    name_track(w, "thread_name", l->rank, TRACK_WAITS, "waiting");
    for (size_t i = 0; tracks && i < l->n; i++) {
        const item *it = &l->items[i];
        bool is_mark = it->kind == ITEM_SPAN || it->kind == ITEM_MOMENT;
        if (is_mark || (it->kind == ITEM_CALL && it->record->bucket >= 0))
            tracks[n++] = track_of(it);
    }
    if (n > 0)
        qsort(tracks, n, sizeof *tracks, compare_tracks);
    for (size_t i = 0; i < n; i++)
        if (i == 0 || tracks[i] != tracks[i - 1])
            name_numbered(w, l->rank, tracks[i]);
    free(tracks);
}

static void add_details(cJSON *event, const lane *l, const item *it)
{
    const brg_trace_record *r = it->record;
    cJSON *args = cJSON_AddObjectToObject(event, "args");
    if (it->is_open)
        cJSON_AddBoolToObject(args, "unfinished", true);
    if (it->kind == ITEM_SPAN || it->kind == ITEM_MOMENT)
        return;
    cJSON_AddNumberToObject(args, "bytes", (double)r->u.call.nbytes);
    if (r->bucket >= 0)
        cJSON_AddNumberToObject(args, "bucket", r->bucket);
    if (it->kind == ITEM_CALL && it->met >= 0)
        add_time(args, "all_came", it->met);
    if (it->kind != ITEM_GRADIENT) {
        cJSON_AddNumberToObject(args, "seq", (double)r->u.call.seq);
        cJSON_AddNumberToObject(args, "group", r->group);
    }
    (void)l;
}

/* A pair of events, since such calls may overlap. */
static void write_pair(writer *w, const lane *l, const item *it,
                       const char *name)
{
    char id[48];
    snprintf(id, sizeof id, "%d.%u.%u.%llu", l->rank, it->record->group,
             it->record->coll, (unsigned long long)it->record->u.call.seq);
    for (int is_end = 0; is_end < 2; is_end++) {
        cJSON *event = new_event(is_end ? "e" : "b", name, l->rank, 0);
        cJSON_AddStringToObject(event, "cat", "collective");
        cJSON_AddStringToObject(event, "id", id);
        add_time(event, "ts", is_end ? it->end : it->begin);
        if (!is_end)
            add_details(event, l, it);
        write_event(w, event);
    }
}

static void write_item(writer *w, const lane *l, const item *it)
{
    char name[160];
    view_name(l, it, name, sizeof name);
    if (it->kind == ITEM_CALL && it->record->bucket < 0) {
        write_pair(w, l, it, name);
        return;
    }
    bool is_moment = it->kind == ITEM_MOMENT;
    cJSON *event =
        new_event(is_moment ? "i" : "X", name, l->rank, track_of(it));
    add_time(event, "ts", it->begin);
    if (is_moment)
        cJSON_AddStringToObject(event, "s", "p");
    else
        add_time(event, "dur", it->end - it->begin);
    add_details(event, l, it);
    write_event(w, event);
}

bool view_write_json(const view *v, FILE *file)
{
    writer w = {.file = file, .is_good = true};
    fputs("{\"displayTimeUnit\":\"ns\",\"traceEvents\":[\n", file);
    for (size_t i = 0; i < v->n; i++) {
        name_tracks(&w, &v->lanes[i]);
        for (size_t k = 0; k < v->lanes[i].n && w.is_good; k++)
            write_item(&w, &v->lanes[i], &v->lanes[i].items[k]);
    }
    return fputs("\n]}\n", file) >= 0 && w.is_good && !ferror(file);
}
