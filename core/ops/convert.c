/* SPDX-License-Identifier: Apache-2.0
 * Copies between tensors of any strides and dtypes. */
#include "core/ops/convert.h"

#include <string.h>

#include "core/base/progress.h"
#include "core/ops/isa.h"
#include "core/ops/op.h"
#include "core/ops/tiles.h"

#define BLOCK 16 /* side of the blocks of a transposing copy */

const brg__convert_kernels *brg__convert(void)
{
    return BRG__ISA_PICK(brg__convert);
}

void brg__convert_row(void *to, brg_dtype to_dtype, const void *from,
                      brg_dtype from_dtype, size_t n)
{
    if (to_dtype == from_dtype) {
        memcpy(to, from, n * brg_dtype_size(to_dtype));
        return;
    }
    brg__ctype type = brg__ctype_of(from_dtype);
    const brg__convert_kernels *kernels = brg__convert();
    if (brg__is_native(from_dtype, type)) {
        kernels->store[type][to_dtype](to, 1, from, n);
        return;
    }
    if (brg__is_native(to_dtype, type)) {
        kernels->load[from_dtype][type](to, from, 1, n);
        return;
    }
    brg__tile_buffer buffer;
    size_t step = BRG__TILE_BYTES / brg__ctype_size(type);
    size_t from_size = brg_dtype_size(from_dtype);
    size_t to_size = brg_dtype_size(to_dtype);
    for (size_t i = 0; i < n; i += step) {
        size_t count = n - i < step ? n - i : step;
        kernels->load[from_dtype][type](
            buffer.bytes, (const char *)from + i * from_size, 1, count);
        kernels->store[type][to_dtype]((char *)to + i * to_size, 1,
                                       buffer.bytes, count);
    }
}

/* ---- Same dtype: moving bytes -------------------------------------------- */

/* An n0 x n1 piece, strides in bytes. */
typedef struct plane {
    int64_t n[2];
    int64_t to[2];
    int64_t from[2];
} plane;

#define COPY_BLOCK(T)                                                          \
    for (int64_t i = i0; i < i1; i++)                                          \
        for (int64_t j = j0; j < j1; j++)                                      \
            *(T *)(to + i * p->to[0] + j * p->to[1]) =                         \
                *(const T *)(from + i * p->from[0] + j * p->from[1]);

static void copy_block(char *to, const char *from, const plane *p,
                       const int64_t first[2], size_t item)
{
    int64_t i0 = first[0], j0 = first[1];
    int64_t i1 = i0 + BLOCK < p->n[0] ? i0 + BLOCK : p->n[0];
    int64_t j1 = j0 + BLOCK < p->n[1] ? j0 + BLOCK : p->n[1];
    if (item == 4) {
        COPY_BLOCK(uint32_t)
    } else if (item == 2) {
        COPY_BLOCK(uint16_t)
    } else if (item == 8) {
        COPY_BLOCK(uint64_t)
    } else {
        COPY_BLOCK(uint8_t)
    }
}

static void copy_plane(char *to, const char *from, const plane *p, size_t item)
{
    int64_t row = (int64_t)item;
    if (p->to[1] == row && p->from[1] == row) {
        for (int64_t i = 0; i < p->n[0]; i++)
            memcpy(to + i * p->to[0], from + i * p->from[0],
                   (size_t)p->n[1] * item);
        return;
    }
    int64_t first[2];
    for (first[0] = 0; first[0] < p->n[0]; first[0] += BLOCK)
        for (first[1] = 0; first[1] < p->n[1]; first[1] += BLOCK)
            copy_block(to, from, p, first, item);
}

/* Which dim goes with the last one into the plane: the one that the source
 * walks most closely, if that is not the last already. */
static int partner_dim(const brg__tiles *t)
{
    const int64_t *stride = t->operand[1].stride;
    int last = t->ndim - 1, best = last - 1;
    if (stride[last] == 1)
        return best;
    for (int d = 0; d < last; d++)
        if (stride[d] == 1 && t->shape[d] > 1)
            best = d;
    return best;
}

static void copy_same(brg__tiles *t, size_t item)
{
    brg__tile_operand *dst = &t->operand[0], *src = &t->operand[1];
    int last = t->ndim - 1, partner = t->ndim > 1 ? partner_dim(t) : -1;
    int64_t size = (int64_t)item;
    plane p = {{1, t->shape[last]},
               {0, dst->stride[last] * size},
               {0, src->stride[last] * size}};
    int64_t n_planes = 1;
    for (int d = 0; d < last; d++)
        n_planes *= d == partner ? 1 : t->shape[d];
    if (partner >= 0) {
        p.n[0] = t->shape[partner];
        p.to[0] = dst->stride[partner] * size;
        p.from[0] = src->stride[partner] * size;
    }
    char *to = dst->at;
    const char *from = src->at;
    int64_t index[BRG_MAX_DIMS] = {0};
    for (int64_t i = 0; i < n_planes; i++) {
        copy_plane(to, from, &p, item);
        brg__progress_poll();
        for (int d = last - 1; d >= 0; d--) {
            if (d == partner)
                continue;
            bool is_end = ++index[d] == t->shape[d];
            int64_t steps = is_end ? 1 - t->shape[d] : 1;
            to += steps * dst->stride[d] * size;
            from += steps * src->stride[d] * size;
            if (!is_end)
                break;
            index[d] = 0;
        }
    }
}

/* ---- Different dtypes: through the source's compute type ----------------- */

static void copy_converting(brg__tiles *t)
{
    brg__tile_buffer buffer;
    for (; t->n > 0; brg__tiles_next(t)) {
        brg__tiles_write(t, 0, brg__tiles_read(t, 1, &buffer));
        brg__progress_poll();
    }
}

void brg__copy_strided(const brg_tensor *dst, const brg_tensor *src)
{
    if (dst->numel == 0)
        return;
    bool is_row =
        dst->is_contiguous && src->is_contiguous && dst->numel == src->numel;
    if (is_row) {
        void *to = brg__tensor_ptr(dst);
        const void *from = brg__tensor_ptr(src);
        if (to != from || dst->dtype != src->dtype)
            brg__convert_row(to, (brg_dtype)dst->dtype, from,
                             (brg_dtype)src->dtype, (size_t)dst->numel);
        return;
    }
    brg__tiles t;
    brg__tiles_init(&t, dst->ndim, dst->shape,
                    brg__ctype_of((brg_dtype)src->dtype));
    brg__tiles_add(&t, dst);
    brg__tiles_add(&t, src);
    brg__tiles_begin(&t);
    if (dst->dtype == src->dtype)
        copy_same(&t, brg__tensor_item_size(dst));
    else
        copy_converting(&t);
}
