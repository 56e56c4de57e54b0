/* SPDX-License-Identifier: Apache-2.0
 * Traces of several ranks as intervals on one clock: what the writers of
 * `brigade trace` draw. */
#ifndef TOOLS_TRACE_VIEW_H
#define TOOLS_TRACE_VIEW_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <brigade/ext/backend.h>
#include <brigade/trace.h>

typedef enum item_kind {
    ITEM_SPAN,     /* of the user's */
    ITEM_GRADIENT, /* from its hook to its place in the bucket */
    ITEM_CALL,     /* a collective */
    ITEM_WAIT,     /* for one */
    ITEM_MOMENT    /* a mark, a failure */
} item_kind;

typedef struct item {
    item_kind kind;
    const brg_trace_record *record; /* that began it */
    int64_t begin;                  /* ns, from the first record of all ranks */
    int64_t met;                    /* of a call: all had come; -1: unknown */
    int64_t end;
    bool is_open; /* its end is not in the trace: `end` is the last record */
} item;

typedef struct lane {
    brg_trace *trace; /* owned */
    int rank;
    int64_t offset; /* to the clock of the first */
    item *items;    /* owned, in the order of their beginnings */
    size_t n;
} lane;

typedef struct view {
    lane *lanes; /* by rank */
    size_t n;
    int64_t length; /* ns */
} view;

/* Files, or folders of rank*.trace. Prints what is wrong; false. */
bool view_load(view *filled, char *const *paths, size_t n);
void view_free(view *v);

/* "all_reduce #12", "fc1.weight", the text of a mark; into `text`. */
void view_name(const lane *l, const item *it, char *text, size_t size);

/* Step k (from 0) as the first rank saw it; false: there is none. A span named
 * "step", or else from the first gradient to the last bucket. */
bool view_step(const view *v, size_t k, int64_t *begin, int64_t *end);

/* Each returns false if the file cannot be written. */
bool view_write_json(const view *v, FILE *file);
bool view_write_svg(const view *v, int64_t begin, int64_t end, FILE *file);

#endif
