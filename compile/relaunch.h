/* SPDX-License-Identifier: Apache-2.0
 * A whole step on a device, recorded once as a graph of the device's work and
 * launched again: forward, backward, reductions and the optimizer, with nothing
 * for the host to do in between (ext/device.h).
 *
 *   judged    what the plan holds can be recorded at all (kinds of steps, all
 *             on one device, no code of the user)
 *   noted     before each call: everything that the work depends on but values
 *             on the device (addresses of parameters, gradients and state, the
 *             plan of the buckets). The graph serves calls that start as it did,
 *             and end where they started.
 *   recorded  the plan runs once more while the device writes down what it
 *             queues. Inputs are copied to where the graph reads them, results
 *             from where it writes them. Numbers of the host go along.
 *
 * Where the device has no memory for a graph, the call runs as without; for the
 * next one the graphs of the thread's other steps are given up, once.
 *
 * A call that no graph serves runs as without. Gradients that another holder
 * keeps make it differ, so that nothing is overwritten under him. */
#ifndef BRG_COMPILE_RELAUNCH_H
#define BRG_COMPILE_RELAUNCH_H

#include <stdatomic.h>

#include "compile/compiler.h"
#include "compile/relaunch_numbers.h"
#include "compile/segment.h"
#include "core/tensor/device.h"

#define BRG__RELAUNCH_WARM 2       /* calls before the first recording */
#define BRG__RELAUNCH_RECORDINGS 8 /* before it gives up */
#define BRG__RELAUNCH_UNFIT 16     /* calls in a row that cannot be noted */

typedef struct brg__relauncher {
    struct brg__relauncher *next; /* of all there are */
    _Atomic uintptr_t thread;     /* that calls it */
    brg_device device;
    const brg_device_vtable *vtable;
    void *graph;
    bool is_judged;
    bool is_off;      /* for good */
    bool is_recorded; /* the graph serves calls that begin as `state` */
    bool lacks_room;  /* the device had no memory for the last recording; */
    bool has_room;    /* the graphs of others were given up for the next */
    int n_runs, n_recordings, n_unfit;
    brg_tensor **inputs; /* where the graph reads them; owned */
    size_t n_inputs;
    brg__relaunch_numbers numbers;
    brg_tensor **outputs; /* where it leaves results; owned */
    brg__words state, now;
    size_t n_lasting;                         /* of now */
    BRG__ARRAY(brg__reduction_part) reducers; /* of the call at hand */
} brg__relauncher;

brg_status brg__relauncher_create(brg__relauncher **out);
void brg__relauncher_destroy(brg__relauncher *r);

/* brg__segment_run_forward of a step, by a launch if that serves. */
brg_status brg__relaunch_step(brg__segment *s, brg_tensor *const *inputs,
                              size_t n_inputs);

#endif
