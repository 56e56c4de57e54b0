/* SPDX-License-Identifier: Apache-2.0
 * Adasum: gradients of f32 are not averaged, but added in pairs, each less what
 * the other says already. The wire holds the buckets of all ranks, which every
 * rank adds in the same tree: rank r + 2^k to rank r, level by level. */
#include <string.h>

#include "core/base/error.h"
#include "reducer/hooks/hook.h"

static size_t adasum_wire_bytes(void *user, const brg_hook_bucket *b)
{
    (void)user;
    return b->dtype == BRG_DTYPE_F32
               ? b->count * sizeof(float) * (size_t)brg_pg_world_size(b->pg)
               : 0;
}

static brg_status adasum_start(void *user, const brg_hook_bucket *b)
{
    (void)user;
    if (b->op != BRG_REDUCE_AVG)
        return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                        "the communication hook 'adasum' does not go with "
                        "options.sum: its result is neither");
    if (b->dtype != BRG_DTYPE_F32)
        return brg__hook_plain_start(b);
    return brg_all_gather(b->pg, b->work, b->wire, b->data, b->count, b->dtype);
}

typedef struct products {
    double aa, ab, bb;
} products;

#define N_LANES 8 /* in one order on every machine */

static products multiply(const float *a, const float *b, size_t n)
{
    double aa[N_LANES] = {0}, ab[N_LANES] = {0}, bb[N_LANES] = {0};
    products sum = {0};
    for (size_t i = 0; i < n; i++) {
        const size_t lane = i % N_LANES;
        aa[lane] += (double)a[i] * (double)a[i];
        ab[lane] += (double)a[i] * (double)b[i];
        bb[lane] += (double)b[i] * (double)b[i];
    }
    for (size_t lane = 0; lane < N_LANES; lane++) {
        sum.aa += aa[lane];
        sum.ab += ab[lane];
        sum.bb += bb[lane];
    }
    return sum;
}

/* a = (1 - ab / 2 aa) a + (1 - ab / 2 bb) b */
static void add(float *a, const float *b, size_t n)
{
    const products p = multiply(a, b, n);
    const double of_a = p.aa == 0 ? 1 : 1 - p.ab / (2 * p.aa);
    const double of_b = p.bb == 0 ? 1 : 1 - p.ab / (2 * p.bb);
    for (size_t i = 0; i < n; i++)
        a[i] = (float)(of_a * (double)a[i] + of_b * (double)b[i]);
}

/* Parameter k of all ranks; zeros behind it do no harm. The result is rank
 * 0's. */
static void add_ranks(const brg_hook_bucket *b, size_t k)
{
    const size_t n_ranks = (size_t)brg_pg_world_size(b->pg);
    const size_t first = b->offsets[k];
    const size_t end = k + 1 < b->n_params ? b->offsets[k + 1] : b->count;
    float *all = (float *)b->wire + first;
    for (size_t step = 1; step < n_ranks; step *= 2)
        for (size_t r = 0; r + step < n_ranks; r += 2 * step)
            add(all + r * b->count, all + (r + step) * b->count, end - first);
    memcpy((float *)b->data + first, all, (end - first) * sizeof(float));
}

static brg_status adasum_finish(void *user, const brg_hook_bucket *b)
{
    (void)user;
    BRG_TRY(brg__hook_wait(b));
    for (size_t k = 0; k < b->n_params && b->dtype == BRG_DTYPE_F32; k++)
        add_ranks(b, k);
    return BRG_OK;
}

brg_status brg_comm_hook_create_adasum(brg_comm_hook **out)
{
    brg_comm_hook_ops ops = {.struct_size = sizeof ops,
                             .name = "adasum",
                             .wire_bytes = adasum_wire_bytes,
                             .start = adasum_start,
                             .finish = adasum_finish};
    BRG_CHECK_ARG(out, "brg_comm_hook_create_adasum: out is NULL");
    return brg_comm_hook_create(out, &ops, NULL);
}
