/* SPDX-License-Identifier: Apache-2.0
 * Accumulate nodes: where a gradient arrives at its leaf.
 *
 *   .grad absent   new gradient ours alone and laid out like the leaf: kept
 *                  as it is (stolen); otherwise copied into that layout
 *   .grad present  added in place, so that whoever holds .grad (an optimizer,
 *                  a bucket) keeps holding it; while gradients are being
 *                  recorded, or a sparse .grad gets a dense gradient, added
 *                  out of place and replaced
 *
 * Every tensor is strided or sparse in coordinates, and none stands for a
 * batch of others: there are no opaque formats to steal or clone, and adding in
 * place is never impossible.
 *
 * Layout contract: a leaf without gaps gets a gradient with its own strides,
 * any other a row-major one. Sparse gradients have no layout: one is stolen
 * if its parts are ours alone too. */
#include <string.h>

#include "core/autograd/node.h"
#include "core/base/error.h"
#include "core/base/tracer.h"
#include "core/ops/sparse.h"
#include "core/tensor/shape.h"

#include <brigade/ops.h>

static pthread_mutex_t weak_lock = PTHREAD_MUTEX_INITIALIZER;

/* ---- The layout contract ---------------------------------------------------------- */

static bool obeys_layout(const brg_tensor *grad, const brg_tensor *leaf)
{
    if (!brg__shape_is_dense(leaf->ndim, leaf->shape, leaf->stride))
        return grad->is_contiguous;
    for (int i = 0; i < leaf->ndim; i++)
        if (leaf->shape[i] != 1 && grad->stride[i] != leaf->stride[i])
            return false;
    return true;
}

brg__layout brg__gradient_layout(const brg_tensor *leaf)
{
    if (!brg__shape_is_dense(leaf->ndim, leaf->shape, leaf->stride))
        return brg__layout_row_major(leaf);
    return brg__layout_from_start(leaf);
}

/* ---- The actions -------------------------------------------------------------------- */

/* Nobody else can see it: there are no references but those expected, and one
 * of its storage or parts. */
static bool is_ours_alone(const brg_tensor *grad, int n_expected)
{
    if (brg__ref_count(&grad->refs) > n_expected)
        return false;
    if (grad->sparse)
        return brg__sparse_is_sole_owner(grad);
    return grad->storage && brg__ref_count(&grad->storage->refs) == 1;
}

static brg_status steal(brg__autograd *a, brg_tensor *grad)
{
    return brg__tensor_new_alias(&a->grad, grad);
}

static brg_status copy(brg__autograd *a, const brg_tensor *leaf,
                       brg_tensor *grad)
{
    if (grad->sparse)
        return brg__sparse_clone(&a->grad, grad);
    brg_tensor *fresh;
    brg__layout layout = brg__gradient_layout(leaf);
    BRG_TRY(brg__tensor_new(&fresh, &layout));
    brg_status status = brg_copy_(fresh, grad);
    if (status == BRG_OK)
        a->grad = fresh;
    else
        brg_release(fresh);
    return status;
}

brg_tensor *brg__free_home(const brg_node *node, bool meets_hooks)
{
    const brg__autograd *a = brg__autograd_of(node->leaf);
    if (!a->home)
        return NULL; /* another thread may be writing its .grad */
    bool is_seen = node->hooks || (meets_hooks && a->hooks.first);
    return is_seen || a->grad || !a->home->is_contiguous ? NULL : a->home;
}

/* The rule has written it where it should lie (evaluate.c). */
static bool is_at_home(const brg__autograd *a, const brg_tensor *grad)
{
    const brg_tensor *home = a->home;
    return home && grad->storage == home->storage &&
           grad->offset == home->offset && grad->is_contiguous &&
           grad->dtype == home->dtype &&
           brg__shape_equal(grad->ndim, grad->shape, home->ndim, home->shape);
}

static brg_status add_in_place(brg__autograd *a, brg_tensor *grad)
{
    return brg_add_(a->grad, grad, 1.0);
}

/* A dense gradient onto a sparse .grad: a dense one takes its place. */
static brg_status densify(brg__autograd *a, const brg_tensor *leaf,
                          brg_tensor *grad)
{
    brg_tensor *old = a->grad;
    a->grad = NULL;
    brg_status status = copy(a, leaf, grad);
    if (status == BRG_OK)
        status = brg_add_(a->grad, old, 1.0);
    if (status != BRG_OK) {
        brg_release(a->grad);
        a->grad = brg_retain(old);
    }
    brg_release(old);
    return status;
}

/* Recorded: the result is a function of what there is. */
static brg_status accumulate_recorded(brg__autograd *a, const brg_tensor *leaf,
                                      brg_tensor *grad)
{
    if (!a->grad && !grad->sparse)
        return copy(a, leaf, grad);
    brg_tensor *sum =
        a->grad ? brg_sparse_add(a->grad, grad) : brg_sparse_copy(grad);
    if (!sum)
        return brg_error_code();
    brg_release(a->grad);
    a->grad = brg_retain(sum);
    return BRG_OK;
}

static brg_status accumulate(brg_node *node, brg_tensor *grad, int n_refs)
{
    brg_tensor *leaf = node->leaf;
    brg__autograd *a = brg__autograd_of(leaf);
    char text[BRG_TENSOR_TEXT_MAX];
    if (a->fn)
        return BRG_FAIL(BRG_ERR_STATE,
                        "leaf variable has been moved into the graph "
                        "interior: %s was recorded as a leaf and is now "
                        "computed by %s",
                        brg__tensor_text(leaf, text), brg_node_name(a->fn));
    if (!grad || !a->requires_grad)
        return BRG_OK;
    if (!brg__grad_mode_is_off)
        return accumulate_recorded(a, leaf, grad);
    if (a->grad && a->grad->sparse && !grad->sparse)
        return densify(a, leaf, grad);
    if (a->grad)
        return add_in_place(a, grad);
    if (is_at_home(a, grad)) {
        a->grad = brg_retain(a->home);
        return BRG_OK;
    }
    if (is_ours_alone(grad, n_refs) &&
        (grad->sparse || obeys_layout(grad, leaf)))
        return steal(a, grad);
    return copy(a, leaf, grad);
}

brg_status brg__accumulate(brg_node *node, brg_tensor *grad, int n_refs)
{
    pthread_mutex_lock(&node->lock);
    brg_status status = accumulate(node, grad, n_refs);
    pthread_mutex_unlock(&node->lock);
    return status;
}

brg_status brg__run_post_accumulate(brg_tensor *leaf, brg__hook_range range)
{
    brg__autograd *a = brg__autograd_of(leaf);
    brg_status status = BRG_OK;
    brg__hook_run run;
    for (brg_hook *h = brg__hook_run_begin(&run, &a->post_accumulate, range);
         h && status == BRG_OK; h = brg__hook_run_next(&run)) {
        status = ((brg_post_accumulate_fn)h->fn)(leaf, h->user);
        BRG_EXPLAIN(status, "a post-accumulate hook of %s",
                    leaf->name ? leaf->name : "a leaf");
    }
    brg__hook_run_end(&run);
    return status;
}

static brg_status accumulate_apply(brg_node *node, brg_tensor *const *grad_out,
                                   brg_tensor **grad_in)
{
    (void)grad_in;
    if (brg__is_traced())
        return brg__tracer_refuse("a backward inside a backward",
                                  "take it out of the function");
    BRG_TRY(brg__accumulate(node, grad_out[0], 1));
    return brg__run_post_accumulate(node->leaf, BRG__ALL_HOOKS);
}

/* ---- The node ------------------------------------------------------------------------ */

static void accumulate_destroy(brg_node *node)
{
    brg__autograd *a = brg__autograd_of(node->leaf);
    pthread_mutex_lock(&weak_lock);
    if (a->accumulate == node)
        a->accumulate = NULL; /* else a new one has taken its place */
    pthread_mutex_unlock(&weak_lock);
    pthread_mutex_destroy(&node->lock);
    brg_release(node->leaf);
}

static const brg__node_class accumulate_class = {
    .name = "accumulate",
    .apply = accumulate_apply,
    .destroy = accumulate_destroy,
    .wants_undefined = true, /* hooks run all the same */
};

bool brg__node_is_accumulate(const brg_node *node)
{
    return node->cls == &accumulate_class;
}

static brg_status make_node(brg_node **out, brg_tensor *leaf)
{
    BRG_TRY(brg__node_new(out, &accumulate_class, 0, 1, 0));
    brg_node *node = *out;
    node->sequence = BRG__SEQUENCE_FIRST;
    node->leaf = brg_retain(leaf);
    brg__slot_set(&node->slots[0], leaf);
    pthread_mutex_init(&node->lock, NULL);
    return BRG_OK;
}

brg_status brg__accumulate_node(brg_node **out, brg_tensor *leaf)
{
    brg__autograd *a = brg__autograd_of(leaf);
    brg_status status = BRG_OK;
    pthread_mutex_lock(&weak_lock);
    *out = a->accumulate;
    if (!*out || !brg__ref_try_retain(&(*out)->refs)) {
        status = make_node(out, leaf);
        a->accumulate = *out;
    }
    pthread_mutex_unlock(&weak_lock);
    return status;
}
