/* SPDX-License-Identifier: Apache-2.0
 * A model's named tensors to and from a safetensors file. */
#include "core/base/options.h"
#include "core/io/safetensors.h"
#include "core/io/safetensors_save.h"

static brg_status list_params(brg_named_tensor **list, const brg_params *params)
{
    size_t n = brg_params_count(params);
    *list = brg__mem_alloc_array(n, sizeof **list, "a list of parameters");
    if (!*list)
        return BRG_ERR_NOMEM;
    for (size_t i = 0; i < n; i++) {
        const brg_param *param = brg_params_at(params, i);
        (*list)[i] = (brg_named_tensor){param->name, param->tensor};
    }
    return BRG_OK;
}

brg_status brg_params_save(const char *path, const brg_params *params)
{
    BRG_CHECK_ARG(params, "brg_params_save: params is NULL");
    brg_named_tensor *list;
    BRG_TRY(list_params(&list, params));
    brg_status status = brg__safetensors_write(
        "brg_params_save", path, list, brg_params_count(params), NULL, 0);
    brg__mem_free(list);
    return status;
}

brg_status brg_params_load(brg_params *params, const char *path,
                           const brg_params_load_options *options)
{
    BRG_CHECK_ARG(params, "brg_params_load: params is NULL");
    brg_params_load_options o = BRG_PARAMS_LOAD_OPTIONS_INIT;
    BRG_TRY(BRG_TAKE_OPTIONS(&o, options, "brg_params_load",
                             BRG_PARAMS_LOAD_OPTIONS_INIT));
    brg__safetensors_match match = {
        .op = "brg_params_load",
        .allow_missing = o.allow_missing,
        .allow_unexpected = o.allow_unexpected,
        .skip = BRG__CHECKPOINT_OPTIM,
    };
    size_t n = brg_params_count(params);
    brg_named_tensor *list = NULL;
    brg_safetensors *file = NULL;
    brg_status status;
    BRG_TRY_GOTO(list_params(&list, params), out);
    BRG_TRY_GOTO(brg_safetensors_open(&file, path), out);
    BRG_TRY_GOTO(brg__safetensors_check(file, list, n, &match), out);
    status = brg__safetensors_read_all(file, list, n);
out:
    brg_safetensors_close(file);
    brg__mem_free(list);
    return status;
}
