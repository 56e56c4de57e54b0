/* SPDX-License-Identifier: Apache-2.0
 * The hook that sends gradients in 16 bits. The wire holds the same elements
 * at the same places as the bucket, half as wide or a quarter. */
#include <math.h>
#include <string.h>

#include "comm/pg.h"
#include "core/base/alloc.h"
#include "core/base/error.h"
#include "core/ops/convert.h"
#include "core/ops/op.h"
#include "reducer/device_row.h"
#include "reducer/hooks/hook.h"

#define BLOCK 256

typedef struct cast {
    brg_dtype wire;
    bool feeds_back;
    brg__hook_state state;
    brg__hook_parts parts; /* by parameter */
} cast;

static brg_status cast_attach(void *user, const brg_hook_param *params,
                              size_t n)
{
    cast *c = user;
    return brg__hook_parts_make(&c->parts, &c->state, params, n, c->feeds_back);
}

static size_t cast_wire_bytes(void *user, const brg_hook_bucket *b)
{
    (void)user;
    return brg__hook_is_wide(b->dtype) ? b->count * sizeof(uint16_t) : 0;
}

/* n elements to the wire; what rounding took goes to error[0..n), but nothing
 * of what is not finite, which would never leave it again. */
static void send_with_error(const cast *c, uint16_t *wire, const void *from,
                            brg_dtype dtype, float *error, size_t n)
{
    float x[BLOCK], rounded[BLOCK];
    for (size_t i = 0; i < n; i += BLOCK) {
        size_t m = n - i < BLOCK ? n - i : BLOCK;
        brg__convert_row(x, BRG_DTYPE_F32,
                         (const char *)from + i * brg_dtype_size(dtype), dtype,
                         m);
        for (size_t k = 0; k < m; k++)
            x[k] += error[i + k];
        brg__convert_row(wire + i, c->wire, x, BRG_DTYPE_F32, m);
        brg__convert_row(rounded, BRG_DTYPE_F32, wire + i, c->wire, m);
        for (size_t k = 0; k < m; k++) {
            float left = x[k] - rounded[k];
            error[i + k] = isfinite(left) ? left : 0;
        }
    }
}

/* Parameter by parameter, with zeros in the gaps. */
static void send_parts(const cast *c, const brg_hook_bucket *b)
{
    uint16_t *wire = b->wire;
    size_t item = brg_dtype_size(b->dtype);
    for (size_t k = 0; k < b->n_params; k++) {
        const brg__hook_part *p = &c->parts.at[b->params[k]];
        size_t at = b->offsets[k], end = at + p->count;
        size_t next = k + 1 < b->n_params ? b->offsets[k + 1] : b->count;
        send_with_error(c, wire + at, (const char *)b->data + at * item,
                        b->dtype, p->error, p->count);
        memset(wire + end, 0, (next - end) * sizeof *wire);
    }
}

/* All elements of a bucket, by the kernels of its device. */
static brg_status convert_there(brg_device device, void *to, brg_dtype to_dtype,
                                void *from, brg_dtype from_dtype, size_t n)
{
    brg__device_row a, b;
    return brg__copy_now(brg__device_row_of(&a, device, to, to_dtype, n),
                         brg__device_row_of(&b, device, from, from_dtype, n));
}

static brg_status cast_start(void *user, const brg_hook_bucket *b)
{
    const cast *c = user;
    if (!brg__hook_is_wide(b->dtype))
        return brg__hook_plain_start(b);
    const brg_device d = brg__pg_device(b->pg);
    if (d.type != BRG_DEVICE_CPU)
        BRG_TRY(
            convert_there(d, b->wire, c->wire, b->data, b->dtype, b->count));
    else if (c->feeds_back)
        send_parts(c, b);
    else
        brg__convert_row(b->wire, c->wire, b->data, b->dtype, b->count);
    return brg_all_reduce(b->pg, b->work, b->wire, b->count, c->wire, b->op);
}

static brg_status cast_finish(void *user, const brg_hook_bucket *b)
{
    const cast *c = user;
    const brg_device d = brg__pg_device(b->pg);
    BRG_TRY(brg__hook_wait(b));
    if (!brg__hook_is_wide(b->dtype))
        return BRG_OK;
    if (d.type != BRG_DEVICE_CPU)
        return convert_there(d, b->data, b->dtype, b->wire, c->wire, b->count);
    brg__convert_row(b->data, b->dtype, b->wire, c->wire, b->count);
    return BRG_OK;
}

static const brg_named_tensor *cast_state_at(void *user, size_t i)
{
    const cast *c = user;
    return brg__hook_state_at(&c->state, i);
}

static void cast_destroy(void *user)
{
    cast *c = user;
    brg__hook_state_deinit(&c->state);
    brg__array_deinit(&c->parts);
    brg__mem_free(c);
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
                             .state_at = cast_state_at,
                             .destroy = cast_destroy,
                             .works_on_devices = !error_feedback};
    brg_status status = brg_comm_hook_create(out, &ops, c);
    if (status != BRG_OK)
        cast_destroy(c);
    return status;
}
