/* SPDX-License-Identifier: Apache-2.0
 * A mapped file of tokens. Windows are copied and widened on the way out; the
 * system keeps the pages that are in use. */
#include <brigade/io.h>

#include "core/base/alloc.h"
#include "core/base/error.h"
#include "core/io/file.h"
#include "core/tensor/tensor.h"

struct brg_text {
    brg__file_map map;
    int width; /* bytes per token */
};

brg_status brg_text_open(brg_text **out, const char *path, int bytes_per_token)
{
    BRG_CHECK_ARG(out, "brg_text_open: out is NULL");
    *out = NULL;
    BRG_CHECK_ARG(bytes_per_token == 1 || bytes_per_token == 2,
                  "brg_text_open: tokens have 1 or 2 bytes, not %d",
                  bytes_per_token);
    brg_text *text = BRG__NEW(brg_text);
    if (!text)
        return BRG_ERR_NOMEM;
    text->width = bytes_per_token;
    brg_status status = brg__file_map_open(&text->map, "brg_text_open", path);
    if (status == BRG_OK && text->map.nbytes % (size_t)bytes_per_token != 0)
        status = BRG_FAIL(BRG_ERR_FORMAT,
                          "brg_text_open: %s has %zu bytes, expected a "
                          "multiple of the %d bytes of a token",
                          path, text->map.nbytes, bytes_per_token);
    if (status != BRG_OK) {
        brg_text_close(text);
        return status;
    }
    *out = text;
    return BRG_OK;
}

void brg_text_close(brg_text *text)
{
    if (!text)
        return;
    brg__file_map_close(&text->map);
    brg__mem_free(text);
}

int64_t brg_text_length(const brg_text *text)
{
    return (int64_t)(text->map.nbytes / (size_t)text->width);
}

/* ---- Windows ------------------------------------------------------------------ */

static brg_status check_tensor(const brg_text *text, const brg_tensor *t,
                               const char *what)
{
    char shown[BRG_TENSOR_TEXT_MAX];
    bool is_int = t->dtype == BRG_DTYPE_I64 || t->dtype == BRG_DTYPE_I32 ||
                  (t->dtype == BRG_DTYPE_U8 && text->width == 1);
    if (!is_int)
        return BRG_FAIL(BRG_ERR_DTYPE,
                        "brg_text_read: %s is %s, expected i64 or i32 (or u8 "
                        "for 1-byte tokens)",
                        what, brg__tensor_text(t, shown));
    if (t->ndim != 2 || !t->is_contiguous)
        return BRG_FAIL(BRG_ERR_SHAPE,
                        "brg_text_read: %s is %s, expected row-major (B, T)",
                        what, brg__tensor_text(t, shown));
    if (t->device.type != BRG_DEVICE_CPU || !t->storage)
        return BRG_FAIL(BRG_ERR_DEVICE,
                        "brg_text_read: %s is not in the CPU's memory", what);
    return BRG_OK;
}

static brg_status check_windows(const brg_text *text, const int64_t *positions,
                                int64_t n, int64_t span)
{
    int64_t length = brg_text_length(text);
    for (int64_t b = 0; b < n; b++)
        if (positions[b] < 0 || positions[b] > length - span)
            return BRG_FAIL(BRG_ERR_ARG,
                            "brg_text_read: the window of row %lld, %lld "
                            "tokens from %lld on, leaves the text of %lld",
                            (long long)b, (long long)span,
                            (long long)positions[b], (long long)length);
    return BRG_OK;
}

static inline int64_t token_at(const brg_text *text, int64_t i)
{
    const unsigned char *at = text->map.data + i * text->width;
    return text->width == 1 ? at[0] : at[0] | at[1] << 8;
}

static void copy_window(const brg_text *text, brg_tensor *t, int64_t row,
                        int64_t from)
{
    int64_t n = t->shape[1];
    void *data = brg__tensor_ptr(t);
    for (int64_t i = 0; i < n; i++) {
        int64_t token = token_at(text, from + i), k = row * n + i;
        if (t->dtype == BRG_DTYPE_I64)
            ((int64_t *)data)[k] = token;
        else if (t->dtype == BRG_DTYPE_I32)
            ((int32_t *)data)[k] = (int32_t)token;
        else
            ((uint8_t *)data)[k] = (uint8_t)token;
    }
}

static void copy_windows(const brg_text *text, brg_tensor *t,
                         const int64_t *positions, int64_t shift)
{
    for (int64_t b = 0; b < t->shape[0]; b++)
        copy_window(text, t, b, positions[b] + shift);
    brg_tensor_touch(t);
}

brg_status brg_text_read(const brg_text *text, brg_tensor *inputs,
                         brg_tensor *targets, const int64_t *positions)
{
    BRG_CHECK_ARG(text && positions, "brg_text_read: %s is NULL",
                  text ? "positions" : "text");
    if (inputs)
        BRG_TRY(check_tensor(text, inputs, "inputs"));
    if (targets)
        BRG_TRY(check_tensor(text, targets, "targets"));
    const brg_tensor *any = inputs ? inputs : targets;
    if (!any)
        return BRG_OK;
    if (inputs && targets &&
        (inputs->shape[0] != targets->shape[0] ||
         inputs->shape[1] != targets->shape[1])) {
        char a[BRG_TENSOR_TEXT_MAX], b[BRG_TENSOR_TEXT_MAX];
        return BRG_FAIL(
            BRG_ERR_SHAPE, "brg_text_read: inputs are %s but targets %s",
            brg__tensor_text(inputs, a), brg__tensor_text(targets, b));
    }
    BRG_TRY(check_windows(text, positions, any->shape[0],
                          any->shape[1] + (targets != NULL)));
    if (inputs)
        copy_windows(text, inputs, positions, 0);
    if (targets)
        copy_windows(text, targets, positions, 1);
    return BRG_OK;
}
