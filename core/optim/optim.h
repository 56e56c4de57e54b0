/* SPDX-License-Identifier: Apache-2.0
 * The optimizer object.
 *
 * A *rule* (SGD, AdamW) says how many state arrays a parameter has and how one
 * run of elements is updated; everything else is common. A *slot* is one
 * parameter with the range of its elements that this optimizer owns, and the
 * state of those; a whole parameter is a range like any other. The parameter's arithmetic is done in f64 for f64
 * and in f32 otherwise; a 16-bit parameter has a master copy in f32, which the
 * rule updates and which is then rounded into the parameter. */
#ifndef BRG_CORE_OPTIM_OPTIM_H
#define BRG_CORE_OPTIM_OPTIM_H

#include <brigade/ext/device.h>
#include <brigade/optim.h>

#include "core/base/array.h"
#include "core/base/tracer.h"
#include "core/optim/kernels.h"
#include "core/tensor/tensor.h"

#define BRG__OPTIM_MAX_STATE 2

typedef struct brg__slot {
    brg_tensor *param;
    size_t first; /* owns elements [first, first + n) */
    size_t n;
    bool is_part; /* a range was given */
    /* Of the range: element i of these is first + i of the parameter. */
    brg_tensor *state[BRG__OPTIM_MAX_STATE];
    brg_tensor *master; /* NULL unless the parameter has 16 bits */
    char *name;
    double lr_scale;
    double weight_decay;
    /* Of the parameter after our last change: if it differs, somebody else
     * has written, and the master copy must follow. */
    uint32_t version;
    brg_dtype dtype; /* as they were at the start */
    int ndim;
    int64_t shape[BRG_MAX_DIMS];
} brg__slot;

/* n elements, of the type that the arithmetic is done in. */
typedef struct brg__run {
    void *param;
    const void *grad;
    void *state[BRG__OPTIM_MAX_STATE];
    size_t n;
} brg__run;

/* Scalars of a slot's step. */
typedef union brg__step_scalars {
    brg__sgd_scalars sgd;
    brg__adamw_scalars adamw;
} brg__step_scalars;

typedef struct brg__optim_rule {
    const char *name;
    const char *state_names[BRG__OPTIM_MAX_STATE];
    /* State arrays that this optimizer uses. */
    int (*n_state)(const brg_optim *optim);
    void (*prepare)(const brg_optim *optim, const brg__slot *slot, int64_t step,
                    brg__step_scalars *filled);
    void (*update)(const brg__real_kernels *kernels, const brg__run *run,
                   const brg__step_scalars *scalars);
    /* The scalars as a device takes them. */
    void (*describe)(const brg__step_scalars *scalars,
                     brg_device_update *filled);
} brg__optim_rule;

struct brg_optim {
    const brg__optim_rule *rule;
    union {
        brg_sgd_options sgd;
        brg_adamw_options adamw;
    } options;
    double lr;
    brg__slot *slots;
    size_t n_slots;
    brg_tensor *steps;                  /* i64, one per slot: steps taken */
    BRG__ARRAY(brg_named_tensor) state; /* names are owned */
    BRG__ARRAY(brg_tensor *) owners;    /* of each; NULL: of the optimizer */
    brg_device_update *updates; /* room for a step on a device, or NULL */
    bool has_warned;            /* of a step without any gradient */
};

/* One step of the slots whose parameters are not on the CPU, all that are on
 * one device at once; the checks of brg_optim_step are done. */
brg_status brg__optim_step_devices(brg_optim *optim);

/* The same when what it queues is launched again: rates and counts of steps go
 * into the launch. All parameters are on one device. */
brg_status brg__optim_note(const brg_optim *optim, brg__words *state);
void brg__optim_relaunch(brg_optim *optim, brg__relaunch *launch);

extern const brg__optim_rule brg__optim_sgd;
extern const brg__optim_rule brg__optim_adamw;

#endif
