/* SPDX-License-Identifier: Apache-2.0
 * The registry of named tensors: an array in the order of adding, and beside
 * it one of tensors for each kind. Names are looked up by walking it, which
 * only building and loading a model does. */
#include <brigade/params.h>

#include <string.h>

#include <brigade/autograd.h>
#include <brigade/tensor.h>

#include "core/base/array.h"
#include "core/tensor/tensor.h"

struct brg_params {
    BRG__ARRAY(brg_param) list;
    BRG__ARRAY(brg_tensor *) tensors[2]; /* by kind; not counted again */
};

brg_status brg_params_create(brg_params **out)
{
    BRG_CHECK_ARG(out, "brg_params_create: out is NULL");
    *out = BRG__NEW(brg_params);
    return *out ? BRG_OK : BRG_ERR_NOMEM;
}

void brg_params_destroy(brg_params *params)
{
    if (!params)
        return;
    for (size_t i = 0; i < params->list.n; i++) {
        brg_release(params->list.at[i].tensor);
        brg__mem_free((char *)params->list.at[i].name);
    }
    brg__array_deinit(&params->list);
    for (int kind = 0; kind < 2; kind++)
        brg__array_deinit(&params->tensors[kind]);
    brg__mem_free(params);
}

static brg_status check_new(const brg_params *params, const char *name,
                            const brg_tensor *tensor, brg_param_kind kind)
{
    BRG_CHECK_ARG(params, "brg_params_add: params is NULL");
    BRG_CHECK_ARG(name && name[0], "brg_params_add: the name is empty");
    BRG_CHECK_ARG(!brg_params_find(params, name),
                  "brg_params_add: the name '%s' is taken", name);
    BRG_CHECK_ARG(kind == BRG_PARAM_TRAINED || kind == BRG_PARAM_BUFFER,
                  "brg_params_add: '%s' is of no known kind (%d)", name,
                  (int)kind);
    if (kind == BRG_PARAM_TRAINED && !brg__tensor_is_float(tensor))
        return BRG_FAIL(BRG_ERR_DTYPE,
                        "brg_params_add: '%s' is %s, a trained tensor has a "
                        "float dtype",
                        name, brg_dtype_name((brg_dtype)tensor->dtype));
    return BRG_OK;
}

brg_status brg_params_add(brg_params *params, const char *name,
                          brg_tensor *tensor, brg_param_kind kind)
{
    if (!tensor)
        return brg__error_pending("brg_params_add: tensor");
    BRG_TRY(check_new(params, name, tensor, kind));
    BRG_TRY(brg__array_reserve(&params->list, 1));
    BRG_TRY(brg__array_reserve(&params->tensors[kind], 1));
    char *copy = brg__mem_strdup(name);
    if (!copy)
        return BRG_ERR_NOMEM;
    brg_status status = BRG_OK;
    BRG_TRY_GOTO(brg_tensor_set_name(tensor, name), out);
    if (kind == BRG_PARAM_TRAINED)
        BRG_TRY_GOTO(brg_set_requires_grad(tensor, true), out);
    brg_param param = {copy, brg_retain(tensor), kind};
    params->list.at[params->list.n++] = param;
    params->tensors[kind].at[params->tensors[kind].n++] = tensor;
    return BRG_OK;
out:
    brg__mem_free(copy);
    return status;
}

size_t brg_params_count(const brg_params *params)
{
    return params ? params->list.n : 0;
}

const brg_param *brg_params_at(const brg_params *params, size_t i)
{
    return i < brg_params_count(params) ? &params->list.at[i] : NULL;
}

brg_tensor *brg_params_find(const brg_params *params, const char *name)
{
    if (!name)
        return NULL;
    for (size_t i = 0; i < brg_params_count(params); i++)
        if (strcmp(params->list.at[i].name, name) == 0)
            return params->list.at[i].tensor;
    return NULL;
}

brg_tensor *const *brg_params_tensors(const brg_params *params,
                                      brg_param_kind kind, size_t *n)
{
    *n = params ? params->tensors[kind].n : 0;
    return params ? params->tensors[kind].at : NULL;
}

int64_t brg_params_numel(const brg_params *params)
{
    int64_t numel = 0;
    for (size_t i = 0; i < brg_params_count(params); i++)
        if (params->list.at[i].kind == BRG_PARAM_TRAINED)
            numel += params->list.at[i].tensor->numel;
    return numel;
}
