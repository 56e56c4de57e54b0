/* SPDX-License-Identifier: Apache-2.0
 * Reading published weights: names, transposes, padding. */
#include "weights.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include <brigade/autograd.h>
#include <brigade/device.h>
#include <brigade/io.h>
#include <brigade/ops.h>

static const brg_safetensors_info *find(const brg_safetensors *file,
                                        const char *name)
{
    char text[160];
    const brg_safetensors_info *info = brg_safetensors_find(file, name);
    if (info != NULL)
        return info;
    snprintf(text, sizeof text, "transformer.%s", name);
    return brg_safetensors_find(file, text);
}

/* Whether the file has the weight as (in, out). */
static bool is_flipped(const char *name)
{
    const char *end = strrchr(name, '.');
    return end != NULL && strcmp(end, ".weight") == 0 &&
           strstr(name, ".c_") != NULL;
}

/* `rows`: those of the parameter that the file has. */
static brg_status check_shape(const brg_safetensors_info *info,
                              const brg_tensor *param, int64_t rows,
                              const char *path)
{
    const int n = brg_tensor_ndim(param);
    const bool flips = n == 2 && is_flipped(info->name);
    bool fits = info->ndim == n;
    for (int d = 0; fits && d < n; d++) {
        int64_t want = d == 0 ? rows : brg_tensor_size(param, d);
        fits = info->shape[flips ? n - 1 - d : d] == want;
    }
    if (fits)
        return BRG_OK;
    return brg_error_set(BRG_ERR_SHAPE, __FILE__, __LINE__,
                         "%s: '%s' has %d dims, (%" PRId64 ", %" PRId64
                         "), expected %d, (%" PRId64 ", %" PRId64 ")%s",
                         path, info->name, info->ndim, info->shape[0],
                         info->ndim > 1 ? info->shape[1] : 1, n, rows,
                         n > 1 ? brg_tensor_size(param, 1) : 1,
                         flips ? " transposed" : "");
}

/* In a scope, without gradients. */
static brg_status fill(brg_tensor *param, brg_tensor *from, bool flips)
{
    const int64_t all = brg_tensor_size(param, 0);
    if (flips)
        from = brg_contiguous(brg_transpose(from, 0, 1));
    from = brg_to(brg_cast(from, brg_tensor_dtype(param)),
                  brg_tensor_device(param));
    if (from == NULL)
        return brg_error_code();
    const int64_t rows = brg_tensor_size(from, 0);
    BRG_TRY(brg_copy_(brg_narrow(param, 0, 0, rows), from));
    return rows < all ? brg_zero_(brg_narrow(param, 0, rows, all - rows))
                      : BRG_OK;
}

static brg_status load_one(const gpt *m, const brg_safetensors *file,
                           const brg_param *param, const char *path)
{
    brg_tensor *from = NULL;
    const brg_safetensors_info *info = find(file, param->name);
    if (info == NULL)
        return brg_error_set(BRG_ERR_FORMAT, __FILE__, __LINE__,
                             "%s has no tensor '%s'", path, param->name);
    int64_t rows = param->tensor == m->tokens.weight
                       ? m->config.n_classes
                       : brg_tensor_size(param->tensor, 0);
    BRG_TRY(check_shape(info, param->tensor, rows, path));
    brg_scope *scope = brg_scope_begin();
    if (scope == NULL)
        return brg_error_code();
    brg_status status = brg_safetensors_load(&from, file, info->name);
    if (status == BRG_OK)
        status = fill(param->tensor, from, is_flipped(param->name));
    brg_release(from);
    brg_scope_end(scope);
    return status;
}

static brg_status load_all(const gpt *m, const char *path)
{
    brg_safetensors *file;
    BRG_TRY(brg_safetensors_open(&file, path));
    brg_status status = BRG_OK;
    for (size_t i = 0; status == BRG_OK && i < brg_params_count(m->params); i++)
        status = load_one(m, file, brg_params_at(m->params, i), path);
    brg_safetensors_close(file);
    return status;
}

brg_status weights_load(const gpt *m, const char *path)
{
    const brg_device device = brg_device_get();
    BRG_TRY(brg_device_set((brg_device){BRG_DEVICE_CPU, 0}));
    bool mode = brg_grad_mode_set(false);
    brg_status status = load_all(m, path);
    (void)brg_grad_mode_set(mode);
    brg_status back = brg_device_set(device);
    return status != BRG_OK ? status : back;
}
