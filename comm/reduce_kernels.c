/* SPDX-License-Identifier: Apache-2.0
 * The walk of a reduction over blocks, sources and destinations, with the
 * loops that suit the processor. */
#include "comm/reduce_kernels.h"

#include <pthread.h>
#include <string.h>

#include "comm/patterns/tree.h"
#include "comm/q8.h"
#include "core/base/assert.h"
#include "core/base/env.h"

size_t brg__partial_size(brg_dtype dtype)
{
    bool is_half = dtype == BRG_DTYPE_F16 || dtype == BRG_DTYPE_BF16;
    return is_half ? sizeof(float) : brg_dtype_size(dtype);
}

/* ---- Instruction sets ------------------------------------------------------ */

#if defined(BRG_HAVE_ISA_AVX512)
/* F16C is older than AVX2; clang 14 knows no name for it here. */
static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static bool has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}

const brg__reduce_table *brg__reduce_table_of(const char *isa)
{
    if (strcmp(isa, "avx512") == 0)
        return has_avx512() ? &brg__reduce_avx512 : NULL;
    if (strcmp(isa, "avx2") == 0)
        return has_avx2() ? &brg__reduce_avx2 : NULL;
    return &brg__reduce_base;
}
#else
const brg__reduce_table *brg__reduce_table_of(const char *isa)
{
    bool is_x86 = strcmp(isa, "avx2") == 0 || strcmp(isa, "avx512") == 0;
    return is_x86 ? NULL : &brg__reduce_base;
}
#endif

static const brg__reduce_table *chosen;
static pthread_once_t choice = PTHREAD_ONCE_INIT;

/* The best that BRG_ISA allows and the processor has. */
static void choose(void)
{
    static const char *const best_first[] = {"avx512", "avx2", "base"};
    const char *highest = brg__env_text(BRG__ENV_ISA);
    size_t i = 0;
    if (strcmp(highest, "base") == 0)
        i = 2;
    else if (strcmp(highest, "avx2") == 0)
        i = 1;
    while (!(chosen = brg__reduce_table_of(best_first[i])))
        i++;
}

/* ---- One block --------------------------------------------------------------
 * The sources are folded into `lane`, which stays in the first cache, and the
 * lane is stored to all destinations. A destination may be a source because
 * all of a block is read before any of it is written. */

#define BLOCK 512 /* elements */

typedef struct block {
    const brg__reduce_row *row;
    const brg_reduction *whole;
    brg__fold fold;
    size_t at;
    size_t n;
    _Alignas(64) unsigned char lane[BLOCK * 8];
    _Alignas(64) unsigned char next[BLOCK * 8];
} block;

static brg__fold fold_of(brg_reduce_op op)
{
    switch (op) {
    case BRG_REDUCE_MIN:
        return BRG__FOLD_MIN;
    case BRG_REDUCE_MAX:
        return BRG__FOLD_MAX;
    case BRG_REDUCE_PROD:
        return BRG__FOLD_PROD;
    case BRG_REDUCE_SUM:
    case BRG_REDUCE_AVG:
        break;
    }
    return BRG__FOLD_SUM;
}

/* The block of source k as partials: where it lies, or unpacked to `room`. */
static const void *read_source(const block *b, size_t k, void *room)
{
    const brg_reduction *r = b->whole;
    const char *src = r->src[k];
    if (r->src_partial || !b->row->load) {
        size_t each = r->src_partial ? brg__partial_size(r->dtype)
                                     : brg_dtype_size(r->dtype);
        return src + b->at * each;
    }
    const void *half = src + b->at * sizeof(uint16_t);
    b->row->load(room, half, b->n);
    return room;
}

static void fold_sources(block *b)
{
    size_t n_src = b->whole->n_src;
    const void *first = read_source(b, 0, b->lane);
    if (n_src == 1 && first != (const void *)b->lane)
        memcpy(b->lane, first, b->n * brg__partial_size(b->whole->dtype));
    for (size_t k = 1; k < n_src; k++) {
        const void *next = read_source(b, k, b->next);
        b->row->fold[b->fold](b->lane, first, next, b->n);
        first = b->lane;
    }
}

/* The same in a tree: a source is pushed, then merges[k] times the newer of
 * the two last results is folded into the older. Results lie in lanes by their
 * place in the stack; a source is read where it lies until it is folded. */
static void fold_tree(block *b)
{
    _Alignas(64) unsigned char lanes[BRG__TREE_MAX_DEPTH][BLOCK * 8];
    const brg_reduction *r = b->whole;
    const void *stack[BRG__TREE_MAX_DEPTH];
    size_t n = 0;
    for (size_t k = 0; k < r->n_src; k++) {
        stack[n] = read_source(b, k, n ? lanes[n] : b->lane);
        n++;
        for (uint8_t m = 0; m < r->merges[k]; m++, n--) {
            void *out = n > 2 ? lanes[n - 2] : b->lane;
            b->row->fold[b->fold](out, stack[n - 2], stack[n - 1], b->n);
            stack[n - 2] = out;
        }
    }
    brg_assert(n == 1);
    if (stack[0] != (const void *)b->lane)
        memcpy(b->lane, stack[0], b->n * brg__partial_size(r->dtype));
}

/* AVG of integers: the wrapped sum, divided towards zero. */
static void divide(void *data, size_t count, brg_dtype dtype, int divisor)
{
    if (dtype == BRG_DTYPE_I64) {
        int64_t *x = data;
        for (size_t i = 0; i < count; i++)
            x[i] /= divisor;
    } else if (dtype == BRG_DTYPE_I32) {
        int32_t *x = data;
        for (size_t i = 0; i < count; i++)
            x[i] /= divisor;
    } else {
        uint8_t *x = data;
        for (size_t i = 0; i < count; i++)
            x[i] = (uint8_t)(x[i] / divisor);
    }
}

/* 1 / n is rounded to the type that it multiplies. */
static void average(block *b)
{
    const brg_reduction *r = b->whole;
    if (!b->row->scale)
        divide(b->lane, b->n, r->dtype, r->divisor);
    else if (r->dtype == BRG_DTYPE_F64)
        b->row->scale(b->lane, 1.0 / r->divisor, b->n);
    else
        b->row->scale(b->lane, (double)(1.0f / (float)r->divisor), b->n);
}

static void write_destinations(block *b)
{
    const brg_reduction *r = b->whole;
    const void *result = b->lane;
    size_t each = brg__partial_size(r->dtype);
    if (!r->dst_partial && b->row->store) {
        each = brg_dtype_size(r->dtype);
        b->row->store((uint16_t *)b->next, (const float *)b->lane, b->n);
        result = b->next;
    }
    for (size_t d = 0; d < r->n_dst; d++)
        memcpy((char *)r->dst[d] + b->at * each, result, b->n * each);
}

void brg__reduce_with(const brg__reduce_table *table, const brg_reduction *r)
{
    brg_assert(r->n_src > 0);
    if (r->dtype == BRG__DTYPE_Q8) {
        brg__q8_reduce(table->q8, r);
        return;
    }
    block b;
    b.row = &table->rows[r->dtype];
    b.whole = r;
    b.fold = fold_of(r->op);
    bool is_tree = r->merges && r->n_src > 2; /* two have one order */
    bool is_average =
        r->op == BRG_REDUCE_AVG && !r->dst_partial && r->divisor > 1;
    for (b.at = 0; b.at < r->count; b.at += b.n) {
        b.n = r->count - b.at < BLOCK ? r->count - b.at : BLOCK;
        if (is_tree)
            fold_tree(&b);
        else
            fold_sources(&b);
        if (is_average)
            average(&b);
        write_destinations(&b);
    }
}

void brg__reduce(const brg_reduction *r)
{
    pthread_once(&choice, choose);
    brg__reduce_with(chosen, r);
}

const brg__q8_loops *brg__q8_chosen(void)
{
    pthread_once(&choice, choose);
    return chosen->q8;
}

/* ---- Sums of nodes ----------------------------------------------------------
 * Block by block: total = partial of the first group; each later group's
 * partial is folded in; the last step rounds and writes out. */

typedef struct block_sum {
    const brg_reduction *whole;
    size_t at;
    size_t n;
    _Alignas(64) unsigned char total[BLOCK * 8];
    _Alignas(64) unsigned char group[BLOCK * 8];
} block_sum;

/* total = total op next, both partials. */
static void fold(const block_sum *b, void *total, const void *next)
{
    brg_reduction r = *b->whole;
    const void *src[2] = {total, next};
    void *dst[1] = {total};
    r.src = src;
    r.dst = dst;
    r.n_src = 2;
    r.n_dst = 1;
    r.count = b->n;
    r.src_partial = true;
    r.dst_partial = true;
    brg__reduce(&r);
}

/* One group's partial of the block into `out`, source by source: the same
 * order of additions as in one pass. */
static void sum_group(const block_sum *b, size_t first, size_t n_src, void *out)
{
    size_t skip = b->at * brg_dtype_size(b->whole->dtype);
    _Alignas(64) unsigned char next[BLOCK * 8];
    brg_reduction r = *b->whole;
    const void *src[1];
    void *dst[1];
    r.src = src;
    r.dst = dst;
    r.n_src = r.n_dst = 1;
    r.count = b->n;
    r.dst_partial = true;
    for (size_t k = 0; k < n_src; k++) {
        src[0] = (const char *)b->whole->src[first + k] + skip;
        dst[0] = k == 0 ? out : next;
        brg__reduce(&r);
        if (k > 0)
            fold(b, out, next);
    }
}

static void finish_block(block_sum *b)
{
    brg_reduction r = *b->whole;
    const void *src[1] = {b->total};
    size_t nbytes = brg_dtype_size(r.dtype);
    r.src = src;
    r.n_src = 1;
    r.count = b->n;
    r.src_partial = true;
    r.n_dst = 1;
    for (size_t d = 0; d < b->whole->n_dst; d++) {
        void *dst[1] = {(char *)b->whole->dst[d] + b->at * nbytes};
        r.dst = dst;
        brg__reduce(&r);
    }
}

void brg__reduce_grouped(const brg_reduction *r, size_t group_size)
{
    if (group_size == 0 || group_size >= r->n_src) {
        brg__reduce(r);
        return;
    }
    if (r->dtype == BRG__DTYPE_Q8) {
        brg__q8_reduce_grouped(r, group_size);
        return;
    }
    block_sum b = {.whole = r};
    for (; b.at < r->count; b.at += b.n) {
        b.n = r->count - b.at < BLOCK ? r->count - b.at : BLOCK;
        sum_group(&b, 0, group_size, b.total);
        for (size_t first = group_size; first < r->n_src; first += group_size) {
            size_t left = r->n_src - first;
            sum_group(&b, first, left < group_size ? left : group_size,
                      b.group);
            fold(&b, b.total, b.group);
        }
        finish_block(&b);
    }
}
