/* SPDX-License-Identifier: Apache-2.0
 * Writing safetensors files. Data goes out in the order of element sizes, the
 * largest first, so that every tensor is aligned in the file; the header says
 * where each one is, in the order given. */
#include "core/io/safetensors.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/io/safetensors_save.h"
#include "core/tensor/tensor.h"

#define ALIGNMENT 8

/* ---- The header's text -------------------------------------------------------- */

/* The first failure sticks; the text is used only without one. */
typedef struct json_text {
    BRG__ARRAY(char) chars;
    brg_status status;
} json_text;

static void put_bytes(json_text *json, const char *bytes, size_t n)
{
    if (json->status == BRG_OK)
        json->status = brg__array_reserve(&json->chars, n);
    if (json->status != BRG_OK)
        return;
    memcpy(json->chars.at + json->chars.n, bytes, n);
    json->chars.n += n;
}

static void put(json_text *json, const char *format, ...) BRG_PRINTF(2, 3);

static void put(json_text *json, const char *format, ...)
{
    char text[64];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    put_bytes(json, text, n > 0 ? (size_t)n : 0);
}

static void put_string(json_text *json, const char *text)
{
    put_bytes(json, "\"", 1);
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\')
            put(json, "\\%c", c);
        else if (c < 0x20)
            put(json, "\\u%04x", c);
        else
            put_bytes(json, text, 1);
    }
    put_bytes(json, "\"", 1);
}

static void put_metadata(json_text *json, const brg_key_value *metadata,
                         size_t n)
{
    put(json, "\"__metadata__\":{");
    for (size_t i = 0; i < n; i++) {
        put(json, i > 0 ? "," : "");
        put_string(json, metadata[i].key);
        put(json, ":");
        put_string(json, metadata[i].value);
    }
    put(json, "}");
}

static void put_tensor(json_text *json, const brg_named_tensor *entry,
                       uint64_t begin)
{
    static const char *const dtypes[BRG_N_DTYPES] = {
        [BRG_DTYPE_F64] = "F64", [BRG_DTYPE_F32] = "F32",
        [BRG_DTYPE_F16] = "F16", [BRG_DTYPE_BF16] = "BF16",
        [BRG_DTYPE_I64] = "I64", [BRG_DTYPE_I32] = "I32",
        [BRG_DTYPE_U8] = "U8",   [BRG_DTYPE_BOOL] = "BOOL",
    };
    const brg_tensor *t = entry->tensor;
    put_string(json, entry->name);
    put(json, ":{\"dtype\":\"%s\",\"shape\":[", dtypes[t->dtype]);
    for (int i = 0; i < t->ndim; i++)
        put(json, "%s%lld", i > 0 ? "," : "", (long long)t->shape[i]);
    put(json, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)begin,
        (unsigned long long)(begin + brg_tensor_nbytes(t)));
}

/* ---- The parts of the file ------------------------------------------------------- */

typedef struct saver {
    const char *op;
    const brg_named_tensor *tensors;
    size_t n;
    size_t *order;   /* of the data */
    uint64_t *begin; /* of each tensor */
    json_text json;
} saver;

static void lay_out(saver *s)
{
    uint64_t at = 0;
    size_t k = 0;
    for (size_t size = 8; size > 0; size /= 2)
        for (size_t i = 0; i < s->n; i++)
            if (brg__tensor_item_size(s->tensors[i].tensor) == size) {
                s->order[k++] = i;
                s->begin[i] = at;
                at += brg_tensor_nbytes(s->tensors[i].tensor);
            }
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static brg_status check_names(const saver *s)
{
    const char **names = brg__mem_alloc_array(s->n, sizeof *names, "names");
    if (!names)
        return BRG_ERR_NOMEM;
    for (size_t i = 0; i < s->n; i++)
        names[i] = s->tensors[i].name;
    if (s->n > 0)
        qsort(names, s->n, sizeof *names, by_text);
    brg_status status = BRG_OK;
    for (size_t i = 1; i < s->n && status == BRG_OK; i++)
        if (strcmp(names[i - 1], names[i]) == 0)
            status = BRG_FAIL(BRG_ERR_ARG, "%s: the name '%s' is there twice",
                              s->op, names[i]);
    brg__mem_free(names);
    return status;
}

static brg_status check_tensors(const saver *s)
{
    for (size_t i = 0; i < s->n; i++) {
        const brg_named_tensor *entry = &s->tensors[i];
        BRG_CHECK_ARG(entry->name && entry->name[0] &&
                          strcmp(entry->name, "__metadata__") != 0,
                      "%s: tensor %zu has no name, or that of the metadata",
                      s->op, i);
        BRG_CHECK_ARG(entry->tensor && entry->tensor->storage,
                      "%s: '%s' is NULL or has no memory", s->op, entry->name);
    }
    return check_names(s);
}

static void build_header(saver *s, const brg_key_value *metadata, size_t n)
{
    json_text *json = &s->json;
    put(json, "{");
    if (n > 0)
        put_metadata(json, metadata, n);
    for (size_t i = 0; i < s->n; i++) {
        put(json, i > 0 || n > 0 ? "," : "");
        put_tensor(json, &s->tensors[i], s->begin[i]);
    }
    put(json, "}");
    while (json->status == BRG_OK && json->chars.n % ALIGNMENT != 0)
        put_bytes(json, " ", 1);
}

static brg_status write_tensor(brg__file_writer *writer, const brg_tensor *t)
{
    size_t nbytes = brg_tensor_nbytes(t);
    if (nbytes == 0)
        return BRG_OK;
    if (t->device.type == BRG_DEVICE_CPU && t->is_contiguous)
        return brg__file_writer_put(writer, brg__tensor_ptr(t), nbytes);
    void *copy = brg__block_alloc(nbytes, BRG_CACHE_LINE, "a tensor to write");
    if (!copy)
        return BRG_ERR_NOMEM;
    brg_status status = brg_tensor_read(t, copy, nbytes);
    if (status == BRG_OK)
        status = brg__file_writer_put(writer, copy, nbytes);
    brg__block_free(copy, nbytes, BRG_CACHE_LINE);
    return status;
}

static brg_status write_file(const saver *s, const char *path)
{
    unsigned char length[8];
    for (int i = 0; i < 8; i++)
        length[i] = (unsigned char)((uint64_t)s->json.chars.n >> (8 * i));
    brg__file_writer writer;
    brg_status status;
    BRG_TRY_GOTO(brg__file_writer_open(&writer, s->op, path), out);
    BRG_TRY_GOTO(brg__file_writer_put(&writer, length, sizeof length), out);
    BRG_TRY_GOTO(
        brg__file_writer_put(&writer, s->json.chars.at, s->json.chars.n), out);
    for (size_t i = 0; i < s->n; i++)
        BRG_TRY_GOTO(write_tensor(&writer, s->tensors[s->order[i]].tensor),
                     out);
    status = brg__file_writer_commit(&writer);
out:
    brg__file_writer_close(&writer);
    return status;
}

brg_status brg__safetensors_write(const char *op, const char *path,
                                  const brg_named_tensor *tensors, size_t n,
                                  const brg_key_value *metadata,
                                  size_t n_metadata)
{
    saver s = {.op = op, .tensors = tensors, .n = n};
    brg_status status;
    BRG_TRY_GOTO(check_tensors(&s), out);
    status = BRG_ERR_NOMEM;
    s.order = brg__mem_alloc_array(n, sizeof *s.order, "the order of tensors");
    s.begin = brg__mem_alloc_array(n, sizeof *s.begin, "offsets of tensors");
    if (!s.order || !s.begin)
        goto out;
    lay_out(&s);
    build_header(&s, metadata, n_metadata);
    BRG_TRY_GOTO(s.json.status, out);
    if (s.json.chars.n > BRG__SAFETENSORS_MAX_HEADER) {
        status = BRG_FAIL(BRG_ERR_ARG,
                          "%s: the header would have %zu bytes, at most %llu "
                          "can be read",
                          op, s.json.chars.n,
                          (unsigned long long)BRG__SAFETENSORS_MAX_HEADER);
        goto out;
    }
    status = write_file(&s, path);
out:
    brg__array_deinit(&s.json.chars);
    brg__mem_free(s.order);
    brg__mem_free(s.begin);
    return status;
}

static brg_status check_metadata(const brg_key_value *metadata, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        BRG_CHECK_ARG(metadata[i].key && metadata[i].value,
                      "brg_safetensors_save: metadata %zu has a NULL key or "
                      "value",
                      i);
        for (size_t k = 0; k < i; k++)
            BRG_CHECK_ARG(strcmp(metadata[i].key, metadata[k].key) != 0,
                          "brg_safetensors_save: the metadata has '%s' twice",
                          metadata[i].key);
    }
    return BRG_OK;
}

brg_status brg_safetensors_save(const char *path,
                                const brg_named_tensor *tensors,
                                size_t n_tensors, const brg_key_value *metadata,
                                size_t n_metadata)
{
    BRG_CHECK_ARG((tensors || n_tensors == 0) && (metadata || n_metadata == 0),
                  "brg_safetensors_save: %s is NULL",
                  tensors || n_tensors == 0 ? "metadata" : "tensors");
    BRG_TRY(check_metadata(metadata, n_metadata));
    return brg__safetensors_write("brg_safetensors_save", path, tensors,
                                  n_tensors, metadata, n_metadata);
}
