/* SPDX-License-Identifier: Apache-2.0
 * Reading safetensors files. */
#include "core/io/safetensors.h"

#include <stdlib.h>
#include <string.h>

#include <brigade/autograd.h>

#include "core/tensor/shape.h"
#include "core/tensor/tensor.h"

#define LENGTH_NBYTES 8

/* ---- Opening -------------------------------------------------------------------- */

static brg_status parse_file(brg_safetensors *file)
{
    size_t nbytes = file->map.nbytes;
    const unsigned char *bytes = file->map.data;
    if (nbytes < LENGTH_NBYTES)
        return BRG_FAIL(BRG_ERR_FORMAT,
                        "safetensors: %s has %zu bytes, expected at least the "
                        "%d of the header's length",
                        file->path, nbytes, LENGTH_NBYTES);
    uint64_t n = 0;
    for (int i = LENGTH_NBYTES - 1; i >= 0; i--)
        n = n << 8 | bytes[i];
    if (n > BRG__SAFETENSORS_MAX_HEADER || n > nbytes - LENGTH_NBYTES)
        return BRG_FAIL(BRG_ERR_FORMAT,
                        "safetensors: %s is truncated or not such a file: it "
                        "says that its header has %llu bytes, found %zu (at "
                        "most %llu)",
                        file->path, (unsigned long long)n,
                        nbytes - LENGTH_NBYTES,
                        (unsigned long long)BRG__SAFETENSORS_MAX_HEADER);
    file->data = bytes + LENGTH_NBYTES + n;
    file->data_nbytes = nbytes - LENGTH_NBYTES - n;
    return brg__safetensors_parse(file, (const char *)bytes + LENGTH_NBYTES,
                                  (size_t)n);
}

brg_status brg_safetensors_open(brg_safetensors **out, const char *path)
{
    BRG_CHECK_ARG(out, "brg_safetensors_open: out is NULL");
    *out = NULL;
    brg_safetensors *file = BRG__NEW(brg_safetensors);
    if (!file)
        return BRG_ERR_NOMEM;
    brg_status status;
    BRG_TRY_GOTO(brg__file_map_open(&file->map, "brg_safetensors_open", path),
                 out);
    file->path = brg__mem_strdup(path);
    status = file->path ? parse_file(file) : BRG_ERR_NOMEM;
out:
    if (status != BRG_OK) {
        brg_safetensors_close(file);
        return status;
    }
    *out = file;
    return BRG_OK;
}

void brg_safetensors_close(brg_safetensors *file)
{
    if (!file)
        return;
    for (size_t i = 0; i < file->entries.n; i++)
        brg__mem_free((char *)file->entries.at[i].info.name);
    for (size_t i = 0; i < file->metadata.n; i++) {
        brg__mem_free((char *)file->metadata.at[i].key);
        brg__mem_free((char *)file->metadata.at[i].value);
    }
    brg__array_deinit(&file->entries);
    brg__array_deinit(&file->metadata);
    brg__file_map_close(&file->map);
    brg__mem_free(file->path);
    brg__mem_free(file);
}

/* ---- Questions ------------------------------------------------------------------- */

size_t brg_safetensors_count(const brg_safetensors *file)
{
    return file->entries.n;
}

const brg_safetensors_info *brg_safetensors_at(const brg_safetensors *file,
                                               size_t i)
{
    return i < file->entries.n ? &file->entries.at[i].info : NULL;
}

static int compare_name(const void *name, const void *entry)
{
    return strcmp(name, ((const brg__safetensors_entry *)entry)->info.name);
}

static const brg__safetensors_entry *find(const brg_safetensors *file,
                                          const char *name)
{
    if (!name || file->entries.n == 0)
        return NULL;
    return bsearch(name, file->entries.at, file->entries.n,
                   sizeof *file->entries.at, compare_name);
}

const brg_safetensors_info *brg_safetensors_find(const brg_safetensors *file,
                                                 const char *name)
{
    const brg__safetensors_entry *entry = find(file, name);
    return entry ? &entry->info : NULL;
}

const brg_key_value *brg_safetensors_metadata_at(const brg_safetensors *file,
                                                 size_t i)
{
    return i < file->metadata.n ? &file->metadata.at[i] : NULL;
}

const char *brg_safetensors_metadata(const brg_safetensors *file,
                                     const char *key)
{
    for (size_t i = 0; i < file->metadata.n; i++)
        if (strcmp(file->metadata.at[i].key, key) == 0)
            return file->metadata.at[i].value;
    return NULL;
}

/* ---- Reading tensors --------------------------------------------------------------- */

static brg_status fail_missing(const brg_safetensors *file, const char *op,
                               const char *name)
{
    return BRG_FAIL(BRG_ERR_NOT_FOUND, "%s: %s has no tensor '%s'", op,
                    file->path, name ? name : "(NULL)");
}

static brg_status check_fits(const brg_safetensors *file, const char *op,
                             const brg_safetensors_info *info,
                             const brg_tensor *t)
{
    bool same_shape =
        brg__shape_equal(info->ndim, info->shape, t->ndim, t->shape);
    if (same_shape && info->dtype == (brg_dtype)t->dtype)
        return BRG_OK;
    char expected[BRG_SHAPE_TEXT_MAX], found[BRG_SHAPE_TEXT_MAX];
    return BRG_FAIL(same_shape ? BRG_ERR_DTYPE : BRG_ERR_SHAPE,
                    "%s: tensor '%s' of %s: expected %s%s, found %s%s", op,
                    info->name, file->path, brg_dtype_name((brg_dtype)t->dtype),
                    brg__shape_text(t->ndim, t->shape, expected),
                    brg_dtype_name(info->dtype),
                    brg__shape_text(info->ndim, info->shape, found));
}

static brg_status read_entry(const brg_safetensors *file,
                             const brg__safetensors_entry *entry, brg_tensor *t)
{
    const unsigned char *from = file->data + entry->begin;
    if (t->device.type == BRG_DEVICE_CPU && t->is_contiguous && t->storage) {
        if (entry->info.nbytes > 0)
            memcpy(brg__tensor_ptr(t), from, entry->info.nbytes);
        brg_tensor_touch(t);
        return BRG_OK;
    }
    bool mode = brg_grad_mode_set(false);
    brg_status status = brg_tensor_write(t, from, entry->info.nbytes);
    (void)brg_grad_mode_set(mode);
    return status;
}

brg_status brg_safetensors_read(const brg_safetensors *file, const char *name,
                                brg_tensor *filled)
{
    BRG_CHECK_ARG(file, "brg_safetensors_read: file is NULL");
    if (!filled)
        return brg__error_pending("brg_safetensors_read: filled");
    const brg__safetensors_entry *entry = find(file, name);
    if (!entry)
        return fail_missing(file, "brg_safetensors_read", name);
    BRG_TRY(check_fits(file, "brg_safetensors_read", &entry->info, filled));
    return read_entry(file, entry, filled);
}

brg_status brg_safetensors_load(brg_tensor **out, const brg_safetensors *file,
                                const char *name)
{
    BRG_CHECK_ARG(out && file, "brg_safetensors_load: %s is NULL",
                  out ? "file" : "out");
    *out = NULL;
    const brg__safetensors_entry *entry = find(file, name);
    if (!entry)
        return fail_missing(file, "brg_safetensors_load", name);
    brg__layout layout;
    brg_tensor *t;
    BRG_TRY(brg__layout_init(&layout, "brg_safetensors_load", entry->info.dtype,
                             entry->info.ndim, entry->info.shape));
    BRG_TRY(brg__tensor_new(&t, &layout));
    brg_status status = brg_tensor_set_name(t, name);
    if (status == BRG_OK)
        status = read_entry(file, entry, t);
    if (status != BRG_OK) {
        brg_release(t);
        return status;
    }
    *out = t;
    return BRG_OK;
}

/* ---- Many at once --------------------------------------------------------------------- */

static bool is_expected(const brg_named_tensor *list, size_t n,
                        const char *name, const char *skip)
{
    if (skip && strncmp(name, skip, strlen(skip)) == 0)
        return true;
    for (size_t i = 0; i < n; i++)
        if (strcmp(list[i].name, name) == 0)
            return true;
    return false;
}

static brg_status check_missing(const brg_safetensors *file,
                                const brg_named_tensor *list, size_t n,
                                const char *op)
{
    size_t n_missing = 0;
    const char *first = NULL;
    for (size_t i = 0; i < n; i++)
        if (!find(file, list[i].name) && n_missing++ == 0)
            first = list[i].name;
    if (n_missing == 0)
        return BRG_OK;
    return BRG_FAIL(BRG_ERR_NOT_FOUND,
                    "%s: %s lacks %zu of %zu tensors, the first is '%s'", op,
                    file->path, n_missing, n, first);
}

static brg_status check_unexpected(const brg_safetensors *file,
                                   const brg_named_tensor *list, size_t n,
                                   const brg__safetensors_match *match)
{
    size_t n_found = 0;
    const char *first = NULL;
    for (size_t i = 0; i < file->entries.n; i++) {
        const char *name = file->entries.at[i].info.name;
        if (!is_expected(list, n, name, match->skip) && n_found++ == 0)
            first = name;
    }
    if (n_found == 0)
        return BRG_OK;
    return BRG_FAIL(BRG_ERR_FORMAT,
                    "%s: %s has %zu unexpected tensors, the first is '%s'",
                    match->op, file->path, n_found, first);
}

brg_status brg__safetensors_check(const brg_safetensors *file,
                                  const brg_named_tensor *list, size_t n,
                                  const brg__safetensors_match *match)
{
    if (!match->allow_missing)
        BRG_TRY(check_missing(file, list, n, match->op));
    if (!match->allow_unexpected)
        BRG_TRY(check_unexpected(file, list, n, match));
    for (size_t i = 0; i < n; i++) {
        const brg__safetensors_entry *entry = find(file, list[i].name);
        if (entry)
            BRG_TRY(check_fits(file, match->op, &entry->info, list[i].tensor));
    }
    return BRG_OK;
}

brg_status brg__safetensors_read_all(const brg_safetensors *file,
                                     const brg_named_tensor *list, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const brg__safetensors_entry *entry = find(file, list[i].name);
        if (entry)
            BRG_TRY(read_entry(file, entry, list[i].tensor));
    }
    return BRG_OK;
}
