/* SPDX-License-Identifier: Apache-2.0
 * A capture under way, shared by the files that make it: trace.c (symbols and
 * ops), trace_results.c (results, the pristine backward), trace_step.c (a
 * backward inside the function). */
#ifndef BRG_COMPILE_TRACE_INSIDE_H
#define BRG_COMPILE_TRACE_INSIDE_H

#include <stddef.h>

#include <brigade/random.h>

#include "compile/trace.h"
#include "core/tensor/symbol.h"

/* What a tensor without memory stands for. */
typedef struct brg__symbol {
    brg_tensor *tensor; /* owned */
    brg_tensor *real;   /* of a constant; borrowed from the IR */
    int value;          /* of the plan that it is written in */
    int input;          /* of the function, counted from 1; 0: it is none */
    bool is_backward;   /* which plan */
} brg__symbol;

/* Where the capture stood when a trial began. */
typedef struct brg__trial {
    bool is_on;
    size_t n_nodes, n_values, n_operands, n_symbols, n_draws, n_effects;
    brg_random_state random;
} brg__trial;

typedef struct brg__tracing {
    brg__emitter emitter;
    uint32_t capture; /* of its symbols */
    brg__tracer tracer;
    brg__runner runner;
    brg__captured *captured;
    const brg__traced_call *call;
    brg__ir *ir;      /* being written */
    bool is_backward; /* it is the segment's */
    BRG__ARRAY(brg__symbol) symbols;
    brg__map index;                     /* real tensor -> constant */
    BRG__ARRAY(brg_tensor *) constants; /* their symbols now; or NULL */
    BRG__ARRAY(brg_tensor *) inputs;    /* their symbols */
    BRG__ARRAY(brg_attrs) draws;        /* of random numbers */
    BRG__ARRAY(int) kept_values;        /* in the backward, of what is kept */
    brg_tensor *in[BRG_MAX_OP_INPUTS];  /* of the op being written down */
    /* Of a piece: real tensors are its inputs, none is a constant. */
    bool is_piece;
    BRG__ARRAY(brg_tensor *) piece_inputs; /* retained */
    brg__trial trial;
    bool is_refused;
    brg__error_record refusal;
} brg__tracing;

static inline brg__tracing *brg__tracing_of(brg__tracer *tracer)
{
    return (brg__tracing *)((char *)tracer - offsetof(brg__tracing, tracer));
}

/* ---- trace.c ------------------------------------------------------------------ */

/* NULL: it is none of this capture. */
brg__symbol *brg__trace_symbol(brg__tracing *t, const brg_tensor *tensor);
/* A value of the plan that is being written; *out: its symbol, borrowed. */
brg_status brg__trace_new(brg__tracing *t, brg__ir_value value,
                          const brg__layout *layout, brg_tensor **out);
/* The value that an operand is, NONE for NULL; *tensor becomes its symbol. */
brg_status brg__trace_operand(brg__tracing *t, brg_tensor **tensor, int *id);
brg_status brg__trace_bring(brg__tracer *self, brg_tensor **tensor);
/* Writes an op down; call->in become symbols. */
brg_status brg__trace_op(brg__tracing *t, brg_op_call *call);
void brg__tracing_deinit(brg__tracing *t);
brg_status brg__trace_effect(brg__tracing *t, const brg__effect *effect);
brg_status brg__trace_output(brg__tracing *t, brg_tensor *tensor, int slot);
/* Constants may have changed: who reads them again reads another value. */
void brg__trace_forget_constants(brg__tracing *t);

/* ---- trace_results.c ------------------------------------------------------------ */

const brg_tensor *brg__trace_outside(brg__tracing *t, const brg_tensor *symbol);
/* What the function gave back; of a segment, its backward too. */
brg_status brg__trace_segment(brg__tracing *t, brg_tensor *const *outputs);
brg_status brg__trace_step_results(brg__tracing *t, brg_tensor *const *outputs);

/* ---- trace_region.c: of the tracer ------------------------------------------------ */

brg_status brg__trace_call(brg__tracer *self, const brg__traced_region *region,
                           brg_tensor *const *in, brg_tensor **out);
brg_status brg__trace_trial_begin(brg__tracer *self);
brg_status brg__trace_trial_end(brg__tracer *self, brg_tensor *const *in,
                                int n_in, bool is_recorded);

/* ---- trace_step.c ----------------------------------------------------------------- */

/* The engine's runner while a function is captured. */
brg_status brg__trace_backward(brg__runner *self, brg__task *task);

#endif
