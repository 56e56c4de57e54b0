/* SPDX-License-Identifier: Apache-2.0
 * Capture: see capture.h.
 *
 * A symbol is a meta tensor that stands for a value of the IR. Gradient rules
 * are called with symbols for what they saved; the ops they call come to the
 * capture's emitter, which writes them down and answers with new symbols. */
#include "compile/capture.h"

#include <string.h>

#include "compile/capture_inside.h"
#include "compile/segment.h"
#include "core/base/error.h"
#include "core/ops/op.h"
#include "core/tensor/sparse.h"

brg_status (*brg__capture_step)(void);

brg_status brg__capture_point(void)
{
    return brg__capture_step ? brg__capture_step() : BRG_OK;
}

/* ---- Values and their symbols ------------------------------------------------------ */

/* A value whose example this symbol is; takes over the symbol. */
static brg_status add_value(brg__capturing *c, brg__ir_value value,
                            brg_tensor *symbol, int *id)
{
    value.dtype = (brg_dtype)symbol->dtype;
    value.ndim = symbol->ndim;
    brg__layout layout = brg__layout_of(symbol);
    value.ones = brg__ir_ones(&layout);
    brg_status status = brg__array_push(&c->symbols, symbol);
    if (status != BRG_OK) {
        brg_release(symbol);
        return status;
    }
    BRG_TRY(brg__ir_add_value(c->ir, &value, id));
    symbol->symbol = brg__symbol_of((uint32_t)*id + 1, c->number);
    return BRG_OK;
}

brg_status brg__capture_value(brg__capturing *c, brg__ir_value value,
                              const brg__layout *layout, int *id)
{
    brg_tensor *symbol;
    BRG_TRY(brg__tensor_new_view(&symbol, layout, NULL));
    return add_value(c, value, symbol, id);
}

/* A sparse tensor of these sizes without entries. */
static brg_status sparse_symbol(const brg__layout *layout, int n_sparse,
                                brg_tensor **symbol)
{
    brg__layout places = {.dtype = BRG_DTYPE_I64, .ndim = 2};
    brg__layout rest = {.dtype = layout->dtype,
                        .ndim = layout->ndim - n_sparse + 1};
    brg_tensor *like = NULL, *indices = NULL, *values = NULL;
    places.shape[0] = n_sparse;
    for (int d = 1; d < rest.ndim; d++)
        rest.shape[d] = layout->shape[n_sparse + d - 1];
    brg__shape_strides(places.ndim, places.shape, places.stride);
    brg__shape_strides(rest.ndim, rest.shape, rest.stride);
    brg_status status = brg__tensor_new_view(&like, layout, NULL);
    if (status == BRG_OK)
        status = brg__tensor_new(&indices, &places);
    if (status == BRG_OK)
        status = brg__tensor_new(&values, &rest);
    if (status == BRG_OK)
        status = brg__sparse_new(symbol, like, indices, values, false);
    brg_release(like);
    brg_release(indices);
    brg_release(values);
    return status;
}

brg_status brg__capture_sparse_value(brg__capturing *c, brg__ir_value value,
                                     const brg__layout *layout, int n_sparse,
                                     int *id)
{
    brg_tensor *symbol;
    BRG_TRY(sparse_symbol(layout, n_sparse, &symbol));
    return add_value(c, value, symbol, id);
}

brg_status brg__capture_input(brg__capturing *c, int input, int *id)
{
    *id = c->input_value.at[input];
    if (*id != BRG__IR_NONE)
        return BRG_OK;
    brg__layout layout = brg__layout_from_start(c->c->inputs.at[input]);
    brg__ir_value value = {.source = BRG__IR_FROM_INPUT, .index = input};
    const brg_tensor *t = c->c->inputs.at[input];
    BRG_TRY(t->sparse ? brg__capture_sparse_value(c, value, &layout,
                                                  brg__sparse_n_dims(t), id)
                      : brg__capture_value(c, value, &layout, id));
    c->input_value.at[input] = *id;
    return BRG_OK;
}

brg_status brg__capture_like_slot(brg__capturing *c, uint32_t visit,
                                  uint32_t slot, int *id)
{
    brg__layout layout =
        brg__slot_layout(&c->task->visits.at[visit].node->slots[slot]);
    brg__ir_value value = {
        .source = BRG__IR_FROM_SLOT, .visit = (int)visit, .index = (int)slot};
    return brg__capture_value(c, value, &layout, id);
}

brg_status brg__capture_operand(brg__capturing *c, brg_tensor *t, int *id)
{
    *id = BRG__IR_NONE;
    if (!t)
        return BRG_OK;
    char text[BRG_TENSOR_TEXT_MAX];
    if (t->symbol && brg__symbol_capture(t->symbol) != c->number)
        return brg__symbol_is_left(BRG_ERR_UNSUPPORTED, "capture", t);
    if (t->symbol) {
        *id = brg__capture_value_of(t);
        return BRG_OK;
    }
    if (c->trace && t->ndim > 0) /* of the sizes of this run */
        c->trace->has_read_value = true;
    if (!t->storage)
        return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                        "capture: a gradient rule made %s without a value",
                        brg__tensor_text(t, text));
    brg__layout layout = brg__layout_of(t);
    brg__ir_value value = {.source = BRG__IR_FROM_CONST, .constant = t};
    BRG_TRY(brg__capture_value(c, value, &layout, id));
    brg_retain(t);
    return BRG_OK;
}

/* ---- The emitter --------------------------------------------------------------------- */

/* An op that repeats the attributes of a random op reads them at run time. */
static int lifted_from(const brg__capturing *c, const brg_op_call *call)
{
    const brg_node *node = c->task->visits.at[c->visit].node;
    if (!node->op || !(node->op->flags & BRG_OP_IMPURE) ||
        memcmp(&node->attrs, call->attrs, sizeof node->attrs) != 0)
        return BRG__IR_NONE;
    return (int)c->visit;
}

/* Random numbers of its own would be the same in every run. */
static brg_status check_expressible(const brg__capturing *c,
                                    const brg_op_call *call, int lifted)
{
    const char *why = NULL;
    if (call->op->flags & BRG_OP_INPLACE)
        why = "changes a tensor in place";
    else if ((call->op->flags & BRG_OP_IMPURE) && lifted == BRG__IR_NONE &&
             !c->is_splicing)
        why = "draws random numbers or has other effects";
    if (!why)
        return BRG_OK;
    return BRG_FAIL(BRG_ERR_UNSUPPORTED, "capture: %s %s", call->op->name, why);
}

/* Dims that the indices of a sparse result have: those of its source. */
static int n_sparse_dims(const brg_op_call *call)
{
    for (int i = 0; i < call->n_in; i++)
        if (call->in[i] && call->in[i]->sparse)
            return brg__sparse_n_dims(call->in[i]);
    return call->op == &brg__op_sparse_coo ? (int)call->in[0]->shape[0] : 1;
}

static brg_status refuse_sparse(const brg_op_call *call)
{
    for (int i = 0; i < call->n_in; i++)
        if (call->in[i] && call->in[i]->sparse &&
            !(call->op->flags & BRG_OP_SPARSE))
            return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                            "%s: input %d is sparse, expected a dense tensor",
                            call->op->name, i);
    return BRG_OK;
}

static brg_status emit_captured(brg__emitter *self, brg_op_call *call)
{
    brg__capturing *c = (brg__capturing *)self;
    int in[BRG_MAX_OP_INPUTS];
    BRG_TRY(brg__capture_point());
    memset(call->info, 0, (size_t)call->n_out * sizeof *call->info);
    BRG_TRY(call->op->infer(call));
    for (int j = 0; j < call->n_out; j++) {
        c->ir->is_loose |= call->info[j].is_sparse;
        c->ir->is_there &= !call->info[j].is_sparse;
    }
    BRG_TRY(refuse_sparse(call));
    for (int i = 0; i < call->n_in; i++)
        BRG_TRY(brg__capture_operand(c, call->in[i], &in[i]));
    int lifted = lifted_from(c, call);
    BRG_TRY(check_expressible(c, call, lifted));
    brg__ir_node node = {.kind = BRG__IR_OP,
                         .op = call->op,
                         .attrs = *call->attrs,
                         .lifted = lifted,
                         .visit = BRG__IR_NONE,
                         .n_out = call->n_out};
    BRG_TRY(brg__ir_add_node(c->ir, &node, in, call->n_in));
    int at = (int)c->ir->nodes.n - 1;
    for (int j = 0; j < call->n_out; j++) {
        brg__layout layout =
            brg__out_layout(&call->info[j], brg__call_device(call));
        brg__ir_value value = {.source = BRG__IR_FROM_NODE, .node = at};
        int id;
        BRG_TRY(call->info[j].is_sparse
                    ? brg__capture_sparse_value(c, value, &layout,
                                                n_sparse_dims(call), &id)
                    : brg__capture_value(c, value, &layout, &id));
        call->out[j] = brg__scope_adopt(brg_retain(c->symbols.at[id]));
        if (!call->out[j])
            return brg_error_code();
    }
    return BRG_OK;
}

/* ---- Nodes that are no ops -------------------------------------------------------------- */

brg_status brg__capture_node(brg__capturing *c, brg__ir_node node,
                             const int *in, int n_in,
                             const brg__layout *out_layouts, int *outs)
{
    node.lifted = BRG__IR_NONE;
    BRG_TRY(brg__ir_add_node(c->ir, &node, in, n_in));
    int at = (int)c->ir->nodes.n - 1;
    for (int j = 0; j < node.n_out; j++) {
        brg__ir_value value = {.source = BRG__IR_FROM_NODE, .node = at};
        BRG_TRY(brg__capture_value(c, value, &out_layouts[j], &outs[j]));
    }
    return BRG_OK;
}

brg__layout brg__capture_row_major(const brg__capturing *c, int id)
{
    static const brg__layout nothing;
    if (id == BRG__IR_NONE)
        return nothing;
    brg__layout layout = brg__layout_row_major(c->symbols.at[id]);
    return layout;
}

/* ---- The walk ------------------------------------------------------------------------------- */

static brg_status route(brg__capturing *c, const brg_node *node,
                        const int *grad_in)
{
    for (uint16_t i = 0; i < node->n_edges; i++) {
        const brg__edge *edge = &node->edges[i];
        uint32_t to;
        if (!edge->node || !brg__task_runs(c->task, edge->node) ||
            !brg__map_get(&c->task->index, edge->node, &to))
            continue;
        brg__visit *next = &c->task->visits.at[to];
        int *buffer = &c->buffers.at[next->first_buffer + edge->slot];
        if (*buffer == BRG__IR_NONE) {
            *buffer = grad_in[i];
        } else if (grad_in[i] != BRG__IR_NONE) {
            int in[2] = {*buffer, grad_in[i]};
            brg__layout layout = brg__capture_row_major(c, *buffer);
            brg__ir_node add = {
                .kind = BRG__IR_ADD, .visit = BRG__IR_NONE, .n_out = 1};
            BRG_TRY(brg__capture_node(c, add, in, 2, &layout, buffer));
        }
        if (--next->n_waiting == 0)
            BRG_TRY(brg__ready_push(c->task, to));
    }
    return BRG_OK;
}

static brg_status trace_visit(brg__capturing *c, uint32_t visit)
{
    const brg__visit *v = &c->task->visits.at[visit];
    brg_node *node = v->node;
    bool is_wide =
        node->n_edges > BRG__IR_MAX_OUT || node->n_slots > BRG__IR_MAX_OUT;
    if (is_wide && !brg__segment_splices(node))
        return BRG_FAIL(BRG_ERR_UNSUPPORTED, "capture: %s is too wide",
                        brg_node_name(node));
    int grads[BRG__MAX_SLOTS], grad_in[BRG__MAX_SLOTS];
    c->visit = visit;
    BRG_TRY(brg__capture_point());
    memcpy(grads, c->buffers.at + v->first_buffer,
           node->n_slots * sizeof *grads);
    for (int i = 0; i < BRG__MAX_SLOTS; i++)
        grad_in[i] = BRG__IR_NONE;
    for (uint32_t slot = 0; slot < node->n_slots; slot++)
        BRG_TRY(brg__capture_slot(c, node, slot, &grads[slot]));
    if (!v->is_needed)
        return BRG_OK;
    if (is_wide && node->hooks &&
        (node->hooks->pre.first || node->hooks->post.first))
        return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                        "capture: %s has too many gradients for its hooks",
                        brg_node_name(node));
    BRG_TRY(brg__capture_pre_hooks(c, node, grads));
    BRG_TRY(brg__capture_point());
    BRG_TRY(brg__capture_rule(c, node, grads, grad_in));
    BRG_TRY(brg__capture_point());
    BRG_TRY(brg__capture_post_hooks(c, node, grads, grad_in));
    BRG_TRY(brg__capture_point());
    return route(c, node, grad_in);
}

static brg_status start(brg__capturing *c)
{
    size_t n_inputs = c->c->inputs.n, n_buffers = c->c->root_input.n;
    BRG_TRY(brg__array_reserve(&c->input_value, n_inputs));
    BRG_TRY(brg__array_reserve(&c->buffers, n_buffers));
    for (size_t i = 0; i < n_inputs; i++)
        c->input_value.at[c->input_value.n++] = BRG__IR_NONE;
    for (size_t i = 0; i < n_buffers; i++) {
        int id = BRG__IR_NONE;
        if (c->c->root_input.at[i] != BRG__IR_NONE)
            BRG_TRY(brg__capture_input(c, c->c->root_input.at[i], &id));
        c->buffers.at[c->buffers.n++] = id;
    }
    c->ir->n_inputs = (int)n_inputs;
    return BRG_OK;
}

static brg_status walk(brg__capturing *c)
{
    BRG_TRY(start(c));
    uint32_t visit;
    while (brg__ready_pop(c->task, &visit))
        BRG_TRY(trace_visit(c, visit));
    brg__ir_node end = {
        .kind = BRG__IR_FINAL, .lifted = BRG__IR_NONE, .visit = BRG__IR_NONE};
    BRG_TRY(brg__ir_add_node(c->ir, &end, NULL, 0));
    return brg__ir_verify(c->ir);
}

/* What the walk uses up of the task. */
typedef struct task_state {
    BRG__ARRAY(uint32_t) waiting;
    BRG__ARRAY(brg__ready) heap;
    uint64_t n_arrivals;
} task_state;

static brg_status keep_task(task_state *s, const brg__task *task)
{
    BRG_TRY(brg__array_reserve(&s->waiting, task->visits.n));
    BRG_TRY(brg__array_reserve(&s->heap, task->heap.n));
    for (size_t i = 0; i < task->visits.n; i++)
        s->waiting.at[s->waiting.n++] = task->visits.at[i].n_waiting;
    for (size_t i = 0; i < task->heap.n; i++)
        s->heap.at[s->heap.n++] = task->heap.at[i];
    s->n_arrivals = task->n_arrivals;
    return BRG_OK;
}

static void restore_task(task_state *s, brg__task *task)
{
    for (size_t i = 0; i < s->waiting.n; i++)
        task->visits.at[i].n_waiting = s->waiting.at[i];
    task->heap.n = s->heap.n;
    for (size_t i = 0; i < s->heap.n; i++)
        task->heap.at[i] = s->heap.at[i];
    task->n_arrivals = s->n_arrivals;
    brg__array_deinit(&s->waiting);
    brg__array_deinit(&s->heap);
}

brg_status brg__capture_task(brg__ir *ir, brg__task *task,
                             const brg__collected *collected)
{
    brg__capturing c = {.number = brg__new_capture(),
                        .base.emit = emit_captured,
                        .ir = ir,
                        .task = task,
                        .c = collected};
    task_state state = {0};
    brg_status status = keep_task(&state, task);
    if (status == BRG_OK) {
        brg__emitter *before = brg__emitter_set(&c.base);
        bool mode = brg_grad_mode_set(false);
        ir->is_loose = collected->records_graph || collected->is_sparse ||
                       collected->is_elsewhere;
        ir->is_there = collected->is_elsewhere && !collected->records_graph &&
                       !collected->is_sparse;
        status = walk(&c);
        brg_grad_mode_set(mode);
        brg__emitter_set(before);
        restore_task(&state, task);
    } else {
        brg__array_deinit(&state.waiting);
        brg__array_deinit(&state.heap);
    }
    for (size_t i = 0; i < c.symbols.n; i++)
        brg_release(c.symbols.at[i]);
    brg__array_deinit(&c.symbols);
    brg__array_deinit(&c.buffers);
    brg__array_deinit(&c.input_value);
    return status;
}
