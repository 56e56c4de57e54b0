/* SPDX-License-Identifier: Apache-2.0
 * Hook lists: see hooks.h. */
#include "core/autograd/hooks.h"

#include "core/base/alloc.h"
#include "core/base/error.h"

static void hook_unref(brg_hook *hook)
{
    if (!hook || !brg__ref_release(&hook->refs))
        return;
    if (hook->destroy)
        hook->destroy(hook->user);
    brg__obj_free(hook, sizeof *hook);
}

brg_status brg__hook_add(brg__hook_list *list, brg_hook **out, brg__hook_fn fn,
                         void *user, void (*destroy)(void *user), uint32_t slot)
{
    if (out)
        *out = NULL;
    BRG_CHECK_ARG(fn, "a hook's function is NULL");
    brg_hook *hook = brg__obj_alloc(sizeof *hook, "a hook");
    if (!hook)
        return BRG_ERR_NOMEM;
    brg__ref_init(&hook->refs);
    hook->list = list;
    hook->fn = fn;
    hook->user = user;
    hook->destroy = destroy;
    hook->slot = slot;
    if (list->last)
        list->last->next = hook;
    else
        list->first = hook;
    list->last = hook;
    if (out) {
        brg__ref_retain(&hook->refs);
        *out = hook;
    }
    return BRG_OK;
}

/* Unlinks the marked hooks and drops the list's references to them. */
static void sweep(brg__hook_list *list)
{
    brg_hook **link = &list->first;
    list->last = NULL;
    while (*link) {
        brg_hook *hook = *link;
        if (hook->is_removed) {
            *link = hook->next;
            hook->list = NULL;
            hook_unref(hook);
        } else {
            list->last = hook;
            link = &hook->next;
        }
    }
}

void brg_hook_remove(brg_hook *hook)
{
    if (!hook)
        return;
    hook->is_removed = true;
    if (hook->list && atomic_load(&hook->list->n_running) == 0)
        sweep(hook->list);
    hook_unref(hook);
}

void brg_hook_release(brg_hook *hook)
{
    hook_unref(hook);
}

void brg__hook_list_deinit(brg__hook_list *list)
{
    for (brg_hook *hook = list->first; hook; hook = hook->next)
        hook->is_removed = true;
    sweep(list);
}

static brg_hook *first_live(brg__hook_run *run, brg_hook *hook)
{
    while (hook && hook->is_removed && hook != run->last)
        hook = hook->next;
    run->current = hook && !hook->is_removed ? hook : NULL;
    return run->current;
}

brg_hook *brg__hook_run_begin(brg__hook_run *run, brg__hook_list *list,
                              brg__hook_range range)
{
    brg_hook *first = list->first;
    *run = (brg__hook_run){.list = list};
    for (uint32_t i = 0; i < range.first && first; i++)
        first = first->next;
    if (!first || range.n == 0)
        return NULL;
    run->last = range.n == UINT32_MAX ? list->last : first;
    for (uint32_t i = 1; range.n != UINT32_MAX && i < range.n; i++)
        run->last = run->last->next ? run->last->next : run->last;
    atomic_fetch_add(&list->n_running, 1);
    return first_live(run, first);
}

brg_hook *brg__hook_run_next(brg__hook_run *run)
{
    if (!run->current || run->current == run->last)
        return run->current = NULL;
    return first_live(run, run->current->next);
}

void brg__hook_run_end(brg__hook_run *run)
{
    if (!run->last)
        return;
    brg__hook_list_let_go(run->list);
}

void brg__hook_list_hold(brg__hook_list *list)
{
    atomic_fetch_add(&list->n_running, 1);
}

void brg__hook_list_let_go(brg__hook_list *list)
{
    if (atomic_fetch_sub(&list->n_running, 1) == 1)
        sweep(list);
}

brg_status brg_hook_set_capture(brg_hook *hook, brg_hook_capture_fn fn,
                                uint64_t version)
{
    BRG_CHECK_ARG(hook, "brg_hook_set_capture: hook is NULL");
    hook->capture = fn;
    hook->version = version;
    return BRG_OK;
}
