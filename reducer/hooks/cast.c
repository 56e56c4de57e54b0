/* SPDX-License-Identifier: Apache-2.0
 * The hook that sends gradients in 16 bits. The wire holds the same elements
 * at the same places as the bucket, half as wide or a quarter. */
#include "core/base/alloc.h"
#include "core/base/error.h"
#include "core/ops/convert.h"
#include "core/ops/op.h"
#include "reducer/device_row.h"
#include "reducer/hooks/compress.h"

typedef struct cast {
    brg__hook_parts parts; /* by parameter */
    brg_dtype wire;
    bool feeds_back;
} cast;

static brg_status cast_attach(void *user, const brg_hook_param *params,
                              size_t n)
{
    cast *c = user;
    if (!c->feeds_back)
        return BRG_OK;
    BRG_TRY(brg__hook_parts_make(&c->parts, params, n));
    return brg__hook_parts_feed_back(&c->parts, params);
}

static size_t cast_wire_bytes(void *user, const brg_hook_bucket *b)
{
    (void)user;
    return brg__hook_is_wide(b->dtype) ? b->count * sizeof(uint16_t) : 0;
}

/* Parameter by parameter, with zeros in the gaps. */
static brg_status send_parts(cast *c, const brg_hook_bucket *b)
{
    brg_compress_job job;
    brg_compress_part *parts = brg__hook_parts_of(&c->parts, b, &job);
    job.rule = BRG_COMPRESS_TO_HALF;
    job.wire_dtype = c->wire;
    for (size_t k = 0; k < b->n_params; k++) {
        size_t next = k + 1 < b->n_params ? b->offsets[k + 1] : b->count;
        parts[k].wire = (uint16_t *)b->wire + b->offsets[k];
        parts[k].room = next - b->offsets[k];
    }
    return brg__compress(b->device, &job);
}

/* All elements of a bucket. */
static brg_status convert(brg_device device, void *to, brg_dtype to_dtype,
                          void *from, brg_dtype from_dtype, size_t n)
{
    brg__device_row a, b;
    if (device.type != BRG_DEVICE_CPU)
        return brg__copy_now(
            brg__device_row_of(&a, device, to, to_dtype, n),
            brg__device_row_of(&b, device, from, from_dtype, n));
    brg__convert_row(to, to_dtype, from, from_dtype, n);
    return BRG_OK;
}

static brg_status cast_start(void *user, const brg_hook_bucket *b)
{
    cast *c = user;
    if (!brg__hook_is_wide(b->dtype))
        return brg__hook_plain_start(b);
    BRG_TRY(c->feeds_back ? send_parts(c, b)
                          : convert(b->device, b->wire, c->wire, b->data,
                                    b->dtype, b->count));
    return brg_all_reduce(b->pg, b->work, b->wire, b->count, c->wire, b->op);
}

static brg_status cast_finish(void *user, const brg_hook_bucket *b)
{
    const cast *c = user;
    BRG_TRY(brg__hook_wait(b));
    return brg__hook_is_wide(b->dtype) ? convert(b->device, b->data, b->dtype,
                                                 b->wire, c->wire, b->count)
                                       : BRG_OK;
}

brg_status brg_comm_hook_create_cast(brg_comm_hook **out, brg_dtype wire,
                                     bool error_feedback)
{
    static const char *const names[2][2] = {
        {"cast f16", "cast f16 with error feedback"},
        {"cast bf16", "cast bf16 with error feedback"}};
    BRG_CHECK_ARG(out, "brg_comm_hook_create_cast: out is NULL");
    *out = NULL;
    BRG_CHECK_ARG(wire == BRG_DTYPE_F16 || wire == BRG_DTYPE_BF16,
                  "brg_comm_hook_create_cast: the wire's dtype is %d, expected "
                  "f16 or bf16",
                  (int)wire);
    cast *c = BRG__NEW(cast);
    if (!c)
        return BRG_ERR_NOMEM;
    c->wire = wire;
    c->feeds_back = error_feedback;
    brg_comm_hook_ops ops = {.struct_size = sizeof ops,
                             .name =
                                 names[wire == BRG_DTYPE_BF16][error_feedback],
                             .attach = cast_attach,
                             .wire_bytes = cast_wire_bytes,
                             .start = cast_start,
                             .finish = cast_finish,
                             .state_at = brg__hook_parts_state_at,
                             .destroy = brg__hook_parts_destroy,
                             .works_on_devices = true,
                             .version = brg__hook_version};
    brg_status status = brg_comm_hook_create(out, &ops, c);
    if (status != BRG_OK)
        brg__hook_parts_destroy(c);
    return status;
}
