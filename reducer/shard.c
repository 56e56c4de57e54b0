/* SPDX-License-Identifier: Apache-2.0
 * Which elements are whose, and parameters on their way. See shard.h. */
#include "reducer/shard.h"

#include <math.h>

#include "comm/work.h"
#include "core/base/alloc.h"
#include "core/base/log.h"
#include "core/base/tracer.h"
#include "core/tensor/device.h"

/* ---- Ranges -------------------------------------------------------------------- */

brg_optim_range brg__shard_of(const brg_reducer *r, size_t i, int rank)
{
    const brg__member *m = &r->members[i];
    if (!r->is_sharded)
        return (brg_optim_range){0, m->count};
    const brg__plan_slot *slot = &r->plan.slots[i];
    const brg__plan_bucket *b = &r->plan.buckets[slot->bucket];
    size_t shard = b->nbytes / (size_t)r->world_size;
    size_t low = b->offset + (size_t)rank * shard, high = low + shard;
    size_t first = slot->offset, last = first + slot->nbytes;
    low = low < first ? first : low;
    high = high > last ? last : high;
    if (low >= high)
        return (brg_optim_range){0, 0};
    size_t size = brg_dtype_size(m->dtype);
    return (brg_optim_range){(low - first) / size, (high - low) / size};
}

const brg__ddp_param *brg__ddp_find(const brg_ddp *ddp, const brg_tensor *leaf)
{
    uint32_t i;
    return brg__map_look(&ddp->weights.indices, leaf, &i) ? &ddp->params[i]
                                                          : NULL;
}

static brg_status check_is_sharded(const char *op, const brg_ddp *ddp)
{
    BRG_CHECK_ARG(ddp, "%s: the ddp is NULL", op);
    BRG_CHECK_ARG(ddp->options.shard,
                  "%s: the ddp was made without options.shard", op);
    return brg__tracer_outside(op);
}

brg_status brg_ddp_shard(const brg_ddp *ddp, const brg_params *params,
                         brg_optim_range *filled, size_t n)
{
    size_t n_trained = 0;
    BRG_TRY(check_is_sharded("brg_ddp_shard", ddp));
    BRG_CHECK_ARG(params && (filled || n == 0), "brg_ddp_shard: %s is NULL",
                  params ? "filled" : "params");
    brg_tensor *const *trained =
        brg_params_tensors(params, BRG_PARAM_TRAINED, &n_trained);
    BRG_CHECK_ARG(n == n_trained,
                  "brg_ddp_shard: room for %zu ranges, there are %zu trained "
                  "tensors",
                  n, n_trained);
    for (size_t i = 0; i < n; i++) {
        const brg__ddp_param *p = brg__ddp_find(ddp, trained[i]);
        filled[i] =
            p ? brg__shard_of(ddp->reducer, p->index, ddp->reducer->rank)
              : (brg_optim_range){0, 0};
    }
    return BRG_OK;
}

/* ---- Making -------------------------------------------------------------------- */

static brg_status check_param(const brg__ddp_param *p)
{
    const brg_tensor *t = p->leaf;
    const brg__storage *s = t->storage;
    bool is_alone = t->is_contiguous && t->offset == 0 && !s->is_external &&
                    s->nbytes == brg_tensor_nbytes(t);
    for (size_t k = 0; k < p->index; k++)
        is_alone &= p->ddp->params[k].leaf->storage != s;
    if (t->numel == 0 || is_alone)
        return BRG_OK;
    return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                    "brg_ddp_create: shard: %s is not row-major, shares its "
                    "memory, or lies in memory that is not the library's",
                    brg__member_name(p->ddp->reducer, p->index));
}

/* The arena, once the ddp has gone, of parameters that found no memory of
 * their own: goes with the last of them. */
typedef struct brg__stranded {
    brg_pg *pg;  /* borrowed */
    void *arena; /* NULL: it goes with the group */
    _Atomic size_t n;
} brg__stranded;

static void leave(void *user)
{
    brg__stranded *s = user;
    if (--s->n > 0)
        return;
    if (s->arena)
        brg_pg_free(s->pg, s->arena);
    brg__mem_free(s);
}

brg_status brg__shard_prepare(brg_ddp *ddp)
{
    brg_reducer *r = ddp->reducer;
    for (size_t i = 0; i < ddp->n_params; i++) {
        uint32_t index;
        bool is_new;
        BRG_TRY(check_param(&ddp->params[i]));
        BRG_TRY(brg__map_put(&ddp->weights.indices, ddp->params[i].leaf,
                             (uint32_t)i, &index, &is_new));
    }
    r->is_sharded = true;
    BRG_TRY(brg__reducer_plan_anew(r));
    size_t n_more = r->plan.n_buckets + 1; /* the gathers, and a norm */
    BRG_TRY(brg__work_reserve(r->pg, n_more));
    r->n_works += n_more;
    ddp->weights.works = brg__mem_alloc_array(
        r->plan.n_buckets, sizeof *ddp->weights.works, "works of gathers");
    ddp->weights.stranded = BRG__NEW(brg__stranded);
    return ddp->weights.works && ddp->weights.stranded ? BRG_OK : BRG_ERR_NOMEM;
}

static brg_status move_in(const brg__ddp_param *p, char *arena)
{
    brg__storage *s = p->leaf->storage;
    const brg_device_vtable *vtable;
    if (s->nbytes == 0 || brg__ddp_is_staged(p))
        return BRG_OK;
    BRG_TRY(brg__device_find(s->device, &vtable));
    char *to = arena + p->ddp->reducer->plan.slots[p->index].offset;
    BRG_TRY(vtable->copy(s->device, to, s->device, s->data, s->nbytes));
    vtable->free(s->device, s->data, s->nbytes);
    s->data = to;
    s->is_external = true;
    return BRG_OK;
}

brg_status brg__shard_attach(brg_ddp *ddp)
{
    void *arena;
    BRG_TRY(brg_pg_alloc(ddp->pg, &arena, ddp->reducer->plan.nbytes));
    ddp->weights.arena = arena;
    for (size_t i = 0; i < ddp->n_params; i++)
        BRG_TRY(move_in(&ddp->params[i], arena));
    return BRG_OK;
}

/* Only if somebody else has the parameter, too. */
static bool move_out(const brg__ddp_param *p)
{
    brg__storage *s = p->leaf->storage;
    const brg_device_vtable *vtable;
    void *own;
    bool is_held =
        brg__ref_count(&p->leaf->refs) > 1 || brg__ref_count(&s->refs) > 1;
    if (s->nbytes == 0 || !s->is_external || !is_held)
        return true;
    if (brg__device_find(s->device, &vtable) != BRG_OK ||
        vtable->alloc(s->device, &own, s->nbytes) != BRG_OK)
        return false;
    if (vtable->copy(s->device, own, s->device, s->data, s->nbytes) != BRG_OK) {
        vtable->free(s->device, own, s->nbytes);
        return false;
    }
    s->data = own;
    s->is_external = false;
    return true;
}

void brg__shard_detach(brg_ddp *ddp)
{
    brg__ddp_weights *w = &ddp->weights;
    bool is_idle = true;
    size_t n_stranded = 0;
    for (size_t k = 0; w->works && k < ddp->reducer->plan.n_buckets; k++)
        if (w->works[k]) { /* still going: others use it */
            is_idle &= brg_work_test(w->works[k]);
            brg_work_release(w->works[k]);
        }
    for (size_t i = 0; w->arena && i < ddp->n_params; i++)
        if (!move_out(&ddp->params[i])) {
            brg__storage *s = ddp->params[i].leaf->storage;
            s->free_fn = leave;
            s->user = w->stranded;
            n_stranded++;
            brg__log(BRG_LOG_ERROR, "reducer",
                     "no memory of its own for %s: it must go before its group",
                     brg__member_name(ddp->reducer, i));
        }
    if (n_stranded > 0) {
        w->stranded->pg = ddp->pg;
        w->stranded->arena = is_idle ? w->arena : NULL;
        w->stranded->n = n_stranded;
    } else {
        if (is_idle && w->arena)
            brg_pg_free(ddp->pg, w->arena);
        brg__mem_free(w->stranded);
    }
    brg__mem_free(w->works);
    brg__map_deinit(&w->indices);
    *w = (brg__ddp_weights){0};
}

/* ---- Gathering ------------------------------------------------------------------ */

brg_status brg__shard_check(const brg_ddp *ddp, const char *what)
{
    if (ddp->weights.n_in_flight == 0)
        return BRG_OK;
    return BRG_FAIL(BRG_ERR_STATE,
                    "rank %d: %s while parameters are being gathered: call "
                    "brg_ddp_wait_params before they are used",
                    brg_pg_rank(ddp->pg), what);
}

/* Of a parameter elsewhere: this rank's part of it to the arena; or all of it
 * back. */
static brg_status stage(const brg__ddp_param *p, bool is_back)
{
    const brg_reducer *r = p->ddp->reducer;
    const brg__member *m = &r->members[p->index];
    const brg_optim_range own = is_back ? (brg_optim_range){0, m->count}
                                        : brg__shard_of(r, p->index, r->rank);
    const size_t size = brg_dtype_size(m->dtype), first = own.first * size;
    char *here = p->ddp->weights.arena + r->plan.slots[p->index].offset + first;
    char *there = (char *)brg__tensor_ptr(p->leaf) + first;
    if (!brg__ddp_is_staged(p))
        return BRG_OK;
    return is_back ? brg__device_copy(p->leaf->device, there, r->device, here,
                                      own.n * size)
                   : brg__device_copy(r->device, here, p->leaf->device, there,
                                      own.n * size);
}

static brg_status stage_bucket(const brg_ddp *ddp, size_t k, bool is_back)
{
    const brg__plan *plan = &ddp->reducer->plan;
    const brg__plan_bucket *b = &plan->buckets[k];
    for (size_t j = 0; j < b->n_params; j++)
        BRG_TRY(stage(&ddp->params[plan->order[b->first + j]], is_back));
    return BRG_OK;
}

static brg_status gather_bucket(brg_ddp *ddp, size_t k)
{
    const brg_reducer *r = ddp->reducer;
    const brg__plan_bucket *b = &r->plan.buckets[k];
    size_t shard = b->nbytes / (size_t)r->world_size;
    char *data = ddp->weights.arena + b->offset;
    BRG_TRY(stage_bucket(ddp, k, false));
    BRG_TRY(brg_all_gather(ddp->pg, &ddp->weights.works[k], data,
                           data + (size_t)r->rank * shard,
                           shard / brg_dtype_size(b->dtype), b->dtype));
    ddp->weights.n_in_flight++;
    return BRG_OK;
}

brg_status brg_ddp_gather_params(brg_ddp *ddp)
{
    BRG_TRY(check_is_sharded("brg_ddp_gather_params", ddp));
    if (ddp->has_joined || ddp->weights.n_in_flight > 0)
        return BRG_FAIL(BRG_ERR_STATE, "rank %d: brg_ddp_gather_params: %s",
                        brg_pg_rank(ddp->pg),
                        ddp->has_joined ? "a backward is under way"
                                        : "the last gather was not waited for");
    for (size_t k = ddp->reducer->plan.n_buckets; k-- > 0;)
        if (ddp->reducer->plan.buckets[k].n_params > 0)
            BRG_TRY(gather_bucket(ddp, k));
    return BRG_OK;
}

static brg_status wait_bucket(brg_ddp *ddp, size_t k)
{
    brg_work *work = ddp->weights.works[k];
    if (!work)
        return BRG_OK;
    const brg_reducer *r = ddp->reducer;
    const brg__plan_bucket *b = &r->plan.buckets[k];
    ddp->weights.works[k] = NULL;
    ddp->weights.n_in_flight--;
    if (brg_work_wait(work) != BRG_OK)
        return brg__error_prefix("gathering parameters of bucket %zu: ", k);
    const brg_status status = stage_bucket(ddp, k, true);
    for (size_t j = 0; j < b->n_params; j++)
        brg_tensor_touch(ddp->params[r->plan.order[b->first + j]].leaf);
    return status;
}

static brg_status wait_all(brg_ddp *ddp)
{
    brg__error_record first = {.code = BRG_OK};
    for (size_t k = ddp->reducer->plan.n_buckets; k-- > 0;)
        if (wait_bucket(ddp, k) != BRG_OK && first.code == BRG_OK)
            brg__error_save(&first);
    if (first.code != BRG_OK)
        brg__error_restore(&first);
    return first.code;
}

brg_status brg_ddp_wait_params(brg_ddp *ddp, const brg_tensor *param)
{
    BRG_TRY(check_is_sharded("brg_ddp_wait_params", ddp));
    if (ddp->weights.n_in_flight == 0)
        return BRG_OK;
    if (!param)
        return wait_all(ddp);
    const brg__ddp_param *p = brg__ddp_find(ddp, param);
    /* What is not reduced is not on its way. */
    return p ? wait_bucket(ddp, ddp->reducer->members[p->index].bucket)
             : BRG_OK;
}

/* ---- Norms ------------------------------------------------------------------------ */

brg_status brg__shard_add_norms(brg_ddp *ddp, double *norm)
{
    double sum = *norm * *norm;
    brg_work *work;
    BRG_TRY(
        brg_all_reduce(ddp->pg, &work, &sum, 1, BRG_DTYPE_F64, BRG_REDUCE_SUM));
    BRG_TRY(brg_work_wait(work));
    *norm = sqrt(sum);
    return BRG_OK;
}
