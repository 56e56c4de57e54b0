/* SPDX-License-Identifier: Apache-2.0
 * The backward engine's inside: the task of one backward call.
 *
 *     collect: walk the graph, count each node's incoming edges
 *     run:     pop the latest ready node; hooks, gradient rule, hooks;
 *              add its results into the slots of the nodes behind it
 *
 * Ready nodes wait in a heap by sequence number, the latest recorded first;
 * accumulate nodes come before all others, so a gradient reaches its leaf (and
 * the reducer's hook) the moment it is complete. */
#ifndef BRG_CORE_AUTOGRAD_ENGINE_H
#define BRG_CORE_AUTOGRAD_ENGINE_H

#include "core/autograd/node.h"
#include "core/base/array.h"
#include "core/base/map.h"

/* A node in this task. */
typedef struct brg__visit {
    brg_node *node;
    uint32_t n_waiting;    /* incoming gradients still to come */
    uint32_t first_buffer; /* its slots in `buffers` */
    bool is_needed;        /* leads to a requested leaf */
    bool is_wanted;        /* some slot is an output of brg_grad */
} brg__visit;

/* A gradient asked for by brg_grad. */
typedef struct brg__request {
    uint32_t visit;
    uint32_t slot;
    brg_tensor *grad; /* owned */
} brg__request;

typedef struct brg__ready {
    uint64_t sequence;
    uint64_t arrival; /* first come, first served among equals */
    uint32_t visit;
} brg__ready;

typedef struct brg__callback {
    brg_final_callback_fn fn;
    void (*on_failure)(void *user); /* or NULL */
    void *user;
    int turn;
} brg__callback;

typedef struct brg__task {
    brg__map index; /* node -> visit */
    BRG__ARRAY(brg__visit) visits;
    BRG__ARRAY(brg_tensor *) buffers; /* owned; NULL: nothing arrived */
    BRG__ARRAY(brg__ready) heap;
    BRG__ARRAY(uint32_t) stack;
    BRG__ARRAY(brg__edge) roots; /* retained */
    BRG__ARRAY(brg__request) requests;
    BRG__ARRAY(brg__callback) callbacks;
    size_t n_called; /* of these */
    uint64_t n_arrivals;
    bool is_retained;   /* keep the graph */
    bool is_selective;  /* only needed nodes run */
    bool is_cut;        /* it runs as a plan of several pieces */
    bool returns_grads; /* brg_grad: leaves accumulate nothing */
    struct brg__task *outer;
} brg__task;

/* The most edges and the most slots that a node may have. */
#define BRG__MAX_SLOTS 512

/* The innermost backward of the thread, or NULL. */
brg__task *brg__task_current(void);

/* Inside a backward: `fn` runs at the end of the outermost one, as a final
 * callback; if that fails, before or in a final callback, `on_failure` runs
 * instead or as well, its errors being lost. Those that are queued here come in
 * order of `turn`, in whatever order gradients have arrived. */
brg_status brg__queue_at_end(brg_final_callback_fn fn,
                             void (*on_failure)(void *user), void *user,
                             int turn);

/* A backward whose steps are somebody else's, a plan's: between the two, the
 * task is the thread's innermost. The end runs the final callbacks or, when
 * status is a failure, those for failures; it returns status or what a
 * callback failed with. */
brg_status brg__task_enter(brg__task *task);
brg_status brg__task_leave(brg__task *task, brg_status status);

/* False for a node that a selective backward leaves out. */
bool brg__task_runs(const brg__task *task, const brg_node *node);
/* Bit i: somebody waits for the gradient of the node's edge i. */
uint32_t brg__task_needs(const brg__task *task, const brg_node *node);

/* ---- evaluate.c ---------------------------------------------------------------- */

/* Runs one ready node: hooks, rule, validation, routing. */
brg_status brg__task_evaluate(brg__task *task, uint32_t visit);

/* Adds `grad` (borrowed; NULL: undefined) into a slot of a visit. */
brg_status brg__task_add_gradient(brg__task *task, uint32_t visit,
                                  uint32_t slot, brg_tensor *grad);

/* Makes *grad fit the slot: sums broadcast dims, casts. */
brg_status brg__validate_gradient(const brg_node *from, size_t i,
                                  const brg__slot *slot, brg_tensor **grad);

/* No gradient arrived, and the node wants none: there is nothing to compute. */
bool brg__node_is_idle(const brg_node *node, brg_tensor *const *grads);

/* The parts of it, for a runner. Hooks replace entries of grads (owned) or of
 * grad_in (borrowed). */
brg_status brg__run_tensor_hooks(brg_node *node, uint32_t slot,
                                 brg__hook_range range, brg_tensor **grad);
brg_status brg__run_retain_writes(brg_node *node, uint32_t slot,
                                  brg_tensor *grad);
brg_status brg__run_pre_hooks(brg_node *node, brg__hook_range range,
                              brg_tensor **grads);
brg_status brg__run_post_hooks(brg_node *node, brg__hook_range range,
                               brg_tensor **grad_in,
                               brg_tensor *const *grad_out);

/* The tensor hooks of a node's outputs; a leaf has its own. NULL: none. */
brg__hook_list *brg__tensor_hooks_of(const brg_node *node);

/* A hook may change values, not what kind of thing it is. */
brg_status brg__check_replacement(const brg_tensor *before,
                                  const brg_tensor *after);

/* ---- Runners ------------------------------------------------------------------
 * Something else than the engine's own loop may run a task whose nodes are
 * collected and whose roots are ready: the compiled backward. One per thread. */
typedef struct brg__runner {
    brg_status (*run)(struct brg__runner *self, brg__task *task);
} brg__runner;

/* While a runner captures a plan, no backward may start. */
extern _Thread_local bool brg__runner_captures;

/* NULL: the engine itself. Returns the one before. While a runner runs, none is
 * set: a backward inside is the engine's. */
brg__runner *brg__runner_set(brg__runner *runner);

/* The engine's own loop. */
brg_status brg__task_run(brg__task *task);

/* ---- ready.c -------------------------------------------------------------------- */

brg_status brg__ready_push(brg__task *task, uint32_t visit);
/* False when none is ready. */
bool brg__ready_pop(brg__task *task, uint32_t *visit);

#endif
