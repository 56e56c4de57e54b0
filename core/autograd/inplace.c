/* SPDX-License-Identifier: Apache-2.0
 * Changes in place, and the views that see them.
 *
 * A change of a whole tensor gives it a new history: the node of the change,
 * whose first edge is the history it had. A change of a view is a change of a
 * part of its base: the base's new history is a *copy-slices* node, which cuts
 * the part's gradient out, takes it through the change, and puts it back:
 *
 *     base' --copy_slices--> base          with, inside,  part' --change--> part
 *
 * Views of the base do not hear of it. Each remembers which of the base's
 * histories its own leads to, and makes a new one when it is asked after the
 * base got another (brg__view_refresh). */
#include <string.h>

#include "core/autograd/node.h"
#include "core/autograd/op_node.h"
#include "core/base/alloc.h"
#include "core/base/error.h"
#include "core/ops/op.h"
#include "core/tensor/shape.h"

#include <brigade/ops.h>

/* Base and part of a storage, as they were when the node was made. */
typedef struct part_payload {
    brg__layout base;
    brg__layout part;
    brg_node *change; /* retained; NULL in a view node */
    int edge;         /* of the change: leads to the old part */
} part_payload;

/* ---- Parts of a fresh tensor laid out like the base --------------------------------- */

/* Zeros, or a copy of `values`, with the base's strides. */
static brg_tensor *new_base(const part_payload *p, brg_tensor *values)
{
    brg__layout layout = p->base;
    layout.offset = 0;
    brg_tensor *t;
    if (brg__tensor_new(&t, &layout) != BRG_OK)
        return NULL;
    t = brg__scope_adopt(t);
    brg_status status = BRG_OK;
    if (t)
        status = values ? brg_copy_(t, values) : brg_zero_(t);
    return status == BRG_OK ? t : NULL;
}

/* The part of t; a recorded view of it. */
static brg_tensor *cut(const part_payload *p, brg_tensor *t)
{
    brg__layout layout = p->part;
    layout.offset -= p->base.offset;
    brg_tensor *view;
    if (brg__tensor_new_view(&view, &layout, t->storage) != BRG_OK)
        return NULL;
    view->base = brg_grad_mode() ? brg_retain(t) : NULL;
    return brg__scope_adopt(view);
}

static void part_destroy(brg_node *node)
{
    part_payload *p = node->payload;
    if (p)
        brg_node_release(p->change);
    brg__obj_free(p, sizeof *p);
}

static brg_status new_part_node(brg_node **out, const brg__node_class *cls,
                                int n_edges, const brg_tensor *base,
                                const brg_tensor *part)
{
    char text[BRG_TENSOR_TEXT_MAX];
    if (!brg__shape_is_dense(base->ndim, base->shape, base->stride))
        return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                        "a recorded view of %s, which has gaps or overlaps, "
                        "cannot follow a change in place",
                        brg__tensor_text(base, text));
    BRG_TRY(brg__node_new(out, cls, n_edges, 1, 0));
    part_payload *p = brg__obj_alloc(sizeof *p, "a node of a view");
    (*out)->payload = p;
    if (!p) {
        brg_node_release(*out);
        return BRG_ERR_NOMEM;
    }
    p->base = brg__layout_of(base);
    p->part = brg__layout_of(part);
    return BRG_OK;
}

/* ---- The history of a view, made again from its base ----------------------------------- */

/* Sums the gradient over the dims that repeat elements, and makes these dims
 * of the part be of size 1. */
static brg_tensor *fold_repeats(brg__layout *part, brg_tensor *grad)
{
    for (int d = 0; d < part->ndim && grad; d++)
        if (part->stride[d] == 0 && part->shape[d] > 1) {
            grad = brg_sum(grad, 1, &d, true);
            part->shape[d] = 1;
        }
    return grad;
}

static brg_status view_apply(brg_node *node, brg_tensor *const *grad_out,
                             brg_tensor **grad_in)
{
    part_payload p = *(const part_payload *)node->payload;
    brg_tensor *grad = fold_repeats(&p.part, grad_out[0]);
    brg_tensor *whole = grad ? new_base(&p, NULL) : NULL;
    brg_tensor *part = whole ? cut(&p, whole) : NULL;
    if (!part)
        return brg_error_code();
    BRG_TRY(brg_copy_(part, grad));
    grad_in[0] = whole;
    return BRG_OK;
}

static const brg__node_class view_class = {
    .name = "view", .apply = view_apply, .destroy = part_destroy};

brg_status brg__view_refresh(brg_tensor *t)
{
    brg_tensor *base = t->base;
    if (!base || !brg__requires_grad(base))
        return BRG_OK;
    brg__autograd *a;
    BRG_TRY(brg__autograd_get(t, &a));
    if (a->requires_grad && a->base_histories == brg__base_histories(t))
        return BRG_OK;
    brg_node *node;
    BRG_TRY(new_part_node(&node, &view_class, 1, base, t));
    brg__slot_set(&node->slots[0], t);
    brg_status status = brg__edge_of(base, &node->edges[0]);
    if (status == BRG_OK)
        status = brg__tensor_set_history(t, node, 0);
    brg_node_release(node);
    return status;
}

/* ---- A change of a part -------------------------------------------------------------------- */

static brg_status slices_apply(brg_node *node, brg_tensor *const *grad_out,
                               brg_tensor **grad_in)
{
    const part_payload *p = node->payload;
    brg_node *change = p->change;
    brg_tensor *whole = new_base(p, grad_out[0]);
    brg_tensor *part = whole ? cut(p, whole) : NULL;
    brg_tensor *grad = part ? brg_copy(part) : NULL;
    if (!grad)
        return brg_error_code();
    BRG_TRY(change->cls->apply(change, &grad, grad_in));
    /* The gradient of the old part, if it has one, takes its place. */
    brg_tensor **old = &grad_in[p->edge];
    BRG_TRY(*old ? brg_copy_(part, *old) : brg_zero_(part));
    *old = whole;
    return BRG_OK;
}

static void slices_free_saved(brg_node *node)
{
    const part_payload *p = node->payload;
    if (p && p->change)
        brg__node_free_saved(p->change);
}

static const brg__node_class slices_class = {.name = "copy_slices",
                                             .apply = slices_apply,
                                             .free_saved = slices_free_saved,
                                             .destroy = part_destroy};

brg_status brg__inplace_rebase(brg_tensor *view, brg_node *change, int edge)
{
    brg_tensor *base = view->base;
    brg_node *node;
    BRG_TRY(new_part_node(&node, &slices_class, change->n_edges, base, view));
    brg__slot_set(&node->slots[0], base);
    brg_status status = brg__edge_of(base, &node->edges[edge]);
    for (int i = 0; i < change->n_edges; i++) {
        if (i == edge)
            continue;
        node->edges[i] = change->edges[i];
        brg__node_retain(node->edges[i].node);
    }
    /* The old part has a gradient if the base has: same node, so that a
     * selective backward judges both alike. */
    brg_node_release(change->edges[edge].node);
    change->edges[edge] = node->edges[edge];
    brg__node_retain(change->edges[edge].node);
    brg__node_retain(change);
    part_payload *p = node->payload;
    p->change = change;
    p->edge = edge;
    if (status == BRG_OK)
        status = brg__tensor_set_history(base, node, 0);
    brg_node_release(node);
    return status == BRG_OK ? brg__view_refresh(view) : status;
}

/* ---- Around a change --------------------------------------------------------------------------- */

brg_status brg__inplace_begin(const char *name, brg_tensor *dst,
                              brg_tensor *src, bool *is_recorded)
{
    *is_recorded = false;
    if (brg__grad_mode_is_off)
        return BRG_OK;
    *is_recorded = brg__requires_grad(dst) || (src && brg__requires_grad(src));
    const brg_tensor *root = dst->base ? dst->base : dst;
    char text[BRG_TENSOR_TEXT_MAX];
    if (root->grad_info && brg__autograd_of(root)->is_function_view)
        return BRG_FAIL(BRG_ERR_STATE,
                        "%s: %s is a view that a custom function gave of its "
                        "argument, or the argument itself, and is being "
                        "modified in place; its backward could not account "
                        "for that: return a copy, or mark the argument dirty",
                        name, brg__tensor_text(dst, text));
    if (!brg__requires_grad(root) || !brg_is_leaf(root))
        return BRG_OK;
    return BRG_FAIL(BRG_ERR_STATE,
                    "%s: %s leaf Variable that requires grad has been used in "
                    "an in-place operation: %s; turn recording off with "
                    "brg_grad_mode_set(false)",
                    name, dst->base ? "a view of a" : "a",
                    brg__tensor_text(root, text));
}

brg_status brg__inplace_record(const brg_op *op, int n_in,
                               brg_tensor *const *in, const brg_attrs *attrs)
{
    brg_tensor *dst = in[0];
    brg_op_call call = {.op = op, .n_in = n_in, .n_out = 1, .in = in};
    call.attrs = attrs ? attrs : &brg__no_attrs;
    call.out[0] = dst;
    brg_node *node;
    BRG_TRY(brg__op_node_new(&node, &call));
    brg__slot_set(&node->slots[0], dst);
    brg_status status = dst->base ? brg__inplace_rebase(dst, node, 0)
                                  : brg__tensor_set_history(dst, node, 0);
    brg_node_release(node);
    return status;
}
