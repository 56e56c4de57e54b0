/* SPDX-License-Identifier: Apache-2.0
 * A ddp over the ranks that are left: see recover.h.
 *
 * State is received into copies and taken over when all of it is there: a rank
 * has either what it had before or all that was sent. */
#include <brigade/recover.h>

#include "core/base/alloc.h"
#include "core/base/array.h"
#include "core/base/tracer.h"
#include "core/tensor/shape.h"
#include "reducer/ddp.h"
#include "reducer/verify.h"

/* What a rank has to offer; sent as two numbers. */
typedef struct claim {
    int64_t n_steps;
    uint64_t hash; /* of its parameters and the optimizer's state */
} claim;

typedef struct transfer {
    brg_ddp *ddp;
    brg_optim *optim;
    claim *claims;                   /* of all ranks; owned */
    int source;                      /* rank */
    BRG__ARRAY(brg_tensor *) own;    /* borrowed: what is sent, in order */
    size_t n_alike;                  /* of these: on every rank, by right */
    BRG__ARRAY(brg_tensor *) copies; /* owned, without gaps */
    double lr;
} transfer;

/* ---- What there is ------------------------------------------------------------- */

static brg_status list_state(transfer *t)
{
    const brg_ddp *ddp = t->ddp;
    size_t n_state = t->optim ? brg_optim_state_count(t->optim) : 0;
    t->claims = brg__mem_alloc_array((size_t)brg_pg_world_size(ddp->pg),
                                     sizeof *t->claims, "ranks' steps");
    if (!t->claims)
        return BRG_ERR_NOMEM;
    for (size_t i = 0; i < ddp->n_tensors; i++)
        BRG_TRY(brg__array_push(&t->own, ddp->tensors[i]));
    for (size_t i = 0; i < n_state; i++)
        BRG_TRY(
            brg__array_push(&t->own, brg_optim_state_at(t->optim, i)->tensor));
    t->n_alike = t->own.n;
    for (size_t i = 0; i < ddp->n_buffers; i++)
        BRG_TRY(brg__array_push(&t->own, ddp->buffers[i]));
    return BRG_OK;
}

static brg_status copy_state(transfer *t)
{
    BRG_TRY(brg__array_reserve(&t->copies, t->own.n));
    for (size_t i = 0; i < t->own.n; i++) {
        BRG_TRY(brg__copy_for(&t->copies.at[t->copies.n], t->ddp->pg,
                              t->own.at[i]));
        t->copies.n++;
    }
    return BRG_OK;
}

/* ---- Sending --------------------------------------------------------------------- */

static int count_alike(const claim *all, int n, const claim *c)
{
    int found = 0;
    for (int r = 0; r < n; r++)
        found += all[r].n_steps == c->n_steps && all[r].hash == c->hash;
    return found;
}

/* Of the ranks with most steps, the first whose state most of them have: one
 * may have gone astray in the step that was lost. */
static brg_status choose(transfer *t, const claim *all, int n)
{
    int best = 0, n_best = 0, n_most = 0;
    for (int r = 0; r < n; r++) {
        int alike = count_alike(all, n, &all[r]);
        bool is_more = all[r].n_steps > all[best].n_steps;
        if (all[r].n_steps < all[best].n_steps || (!is_more && alike <= n_best))
            continue;
        best = r;
        n_best = alike;
    }
    for (int r = 0; r < n; r++)
        n_most += all[r].n_steps == all[best].n_steps;
    t->source = best;
    if (2 * n_best > n_most)
        return BRG_OK;
    return BRG_FAIL(BRG_ERR_MISMATCH,
                    "rank %d: brg_ddp_regroup: the state of the %d ranks that "
                    "have made %lld steps differs, and no more than half of "
                    "them are alike; start again from a checkpoint",
                    brg_pg_rank(t->ddp->pg), n_most,
                    (long long)all[best].n_steps);
}

static brg_status find_source(transfer *t, const claim *mine)
{
    brg_work *work;
    BRG_TRY(
        brg_all_gather(t->ddp->pg, &work, t->claims, mine, 2, BRG_DTYPE_I64));
    BRG_TRY(brg_work_wait(work));
    return choose(t, t->claims, brg_pg_world_size(t->ddp->pg));
}

static brg_status send(const transfer *t, void *data, size_t n, brg_dtype dtype)
{
    brg_work *work;
    BRG_TRY(brg_broadcast(t->ddp->pg, &work, data, n, dtype, t->source));
    return brg_work_wait(work);
}

static brg_status send_state(transfer *t)
{
    for (size_t i = 0; i < t->copies.n; i++) {
        brg_tensor *copy = t->copies.at[i];
        if (copy->numel > 0)
            BRG_TRY(send(t, brg__tensor_ptr(copy), (size_t)copy->numel,
                         (brg_dtype)copy->dtype));
    }
    t->lr = t->optim ? brg_optim_lr(t->optim) : 0;
    return send(t, &t->lr, 1, BRG_DTYPE_F64);
}

static brg_status take_over(const transfer *t)
{
    if (brg_pg_rank(t->ddp->pg) == t->source)
        return BRG_OK;
    for (size_t i = 0; i < t->own.n; i++)
        BRG_TRY(brg__ddp_copy(t->own.at[i], t->copies.at[i]));
    return t->optim ? brg_optim_set_lr(t->optim, t->lr) : BRG_OK;
}

static brg_status align(brg_ddp *ddp, brg_optim *optim, int64_t *n_steps)
{
    transfer t = {.ddp = ddp, .optim = optim};
    claim own = {.n_steps = *n_steps};
    brg_status status = list_state(&t);
    if (status == BRG_OK)
        status = copy_state(&t);
    if (status == BRG_OK)
        status = brg__ddp_hash(&own.hash, t.copies.at, t.n_alike);
    brg__agreement mine = {.what = "brg_ddp_regroup", .status = status};
    status = brg__verify_ranks(ddp->pg, &mine);
    if (status == BRG_OK)
        status = find_source(&t, &own);
    if (status == BRG_OK)
        status = send_state(&t);
    if (status == BRG_OK)
        status = take_over(&t);
    if (status == BRG_OK)
        *n_steps = t.claims[t.source].n_steps;
    for (size_t i = 0; i < t.copies.n; i++)
        brg_release(t.copies.at[i]);
    brg__mem_free(t.claims);
    brg__array_deinit(&t.copies);
    brg__array_deinit(&t.own);
    return status;
}

/* ---- Steps queued behind the one that was lost ------------------------------------ */

static uint64_t versions_of(const brg_ddp *ddp)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < ddp->n_params; i++)
        sum += brg_tensor_version(ddp->params[i].leaf);
    return sum;
}

void brg__ddp_note_end(brg_ddp *ddp)
{
    const uint64_t n_sent = ddp->reducer->tail.n_sent;
    if (ddp->n_queued == n_sent)
        return;
    ddp->n_queued = n_sent;
    ddp->versions = versions_of(ddp);
}

/* Parameters may hold an update by sums that were never made: all but the last
 * step must be known, and that one not used yet. A step that was launched again
 * as a whole holds its update. */
static bool is_spoilt(const brg_ddp *ddp)
{
    const brg__device_tail *t = &ddp->reducer->tail;
    if (t->n_known == t->n_sent)
        return false;
    return t->n_sent - t->n_known > 1 || ddp->n_queued != t->n_sent ||
           ddp->versions != versions_of(ddp);
}

/* ---- Public ------------------------------------------------------------------------ */

static brg_status check(const brg_ddp *ddp, const brg_pg *pg,
                        const int64_t *n_steps)
{
    BRG_CHECK_ARG(ddp && pg && n_steps, "brg_ddp_regroup: %s is NULL",
                  !ddp  ? "the ddp"
                  : !pg ? "the group"
                        : "n_steps");
    if (ddp->has_joined)
        return BRG_FAIL(BRG_ERR_STATE,
                        "rank %d: brg_ddp_regroup: a backward is under way",
                        brg_pg_rank(pg));
    if (is_spoilt(ddp))
        return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                        "rank %d: brg_ddp_regroup: an update was queued on the "
                        "device behind a step that may be lost, and may have "
                        "used sums without a meaning (expected brg_ddp_confirm "
                        "before each update); start again from a checkpoint, "
                        "with a new ddp",
                        brg_pg_rank(pg));
    if (ddp->options.shard)
        return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                        "rank %d: brg_ddp_regroup: with shard, the optimizer "
                        "state of a lost rank is lost; start again from a "
                        "checkpoint",
                        brg_pg_rank(pg));
    return BRG_OK;
}

brg_status brg_ddp_regroup(brg_ddp *ddp, brg_pg *pg, brg_optim *optim,
                           int64_t *n_steps)
{
    BRG_TRY(check(ddp, pg, n_steps));
    BRG_TRY(brg__tracer_outside("brg_ddp_regroup"));
    for (size_t i = 0; i < ddp->n_params; i++)
        BRG_TRY(brg_tensor_set_grad(ddp->params[i].leaf, NULL));
    BRG_TRY(brg__ddp_remake(ddp, pg));
    return align(ddp, optim, n_steps);
}
