/* SPDX-License-Identifier: Apache-2.0
 * A segment in the graph: its node, and its backward run by the engine. */
#include <string.h>

#include "compile/segment.h"
#include "core/base/error.h"

#include <brigade/ops.h>

typedef struct payload {
    brg__segment *segment; /* retained */
    size_t nbytes;
    brg_attrs draws[];
} payload;

/* ---- Backward ---------------------------------------------------------------------- */

/* The plan is for one layout; what comes in another is copied into it. */
static brg_status fit(brg__segment *s, int input, brg_tensor **t)
{
    const brg__captured *c = &s->captured;
    brg__layout layout;
    if (input < c->n_slots) {
        layout = brg__layout_of(*t);
        brg__shape_strides(layout.ndim, layout.shape, layout.stride);
    } else {
        const brg__kept *kept = &c->kept.at[input - c->n_slots];
        layout = brg__layout_of(&s->forward->values[kept->value].t);
    }
    if (!(*t)->storage || memcmp(layout.stride, (*t)->stride,
                                 layout.ndim * sizeof *layout.stride) == 0)
        return BRG_OK;
    brg_tensor *copy;
    layout.offset = 0;
    BRG_TRY(brg__tensor_new(&copy, &layout));
    copy = brg__scope_adopt(copy);
    if (!copy)
        return brg_error_code();
    BRG_TRY(brg_copy_(copy, *t));
    *t = copy;
    return BRG_OK;
}

static brg_status give(brg__segment *s, int input, brg_tensor *t)
{
    BRG_TRY(fit(s, input, &t));
    BRG_TRY(brg__array_push(&s->given_back.inputs, t));
    brg_retain(t);
    return BRG_OK;
}

static brg_status give_all(brg__segment *s, brg_node *node,
                           brg_tensor *const *grad_out)
{
    brg__collected_clear(&s->given_back);
    for (int j = 0; j < s->captured.n_slots; j++) {
        const brg__slot *slot = &node->slots[j];
        brg_tensor *t = grad_out[j];
        if (!t)
            t = brg_zeros((brg_dtype)slot->dtype, slot->ndim, slot->shape);
        if (!t)
            return brg_error_code();
        BRG_TRY(give(s, j, t));
    }
    for (uint16_t k = 0; k < node->n_saved; k++) {
        brg_tensor *t;
        BRG_TRY(brg__saved_get(node, &node->saved[k], &t));
        BRG_TRY(give(s, s->captured.n_slots + k, t));
    }
    return BRG_OK;
}

static brg_status run_backward(brg__segment *s, brg_node *node,
                               brg_tensor *const *grad_out,
                               brg_tensor **grad_in)
{
    payload *p = node->payload;
    BRG_TRY(give_all(s, node, grad_out));
    if (!s->backward)
        BRG_TRY(brg__exec_create(&s->backward, &s->captured.backward, NULL,
                                 &s->given_back));
    brg__run_io io = {.outputs = grad_in, .draws = p->draws};
    brg__task none = {0};
    s->backward->io = &io;
    brg_status status = brg__exec_run(s->backward, &none, &s->given_back);
    s->backward->io = NULL;
    for (uint16_t i = 0; i < node->n_edges; i++) {
        if (!grad_in[i])
            continue;
        grad_in[i] = brg__scope_adopt(grad_in[i]); /* or lost, on failure */
        if (!grad_in[i] && status == BRG_OK)
            status = brg_error_code();
    }
    return status;
}

brg_status brg__segment_refuse_higher_order(void)
{
    return BRG_FAIL(BRG_ERR_STATE,
                    "a precompiled segment does not currently support higher "
                    "order gradients: call the function uncompiled where "
                    "create_graph is wanted");
}

static brg_status apply(brg_node *node, brg_tensor *const *grad_out,
                        brg_tensor **grad_in)
{
    payload *p = node->payload;
    brg__segment *s = p->segment;
    if (!brg__grad_mode_is_off)
        return brg__segment_refuse_higher_order();
    BRG_TRY(brg__node_check_alive(node));
    memset(grad_in, 0, node->n_edges * sizeof *grad_in);
    pthread_mutex_lock(&s->lock);
    brg_status status = run_backward(s, node, grad_out, grad_in);
    brg__collected_clear(&s->given_back);
    pthread_mutex_unlock(&s->lock);
    return status;
}

static void destroy(brg_node *node)
{
    payload *p = node->payload;
    if (!p)
        return;
    brg__segment_release(p->segment);
    brg__obj_free(p, p->nbytes);
}

static const brg__node_class segment_class = {
    .name = "segment", .apply = apply, .destroy = destroy};

/* ---- Questions ------------------------------------------------------------------------ */

brg__segment *brg__segment_of(const brg_node *node)
{
    return node->cls == &segment_class ? ((payload *)node->payload)->segment
                                       : NULL;
}

const brg_attrs *brg__segment_attrs(const brg_node *node, int draw)
{
    return draw ? &((payload *)node->payload)->draws[draw - 1] : &node->attrs;
}

bool brg__segment_splices(const brg_node *node)
{
    const brg__segment *segment = brg__segment_of(node);
    return segment && !segment->captured.has_regions;
}

bool brg__segment_frees(const brg_node *node)
{
    return node->op || brg__segment_splices(node);
}

/* ---- Recording -------------------------------------------------------------------------- */

/* One of the tensors that the node itself becomes the history of, be it under
 * another name: a view of all of a result is the same object. */
static bool is_base(const brg__captured *c, brg_tensor *const *outputs,
                    const brg_tensor *t)
{
    bool is_held_twice = brg__ref_count(&t->refs) > 1;
    for (size_t i = 0; is_held_twice && i < c->bases.n; i++)
        if (outputs[i] == t)
            return true;
    return false;
}

static brg_status save(brg__segment *s, brg_node *node,
                       brg_tensor *const *outputs)
{
    const brg__captured *c = &s->captured;
    for (size_t k = 0; k < c->kept.n; k++) {
        const brg__kept *kept = &c->kept.at[k];
        brg_tensor *t = kept->is_shape ? kept->shape : outputs[kept->output];
        bool is_own =
            (size_t)kept->output < c->bases.n || is_base(c, outputs, t);
        brg__saved_kind kind = kept->is_shape ? BRG__SAVED_META
                               : is_own       ? BRG__SAVED_OUTPUT
                                              : BRG__SAVED_INPUT;
        BRG_TRY(brg__saved_init(&node->saved[k], kind, (int)k, t));
    }
    return BRG_OK;
}

static brg_status fill(brg__segment *s, brg_node *node,
                       brg_tensor *const *inputs, brg_tensor *const *outputs)
{
    const brg__captured *c = &s->captured;
    for (size_t i = 0; i < c->edges.n; i++)
        BRG_TRY(brg__edge_of(brg__leaf_of(&c->edges.at[i], inputs),
                             &node->edges[i]));
    BRG_TRY(save(s, node, outputs));
    brg__node_stamp(node);
    for (size_t i = 0; i < c->bases.n; i++) {
        int slot = c->bases.at[i].slot;
        if (slot == BRG__IR_NONE)
            continue;
        brg__slot_set(&node->slots[slot], outputs[i]);
        BRG_TRY(brg__tensor_set_history(outputs[i], node, slot));
    }
    return BRG_OK;
}

brg_status brg__segment_record(brg__segment *s, brg_tensor *const *inputs,
                               brg_tensor *const *outputs)
{
    const brg__captured *c = &s->captured;
    brg_node *node;
    size_t nbytes = sizeof(payload) + (size_t)c->n_draws * sizeof(brg_attrs);
    payload *p = brg__obj_alloc(nbytes, "a segment's node");
    if (!p)
        return BRG_ERR_NOMEM;
    p->nbytes = nbytes;
    p->segment = s;
    memcpy(p->draws, s->draws, (size_t)c->n_draws * sizeof(brg_attrs));
    brg_status status = brg__node_new(&node, &segment_class, (int)c->edges.n,
                                      c->n_slots, (int)c->kept.n);
    if (status != BRG_OK) {
        brg__obj_free(p, nbytes);
        return status;
    }
    node->payload = p;
    brg__segment_retain(s);
    status = fill(s, node, inputs, outputs);
    brg_node_release(node); /* the results hold it now */
    return status;
}
