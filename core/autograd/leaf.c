/* SPDX-License-Identifier: Apache-2.0
 * What a tensor knows of its gradient: requires_grad, .grad, its node. */
#include <string.h>

#include "core/autograd/node.h"
#include "core/base/alloc.h"
#include "core/base/error.h"
#include "core/base/tracer.h"
#include "core/tensor/device.h"
#include "core/tensor/shape.h"

static void autograd_destroy(brg__grad_info *info)
{
    brg__autograd *a = (brg__autograd *)info;
    brg_hook_remove(a->retain);
    brg_node_release(a->fn);
    brg_release(a->grad);
    brg__hook_list_deinit(&a->hooks);
    brg__hook_list_deinit(&a->post_accumulate);
    brg__obj_free(a, sizeof *a);
}

brg_status brg__autograd_get(brg_tensor *t, brg__autograd **out)
{
    if (!t->grad_info) {
        brg__autograd *a = brg__obj_alloc(sizeof *a, "gradient bookkeeping");
        if (!a)
            return BRG_ERR_NOMEM;
        a->base.destroy = autograd_destroy;
        t->grad_info = &a->base;
    }
    *out = brg__autograd_of(t);
    return BRG_OK;
}

brg_status brg_set_requires_grad(brg_tensor *t, bool requires_grad)
{
    if (!t)
        return brg__error_pending("brg_set_requires_grad: tensor");
    BRG_TRY(brg__tracer_flush());
    char text[BRG_TENSOR_TEXT_MAX];
    if (requires_grad && !brg__tensor_is_float(t))
        return BRG_FAIL(BRG_ERR_DTYPE,
                        "brg_set_requires_grad: %s: only floats can require "
                        "gradients",
                        brg__tensor_text(t, text));
    if (!brg_is_leaf(t))
        return BRG_FAIL(BRG_ERR_STATE,
                        "brg_set_requires_grad: %s was computed by %s; only "
                        "a leaf can be marked (detach it first)",
                        brg__tensor_text(t, text), brg_grad_fn_name(t));
    if (!requires_grad && !t->grad_info)
        return BRG_OK;
    if (brg__is_traced() && brg__requires_grad(t) != requires_grad &&
        (!t->symbol || !requires_grad))
        BRG_TRY(brg__tracer_settle("brg_set_requires_grad",
                                   "freeze tensors outside of the function"));
    brg__autograd *a;
    BRG_TRY(brg__autograd_get(t, &a));
    a->requires_grad = requires_grad;
    return BRG_OK;
}

bool brg_requires_grad(const brg_tensor *t)
{
    return t && brg__requires_grad(t);
}

bool brg_is_leaf(const brg_tensor *t)
{
    if (!t || !brg__requires_grad(t))
        return true;
    return t->grad_info && brg__autograd_of(t)->requires_grad &&
           !brg__autograd_of(t)->fn;
}

brg_tensor *brg_tensor_grad(const brg_tensor *t)
{
    if (brg__is_traced() && brg_requires_grad(t) && brg_is_leaf(t) &&
        brg__tracer_settle("brg_tensor_grad",
                           "gradients arrive when the plan runs") != BRG_OK)
        return NULL;
    return t && t->grad_info ? brg__autograd_of(t)->grad : NULL;
}

static brg_status check_grad_fits(const brg_tensor *t, const brg_tensor *grad)
{
    char a[BRG_TENSOR_TEXT_MAX], b[BRG_TENSOR_TEXT_MAX];
    if (grad->dtype == t->dtype && grad->device.type == t->device.type &&
        grad->device.index == t->device.index &&
        brg__shape_equal(grad->ndim, grad->shape, t->ndim, t->shape))
        return BRG_OK;
    return BRG_FAIL(BRG_ERR_SHAPE,
                    "brg_tensor_set_grad: the gradient is %s, the tensor %s: "
                    "shape, dtype and device must be equal",
                    brg__tensor_text(grad, a), brg__tensor_text(t, b));
}

static brg_status drop_grad(const brg__effect *effect, brg_tensor *in)
{
    return brg_tensor_set_grad(effect->target ? effect->target : in, NULL);
}

/* Gradients are again what they were. */
static brg_status drop_grad_again(const brg__effect *effect,
                                  brg__relaunch *launch)
{
    (void)effect;
    (void)launch;
    return BRG_OK;
}

brg_status brg_tensor_set_grad(brg_tensor *t, brg_tensor *grad)
{
    if (!t)
        return brg__error_pending("brg_tensor_set_grad: tensor");
    if (brg__is_traced() && brg_is_leaf(t) && !brg__tracer_now->flush) {
        brg__effect effect = {
            .name = "drop_grad", .run = drop_grad, .relaunch = drop_grad_again};
        if (grad)
            return brg__tracer_refuse("brg_tensor_set_grad", "only NULL can be "
                                                             "set");
        *(t->symbol ? &effect.in : &effect.target) = t;
        return brg__tracer_defer(&effect);
    }
    if (!grad && !t->grad_info)
        return BRG_OK;
    if (grad)
        BRG_TRY(check_grad_fits(t, grad));
    brg__autograd *a;
    BRG_TRY(brg__autograd_get(t, &a));
    brg_retain(grad);
    brg_release(a->grad);
    a->grad = grad;
    return BRG_OK;
}

uint32_t brg__base_histories(const brg_tensor *t)
{
    const brg_tensor *base = t->base;
    return base && base->grad_info ? brg__autograd_of(base)->n_histories : 0;
}

brg_status brg__tensor_set_history(brg_tensor *t, brg_node *node, int slot)
{
    brg__autograd *a;
    BRG_TRY(brg__autograd_get(t, &a));
    brg__node_retain(node);
    brg_node_release(a->fn);
    a->fn = node;
    a->slot = (uint16_t)slot;
    a->requires_grad = true;
    a->n_histories++;
    a->base_histories = brg__base_histories(t);
    return BRG_OK;
}

brg_status brg__edge_of(brg_tensor *t, brg__edge *edge)
{
    *edge = (brg__edge){NULL, 0};
    if (!t || !brg__requires_grad(t))
        return BRG_OK;
    BRG_TRY(brg__view_refresh(t));
    brg__autograd *a = brg__autograd_of(t);
    if (!a->fn)
        return brg__accumulate_node(&edge->node, t);
    brg__node_retain(a->fn);
    *edge = (brg__edge){a->fn, a->slot};
    return BRG_OK;
}

brg_status brg_tensor_node(brg_node **out, brg_tensor *t)
{
    *out = NULL;
    if (!t)
        return brg__error_pending("brg_tensor_node: tensor");
    if (brg__is_traced() && brg__requires_grad(t) && brg_is_leaf(t))
        BRG_TRY(brg__tracer_settle("brg_tensor_node",
                                   "ask for it outside of the function"));
    BRG_TRY(brg__tracer_flush());
    brg__edge edge;
    BRG_TRY(brg__edge_of(t, &edge));
    char text[BRG_TENSOR_TEXT_MAX];
    if (!edge.node)
        return BRG_FAIL(BRG_ERR_STATE,
                        "brg_tensor_node: %s does not require gradients",
                        brg__tensor_text(t, text));
    *out = edge.node;
    return BRG_OK;
}

const char *brg_grad_fn_name(const brg_tensor *t)
{
    if (!t || !brg__requires_grad(t))
        return NULL;
    if (!t->grad_info)
        return "view"; /* of a base that came to require gradients later */
    const brg_node *fn = brg__autograd_of(t)->fn;
    return fn ? brg_node_name(fn) : "accumulate";
}

/* ---- Hooks of a tensor --------------------------------------------------------- */

/* A plan calls the hooks that a leaf has when it runs. */
static brg_status check_hookable(const char *what, brg_tensor *t)
{
    if (!t)
        return brg__error_pending("%s: the tensor", what);
    if (brg__is_traced() && brg__requires_grad(t) && brg_is_leaf(t))
        BRG_TRY(brg__tracer_settle(what, "add it outside of the function"));
    BRG_TRY(brg__tracer_flush());
    char text[BRG_TENSOR_TEXT_MAX];
    if (!brg__requires_grad(t))
        return BRG_FAIL(BRG_ERR_STATE,
                        "%s: %s does not require gradients, so no hook of it "
                        "would ever run",
                        what, brg__tensor_text(t, text));
    return brg__view_refresh(t);
}

brg_status brg_tensor_add_hook(brg_hook **out, brg_tensor *t,
                               brg_grad_hook_fn fn, void *user,
                               void (*destroy)(void *user))
{
    if (out)
        *out = NULL;
    BRG_TRY(check_hookable("brg_tensor_add_hook", t));
    brg__autograd *a = brg__autograd_of(t);
    brg__hook_list *list = &a->hooks;
    if (a->fn) { /* bound to the node that computes t now */
        brg__node_hooks *hooks;
        BRG_TRY(brg__node_hooks_get(a->fn, &hooks));
        list = &hooks->tensor;
    }
    return brg__hook_add(list, out, (brg__hook_fn)fn, user, destroy, a->slot);
}

brg_status brg_tensor_add_post_accumulate_hook(brg_hook **out, brg_tensor *leaf,
                                               brg_post_accumulate_fn fn,
                                               void *user,
                                               void (*destroy)(void *user))
{
    if (out)
        *out = NULL;
    BRG_TRY(check_hookable("brg_tensor_add_post_accumulate_hook", leaf));
    char text[BRG_TENSOR_TEXT_MAX];
    brg__autograd *a = brg__autograd_of(leaf);
    if (a->fn)
        return BRG_FAIL(BRG_ERR_STATE,
                        "brg_tensor_add_post_accumulate_hook: %s was computed "
                        "by %s; only a leaf accumulates",
                        brg__tensor_text(leaf, text), brg_node_name(a->fn));
    return brg__hook_add(&a->post_accumulate, out, (brg__hook_fn)fn, user,
                         destroy, 0);
}

/* The hook of a retain-grad only marks the slot: the engine does the write. */
static void retain_mark(void)
{
}

brg_status brg_retain_grad(brg_tensor *t)
{
    BRG_TRY(check_hookable("brg_retain_grad", t));
    brg__autograd *a = brg__autograd_of(t);
    if (!a->fn || a->retain)
        return BRG_OK; /* a leaf keeps its gradient anyway */
    brg__node_hooks *hooks;
    BRG_TRY(brg__node_hooks_get(a->fn, &hooks));
    /* t weakly: its death removes the hook (autograd_destroy). */
    return brg__hook_add(&hooks->retain, &a->retain, retain_mark, t, NULL,
                         a->slot);
}

brg_status brg_node_add_pre_hook(brg_hook **out, brg_node *node,
                                 brg_node_pre_hook_fn fn, void *user,
                                 void (*destroy)(void *user))
{
    if (out)
        *out = NULL;
    BRG_CHECK_ARG(node, "brg_node_add_pre_hook: node is NULL");
    brg__node_hooks *hooks;
    BRG_TRY(brg__node_hooks_get(node, &hooks));
    return brg__hook_add(&hooks->pre, out, (brg__hook_fn)fn, user, destroy, 0);
}

brg_status brg_node_add_post_hook(brg_hook **out, brg_node *node,
                                  brg_node_post_hook_fn fn, void *user,
                                  void (*destroy)(void *user))
{
    if (out)
        *out = NULL;
    BRG_CHECK_ARG(node, "brg_node_add_post_hook: node is NULL");
    brg__node_hooks *hooks;
    BRG_TRY(brg__node_hooks_get(node, &hooks));
    return brg__hook_add(&hooks->post, out, (brg__hook_fn)fn, user, destroy, 0);
}
