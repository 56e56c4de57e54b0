/* SPDX-License-Identifier: Apache-2.0
 * Anomaly mode, places of op calls, observers. */
#include "core/autograd/debug.h"

#include "core/base/error.h"
#include "core/base/tracer.h"

#include <brigade/ops.h>
#include <brigade/sparse.h>

/* ---- Places ---------------------------------------------------------------------- */

#define MAX_PLACES 64 /* calls nested in one expression; deeper ones unnamed */

static _Thread_local struct {
    struct {
        const char *file;
        int line;
    } at[MAX_PLACES];
    int n;
} places;

void brg_place_push(const char *file, int line)
{
    if (places.n < MAX_PLACES) {
        places.at[places.n].file = file;
        places.at[places.n].line = line;
    }
    places.n++;
}

brg_tensor *brg_place_pop(brg_tensor *result)
{
    if (places.n > 0)
        places.n--;
    return result;
}

void brg__place_current(const char **file, int *line)
{
    bool is_known = places.n > 0 && places.n <= MAX_PLACES;
    *file = is_known ? places.at[places.n - 1].file : NULL;
    *line = is_known ? places.at[places.n - 1].line : 0;
}

/* ---- Anomaly mode ------------------------------------------------------------------ */

_Thread_local bool brg__anomaly_is_on;

bool brg_anomaly_mode(void)
{
    return brg__anomaly_is_on;
}

bool brg_anomaly_mode_set(bool is_on)
{
    bool before = brg__anomaly_is_on;
    (void)brg__tracer_outside("brg_anomaly_mode_set");
    brg__anomaly_is_on = is_on;
    return before;
}

brg_status brg__has_nan(brg_tensor *t, bool *out)
{
    bool mode = brg_grad_mode_set(false);
    double n = 0;
    if (brg_tensor_is_sparse(t))
        t = brg_sparse_values(t);
    brg_tensor *count = brg_sum_all(brg_is_nan(t));
    brg_status status = count ? brg_tensor_item(count, &n) : brg_error_code();
    brg_grad_mode_set(mode);
    *out = n > 0;
    return status;
}

brg_status brg__anomaly_check(const brg_node *node, brg_tensor *const *grad_in)
{
    for (uint16_t i = 0; i < node->n_edges; i++) {
        bool is_bad = false;
        if (grad_in[i])
            BRG_TRY(brg__has_nan(grad_in[i], &is_bad));
        if (!is_bad)
            continue;
        if (!node->file)
            return BRG_FAIL(BRG_ERR_NAN,
                            "Function '%s' returned nan values in its %d-th "
                            "output",
                            brg_node_name(node), i);
        return BRG_FAIL(BRG_ERR_NAN,
                        "Function '%s' returned nan values in its %d-th "
                        "output; the op was called at %s:%d",
                        brg_node_name(node), i, node->file, node->line);
    }
    return BRG_OK;
}

/* ---- Observers ------------------------------------------------------------------------ */

#define MAX_OBSERVERS 16

_Thread_local int brg__n_observers; /* 0 while paused */
static _Thread_local int n_pushed;
static _Thread_local bool is_paused;
static _Thread_local struct {
    brg_observer_fn fn;
    void *user;
} observers[MAX_OBSERVERS];

__attribute__((noinline)) bool brg__observers_pause(bool pause)
{
    bool before = is_paused;
    is_paused = pause;
    brg__n_observers = pause ? 0 : n_pushed;
    return before;
}

brg_status brg_observer_push(brg_observer_fn fn, void *user)
{
    BRG_CHECK_ARG(fn, "brg_observer_push: fn is NULL");
    BRG_TRY(brg__tracer_outside("brg_observer_push"));
    if (n_pushed == MAX_OBSERVERS)
        return BRG_FAIL(BRG_ERR_STATE, "a thread can have %d observers",
                        MAX_OBSERVERS);
    observers[n_pushed].fn = fn;
    observers[n_pushed++].user = user;
    (void)brg__observers_pause(is_paused);
    return BRG_OK;
}

brg_status brg_observer_pop(void)
{
    BRG_TRY(brg__tracer_outside("brg_observer_pop"));
    if (n_pushed == 0)
        return BRG_FAIL(BRG_ERR_STATE, "brg_observer_pop: there is no "
                                       "observer on this thread");
    n_pushed--;
    (void)brg__observers_pause(is_paused);
    return BRG_OK;
}

brg_status brg__observe(const brg_op_call *call)
{
    brg_observation observation = {.op = call->op,
                                   .name = call->op->name,
                                   .in = call->in,
                                   .n_in = (size_t)call->n_in,
                                   .out = call->out,
                                   .n_out = (size_t)call->n_out};
    bool before = brg__observers_pause(true); /* what they do themselves */
    brg_status status = BRG_OK;
    for (int i = n_pushed; i-- > 0 && status == BRG_OK;) {
        status = observers[i].fn(&observation, observers[i].user);
        BRG_EXPLAIN(status, "an observer of %s", observation.name);
    }
    (void)brg__observers_pause(before);
    return status;
}
