/* SPDX-License-Identifier: Apache-2.0
 * The hook that sends gradients in 8 bits: blocks of comm/q8.h, which one
 * all-reduce sums. A parameter begins a block of its own, so that no two share
 * a scale; gaps between parameters are not sent. */
#include "comm/pg.h"
#include "comm/q8.h"
#include "core/base/alloc.h"
#include "core/ops/op.h"
#include "reducer/hooks/compress.h"

typedef struct q8 {
    brg__hook_parts parts; /* by parameter */
    bool feeds_back;
    brg_tensor *steps; /* of the state: begun so far; with the gradients */
} q8;

static brg_status q8_attach(void *user, const brg_hook_param *params, size_t n)
{
    q8 *h = user;
    bool is_new;
    BRG_TRY(brg__hook_parts_make(&h->parts, params, n));
    BRG_TRY(brg__hook_state_get(&h->parts.state, &h->steps,
                                &(brg__hook_entry){.kind = "steps",
                                                   .name = "",
                                                   .dtype = BRG_DTYPE_I64,
                                                   .count = 1,
                                                   .device = h->parts.device},
                                &is_new));
    return h->feeds_back ? brg__hook_parts_feed_back(&h->parts, params)
                         : BRG_OK;
}

static size_t n_blocks(const q8 *h, const brg_hook_bucket *b)
{
    size_t n = 0;
    for (size_t k = 0; k < b->n_params; k++)
        n += brg__q8_blocks(h->parts.all.at[b->params[k]].count);
    return n;
}

static size_t q8_wire_bytes(void *user, const brg_hook_bucket *b)
{
    return brg__hook_is_wide(b->dtype) ? n_blocks(user, b) * BRG__Q8_NBYTES : 0;
}

/* All parameters of a bucket, to blocks or back. */
static brg_status convert(q8 *h, const brg_hook_bucket *b,
                          brg_compress_rule rule)
{
    brg_compress_job job;
    brg_compress_part *parts = brg__hook_parts_of(&h->parts, b, &job);
    char *blocks = b->wire;
    job.rule = rule;
    job.steps = brg_tensor_data(h->steps);
    for (size_t k = 0; k < b->n_params; k++) {
        parts[k].wire = blocks;
        blocks += brg__q8_blocks(parts[k].count) * BRG__Q8_NBYTES;
    }
    return brg__compress(b->device, &job);
}

static brg_status q8_start(void *user, const brg_hook_bucket *b)
{
    q8 *h = user;
    const brg_tensor *steps = h->steps;
    if (b->index == 0) /* by the device, whose count it is */
        BRG_TRY(brg__pointwise_now(&brg__op_add_scalar, &steps, steps,
                                   (double[2]){1}));
    if (!brg__hook_is_wide(b->dtype))
        return brg__hook_plain_start(b);
    BRG_TRY(convert(h, b, BRG_COMPRESS_TO_Q8));
    return brg__all_reduce_q8(b->pg, b->work, b->wire, n_blocks(h, b), b->op);
}

static brg_status q8_finish(void *user, const brg_hook_bucket *b)
{
    BRG_TRY(brg__hook_wait(b));
    return brg__hook_is_wide(b->dtype) ? convert(user, b, BRG_COMPRESS_FROM_Q8)
                                       : BRG_OK;
}

brg_status brg_comm_hook_create_q8(brg_comm_hook **out, bool error_feedback)
{
    BRG_CHECK_ARG(out, "brg_comm_hook_create_q8: out is NULL");
    *out = NULL;
    q8 *h = BRG__NEW(q8);
    if (!h)
        return BRG_ERR_NOMEM;
    h->feeds_back = error_feedback;
    brg_comm_hook_ops ops = {.struct_size = sizeof ops,
                             .name = error_feedback ? "q8 with error feedback"
                                                    : "q8",
                             .attach = q8_attach,
                             .wire_bytes = q8_wire_bytes,
                             .start = q8_start,
                             .finish = q8_finish,
                             .state_at = brg__hook_parts_state_at,
                             .destroy = brg__hook_parts_destroy,
                             .works_on_devices = true,
                             .version = brg__hook_version};
    brg_status status = brg_comm_hook_create(out, &ops, h);
    if (status != BRG_OK)
        brg__hook_parts_destroy(h);
    return status;
}
