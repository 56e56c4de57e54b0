/* SPDX-License-Identifier: Apache-2.0
 * What lets a device replay an executable, and what does not. */
#include "compile/replay.h"

#include <stdio.h>

#include "core/autograd/context.h"
#include "core/tensor/device.h"

typedef struct judge {
    const brg__plan *plan;
    const brg__task *task;
    const brg__collected *c;
    char *why;
    size_t size;
} judge;

static bool is_on_host(brg_device device)
{
    return device.type == BRG_DEVICE_CPU;
}

static bool refuse(const judge *j, const char *what, const char *of)
{
    snprintf(j->why, j->size, "%s%s", what, of);
    return false;
}

/* ---- Devices --------------------------------------------------------------------- */

static bool is_second(brg_device *seen, brg_device device)
{
    if (is_on_host(*seen))
        *seen = device;
    return !is_on_host(device) && !brg__device_equal(*seen, device);
}

/* Gradients on the host would leave the device in the middle. */
static bool check_devices(const judge *j)
{
    brg_device seen = BRG_CPU;
    bool has_second = false, has_host_slot = false;
    for (size_t i = 0; i < j->c->inputs.n; i++)
        has_second |= is_second(&seen, j->c->inputs.at[i]->device);
    for (size_t v = 0; v < j->task->visits.n; v++) {
        const brg_node *node = j->task->visits.at[v].node;
        for (uint16_t s = 0; s < node->n_slots; s++) {
            has_second |= is_second(&seen, node->slots[s].device);
            has_host_slot |= is_on_host(node->slots[s].device);
        }
    }
    if (is_on_host(seen))
        return refuse(j, "no tensor on a device", "");
    if (has_second)
        return refuse(j, "tensors on several devices", "");
    return !has_host_slot || refuse(j, "a gradient on the host", "");
}

/* ---- Host tensors ----------------------------------------------------------------- */

static bool is_used_by_ops_only(const brg__ir *ir, int id)
{
    for (size_t n = 0; n < ir->nodes.n; n++) {
        const brg__ir_node *node = &ir->nodes.at[n];
        bool is_op = node->kind == BRG__IR_OP || node->kind == BRG__IR_ADD ||
                     node->kind == BRG__IR_FUSED;
        for (int i = 0; i < node->n_in; i++)
            if (brg__ir_in(ir, node)[i] == id && !is_op)
                return false;
    }
    return true;
}

/* What functions of the user saved, called or traced: they may read it. */
static bool check_functions(const judge *j)
{
    for (size_t v = 0; v < j->task->visits.n; v++) {
        const brg_node *node = j->task->visits.at[v].node;
        if (!brg__node_is_function(node))
            continue;
        for (uint16_t k = 0; k < node->n_saved; k++) {
            const brg_tensor *t = node->saved[k].tensor;
            if (t && is_on_host(t->device))
                return refuse(j, "a tensor on the host that is kept by ",
                              brg_node_name(node));
        }
    }
    return true;
}

static bool check_inputs(const judge *j)
{
    const brg__ir *ir = &j->plan->ir;
    for (size_t id = 0; id < ir->values.n; id++) {
        const brg__ir_value *v = &ir->values.at[id];
        if (v->source != BRG__IR_FROM_INPUT ||
            !is_on_host(j->c->inputs.at[v->index]->device))
            continue;
        if (j->c->inputs.at[v->index]->ndim > 0)
            return refuse(j, "a tensor on the host", "");
        if (!is_used_by_ops_only(ir, (int)id))
            return refuse(j, "a number on the host that is no op's", "");
    }
    return true;
}

/* ---- Steps -------------------------------------------------------------------------- */

/* What the host has to do at its place, or NULL. */
static const char *host_work(const brg__ir_node *node)
{
    switch (node->kind) {
    case BRG__IR_OP:
        return node->lifted != BRG__IR_NONE || node->draw > 0
                   ? "attributes read at each run: "
                   : NULL;
    case BRG__IR_ADD:
    case BRG__IR_FUSED:
    case BRG__IR_VALIDATE:
    case BRG__IR_RETAIN:
    case BRG__IR_DELIVER:
    case BRG__IR_ACCUMULATE:
    case BRG__IR_OUTPUT:
    case BRG__IR_FINAL:
        return NULL;
    case BRG__IR_PACK:
    case BRG__IR_START:
    case BRG__IR_WAIT:
    case BRG__IR_WRITE_BACK:
        return "a reduction";
    default:
        return "code of the user";
    }
}

static bool check_steps(const judge *j)
{
    const brg__ir *ir = &j->plan->ir;
    if (j->plan->pieces.n_splits > 0)
        return refuse(j, "a cut plan", "");
    for (size_t n = 0; n < ir->nodes.n; n++) {
        const brg__ir_node *node = &ir->nodes.at[n];
        const char *what = host_work(node);
        if (what)
            return refuse(j, what,
                          node->kind == BRG__IR_OP ? node->op->name : "");
    }
    return true;
}

bool brg__replay_allows(const brg__plan *plan, const brg__task *task,
                        const brg__collected *c, char *why, size_t size)
{
    const judge j = {plan, task, c, why, size};
    if (c->is_sparse)
        return refuse(&j, "sparse tensors", "");
    if (c->records_graph)
        return refuse(&j, "gradients that are recorded", "");
    return check_devices(&j) && check_functions(&j) && check_inputs(&j) &&
           check_steps(&j);
}
