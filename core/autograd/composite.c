/* SPDX-License-Identifier: Apache-2.0
 * Composites: the counted handle around a user's object, and what is done with
 * their parts. The kinds that come with the library are in jagged.c. */
#include <brigade/composite.h>

#include "core/base/alloc.h"
#include "core/base/error.h"
#include "core/base/refcount.h"

struct brg_composite {
    brg__refcount refs;
    const brg_composite_class *cls;
    void *object;
};

/* ---- Life --------------------------------------------------------------------- */

brg_status brg_composite_create(brg_composite **out,
                                const brg_composite_class *cls, void *object)
{
    *out = NULL;
    BRG_CHECK_ARG(cls && cls->struct_size >= sizeof *cls,
                  "brg_composite_create: the class's struct_size is wrong: "
                  "begin it with BRG_COMPOSITE_CLASS_INIT");
    BRG_CHECK_ARG(cls->name && cls->flatten && cls->unflatten && cls->destroy,
                  "brg_composite_create: a field of the class is NULL");
    brg_composite *c = brg__obj_alloc(sizeof *c, "a composite");
    if (!c)
        return BRG_ERR_NOMEM;
    brg__ref_init(&c->refs);
    c->cls = cls;
    c->object = object;
    *out = c;
    return BRG_OK;
}

brg_composite *brg_composite_retain(brg_composite *c)
{
    if (c)
        brg__ref_retain(&c->refs);
    return c;
}

void brg_composite_release(brg_composite *c)
{
    if (!c || !brg__ref_release(&c->refs))
        return;
    c->cls->destroy(c->object);
    brg__obj_free(c, sizeof *c);
}

void *brg_composite_object(const brg_composite *c,
                           const brg_composite_class *cls)
{
    BRG_CHECK_ARG_NULL(c, "brg_composite_object: the composite is NULL");
    BRG_CHECK_ARG_NULL(c->cls == cls, "a composite is a %s, expected a %s",
                       c->cls->name, cls->name);
    return c->object;
}

/* ---- Parts -------------------------------------------------------------------- */

brg_status brg_composite_flatten(const brg_composite *c, brg_tensor **tensors,
                                 size_t *n)
{
    *n = 0;
    BRG_CHECK_ARG(c, "brg_composite_flatten: the composite is NULL");
    BRG_TRY(c->cls->flatten(c->object, tensors, n));
    if (*n > BRG_MAX_COMPOSITE_TENSORS)
        return BRG_FAIL(BRG_ERR_CALLBACK,
                        "a %s flattened to %zu tensors, allowed are %d",
                        c->cls->name, *n, BRG_MAX_COMPOSITE_TENSORS);
    return BRG_OK;
}

brg_status brg_composite_unflatten(brg_composite **out,
                                   const brg_composite *like,
                                   brg_tensor *const *tensors, size_t n)
{
    *out = NULL;
    BRG_CHECK_ARG(like, "brg_composite_unflatten: the composite is NULL");
    for (size_t k = 0; k < n; k++)
        if (!tensors[k])
            return brg__error_pending("a part of a composite");
    void *object;
    BRG_TRY(like->cls->unflatten(&object, like->object, tensors, n));
    brg_status status = brg_composite_create(out, like->cls, object);
    if (status != BRG_OK)
        like->cls->destroy(object);
    return status;
}

bool brg_composite_requires_grad(const brg_composite *c)
{
    brg_tensor *parts[BRG_MAX_COMPOSITE_TENSORS];
    size_t n;
    if (brg_composite_flatten(c, parts, &n) != BRG_OK)
        return false;
    for (size_t k = 0; k < n; k++)
        if (brg_requires_grad(parts[k]))
            return true;
    return false;
}

/* ---- Ops and functions of composites -------------------------------------------- */

#define MAX_INPUTS 8

/* The parts of all inputs, which must be alike. */
static brg_status take_apart(brg_composite *const *in, size_t n_in,
                             brg_tensor *parts[][BRG_MAX_COMPOSITE_TENSORS],
                             size_t *n)
{
    BRG_CHECK_ARG(in && n_in >= 1 && n_in <= MAX_INPUTS,
                  "%zu composites were given, expected 1 to %d", n_in,
                  MAX_INPUTS);
    for (size_t i = 0; i < n_in; i++) {
        size_t n_parts;
        BRG_TRY(brg_composite_flatten(in[i], parts[i], &n_parts));
        if (i == 0)
            *n = n_parts;
        if (in[i]->cls != in[0]->cls || n_parts != *n)
            return BRG_FAIL(BRG_ERR_ARG,
                            "composite %zu is a %s of %zu tensors, the first "
                            "is a %s of %zu",
                            i, in[i]->cls->name, n_parts, in[0]->cls->name, *n);
    }
    return BRG_OK;
}

static brg_status map_parts(brg_tensor **results, brg_composite_fn fn,
                            void *user,
                            brg_tensor *parts[][BRG_MAX_COMPOSITE_TENSORS],
                            size_t n_in, size_t n)
{
    for (size_t k = 0; k < n; k++) {
        brg_tensor *column[MAX_INPUTS];
        for (size_t i = 0; i < n_in; i++)
            column[i] = parts[i][k];
        results[k] = NULL;
        brg_status status = fn(column, n_in, &results[k], user);
        BRG_EXPLAIN(status, "the function");
        BRG_TRY(status);
        if (!results[k])
            return brg__error_pending("a part of a composite");
    }
    return BRG_OK;
}

brg_status brg_composite_map(brg_composite **out, brg_composite_fn fn,
                             void *user, brg_composite *const *in, size_t n_in)
{
    *out = NULL;
    BRG_CHECK_ARG(fn, "brg_composite_map: fn is NULL");
    brg_tensor *parts[MAX_INPUTS][BRG_MAX_COMPOSITE_TENSORS];
    brg_tensor *results[BRG_MAX_COMPOSITE_TENSORS];
    size_t n;
    BRG_TRY(take_apart(in, n_in, parts, &n));
    BRG_TRY(map_parts(results, fn, user, parts, n_in, n));
    return brg_composite_unflatten(out, in[0], results, n);
}

typedef struct op_and_attrs {
    const brg_op *op;
    const brg_attrs *attrs;
} op_and_attrs;

static brg_status call_op(brg_tensor *const *parts, size_t n_parts,
                          brg_tensor **result, void *user)
{
    const op_and_attrs *call = user;
    return brg_op_apply(call->op, (int)n_parts, parts, call->attrs, result);
}

brg_status brg_composite_map_op(brg_composite **out, const brg_op *op,
                                brg_composite *const *in, size_t n_in,
                                const brg_attrs *attrs)
{
    *out = NULL;
    BRG_CHECK_ARG(op && op->n_out == 1,
                  "brg_composite_map_op: the op must have one output");
    op_and_attrs call = {op, attrs};
    return brg_composite_map(out, call_op, &call, in, n_in);
}

brg_status brg_composite_apply(brg_composite **out,
                               const brg_function *function,
                               brg_composite *const *in, size_t n_in)
{
    *out = NULL;
    brg_tensor *parts[MAX_INPUTS][BRG_MAX_COMPOSITE_TENSORS];
    size_t n;
    BRG_TRY(take_apart(in, n_in, parts, &n));
    BRG_CHECK_ARG(n_in * n <= BRG_MAX_FUNCTION_ARGS,
                  "brg_composite_apply: %zu tensors, allowed are %d arguments",
                  n_in * n, BRG_MAX_FUNCTION_ARGS);
    brg_value args[BRG_MAX_FUNCTION_ARGS], outputs[BRG_MAX_FUNCTION_OUTPUTS];
    for (size_t i = 0; i < n_in * n; i++)
        args[i] = brg_value_tensor(parts[i / n][i % n]);
    brg_tensor *results[BRG_MAX_COMPOSITE_TENSORS];
    BRG_CHECK_ARG(brg_function_n_outputs(function) == n,
                  "brg_composite_apply: the function has %zu outputs, a %s has "
                  "%zu tensors",
                  brg_function_n_outputs(function), in[0]->cls->name, n);
    BRG_TRY(brg_function_apply(function, args, n_in * n, outputs));
    for (size_t k = 0; k < n; k++) {
        if (outputs[k].kind != BRG_VALUE_TENSOR)
            return BRG_FAIL(BRG_ERR_CALLBACK,
                            "brg_composite_apply: output %zu of the function "
                            "is no tensor",
                            k);
        results[k] = outputs[k].as.tensor;
    }
    return brg_composite_unflatten(out, in[0], results, n);
}
