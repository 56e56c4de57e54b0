/* SPDX-License-Identifier: Apache-2.0
 * Norms of reduced gradients, bucket by bucket, and their scaling. Sums are
 * made in f64, in one order: the same bits wherever the same gradients are,
 * whatever the buckets. */
#include "core/ops/convert.h"
#include "core/ops/squares.h"
#include "reducer/shard.h"

#define BLOCK 256

void brg__norm_measure(brg_reducer *r, size_t k)
{
    const brg__plan_bucket *b = &r->plan.buckets[k];
    for (size_t j = 0; j < b->n_params; j++) {
        brg__member *m = &r->members[r->plan.order[b->first + j]];
        brg_optim_range own =
            brg__shard_of(r, r->plan.order[b->first + j], r->rank);
        const void *at =
            (const char *)m->slot + own.first * brg_dtype_size(m->dtype);
        m->sum_squares = brg__sum_squares(at, m->dtype, own.n);
    }
}

static void scale_narrow(void *at, brg_dtype dtype, size_t n, float factor)
{
    for (size_t i = 0; i < n; i += BLOCK) {
        float block[BLOCK];
        char *from = (char *)at + i * brg_dtype_size(dtype);
        size_t m = n - i < BLOCK ? n - i : BLOCK;
        brg__convert_row(block, BRG_DTYPE_F32, from, dtype, m);
        for (size_t k = 0; k < m; k++)
            block[k] *= factor;
        brg__convert_row(from, dtype, block, BRG_DTYPE_F32, m);
    }
}

void brg__norm_scale(void *at, brg_dtype dtype, size_t n, double factor)
{
    double *f64 = at;
    float *f32 = at, narrow = (float)factor;
    if (dtype == BRG_DTYPE_F64)
        for (size_t i = 0; i < n; i++)
            f64[i] *= factor;
    else if (dtype == BRG_DTYPE_F32)
        for (size_t i = 0; i < n; i++)
            f32[i] *= narrow;
    else
        scale_narrow(at, dtype, n, narrow);
}
