/* SPDX-License-Identifier: Apache-2.0
 * From IR and sizes to an executable: layouts, roots, lifetimes, the arena. */
#include <string.h>

#include "compile/plan.h"
#include "compile/relaunch_exec.h"
#include "compile/trace.h"
#include "core/base/error.h"
#include "core/ops/op.h"

#define ALIGNMENT BRG_CACHE_LINE
#define LARGE ((size_t)65536) /* bytes that are worth a block of their own */

/* ---- Values and roots ---------------------------------------------------------- */

static void lay_out(brg__exec *exec, int id, const brg__layout *layout,
                    int root)
{
    brg__value *v = &exec->values[id];
    brg_tensor *t = &v->t;
    memset(t, 0, sizeof *t);
    atomic_init(&t->refs.n, 1 << 20); /* never freed by a kernel */
    brg__tensor_lay_out(t, layout);
    v->root = root;
    t->storage = root >= 0 ? &exec->roots[root].storage : NULL;
}

static int new_root(brg__exec *exec, brg__root_kind kind,
                    const brg__layout *layout, int step)
{
    brg__root *root = &exec->roots[exec->n_roots];
    int64_t numel;
    (void)brg__shape_numel(layout->ndim, layout->shape, &numel);
    memset(root, 0, sizeof *root);
    atomic_init(&root->storage.refs.n, 1 << 20);
    root->storage.device = layout->device;
    root->kind = kind;
    root->layout = *layout;
    root->nbytes = (size_t)numel * brg_dtype_size(layout->dtype);
    root->storage.nbytes = root->nbytes;
    root->first = root->last = step;
    return (int)exec->n_roots++;
}

/* Inputs, slots and constants: what is there before the first step. */
static void lay_out_given(brg__exec *exec, int id, const brg__task *task,
                          const brg__collected *c)
{
    const brg__ir_value *v = &exec->ir->values.at[id];
    brg__layout layout;
    if (v->source == BRG__IR_FROM_SLOT) {
        layout =
            brg__slot_layout(&task->visits.at[v->visit].node->slots[v->index]);
        lay_out(exec, id, &layout, -1);
        return;
    }
    bool is_input = v->source == BRG__IR_FROM_INPUT;
    const brg_tensor *t = is_input ? c->inputs.at[v->index] : v->constant;
    layout = brg__layout_from_start(t);
    int root = new_root(exec, is_input ? BRG__ROOT_INPUT : BRG__ROOT_CONST,
                        &layout, -1);
    exec->roots[root].input = v->index;
    exec->roots[root].constant = v->constant;
    lay_out(exec, id, &layout, t->storage || t->sparse ? root : -1);
}

/* ---- Steps ------------------------------------------------------------------------ */

/* Results whose sizes the run makes out. */
static void give_roots(brg__exec *exec, size_t at, const brg__ir_node *node)
{
    for (int j = 0; j < node->n_out; j++) {
        int id = node->first_out + j;
        brg__layout layout = {.dtype = exec->ir->values.at[id].dtype};
        lay_out(exec, id, &layout,
                new_root(exec, BRG__ROOT_GIVEN, &layout, (int)at));
    }
}

/* A plan is for all strides. Where those of this run allow no view, the op gives
 * what it would of a row-major copy. */
static brg_status infer_strided(brg__step *step, brg_op_call *call)
{
    brg_status status = call->op->infer(call);
    brg_tensor *strided = step->in[0];
    if (status != BRG_ERR_SHAPE || !(call->op->flags & BRG_OP_VIEW) ||
        strided->is_contiguous)
        return status;
    brg__error_record first;
    brg_tensor copy = *strided;
    brg__error_save(&first);
    brg__shape_strides(copy.ndim, copy.shape, copy.stride);
    copy.is_contiguous = true;
    step->in[0] = &copy;
    step->is_copy = call->op->infer(call) == BRG_OK;
    step->in[0] = strided;
    if (step->is_copy)
        return BRG_OK;
    brg__error_restore(&first);
    return status;
}

static brg_status infer_op(brg__exec *exec, size_t at, const brg__ir_node *node)
{
    brg__step *step = &exec->steps[at];
    brg_op_call *call = &step->call;
    step->attrs = node->attrs;
    *call = (brg_op_call){.op = node->op,
                          .n_in = node->n_in,
                          .n_out = node->n_out,
                          .in = step->in,
                          .attrs = &step->attrs};
    for (int i = 0; i < node->n_in; i++) {
        int id = brg__ir_in(exec->ir, node)[i];
        step->in[i] = id == BRG__IR_NONE ? NULL : &exec->values[id].t;
    }
    if (exec->ir->is_loose) {
        give_roots(exec, at, node);
        return BRG_OK;
    }
    BRG_TRY(infer_strided(step, call));
    step->is_view = true;
    for (int j = 0; j < node->n_out; j++) {
        brg_out_info info = call->info[j];
        info.is_view &= !step->is_copy;
        brg__layout layout = brg__out_layout(&info, BRG_CPU);
        int id = node->first_out + j, root;
        if (info.is_view) {
            int of = brg__ir_in(exec->ir, node)[info.view_of];
            root = exec->values[of].root;
        } else {
            step->is_view = false;
            root = new_root(exec, BRG__ROOT_ARENA, &layout, (int)at);
        }
        lay_out(exec, id, &layout, root);
        call->out[j] = &exec->values[id].t;
    }
    return BRG_OK;
}

/* The group's space must be what its sizes make of it; else its ops run one by
 * one. */
static brg_status infer_fused(brg__exec *exec, size_t at,
                              const brg__ir_node *node)
{
    brg__step *step = &exec->steps[at];
    const brg__group *group = exec->ir->groups.at[node->group];
    brg_tensor results[BRG__GROUP_MAX_OPS];
    bool is_uniform;
    if (exec->ir->is_loose) {
        give_roots(exec, at, node);
        return BRG_OK;
    }
    for (int i = 0; i < node->n_in; i++)
        step->in[i] = &exec->values[brg__ir_in(exec->ir, node)[i]].t;
    BRG_TRY(brg__fused_infer(group, BRG_CPU, step->in, results, &is_uniform));
    for (int k = 0; k < group->n_ops; k++) {
        if (group->ops[k].out == BRG__GROUP_NONE)
            continue;
        int id = node->first_out + group->ops[k].out;
        brg__layout layout = brg__layout_of(&results[k]);
        lay_out(exec, id, &layout,
                new_root(exec, BRG__ROOT_ARENA, &layout, (int)at));
        step->out[group->ops[k].out] = &exec->values[id].t;
    }
    if (!is_uniform)
        return BRG_OK;
    BRG_TRY(
        brg__fused_create(&step->fused, group, step->in, step->out, results));
    if (step->fused->nbytes > exec->workspace_bytes)
        exec->workspace_bytes = step->fused->nbytes;
    return BRG_OK;
}

/* A gradient whose sizes are known is checked here: one that fits needs no step,
 * any other fails in its turn. What a function made is known when it has run. */
static bool lay_out_checked(brg__exec *exec, size_t at,
                            const brg__ir_node *node, const brg__task *task)
{
    int grad = brg__ir_in(exec->ir, node)[0];
    int made = brg__ir_maker(exec->ir, grad);
    const brg_tensor *t = &exec->values[grad].t;
    const brg__edge *edge =
        &task->visits.at[node->visit].node->edges[node->slot];
    const brg__slot *slot = &edge->node->slots[edge->slot];
    if (exec->ir->is_loose ||
        (made != BRG__IR_NONE &&
         exec->ir->nodes.at[made].kind == BRG__IR_CALL) ||
        t->dtype != slot->dtype || !brg__slot_has_sizes(slot, t))
        return false;
    brg__layout layout = brg__layout_of(t);
    lay_out(exec, node->first_out, &layout, exec->values[grad].root);
    exec->steps[at].is_view = true;
    return true;
}

static brg__layout layout_of_gradient(const brg__ir_node *node, int i,
                                      const brg__task *task)
{
    const brg__edge *edge = &task->visits.at[node->visit].node->edges[i];
    return edge->node ? brg__slot_layout(&edge->node->slots[edge->slot])
                      : (brg__layout){.dtype = BRG_DTYPE_F32};
}

/* Results of user code: row-major, whatever it made. A result has the sizes of
 * the operand it replaces, or of the slot it goes to. */
static void lay_out_special(brg__exec *exec, size_t at,
                            const brg__ir_node *node, const brg__task *task)
{
    for (int j = 0; j < node->n_out; j++) {
        int id = node->first_out + j;
        brg__layout layout = {.dtype = exec->ir->values.at[id].dtype};
        if (exec->ir->values.at[id].is_token) {
            lay_out(exec, id, &layout, -1);
            continue;
        }
        int like =
            j < node->n_in ? brg__ir_in(exec->ir, node)[j] : BRG__IR_NONE;
        if (node->kind == BRG__IR_UNPACK) {
            const brg_node *owner = task->visits.at[node->visit].node;
            layout = brg__layout_row_major(owner->saved[node->slot].tensor);
        } else if (node->kind == BRG__IR_REGION) {
            brg__region_layout(node->region, j, &layout);
        } else if (node->kind == BRG__IR_GRAD) {
            layout =
                brg__layout_row_major(task->visits.at[node->visit].node->leaf);
        } else if (node->kind == BRG__IR_CALL) {
            layout = layout_of_gradient(node, j, task);
        } else if (node->kind == BRG__IR_VALIDATE) {
            layout = layout_of_gradient(node, node->slot, task);
        } else if (like != BRG__IR_NONE) {
            layout = brg__layout_row_major(&exec->values[like].t);
        }
        brg__root_kind kind = node->kind == BRG__IR_ADD && !exec->ir->is_loose
                                  ? BRG__ROOT_ARENA
                                  : BRG__ROOT_GIVEN;
        lay_out(exec, id, &layout, new_root(exec, kind, &layout, (int)at));
    }
}

/* User code and leaves may keep what they are handed. */
static bool hands_out(const brg__ir_node *node)
{
    return node->kind != BRG__IR_OP && node->kind != BRG__IR_ADD &&
           node->kind != BRG__IR_FUSED;
}

static void use(brg__exec *exec, const brg__ir_node *node, int id, int step)
{
    int root = id == BRG__IR_NONE ? -1 : exec->values[id].root;
    if (root < 0)
        return;
    brg__root *r = &exec->roots[root];
    if (r->last < step)
        r->last = step;
    if (hands_out(node) && !exec->steps[step].is_view &&
        r->kind == BRG__ROOT_ARENA)
        r->kind = BRG__ROOT_HEAP;
}

/* Finds the last unpacking step of each node. */
static brg_status mark_last_unpacks(brg__exec *exec)
{
    bool *is_seen = brg__mem_alloc_array(brg__ir_count_visits(exec->ir) + 1,
                                         sizeof *is_seen, "nodes");
    if (!is_seen)
        return BRG_ERR_NOMEM;
    for (size_t at = exec->n_steps; at-- > 0;) {
        brg__step *step = &exec->steps[at];
        if (step->node->kind != BRG__IR_UNPACK)
            continue;
        step->frees_saved = !is_seen[step->node->visit];
        is_seen[step->node->visit] = true;
    }
    brg__mem_free(is_seen);
    return BRG_OK;
}

static brg_status make_steps(brg__exec *exec, const brg__task *task)
{
    const brg__ir *ir = exec->ir;
    for (size_t at = 0; at < ir->nodes.n; at++) {
        const brg__ir_node *node = &ir->nodes.at[at];
        exec->steps[at].node = node;
        if (node->kind == BRG__IR_OP)
            BRG_TRY(infer_op(exec, at, node));
        else if (node->kind == BRG__IR_FUSED)
            BRG_TRY(infer_fused(exec, at, node));
        else if (node->kind != BRG__IR_VALIDATE ||
                 !lay_out_checked(exec, at, node, task))
            lay_out_special(exec, at, node, task);
        for (int i = 0; i < node->n_in; i++)
            use(exec, node, brg__ir_in(ir, node)[i], (int)at);
    }
    return mark_last_unpacks(exec);
}

/* ---- The arena --------------------------------------------------------------------- */

static bool lives_with(const brg__root *a, const brg__root *b)
{
    return a->first <= b->last && b->first <= a->last;
}

/* The lowest offset at which `root` meets none of the roots placed so far that
 * live when it lives: first fit, in order of birth. */
static size_t first_fit(const brg__exec *exec, size_t n_placed,
                        const brg__root *root)
{
    size_t offset = 0;
    bool has_moved = true;
    while (has_moved) {
        has_moved = false;
        for (size_t k = 0; k < n_placed; k++) {
            const brg__root *other = &exec->roots[k];
            if (other->kind != BRG__ROOT_ARENA || !lives_with(root, other) ||
                offset >= other->offset + other->nbytes ||
                other->offset >= offset + root->nbytes)
                continue;
            offset = brg__round_up(other->offset + other->nbytes, ALIGNMENT);
            has_moved = true;
        }
    }
    return offset;
}

static brg_status place(brg__exec *exec)
{
    for (size_t k = 0; k < exec->n_roots; k++) {
        brg__root *root = &exec->roots[k];
        if (root->kind == BRG__ROOT_ARENA && root->nbytes >= LARGE)
            root->kind = BRG__ROOT_HEAP;
        if (root->kind != BRG__ROOT_ARENA)
            continue;
        root->offset = first_fit(exec, k, root);
        size_t end = root->offset + root->nbytes;
        exec->arena_bytes = end > exec->arena_bytes ? end : exec->arena_bytes;
    }
    exec->arena =
        brg__block_alloc(exec->arena_bytes + 1, ALIGNMENT, "a plan's arena");
    exec->workspace = brg__block_alloc(exec->workspace_bytes + 1, ALIGNMENT,
                                       "a plan's workspace");
    if (!exec->arena || !exec->workspace)
        return BRG_ERR_NOMEM;
    for (size_t k = 0; k < exec->n_roots; k++)
        if (exec->roots[k].kind == BRG__ROOT_ARENA)
            exec->roots[k].storage.data =
                (char *)exec->arena + exec->roots[k].offset;
    return BRG_OK;
}

/* Which roots to let go after each step; inputs never used, after none. */
static void list_dying(brg__exec *exec)
{
    int n = 0;
    for (size_t s = 0; s < exec->n_steps; s++) {
        exec->first_dying[s] = n;
        for (size_t k = 0; k < exec->n_roots; k++)
            if (exec->roots[k].last == (int)s)
                exec->dying[n++] = (int)k;
    }
    exec->first_dying[exec->n_steps] = n;
}

/* ---- Bytes ---------------------------------------------------------------------------- */

static size_t bytes_of(const brg__exec *exec, int id)
{
    if (id == BRG__IR_NONE || exec->values[id].root < 0)
        return 0;
    const brg_tensor *t = &exec->values[id].t;
    return (size_t)t->numel * brg__tensor_item_size(t);
}

static void count_bytes(brg__exec *exec)
{
    for (size_t at = 0; at < exec->n_steps; at++) {
        const brg__step *step = &exec->steps[at];
        const brg__ir_node *node = step->node;
        bool is_op = node->kind == BRG__IR_OP || node->kind == BRG__IR_ADD;
        size_t n = 0;
        if (step->fused) {
            exec->bytes_moved += step->fused->bytes_moved;
            exec->bytes_unfused += step->fused->bytes_unfused;
        }
        if (!is_op || step->is_view)
            continue;
        for (int i = 0; i < node->n_in; i++)
            n += bytes_of(exec, brg__ir_in(exec->ir, node)[i]);
        for (int j = 0; j < node->n_out; j++)
            n += bytes_of(exec, node->first_out + j);
        exec->bytes_moved += n;
        exec->bytes_unfused += n;
    }
}

/* ---- Kernels ------------------------------------------------------------------------ */

static brg_status load_kernels(brg__exec *exec)
{
    size_t n = 0;
    brg__fused **groups =
        brg__mem_alloc_array(exec->n_steps + 1, sizeof *groups, "groups");
    if (!groups)
        return BRG_ERR_NOMEM;
    for (size_t at = 0; at < exec->n_steps; at++)
        if (exec->steps[at].fused)
            groups[n++] = exec->steps[at].fused;
    brg_status status = brg__kernels_load(&exec->kernels, groups, n);
    brg__mem_free(groups);
    exec->products = brg__products();
    return status;
}

/* ---- Life ----------------------------------------------------------------------------- */

static brg_status reserve(brg__exec *exec)
{
    size_t n_values = exec->ir->values.n, n_steps = exec->ir->nodes.n;
    exec->n_steps = n_steps;
    exec->values = brg__mem_alloc_array(n_values + 1, sizeof *exec->values,
                                        "a plan's values");
    exec->roots = brg__mem_alloc_array(n_values + 1, sizeof *exec->roots,
                                       "a plan's memory");
    exec->steps = brg__mem_alloc_array(n_steps + 1, sizeof *exec->steps,
                                       "a plan's steps");
    exec->dying =
        brg__mem_alloc_array(n_values + 1, sizeof(int), "a plan's lifetimes");
    exec->first_dying =
        brg__mem_alloc_array(n_steps + 1, sizeof(int), "a plan's lifetimes");
    return exec->values && exec->roots && exec->steps && exec->dying &&
                   exec->first_dying
               ? BRG_OK
               : BRG_ERR_NOMEM;
}

brg_status brg__exec_create(brg__exec **out, const brg__ir *ir,
                            const brg__task *task, const brg__collected *c)
{
    *out = NULL;
    brg__exec *exec = BRG__NEW(brg__exec);
    if (!exec)
        return BRG_ERR_NOMEM;
    exec->ir = ir;
    brg_status status = reserve(exec);
    for (size_t id = 0; status == BRG_OK && id < ir->values.n; id++)
        if (ir->values.at[id].source != BRG__IR_FROM_NODE)
            lay_out_given(exec, (int)id, task, c);
    if (status == BRG_OK)
        status = make_steps(exec, task);
    if (status == BRG_OK)
        status = place(exec);
    if (status == BRG_OK && ir->wants_kernels)
        status =
            ir->is_loose ? brg__exec_load_there(exec, c) : load_kernels(exec);
    if (status != BRG_OK) {
        brg__exec_destroy(exec);
        return status;
    }
    list_dying(exec);
    count_bytes(exec);
    *out = exec;
    return BRG_OK;
}

void brg__exec_destroy(brg__exec *exec)
{
    if (!exec)
        return;
    brg__exec_again_destroy(exec);
    if (exec->arena)
        brg__block_free(exec->arena, exec->arena_bytes + 1, ALIGNMENT);
    if (exec->workspace)
        brg__block_free(exec->workspace, exec->workspace_bytes + 1, ALIGNMENT);
    for (size_t s = 0; exec->steps && s < exec->n_steps; s++) {
        brg__fused_destroy(exec->steps[s].fused);
        brg__mem_free(exec->steps[s].there);
    }
    brg__kernels_release(exec->kernels);
    brg__cuda_kernels_release(exec->there);
    brg__mem_free(exec->values);
    brg__mem_free(exec->roots);
    brg__mem_free(exec->steps);
    brg__mem_free(exec->dying);
    brg__mem_free(exec->first_dying);
    brg__mem_free(exec);
}
