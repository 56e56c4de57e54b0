/* SPDX-License-Identifier: Apache-2.0
 * The ops of a backward on a device, recorded once and launched again: see
 * relaunch.h. What is no op (a gradient reaches its leaf, or the caller) comes
 * behind the launch, with copies of what it left. */
#include "compile/relaunch_exec.h"

#include <string.h>

#include "compile/relaunch.h"
#include "core/autograd/node.h"
#include "core/base/error.h"
#include "core/ops/op.h"
#include "core/tensor/shape.h"

#define WARM 1 /* runs before the first recording */

struct brg__exec_again {
    brg_device device;
    const brg_device_vtable *vtable;
    void *graph;
    bool is_off, is_recorded;
    int n_runs, n_recordings;
    brg_tensor **places;  /* of each root that is an input: where it is read;
                             NULL: where it lies; owned */
    brg_tensor **brought; /* of each such root: this run's */
    uintptr_t *lies;      /* and where that must be, or 0 */
    bool *moves;          /* a parameter that does not stay where it is */
    brg_tensor **results; /* of each root that is handed on; owned */
    bool *is_undefined;   /* of each root, when it was recorded */
};

/* ---- Life ---------------------------------------------------------------------- */

static brg_status reserve(brg__exec_again *a, size_t n)
{
    a->places = brg__mem_alloc_array(n + 1, sizeof *a->places, "inputs");
    a->brought = brg__mem_alloc_array(n + 1, sizeof *a->brought, "inputs");
    a->lies = brg__mem_alloc_array(n + 1, sizeof *a->lies, "inputs");
    a->results = brg__mem_alloc_array(n + 1, sizeof *a->results, "results");
    a->is_undefined = brg__mem_alloc_array(n + 1, 1, "results");
    a->moves = brg__mem_alloc_array(n + 1, 1, "inputs");
    return a->moves && a->places && a->brought && a->lies && a->results &&
                   a->is_undefined
               ? BRG_OK
               : BRG_ERR_NOMEM;
}

static void release_all(brg_tensor **tensors, size_t n)
{
    for (size_t k = 0; tensors && k < n; k++) {
        brg_release(tensors[k]);
        tensors[k] = NULL;
    }
}

void brg__exec_again_destroy(brg__exec *exec)
{
    brg__exec_again *a = exec->again;
    if (!a)
        return;
    release_all(a->places, exec->n_roots);
    release_all(a->results, exec->n_roots);
    if (a->graph)
        a->vtable->graph_free(a->device, a->graph);
    brg__mem_free(a->places);
    brg__mem_free(a->brought);
    brg__mem_free(a->lies);
    brg__mem_free(a->moves);
    brg__mem_free(a->results);
    brg__mem_free(a->is_undefined);
    brg__mem_free(a);
    exec->again = NULL;
}

static bool find_device(brg__exec_again *a, const brg__collected *c)
{
    for (size_t i = 0; i < c->inputs.n; i++)
        if (c->inputs.at[i]->device.type != BRG_DEVICE_CPU)
            a->device = c->inputs.at[i]->device;
    return a->device.type != BRG_DEVICE_CPU &&
           brg__device_find(a->device, &a->vtable) == BRG_OK &&
           a->vtable->graph_record;
}

brg_status brg__exec_again_create(brg__exec *exec, const brg__collected *c)
{
    brg__exec_again *a = BRG__NEW(brg__exec_again);
    if (!a)
        return BRG_ERR_NOMEM;
    exec->again = a;
    brg_status status = reserve(a, exec->n_roots);
    if (status != BRG_OK || !find_device(a, c))
        brg__exec_again_destroy(exec);
    return status;
}

static void turn_off(brg__exec_again *a, const char *why)
{
    a->is_off = true;
    a->is_recorded = false;
    brg__compiler_mine()->stats.replay_skips++;
    brg__reason_of_skip(brg__compiler_mine(), NULL, why);
}

/* ---- Inputs ------------------------------------------------------------------------ */

static brg_status copy(const brg_tensor *to, const brg_tensor *from)
{
    return from->is_contiguous
               ? brg__device_copy(to->device, brg__tensor_ptr(to), from->device,
                                  brg__tensor_ptr(from),
                                  brg_tensor_nbytes(from))
               : brg__copy_now(to, from);
}

static bool is_read(const brg__root *root)
{
    return root->kind == BRG__ROOT_INPUT && root->real && root->real->storage;
}

/* Where this root must lie for the graph; 0: anywhere, it is copied. Only
 * parameters stay where they are. */
static uintptr_t lies_at(const brg__running *r, size_t k)
{
    const brg__root *root = &r->exec->roots[k];
    const bool stays = is_read(root) && !r->exec->again->moves[k] &&
                       brg_is_leaf(root->real) && brg_requires_grad(root->real);
    return stays ? (uintptr_t)brg__tensor_ptr(root->real) : 0;
}

static bool lies_right(const brg__running *r)
{
    const brg__exec_again *a = r->exec->again;
    bool is_right = true;
    for (size_t k = 0; k < r->exec->n_roots; k++) {
        const bool is_moved = a->lies[k] != lies_at(r, k);
        a->moves[k] |= is_moved;
        is_right &= !is_moved;
    }
    return is_right;
}

static brg_status swap_in(brg__running *r)
{
    brg__exec_again *a = r->exec->again;
    for (size_t k = 0; k < r->exec->n_roots; k++) {
        brg__root *root = &r->exec->roots[k];
        a->brought[k] = NULL;
        a->lies[k] = lies_at(r, k);
        if (!is_read(root) || a->lies[k] != 0)
            continue;
        if (!a->places[k]) /* there: a number of the host is moved */
            BRG_TRY(brg__tensor_new_like(&a->places[k], root->real, a->device));
        BRG_TRY(copy(a->places[k], root->real));
        a->brought[k] = root->real;
        brg__run_set(root, brg_retain(a->places[k]));
    }
    return BRG_OK;
}

static void swap_out(brg__running *r)
{
    brg__exec_again *a = r->exec->again;
    for (size_t k = 0; k < r->exec->n_roots; k++)
        if (a->brought[k]) {
            brg_release(r->exec->roots[k].real);
            brg__run_set(&r->exec->roots[k], a->brought[k]);
            a->brought[k] = NULL;
        }
}

/* ---- Results ------------------------------------------------------------------------- */

/* Of sizes and dtypes that are those of the recording: nothing but ops comes
 * of a validation. */
static bool is_op(const brg__ir_node *node)
{
    return node->kind == BRG__IR_OP || node->kind == BRG__IR_ADD ||
           node->kind == BRG__IR_FUSED || node->kind == BRG__IR_VALIDATE;
}

/* After a recording: what ops have made and others take is kept. */
static void keep_results(brg__running *r)
{
    brg__exec_again *a = r->exec->again;
    for (size_t at = 0; at < r->exec->n_steps; at++) {
        const brg__ir_node *node = r->exec->steps[at].node;
        for (int i = 0; i < node->n_in && !is_op(node); i++) {
            brg__root *root =
                brg__run_root(r, brg__ir_in(r->exec->ir, node)[i]);
            size_t k = root ? (size_t)(root - r->exec->roots) : 0;
            if (root && root->kind == BRG__ROOT_GIVEN && root->real &&
                !a->results[k])
                a->results[k] = brg_retain(root->real);
        }
    }
    for (size_t k = 0; k < r->exec->n_roots; k++) {
        brg__root *root = &r->exec->roots[k];
        a->is_undefined[k] = root->is_undefined;
        if (root->kind != BRG__ROOT_GIVEN)
            continue;
        brg_release(root->real);
        root->real = NULL;
    }
}

static brg_status copy_results(brg__running *r)
{
    brg__exec_again *a = r->exec->again;
    for (size_t k = 0; k < r->exec->n_roots; k++) {
        brg__root *root = &r->exec->roots[k];
        root->is_undefined = a->is_undefined[k];
        if (!a->results[k])
            continue;
        brg_tensor *mine;
        BRG_TRY(brg__tensor_new_like(&mine, a->results[k], a->device));
        brg__run_set(root, mine);
        BRG_TRY(copy(mine, a->results[k]));
    }
    return BRG_OK;
}

/* ---- A run ------------------------------------------------------------------------------ */

static brg_status run_some(brg__running *r, bool ops)
{
    for (size_t at = 0; at < r->exec->n_steps; at++) {
        if (is_op(r->exec->steps[at].node) == ops)
            BRG_TRY(brg__run_step(r, at));
        if (!ops)
            brg__run_let_go(r, at);
    }
    return BRG_OK;
}

/* What was recorded is launched in any case. */
static brg_status record(brg__running *r)
{
    brg__exec_again *a = r->exec->again;
    brg__error_record kept;
    a->is_recorded = false;
    release_all(a->results, r->exec->n_roots);
    BRG_TRY(a->vtable->graph_record(a->device, &a->graph));
    a->n_recordings++;
    brg__compiler_mine()->stats.replay_recordings++;
    brg_status run = run_some(r, true);
    if (run != BRG_OK)
        brg__error_save(&kept);
    brg_status status = a->vtable->graph_recorded(a->device, a->graph);
    if (status == BRG_OK)
        status = a->vtable->graph_launch(a->device, a->graph);
    keep_results(r);
    if (run != BRG_OK) {
        brg__error_restore(&kept);
        return run;
    }
    a->is_recorded = status == BRG_OK;
    if (status != BRG_ERR_UNSUPPORTED && status != BRG_ERR_NOMEM)
        return status;
    turn_off(a, brg_error_message());
    return BRG_OK; /* it has run */
}

static brg_status launch(brg__running *r)
{
    brg__exec_again *a = r->exec->again;
    brg__compiler_mine()->stats.replay_launches++;
    return a->vtable->graph_launch(a->device, a->graph);
}

bool brg__exec_again_serves(const brg__exec *exec)
{
    brg__exec_again *a = exec->again;
    return a && exec->is_launched && !a->is_off && a->n_runs++ >= WARM;
}

brg_status brg__exec_again_run(brg__running *r)
{
    brg__exec_again *a = r->exec->again;
    const bool is_there = a->is_recorded && lies_right(r);
    if (!is_there && a->n_recordings == BRG__RELAUNCH_RECORDINGS)
        turn_off(a, "parameters that move from run to run");
    if (a->is_off)
        return brg__run_steps(r);
    brg_status status = swap_in(r);
    if (status == BRG_OK)
        status = is_there ? launch(r) : record(r);
    swap_out(r);
    if (status == BRG_OK)
        status = copy_results(r);
    return status == BRG_OK ? run_some(r, false) : status;
}
