/* SPDX-License-Identifier: Apache-2.0
 * The inside of a capture: symbols and how they become values. capture.c walks
 * the graph, capture_rule.c calls the rules of its ops; functions, segments and what hangs
 * on nodes are written down in files of their own. */
#ifndef BRG_COMPILE_CAPTURE_INSIDE_H
#define BRG_COMPILE_CAPTURE_INSIDE_H

#include "compile/collect.h"
#include "compile/ir.h"
#include "core/autograd/context.h"
#include "core/ops/op.h"
#include "core/tensor/symbol.h"

typedef struct brg__capturing {
    brg__emitter base;
    uint32_t number; /* of this capture: of its symbols */
    brg__ir *ir;
    brg__task *task;
    const brg__collected *c;
    BRG__ARRAY(brg_tensor *) symbols; /* of each value; owned, may be NULL */
    BRG__ARRAY(int) buffers;          /* value in each slot of the task */
    BRG__ARRAY(int) input_value;      /* value of each input, or NONE */
    uint32_t visit;                   /* whose rule is being called */
    int n_segments;                   /* met so far */
    brg__call_trace *trace;           /* of the function being called */
    bool is_splicing;                 /* an op of a segment's backward */
} brg__capturing;

static inline int brg__capture_value_of(const brg_tensor *symbol)
{
    return (int)(intptr_t)symbol->symbol - 1;
}

/* A value with these sizes as its example. */
brg_status brg__capture_value(brg__capturing *c, brg__ir_value value,
                              const brg__layout *layout, int *id);
/* The same of a sparse tensor, with n_sparse dims of indices. */
brg_status brg__capture_sparse_value(brg__capturing *c, brg__ir_value value,
                                     const brg__layout *layout, int n_sparse,
                                     int *id);
/* The value of an op's operand: a symbol's, or a constant. */
brg_status brg__capture_operand(brg__capturing *c, brg_tensor *t, int *id);

/* Appends a node that is no op; outs[j] are new values with these layouts. */
brg_status brg__capture_node(brg__capturing *c, brg__ir_node node,
                             const int *in, int n_in,
                             const brg__layout *out_layouts, int *outs);

brg__layout brg__capture_row_major(const brg__capturing *c, int id);

/* The value of an input of the plan. */
brg_status brg__capture_input(brg__capturing *c, int input, int *id);
/* A value that stands for the sizes of a slot of a visit's node. */
brg_status brg__capture_like_slot(brg__capturing *c, uint32_t visit,
                                  uint32_t slot, int *id);

/* ---- capture_rule.c ------------------------------------------------------------ */

/* The backward of the node of c->visit. */
brg_status brg__capture_rule(brg__capturing *c, brg_node *node,
                             const int *grads, int *grad_in);
/* What the node of c->visit saved: tensor k, a packed one being unpacked here
 * when the plan runs; behind the tensors, the attributes of its function. NULL
 * where nothing was saved. */
brg_status brg__capture_saved(brg__capturing *c, const brg_node *node, size_t k,
                              brg_tensor **symbol);
/* Gradient i of the node of c->visit, as its slot takes it: what sizes and
 * dtypes call for is written down, by reference to the slot's sizes, then the
 * check. `is_by_rule`: the rule of an op made it. */
brg_status brg__capture_fit(brg__capturing *c, const brg_node *node, uint16_t i,
                            brg_tensor *grad, bool is_by_rule, int *value);

/* ---- capture_function.c: traceable functions --------------------------------- */

/* Its backward, called with symbols; *is_done false: it has to be called by
 * the plan after all. */
brg_status brg__capture_function(brg__capturing *c, brg_node *node,
                                 const int *grads, int *grad_in, bool *is_done);

/* ---- capture_segment.c ---------------------------------------------------------- */

/* Its backward, spliced into this one. */
brg_status brg__capture_segment(brg__capturing *c, const brg_node *node,
                                const int *grads, int *grad_in);

/* ---- capture_hooks.c: of the node of c->visit -------------------------------- */

/* Tensor hooks, retain-grad writes and outputs of brg_grad of one slot. */
brg_status brg__capture_slot(brg__capturing *c, const brg_node *node,
                             uint32_t slot, int *value);
brg_status brg__capture_pre_hooks(brg__capturing *c, const brg_node *node,
                                  int *grads);
brg_status brg__capture_post_hooks(brg__capturing *c, const brg_node *node,
                                   const int *grads, int *grad_in);
/* A leaf's accumulation and the hooks behind it. */
brg_status brg__capture_accumulate(brg__capturing *c, const brg_node *node,
                                   const int *grads);

#endif
