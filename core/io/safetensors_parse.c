/* SPDX-License-Identifier: Apache-2.0
 * The header of a safetensors file: JSON to entries, every field checked. The
 * text comes from outside and may be anything. */
#include "core/io/safetensors.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>

#include "core/tensor/shape.h"

#define METADATA "__metadata__"
#define EXACT_MAX 0x1p53 /* integers that JSON numbers hold exactly */

#define FAIL_FORMAT(file, ...) fail_format((file), __LINE__, __VA_ARGS__)

static brg_status fail_format(const brg_safetensors *file, int line,
                              const char *format, ...) BRG_PRINTF(3, 4);

static brg_status fail_format(const brg_safetensors *file, int line,
                              const char *format, ...)
{
    char text[BRG_ERROR_TEXT_MAX];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return brg_error_set(BRG_ERR_FORMAT, __FILE__, line, "safetensors: %s: %s",
                         file->path, text);
}

/* ---- Fields --------------------------------------------------------------------- */

static bool find_dtype(const char *text, brg_dtype *dtype)
{
    static const char *const names[BRG_N_DTYPES] = {
        [BRG_DTYPE_F64] = "F64", [BRG_DTYPE_F32] = "F32",
        [BRG_DTYPE_F16] = "F16", [BRG_DTYPE_BF16] = "BF16",
        [BRG_DTYPE_I64] = "I64", [BRG_DTYPE_I32] = "I32",
        [BRG_DTYPE_U8] = "U8",   [BRG_DTYPE_BOOL] = "BOOL",
    };
    for (int i = 0; i < BRG_N_DTYPES; i++)
        if (strcmp(names[i], text) == 0) {
            *dtype = (brg_dtype)i;
            return true;
        }
    return false;
}

static bool get_size(const cJSON *json, uint64_t *value)
{
    if (!cJSON_IsNumber(json))
        return false;
    double d = json->valuedouble;
    if (!(d >= 0.0 && d <= EXACT_MAX) || d != floor(d))
        return false;
    *value = (uint64_t)d;
    return true;
}

static brg_status parse_dtype(brg_safetensors *file, const cJSON *json,
                              brg_safetensors_info *info)
{
    const cJSON *field = cJSON_GetObjectItemCaseSensitive(json, "dtype");
    if (!cJSON_IsString(field))
        return FAIL_FORMAT(file, "tensor '%s' has no dtype", info->name);
    if (find_dtype(field->valuestring, &info->dtype))
        return BRG_OK;
    return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                    "safetensors: %s: tensor '%s' has the dtype '%s', known "
                    "are F64 F32 F16 BF16 I64 I32 U8 BOOL",
                    file->path, info->name, field->valuestring);
}

static brg_status parse_shape(brg_safetensors *file, const cJSON *json,
                              brg_safetensors_info *info)
{
    const cJSON *field = cJSON_GetObjectItemCaseSensitive(json, "shape");
    if (!cJSON_IsArray(field))
        return FAIL_FORMAT(file, "tensor '%s' has no shape", info->name);
    const cJSON *item;
    cJSON_ArrayForEach(item, field)
    {
        uint64_t size;
        if (!get_size(item, &size))
            return FAIL_FORMAT(file,
                               "a size of tensor '%s' is not a whole number "
                               "from 0 to 2^53",
                               info->name);
        if (info->ndim == BRG_MAX_DIMS)
            return FAIL_FORMAT(file, "tensor '%s' has more than %d dims",
                               info->name, BRG_MAX_DIMS);
        info->shape[info->ndim++] = (int64_t)size;
    }
    int64_t numel;
    if (!brg__shape_numel(info->ndim, info->shape, &numel) ||
        !brg__mul_size((size_t)numel, brg_dtype_size(info->dtype),
                       &info->nbytes))
        return FAIL_FORMAT(file,
                           "the shape of tensor '%s' has too many "
                           "elements",
                           info->name);
    return BRG_OK;
}

static brg_status parse_offsets(brg_safetensors *file, const cJSON *json,
                                brg__safetensors_entry *entry)
{
    const cJSON *field = cJSON_GetObjectItemCaseSensitive(json, "data_offsets");
    if (!cJSON_IsArray(field) || cJSON_GetArraySize(field) != 2 ||
        !get_size(field->child, &entry->begin) ||
        !get_size(field->child->next, &entry->end))
        return FAIL_FORMAT(file,
                           "tensor '%s' has no data_offsets of two whole "
                           "numbers",
                           entry->info.name);
    if (entry->begin > entry->end || entry->end > file->data_nbytes)
        return FAIL_FORMAT(file,
                           "tensor '%s' lies at bytes %llu to %llu, the data "
                           "has %llu: truncated or corrupt",
                           entry->info.name, (unsigned long long)entry->begin,
                           (unsigned long long)entry->end,
                           (unsigned long long)file->data_nbytes);
    if (entry->end - entry->begin == entry->info.nbytes)
        return BRG_OK;
    char text[BRG_SHAPE_TEXT_MAX];
    return FAIL_FORMAT(
        file, "tensor '%s' is %s%s: expected %zu bytes, its offsets span %llu",
        entry->info.name, brg_dtype_name(entry->info.dtype),
        brg__shape_text(entry->info.ndim, entry->info.shape, text),
        entry->info.nbytes, (unsigned long long)(entry->end - entry->begin));
}

/* ---- Members ---------------------------------------------------------------------- */

static brg_status parse_tensor(brg_safetensors *file, const cJSON *json)
{
    if (!cJSON_IsObject(json))
        return FAIL_FORMAT(file, "the header's '%s' is not an object",
                           json->string);
    char *name = brg__mem_strdup(json->string);
    if (!name)
        return BRG_ERR_NOMEM;
    brg__safetensors_entry entry = {.info.name = name};
    brg_status status = brg__array_push(&file->entries, entry);
    if (status != BRG_OK) {
        brg__mem_free(name);
        return status;
    }
    brg__safetensors_entry *added = &file->entries.at[file->entries.n - 1];
    BRG_TRY(parse_dtype(file, json, &added->info));
    BRG_TRY(parse_shape(file, json, &added->info));
    return parse_offsets(file, json, added);
}

static brg_status add_pair(brg_safetensors *file, const cJSON *json)
{
    char *key = brg__mem_strdup(json->string);
    char *value = key ? brg__mem_strdup(json->valuestring) : NULL;
    brg_key_value pair = {key, value};
    if (value && brg__array_push(&file->metadata, pair) == BRG_OK)
        return BRG_OK;
    brg__mem_free(key);
    brg__mem_free(value);
    return BRG_ERR_NOMEM;
}

static brg_status parse_metadata(brg_safetensors *file, const cJSON *json)
{
    if (file->metadata.n > 0)
        return FAIL_FORMAT(file, "the header has two %s", METADATA);
    if (!cJSON_IsObject(json))
        return FAIL_FORMAT(file, "%s is not an object", METADATA);
    const cJSON *item;
    cJSON_ArrayForEach(item, json)
    {
        if (!cJSON_IsString(item))
            return FAIL_FORMAT(file, "%s: the value of '%s' is not a string",
                               METADATA, item->string);
        if (brg_safetensors_metadata(file, item->string))
            return FAIL_FORMAT(file, "%s has '%s' twice", METADATA,
                               item->string);
        BRG_TRY(add_pair(file, item));
    }
    return BRG_OK;
}

/* ---- All entries together ------------------------------------------------------------ */

static int by_name(const void *a, const void *b)
{
    const brg__safetensors_entry *x = a, *y = b;
    return strcmp(x->info.name, y->info.name);
}

static int by_place(const void *a, const void *b)
{
    const brg__safetensors_entry *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end;
}

static brg_status check_places(brg_safetensors *file)
{
    uint64_t at = 0;
    for (size_t i = 0; i < file->entries.n; i++) {
        const brg__safetensors_entry *entry = &file->entries.at[i];
        if (entry->begin != at)
            return FAIL_FORMAT(
                file, "tensor '%s' begins at byte %llu %s", entry->info.name,
                (unsigned long long)entry->begin,
                entry->begin < at ? "and overlaps another" : "after a gap");
        at = entry->end;
    }
    if (at != file->data_nbytes)
        return FAIL_FORMAT(
            file, "the tensors need %llu bytes of data, found %llu",
            (unsigned long long)at, (unsigned long long)file->data_nbytes);
    return BRG_OK;
}

static brg_status check_entries(brg_safetensors *file)
{
    brg__safetensors_entry *at = file->entries.at;
    size_t n = file->entries.n;
    if (n > 0)
        qsort(at, n, sizeof *at, by_place);
    BRG_TRY(check_places(file));
    if (n > 0)
        qsort(at, n, sizeof *at, by_name);
    for (size_t i = 1; i < n; i++)
        if (strcmp(at[i - 1].info.name, at[i].info.name) == 0)
            return FAIL_FORMAT(file, "the name '%s' is there twice",
                               at[i].info.name);
    return BRG_OK;
}

static brg_status parse_members(brg_safetensors *file, const cJSON *root)
{
    if (!cJSON_IsObject(root))
        return FAIL_FORMAT(file, "the header is not a JSON object");
    const cJSON *item;
    cJSON_ArrayForEach(item, root)
    {
        if (strcmp(item->string, METADATA) == 0)
            BRG_TRY(parse_metadata(file, item));
        else
            BRG_TRY(parse_tensor(file, item));
    }
    return check_entries(file);
}

brg_status brg__safetensors_parse(brg_safetensors *file, const char *json,
                                  size_t nbytes)
{
    const char *end = NULL;
    errno = 0; /* tells bad text from no memory */
    cJSON *root = cJSON_ParseWithLengthOpts(json, nbytes, &end, false);
    if (!root && errno == ENOMEM)
        return BRG_FAIL_NOMEM("the header of a safetensors file", nbytes);
    if (!root)
        return FAIL_FORMAT(file, "the header is not JSON (near byte %zu)",
                           end ? (size_t)(end - json) : 0);
    brg_status status = BRG_OK;
    for (; end < json + nbytes; end++)
        if (*end != ' ') {
            status = FAIL_FORMAT(file, "text follows the JSON of the header");
            break;
        }
    if (status == BRG_OK)
        status = parse_members(file, root);
    cJSON_Delete(root);
    return status;
}
