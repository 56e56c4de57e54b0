/* SPDX-License-Identifier: Apache-2.0
 * Gradients as views of bucket memory. */
#include <string.h>

#include "core/autograd/node.h"
#include "core/base/alloc.h"
#include "core/base/assert.h"
#include "core/base/log.h"
#include "core/tensor/device.h"
#include "core/tensor/shape.h"
#include "reducer/ddp.h"

#include <brigade/ops.h>

/* ---- The view ---------------------------------------------------------------- */

/* Without memory yet, unless the slots are elsewhere. */
static brg_status make_view(brg_tensor **out, const brg__ddp_param *p)
{
    brg__layout layout = brg__gradient_layout(p->leaf);
    brg__storage *storage;
    if (brg__ddp_is_staged(p))
        return brg__tensor_new(out, &layout);
    BRG_TRY(brg__storage_new(&storage, layout.device, 0));
    storage->is_external = true;
    storage->nbytes = brg_tensor_nbytes(p->leaf);
    brg_status status = brg__tensor_new_view(out, &layout, storage);
    brg__storage_release(storage); /* the view holds it */
    return status;
}

brg_status brg__ddp_view_make(brg__ddp_param *p, bool has_leaves)
{
    BRG_TRY(make_view(&p->view, p));
    if (has_leaves)
        return make_view(&p->home, p);
    p->home = brg_retain(p->view);
    return BRG_OK;
}

void brg__ddp_view_place(brg__ddp_param *p)
{
    if (!brg__ddp_is_staged(p))
        p->view->storage->data = p->ddp->reducer->members[p->index].slot;
}

static size_t block_size(const brg__storage *storage)
{
    return brg__round_up(storage->nbytes + (storage->nbytes == 0),
                         BRG_CACHE_LINE);
}

static void free_block(void *user)
{
    brg__storage *storage = user;
    brg__block_free(storage->data, block_size(storage), BRG_CACHE_LINE);
}

static void free_there(void *user)
{
    brg__storage *storage = user;
    const brg_device_vtable *vtable;
    if (brg__device_find(storage->device, &vtable) == BRG_OK)
        vtable->free(storage->device, storage->data, block_size(storage));
}

static bool move_out_there(brg__storage *storage)
{
    const brg_device d = storage->device;
    const brg_device_vtable *vtable;
    void *block;
    if (brg__device_find(d, &vtable) != BRG_OK ||
        vtable->alloc(d, &block, block_size(storage)) != BRG_OK)
        return false;
    if (brg__device_copy(d, block, d, storage->data, storage->nbytes) !=
        BRG_OK) {
        vtable->free(d, block, block_size(storage));
        return false;
    }
    storage->data = block;
    storage->free_fn = free_there;
    storage->user = storage;
    return true;
}

/* From the bucket into memory of its own. */
static bool move_out(brg__storage *storage)
{
    if (storage->device.type != BRG_DEVICE_CPU)
        return move_out_there(storage);
    void *block = brg__block_alloc(block_size(storage), BRG_CACHE_LINE,
                                   "gradients that outlive their reducer");
    if (!block)
        return false;
    if (storage->nbytes > 0)
        memcpy(block, storage->data, storage->nbytes);
    storage->data = block;
    storage->free_fn = free_block;
    storage->user = storage;
    return true;
}

static void drop(brg__ddp_param *p, brg_tensor *view)
{
    brg__storage *storage = view->storage;
    bool is_shared =
        brg__ref_count(&view->refs) > 1 || brg__ref_count(&storage->refs) > 1;
    if (is_shared && storage->is_external && storage->data &&
        !move_out(storage)) {
        /* Cannot fail, so the gradient goes. */
        brg__log(BRG_LOG_ERROR, "reducer",
                 "no memory to keep the gradient of %s",
                 brg__member_name(p->ddp->reducer, p->index));
        if (brg_tensor_grad(p->leaf) == view &&
            brg_tensor_set_grad(p->leaf, NULL) != BRG_OK)
            brg_assert(!"taking a gradient away cannot fail");
        storage->data = NULL;
        storage->nbytes = 0;
    }
    brg_release(view);
}

void brg__ddp_view_drop(brg__ddp_param *p)
{
    if (p->home && p->home != p->view)
        drop(p, p->home);
    else
        brg_release(p->home);
    if (p->view)
        drop(p, p->view);
    p->home = p->view = NULL;
}

/* ---- Copies -------------------------------------------------------------------- */

static bool is_laid_out_alike(const brg_tensor *a, const brg_tensor *b)
{
    if (a->is_contiguous && b->is_contiguous)
        return true;
    for (int i = 0; i < a->ndim; i++)
        if (a->shape[i] != 1 && a->stride[i] != b->stride[i])
            return false;
    return brg__shape_is_dense(a->ndim, a->shape, a->stride);
}

brg_status brg__ddp_copy(brg_tensor *dst, brg_tensor *src)
{
    brg_status status = brg__ddp_write(dst, src);
    brg_tensor_touch(dst);
    return status;
}

brg_status brg__ddp_write(brg_tensor *dst, brg_tensor *src)
{
    if (dst->numel == 0)
        return BRG_OK;
    if (src->storage && is_laid_out_alike(dst, src))
        return brg__device_copy(dst->device, brg__tensor_ptr(dst), src->device,
                                brg__tensor_ptr(src), brg_tensor_nbytes(dst));
    bool mode = brg_grad_mode_set(false);
    brg_status status = brg_copy_(dst, src);
    brg_grad_mode_set(mode);
    return status;
}
