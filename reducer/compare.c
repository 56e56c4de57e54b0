/* SPDX-License-Identifier: Apache-2.0
 * Whether replicas are equal, by hashes of their bits. */
#include <brigade/recover.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/base/alloc.h"
#include "core/base/tracer.h"
#include "core/tensor/shape.h"
#include "reducer/shard.h"
#include "core/base/text.h"
#include "reducer/verify.h"

/* ---- This rank's ------------------------------------------------------------- */

/* A row-major copy in host memory. */
static brg_status copy_home(brg_tensor **out, brg_tensor *t)
{
    brg_tensor *dense;
    BRG_TRY(brg__tensor_new_like(&dense, t, t->device));
    brg_status status = brg__ddp_copy(dense, t);
    *out = NULL;
    if (status == BRG_OK)
        status = brg__tensor_new_like(out, t, BRG_CPU);
    if (status == BRG_OK)
        status = brg__ddp_copy(*out, dense);
    if (status != BRG_OK)
        brg_release(*out);
    brg_release(dense);
    return status;
}

static brg_status hash_tensor(uint64_t *hash, brg_tensor *t)
{
    brg_tensor *there = t;
    bool is_plain = t->device.type == BRG_DEVICE_CPU && t->is_contiguous;
    if (t->numel == 0)
        return BRG_OK;
    if (!is_plain)
        BRG_TRY(copy_home(&there, t));
    *hash = XXH64(brg__tensor_ptr(there), brg_tensor_nbytes(there), *hash);
    if (!is_plain)
        brg_release(there);
    return BRG_OK;
}

brg_status brg__ddp_hash(uint64_t *hash, brg_tensor *const *tensors, size_t n)
{
    for (size_t i = 0; i < n; i++)
        BRG_TRY(hash_tensor(hash, tensors[i]));
    return BRG_OK;
}

static brg_status hash_all(uint64_t *hash, const brg_ddp *ddp)
{
    *hash = 0;
    return brg__ddp_hash(hash, ddp->tensors, ddp->n_tensors);
}

/* ---- All ranks' --------------------------------------------------------------- */

static int n_alike(const uint64_t *all, int n, int rank)
{
    int found = 0;
    for (int r = 0; r < n; r++)
        found += all[r] == all[rank];
    return found;
}

static brg_status fail_divided(const brg_pg *pg, const uint64_t *all)
{
    int other = 0;
    while (all[other] == all[0])
        other++;
    return BRG_FAIL(BRG_ERR_MISMATCH,
                    "rank %d: parameters of rank 0 and rank %d "
                    "differ, and no more than half of all ranks are alike",
                    brg_pg_rank(pg), other);
}

/* Rank `right` has what most have. */
static brg_status fail_odd(const brg_pg *pg, const uint64_t *all, int n,
                           int right)
{
    int rank = brg_pg_rank(pg), n_odd = n - n_alike(all, n, right), n_shown = 0;
    char names[120];
    brg__text text = brg__text_begin(names, sizeof names);
    brg__text_add(&text, n_odd == 1 ? "rank" : "ranks");
    for (int r = 0; r < n; r++)
        if (all[r] != all[right] && n_shown < 8)
            brg__text_add(&text, "%s %d", n_shown++ ? "," : "", r);
    if (n_odd > n_shown)
        brg__text_add(&text, " and %d more", n_odd - n_shown);
    return BRG_FAIL(all[rank] == all[right] ? BRG_ERR_PEER : BRG_ERR_MISMATCH,
                    "rank %d: parameters of %s differ from those "
                    "of the other ranks",
                    rank, names);
}

static brg_status judge(const brg_pg *pg, const uint64_t *all, int n)
{
    int best = 0;
    for (int r = 1; r < n; r++)
        if (n_alike(all, n, r) > n_alike(all, n, best))
            best = r;
    int n_best = n_alike(all, n, best);
    if (n_best == n)
        return BRG_OK;
    return 2 * n_best > n ? fail_odd(pg, all, n, best) : fail_divided(pg, all);
}

brg_status brg_ddp_compare(brg_ddp *ddp)
{
    BRG_CHECK_ARG(ddp, "brg_ddp_compare: the ddp is NULL");
    BRG_TRY(brg__tracer_outside("brg_ddp_compare"));
    int n = brg_pg_world_size(ddp->pg);
    uint64_t mine = 0;
    uint64_t *all =
        brg__mem_alloc_array((size_t)n, sizeof *all, "hashes of ranks");
    brg_work *work;
    brg__agreement agreement = {.what = "brg_ddp_compare",
                                .status = all ? BRG_OK : BRG_ERR_NOMEM};
    if (all)
        agreement.status = brg__shard_check(ddp, "brg_ddp_compare");
    if (agreement.status == BRG_OK)
        agreement.status = hash_all(&mine, ddp);
    brg_status status = brg__verify_ranks(ddp->pg, &agreement);
    if (status == BRG_OK)
        status = brg_all_gather(ddp->pg, &work, all, &mine, 1, BRG_DTYPE_I64);
    if (status == BRG_OK)
        status = brg_work_wait(work);
    if (status == BRG_OK)
        status = judge(ddp->pg, all, n);
    brg__mem_free(all);
    return status;
}
