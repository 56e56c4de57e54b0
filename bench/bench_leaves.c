/* SPDX-License-Identifier: Apache-2.0
 * The reproducible sum (brg_sum_leaves) against the default all-reduce, in
 * memory of brg_pg_alloc: what one order at any world size costs. */
#include <stdio.h>
#include <string.h>

#include <brigade/ext/backend.h>

#include "bench/bench.h"
#include "bench/ranks.h"

enum { N_PASSES = 41 };
#define MAX_BYTES ((size_t)64 << 20)
#define LEAVES 8 /* runs that are nodes of the tree at 1, 2, 4, 8 ranks */

typedef struct contest {
    brg_pg *pg;
    char *slots;
    size_t nbytes;
    uint32_t n_leaves;
} contest;

static void reduce_default(const contest *c)
{
    brg_work *work;
    bench_must(brg_all_reduce(c->pg, &work, c->slots, c->nbytes / sizeof(float),
                              BRG_DTYPE_F32, BRG_REDUCE_AVG));
    bench_must(brg_work_wait(work));
}

static void reduce_leaves(const contest *c)
{
    brg_work *work;
    brg_leaf_parts parts = {c->slots, c->nbytes, c->n_leaves};
    bench_must(brg_sum_leaves(c->pg, &work, c->slots, &parts,
                              c->nbytes / sizeof(float), BRG_DTYPE_F32,
                              BRG_REDUCE_AVG));
    bench_must(brg_work_wait(work));
}

/* Seconds of one call; the slowest rank counts. */
static double time_calls(const contest *c, void (*reduce)(const contest *),
                         int n_calls)
{
    bench_barrier();
    const double start = bench_seconds();
    for (int i = 0; i < n_calls; i++)
        reduce(c);
    return bench_max(bench_seconds() - start) / n_calls;
}

/* Ones in every part: their average is the share of a leaf in them. */
static void check(const contest *c, uint32_t n_parts)
{
    float *x = (float *)(void *)c->slots;
    const size_t n = c->nbytes / sizeof(float);
    for (size_t i = 0; i < n * n_parts; i++)
        x[i] = 1;
    const double total = bench_max((double)n_parts); /* alike on all ranks */
    reduce_leaves(c);
    for (size_t i = 0; i < n; i++)
        if (x[i] !=
            (float)total * (float)brg_pg_world_size(c->pg) / (float)c->n_leaves)
            bench_fail("the reproducible sum is wrong");
    memset(c->slots, 0, c->nbytes * n_parts);
}

static void run_size(const contest *c, bool is_judged)
{
    const int n_calls = c->nbytes < 1 << 20 ? (int)((16u << 20) / c->nbytes)
                        : c->nbytes < (32 << 20)
                            ? (int)((48u << 20) / c->nbytes)
                            : 1;
    bench_pairs pairs = {0};
    for (int pass = -1; pass < N_PASSES; pass++) {
        const double before = bench_switches();
        /* Who is first has the other's buffers in the cache, or has not. */
        double leaves = 0, plain = 0;
        for (int i = 0; i < 2; i++)
            if ((pass + i) % 2 == 0)
                leaves = time_calls(c, reduce_leaves, n_calls);
            else
                plain = time_calls(c, reduce_default, n_calls);
        if (pass >= 0)
            bench_pairs_add(&pairs, leaves, plain,
                            bench_max(bench_switches() - before));
    }
    if (brg_pg_rank(c->pg) != 0)
        return;
    char prefix[32];
    if (c->nbytes < (size_t)1 << 20)
        snprintf(prefix, sizeof prefix, "leaves.%zuKB", c->nbytes >> 10);
    else
        snprintf(prefix, sizeof prefix, "leaves.%zuMB", c->nbytes >> 20);
    const double ratio = bench_pairs_ratio(&pairs, 0.5);
    if (is_judged && c->nbytes >= (size_t)1 << 20)
        bench_at_most(bench_name(prefix, "ratio"), ratio, "x", 1.10);
    else
        bench_print(bench_name(prefix, "ratio"), ratio, "x");
    bench_print(bench_name(prefix, "time"), 1e6 * bench_pairs_a(&pairs), "us");
    bench_print(bench_name(prefix, "default_time"), 1e6 * bench_pairs_b(&pairs),
                "us");
}

/* The loop itself, on one rank: a tree of 8 sources against 8 in a row. */
static void run_kernel(const contest *c)
{
    enum { N_SRC = 8, COUNT = 1 << 16, N_CALLS = 20 };
    static const uint8_t merges[N_SRC] = {0, 1, 0, 2, 0, 1, 0, 3};
    const brg_host *host = brg_host_get();
    const void *src[N_SRC];
    void *dst = c->slots + N_SRC * COUNT * sizeof(float);
    bench_pairs pairs = {0};
    for (size_t k = 0; k < N_SRC; k++)
        src[k] = c->slots + k * COUNT * sizeof(float);
    brg_reduction r = {.src = src,
                       .dst = &dst,
                       .n_src = N_SRC,
                       .n_dst = 1,
                       .count = COUNT,
                       .dtype = BRG_DTYPE_F32,
                       .op = BRG_REDUCE_AVG,
                       .divisor = N_SRC};
    for (int pass = 0; pass < 2 * N_PASSES; pass++) {
        double seconds[2];
        const double before = bench_switches();
        for (int is_tree = 0; is_tree < 2; is_tree++) {
            r.merges = is_tree ? merges : NULL;
            const double start = bench_seconds();
            for (int i = 0; i < N_CALLS; i++)
                host->reduce(&r);
            seconds[is_tree] = bench_seconds() - start;
        }
        bench_pairs_add(&pairs, seconds[1], seconds[0],
                        bench_switches() - before);
    }
    if (brg_pg_rank(c->pg) == 0)
        bench_at_most("leaves.tree_of_8.ratio", bench_pairs_ratio(&pairs, 0.5),
                      "x", 1.10);
}

int main(int argc, char **argv)
{
    contest c = {.pg = bench_ranks_begin(&argc, &argv), .n_leaves = LEAVES};
    brg_leaf_run run;
    void *slots;
    const int rank = brg_pg_rank(c.pg), n = brg_pg_world_size(c.pg);
    bench_must(brg_leaf_run_of(&run, c.n_leaves, rank, n));
    const bool is_even =
        -bench_max(-(double)run.n_parts) == bench_max((double)run.n_parts);
    bench_must(brg_pg_alloc(c.pg, &slots, run.n_slots * MAX_BYTES));
    c.slots = slots;
    run_kernel(&c);
    for (c.nbytes = 65536; c.nbytes <= MAX_BYTES; c.nbytes *= 4) {
        if (is_even)
            check(&c, run.n_parts);
        run_size(&c, is_even && run.n_parts == 1);
    }
    bench_ranks_end(c.pg);
    return 0;
}
