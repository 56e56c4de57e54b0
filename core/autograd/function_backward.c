/* SPDX-License-Identifier: Apache-2.0
 * The node of a custom function: its backward is called, what it gives is
 * checked, and what may be differentiated only once refuses to be so twice. */
#include "core/autograd/context.h"
#include "core/base/error.h"
#include "core/ops/op.h"

#include <brigade/ops.h>

/* ---- What it gets and gives -------------------------------------------------------- */

static brg_tensor *zeros_of(const brg__slot *slot)
{
    brg_tensor *t;
    brg__layout layout = brg__slot_layout(slot);
    if (brg__tensor_new(&t, &layout) != BRG_OK)
        return NULL;
    t = brg__scope_adopt(t);
    return t && brg__fill_now(t, 0.0) == BRG_OK ? t : NULL;
}

static brg_status materialize(const brg_node *node, brg_tensor *const *grad_out,
                              brg_tensor **full)
{
    for (uint16_t j = 0; j < node->n_slots; j++) {
        const brg__slot *slot = &node->slots[j];
        full[j] = grad_out[j];
        if (full[j] || !slot->is_differentiable)
            continue;
        full[j] = zeros_of(slot);
        if (!full[j])
            return brg_error_code();
    }
    return BRG_OK;
}

/* One gradient for each argument; more only if they are NULL. */
static brg_status check_count(const brg_context *ctx, brg_tensor *const *grads,
                              size_t n)
{
    while (n > ctx->n_args && n <= BRG_MAX_FUNCTION_ARGS && !grads[n - 1])
        n--;
    if (n == ctx->n_args)
        return BRG_OK;
    return BRG_FAIL(BRG_ERR_CALLBACK,
                    "Function %s returned an invalid number of gradients - "
                    "expected %zu, but got %zu",
                    ctx->function->name, ctx->n_args, n);
}

static brg_status take_gradients(const brg_node *node, brg_tensor **grads,
                                 brg_tensor **grad_in)
{
    const brg_context *ctx = node->payload;
    for (size_t i = 0; i < ctx->n_args; i++) {
        if (grads[i] && !((ctx->tensors >> i) & 1u))
            return BRG_FAIL(BRG_ERR_CALLBACK,
                            "Function %s returned a gradient different than "
                            "None at position %zu, but the corresponding "
                            "forward input was not a Variable",
                            ctx->function->name, i);
        grad_in[i] = node->edges[i].node ? grads[i] : NULL;
    }
    return BRG_OK;
}

/* ---- once_differentiable: the second derivative is an error ---------------------- */

static brg_status refuse_apply(brg_node *node, brg_tensor *const *grad_out,
                               brg_tensor **grad_in)
{
    (void)grad_out;
    (void)grad_in;
    const brg_function *function = node->payload;
    return BRG_FAIL(BRG_ERR_STATE,
                    "trying to differentiate twice a function that was marked "
                    "with @once_differentiable: %s",
                    function->name);
}

static void refuse_destroy(brg_node *node)
{
    brg_function_release(node->payload);
}

static const brg__node_class refuse_class = {.name = "once_differentiable",
                                             .apply = refuse_apply,
                                             .destroy = refuse_destroy};

/* Gives each gradient a history that fails when it is used. */
static brg_status refuse_second_order(brg_context *ctx,
                                      brg_tensor *const *grad_out,
                                      brg_tensor **grads)
{
    int n_out = (int)ctx->function->def.n_outputs;
    bool has_history = false;
    for (int j = 0; j < n_out; j++)
        has_history |= grad_out[j] && brg_requires_grad(grad_out[j]);
    for (size_t i = 0; has_history && i < ctx->n_args; i++) {
        if (!grads[i])
            continue;
        brg_node *node;
        BRG_TRY(brg__node_new(&node, &refuse_class, n_out, 1, 0));
        brg__ref_retain(&ctx->function->refs);
        node->payload = ctx->function;
        brg_status status = BRG_OK;
        for (int j = 0; j < n_out && status == BRG_OK; j++)
            status = brg__edge_of(grad_out[j], &node->edges[j]);
        grads[i] = status == BRG_OK ? brg_detach(grads[i]) : NULL;
        if (grads[i])
            status = brg__tensor_set_history(grads[i], node, 0);
        brg_node_release(node);
        if (!grads[i] || status != BRG_OK)
            return brg_error_code();
    }
    return BRG_OK;
}

/* ---- The node ---------------------------------------------------------------------- */

static brg_status function_backward(brg_node *node, brg_tensor *const *grad_out,
                                    brg_tensor **grad_in)
{
    brg_context *ctx = node->payload;
    const brg_function_def *def = &ctx->function->def;
    if (!def->backward)
        return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                        "Function %s has no backward, but a gradient of it is "
                        "needed",
                        ctx->function->name);
    brg_tensor *full[BRG_MAX_FUNCTION_OUTPUTS];
    brg_tensor *grads[BRG_MAX_FUNCTION_ARGS + 1] = {0};
    if (ctx->is_materializing) {
        BRG_TRY(materialize(node, grad_out, full));
        grad_out = full;
    }
    size_t n = ctx->n_args;
    bool mode = brg_grad_mode();
    if (def->once_differentiable)
        brg_grad_mode_set(false);
    brg_autocast policy = brg__autocast_swap(ctx->autocast);
    brg_status status =
        (ctx->trace && def->capture ? def->capture
                                    : def->backward)(ctx, grad_out, grads, &n);
    brg__autocast_swap(policy);
    brg_grad_mode_set(mode);
    BRG_EXPLAIN(status, "its backward");
    if (status != BRG_OK)
        return status;
    BRG_TRY(check_count(ctx, grads, n));
    if (def->once_differentiable && mode)
        BRG_TRY(refuse_second_order(ctx, grad_out, grads));
    return take_gradients(node, grads, grad_in);
}

static void function_destroy(brg_node *node)
{
    brg__context_free(node->payload);
}

static const char *function_name(const brg_node *node)
{
    return ((const brg_context *)node->payload)->function->name;
}

const brg__node_class brg__function_class = {
    .name_of = function_name,
    .apply = function_backward,
    .destroy = function_destroy,
    .wants_undefined = true,
};

bool brg__node_is_function(const brg_node *node)
{
    return node->cls == &brg__function_class;
}

brg_function_tracing brg__node_tracing(const brg_node *node)
{
    if (!brg__node_is_function(node))
        return BRG_FUNCTION_OPAQUE;
    return ((const brg_context *)node->payload)->function->def.tracing;
}

brg_status brg__function_trace(brg_node *node, brg__call_trace *trace,
                               brg_tensor *const *grad_out,
                               brg_tensor **grad_in)
{
    brg_context *ctx = node->payload;
    ctx->trace = trace;
    brg__symbol_was_read = brg__symbol_layout_was_asked = false;
    brg_status status = function_backward(node, grad_out, grad_in);
    trace->has_read_value |= brg__symbol_was_read;
    trace->has_asked_layout = brg__symbol_layout_was_asked;
    ctx->trace = NULL;
    return status;
}
