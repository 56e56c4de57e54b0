/* SPDX-License-Identifier: Apache-2.0
 * Work on sparse tensors of another device than the CPU: what its slot
 * `sparse` is given (ext/sparse.h), and the memory for it. */
#include "core/ops/sparse.h"

#include <string.h>

#include "core/tensor/device.h"

static brg_status run(brg_device device, const brg_sparse_job *job)
{
    const brg_device_vtable *vtable;
    char text[24];
    BRG_TRY(brg__device_find(device, &vtable));
    if (vtable->sparse)
        return vtable->sparse(device, job);
    return BRG_FAIL(BRG_ERR_UNSUPPORTED, "%s has no sparse tensors",
                    brg__device_text(device, text));
}

bool brg__sparse_has_slot(brg_device device)
{
    const brg_device_vtable *vtable;
    return brg__device_find(device, &vtable) == BRG_OK && vtable->sparse;
}

/* Places by indices (d, nnz) in a tensor like that. */
static brg_sparse_job job_of(brg_sparse_rule rule, const brg_tensor *indices,
                             const brg_tensor *like)
{
    brg_sparse_job job = {.rule = rule,
                          .n_dims = (int)indices->shape[0],
                          .nnz = indices->shape[1],
                          .indices = brg__tensor_ptr(indices)};
    memcpy(job.shape, like->shape, (size_t)job.n_dims * sizeof *job.shape);
    return job;
}

/* Work on the entries of t. */
static brg_sparse_job entries_of(brg_sparse_rule rule, const brg_tensor *t)
{
    const brg_tensor *values = t->sparse->values;
    brg_sparse_job job = job_of(rule, t->sparse->indices, t);
    job.dtype = (brg_dtype)values->dtype;
    job.size = job.nnz > 0 ? values->numel / job.nnz : 0;
    job.from = brg__tensor_ptr(values);
    return job;
}

brg_status brg__sparse_check_there(const brg_tensor *indices,
                                   const brg_tensor *like)
{
    if (indices->numel == 0)
        return BRG_OK;
    const brg_sparse_job job = job_of(BRG_SPARSE_CHECK, indices, like);
    return run(indices->device, &job);
}

brg_status brg__sparse_places_there(const brg_tensor *places,
                                    const brg_tensor *ids,
                                    const brg_tensor *like, int64_t padding)
{
    if (places->numel == 0)
        return BRG_OK;
    brg_sparse_job job = job_of(BRG_SPARSE_PLACES, places, like);
    job.from = brg__tensor_ptr(ids);
    job.id_dtype = (brg_dtype)ids->dtype;
    job.padding = padding;
    job.to = brg__tensor_ptr(places);
    return run(places->device, &job);
}

brg_status brg__sparse_take_there(const brg_tensor *dst, const brg_tensor *x,
                                  const brg_tensor *indices)
{
    brg_tensor *rows = NULL;
    brg_sparse_job job = job_of(BRG_SPARSE_TAKE, indices, x);
    if (x->numel == 0) /* no index is in range */
        return brg__fill_now(dst, 0.0);
    if (!x->is_contiguous)
        BRG_TRY(brg__copy_new(&rows, x));
    job.dtype = (brg_dtype)x->dtype;
    job.size = dst->numel / job.nnz;
    job.from = brg__tensor_ptr(rows ? rows : x);
    job.to = brg__tensor_ptr(dst);
    brg_status status = run(dst->device, &job);
    brg_release(rows);
    return status;
}

/* ---- The entries in order -------------------------------------------------- */

/* *out: what ORDER makes of the entries of t, owned by the caller; NULL if they
 * are sorted and different. */
static brg_status new_order(brg_tensor **out, const brg_tensor *t)
{
    brg__layout layout;
    *out = NULL;
    if (t->sparse->is_coalesced || brg__sparse_nnz(t) == 0)
        return BRG_OK;
    brg_sparse_job job = entries_of(BRG_SPARSE_ORDER, t);
    BRG_TRY(brg__layout_init(&layout, "sparse", BRG_DTYPE_I64, 2,
                             (int64_t[]){3, job.nnz}));
    layout.device = t->device;
    BRG_TRY(brg__tensor_new(out, &layout));
    job.to = brg__tensor_ptr(*out);
    brg_status status = run(t->device, &job);
    if (status != BRG_OK) {
        brg_release(*out);
        *out = NULL;
    }
    return status;
}

/* Runs the job on the entries of t in their order. */
static brg_status run_ordered(const brg_tensor *t, brg_sparse_job *job)
{
    brg_tensor *order;
    BRG_TRY(new_order(&order, t));
    job->order = order ? brg__tensor_ptr(order) : NULL;
    brg_status status = run(t->device, job);
    brg_release(order);
    return status;
}

brg_status brg__sparse_add_there(const brg_tensor *dst, const brg_tensor *src,
                                 double alpha)
{
    brg_tensor *rows = NULL;
    if (src->sparse->values->numel == 0 || dst->numel == 0)
        return BRG_OK;
    if (!dst->is_contiguous)
        BRG_TRY(brg__copy_new(&rows, dst));
    brg_sparse_job job = entries_of(BRG_SPARSE_ADD, src);
    job.alpha = alpha;
    job.to = brg__tensor_ptr(rows ? rows : dst);
    brg_status status = run_ordered(src, &job);
    if (status == BRG_OK && rows)
        status = brg__copy_now(dst, rows);
    brg_release(rows);
    return status;
}

brg_status brg__sparse_update_there(const brg_tensor *grad,
                                    const brg_device_update *update,
                                    size_t first)
{
    if (grad->sparse->values->numel == 0 && !update->follows)
        return BRG_OK;
    brg_sparse_job job = entries_of(BRG_SPARSE_UPDATE, grad);
    job.update = update;
    job.first = (int64_t)first;
    return run_ordered(grad, &job);
}

/* ---- Coalescing: waits, for the number of places --------------------------- */

static brg_status sum_places(brg_tensor **out, const brg_tensor *t,
                             const brg_tensor *order)
{
    int64_t n, *all = brg__tensor_ptr(order);
    BRG_TRY(brg__device_copy(BRG_CPU, &n, order->device, all + order->numel - 1,
                             sizeof n));
    BRG_TRY(brg__sparse_empty(out, t, n, (brg_dtype)t->dtype));
    (*out)->sparse->is_coalesced = true;
    if (n == 0)
        return BRG_OK;
    brg_sparse_job job = entries_of(BRG_SPARSE_SUM, t);
    job.order = all;
    job.n = n;
    job.to_indices = brg__tensor_ptr((*out)->sparse->indices);
    if (job.size > 0)
        job.to = brg__tensor_ptr((*out)->sparse->values);
    return run(t->device, &job);
}

brg_status brg__sparse_coalesce_there(brg_tensor **out, const brg_tensor *t)
{
    brg_tensor *order;
    *out = NULL;
    BRG_TRY(new_order(&order, t));
    brg_status status = sum_places(out, t, order);
    brg_release(order);
    if (status != BRG_OK) {
        brg_release(*out);
        *out = NULL;
    }
    return status;
}
