/* SPDX-License-Identifier: Apache-2.0
 * One stretch that will be run again: its frame, shared by what it saved. */
#ifndef BRG_CORE_AUTOGRAD_RECOMPUTE_H
#define BRG_CORE_AUTOGRAD_RECOMPUTE_H

#include <brigade/random.h>
#include <brigade/recompute.h>

#include "core/autograd/autocast.h"
#include "core/base/array.h"
#include "core/base/refcount.h"
#include "core/ops/op.h"

#define BRG__STRETCH_MAX 16 /* inputs, outputs */
/* Of all functions that are re-entrant stretches: to a plan they are the same.
 * No other has it. */
#define BRG__RECOMPUTE_ID 0

/* What stands in a node for a saved tensor. */
typedef struct brg__token {
    struct brg__frame *frame; /* retained */
    size_t index;             /* the how-manieth saved */
    brg_tensor *tensor;       /* retained; NULL until run again */
    brg__layout layout;       /* what it was the first time */
} brg__token;

typedef struct brg__frame {
    brg__refcount refs;
    brg_stretch_fn fn;
    void *user;
    brg_recompute_options options;
    brg_tensor *inputs[BRG__STRETCH_MAX]; /* retained */
    size_t n_inputs;
    brg_random_state random;
    brg_autocast autocast;
    BRG__ARRAY(brg__token *) tokens; /* borrowed; NULL where it is gone */
    /* Outputs of ops that the policy keeps, in order; retained. */
    BRG__ARRAY(brg_tensor *) kept;
} brg__frame;

brg_status brg__frame_new(brg__frame **out, brg_stretch_fn fn, void *user,
                          brg_tensor *const *inputs, size_t n_inputs,
                          const brg_recompute_options *options);
void brg__frame_release(brg__frame *frame);

/* Runs the stretch; `inputs` as the first time, or detached ones. */
brg_status brg__frame_run(brg__frame *frame, brg_tensor *const *inputs,
                          brg_tensor **outputs);

/* Detached copies of the inputs' handles that require gradients like them;
 * borrowed from the scope. */
brg_status brg__frame_detach(const brg__frame *frame, brg_tensor **inputs);

/* ---- selective.c: an emitter that keeps, or hands back, what ops gave -------- */

typedef struct brg__selective {
    brg__emitter base;
    brg__emitter *inner;
    brg__frame *frame;
    bool is_replaying;
    size_t n_replayed;
} brg__selective;

void brg__selective_begin(brg__selective *s, brg__frame *frame,
                          bool is_replaying);
void brg__selective_end(brg__selective *s);

/* ---- reentrant.c -------------------------------------------------------------- */

/* Takes over the caller's reference to `frame`. */
brg_status brg__recompute_reentrant(brg__frame *frame, brg_tensor **outputs);

#endif
