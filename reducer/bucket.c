/* SPDX-License-Identifier: Apache-2.0
 * The state machine of one bucket. See bucket.h. */
#include "reducer/bucket.h"

#include "comm/pg.h"
#include "core/base/assert.h"
#include "core/base/error.h"
#include "core/base/log.h"

void brg__bucket_arm(brg__bucket *bucket)
{
    brg_assert(bucket->state != BRG__BUCKET_LAUNCHED);
    bucket->n_waiting = bucket->n_params;
    bucket->state =
        bucket->n_params > 0 ? BRG__BUCKET_PENDING : BRG__BUCKET_READY;
}

void brg__bucket_arrive(brg__bucket *bucket)
{
    brg_assert(bucket->state == BRG__BUCKET_PENDING && bucket->n_waiting > 0);
    if (--bucket->n_waiting == 0)
        bucket->state = BRG__BUCKET_READY;
}

/* In place: this rank's piece of the result stays where it lies. */
static brg_status scatter(brg__bucket *bucket, brg_pg *pg, brg_reduce_op op)
{
    size_t n = bucket->count / (size_t)brg_pg_world_size(pg);
    char *mine = (char *)bucket->data +
                 (size_t)brg_pg_rank(pg) * n * brg_dtype_size(bucket->dtype);
    return brg_reduce_scatter(pg, &bucket->work, mine, bucket->data, n,
                              bucket->dtype, op);
}

brg_status brg__bucket_launch(brg__bucket *bucket, brg_pg *pg, brg_reduce_op op)
{
    brg_assert(bucket->state == BRG__BUCKET_READY);
    bucket->launch_ns = brg__pg_clock_ns(pg);
    if (bucket->parts.n_leaves)
        BRG_TRY(brg_sum_leaves(pg, &bucket->work, bucket->data, &bucket->parts,
                               bucket->count, bucket->dtype, op));
    else if (bucket->is_sharded)
        BRG_TRY(scatter(bucket, pg, op));
    else
        BRG_TRY(brg_all_reduce(pg, &bucket->work, bucket->data, bucket->count,
                               bucket->dtype, op));
    bucket->state = BRG__BUCKET_LAUNCHED;
    return BRG_OK;
}

brg_status brg__bucket_wait(brg__bucket *bucket, const brg_pg *pg)
{
    brg_assert(bucket->state == BRG__BUCKET_LAUNCHED);
    brg_status status = brg_work_wait(bucket->work);
    bucket->work = NULL;
    bucket->done_ns = brg__pg_clock_ns(pg);
    bucket->state = BRG__BUCKET_REDUCED;
    return status;
}

void brg__bucket_end(brg__bucket *bucket, const brg_pg *pg)
{
    if (bucket->work) {
        brg__error_record kept;
        brg__error_save(&kept);
        if (brg_work_wait(bucket->work) != BRG_OK)
            brg__log(BRG_LOG_DEBUG, "reducer", "%s", brg_error_message());
        brg__error_restore(&kept);
    }
    bucket->work = NULL;
    bucket->done_ns = brg__pg_clock_ns(pg);
    bucket->state = BRG__BUCKET_REDUCED;
}

bool brg__bucket_drop(brg__bucket *bucket)
{
    bool is_over = brg_work_test(bucket->work);
    brg_work_release(bucket->work);
    bucket->work = NULL;
    bucket->state = BRG__BUCKET_REDUCED;
    return is_over;
}
