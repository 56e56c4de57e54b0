/* SPDX-License-Identifier: Apache-2.0
 * The captured backward: a list of nodes over values, in the order of
 * execution. A capture appends; passes edit (ir_edit.c).
 *
 * A value is a tensor of known dtype and dims whose sizes come with each run.
 * Nodes that are no ops stand for what only the running graph knows: hooks,
 * custom functions, accumulation. They name the visit (the how-manieth node of
 * the graph in collection order) whose node they speak of. */
#ifndef BRG_COMPILE_IR_H
#define BRG_COMPILE_IR_H

#include <brigade/ext/op.h>
#include <brigade/runtime.h>

#include "compile/fuse/group.h"
#include "core/autograd/hooks.h"
#include "core/base/array.h"
#include "core/tensor/tensor.h"

/* X(NAME, text, is_pure). */
#define BRG__IR_KINDS(X)                                                       \
    X(OP, "op", true)                                                          \
    X(ADD, "add", true)        /* fan-in: undefined operands are skipped */    \
    X(FUSED, "fused", true)    /* a group of pointwise ops (fuse/group.h) */   \
    X(UNPACK, "unpack", false) /* a saved tensor packed by hooks */            \
    X(TENSOR_HOOKS, "tensor_hooks", false)                                     \
    X(RETAIN, "retain_grad", false)                                            \
    X(DELIVER, "deliver", false) /* an output of brg_grad */                   \
    X(PRE_HOOKS, "pre_hooks", false)                                           \
    X(POST_HOOKS, "post_hooks", false)                                         \
    X(CALL, "call", false)         /* a custom function's backward */          \
    X(VALIDATE, "validate", false) /* a gradient fits the slot it goes to */   \
    X(ACCUMULATE, "accumulate", false)                                         \
    X(POST_ACCUMULATE, "post_accumulate", false)                               \
    X(GRAD, "grad", false)         /* reads .grad */                           \
    X(SET_GRAD, "set_grad", false) /* replaces it */                           \
    X(PACK, "pack", false)         /* a gradient into its bucket */            \
    X(START, "all_reduce_start", false)                                        \
    X(WAIT, "wait", false)                                                     \
    X(WRITE_BACK, "write_back", false)                                         \
    X(LEAF, "leaf", false)     /* accumulate, with all the leaf's hooks */     \
    X(EFFECT, "effect", false) /* a call that is no op */                      \
    X(REGION, "region", false) /* a branch or loop that values decide */       \
    X(OUTPUT, "output", false) /* a result of the plan */                      \
    X(FINAL, "final_callbacks", false) /* where the engine runs them: a stub */

typedef enum brg__ir_kind {
#define BRG__IR_ENUM(name, text, is_pure) BRG__IR_##name,
    BRG__IR_KINDS(BRG__IR_ENUM)
#undef BRG__IR_ENUM
} brg__ir_kind;

#define BRG__IR_NONE (-1)
#define BRG__IR_MAX_IN 32
#define BRG__IR_MAX_OUT 32

/* What a node of a reduction speaks of: core/autograd/reduction.h. */
typedef struct brg__ir_bucket {
    int reduction; /* which of those of the run */
    int number;
    int n_members; /* gradients that belong to it */
    int divisor;
} brg__ir_bucket;

typedef struct brg__ir_node {
    brg__ir_kind kind;
    const brg_op *op; /* of OP */
    brg_attrs attrs;  /* of OP */
    int lifted;       /* OP: attrs come from this visit's node, or NONE */
    int draw;         /* OP: the attrs are those of this draw of random numbers,
                         counted from 1; 0: of none */
    bool is_drawing;  /* it draws them, */
    int64_t n_drawn;  /* so many when it was captured */
    int visit;        /* of the others: the node they speak of, or NONE */
    int slot;         /* TENSOR_HOOKS, RETAIN; DELIVER: which output;
                         UNPACK: which saved tensor of the node;
                         VALIDATE: which gradient of the node;
                         PACK, WRITE_BACK: which gradient of the
                         reduction; OUTPUT: which */
    struct brg__effect *effect;              /* of EFFECT; borrowed */
    const struct brg__traced_region *region; /* of REGION; borrowed */
    uint64_t segment;      /* its backward that this comes from: id + 1; or 0 */
    int instance;          /* which use of it */
    int group;             /* FUSED: which of the groups */
    brg__hook_range hooks; /* which of the list: hook nodes */
    brg__ir_bucket bucket; /* PACK, START, WAIT, WRITE_BACK */
    bool is_split;         /* CALL, UNPACK: the plan is cut here */
    bool is_stretch;       /* CALL: it runs a stretch of the forward again */
    bool is_by_rule;       /* VALIDATE: an op's gradient rule made it */
    int n_in, n_out;
    int first_in;  /* in `operands`: value ids, NONE where there is none */
    int first_out; /* value ids are consecutive: first_out .. + n_out */
} brg__ir_node;

typedef enum brg__ir_source {
    BRG__IR_FROM_NODE,
    BRG__IR_FROM_INPUT, /* `index`: which tensor of the run's inputs */
    BRG__IR_FROM_SLOT,  /* shape only: slot `index` of visit `visit` */
    BRG__IR_FROM_CONST  /* `constant`, made during the capture */
} brg__ir_source;

typedef struct brg__ir_value {
    brg__ir_source source;
    int node; /* FROM_NODE */
    int index;
    int visit;
    brg_dtype dtype;
    int ndim;
    uint8_t ones;         /* bit d: dim d was 1 when captured */
    bool is_token;        /* no tensor: says that something has happened */
    brg_tensor *constant; /* owned */
} brg__ir_value;

/* What the plan knows of a custom function that it calls or has traced. Bit i
 * of a mask: argument or output i. */
typedef struct brg__ir_function {
    char name[48];
    int visit;
    int n_args, n_out, n_saved;
    uint32_t tensors;    /* arguments that are tensors */
    uint32_t saved_args; /* that it saved; the rest of n_saved is its own */
    uint32_t grads;      /* that get a gradient; null for all others */
    uint32_t non_differentiable; /* outputs */
} brg__ir_function;

typedef struct brg__ir {
    BRG__ARRAY(brg__ir_node) nodes;
    BRG__ARRAY(brg__ir_value) values;
    BRG__ARRAY(int) operands;
    BRG__ARRAY(brg__group *) groups;        /* owned */
    BRG__ARRAY(brg__ir_function) functions; /* in the order of the plan */
    BRG__ARRAY(int) traced; /* visits of functions whose ops are in the plan */
    /* Each op is called as if it were eager, with tensors of its own: results
     * are recorded, or sparse. */
    bool is_loose;
    /* For no other reason than a device: groups may be kernels of it. */
    bool is_there;
    int n_inputs;       /* tensors that a run brings */
    bool wants_kernels; /* groups run compiled C, where they can */
    size_t n_dropped;   /* nodes that nobody needed (dce) */
    bool has_ranges;    /* some hooks of a list are nodes, and some are not */
} brg__ir;

void brg__ir_deinit(brg__ir *ir);

/* The id of the new value, or a failure. */
brg_status brg__ir_add_value(brg__ir *ir, const brg__ir_value *value, int *id);

static inline uint8_t brg__ir_ones(const brg__layout *layout)
{
    unsigned ones = 0;
    for (int d = 0; d < layout->ndim && d < BRG_MAX_DIMS; d++)
        ones |= (unsigned)(layout->shape[d] == 1) << d;
    return (uint8_t)ones;
}

/* Appends a node with its operands; its outputs are values still to be added
 * by the caller, in order. */
brg_status brg__ir_add_node(brg__ir *ir, const brg__ir_node *node,
                            const int *in, int n_in);

/* A gradient's own pack, start, wait and write-back, as if it were a bucket: the
 * pass `buckets` puts them together. `reduction`: which of those of the run. */
brg_status brg__ir_add_reduction(brg__ir *ir, int visit, int reduction,
                                 const brg__reduction_part *part);

static inline bool brg__ir_is_reduction(const brg__ir_node *n)
{
    return n->kind >= BRG__IR_PACK && n->kind <= BRG__IR_WRITE_BACK;
}

static inline const int *brg__ir_in(const brg__ir *ir, const brg__ir_node *n)
{
    return ir->operands.at + n->first_in;
}

/* Stable text, one node a line; returns the length that all of it needs. */
size_t brg__ir_print(const brg__ir *ir, char *filled, size_t size);
/* The same as a graph for Graphviz: effects are grey, reductions blue, and
 * dashed arrows lead from effect to effect in their order. */
size_t brg__ir_print_dot(const brg__ir *ir, char *filled, size_t size);
/* The text to the log, each line behind `prefix`. */
void brg__ir_log(const brg__ir *ir, brg_log_level level, const char *prefix);

/* Every operand is defined before its use, every id is in range, every op has
 * the number of operands that its row says. */
brg_status brg__ir_verify(const brg__ir *ir);

/* How often the plan is cut: stretches of it between cuts that compute
 * something are its pieces, and cuts with nothing between them are one. A
 * re-entrant stretch runs between cuts, so it is a piece of its own. */
typedef struct brg__ir_pieces {
    size_t n_splits;
    size_t n_pieces;
    int first_split; /* a node, or NONE */
} brg__ir_pieces;
brg__ir_pieces brg__ir_count_pieces(const brg__ir *ir);

/* ---- Editing (ir_edit.c): what passes are made of ----------------------------- */

/* Has no effect but its results: may be dropped, moved, made once for two. */
bool brg__ir_is_pure(const brg__ir_node *node);

/* The node that makes a value, or NONE. */
int brg__ir_maker(const brg__ir *ir, int id);
/* The same of what validation has let pass. */
int brg__ir_maker_of_checked(const brg__ir *ir, int id);

size_t brg__ir_count(const brg__ir *ir, brg__ir_kind kind);

/* Code of the user runs in it: it may change tensors from outside, or what it
 * is handed. */
bool brg__ir_runs_user_code(const brg__ir_node *node);
/* No node runs any, which might start backwards of its own. */
bool brg__ir_is_closed(const brg__ir *ir);

/* No node speaks of a visit as high as this. */
size_t brg__ir_count_visits(const brg__ir *ir);

/* For each value: how often it is an operand. The array has room for all. */
void brg__ir_count_uses(const brg__ir *ir, int *n_uses);

/* For each value: whose memory it may be; of each root: it is a constant or is
 * given to nodes that may change it. The arrays have room for all values. */
void brg__ir_find_roots(const brg__ir *ir, int *root, bool *is_handed);
/* Some operand of the node is memory that code of the user may change: from
 * outside, or handed to it. */
bool brg__ir_reads_exposed(const brg__ir *ir, const brg__ir_node *node,
                           const int *root, const bool *is_handed);

/* Every operand `id` becomes to[id]. */
void brg__ir_rename(brg__ir *ir, const int *to);

/* The nodes become order[0..n) (indices of now), those not listed go. New
 * nodes are appended with brg__ir_add_node and then put in their places. */
brg_status brg__ir_arrange(brg__ir *ir, const int *order, size_t n);

#endif
