/* SPDX-License-Identifier: Apache-2.0
 * A segment in a compiled backward: its own backward, which was captured with
 * it, is written into this one, op by op. */
#include "compile/capture_inside.h"
#include "compile/segment.h"
#include "core/base/error.h"

#include <brigade/ops.h>

typedef struct splice {
    const brg__segment *segment;
    const brg_node *node;
    brg_tensor **symbols; /* of each value of its backward */
} splice;

/* Gradients that did not arrive are zeros: it was captured with all, and with
 * row-major ones. */
static brg_status tangent(brg__capturing *c, uint32_t slot, int grad,
                          brg_tensor **symbol)
{
    if (grad != BRG__IR_NONE) {
        *symbol = brg_contiguous(c->symbols.at[grad]);
        return *symbol ? BRG_OK : brg_error_code();
    }
    int like;
    BRG_TRY(brg__capture_like_slot(c, c->visit, slot, &like));
    *symbol = brg_zeros_like(c->symbols.at[like]);
    return *symbol ? BRG_OK : brg_error_code();
}

static brg_status splice_given(brg__capturing *c, const splice *s,
                               const int *grads)
{
    const brg__ir *ir = &s->segment->captured.backward;
    for (size_t id = 0; id < ir->values.n; id++) {
        const brg__ir_value *v = &ir->values.at[id];
        brg_tensor **symbol = &s->symbols[id];
        int k = v->index - s->node->n_slots;
        if (v->source == BRG__IR_FROM_CONST)
            *symbol = v->constant;
        else if (v->source == BRG__IR_FROM_INPUT && k < 0)
            BRG_TRY(tangent(c, (uint32_t)v->index, grads[v->index], symbol));
        else if (v->source == BRG__IR_FROM_INPUT)
            BRG_TRY(brg__capture_saved(c, s->node, (size_t)k, symbol));
    }
    return BRG_OK;
}

static brg_status splice_node(brg__capturing *c, const splice *s, int instance,
                              const brg__ir_node *node, int *grad_in)
{
    const brg__ir *ir = &s->segment->captured.backward;
    brg_tensor *in[BRG_MAX_OP_INPUTS], *out[BRG_MAX_OP_OUTPUTS];
    for (int i = 0; i < node->n_in; i++) {
        int id = brg__ir_in(ir, node)[i];
        in[i] = id == BRG__IR_NONE ? NULL : s->symbols[id];
    }
    if (node->kind == BRG__IR_OUTPUT)
        return brg__capture_operand(c, in[0], &grad_in[node->slot]);
    c->is_splicing = true; /* its draws are lifted below */
    brg_status status =
        brg_op_apply(node->op, node->n_in, in, &node->attrs, out);
    c->is_splicing = false;
    BRG_TRY(status);
    brg__ir_node *written = &c->ir->nodes.at[c->ir->nodes.n - 1];
    written->segment = s->segment->id + 1;
    written->instance = instance;
    if (node->draw) {
        written->lifted = (int)c->visit;
        written->draw = node->draw;
    }
    for (int j = 0; j < node->n_out; j++)
        s->symbols[node->first_out + j] = out[j];
    return BRG_OK;
}

brg_status brg__capture_segment(brg__capturing *c, const brg_node *node,
                                const int *grads, int *grad_in)
{
    splice s = {brg__segment_of(node), node, NULL};
    const brg__ir *ir = &s.segment->captured.backward;
    if (c->c->records_graph)
        return brg__segment_refuse_higher_order();
    s.symbols = brg__mem_alloc_array(ir->values.n + 1, sizeof *s.symbols,
                                     "a segment's symbols");
    if (!s.symbols)
        return BRG_ERR_NOMEM;
    int instance = c->n_segments++;
    brg_status status = splice_given(c, &s, grads);
    for (size_t i = 0; status == BRG_OK && i < ir->nodes.n; i++)
        status = splice_node(c, &s, instance, &ir->nodes.at[i], grad_in);
    brg__mem_free(s.symbols);
    return status;
}
