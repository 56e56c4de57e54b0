/* SPDX-License-Identifier: Apache-2.0
 * Collectives over NCCL in memory of brg_pg_alloc, one GPU for each rank: the
 * all-reduce as it is, in memory that is registered with NCCL, of bf16 (as it
 * is, and summed in f32), and the reproducible sum of one part for each rank;
 * "direct": without NCCL (BRG_NCCL_SUMS). All in turn, calls one after the
 * other; medians over the rounds. Then 16 all-reduces of f32 in turns one by
 * one and coalesced: until the GPU is done, and what the host takes to queue
 * them.
 *     mpirun -n 2 bench_nccl [rounds [many]]     many: only that */
#include <stdio.h>
#include <stdlib.h>

#include <brigade/brigade.h>
#include <brigade/nccl.h>

#include "bench/bench.h"
#include "bench/ranks.h"

enum {
    PLAIN,
    REGISTERED,
    HALVES,
    WIDE,
    LEAVES,
    DIRECT,
    DIRECT_HALVES,
    DIRECT_LEAVES,
    N_WAYS
};
enum { MAX_ROUNDS = 101 };
#define MAX_BYTES ((size_t)256 << 20)

static const char *const names[N_WAYS] = {
    "f32 us", "registered", "bf16",        "bf16 in f32",
    "leaves", "direct f32", "direct bf16", "direct leaves"};

typedef struct way {
    brg_pg *pg;
    void *data;
    double us[MAX_ROUNDS];
} way;

static brg_device gpu;

static void call(const way *w, int which, size_t nbytes)
{
    brg_work *work;
    const bool half =
        which == HALVES || which == WIDE || which == DIRECT_HALVES;
    const bool leaves = which == LEAVES || which == DIRECT_LEAVES;
    const brg_dtype dtype = half ? BRG_DTYPE_BF16 : BRG_DTYPE_F32;
    const size_t count = nbytes / brg_dtype_size(dtype);
    const brg_leaf_parts parts = {w->data, nbytes,
                                  (uint32_t)brg_pg_world_size(w->pg)};
    bench_must(leaves ? brg_sum_leaves(w->pg, &work, w->data, &parts, count,
                                       dtype, BRG_REDUCE_AVG)
                      : brg_all_reduce(w->pg, &work, w->data, count, dtype,
                                       BRG_REDUCE_AVG));
    bench_must(brg_work_wait(work));
}

static double time_calls(const way *w, int which, size_t nbytes)
{
    const int n_calls = nbytes < (1 << 20) ? 100 : nbytes < (32 << 20) ? 30 : 8;
    for (int i = 0; i < 3; i++)
        call(w, which, nbytes);
    bench_must(brg_device_synchronize(gpu));
    bench_barrier();
    const double start = bench_seconds();
    for (int i = 0; i < n_calls; i++)
        call(w, which, nbytes);
    bench_must(brg_device_synchronize(gpu));
    return 1e6 * bench_max(bench_seconds() - start) / n_calls;
}

static void open_ways(brg_pg *over, way *ways)
{
    for (int k = 0; k < N_WAYS; k++) {
        (void)setenv("BRG_NCCL_REGISTER", k == REGISTERED ? "1" : "0", 1);
        (void)setenv("BRG_NCCL_WIDE_SUMS", k == WIDE ? "1" : "0", 1);
        (void)setenv("BRG_NCCL_SUMS", k >= DIRECT ? "auto" : "nccl", 1);
        bench_must(brg_nccl_create(&ways[k].pg, over, gpu));
        bench_must(brg_pg_alloc(ways[k].pg, &ways[k].data, MAX_BYTES));
    }
}

static void run_size(way *ways, size_t nbytes, int n_rounds, bool prints)
{
    for (int round = 0; round < n_rounds; round++)
        for (int i = 0; i < N_WAYS; i++) {
            const int k = (i + round) % N_WAYS;
            ways[k].us[round] = time_calls(&ways[k], k, nbytes);
        }
    if (!prints)
        return;
    printf("%10zu", nbytes);
    for (int k = 0; k < N_WAYS; k++)
        printf(" %13.1f", bench_median(ways[k].us, (size_t)n_rounds));
    printf("\n");
}

static void run_sizes(way *ways, int n_rounds, bool prints)
{
    if (prints)
        printf("%10s", "bytes");
    for (int k = 0; k < N_WAYS && prints; k++)
        printf(" %13s%s", names[k], k == N_WAYS - 1 ? "\n" : "");
    for (size_t nbytes = 4096; nbytes <= MAX_BYTES; nbytes *= 4)
        run_size(ways, nbytes, n_rounds, prints);
}

/* ---- Many at once ------------------------------------------------------------ */

enum { N_MANY = 16, N_REPEATS = 30 };

static void call_many(const way *w, size_t nbytes, bool is_coalesced)
{
    brg_work *works[N_MANY];
    if (is_coalesced)
        bench_must(brg_coalesce_begin(w->pg));
    for (size_t k = 0; k < N_MANY; k++)
        bench_must(brg_all_reduce(
            w->pg, &works[k], (char *)w->data + k * nbytes,
            nbytes / sizeof(float), BRG_DTYPE_F32, BRG_REDUCE_AVG));
    if (is_coalesced)
        bench_must(brg_coalesce_end(w->pg));
    for (size_t k = 0; k < N_MANY; k++)
        bench_must(brg_work_wait(works[k]));
}

/* us of all 16; *host: of the calls alone, with an idle GPU. */
static double time_many(const way *w, size_t nbytes, bool is_coalesced,
                        double *host)
{
    call_many(w, nbytes, is_coalesced);
    bench_must(brg_device_synchronize(gpu));
    bench_barrier();
    double start = bench_seconds();
    call_many(w, nbytes, is_coalesced);
    *host = 1e6 * bench_max(bench_seconds() - start);
    bench_must(brg_device_synchronize(gpu));
    bench_barrier();
    start = bench_seconds();
    for (int i = 0; i < N_REPEATS; i++)
        call_many(w, nbytes, is_coalesced);
    bench_must(brg_device_synchronize(gpu));
    return 1e6 * bench_max(bench_seconds() - start) / N_REPEATS;
}

static void run_many(const way *w, const char *name, int n_rounds, bool prints)
{
    static double us[2][MAX_ROUNDS], host[2][MAX_ROUNDS];
    for (size_t nbytes = 4096; nbytes <= (1 << 20); nbytes *= 16) {
        for (int round = 0; round < 2 * n_rounds; round++) {
            const bool is_coalesced = round % 2;
            us[is_coalesced][round / 2] = time_many(
                w, nbytes, is_coalesced, &host[is_coalesced][round / 2]);
        }
        if (prints)
            printf("%6s %10zu %13.1f %13.1f %13.1f %13.1f\n", name, nbytes,
                   bench_median(us[0], (size_t)n_rounds),
                   bench_median(us[1], (size_t)n_rounds),
                   bench_median(host[0], (size_t)n_rounds),
                   bench_median(host[1], (size_t)n_rounds));
    }
}

int main(int argc, char **argv)
{
    static way ways[N_WAYS];
    brg_pg *over = bench_ranks_begin(&argc, &argv);
    const int rank = brg_pg_rank(over);
    const int asked = argc > 1 ? atoi(argv[1]) : 9;
    const int n_rounds = asked > MAX_ROUNDS ? MAX_ROUNDS : asked;
    gpu = (brg_device){BRG_DEVICE_CUDA, (int16_t)rank};
    bench_must(brg_device_load("cuda"));
    bench_must(brg_device_set(gpu));
    open_ways(over, ways);
    if (argc <= 2)
        run_sizes(ways, n_rounds, rank == 0);
    if (rank == 0)
        printf("%17s %13s %13s %13s %13s\n", "16 x bytes", "one by one us",
               "coalesced us", "host", "host");
    run_many(&ways[PLAIN], "nccl", n_rounds, rank == 0);
    run_many(&ways[DIRECT], "direct", n_rounds, rank == 0);
    for (int k = 0; k < N_WAYS; k++)
        brg_pg_destroy(ways[k].pg);
    bench_ranks_end(over);
    return 0;
}
