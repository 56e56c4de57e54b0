/* SPDX-License-Identifier: Apache-2.0
 * A captured function made ready to run, for inputs of one kind and size.
 *
 * Called, a segment runs its forward plan and puts one node into the graph,
 * which owns what the backward plan reads. Eagerly the node runs the backward
 * plan; a compiled backward writes its nodes into its own instead
 * (capture_segment.c). A step puts nothing into the graph: its backward is
 * behind it. */
#ifndef BRG_COMPILE_SEGMENT_H
#define BRG_COMPILE_SEGMENT_H

#include <pthread.h>

#include <brigade/compile.h>

#include "compile/plan.h"
#include "compile/trace.h"

typedef struct brg__segment {
    brg__refcount refs;
    /* Of segments that differ in sizes only the same: their backwards are one
     * and the same plan. */
    uint64_t id;
    brg__captured captured;
    brg__exec *forward;
    brg__collected given; /* of a run of forward */
    brg_tensor **outputs; /* of forward */
    brg_attrs *draws;
    brg__run_io io;
    bool *requires_grad; /* of each value of forward: constants as captured */
    bool is_running;
    bool is_closed; /* brg__ir_is_closed, of forward */
    /* Of a step: the leaves that it reaches, while it runs. */
    brg__task task;
    bool is_in_backward;
    struct brg__relauncher *relauncher; /* of a step; or NULL */
    size_t n_backwards;                 /* begun, in this run */
    /* Any thread may run the backward; one at a time. */
    pthread_mutex_t lock;
    brg__exec *backward;
    brg__collected given_back;
} brg__segment;

/* Captures. *out: owned; NULL on failure, BRG_ERR_UNSUPPORTED as brg__trace
 * says. */
brg_status brg__segment_create(brg__segment **out, const brg__traced_call *call,
                               brg_compile_backend backend);
/* The same of what was captured already, which it takes over. */
brg_status brg__segment_adopt(brg__segment **out, brg__captured *captured,
                              brg_tensor *const *inputs, size_t n_inputs,
                              brg_compile_backend backend);
void brg__segment_retain(brg__segment *segment);
void brg__segment_release(brg__segment *segment);

typedef enum brg__segment_fit {
    BRG__SEGMENT_FITS,
    BRG__SEGMENT_OTHER, /* another one is needed: reductions are off, say */
    BRG__SEGMENT_STALE  /* nor will it ever fit again */
} brg__segment_fit;

/* Whether what it was captured with is still what it was: constants have their
 * sizes, and require gradients or not, as before; of a step, gradients are
 * reduced in the same buckets, or not at all, and nothing reads their memory. */
brg__segment_fit brg__segment_fits(const brg__segment *segment,
                                   brg_tensor *const *inputs);

/* Fills outputs[0..n_outputs), borrowed from the scope. */
brg_status brg__segment_run(brg__segment *segment, brg_tensor *const *inputs,
                            size_t n_inputs, brg_tensor **outputs,
                            size_t n_outputs);

/* Fills segment->outputs, owned by the caller then; whatever is there on
 * failure is his too. */
brg_status brg__segment_run_forward(brg__segment *segment,
                                    brg_tensor *const *inputs, size_t n_inputs);

/* One of the calling thread runs. */
bool brg__segment_runs(void);

/* The two have the same backward, sizes apart. */
bool brg__segment_is_like(const brg__segment *a, const brg__segment *b);

/* ---- segment_node.c ------------------------------------------------------------- */

/* Puts it into the graph: bases[] get their history. */
brg_status brg__segment_record(brg__segment *segment, brg_tensor *const *inputs,
                               brg_tensor *const *outputs);

/* The segment whose node this is, or NULL. */
brg__segment *brg__segment_of(const brg_node *node);
/* Its backward can be written into another plan: not where it has regions,
 * which are for the sizes of one call. */
bool brg__segment_splices(const brg_node *node);
/* What an op with lifted attributes reads: those of the node, or of one of a
 * segment's draws of random numbers (counted from 1). */
const brg_attrs *brg__segment_attrs(const brg_node *node, int draw);
/* The failure of create_graph through a segment. */
brg_status brg__segment_refuse_higher_order(void);
/* A plan takes over what the node saved: an op's or a segment's. */
bool brg__segment_frees(const brg_node *node);

#endif
