/* SPDX-License-Identifier: Apache-2.0
 * All-reduce of a bucket (memory of brg_pg_alloc) against MPI_Allreduce and
 * against the floor: read, add and write at memory speed. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <mpi.h>

#include "bench/bench.h"
#include "bench/ranks.h"

enum { N_PASSES = 31, N_FRESH_PASSES = 9 };
#define MAX_BYTES ((size_t)64 << 20)

typedef struct contest {
    brg_pg *pg;
    bench_floor *floor;
    float *bucket; /* of the group */
    float *plain;  /* for MPI */
    bool is_printing;
} contest;

static void reduce_ours(const contest *c, size_t nbytes)
{
    brg_work *work;
    bench_must(brg_all_reduce(c->pg, &work, c->bucket, nbytes / sizeof(float),
                              BRG_DTYPE_F32, BRG_REDUCE_SUM));
    bench_must(brg_work_wait(work));
}

static void reduce_mpi(const contest *c, size_t nbytes)
{
    MPI_Allreduce(MPI_IN_PLACE, c->plain, (int)(nbytes / sizeof(float)),
                  MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
}

static void reduce_floor(const contest *c, size_t nbytes)
{
    bench_floor_run(c->floor, nbytes);
}

typedef void (*reduce_fn)(const contest *c, size_t nbytes);

/* Seconds of one call; the slower rank counts. */
static double time_calls(const contest *c, reduce_fn reduce, size_t nbytes,
                         int n_calls)
{
    bench_barrier();
    const double start = bench_seconds();
    for (int i = 0; i < n_calls; i++)
        reduce(c, nbytes);
    return bench_max(bench_seconds() - start) / n_calls;
}

/* The same where each rank has just written its buffer, as a backward pass
 * has: nothing of the peer's half is in this core's cache. */
static double time_fresh(const contest *c, reduce_fn reduce, float *buffer,
                         size_t nbytes)
{
    enum { N_CALLS = 40 };
    double seconds[N_CALLS];
    for (int i = 0; i < N_CALLS; i++) {
        memset(buffer, 0, nbytes);
        bench_barrier();
        const double start = bench_seconds();
        reduce(c, nbytes);
        seconds[i] = bench_seconds() - start;
    }
    return bench_max(bench_median(seconds, N_CALLS));
}

static void check_sums(const contest *c, size_t nbytes)
{
    const size_t n = nbytes / sizeof(float);
    const int rank = brg_pg_rank(c->pg);
    for (size_t i = 0; i < n; i++)
        c->bucket[i] = c->plain[i] = (float)(i % 1000) + (float)(1000 * rank);
    reduce_ours(c, nbytes);
    reduce_mpi(c, nbytes);
    for (size_t i = 0; i < n; i++)
        if (c->bucket[i] != (float)(2 * (i % 1000) + 1000) ||
            c->bucket[i] != c->plain[i])
            bench_fail("the all-reduce gave a wrong sum");
    memset(c->bucket, 0, nbytes);
    memset(c->plain, 0, nbytes);
}

static double target_for(size_t nbytes)
{
    return nbytes >= (size_t)64 << 20 ? 5 : nbytes >= (size_t)16 << 20 ? 2 : 3;
}

static void print_size(size_t nbytes, const bench_pairs *mpi_ours,
                       const bench_pairs *floor_ours, double fresh_ratio)
{
    char prefix[32];
    if (nbytes < (size_t)1 << 20)
        snprintf(prefix, sizeof(prefix), "allreduce.%zuKB", nbytes >> 10);
    else
        snprintf(prefix, sizeof(prefix), "allreduce.%zuMB", nbytes >> 20);
    bench_at_least(bench_name(prefix, "speedup"),
                   bench_pairs_ratio(mpi_ours, 0.5), "x", target_for(nbytes));
    bench_print(bench_name(prefix, "time"), 1e6 * bench_pairs_b(mpi_ours),
                "us");
    bench_print(bench_name(prefix, "mpi_time"), 1e6 * bench_pairs_a(mpi_ours),
                "us");
    bench_print(bench_name(prefix, "of_memory_bound"),
                100 * bench_pairs_ratio(floor_ours, 0.5), "%");
    if (fresh_ratio > 0)
        bench_print(bench_name(prefix, "fresh_speedup"), fresh_ratio, "x");
}

static void run_size(const contest *c, size_t nbytes)
{
    check_sums(c, nbytes);
    /* about 10 ms a pass at a few GB/s */
    const int n_calls = nbytes < 8192         ? 4000
                        : nbytes < 1 << 20    ? (int)((32u << 20) / nbytes)
                        : nbytes < (32 << 20) ? (int)((64u << 20) / nbytes)
                                              : 1;
    bench_pairs mpi_ours = {0}, floor_ours = {0}, fresh = {0};
    for (int pass = -1; pass < N_PASSES; pass++) {
        const double before = bench_switches();
        const double ours = time_calls(c, reduce_ours, nbytes, n_calls);
        const double mpi = time_calls(c, reduce_mpi, nbytes, n_calls);
        const double floor = time_calls(c, reduce_floor, nbytes, n_calls);
        if (pass < 0)
            continue; /* first touch */
        const double noise = bench_max(bench_switches() - before);
        bench_pairs_add(&mpi_ours, mpi, ours, noise);
        bench_pairs_add(&floor_ours, floor, ours, noise);
    }
    for (int i = 0; i < N_FRESH_PASSES && nbytes <= 4 << 20; i++) {
        const double before = bench_switches();
        const double ours = time_fresh(c, reduce_ours, c->bucket, nbytes);
        const double mpi = time_fresh(c, reduce_mpi, c->plain, nbytes);
        bench_pairs_add(&fresh, mpi, ours,
                        bench_max(bench_switches() - before));
    }
    if (c->is_printing)
        print_size(nbytes, &mpi_ours, &floor_ours,
                   fresh.n > 0 ? bench_pairs_ratio(&fresh, 0.5) : 0);
}

int main(int argc, char **argv)
{
    contest c = {.pg = bench_ranks_begin(&argc, &argv)};
    c.is_printing = brg_pg_rank(c.pg) == 0;
    void *bucket;
    bench_must(brg_pg_alloc(c.pg, &bucket, MAX_BYTES));
    c.bucket = bucket;
    c.plain = aligned_alloc(4096, MAX_BYTES);
    c.floor = bench_floor_create(MAX_BYTES);
    if (c.plain == NULL)
        bench_fail("out of memory");
    const double before = bench_round_trip_ns();
    for (size_t nbytes = 4096; nbytes <= MAX_BYTES; nbytes *= 4)
        run_size(&c, nbytes);
    const double after = bench_round_trip_ns();
    if (c.is_printing) {
        bench_print("allreduce.round_trip_before", before, "ns");
        bench_print("allreduce.round_trip_after", after, "ns");
    }
    bench_floor_destroy(c.floor);
    free(c.plain);
    brg_pg_free(c.pg, c.bucket);
    bench_ranks_end(c.pg);
    return 0;
}
