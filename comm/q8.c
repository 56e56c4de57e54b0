/* SPDX-License-Identifier: Apache-2.0
 * Sums of 8-bit blocks, on one level and on two. See q8.h. */
#include "comm/q8.h"

#include <string.h>

#include "comm/local.h"
#include "core/base/assert.h"

void brg__q8_store(void *blocks, const float *x, float *left, size_t n,
                   uint16_t round)
{
    brg__q8_chosen()->store(blocks, x, left, n, round);
}

void brg__q8_load(float *x, const void *blocks, size_t n)
{
    brg__q8_chosen()->load(x, blocks, n);
}

void brg__q8_reduce(const brg__q8_loops *loops, const brg_reduction *r)
{
    bool is_average =
        r->op == BRG_REDUCE_AVG && !r->dst_partial && r->divisor > 1;
    brg_assert(r->n_src > 0 && !r->merges);
    if (r->n_src > 1 || is_average) {
        loops->sum(r, is_average ? 1.0f / (float)r->divisor : 1.0f);
        return;
    }
    for (size_t d = 0; d < r->n_dst; d++) /* nothing to round */
        if (r->dst[d] != r->src[0])
            memcpy(r->dst[d], r->src[0], r->count * BRG__Q8_NBYTES);
}

/* Block by block, as nodes do it: each group's sum is a block, and the result
 * is the sum of those. */
void brg__q8_reduce_grouped(const brg_reduction *r, size_t group_size)
{
    _Alignas(64) unsigned char partials[BRG__LOCAL_MAX_RANKS][BRG__Q8_NBYTES];
    const void *src[BRG__LOCAL_MAX_RANKS];
    void *dst[BRG__LOCAL_MAX_RANKS];
    for (size_t at = 0; at < r->count * BRG__Q8_NBYTES; at += BRG__Q8_NBYTES) {
        brg_reduction one = *r;
        size_t n_groups = 0;
        one.src = src;
        one.dst = dst;
        one.count = one.n_dst = 1;
        one.dst_partial = true;
        for (size_t i = 0; i < r->n_src; i += group_size, n_groups++) {
            one.n_src = r->n_src - i < group_size ? r->n_src - i : group_size;
            for (size_t k = 0; k < one.n_src; k++)
                src[k] = (const char *)r->src[i + k] + at;
            dst[0] = partials[n_groups];
            brg__q8_reduce(brg__q8_chosen(), &one);
        }
        one.src_partial = true;
        one.dst_partial = r->dst_partial;
        one.n_src = n_groups;
        one.n_dst = r->n_dst;
        for (size_t k = 0; k < n_groups; k++)
            src[k] = partials[k];
        for (size_t d = 0; d < r->n_dst; d++)
            dst[d] = (char *)r->dst[d] + at;
        brg__q8_reduce(brg__q8_chosen(), &one);
    }
}
