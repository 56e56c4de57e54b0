/* SPDX-License-Identifier: Apache-2.0
 * Steps that are ops: one by one, as the engine would call them, or in fused
 * groups. */
#include <string.h>

#include "compile/run_inside.h"
#include "compile/segment.h"
#include "core/base/error.h"
#include "core/ops/convert.h"
#include "core/ops/op.h"
#include "core/tensor/shape.h"

#include <brigade/ops.h>
#include <brigade/sparse.h>

static brg_status check_dense(const brg__running *r, const brg__ir_node *node)
{
    for (int i = 0; i < node->n_in; i++) {
        const brg__root *root =
            brg__run_root(r, brg__ir_in(r->exec->ir, node)[i]);
        if (root && root->real && root->real->sparse)
            return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                            "a compiled backward takes sparse gradients of "
                            "custom functions straight to leaves only");
    }
    return BRG_OK;
}

static int64_t n_drawn(const brg__running *r, const brg__step *step)
{
    const brg_tensor *out = step->call.out[0];
    const brg__root *x =
        brg__run_root(r, brg__ir_in(r->exec->ir, step->node)[0]);
    return out ? out->numel : x->real->numel;
}

/* Random numbers: drawn now, or those that were drawn. */
static void set_attrs(brg__running *r, brg__step *step)
{
    const brg__ir_node *node = step->node;
    if (node->lifted != BRG__IR_NONE) {
        const brg_node *from = r->task->visits.at[node->lifted].node;
        step->attrs = *brg__segment_attrs(from, node->draw);
    } else if (node->draw) {
        brg_attrs *drawn = &r->exec->io->draws[node->draw - 1];
        if (node->is_drawing && !r->exec->io->is_drawn) {
            *drawn = node->attrs;
            brg__dropout_redraw(drawn, n_drawn(r, step));
        }
        step->attrs = *drawn;
    }
}

/* The kernel has counted its changes in the plan's own storages. */
static void touch_given(const brg__running *r, const brg__ir_node *node)
{
    for (int i = 0; i < node->n_in; i++) {
        brg__root *root = brg__run_root(r, brg__ir_in(r->exec->ir, node)[i]);
        if (root && atomic_exchange(&root->storage.version, 0) != 0 &&
            (root->kind == BRG__ROOT_CONST || root->kind == BRG__ROOT_INPUT))
            brg_tensor_touch(root->real);
    }
}

/* The op is a view of a row-major copy of its operand, which becomes that copy. */
static brg_status copy_strided(const brg_op_call *call)
{
    const brg_tensor *from = call->in[0];
    brg_tensor to = *call->out[0];
    to.ndim = from->ndim;
    memcpy(to.shape, from->shape, sizeof to.shape);
    brg__shape_strides(to.ndim, to.shape, to.stride);
    return brg__copy_now(&to, from);
}

static brg_status call_op(const brg__running *r, brg__step *step)
{
    const brg_op *op = step->call.op;
    if (step->is_copy)
        return copy_strided(&step->call);
    if (!r->exec->products || !(op->flags & BRG_OP_PRODUCTS))
        return op->run[BRG_DEVICE_CPU](&step->call);
    const brg__gemm_maker *before = brg__gemm_swap(r->exec->products);
    brg_status status = op->run[BRG_DEVICE_CPU](&step->call);
    (void)brg__gemm_swap(before);
    return status;
}

static brg_status run_op(brg__running *r, brg__step *step)
{
    const brg__ir_node *node = step->node;
    bool is_missing = false;
    for (int i = 0; i < node->n_in; i++) {
        int id = brg__ir_in(r->exec->ir, node)[i];
        is_missing |= id != BRG__IR_NONE && !brg__run_has(r, id);
    }
    for (int j = 0; is_missing && j < node->n_out; j++) {
        brg__root *root = brg__run_root(r, node->first_out + j);
        if (root && !step->is_view)
            root->is_undefined = true;
    }
    if (is_missing)
        return BRG_OK;
    BRG_TRY(check_dense(r, node));
    if (step->is_view)
        return BRG_OK;
    BRG_TRY(brg__run_make(r, node));
    set_attrs(r, step);
    BRG_TRY(call_op(r, step));
    if (node->op->flags & BRG_OP_IMPURE) /* it may have changed tensors */
        touch_given(r, node);
    return BRG_OK;
}

/* Fan-in: the sum, or the one that is there. */
static brg_status run_add(brg__running *r, const brg__ir_node *node)
{
    const int *in = brg__ir_in(r->exec->ir, node);
    bool a = brg__run_has(r, in[0]), b = brg__run_has(r, in[1]);
    brg__run_root(r, node->first_out)->is_undefined = !a && !b;
    if (!a && !b)
        return BRG_OK;
    BRG_TRY(check_dense(r, node));
    BRG_TRY(brg__run_make(r, node));
    brg__value *values = r->exec->values;
    const brg_op *op = a && b ? &brg__op_add : &brg__op_copy;
    brg_tensor *operands[2] = {&values[a ? in[0] : in[1]].t, &values[in[1]].t};
    static const brg_attrs none;
    brg_op_call call = {.op = op,
                        .n_in = a && b ? 2 : 1,
                        .n_out = 1,
                        .in = operands,
                        .attrs = &none};
    call.out[0] = &values[node->first_out].t;
    return op->run[BRG_DEVICE_CPU](&call);
}

/* ---- Loose plans: ops as the engine would call them ------------------------------------------- */

brg_tensor *brg__run_operand(const brg__running *r, int id)
{
    if (id == BRG__IR_NONE || !brg__run_has(r, id))
        return NULL;
    const brg__root *root = brg__run_root(r, id);
    return root ? root->real : &r->exec->values[id].t;
}

void brg__run_offer_homes(const brg__running *r, int first, int n)
{
    for (int j = 0; j < n && j < BRG_MAX_OP_INPUTS; j++) {
        brg_tensor *home = brg__run_home(r, brg__run_root(r, first + j));
        if (!home)
            continue;
        brg__offered.homes[j] = home;
        brg__offered.is_open = brg__offered.is_row = true;
        brg__offered.selected = 0;
    }
}

void brg__run_close_offer(void)
{
    if (brg__offered.is_open)
        brg__offered = (brg__placement){.selected = -1};
}

static brg_status run_op_loose(brg__running *r, brg__step *step)
{
    const brg__ir_node *node = step->node;
    brg_tensor *in[BRG_MAX_OP_INPUTS], *out[BRG_MAX_OP_OUTPUTS] = {0};
    bool is_missing = false;
    for (int i = 0; i < node->n_in; i++) {
        int id = brg__ir_in(r->exec->ir, node)[i];
        in[i] = brg__run_operand(r, id);
        is_missing |= id != BRG__IR_NONE && !in[i];
    }
    if (!is_missing) {
        set_attrs(r, step);
        bool shares =
            node->op == &brg__op_reshape || node->op == &brg__op_reshape_like;
        if (shares && !(in[0] = brg_contiguous(in[0])))
            return brg_error_code();
        brg__run_offer_homes(r, node->first_out, node->n_out);
        brg_status status =
            brg_op_apply(node->op, node->n_in, in, &step->attrs, out);
        brg__run_close_offer();
        BRG_TRY(status);
    }
    for (int j = 0; j < node->n_out; j++)
        BRG_TRY(brg__run_give(r, node->first_out + j, out[j]));
    return BRG_OK;
}

static brg_status run_add_loose(brg__running *r, const brg__ir_node *node)
{
    const int *in = brg__ir_in(r->exec->ir, node);
    brg_tensor *a = brg__run_operand(r, in[0]), *b = brg__run_operand(r, in[1]);
    brg__run_offer_homes(r, node->first_out, 1);
    brg_tensor *sum = a && b ? brg_sparse_add(a, b) : (a ? a : b);
    brg__run_close_offer();
    if (a && b && !sum)
        return brg_error_code();
    return brg__run_give(r, node->first_out, sum);
}

/* ---- Groups that do not run as one: undefined operands, other sizes --------------------------- */

static brg_status run_one(const brg__group_op *op, brg_tensor **in,
                          brg_tensor **out)
{
    int n = 0;
    for (int i = 0; i < op->n_in; i++)
        n += in[i] != NULL;
    *out = NULL;
    if (op->is_fan_in && n == 1)
        *out = in[0] ? in[0] : in[1];
    if (n < op->n_in)
        return BRG_OK;
    brg_op_call call = {.op = op->op,
                        .n_in = op->n_in,
                        .n_out = 1,
                        .in = in,
                        .attrs = &op->attrs};
    BRG_TRY(op->op->infer(&call));
    brg__layout layout = brg__out_layout(&call.info[0], BRG_CPU);
    BRG_TRY(brg__tensor_new(&call.out[0], &layout));
    if (!brg__scope_adopt(call.out[0]))
        return brg_error_code();
    *out = call.out[0];
    return op->op->run[BRG_DEVICE_CPU](&call);
}

static brg_status run_unfused(brg__running *r, const brg__step *step)
{
    const brg__ir_node *node = step->node;
    const brg__group *g = r->exec->ir->groups.at[node->group];
    brg_tensor *value[BRG__GROUP_MAX_IN + BRG__GROUP_MAX_OPS];
    for (int i = 0; i < g->n_in; i++)
        value[i] = brg__run_has(r, brg__ir_in(r->exec->ir, node)[i])
                       ? step->in[i]
                       : NULL;
    for (int k = 0; k < g->n_ops; k++) {
        brg_tensor *in[BRG__GROUP_OP_MAX_IN];
        for (int i = 0; i < g->ops[k].n_in; i++)
            in[i] = value[g->ops[k].in[i]];
        BRG_TRY(run_one(&g->ops[k], in, &value[g->n_in + k]));
        if (g->ops[k].out == BRG__GROUP_NONE)
            continue;
        brg_tensor *made = value[g->n_in + k];
        int id = node->first_out + g->ops[k].out;
        brg__run_root(r, id)->is_undefined = !made;
        if (made && made->numel > 0)
            brg__copy_strided(&r->exec->values[id].t, made);
    }
    return BRG_OK;
}

static brg_status run_fused(brg__running *r, brg__step *step)
{
    const brg__ir_node *node = step->node;
    bool is_missing = false;
    for (int i = 0; i < node->n_in; i++)
        is_missing |= !brg__run_has(r, brg__ir_in(r->exec->ir, node)[i]);
    BRG_TRY(check_dense(r, node));
    BRG_TRY(brg__run_make(r, node));
    if (is_missing || !step->fused)
        return run_unfused(r, step);
    brg__fused_run(step->fused, step->in, step->out, r->exec->workspace);
    return BRG_OK;
}

brg_status brg__run_op(brg__running *r, brg__step *step)
{
    const brg__ir_node *node = step->node;
    bool is_loose = r->exec->ir->is_loose;
    if (node->kind == BRG__IR_FUSED)
        return is_loose ? brg__run_there(r, step) : run_fused(r, step);
    if (node->kind == BRG__IR_ADD)
        return is_loose ? run_add_loose(r, node) : run_add(r, node);
    return is_loose ? run_op_loose(r, step) : run_op(r, step);
}
