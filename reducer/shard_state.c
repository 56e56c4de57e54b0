/* SPDX-License-Identifier: Apache-2.0
 * Optimizer state between its shards and the whole on rank 0, one tensor after
 * the other: no rank but 0 ever holds more than its part. */
#include <string.h>

#include "reducer/shard.h"
#include "reducer/verify.h"
#include "core/base/alloc.h"
#include "core/base/tracer.h"
#include "core/tensor/device.h"
#include "core/tensor/shape.h"

typedef struct transfer {
    const char *op;
    brg_ddp *ddp;
    brg_optim *full; /* on rank 0 */
    brg_optim *part;
    bool is_gather;
} transfer;

/* ---- Checks ----------------------------------------------------------------------- */

static brg_status check_state(const transfer *t, size_t i)
{
    const brg_named_tensor *f = brg_optim_state_at(t->full, i);
    const brg_named_tensor *p = brg_optim_state_at(t->part, i);
    const brg_tensor *owner = brg_optim_state_param(t->part, i);
    const int64_t numel = owner ? owner->numel : p->tensor->numel;
    char a[BRG_TENSOR_TEXT_MAX], b[BRG_TENSOR_TEXT_MAX];
    BRG_CHECK_ARG(
        strcmp(f->name, p->name) == 0 && f->tensor->dtype == p->tensor->dtype &&
            f->tensor->numel == numel,
        "%s: the whole optimizer has %s, the sharded one %s, of a parameter of "
        "%lld elements",
        t->op, brg__tensor_text(f->tensor, a), brg__tensor_text(p->tensor, b),
        (long long)numel);
    return BRG_OK;
}

/* The part has the ranges of this ddp. */
static brg_status check_range(const transfer *t, size_t i)
{
    const brg_named_tensor *s = brg_optim_state_at(t->part, i);
    const brg_tensor *owner = brg_optim_state_param(t->part, i);
    const brg_reducer *r = t->ddp->reducer;
    const brg__ddp_param *p = brg__ddp_find(t->ddp, owner);
    const brg_optim_range found = brg_optim_state_range(t->part, i);
    brg_optim_range own = {0, 0};
    if (p)
        own = brg__shard_of(r, p->index, r->rank);
    BRG_CHECK_ARG(!owner || (found.n == own.n &&
                             (own.n == 0 || found.first == own.first)),
                  "%s: '%s' has %zu elements from %zu on, this rank owns %zu "
                  "from %zu on; make the optimizer with the ranges of "
                  "brg_ddp_shard",
                  t->op, s->name, found.n, found.first, own.n, own.first);
    return BRG_OK;
}

static brg_status check(const transfer *t)
{
    bool is_root = t->ddp->reducer->rank == 0;
    BRG_CHECK_ARG(t->part && (t->full || !is_root), "%s: %s is NULL", t->op,
                  t->part ? "full" : "part");
    size_t n = brg_optim_state_count(t->part);
    for (size_t i = 0; i < n; i++)
        BRG_TRY(check_range(t, i));
    if (!is_root)
        return BRG_OK;
    const char *whole = brg_optim_kind(t->full),
               *kind = brg_optim_kind(t->part);
    BRG_CHECK_ARG(strcmp(whole, kind) == 0 &&
                      brg_optim_state_count(t->full) == n,
                  "%s: the whole optimizer is %s with %zu tensors of state, "
                  "the sharded one %s with %zu",
                  t->op, whole, brg_optim_state_count(t->full), kind, n);
    for (size_t i = 0; i < n; i++)
        BRG_TRY(check_state(t, i));
    return BRG_OK;
}

/* ---- Sending ------------------------------------------------------------------------ */

/* n elements on a device, as the group may send them: themselves, or a copy. */
typedef struct passage {
    brg_device device;
    void *data;
    void *at; /* owned if it is not data */
    size_t nbytes;
} passage;

static brg_status enter(const transfer *t, passage *p)
{
    p->at = p->data;
    if (p->device.type == t->ddp->reducer->device.type || p->nbytes == 0)
        return BRG_OK;
    p->at = brg__mem_alloc(p->nbytes, "optimizer state on its way");
    if (!p->at)
        return BRG_ERR_NOMEM;
    return brg__device_copy(BRG_CPU, p->at, p->device, p->data, p->nbytes);
}

/* `status`: of what was done there. */
static brg_status leave(passage *p, brg_status status)
{
    if (p->at == p->data)
        return status;
    if (p->at && status == BRG_OK)
        status =
            brg__device_copy(p->device, p->data, BRG_CPU, p->at, p->nbytes);
    brg__mem_free(p->at);
    return status;
}

static brg_status exchange(const transfer *t, brg_tensor *state, void *data,
                           size_t n, int peer, bool sends)
{
    brg_work *work;
    brg_pg *pg = t->ddp->pg;
    const brg_dtype dtype = brg_tensor_dtype(state);
    passage p = {.device = state->device,
                 .data = data,
                 .nbytes = n * brg_dtype_size(dtype)};
    brg_status status = enter(t, &p);
    if (status == BRG_OK)
        status = sends ? brg_send(pg, &work, p.at, n, dtype, peer)
                       : brg_recv(pg, &work, p.at, n, dtype, peer);
    if (status == BRG_OK)
        status = brg_work_wait(work);
    return leave(&p, status);
}

static brg_status copy(const transfer *t, brg_device device, void *full,
                       void *part, size_t nbytes)
{
    const brg_device_vtable *vtable;
    if (nbytes == 0)
        return BRG_OK;
    BRG_TRY(brg__device_find(device, &vtable));
    return vtable->copy(device, t->is_gather ? full : part, device,
                        t->is_gather ? part : full, nbytes);
}

static void *data_of(const brg_optim *optim, size_t i)
{
    return brg__tensor_ptr(brg_optim_state_at(optim, i)->tensor);
}

/* State i of the elements that `rank` owns. */
static brg_status move_range(const transfer *t, size_t i, int rank)
{
    const brg_reducer *r = t->ddp->reducer;
    const brg__ddp_param *p =
        brg__ddp_find(t->ddp, brg_optim_state_param(t->part, i));
    if (!p)
        return BRG_OK;
    brg_optim_range range = brg__shard_of(r, p->index, rank);
    brg_tensor *part = brg_optim_state_at(t->part, i)->tensor;
    if (range.n == 0 || (r->rank != 0 && r->rank != rank))
        return BRG_OK;
    if (r->rank != 0)
        return exchange(t, part, data_of(t->part, i), range.n, 0, t->is_gather);
    brg_tensor *whole = brg_optim_state_at(t->full, i)->tensor;
    size_t size = brg_dtype_size(brg_tensor_dtype(whole));
    char *full = (char *)data_of(t->full, i) + range.first * size;
    if (rank != 0)
        return exchange(t, whole, full, range.n, rank, !t->is_gather);
    return copy(t, part->device, full, data_of(t->part, i), range.n * size);
}

static brg_status broadcast(const transfer *t, void *data, size_t n,
                            brg_dtype dtype)
{
    brg_work *work;
    BRG_TRY(brg_broadcast(t->ddp->pg, &work, data, n, dtype, 0));
    return brg_work_wait(work);
}

/* The counts of steps, which all ranks have alike. */
static brg_status move_common(const transfer *t, size_t i)
{
    brg_tensor *part = brg_optim_state_at(t->part, i)->tensor;
    if (t->ddp->reducer->rank == 0)
        BRG_TRY(copy(t, part->device, data_of(t->full, i), data_of(t->part, i),
                     brg_tensor_nbytes(part)));
    if (t->is_gather)
        return BRG_OK;
    passage p = {.device = part->device,
                 .data = brg__tensor_ptr(part),
                 .nbytes = brg_tensor_nbytes(part)};
    brg_status status = enter(t, &p);
    if (status == BRG_OK)
        status =
            broadcast(t, p.at, (size_t)part->numel, brg_tensor_dtype(part));
    return leave(&p, status);
}

static brg_status move_state(const transfer *t, size_t i)
{
    if (!brg_optim_state_param(t->part, i))
        BRG_TRY(move_common(t, i));
    else
        for (int rank = 0; rank < t->ddp->reducer->world_size; rank++)
            BRG_TRY(move_range(t, i, rank));
    if (!t->is_gather)
        brg_tensor_touch(brg_optim_state_at(t->part, i)->tensor);
    else if (t->ddp->reducer->rank == 0)
        brg_tensor_touch(brg_optim_state_at(t->full, i)->tensor);
    return BRG_OK;
}

static brg_status move_rate(const transfer *t)
{
    bool is_root = t->ddp->reducer->rank == 0;
    if (t->is_gather)
        return is_root ? brg_optim_set_lr(t->full, brg_optim_lr(t->part))
                       : BRG_OK;
    double lr = is_root ? brg_optim_lr(t->full) : 0;
    BRG_TRY(broadcast(t, &lr, 1, BRG_DTYPE_F64));
    return brg_optim_set_lr(t->part, lr);
}

/* What the ranks' optimizers have in common: kinds of state, and whose. */
static void describe(brg__descriptor *d, const brg_optim *optim, size_t i)
{
    const brg_named_tensor *s = brg_optim_state_at(optim, i);
    const brg_tensor *owner = brg_optim_state_param(optim, i);
    const brg_tensor *like = owner ? owner : s->tensor;
    d->dtype = (int16_t)s->tensor->dtype;
    d->ndim = like->ndim;
    d->requires_grad = 1;
    memcpy(d->shape, like->shape, sizeof d->shape);
    brg__shape_strides(like->ndim, d->shape, d->strides);
    brg__descriptor_set_name(d, s->name);
}

static brg_status verify(const transfer *t)
{
    brg__agreement mine = {.what = t->op, .status = check(t)};
    size_t n = mine.status == BRG_OK ? brg_optim_state_count(t->part) : 0;
    brg__descriptor *list =
        brg__mem_alloc_array(n, sizeof *list, "a list of optimizer state");
    if (!list)
        mine.status = BRG_ERR_NOMEM;
    for (size_t i = 0; list && i < n; i++)
        describe(&list[i], t->part, i);
    mine.tensors = list;
    mine.n_params = list ? n : 0;
    brg_status status = brg__verify_ranks(t->ddp->pg, &mine);
    brg__mem_free(list);
    return status;
}

static brg_status run(const transfer *t)
{
    BRG_CHECK_ARG(t->ddp && t->ddp->options.shard,
                  "%s: the ddp is NULL or was made without options.shard",
                  t->op);
    BRG_TRY(brg__tracer_outside(t->op));
    BRG_TRY(verify(t));
    for (size_t i = 0; i < brg_optim_state_count(t->part); i++)
        BRG_TRY(move_state(t, i));
    return move_rate(t);
}

brg_status brg_ddp_gather_optim(brg_ddp *ddp, brg_optim *full, brg_optim *part)
{
    return run(&(transfer){"brg_ddp_gather_optim", ddp, full, part, true});
}

brg_status brg_ddp_scatter_optim(brg_ddp *ddp, brg_optim *part, brg_optim *full)
{
    return run(&(transfer){"brg_ddp_scatter_optim", ddp, full, part, false});
}
