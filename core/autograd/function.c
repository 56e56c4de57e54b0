/* SPDX-License-Identifier: Apache-2.0
 * Custom functions: the call, the marking of its outputs. Their backward is in
 * function_backward.c.
 *
 * forward runs with grad mode off in a scope of its own. What it returned
 * then becomes an output:
 *   changed in place (dirty)  the same tensor, its history now this node
 *   an input, untouched       an alias, so that it can have this history
 *   any other                 itself
 * and outputs that are not differentiable keep no history. */
#include <stdatomic.h>
#include <string.h>

#include "core/autograd/context.h"
#include "core/autograd/engine.h"
#include "core/base/error.h"
#include "core/base/options.h"
#include "core/base/tracer.h"
#include "core/ops/op.h"
#include "core/tensor/shape.h"

#include <brigade/ops.h>

/* ---- Functions ------------------------------------------------------------------ */

static _Atomic uint64_t next_id = 1;

static brg_status take_def(brg_function_def *def, const brg_function_def *given)
{
    *def = (brg_function_def)BRG_FUNCTION_DEF_INIT;
    BRG_CHECK_ARG(given, "brg_function_create: def is NULL");
    BRG_TRY(BRG_TAKE_OPTIONS(def, given, "brg_function_create",
                             BRG_FUNCTION_DEF_INIT));
    BRG_CHECK_ARG(def->name && def->forward,
                  "brg_function_create: name and forward must be set");
    BRG_CHECK_ARG((unsigned)def->tracing <= BRG_FUNCTION_UNTRACEABLE,
                  "brg_function_create: %s: tracing is %d", def->name,
                  (int)def->tracing);
    BRG_CHECK_ARG(def->n_outputs >= 1 &&
                      def->n_outputs <= BRG_MAX_FUNCTION_OUTPUTS,
                  "brg_function_create: %s has %zu outputs, allowed are 1 to "
                  "%d",
                  def->name, def->n_outputs, BRG_MAX_FUNCTION_OUTPUTS);
    return BRG_OK;
}

brg_status brg_function_create(brg_function **out, const brg_function_def *def)
{
    *out = NULL;
    brg_function_def taken;
    BRG_TRY(take_def(&taken, def));
    brg_function *function = BRG__NEW(brg_function);
    char *name = function ? brg__mem_strdup(taken.name) : NULL;
    if (!name) {
        brg__mem_free(function);
        return BRG_ERR_NOMEM;
    }
    brg__ref_init(&function->refs);
    function->id = atomic_fetch_add(&next_id, 1);
    function->def = taken;
    function->name = name;
    *out = function;
    return BRG_OK;
}

void brg_function_release(brg_function *function)
{
    if (!function || !brg__ref_release(&function->refs))
        return;
    if (function->def.destroy)
        function->def.destroy(function->def.user);
    brg__mem_free(function->name);
    brg__mem_free(function);
}

uint64_t brg_function_id(const brg_function *function)
{
    return function->id;
}

size_t brg_function_n_outputs(const brg_function *function)
{
    return function->def.n_outputs;
}

/* ---- Recording --------------------------------------------------------------------- */

static int output_index(const brg_value *outputs, size_t n, const brg_tensor *t)
{
    for (size_t j = 0; j < n; j++)
        if (t && outputs[j].kind == BRG_VALUE_TENSOR &&
            outputs[j].as.tensor == t)
            return (int)j;
    return -1;
}

/* -1: none. */
static int argument_index(const brg_value *args, size_t n, const brg_tensor *t)
{
    for (size_t i = 0; i < n; i++)
        if (args[i].kind == BRG_VALUE_TENSOR && args[i].as.tensor == t)
            return (int)i;
    return -1;
}

/* What was changed in place must be returned; of recorded tensors it must be
 * no leaf (nor a part of one), and a part only by a function of one output. */
static brg_status check_dirty(const brg_context *ctx, const brg_value *outputs,
                              bool is_recorded)
{
    char text[BRG_TENSOR_TEXT_MAX];
    for (size_t i = 0; i < ctx->dirty.n; i++) {
        brg_tensor *t = ctx->dirty.at[i];
        if (output_index(outputs, ctx->function->def.n_outputs, t) < 0)
            return BRG_FAIL(BRG_ERR_CALLBACK,
                            "%s: Some elements marked as dirty during the "
                            "forward method were not returned as output",
                            ctx->function->name);
        brg_tensor_touch(t);
        if (!is_recorded)
            continue;
        const brg_tensor *root = t->base ? t->base : t;
        if (brg_requires_grad(root) && brg_is_leaf(root))
            return BRG_FAIL(BRG_ERR_STATE,
                            "%s: a leaf Variable that requires grad has been "
                            "used in an in-place operation: %s",
                            ctx->function->name, brg__tensor_text(root, text));
        if (t->base && ctx->function->def.n_outputs > 1)
            return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                            "%s: a view was changed in place by a function of "
                            "%zu outputs; only one of one output may: %s",
                            ctx->function->name, ctx->function->def.n_outputs,
                            brg__tensor_text(t, text));
    }
    return BRG_OK;
}

/* One output: takes its place in the node (if there is one). The tensor that
 * the caller gets is retained in *out. */
static bool shares_memory(const brg_value *args, size_t n, const brg_tensor *t)
{
    for (size_t i = 0; i < n; i++)
        if (args[i].kind == BRG_VALUE_TENSOR && args[i].as.tensor &&
            brg_tensor_shares_storage(args[i].as.tensor, t))
            return true;
    return false;
}

static brg_status finish_output(brg_context *ctx, brg_node *node, size_t j,
                                const brg_value *args, brg_tensor *t,
                                brg_tensor **out)
{
    int argument = argument_index(args, ctx->n_args, t);
    bool is_input = argument >= 0;
    bool is_dirty = brg__tensor_list_has(&ctx->dirty, t);
    bool is_differentiable = node && brg__tensor_is_float(t) &&
                             !brg__tensor_list_has(&ctx->non_differentiable, t);
    *out = brg_retain(t);
    bool needs_alias = is_input && !is_dirty && node;
    if (needs_alias ||
        (!is_differentiable && !is_input && brg_requires_grad(t))) {
        brg_release(t);
        BRG_TRY(brg__tensor_new_alias(out, t));
    }
    if (!is_differentiable)
        return BRG_OK;
    brg__slot_set(&node->slots[j], *out);
    if (is_dirty && is_input && t->base)
        return brg__inplace_rebase(t, node, argument);
    BRG_TRY(brg__tensor_set_history(*out, node, (int)j));
    if (!is_dirty)
        brg__autograd_of(*out)->is_function_view =
            shares_memory(args, ctx->n_args, *out);
    return BRG_OK;
}

static brg_status save(brg_context *ctx, brg_node *node, const brg_value *args,
                       const brg_value *outputs)
{
    const brg_function_def *def = &ctx->function->def;
    for (size_t k = 0; k < ctx->saved.n; k++) {
        brg_tensor *t = ctx->saved.at[k];
        int j = output_index(outputs, def->n_outputs, t);
        int i = t ? argument_index(args, ctx->n_args, t) : -1;
        if (i >= 0)
            ctx->saved_args |= 1u << i;
        if (j >= 0 && def->setup_context && i >= 0 &&
            !brg__tensor_list_has(&ctx->dirty, t))
            return BRG_FAIL(BRG_ERR_CALLBACK,
                            "%s: setup_context saves an input that forward "
                            "returned as it is: return and save a view of it "
                            "instead, or save it in forward",
                            ctx->function->name);
        brg__saved_kind kind = j >= 0 ? BRG__SAVED_OUTPUT : BRG__SAVED_INPUT;
        BRG_TRY(brg__saved_init(&node->saved[k], kind, j >= 0 ? j : (int)k, t));
    }
    return BRG_OK;
}

static brg_status make_node(brg_context *ctx, const brg_value *args,
                            brg_node **out)
{
    BRG_TRY(brg__node_new(out, &brg__function_class, (int)ctx->n_args,
                          (int)ctx->function->def.n_outputs,
                          (int)ctx->saved.n));
    brg_node *node = *out;
    for (size_t i = 0; i < ctx->n_args; i++)
        if (args[i].kind == BRG_VALUE_TENSOR && args[i].as.tensor)
            BRG_TRY(brg__edge_of(args[i].as.tensor, &node->edges[i]));
    return BRG_OK;
}

/* Turns what forward returned into what the caller gets: retained tensors in
 * results[]. On success the node, if any, owns ctx. */
static brg_status record(brg_context *ctx, const brg_value *args,
                         const brg_value *outputs, bool is_recorded,
                         brg_tensor **results)
{
    BRG_TRY(check_dirty(ctx, outputs, is_recorded));
    brg_node *node = NULL;
    brg_status status = BRG_OK;
    if (is_recorded) {
        status = make_node(ctx, args, &node);
        if (status == BRG_OK)
            status = save(ctx, node, args, outputs);
        if (node)
            brg__node_stamp(node);
    }
    for (size_t j = 0; j < ctx->function->def.n_outputs; j++) {
        brg_tensor *t = outputs[j].as.tensor;
        if (status != BRG_OK || outputs[j].kind != BRG_VALUE_TENSOR || !t)
            continue;
        status = finish_output(ctx, node, j, args, t, &results[j]);
    }
    if (node && status == BRG_OK) {
        ctx->node = node; /* our reference, until the call is over */
        node->payload = ctx;
    } else if (node) {
        node->cls = &brg__empty_class; /* it never got its context */
        brg_node_release(node);
    }
    return status;
}

/* ---- The call ------------------------------------------------------------------------- */

static brg_status run_forward(brg_context *ctx, const brg_value *args,
                              brg_value *outputs)
{
    const brg_function_def *def = &ctx->function->def;
    bool mode = brg_grad_mode_set(false);
    brg_status status = def->forward(ctx, args, ctx->n_args, outputs);
    BRG_EXPLAIN(status, "its forward");
    if (status == BRG_OK && def->setup_context) {
        status = def->setup_context(ctx, args, ctx->n_args, outputs);
        BRG_EXPLAIN(status, "its setup_context");
    }
    brg_grad_mode_set(mode);
    for (size_t j = 0; status == BRG_OK && j < def->n_outputs; j++)
        if (outputs[j].kind == BRG_VALUE_TENSOR && !outputs[j].as.tensor)
            status = brg__error_pending("an output of a function");
    return status;
}

static uint32_t arguments_that(const brg_value *args, size_t n, bool need_grad)
{
    uint32_t mask = 0;
    for (size_t i = 0; i < n; i++)
        if (args[i].kind == BRG_VALUE_TENSOR && args[i].as.tensor &&
            (!need_grad || brg_requires_grad(args[i].as.tensor)))
            mask |= 1u << i;
    return mask;
}

static brg_status call(brg_context *ctx, const brg_value *args,
                       brg_value *outputs)
{
    size_t n_outputs = ctx->function->def.n_outputs;
    brg_tensor *results[BRG_MAX_FUNCTION_OUTPUTS] = {0};
    brg_scope *scope = brg_scope_begin();
    if (!scope)
        return BRG_ERR_NOMEM;
    brg_status status = run_forward(ctx, args, outputs);
    if (status == BRG_OK)
        status = record(ctx, args, outputs, ctx->needs != 0 && brg_grad_mode(),
                        results);
    brg__context_drop_lists(ctx);
    brg_scope_end(scope);
    for (size_t j = 0; j < n_outputs; j++) {
        if (outputs[j].kind != BRG_VALUE_TENSOR)
            continue;
        outputs[j].as.tensor = NULL;
        if (results[j] && status != BRG_OK)
            brg_release(results[j]);
        else if (results[j] &&
                 !(outputs[j].as.tensor = brg__scope_adopt(results[j])))
            status = brg_error_code();
    }
    return status;
}

/* In pieces, whose tensors become symbols within ops only, one whose arguments
 * are symbols already. */
static bool can_trace(const brg_function *function, const brg_value *args,
                      size_t n)
{
    if (function->def.tracing != BRG_FUNCTION_TRACEABLE)
        return false;
    for (size_t i = 0; i < n && !brg__tracer_now->bring; i++)
        if (args[i].kind == BRG_VALUE_TENSOR && args[i].as.tensor &&
            !args[i].as.tensor->symbol)
            return false;
    return true;
}

/* The same arguments with symbols for tensors from outside. */
static brg_status bring(brg_value *brought, const brg_value **args, size_t n)
{
    if (n > 0)
        memcpy(brought, *args, n * sizeof *brought);
    for (size_t i = 0; i < n; i++)
        if (brought[i].kind == BRG_VALUE_TENSOR)
            BRG_TRY(brg__tracer_bring(&brought[i].as.tensor));
    *args = brought;
    return BRG_OK;
}

brg_status brg_function_apply(const brg_function *function,
                              const brg_value *args, size_t n_args,
                              brg_value *outputs)
{
    BRG_CHECK_ARG(function && outputs && (args || n_args == 0),
                  "brg_function_apply: a pointer is NULL");
    BRG_CHECK_ARG(n_args <= BRG_MAX_FUNCTION_ARGS,
                  "%s was given %zu arguments, allowed are %d", function->name,
                  n_args, BRG_MAX_FUNCTION_ARGS);
    for (size_t j = 0; j < function->def.n_outputs; j++)
        outputs[j] = (brg_value){BRG_VALUE_NONE, {0}};
    bool is_called = brg__is_traced() && !can_trace(function, args, n_args);
    brg_value brought[BRG_MAX_FUNCTION_ARGS];
    if (brg__is_traced() && !is_called)
        BRG_TRY(bring(brought, &args, n_args));
    if (is_called)
        BRG_TRY(brg__tracer_settle(function->name,
                                   "mark it traceable, or call it outside"));
    brg_context *ctx;
    BRG_TRY(brg__context_new(&ctx, (brg_function *)function));
    ctx->n_args = n_args;
    ctx->tensors = arguments_that(args, n_args, false);
    ctx->needs = arguments_that(args, n_args, true);
    brg__tracer *tracer = is_called ? brg__tracer_suspend() : NULL;
    brg_status status = call(ctx, args, outputs);
    brg__tracer_resume(tracer);
    brg_node *node = ctx->node; /* owns ctx if there is one */
    if (node)
        brg_node_release(node);
    else
        brg__context_free(ctx);
    if (status != BRG_OK)
        return brg__error_prefix("%s: ", function->name);
    return BRG_OK;
}

brg_tensor *brg_function_call(const brg_function *function,
                              const brg_value *args, size_t n_args)
{
    brg_value outputs[BRG_MAX_FUNCTION_OUTPUTS];
    if (brg_function_apply(function, args, n_args, outputs) != BRG_OK)
        return NULL;
    if (outputs[0].kind == BRG_VALUE_TENSOR)
        return outputs[0].as.tensor;
    (void)BRG_FAIL(BRG_ERR_CALLBACK, "%s: its first output is no tensor",
                   function->name);
    return NULL;
}
