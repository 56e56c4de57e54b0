/* SPDX-License-Identifier: Apache-2.0
 * The hook that sends gradients in 8 bits: blocks of comm/q8.h, which one
 * all-reduce sums. A parameter begins a block of its own, so that no two share
 * a scale; gaps between parameters are not sent. */
#include <string.h>

#include "comm/pg.h"
#include "comm/q8.h"
#include "core/base/alloc.h"
#include "core/ops/convert.h"
#include "core/tensor/tensor.h"
#include "reducer/hooks/hook.h"

#define BATCH (32 * BRG__Q8_N) /* elements on the stack at once */

typedef struct q8 {
    bool feeds_back;
    brg__hook_state state;
    brg__hook_parts parts; /* by parameter */
    int64_t *steps;        /* of the state: begun so far */
} q8;

static brg_status q8_attach(void *user, const brg_hook_param *params, size_t n)
{
    q8 *h = user;
    brg_tensor *steps;
    bool is_new;
    BRG_TRY(brg__hook_state_get(&h->state, &steps, "steps", "", BRG_DTYPE_I64,
                                1, &is_new));
    h->steps = brg_tensor_data(steps);
    return brg__hook_parts_make(&h->parts, &h->state, params, n, h->feeds_back);
}

static size_t n_blocks(const q8 *h, const brg_hook_bucket *b)
{
    size_t n = 0;
    for (size_t k = 0; k < b->n_params; k++)
        n += brg__q8_blocks(h->parts.at[b->params[k]].count);
    return n;
}

static size_t q8_wire_bytes(void *user, const brg_hook_bucket *b)
{
    return brg__hook_is_wide(b->dtype) ? n_blocks(user, b) * BRG__Q8_NBYTES : 0;
}

/* One parameter's gradient and the error of the steps before. */
static void send_part(const q8 *h, const brg__hook_part *p, char *blocks,
                      const char *from, brg_dtype dtype)
{
    float x[BATCH];
    for (size_t i = 0; i < p->count; i += BATCH) {
        size_t m = p->count - i < BATCH ? p->count - i : BATCH;
        float *error = p->error ? p->error + i : NULL;
        brg__convert_row(x, BRG_DTYPE_F32, from + i * brg_dtype_size(dtype),
                         dtype, m);
        for (size_t k = 0; error && k < m; k++)
            x[k] += error[k];
        brg__q8_store(blocks, x, error, m, (uint16_t)*h->steps);
        blocks += brg__q8_blocks(m) * BRG__Q8_NBYTES;
    }
}

static brg_status q8_start(void *user, const brg_hook_bucket *b)
{
    const q8 *h = user;
    if (b->index == 0)
        ++*h->steps;
    if (!brg__hook_is_wide(b->dtype))
        return brg__hook_plain_start(b);
    char *blocks = b->wire;
    for (size_t k = 0; k < b->n_params; k++) {
        const brg__hook_part *p = &h->parts.at[b->params[k]];
        send_part(h, p, blocks,
                  (const char *)b->data +
                      b->offsets[k] * brg_dtype_size(b->dtype),
                  b->dtype);
        blocks += brg__q8_blocks(p->count) * BRG__Q8_NBYTES;
    }
    return brg__all_reduce_q8(b->pg, b->work, b->wire, n_blocks(h, b), b->op);
}

static void take_part(const brg__hook_part *p, const char *blocks, char *to,
                      brg_dtype dtype)
{
    float x[BATCH];
    for (size_t i = 0; i < p->count; i += BATCH) {
        size_t m = p->count - i < BATCH ? p->count - i : BATCH;
        brg__q8_load(x, blocks, m);
        brg__convert_row(to + i * brg_dtype_size(dtype), dtype, x,
                         BRG_DTYPE_F32, m);
        blocks += brg__q8_blocks(m) * BRG__Q8_NBYTES;
    }
}

static brg_status q8_finish(void *user, const brg_hook_bucket *b)
{
    const q8 *h = user;
    BRG_TRY(brg__hook_wait(b));
    if (!brg__hook_is_wide(b->dtype))
        return BRG_OK;
    const char *blocks = b->wire;
    for (size_t k = 0; k < b->n_params; k++) {
        const brg__hook_part *p = &h->parts.at[b->params[k]];
        take_part(p, blocks,
                  (char *)b->data + b->offsets[k] * brg_dtype_size(b->dtype),
                  b->dtype);
        blocks += brg__q8_blocks(p->count) * BRG__Q8_NBYTES;
    }
    return BRG_OK;
}

static const brg_named_tensor *q8_state_at(void *user, size_t i)
{
    const q8 *h = user;
    return brg__hook_state_at(&h->state, i);
}

static void q8_destroy(void *user)
{
    q8 *h = user;
    brg__hook_state_deinit(&h->state);
    brg__array_deinit(&h->parts);
    brg__mem_free(h);
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
                             .state_at = q8_state_at,
                             .destroy = q8_destroy};
    brg_status status = brg_comm_hook_create(out, &ops, h);
    if (status != BRG_OK)
        q8_destroy(h);
    return status;
}
