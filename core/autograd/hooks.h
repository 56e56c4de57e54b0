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
     * `user`: a failure is the backward's. */
    brg_status (*on_collect)(void *user);
    bool is_removed;
};

/* `out` may be NULL. */
brg_status brg__hook_add(brg__hook_list *list, brg_hook **out, brg__hook_fn fn,
                         void *user, void (*destroy)(void *user),
                         uint32_t slot);
void brg__hook_list_deinit(brg__hook_list *list);

static inline bool brg__hook_list_is_empty(const brg__hook_list *list)
{
    return list->first == NULL;
}

/* Running a list:
 *     brg__hook_run run;
 *     for (brg_hook *h = brg__hook_run_begin(&run, list); h;
 *          h = brg__hook_run_next(&run)) ...
 *     brg__hook_run_end(&run);                                              */
typedef struct brg__hook_run {
    brg__hook_list *list;
    brg_hook *current;
    brg_hook *last;
} brg__hook_run;

brg_hook *brg__hook_run_begin(brg__hook_run *run, brg__hook_list *list);
brg_hook *brg__hook_run_next(brg__hook_run *run);
void brg__hook_run_end(brg__hook_run *run);

#endif
