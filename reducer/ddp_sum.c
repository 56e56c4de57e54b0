/* SPDX-License-Identifier: Apache-2.0
 * Micro-batches of 16-bit gradients, added up in f32. Every backward puts its
 * own gradient into the slot; the sum lies beside, and goes there rounded when
 * it is reduced. */
#include "core/base/alloc.h"
#include "core/ops/convert.h"
#include "core/tensor/device.h"
#include "reducer/ddp.h"

#define BLOCK 512

static bool is_half(const brg_tensor *t)
{
    return t->dtype == BRG_DTYPE_F16 || t->dtype == BRG_DTYPE_BF16;
}

brg_status brg__ddp_sum_make(brg__ddp_param *p)
{
    char text[24];
    if (!p->ddp->options.accumulate_f32 || !is_half(p->leaf) ||
        p->ddp->has_leaves)
        return BRG_OK;
    if (p->leaf->device.type != BRG_DEVICE_CPU)
        return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                        "brg_ddp_create: accumulate_f32 needs gradients in "
                        "host memory, these are on %s",
                        brg__device_text(p->leaf->device, text));
    p->sum = brg__mem_alloc_array((size_t)p->leaf->numel + 1, sizeof *p->sum,
                                  "sums of micro-batches");
    return p->sum ? BRG_OK : BRG_ERR_NOMEM;
}

/* What the home holds, added to the sum; and back, rounded. */
static void add_home(const brg__ddp_param *p, bool has_sum, bool is_last)
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

brg_status brg__ddp_sum_add(brg__ddp_param *p)
{
    brg_tensor *grad = brg_tensor_grad(p->leaf);
    if (!p->sum || !grad)
        return BRG_OK;
    BRG_TRY(brg__ddp_pack(p, grad));
    add_home(p, p->has_sum, false);
    p->has_sum = true;
    BRG_TRY(brg_tensor_set_grad(p->leaf, NULL));
    brg_tensor_touch(p->home);
    return BRG_OK;
}

void brg__ddp_sum_finish(brg__ddp_param *p)
{
    if (p->has_sum)
        add_home(p, true, true);
    p->has_sum = false;
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
