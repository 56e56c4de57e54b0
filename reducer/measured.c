/* SPDX-License-Identifier: Apache-2.0
 * Buckets by measurement (BRG_BUCKETS_MEASURED), once a reducer (a ddp that is
 * refreshed or regrouped has a new one): the first steps have been recorded,
 * the group is timed, rank 0 chooses, all take what it says. Whether all have
 * the same plan then, the marks in the tail and the label of each bucket's call
 * tell, as always. */
#include "comm/work.h"
#include "core/base/alloc.h"
#include "reducer/leaves.h"
#include "reducer/profile.h"

#define CLOSES 0x80000000u /* with a parameter's number: a part ends here */
#define MOST_MEASURED ((size_t)16 << 20)

brg_status brg__measured_check(brg_reducer *r)
{
    const bool has_leaves = r->options.reduction == BRG_REDUCTION_REPRODUCIBLE;
    const char *what = r->options.hook         ? "a communication hook"
                       : has_leaves            ? "BRG_REDUCTION_REPRODUCIBLE"
                       : r->is_sharded         ? "shard"
                       : r->options.keep_order ? "keep_order"
                       : r->has_groups         ? "bucket_groups"
                       : r->is_rebuilt         ? "gradients that live in slots"
                       : r->device.type != BRG_DEVICE_CPU
                           ? "gradients on a device"
                           : NULL;
    if (what && r->is_default_choice)
        r->options.buckets = BRG_BUCKETS_BY_SIZE;
    if (r->options.buckets == BRG_BUCKETS_BY_SIZE || !what)
        return BRG_OK;
    return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                    "BRG_BUCKETS_MEASURED does not go with %s", what);
}

/* Memory of one decision. */
typedef struct decision {
    int64_t *ready_ns; /* n_params + 1 */
    uint32_t *order;   /* n_params, with CLOSES */
    uint32_t *buckets; /* n_params, by place */
    brg__profile *profile;
    brg_link link;
    int64_t predicted[2]; /* exposed ns: chosen, by size */
    bool has_works;       /* kept for the measurement */
} decision;

static void decision_deinit(brg_reducer *r, decision *d)
{
    if (d->has_works)
        brg__work_unreserve(r->pg, BRG__LINK_WORKS);
    brg__mem_free(d->ready_ns);
    brg__mem_free(d->order);
    brg__mem_free(d->buckets);
    brg_profile_destroy(d->profile ? &d->profile->public : NULL);
}

/* All that a rank may lack alone, while the others go on. */
static bool decision_init(const brg_reducer *r, decision *d)
{
    size_t n = r->n_params;
    *d = (decision){0};
    d->ready_ns =
        brg__mem_alloc_array(n + 1, sizeof *d->ready_ns, "a decision");
    d->order = brg__mem_alloc_array(n, sizeof *d->order, "a decision");
    d->buckets = brg__mem_alloc_array(n, sizeof *d->buckets, "a decision");
    d->has_works = brg__work_reserve(r->pg, BRG__LINK_WORKS) == BRG_OK;
    return d->ready_ns && d->order && d->buckets && d->has_works;
}

/* A bucket starts when the slowest rank has it. */
static brg_status slowest(brg_reducer *r, int64_t *ready_ns)
{
    brg_work *work;
    brg__recording_medians(r, ready_ns);
    BRG_TRY(brg_all_reduce(r->pg, &work, ready_ns, r->n_params + 1,
                           BRG_DTYPE_I64, BRG_REDUCE_MAX));
    return brg_work_wait(work);
}

/* On rank 0: the order, and its parts if they are better than what sizes
 * make. */
static brg_status decide(const brg_reducer *r, decision *d)
{
    brg_schedule by_size, chosen;
    BRG_TRY(brg__profile_order(r, d->ready_ns, d->order));
    BRG_TRY(brg__profile_make(&d->profile, r, d->ready_ns, d->order));
    const brg_profile *profile = &d->profile->public;
    BRG_TRY(brg_schedule_by_size(d->buckets, profile,
                                 r->options.first_bucket_bytes,
                                 r->options.bucket_bytes));
    BRG_TRY(brg_schedule_predict(&by_size, profile, &d->link, d->buckets));
    bool *closes =
        brg__mem_alloc_array(r->n_params, sizeof *closes, "a decision");
    if (!closes)
        return BRG_ERR_NOMEM;
    brg_status status = brg__schedule_parts(closes, profile, &d->link);
    if (status == BRG_OK)
        status = brg__schedule_plan(d->buckets, profile, NULL, closes);
    if (status == BRG_OK)
        status = brg_schedule_predict(&chosen, profile, &d->link, d->buckets);
    if (status == BRG_OK) {
        bool is_better = chosen.exposed_ns < by_size.exposed_ns;
        d->predicted[0] = (int64_t)(is_better ? chosen : by_size).exposed_ns;
        d->predicted[1] = (int64_t)by_size.exposed_ns;
        for (size_t i = 0; is_better && i < r->n_params; i++)
            d->order[i] |= closes[i] ? CLOSES : 0;
    }
    brg__mem_free(closes);
    return status;
}

static brg_status tell(brg_reducer *r, void *data, size_t n, brg_dtype dtype)
{
    brg_work *work;
    BRG_TRY(brg_broadcast(r->pg, &work, data, n, dtype, 0));
    return brg_work_wait(work);
}

/* All ranks have memory. A failure of rank 0's alone (for want of it) is told
 * by times below zero. */
static brg_status settle(brg_reducer *r, decision *d, bool *is_settled)
{
    BRG_TRY(slowest(r, d->ready_ns));
    size_t nbytes = r->plan.nbytes;
    BRG_TRY(brg_link_measure(
        r->pg, nbytes < MOST_MEASURED ? nbytes : MOST_MEASURED, &d->link));
    for (size_t k = 0; k < d->link.n; k++)
        d->link.at[k].busy_ns = 0; /* the times of these steps hold it */
    brg__error_record kept;
    brg__error_save(&kept);
    if (r->rank == 0 && decide(r, d) != BRG_OK)
        d->predicted[0] = -1;
    brg__error_restore(&kept);
    BRG_TRY(tell(r, d->predicted, 2, BRG_DTYPE_I64));
    BRG_TRY(tell(r, d->order, r->n_params, BRG_DTYPE_I32));
    *is_settled = d->predicted[0] >= 0;
    return BRG_OK;
}

brg_status brg__measured_choose(brg_reducer *r, bool *is_settled)
{
    decision d;
    brg__error_record kept;
    bool all_have = false;
    *is_settled = false;
    brg__error_save(&kept);
    bool has_memory = decision_init(r, &d);
    brg__error_restore(&kept);
    brg_status status = brg__reducer_agree(r, has_memory, &all_have);
    if (status == BRG_OK && all_have)
        status = settle(r, &d, is_settled);
    if (status == BRG_OK && *is_settled) {
        r->stats.predicted_wait_ns = (uint64_t)d.predicted[0];
        r->stats.predicted_by_size_ns = (uint64_t)d.predicted[1];
        for (size_t i = 0; i < r->n_params; i++) {
            r->arrivals[i] = d.order[i] & ~CLOSES;
            r->closes[i] = (d.order[i] & CLOSES) != 0;
            r->has_closes |= r->closes[i];
        }
    }
    decision_deinit(r, &d);
    return status;
}
