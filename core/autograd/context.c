/* SPDX-License-Identifier: Apache-2.0
 * The context's lists and its bag of attributes. */
#include "core/autograd/context.h"

#include <string.h>

#include "core/autograd/engine.h"
#include "core/base/error.h"

#include <brigade/ops.h>

/* ---- Deep copies of values ---------------------------------------------------- */

static void value_free(brg_value *value)
{
    if (value->kind == BRG_VALUE_TENSOR)
        brg_release(value->as.tensor);
    if (value->kind == BRG_VALUE_STRING)
        brg__mem_free((char *)value->as.text);
    if (value->kind == BRG_VALUE_LIST) {
        brg_value *items = (brg_value *)value->as.list.items;
        for (size_t i = 0; i < value->as.list.n; i++)
            value_free(&items[i]);
        brg__mem_free(items);
    }
    *value = (brg_value){BRG_VALUE_NONE, {0}};
}

/* Lists nest as deep as the caller wrote them. */
static brg_status value_copy(brg_value *to, brg_value from)
{
    *to = from;
    if (from.kind == BRG_VALUE_TENSOR) {
        brg_retain(from.as.tensor);
    } else if (from.kind == BRG_VALUE_STRING) {
        to->as.text = brg__mem_strdup(from.as.text ? from.as.text : "");
        if (!to->as.text)
            goto failed;
    } else if (from.kind == BRG_VALUE_LIST) {
        brg_value *items = brg__mem_alloc_array(from.as.list.n, sizeof *items,
                                                "a list attribute");
        if (!items)
            goto failed;
        to->as.list.items = items;
        for (size_t i = 0; i < from.as.list.n; i++)
            if (value_copy(&items[i], from.as.list.items[i]) != BRG_OK) {
                value_free(to);
                return BRG_ERR_NOMEM;
            }
    }
    return BRG_OK;
failed:
    *to = (brg_value){BRG_VALUE_NONE, {0}};
    return BRG_ERR_NOMEM;
}

/* ---- Lists of tensors ---------------------------------------------------------- */

static void list_clear(brg__tensor_list *list)
{
    for (size_t i = 0; i < list->n; i++)
        brg_release(list->at[i]);
    list->n = 0;
}

static brg_status list_set(brg__tensor_list *list, brg_tensor *const *tensors,
                           size_t n)
{
    BRG_CHECK_ARG(tensors || n == 0, "a list of %zu tensors is NULL", n);
    list_clear(list);
    BRG_TRY(brg__array_reserve(list, n));
    for (size_t i = 0; i < n; i++)
        list->at[list->n++] = brg_retain(tensors[i]);
    return BRG_OK;
}

bool brg__tensor_list_has(const brg__tensor_list *list, const brg_tensor *t)
{
    for (size_t i = 0; i < list->n; i++)
        if (list->at[i] == t)
            return true;
    return false;
}

/* ---- Life ----------------------------------------------------------------------- */

brg_status brg__context_new(brg_context **out, brg_function *function)
{
    *out = brg__obj_alloc(sizeof **out, "a function's context");
    if (!*out)
        return BRG_ERR_NOMEM;
    brg__ref_retain(&function->refs);
    (*out)->function = function;
    (*out)->is_materializing = true;
    (*out)->autocast = brg__autocast;
    return BRG_OK;
}

void brg__context_drop_lists(brg_context *ctx)
{
    list_clear(&ctx->saved);
    list_clear(&ctx->dirty);
    list_clear(&ctx->non_differentiable);
}

void brg__context_free(brg_context *ctx)
{
    if (!ctx)
        return;
    brg__context_drop_lists(ctx);
    brg__array_deinit(&ctx->saved);
    brg__array_deinit(&ctx->dirty);
    brg__array_deinit(&ctx->non_differentiable);
    for (size_t i = 0; i < ctx->attributes.n; i++) {
        brg__mem_free(ctx->attributes.at[i].name);
        value_free(&ctx->attributes.at[i].value);
    }
    brg__array_deinit(&ctx->attributes);
    brg_function_release(ctx->function);
    brg__obj_free(ctx, sizeof *ctx);
}

/* ---- Public ---------------------------------------------------------------------- */

brg_status brg_context_save(brg_context *ctx, brg_tensor *const *tensors,
                            size_t n)
{
    return list_set(&ctx->saved, tensors, n);
}

brg_status brg_context_mark_dirty(brg_context *ctx, brg_tensor *const *tensors,
                                  size_t n)
{
    return list_set(&ctx->dirty, tensors, n);
}

brg_status brg_context_mark_non_differentiable(brg_context *ctx,
                                               brg_tensor *const *tensors,
                                               size_t n)
{
    return list_set(&ctx->non_differentiable, tensors, n);
}

void brg_context_set_materialize_grads(brg_context *ctx, bool is_on)
{
    ctx->is_materializing = is_on;
}

size_t brg_context_n_saved(const brg_context *ctx)
{
    return ctx->node ? ctx->node->n_saved : ctx->saved.n;
}

brg_status brg_context_saved(brg_context *ctx, size_t i, brg_tensor **out)
{
    *out = NULL;
    size_t n = brg_context_n_saved(ctx);
    BRG_CHECK_ARG(i < n, "%s saved %zu tensors, number %zu was asked for",
                  ctx->function->name, n, i);
    if (!ctx->node) {
        *out = ctx->saved.at[i];
        return BRG_OK;
    }
    if (ctx->trace) {
        *out = ctx->trace->saved[i];
        return BRG_OK;
    }
    BRG_TRY(brg__node_check_alive(ctx->node));
    return brg__saved_get(ctx->node, &ctx->node->saved[i], out);
}

bool brg_context_needs_grad(const brg_context *ctx, size_t i)
{
    if (i >= ctx->n_args || !((ctx->needs >> i) & 1u))
        return false;
    return !ctx->node ||
           brg__task_runs(brg__task_current(), ctx->node->edges[i].node);
}

void *brg_context_user(const brg_context *ctx)
{
    return ctx->function->def.user;
}

static brg__attribute *find(const brg_context *ctx, const char *name)
{
    for (size_t i = 0; i < ctx->attributes.n; i++)
        if (strcmp(ctx->attributes.at[i].name, name) == 0)
            return &ctx->attributes.at[i];
    return NULL;
}

/* Part of a plan's key: bools, strings, and lists of these and of numbers. */
static bool is_constant(const brg_value *v, bool is_inside)
{
    if (v->kind == BRG_VALUE_LIST) {
        for (size_t i = 0; i < v->as.list.n; i++)
            if (!is_constant(&v->as.list.items[i], true))
                return false;
        return true;
    }
    bool is_number = v->kind == BRG_VALUE_INT || v->kind == BRG_VALUE_FLOAT;
    return v->kind == BRG_VALUE_BOOL || v->kind == BRG_VALUE_STRING ||
           v->kind == BRG_VALUE_NONE || (is_number && is_inside);
}

/* Others may differ from call to call of the plan. */
static brg_value traced_value(const brg_context *ctx,
                              const brg__attribute *attribute)
{
    brg_value_kind kind = attribute->value.kind;
    if (kind == BRG_VALUE_TENSOR)
        return brg_value_tensor(
            ctx->trace->attributes[attribute - ctx->attributes.at]);
    if (!is_constant(&attribute->value, false))
        ctx->trace->has_read_value = true;
    return attribute->value;
}

brg_value brg_context_get(const brg_context *ctx, const char *name)
{
    const brg__attribute *attribute = find(ctx, name);
    if (attribute && ctx->trace)
        return traced_value(ctx, attribute);
    return attribute ? attribute->value : (brg_value){BRG_VALUE_NONE, {0}};
}

brg_tensor *brg__attribute_tensor(const brg__attribute *attribute)
{
    const brg_value *v = &attribute->value;
    if (v->kind == BRG_VALUE_TENSOR)
        return v->as.tensor;
    if (v->kind == BRG_VALUE_INT)
        return brg_full(BRG_DTYPE_F64, BRG_SCALAR, (double)v->as.integer);
    if (v->kind == BRG_VALUE_FLOAT)
        return brg_full(BRG_DTYPE_F64, BRG_SCALAR, v->as.real);
    return NULL;
}

brg_tensor *brg_context_get_tensor(const brg_context *ctx, const char *name,
                                   brg_dtype dtype)
{
    const brg__attribute *attribute = find(ctx, name);
    if (!attribute)
        return NULL;
    brg_tensor *t = ctx->trace
                        ? ctx->trace->attributes[attribute - ctx->attributes.at]
                        : brg__attribute_tensor(attribute);
    return t && (brg_dtype)t->dtype != dtype ? brg_cast(t, dtype) : t;
}

brg_status brg_context_set(brg_context *ctx, const char *name, brg_value value)
{
    BRG_CHECK_ARG(name, "brg_context_set: name is NULL");
    if (ctx->trace) { /* an effect on the node: the plan must call it */
        ctx->trace->has_read_value = true;
        return BRG_OK;
    }
    brg_value copy;
    BRG_TRY(value_copy(&copy, value));
    brg__attribute *attribute = find(ctx, name);
    if (attribute) {
        value_free(&attribute->value);
        attribute->value = copy;
        return BRG_OK;
    }
    brg__attribute fresh = {brg__mem_strdup(name), copy};
    if (fresh.name && brg__array_push(&ctx->attributes, fresh) == BRG_OK)
        return BRG_OK;
    brg__mem_free(fresh.name);
    value_free(&copy);
    return BRG_ERR_NOMEM;
}
