/* SPDX-License-Identifier: Apache-2.0
 * The inside of a run: its values and their memory. run.c goes from step to
 * step, run_ops.c carries out ops and groups, run_user.c calls what belongs to
 * the graph: hooks, custom functions, leaves, reductions. */
#ifndef BRG_COMPILE_RUN_INSIDE_H
#define BRG_COMPILE_RUN_INSIDE_H

#include "compile/plan.h"

typedef struct brg__running {
    brg__exec *exec;
    brg__task *task;
    brg__collected *c;
} brg__running;

/* The memory that a value lies in; NULL: it is a shape only, or none. */
static inline brg__root *brg__run_root(const brg__running *r, int id)
{
    int root = id == BRG__IR_NONE ? -1 : r->exec->values[id].root;
    return root < 0 ? NULL : &r->exec->roots[root];
}

static inline bool brg__run_has(const brg__running *r, int id)
{
    const brg__root *root = brg__run_root(r, id);
    return id != BRG__IR_NONE && (!root || !root->is_undefined);
}

/* Memory for those results of a node that get a tensor of their own. */
brg_status brg__run_make(brg__running *r, const brg__ir_node *node);
/* A result of user code becomes its root's tensor, row-major. A sparse one stays
 * as it is: hooks and leaves take it, ops and sums refuse it. */
brg_status brg__run_give(brg__running *r, int id, brg_tensor *t);

/* The root's tensor of this run; takes over the reference. */
void brg__run_set(brg__root *root, brg_tensor *real);

/* One step; all that is used up after it; all steps in their order. */
brg_status brg__run_step(brg__running *r, size_t at);
void brg__run_let_go(brg__running *r, size_t step);
brg_status brg__run_steps(brg__running *r);

/* Where the gradient that this root (or NULL) holds should lie (see
 * brg__placement), or NULL. */
brg_tensor *brg__run_home(const brg__running *r, const brg__root *root);

/* ---- run_ops.c ----------------------------------------------------------------- */

/* A step that is an op, a fan-in or a fused group. */
brg_status brg__run_op(brg__running *r, brg__step *step);

/* Of loose plans: the tensor of this run, borrowed; one that is a shape only, as
 * it is; NULL: undefined. */
brg_tensor *brg__run_operand(const brg__running *r, int id);
/* Offers the places in buckets that wait for n values to the next op; and takes
 * back what no op took. */
void brg__run_offer_homes(const brg__running *r, int first, int n);
void brg__run_close_offer(void);

/* ---- run_there.c --------------------------------------------------------------- */

/* A group on a device. */
brg_status brg__run_there(brg__running *r, brg__step *step);

/* ---- run_user.c ---------------------------------------------------------------- */

/* Any other step; the tensors that it takes are its own. */
brg_status brg__run_user(brg__running *r, size_t at);

#endif
