/* SPDX-License-Identifier: Apache-2.0
 * While a function is being captured, its tensors are symbols without values.
 * Ops go to the capture's emitter; what is no op comes here: a change of real
 * tensors is put off until the plan runs, and what would need a value, or
 * would freeze one into the plan, is refused.
 *
 * The thread has a tracer exactly while a function is captured. */
#ifndef BRG_CORE_BASE_TRACER_H
#define BRG_CORE_BASE_TRACER_H

#include <stdbool.h>

#include <brigade/types.h>

#include "core/base/array.h"
#include "core/base/error.h"

/* A launch of what a run has queued on a device, recorded once; its host code
 * does not run again. */
typedef struct brg__relaunch {
    brg_device device;
    const struct brg_device_vtable *vtable;
    void *graph;
    size_t n_updates; /* calls of the table's update so far */
} brg__relaunch;

/* A call to be made by the plan each time it runs. */
typedef struct brg__effect brg__effect;
struct brg__effect {
    const char *name; /* static */
    /* `in`: the operand's value of this run, or NULL. */
    brg_status (*run)(const brg__effect *effect, brg_tensor *in);
    /* (optional) Before a launch: what else than work of the device run would
     * have done. Absent: it must run each time. */
    brg_status (*relaunch)(const brg__effect *effect, brg__relaunch *launch);
    /* (optional) Behind a launch. */
    brg_status (*launched)(const brg__effect *effect);
    /* (optional) All that the work which it queues depends on but the values
     * on the device: its addresses. */
    brg_status (*note)(const brg__effect *effect, brg__words *state);
    /* (optional) It may change the memory of this tensor, too. */
    bool (*changes)(const brg__effect *effect, const brg_tensor *tensor);
    /* (optional) Whether it and the next one are done at once, behind which
     * comes `last`: then `next` does both from now on. */
    bool (*joins)(const brg__effect *effect, brg__effect *next,
                  const brg__effect *last);
    void *object;       /* what it acts on, if no tensor; borrowed */
    void *with;         /* another of these */
    brg_tensor *target; /* the tensor that it acts on, or NULL */
    brg_tensor *in;     /* a tensor that it reads, or NULL */
    double f;
    int64_t i;
    bool ends_backward; /* what the backward reduces has to be there */
};

/* A call with results, of which only shapes are known before the plan runs. */
#define BRG__MAX_CALL_OUT 16

typedef struct brg__traced_region brg__traced_region;
struct brg__traced_region {
    const char *name; /* static */
    /* `in` and `out` hold n_in and n_out tensors; out is borrowed from the
     * scope. */
    brg_status (*run)(const brg__traced_region *region, brg_tensor *const *in,
                      brg_tensor **out);
    void (*fn[2])(void); /* the region's own, with their data */
    void *user[2];
    int n_in, n_out;
    int n_forward;  /* of a backward: results of the forward */
    uint32_t needs; /* of a backward: bit i: input i wants a gradient */
    brg_dtype dtype[BRG__MAX_CALL_OUT]; /* of the results */
    int ndim[BRG__MAX_CALL_OUT];
    int64_t shape[BRG__MAX_CALL_OUT][BRG_MAX_DIMS];
};

typedef struct brg__tracer brg__tracer;
struct brg__tracer {
    uint64_t id; /* of a capture in one piece; else 0 */
    /* Writes it down; retains its tensors. */
    brg_status (*defer)(brg__tracer *self, const brg__effect *effect);
    /* Writes the call down; fills out[] with symbols. */
    brg_status (*call)(brg__tracer *self, const brg__traced_region *region,
                       brg_tensor *const *in, brg_tensor **out);
    /* *tensor, one from outside, becomes the symbol that stands for it. One that
     * works piece by piece has no such symbols. */
    brg_status (*bring)(brg__tracer *self, brg_tensor **tensor);
    /* What is written down between the two is forgotten. It fails if that has
     * effects, reads values of the function that are not in `in`, or reads
     * tensors from outside that require gradients while those are recorded. */
    brg_status (*trial_begin)(brg__tracer *self);
    brg_status (*trial_end)(brg__tracer *self, brg_tensor *const *in, int n_in,
                            bool is_recorded);
    /* (optional) A tracer that works piece by piece has it: what was written down
     * so far runs, and symbols become tensors. */
    brg_status (*flush)(brg__tracer *self);
    /* With flush: the thread's tracing stops and goes on. */
    bool (*suspend)(brg__tracer *self); /* false: it does not */
    void (*resume)(brg__tracer *self);
    /* (optional) Of the memory that a symbol stands for: how often what is written
     * down has changed it. */
    uint32_t (*version)(brg__tracer *self, const brg_tensor *symbol);
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

/* Values are needed: a tracer that can make them does, another refuses. */
brg_status brg__tracer_settle(const char *what, const char *remedy);
/* What a plan would not do again. */
brg_status brg__tracer_outside(const char *name);
/* The first half alone: nothing happens in a capture of one piece. */
brg_status brg__tracer_flush(void);

/* A stretch that is not traced, after brg__tracer_flush, if there are pieces;
 * what begin gave goes to end. */
brg__tracer *brg__tracer_suspend(void);
void brg__tracer_resume(brg__tracer *tracer);

/* For what records a graph on its arguments without being an op. */
static inline brg_status brg__tracer_bring(brg_tensor **tensor)
{
    if (!brg__is_traced() || !brg__tracer_now->bring)
        return BRG_OK;
    return brg__tracer_now->bring(brg__tracer_now, tensor);
}

static inline brg_status brg__tracer_defer(const brg__effect *effect)
{
    return brg__tracer_now->defer(brg__tracer_now, effect);
}

#endif
