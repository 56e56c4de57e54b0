/* SPDX-License-Identifier: Apache-2.0
 * A function with the segments that it was captured into: one for each kind of
 * inputs (dtypes, sizes, strides, which require gradients), thread and mode.
 *
 * Its host code may depend on sizes in any way, so new sizes are captured anew
 * always; that costs a call with symbols. Where only sizes differ and the
 * backward comes out the same, the new segment takes the id of the old one if
 * the sizes that differ are dynamic: a compiled backward that knows the one has
 * a plan for the other. */
#ifndef BRG_COMPILE_FUNCTION_H
#define BRG_COMPILE_FUNCTION_H

#include <brigade/compile.h>

#include "compile/segment.h"

#define BRG__MAX_SEGMENTS 16 /* of a function; the least recently used goes */
#define BRG__MAX_PIECES 64
#define BRG__MAX_MARKED 16 /* inputs with dims marked dynamic */

typedef struct brg__variant {
    brg__bytes key;
    brg__segment *segment; /* NULL: it cannot be captured */
    char *reason;          /* then: why; owned */
    bool wants_graph;      /* then: nor in pieces */
    bool is_dynamic;   /* of segments with this id others may differ in size */
    brg__bytes shapes; /* of the inputs: ndim and sizes, one after another */
    uint64_t last_use;
} brg__variant;

typedef struct brg__function {
    brg__variant variants[BRG__MAX_SEGMENTS];
    size_t n_variants;
    BRG__ARRAY(brg__variant) pieces; /* of calls that are not one plan */
    brg__bytes key;                  /* of the call at hand */
    brg__bytes shapes;
    uint64_t clock;
    uint8_t marked[BRG__MAX_MARKED]; /* bit d: dim d of the input is dynamic */
    bool is_all_dynamic;             /* all sizes, from the start */
    brg_compile_backend backend;
    bool is_relaunched; /* its steps, where a device can (relaunch.h) */
    pthread_mutex_t lock;
    uint64_t n_segments; /* ids given */
} brg__function;

void brg__function_init(brg__function *f);
void brg__function_deinit(brg__function *f);

/* This dim of this input is dynamic; both are in range. */
brg_status brg__function_mark(brg__function *f, size_t input, int dim);

void brg__variant_clear(brg__variant *v);
uint64_t brg__next_segment_id(void);
/* Unique among all threads ever. */
uint64_t brg__this_thread(void);

/* Calls the function, which cannot be captured, in pieces (pieces.c); adds those
 * made for it to *n_made. */
brg_status brg__pieces_call(brg__function *f, const brg__traced_call *call,
                            brg_tensor **outputs, uint64_t *n_made);

typedef struct brg__call_outcome {
    bool is_captured; /* by this call */
    bool is_hit;      /* it was before */
    bool is_unfit;    /* nor can it run in pieces */
    const char *why;  /* it has not run: it is to be called eagerly; or NULL */
    size_t n_buckets; /* reductions in what was captured */
} brg__call_outcome;

/* Calls it through its segment, captured if there is none; fills outputs[],
 * borrowed from the scope. */
brg_status brg__function_call(brg__function *f, const brg__traced_call *call,
                              brg_tensor **outputs, brg__call_outcome *outcome);

#endif
