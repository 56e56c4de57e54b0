/* SPDX-License-Identifier: Apache-2.0
 * Pure arithmetic on shapes and strides: see shape.h. */
#include "core/tensor/shape.h"

#include <inttypes.h>
#include <stdio.h>

#include "core/base/error.h"

bool brg__shape_numel(int ndim, const int64_t *shape, int64_t *numel)
{
    int64_t n = 1;
    bool has_zero = false;
    for (int i = 0; i < ndim; i++) {
        if (shape[i] < 0)
            return false;
        if (shape[i] == 0)
            has_zero = true;
        else if (__builtin_mul_overflow(n, shape[i], &n))
            return false;
    }
    *numel = has_zero ? 0 : n;
    return true;
}

void brg__shape_strides(int ndim, const int64_t *shape, int64_t *strides)
{
    int64_t stride = 1;
    for (int i = ndim - 1; i >= 0; i--) {
        strides[i] = stride;
        if (shape[i] > 1)
            stride *= shape[i];
    }
}

bool brg__shape_equal(int ndim_a, const int64_t *a, int ndim_b,
                      const int64_t *b)
{
    if (ndim_a != ndim_b)
        return false;
    for (int i = 0; i < ndim_a; i++)
        if (a[i] != b[i])
            return false;
    return true;
}

bool brg__shape_is_contiguous(int ndim, const int64_t *shape,
                              const int64_t *strides)
{
    int64_t expected = 1;
    for (int i = ndim - 1; i >= 0; i--) {
        if (shape[i] == 0)
            return true;
        if (shape[i] == 1)
            continue;
        if (strides[i] != expected)
            return false;
        expected *= shape[i];
    }
    return true;
}

bool brg__shape_is_dense(int ndim, const int64_t *shape, const int64_t *strides)
{
    /* Take the dims from the smallest stride up: each must start where the
     * block of the smaller ones ends. */
    bool is_used[BRG_MAX_DIMS] = {false};
    int64_t expected = 1;
    for (int round = 0; round < ndim; round++) {
        int smallest = -1;
        for (int i = 0; i < ndim; i++)
            if (!is_used[i] && shape[i] > 1 &&
                (smallest < 0 || strides[i] < strides[smallest]))
                smallest = i;
        if (smallest < 0)
            break;
        if (strides[smallest] != expected)
            return false;
        expected *= shape[smallest];
        is_used[smallest] = true;
    }
    return true;
}

bool brg__shape_broadcast(int ndim_a, const int64_t *a, int ndim_b,
                          const int64_t *b, int *ndim, int64_t *shape)
{
    int n = ndim_a > ndim_b ? ndim_a : ndim_b;
    for (int i = 1; i <= n; i++) {
        int64_t size_a = i <= ndim_a ? a[ndim_a - i] : 1;
        int64_t size_b = i <= ndim_b ? b[ndim_b - i] : 1;
        if (size_a != size_b && size_a != 1 && size_b != 1)
            return false;
        shape[n - i] = size_a == 1 ? size_b : size_a;
    }
    *ndim = n;
    return true;
}

char *brg__shape_text(int ndim, const int64_t *shape,
                      char text[BRG_SHAPE_TEXT_MAX])
{
    size_t n = 0;
    text[n++] = '[';
    for (int i = 0; i < ndim; i++)
        n += (size_t)snprintf(text + n, BRG_SHAPE_TEXT_MAX - n, "%s%" PRId64,
                              i ? ", " : "", shape[i]);
    snprintf(text + n, BRG_SHAPE_TEXT_MAX - n, "]");
    return text;
}

brg_status brg__shape_wrap_dim(const char *op, int ndim, int dim, int *out)
{
    if (dim < -ndim || dim >= ndim)
        return BRG_FAIL(BRG_ERR_SHAPE,
                        "%s: dim %d is out of range for a tensor of %d dims",
                        op, dim, ndim);
    *out = dim < 0 ? dim + ndim : dim;
    return BRG_OK;
}
