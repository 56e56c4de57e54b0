/* SPDX-License-Identifier: Apache-2.0
 * Capturing a function: it is called once with symbols in the place of its
 * inputs. Its ops are written down instead of run; gradients are recorded over
 * the symbols as over any tensors, so that the engine itself, run over them,
 * writes the backward down.
 *
 *   segment  the function calls no backward: its own backward is captured apart
 *            (pristine), over the gradients of its results and what forward
 *            saves for it
 *   step     the function calls backward: forward, backward, what becomes of
 *            the gradients and what else it does to real tensors (an optimizer's
 *            step) are one plan, in the order of the calls
 *
 * Tensors from outside that are no inputs (parameters, buffers) are constants
 * of the plan: it keeps them and reads their values when it runs. */
#ifndef BRG_COMPILE_TRACE_H
#define BRG_COMPILE_TRACE_H

#include <brigade/compile.h>

#include "compile/collect.h"
#include "compile/ir.h"
#include "core/autograd/engine.h"
#include "core/base/tracer.h"
#include "core/ops/op.h"

/* A result that is a view is made outside of the plan, by the same ops on
 * what the plan gives, so that it is recorded as a view of it. */
typedef struct brg__view_op {
    const brg_op *op;
    brg_attrs attrs;
} brg__view_op;

typedef enum brg__result_from {
    BRG__RESULT_NONE, /* the function left NULL */
    BRG__RESULT_BASE, /* `index`: which of the plan's outputs */
    BRG__RESULT_INPUT,
    BRG__RESULT_CONST /* `tensor` */
} brg__result_from;

typedef struct brg__result {
    brg__result_from from;
    int index;
    brg_tensor *tensor; /* borrowed from the IR */
    bool requires_grad; /* else it has no history */
    BRG__ARRAY(brg__view_op) views;
} brg__result;

/* An output of the forward plan that is a result, or what results are views
 * of. */
typedef struct brg__base {
    int value;
    int slot; /* of the segment's node; NONE: it carries no gradient */
} brg__base;

/* What the backward needs of the forward. */
typedef struct brg__kept {
    int value;         /* of the forward plan */
    bool is_shape;     /* only its shape: */
    brg_tensor *shape; /* without memory; owned */
    int output;        /* of the forward plan: where it comes out */
} brg__kept;

/* A leaf: an input, or a tensor from outside. */
typedef struct brg__leaf {
    int input;          /* or NONE */
    brg_tensor *tensor; /* borrowed from the IR, or NULL */
    /* Of a step: what the plan reduces of its gradient; ops NULL: the hooks that
     * it has are called. */
    brg__reduction_part part;
} brg__leaf;

static inline brg_tensor *brg__leaf_of(const brg__leaf *leaf,
                                       brg_tensor *const *inputs)
{
    return leaf->tensor ? leaf->tensor : inputs[leaf->input];
}

/* An input that the function knows by its address, too. */
typedef struct brg__known_input {
    int input;
    brg_tensor *tensor; /* retained */
} brg__known_input;

typedef struct brg__captured {
    brg__ir forward; /* a step: all of it */
    brg__ir backward;
    BRG__ARRAY(brg__known_input) known;
    bool is_step;
    BRG__ARRAY(brg__result) results; /* as many as the function has */
    BRG__ARRAY(brg__base) bases;
    BRG__ARRAY(brg__kept) kept; /* inputs n_slots.. of the backward */
    /* Outputs of the backward, in order; of a step, the visits of its task. */
    BRG__ARRAY(brg__leaf) edges;
    /* Of a step: those of each of its backwards begin at .. */
    BRG__ARRAY(brg__reduction) reductions;
    BRG__ARRAY(size_t) first_reduction;
    BRG__ARRAY(brg__reduction_member) members;
    BRG__ARRAY(brg__effect *) effects;        /* owned */
    BRG__ARRAY(brg__traced_region *) regions; /* owned */
    bool has_regions;
    int n_draws;   /* of random numbers */
    int n_slots;   /* bases that carry a gradient */
    int n_outputs; /* of the forward plan: bases, then what is kept */
} brg__captured;

typedef struct brg__traced_call {
    brg_compiled_fn fn;
    void *user;
    brg_tensor *const *inputs;
    size_t n_inputs;
    size_t n_outputs;
    /* (optional) Set once a gradient is to be differentiated again: nothing for
     * segments, be it in pieces. */
    bool *wants_graph;
    /* Run by a step's plan around its backward, with `object`. */
    brg__effect backward_begin;
    brg__effect backward_end;
} brg__traced_call;

/* Fills `out`, all zero, which the caller frees in any case. BRG_ERR_UNSUPPORTED:
 * the function does what cannot be captured; nothing but its own host code has
 * run, and it can be called eagerly. */
brg_status brg__trace(brg__captured *out, const brg__traced_call *call);
/* Of a region's result j, row-major. */
void brg__region_layout(const brg__traced_region *region, int j,
                        brg__layout *layout);
void brg__captured_deinit(brg__captured *captured);

/* What the hooks of a leaf answer to a plan: a failure is the plan's. part->ops
 * not NULL: its only hook reduces, and the plan may do so in its place. */
brg_status brg__leaf_ask(brg_tensor *leaf, brg__reduction_part *part);

#endif
