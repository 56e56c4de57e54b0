/* SPDX-License-Identifier: Apache-2.0
 * While a function is being captured, its tensors are symbols without values.
 * Ops go to the capture's emitter; what is no op comes here: a change of real
 * tensors is put off until the plan runs, and what would need a value, or
 * would freeze one into the plan, is refused.
 *
 * The thread has a tracer exactly while a function is captured. */
#ifndef BRG_CORE_BASE_TRACER_H
#define BRG_CORE_BASE_TRACER_H

#include <brigade/types.h>

#include "core/base/error.h"

/* A call to be made by the plan each time it runs. */
typedef struct brg__effect brg__effect;
struct brg__effect {
    const char *name; /* static */
    /* `in`: the operand's value of this run, or NULL. */
    brg_status (*run)(const brg__effect *effect, brg_tensor *in);
    void *object;       /* what it acts on, if no tensor; borrowed */
    brg_tensor *target; /* the tensor that it acts on, or NULL */
    brg_tensor *in;     /* a tensor that it reads, or NULL */
    double f;
    int64_t i;
};

typedef struct brg__tracer brg__tracer;
struct brg__tracer {
    /* Writes it down; retains its tensors. */
    brg_status (*defer)(brg__tracer *self, const brg__effect *effect);
    /* The capture cannot serve; what is wrong is the error record. */
    void (*refuse)(brg__tracer *self);
};

extern _Thread_local brg__tracer *brg__tracer_now;

static inline bool brg__is_traced(void)
{
    return __builtin_expect(brg__tracer_now != NULL, 0);
}

/* Fails with BRG_ERR_UNSUPPORTED and marks the capture, also where nobody looks
 * at the result. `what`: the call; `remedy`: what to do instead. */
brg_status brg__tracer_refuse(const char *what, const char *remedy);

static inline brg_status brg__tracer_defer(const brg__effect *effect)
{
    return brg__tracer_now->defer(brg__tracer_now, effect);
}

#endif
