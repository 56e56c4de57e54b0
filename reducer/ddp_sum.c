/* SPDX-License-Identifier: Apache-2.0
 * Micro-batches of 16-bit gradients, added up in f32. Every backward puts its
 * own gradient into the slot; the sum lies beside, and goes there rounded when
 * it is reduced. */
#include "core/ops/convert.h"
#include "core/ops/op.h"
#include "core/tensor/device.h"
#include "reducer/ddp.h"
#include "reducer/device_row.h"

#define BLOCK 512

static bool is_half(const brg_tensor *t)
{
    return t->dtype == BRG_DTYPE_F16 || t->dtype == BRG_DTYPE_BF16;
}

/* One more than there are: never none. */
static size_t n_bytes(const brg__ddp_param *p)
{
    return ((size_t)p->leaf->numel + 1) * sizeof *p->sum;
}

brg_status brg__ddp_sum_make(brg__ddp_param *p)
{
    const brg_device_vtable *vtable;
    void *sum;
    if (!p->ddp->options.accumulate_f32 || !is_half(p->leaf) ||
        p->ddp->has_leaves)
        return BRG_OK;
    BRG_TRY(brg__device_find(p->leaf->device, &vtable));
    BRG_TRY(vtable->alloc(p->leaf->device, &sum, n_bytes(p)));
    p->sum = sum;
    return BRG_OK;
}

void brg__ddp_sum_drop(brg__ddp_param *p)
{
    const brg_device_vtable *vtable;
    if (p->sum && brg__device_find(p->leaf->device, &vtable) == BRG_OK)
        vtable->free(p->leaf->device, p->sum, n_bytes(p));
    p->sum = NULL;
}

/* What the home holds, added to the sum; and back, rounded. */
static void add_here(const brg__ddp_param *p, bool has_sum, bool is_last)
{
    const brg_dtype dtype = (brg_dtype)p->home->dtype;
    size_t n = (size_t)p->home->numel, size = brg_dtype_size(dtype);
    char *home = p->home->storage->data;
    float x[BLOCK];
    for (size_t i = 0; i < n; i += BLOCK) {
        size_t m = n - i < BLOCK ? n - i : BLOCK;
        brg__convert_row(x, BRG_DTYPE_F32, home + i * size, dtype, m);
        for (size_t k = 0; k < m; k++)
            p->sum[i + k] = has_sum ? p->sum[i + k] + x[k] : x[k];
        if (is_last)
            brg__convert_row(home + i * size, dtype, p->sum + i, BRG_DTYPE_F32,
                             m);
    }
}

/* The same by the kernels of the device. */
static brg_status add_there(const brg__ddp_param *p, bool has_sum, bool is_last)
{
    const size_t n = (size_t)p->home->numel;
    const brg_device d = p->leaf->device;
    brg__device_row a, b;
    const brg_tensor *in[2] = {
        brg__device_row_of(&a, d, p->sum, BRG_DTYPE_F32, n),
        brg__device_row_of(&b, d, p->home->storage->data,
                           (brg_dtype)p->home->dtype, n)};
    BRG_TRY(has_sum ? brg__pointwise_now(&brg__op_add, in, in[0], NULL)
                    : brg__copy_now(in[0], in[1]));
    return is_last ? brg__copy_now(in[1], in[0]) : BRG_OK;
}

static brg_status add_home(const brg__ddp_param *p, bool is_last)
{
    if (p->leaf->device.type != BRG_DEVICE_CPU)
        return add_there(p, p->has_sum, is_last);
    add_here(p, p->has_sum, is_last);
    return BRG_OK;
}

brg_status brg__ddp_sum_add(brg__ddp_param *p)
{
    brg_tensor *grad = brg_tensor_grad(p->leaf);
    if (!p->sum || !grad)
        return BRG_OK;
    BRG_TRY(brg__ddp_pack(p, grad));
    BRG_TRY(add_home(p, false));
    p->has_sum = true;
    BRG_TRY(brg_tensor_set_grad(p->leaf, NULL));
    brg_tensor_touch(p->home);
    return BRG_OK;
}

brg_status brg__ddp_sum_finish(brg__ddp_param *p)
{
    if (!p->has_sum)
        return BRG_OK;
    BRG_TRY(add_home(p, true));
    p->has_sum = false;
    return BRG_OK;
}

void brg__ddp_sums_move(brg_ddp *to, brg_ddp *from)
{
    size_t k = 0; /* both are in the order of the tensors */
    for (size_t t = 0, i = 0; t < to->n_tensors; t++) {
        const brg_tensor *leaf = to->tensors[t];
        brg__ddp_param *a = i < to->n_params ? &to->params[i] : NULL;
        brg__ddp_param *b = k < from->n_params ? &from->params[k] : NULL;
        bool is_there = a && a->leaf == leaf, was_there = b && b->leaf == leaf;
        if (is_there && was_there && b->has_sum) {
            float *empty = a->sum;
            a->sum = b->sum;
            b->sum = empty;
            a->has_sum = a->is_used = true;
        }
        i += is_there;
        k += was_there;
    }
}
