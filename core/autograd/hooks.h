/* SPDX-License-Identifier: Apache-2.0
 * Hook lists: registration order, removal at any time, payload destroyed once.
 *
 * A list holds one reference to each of its hooks and the handle another. A
 * hook removed while its list runs stays linked, marked, until the run ends,
 * so a running hook may remove itself or any other. Hooks added during a run
 * wait for the next. Registration is for the thread that owns the graph. */
#ifndef BRG_CORE_AUTOGRAD_HOOKS_H
#define BRG_CORE_AUTOGRAD_HOOKS_H

#include <brigade/autograd.h>

#include "core/autograd/reduction.h"
#include "core/base/refcount.h"

typedef void (*brg__hook_fn)(void); /* cast back to its own type */

typedef struct brg__hook_list {
    brg_hook *first;
    brg_hook *last;
    _Atomic int n_running;
} brg__hook_list;

struct brg_hook {
    brg__refcount refs;
    brg__hook_list *list; /* NULL once unlinked */
    brg_hook *next;
    brg__hook_fn fn;
    void *user;
    void (*destroy)(void *user);
    uint32_t slot; /* of a node: the output it watches */
    /* (optional) Asked by a compiled backward before it runs anything, with
     * `user`: a failure is the backward's. A hook that reduces gradients says
     * here that a plan may do so in its place (part->ops, else NULL). */
    brg_status (*on_collect)(void *user, brg__reduction_part *part);
    brg_hook_capture_fn capture; /* or NULL */
    uint64_t version;            /* of what `capture` would write */
    bool is_removed;
};

/* A part of a list: hooks by position, removed ones counted. */
typedef struct brg__hook_range {
    uint32_t first;
    uint32_t n;
} brg__hook_range;

#define BRG__ALL_HOOKS ((brg__hook_range){0, UINT32_MAX})

/* `out` may be NULL. */
brg_status brg__hook_add(brg__hook_list *list, brg_hook **out, brg__hook_fn fn,
                         void *user, void (*destroy)(void *user),
                         uint32_t slot);
void brg__hook_list_deinit(brg__hook_list *list);

/* Running a list:
 *     brg__hook_run run;
 *     for (brg_hook *h = brg__hook_run_begin(&run, list, BRG__ALL_HOOKS); h;
 *          h = brg__hook_run_next(&run)) ...
 *     brg__hook_run_end(&run);                                              */
typedef struct brg__hook_run {
    brg__hook_list *list;
    brg_hook *current;
    brg_hook *last;
} brg__hook_run;

brg_hook *brg__hook_run_begin(brg__hook_run *run, brg__hook_list *list,
                              brg__hook_range range);
brg_hook *brg__hook_run_next(brg__hook_run *run);
void brg__hook_run_end(brg__hook_run *run);

/* In between, positions stay what they are, whatever is removed. */
void brg__hook_list_hold(brg__hook_list *list);
void brg__hook_list_let_go(brg__hook_list *list);

#endif
