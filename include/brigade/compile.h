/* SPDX-License-Identifier: Apache-2.0
 * Compiled backward: the backward pass captured once into a plan and replayed.
 *
 * Inside a scope every backward of the thread first collects what it is (the
 * graph, its ops, dtypes and hooks, no sizes, no addresses). The first time, the
 * plan is captured; from then on it runs, for all batch sizes. Hooks, custom
 * functions and reducers run at their places in it. Gradients are the eager
 * ones, bit for bit. A backward that no plan can serve runs eagerly and is
 * counted. */
#ifndef BRG_COMPILE_H
#define BRG_COMPILE_H

#include <brigade/status.h>
#include <brigade/types.h>

BRG_BEGIN_DECLS

/* ---- Options ------------------------------------------------------------------ */

/* Which sizes a plan is captured for. */
typedef enum brg_compile_dynamic {
    BRG_COMPILE_DYNAMIC_DEFAULT, /* scopes: ALL; brg_compiled: CHANGED */
    BRG_COMPILE_DYNAMIC_ALL,     /* all, at once */
    /* Those at hand; one that comes with another value is dynamic from then
     * on, which costs one more capture. */
    BRG_COMPILE_DYNAMIC_CHANGED
} brg_compile_dynamic;

typedef enum brg_compile_backend {
    BRG_COMPILE_BACKEND_DEFAULT, /* PASSES */
    BRG_COMPILE_BACKEND_EAGER,   /* the plan as captured, op by op */
    /* After its passes; groups of pointwise ops run tile by tile, with the bits
     * of the eager ops. */
    BRG_COMPILE_BACKEND_PASSES,
    /* Groups run as C kernels of their own, made by the system's compiler, or on
     * a GPU by NVRTC; the first backward of a plan waits for it. Small matrix
     * products on the CPU run by libxsmm, if the library was built with it. */
    BRG_COMPILE_BACKEND_FUSED
} brg_compile_backend;

typedef struct brg_compile_options {
    size_t struct_size;
    /* A backward that cannot be compiled, or not in one piece, fails. */
    bool fullgraph;
    brg_compile_dynamic dynamic;
    brg_compile_backend backend;
    size_t max_plans; /* the least recently used go; 0: 64 */
    /* Of brg_compiled only: the function itself is captured too. */
    bool whole;
    /* Of each executable is asked whether a device could replay it as one graph
     * of kernels: counted, with the reason if not. On a device that records,
     * backwards and whole steps are recorded so, and launched from then on
     * (docs/compiled.md). */
    bool replay;
} brg_compile_options;

#define BRG_COMPILE_OPTIONS_INIT BRG_INIT(brg_compile_options)

/* ---- Scopes -------------------------------------------------------------------- */

/* Scopes nest; each end gives back what its begin gave, innermost first, and
 * restores what was in force. *scope: the token to end it with. */
BRG_API BRG_NODISCARD brg_status
brg_compile_begin(int *scope, const brg_compile_options *options);
/* Eager inside, whatever is set around it or begun inside it. */
BRG_API BRG_NODISCARD brg_status brg_compile_disable_begin(int *scope);
/* Fails if a scope begun inside is still open: "Nested Compiled Autograd
 * Contexts must return before their parent context". */
BRG_API BRG_NODISCARD brg_status brg_compile_end(int scope);

/* True if a backward started now would be compiled. */
BRG_API bool brg_compile_is_on(void);

/* While on, scopes of all threads do nothing: backwards run eagerly. Returns
 * what was set before. */
BRG_API bool brg_compile_force_eager(bool is_on);

/* Drops the thread's plans, counters, records and scopes. Fails while a plan or
 * a function is captured or runs. */
BRG_API BRG_NODISCARD brg_status brg_compile_reset(void);

/* ---- Compiled functions ----------------------------------------------------------
 * A function of your own with options bound to it: backwards that start inside
 * a call of it, in whatever it calls, are compiled; those outside are not.
 *
 * With `whole` the function itself is captured: the first call with inputs of
 * this kind (dtypes, sizes, strides, which require gradients) calls it with
 * symbols, tensors that have sizes but no values; from then on its plan runs
 * and the function is not called. It becomes
 *
 *   a segment  if it calls no backward: one node of the graph, whose backward is
 *              a plan too and becomes part of a compiled backward around it.
 *              create_graph through it is an error.
 *   a step     if it calls backward: forward, backward with the hooks and
 *              reducers that the leaves have by then, and brg_optim_step,
 *              brg_optim_zero_grad, brg_clip_grad_*, in-place changes of tensors
 *              from outside, in the order of the calls. Results have no history.
 *
 * Tensors that are no inputs (parameters, buffers) belong to the plan, which
 * reads their values at each run: these objects, not others that take their
 * place later. Everything else that the function reads (numbers, flags, sizes)
 * is as it was in the first call; what changes from call to call must be in a
 * tensor, in an optimizer (its rate, its count of steps), or outside. What a
 * symbol cannot do (values read by the host, data of the caller, collectives, a
 * change of the function's own tensors in place, custom functions that are not
 * TRACEABLE) makes the function run in pieces: it is called again from its
 * start and from then on in each call, what it asks of tensors is put off until
 * a value is needed and runs as segments then. With fullgraph it fails,
 * naming the call. Objects that the function uses must outlive it or not be
 * used by another call. A tensor that it makes and keeps for itself has no
 * value after the call in which it was captured: its use is BRG_ERR_STATE. */

typedef brg_status (*brg_compiled_fn)(brg_tensor *const *inputs,
                                      size_t n_inputs, brg_tensor **outputs,
                                      size_t n_outputs, void *user);
typedef struct brg_compiled brg_compiled;

/* *out: owned. The options (NULL: defaults) are read now and copied. */
BRG_API BRG_NODISCARD brg_status
brg_compiled_create(brg_compiled **out, brg_compiled_fn fn, void *user,
                    const brg_compile_options *options);
/* Calls it; outputs[0..n_outputs), all NULL at first, are borrowed from the
 * scope of the caller. Any thread; its plans are the calling thread's. */
BRG_API BRG_NODISCARD brg_status brg_compiled_call(brg_compiled *compiled,
                                                   brg_tensor *const *inputs,
                                                   size_t n_inputs,
                                                   brg_tensor **outputs,
                                                   size_t n_outputs);
BRG_API void brg_compiled_destroy(brg_compiled *compiled);

/* Segments that differ in the size of this dim of this input share their
 * backward's plan from the first call on. Before the first call; BRG_ERR_STATE
 * after it. */
BRG_API BRG_NODISCARD brg_status
brg_compiled_mark_dynamic(brg_compiled *compiled, size_t input, int dim);

/* The text of what was captured, its i-th plan (of a segment the forward, then
 * the backward); returns the length that all of it needs, 0 if there is none. */
BRG_API size_t brg_compiled_print(const brg_compiled *compiled, size_t i,
                                  char *filled, size_t size);

/* ---- What happened --------------------------------------------------------------- */

/* Of the calling thread, since its start or reset. */
typedef struct brg_compile_stats {
    uint64_t captures;        /* plans captured */
    uint64_t hits;            /* backwards that found their plan */
    uint64_t specialisations; /* times a plan was made concrete for sizes */
    uint64_t fallbacks;       /* backwards that ran eagerly instead */
    uint64_t compiles;        /* pieces of the plans captured; a re-entrant
                                 stretch (recompute.h) is one */
    uint64_t splits;          /* places at which plans were cut */
    uint64_t evictions;       /* plans dropped for want of room */
    uint64_t buckets;         /* reductions that the plans captured start */
    uint64_t lookup_ns;       /* from a backward's start to its plan, on hits */
    uint64_t bytes_moved;     /* read and written by the ops that plans ran */
    uint64_t bytes_unfused;   /* the same had each op run for itself */
    /* Of functions compiled whole: */
    uint64_t functions;          /* captured */
    uint64_t function_hits;      /* calls that found their plan */
    uint64_t function_fallbacks; /* calls that ran in pieces, or eagerly */
    uint64_t function_pieces;    /* made for those */
    /* With options.replay, executables that a device */
    uint64_t replays;           /* could replay */
    uint64_t replay_skips;      /* could not */
    uint64_t replay_recordings; /* times one of those was recorded */
    uint64_t replay_launches;   /* runs that were one launch */
} brg_compile_stats;

BRG_API void brg_compile_get_stats(brg_compile_stats *filled);

typedef enum brg_compile_cause {
    BRG_COMPILE_NEW_NODE,      /* a capture: no plan has this node there */
    BRG_COMPILE_CHANGED_SIZES, /* a capture: for other sizes only */
    BRG_COMPILE_FALLBACK,      /* a backward that ran eagerly */
    BRG_COMPILE_REPLAY_SKIP    /* an executable that cannot be replayed */
} brg_compile_cause;

/* Why one plan more was captured, a backward ran eagerly, or an executable
 * cannot be replayed. */
typedef struct brg_compile_record {
    brg_compile_cause cause;
    uint64_t plan;     /* number of the plan, in order of capture */
    char node[32];     /* NEW_NODE: its name, and which of the plan it is */
    uint32_t call;     /* (NodeCall), the root being 0 */
    size_t key_size;   /* NEW_NODE: of this node, in bytes */
    size_t n_siblings; /* NEW_NODE: other keys of such a node seen there */
    size_t n_changed;  /* CHANGED_SIZES: sizes that changed, of n_sizes */
    size_t n_sizes;
    char text[256]; /* all of it in one line */
} brg_compile_record;

/* The i-th record of the thread, the latest being 0; false if there is none.
 * The last 64 are kept. */
BRG_API bool brg_compile_get_record(size_t i, brg_compile_record *filled);

/* The text of the latest record, "" if there is none; borrowed until the
 * thread's next backward. */
BRG_API const char *brg_compile_reason(void);

/* The text of plan number i (from 0, in order of capture), one node a line;
 * returns the length that all of it needs, 0 if there is no such plan (any
 * more). A new plan is logged as well: its lines as information, the reason
 * for debugging; the level is read where the scope begins. */
BRG_API size_t brg_compile_print(size_t i, char *filled, size_t size);
/* The same as a graph for Graphviz (dot -Tsvg): effects are grey, reductions
 * blue; dashed arrows lead from effect to effect in their order. */
BRG_API size_t brg_compile_print_dot(size_t i, char *filled, size_t size);

BRG_END_DECLS

#endif
