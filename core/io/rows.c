/* SPDX-License-Identifier: Apache-2.0
 * Rows of a data set into a batch, converted on the way: blocks of elements
 * pass through f64, in which every dtype here but large i64 is exact. */
#include <brigade/io.h>

#include "core/base/error.h"
#include "core/tensor/tensor.h"

#define BLOCK 256

/* CASE(dtype, C type) for each dtype that rows may have. */
#define ROW_DTYPES(CASE)                                                       \
    CASE(BRG_DTYPE_U8, uint8_t)                                                \
    CASE(BRG_DTYPE_I32, int32_t)                                               \
    CASE(BRG_DTYPE_I64, int64_t)                                               \
    CASE(BRG_DTYPE_F32, float)                                                 \
    CASE(BRG_DTYPE_F64, double)

static void load_block(double *block, const brg_tensor *t, int64_t first,
                       int64_t n)
{
    const void *data = brg__tensor_ptr(t);
    switch ((brg_dtype)t->dtype) {
#define LOAD_CASE(name, type)                                                  \
    case name:                                                                 \
        for (int64_t i = 0; i < n; i++)                                        \
            block[i] = (double)((const type *)data)[first + i];                \
        break;
        ROW_DTYPES(LOAD_CASE)
#undef LOAD_CASE
    default:
        break;
    }
}

static void store_block(brg_tensor *t, int64_t first, const double *block,
                        int64_t n)
{
    void *data = brg__tensor_ptr(t);
    switch ((brg_dtype)t->dtype) {
#define STORE_CASE(name, type)                                                 \
    case name:                                                                 \
        for (int64_t i = 0; i < n; i++)                                        \
            ((type *)data)[first + i] = (type)block[i];                        \
        break;
        ROW_DTYPES(STORE_CASE)
#undef STORE_CASE
    default:
        break;
    }
}

static void copy_row(brg_tensor *filled, int64_t to, const brg_tensor *table,
                     int64_t from, int64_t numel, double scale, double shift)
{
    double block[BLOCK];
    for (int64_t i = 0; i < numel; i += BLOCK) {
        int64_t n = numel - i < BLOCK ? numel - i : BLOCK;
        load_block(block, table, from * numel + i, n);
        for (int64_t k = 0; k < n; k++)
            block[k] = block[k] * scale + shift;
        store_block(filled, to * numel + i, block, n);
    }
}

/* Bytes to floats, as images are read: each of the 256 values is worked out
 * once. */
static void copy_bytes(brg_tensor *filled, const brg_tensor *table,
                       const int64_t *rows, int64_t numel, double scale,
                       double shift)
{
    float value[256];
    for (int k = 0; k < 256; k++)
        value[k] = (float)(k * scale + shift);
    float *to = brg__tensor_ptr(filled);
    const uint8_t *data = brg__tensor_ptr(table);
    for (int64_t i = 0; i < filled->shape[0]; i++, to += numel) {
        const uint8_t *from = data + rows[i] * numel;
        for (int64_t k = 0; k < numel; k++)
            to[k] = value[from[k]];
    }
}

static brg_status check_tensor(const brg_tensor *t, const char *what)
{
    char text[BRG_TENSOR_TEXT_MAX];
    if (!t)
        return brg__error_pending("brg_rows_read: %s", what);
    if (t->dtype == BRG_DTYPE_F16 || t->dtype == BRG_DTYPE_BF16 ||
        t->dtype == BRG_DTYPE_BOOL)
        return BRG_FAIL(BRG_ERR_DTYPE,
                        "brg_rows_read: %s is %s, expected u8, i32, i64, f32 "
                        "or f64",
                        what, brg__tensor_text(t, text));
    if (t->ndim < 1 || !t->is_contiguous)
        return BRG_FAIL(BRG_ERR_SHAPE,
                        "brg_rows_read: %s is %s, expected row-major with at "
                        "least 1 dim",
                        what, brg__tensor_text(t, text));
    if (t->device.type != BRG_DEVICE_CPU || !t->storage)
        return BRG_FAIL(BRG_ERR_DEVICE,
                        "brg_rows_read: %s is not in the CPU's memory", what);
    return BRG_OK;
}

brg_status brg_rows_read(brg_tensor *filled, const brg_tensor *table,
                         const int64_t *rows, size_t n_rows, double scale,
                         double shift)
{
    BRG_TRY(check_tensor(filled, "filled"));
    BRG_TRY(check_tensor(table, "table"));
    BRG_CHECK_ARG(rows || n_rows == 0, "brg_rows_read: rows is NULL");
    int64_t n = (int64_t)n_rows, n_table = table->shape[0];
    int64_t numel = n_table > 0 ? table->numel / n_table : 0;
    if (filled->shape[0] != n || filled->numel != n * numel) {
        char a[BRG_TENSOR_TEXT_MAX], b[BRG_TENSOR_TEXT_MAX];
        return BRG_FAIL(BRG_ERR_SHAPE,
                        "brg_rows_read: %lld rows of %s do not fit %s",
                        (long long)n, brg__tensor_text(table, a),
                        brg__tensor_text(filled, b));
    }
    for (int64_t i = 0; i < n; i++)
        BRG_CHECK_ARG(rows[i] >= 0 && rows[i] < n_table,
                      "brg_rows_read: rows[%lld] is %lld, the table has %lld",
                      (long long)i, (long long)rows[i], (long long)n_table);
    if (table->dtype == BRG_DTYPE_U8 && filled->dtype == BRG_DTYPE_F32)
        copy_bytes(filled, table, rows, numel, scale, shift);
    else
        for (int64_t i = 0; i < n; i++)
            copy_row(filled, i, table, rows[i], numel, scale, shift);
    brg_tensor_touch(filled);
    return BRG_OK;
}
