/* SPDX-License-Identifier: Apache-2.0
 * Sparse tensors: making them of their parts, and questions. */
#include "core/tensor/sparse.h"

#include <string.h>

#include "core/base/alloc.h"

/* ---- Construction -------------------------------------------------------------- */

brg_status brg__sparse_new(brg_tensor **out, const brg_tensor *like,
                           const brg_tensor *indices, const brg_tensor *values,
                           bool is_coalesced)
{
    *out = NULL;
    brg__layout layout = brg__layout_of(like);
    layout.dtype = (brg_dtype)values->dtype;
    layout.device = values->device;
    layout.offset = 0;
    memset(layout.stride, 0, sizeof layout.stride);
    brg_tensor *t;
    BRG_TRY(brg__tensor_new_view(&t, &layout, NULL));
    t->is_contiguous = false;
    brg_status status = BRG_ERR_NOMEM;
    t->sparse = brg__obj_alloc(sizeof *t->sparse, "the parts of a tensor");
    if (t->sparse) {
        t->sparse->is_coalesced = is_coalesced;
        status = brg__tensor_new_alias(&t->sparse->indices, indices);
    }
    if (status == BRG_OK)
        status = brg__tensor_new_alias(&t->sparse->values, values);
    if (status == BRG_OK)
        *out = t;
    else
        brg_release(t);
    return status;
}

brg_status brg__sparse_new_alias(brg_tensor **out, const brg_tensor *t)
{
    const brg__sparse *s = t->sparse;
    return brg__sparse_new(out, t, s->indices, s->values, s->is_coalesced);
}

void brg__sparse_destroy(brg__sparse *sparse)
{
    if (!sparse)
        return;
    brg_release(sparse->indices);
    brg_release(sparse->values);
    brg__obj_free(sparse, sizeof *sparse);
}

void brg__sparse_swap(brg_tensor *t, brg_tensor *from)
{
    uint32_t version = brg_tensor_version(t) + 1;
    brg__sparse *kept = t->sparse;
    t->sparse = from->sparse;
    from->sparse = kept;
    atomic_store(&t->sparse->values->storage->version, version);
}

/* ---- Questions ------------------------------------------------------------------- */

static bool is_sole(const brg_tensor *part)
{
    return brg__ref_count(&part->refs) == 1 && part->is_contiguous &&
           brg__ref_count(&part->storage->refs) == 1;
}

bool brg__sparse_is_sole_owner(const brg_tensor *t)
{
    return is_sole(t->sparse->indices) && is_sole(t->sparse->values);
}

bool brg_tensor_is_sparse(const brg_tensor *t)
{
    return t && t->sparse;
}

brg_tensor *brg_sparse_indices(const brg_tensor *t)
{
    return t && t->sparse ? t->sparse->indices : NULL;
}

brg_tensor *brg_sparse_values(const brg_tensor *t)
{
    return t && t->sparse ? t->sparse->values : NULL;
}

int64_t brg_sparse_nnz(const brg_tensor *t)
{
    return t && t->sparse ? brg__sparse_nnz(t) : 0;
}

bool brg_sparse_is_coalesced(const brg_tensor *t)
{
    return t && t->sparse && t->sparse->is_coalesced;
}
