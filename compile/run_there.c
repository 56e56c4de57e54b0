/* SPDX-License-Identifier: Apache-2.0
 * Fused groups on a device: by their kernels, or op by op where there are none,
 * where operands are undefined, or of other shapes than the group assumes. */
#include <string.h>

#include <brigade/sparse.h>

#include "compile/run_inside.h"
#include "core/base/error.h"
#include "core/ops/op.h"
#include "core/tensor/device.h"
#include "core/tensor/shape.h"

#define NONE BRG__GROUP_NONE

typedef struct call {
    brg__running *r;
    brg__step *step;
    const brg__group *group;
    /* of operands, then of ops; borrowed. NULL: undefined. Results that are not
     * there (yet) are meta tensors. */
    brg_tensor *value[BRG__GROUP_MAX_IN + BRG__GROUP_MAX_OPS];
    brg_tensor meta[BRG__GROUP_MAX_OPS];
} call;

static brg_tensor **result_of(call *c, int k)
{
    return &c->value[c->group->n_in + k];
}

static int id_of(const call *c, int k)
{
    return c->step->node->first_out + c->group->ops[k].out;
}

/* ---- Op by op -------------------------------------------------------------------- */

static brg_status run_op(call *c, int k)
{
    const brg__group_op *op = &c->group->ops[k];
    brg_tensor *in[BRG__GROUP_OP_MAX_IN], *out = NULL;
    int n = 0;
    for (int i = 0; i < op->n_in; i++) {
        in[i] = c->value[op->in[i]];
        n += in[i] != NULL;
    }
    brg_status status = BRG_OK;
    if (op->out != NONE)
        brg__run_offer_homes(c->r, id_of(c, k), 1);
    if (op->is_fan_in && n == 1)
        out = in[0] ? in[0] : in[1];
    else if (n == op->n_in && op->is_fan_in)
        status =
            (out = brg_sparse_add(in[0], in[1])) ? BRG_OK : brg_error_code();
    else if (n == op->n_in)
        status = brg_op_apply(op->op, op->n_in, in, &op->attrs, &out);
    brg__run_close_offer();
    *result_of(c, k) = out;
    return status;
}

static brg_status run_all(call *c)
{
    for (int k = 0; k < c->group->n_ops; k++)
        BRG_TRY(run_op(c, k));
    return BRG_OK;
}

/* ---- By kernels ------------------------------------------------------------------- */

/* All that kernels take for granted; results become meta tensors. */
static brg_status check_fit(call *c, bool *fits)
{
    const brg__cuda_group *g = c->step->there;
    const brg_device device = c->r->exec->device;
    *fits = g && g->flat;
    for (int i = 0; *fits && i < c->group->n_in; i++)
        *fits = c->value[i] != NULL;
    for (int i = 0; *fits && i < g->n_loads; i++) {
        const brg_tensor *t = c->value[g->load[i]];
        *fits = t->storage && !t->sparse &&
                (brg_dtype)t->dtype == g->operand[g->load[i]];
    }
    if (!*fits)
        return BRG_OK;
    BRG_TRY(brg__fused_infer(c->group, device, c->value, c->meta, fits));
    for (int k = 0; k < c->group->n_ops; k++) {
        *result_of(c, k) = &c->meta[k];
        *fits &= (brg_dtype)c->meta[k].dtype == g->result[k];
    }
    return BRG_OK;
}

static brg__storage *home_of(const call *c, int k)
{
    if (c->group->ops[k].out == NONE)
        return NULL;
    const brg_tensor *t = &c->meta[k];
    const brg_tensor *home =
        brg__run_home(c->r, brg__run_root(c->r, id_of(c, k)));
    return home && home->offset == 0 && home->dtype == t->dtype &&
                   brg__device_equal(home->device, t->device) &&
                   brg__shape_equal(home->ndim, home->shape, t->ndim, t->shape)
               ? home->storage
               : NULL;
}

static brg_status make_result(call *c, int k)
{
    const brg__layout layout = brg__layout_of(&c->meta[k]);
    brg__storage *home = home_of(c, k);
    brg_tensor *t;
    BRG_TRY(home ? brg__tensor_new_view(&t, &layout, home)
                 : brg__tensor_new(&t, &layout));
    *result_of(c, k) = brg__scope_adopt(t);
    return *result_of(c, k) ? BRG_OK : brg_error_code();
}

static brg_status run_kernels(call *c)
{
    const brg__cuda_group *g = c->step->there;
    const brg__cuda_run run = {.g = g,
                               .kernels = c->r->exec->there,
                               .device = c->r->exec->device,
                               .in = c->value,
                               .results = c->value + c->group->n_in};
    for (int i = 0; i < g->n_stores; i++)
        if (c->group->ops[g->store[i]].out != NONE)
            BRG_TRY(make_result(c, g->store[i]));
    const bool sums = brg__cuda_sums(&run);
    for (int i = 0; i < g->n_stores && !sums; i++)
        if (c->group->ops[g->store[i]].out == NONE)
            BRG_TRY(make_result(c, g->store[i]));
    for (int i = 0; i < g->n_sums && sums; i++)
        BRG_TRY(make_result(c, g->sum[i]));
    BRG_TRY(brg__cuda_launch(&run, sums));
    for (int i = 0; i < g->n_sums && !sums; i++)
        BRG_TRY(run_op(c, g->sum[i]));
    return BRG_OK;
}

/* ---- A group ----------------------------------------------------------------------- */

static void gather(call *c)
{
    const int *in = brg__ir_in(c->r->exec->ir, c->step->node);
    memset(c->value, 0, sizeof c->value);
    for (int i = 0; i < c->group->n_in; i++)
        c->value[i] = brg__run_operand(c->r, in[i]);
}

brg_status brg__run_there(brg__running *r, brg__step *step)
{
    call c = {.r = r,
              .step = step,
              .group = r->exec->ir->groups.at[step->node->group]};
    bool fits;
    gather(&c);
    BRG_TRY(check_fit(&c, &fits));
    brg_status status = fits ? run_kernels(&c) : run_all(&c);
    if (fits && status == BRG_ERR_DEVICE) {
        brg__cuda_kernels_failed(r->exec->there);
        step->there->flat = NULL; /* from now on */
        status = run_all(&c);
    }
    BRG_TRY(status);
    for (int k = 0; k < c.group->n_ops; k++)
        if (c.group->ops[k].out != NONE)
            BRG_TRY(brg__run_give(r, id_of(&c, k), *result_of(&c, k)));
    return BRG_OK;
}
