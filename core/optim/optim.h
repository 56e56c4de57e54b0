/* SPDX-License-Identifier: Apache-2.0
 * The optimizer object.
 *
 * A *rule* (SGD, AdamW) says how many state arrays a parameter has and how runs
 * of elements are updated; everything else is common. A *slot* is one parameter
 * with the range of its elements that this optimizer owns, and the state of
 * those; a whole parameter is a range like any other. The arithmetic is done in
 * f64 for f64 and in f32 otherwise; a 16-bit parameter has a master copy in
 * f32, which the rule updates and which is then rounded into the parameter.
 *
 * State on the CPU is one block, in the order of dtypes and of the parameters'
 * memory, so that a step is one list of runs, and ranges that touch each other
 * (as shards of a bucket do) are one run:
 *
 *     arena   |   p3    |p2        |  p1    |
 *     block   | m3 |m2   |m1 | .. | v3 |v2   |v1 | .. | masters | */
#ifndef BRG_CORE_OPTIM_OPTIM_H
#define BRG_CORE_OPTIM_OPTIM_H

#include <brigade/ext/device.h>
#include <brigade/optim.h>

#include "core/base/array.h"
#include "core/base/tracer.h"
#include "core/optim/kernels.h"
#include "core/tensor/tensor.h"

typedef struct brg__optim_slot {
    brg_tensor *param;
    brg_tensor *grad; /* within a step; owned if it is a copy */
    size_t first;     /* owns elements [first, first + n) */
    size_t n;
    size_t at; /* in the block: bytes from the begin of each kind */
    /* Of the range: element i of these is first + i of the parameter. */
    brg_tensor *state[BRG__OPTIM_MAX_STATE];
    brg_tensor *master; /* NULL unless the parameter has 16 bits */
    double lr_scale;
    double weight_decay;
    /* Of the parameter after our last change: if it differs, somebody else
     * has written, and the master copy must follow. */
    uint32_t version;
    bool is_part; /* a range was given */
    bool has_copy;
    bool is_counted; /* in the last step, which may have been left out, */
    bool follows;    /* and in which the master copy followed the parameter */
    brg_dtype dtype; /* as they were at the start */
    int ndim;
    int64_t shape[BRG_MAX_DIMS];
    char *name;
} brg__optim_slot;

/* The scalars of all slots that are alike in these. */
typedef struct brg__shared_scalars {
    int64_t step;
    double lr_scale;
    double weight_decay;
    brg__step_scalars scalars;
} brg__shared_scalars;

typedef struct brg__optim_rule {
    const char *name;
    const char *state_names[BRG__OPTIM_MAX_STATE];
    /* State arrays that this optimizer uses. */
    int (*n_state)(const brg_optim *optim);
    void (*prepare)(const brg_optim *optim, const brg__optim_slot *slot,
                    int64_t step, brg__step_scalars *filled);
    const brg__update_fn *(*update)(const brg__optim_kernels *kernels);
    /* The scalars as a device takes them. */
    void (*describe)(const brg__step_scalars *scalars,
                     brg_device_update *filled);
} brg__optim_rule;

/* Steps that may be left out (skip.c). */
typedef struct brg__optim_skip {
    brg_tensor *found_inf; /* retained; NULL: all steps are made */
    brg_device device;
    const brg_device_vtable *vtable;
    void *fetch;     /* the device's: the number of the last step, ... */
    bool is_pending; /* ... which was not looked at */
    uint64_t n;      /* were left out */
} brg__optim_skip;

struct brg_optim {
    const brg__optim_rule *rule;
    union {
        brg_sgd_options sgd;
        brg_adamw_options adamw;
    } options;
    double lr;
    brg__optim_slot *slots;
    size_t n_slots;
    brg_tensor *steps;                  /* i64, one per slot: steps taken */
    BRG__ARRAY(brg_named_tensor) state; /* names are owned */
    BRG__ARRAY(const brg__optim_slot *) owners; /* NULL: of the optimizer */
    char *block;       /* state of slots on the CPU, which holds it */
    size_t block_kind; /* bytes of a kind */
    size_t *order;     /* slots on the CPU, by dtype, then by their memory */
    size_t n_order;
    /* Room for a step, one for each slot. */
    brg__run *runs;
    size_t n_runs; /* of the last step */
    brg__shared_scalars *shared;
    size_t n_shared;
    brg_device_update *updates;
    brg__optim_skip skip;
    bool has_warned; /* of a step without any gradient */
    /* Of a step that clips (clip_step.c): norm and factor, on the device. */
    brg_tensor *norm;
    const double *factor; /* within it */
};

/* Scalars of the slot's next step, which is not counted yet. Those of earlier
 * calls stay until n_shared is set to 0, as a step does first. */
const brg__step_scalars *brg__optim_scalars(brg_optim *optim, size_t i);

/* One step of the slots whose parameters are not on the CPU, all that are on
 * one device at once; the checks of brg_optim_step are done. */
brg_status brg__optim_step_devices(brg_optim *optim);
brg_status brg__optim_check_device(const brg__optim_slot *slot,
                                   const brg_tensor *grad);

/* Before a step: *is_left_out if the host can tell already. */
brg_status brg__optim_skip_begin(brg_optim *optim, bool *is_left_out);
/* Whether the device leaves steps out, if any are. */
bool brg__optim_skip_is_there(const brg_optim *optim);
/* Behind a step on a device: its number comes to the host. */
brg_status brg__optim_skip_ask(brg_optim *optim);
/* Takes back what the last step counted, if the device has left it out. */
brg_status brg__optim_skip_settle(brg_optim *optim);
/* From now on all steps are made. */
void brg__optim_skip_end(brg_optim *optim);

/* The places of a sparse gradient, which has no duplicates, alone. `run`: the
 * slot's parameter from its first element on, and the slot's state. */
void brg__optim_step_places(const brg_optim *optim, const brg__optim_slot *slot,
                            const brg__run *run);

/* The same when what it queues is launched again: rates and counts of steps go
 * into the launch. All parameters are on one device. If steps may be left out,
 * the host waits for what became of the last one. */
brg_status brg__optim_note(brg_optim *optim, brg__words *state);
brg_status brg__optim_relaunch(brg_optim *optim, brg__relaunch *launch);

/* Whether the recorded call is a step; one that drops the optimizer's
 * gradients. */
bool brg__optim_is_step(const brg__effect *effect);
bool brg__optim_drops(const brg__effect *effect, const brg_optim *optim);
/* Whether clipping, the step and what follows them can be one step and that;
 * then *step clips. */
bool brg__optim_join_clip(const brg__effect *clip, brg__effect *step,
                          const brg__effect *last);

extern const brg__optim_rule brg__optim_sgd;
extern const brg__optim_rule brg__optim_adamw;

#endif
