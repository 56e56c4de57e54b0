/* SPDX-License-Identifier: Apache-2.0
 * Collectives between nodes of several ranks over a network that is the limit:
 * in the group's memory, where each node sends its data once, beside ordinary
 * memory, from which it goes flat, and MPI's own, in turn.
 *
 * bench/nodes/run.sh makes the network and runs this. */
#include <stdio.h>
#include <stdlib.h>

#include <mpi.h>

#include <brigade/mpi.h>

#include "bench/bench.h"

#define COUNT ((size_t)1 << 18) /* a rank's, of 4 bytes */
#define N_PASSES 15

typedef enum way { WAY_GROUP, WAY_PLAIN, WAY_MPI, N_WAYS } way;

static const char *const way_names[N_WAYS] = {"group", "plain", "mpi"};

typedef struct buffers {
    float *one; /* COUNT */
    float *all; /* COUNT a rank */
} buffers;

typedef struct setting {
    brg_pg *pg;
    buffers of[N_WAYS];
} setting;

static void finish(brg_status status, brg_work **work)
{
    bench_must(status);
    bench_must(brg_work_wait(*work));
}

static void reduce_scatter(const setting *s, way w)
{
    const buffers *b = &s->of[w];
    brg_work *work;
    if (w == WAY_MPI)
        MPI_Reduce_scatter_block(b->all, b->one, (int)COUNT, MPI_FLOAT, MPI_SUM,
                                 MPI_COMM_WORLD);
    else
        finish(brg_reduce_scatter(s->pg, &work, b->one, b->all, COUNT,
                                  BRG_DTYPE_F32, BRG_REDUCE_SUM),
               &work);
}

static void all_gather(const setting *s, way w)
{
    const buffers *b = &s->of[w];
    brg_work *work;
    if (w == WAY_MPI)
        MPI_Allgather(b->one, (int)COUNT, MPI_FLOAT, b->all, (int)COUNT,
                      MPI_FLOAT, MPI_COMM_WORLD);
    else
        finish(
            brg_all_gather(s->pg, &work, b->all, b->one, COUNT, BRG_DTYPE_F32),
            &work);
}

static void broadcast(const setting *s, way w)
{
    const buffers *b = &s->of[w];
    brg_work *work;
    if (w == WAY_MPI)
        MPI_Bcast(b->one, (int)COUNT, MPI_FLOAT, 0, MPI_COMM_WORLD);
    else
        finish(brg_broadcast(s->pg, &work, b->one, COUNT, BRG_DTYPE_F32, 0),
               &work);
}

/* One leaf a rank. MPI has no such sum: an all-reduce of as much. */
static void sum_leaves(const setting *s, way w)
{
    const buffers *b = &s->of[w];
    brg_work *work;
    brg_leaf_parts parts = {.data = b->all,
                            .stride = COUNT * sizeof(float),
                            .n_leaves = (uint32_t)brg_pg_world_size(s->pg)};
    if (w == WAY_MPI)
        MPI_Allreduce(b->all, b->one, (int)COUNT, MPI_FLOAT, MPI_SUM,
                      MPI_COMM_WORLD);
    else
        finish(brg_sum_leaves(s->pg, &work, b->one, &parts, COUNT,
                              BRG_DTYPE_F32, BRG_REDUCE_SUM),
               &work);
}

static double time_one(const setting *s, way w,
                       void (*run)(const setting *s, way w))
{
    MPI_Barrier(MPI_COMM_WORLD);
    double start = MPI_Wtime(), mine, slowest;
    run(s, w);
    mine = MPI_Wtime() - start;
    MPI_Allreduce(&mine, &slowest, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    return slowest;
}

static void compare(const setting *s, const char *name,
                    void (*run)(const setting *s, way w))
{
    double seconds[N_WAYS][N_PASSES], group = 0;
    for (int pass = -2; pass < N_PASSES; pass++)
        for (int w = 0; w < N_WAYS; w++) {
            double took = time_one(s, (way)w, run);
            if (pass >= 0)
                seconds[w][pass] = took;
        }
    for (int w = 0; w < N_WAYS && brg_pg_rank(s->pg) == 0; w++) {
        char text[64];
        double median = bench_median(seconds[w], N_PASSES);
        group = w == 0 ? median : group;
        snprintf(text, sizeof text, "nodes.%s.%s", name, way_names[w]);
        bench_print(text, 1e3 * median, "ms");
        if (w > 0) {
            snprintf(text, sizeof text, "nodes.%s.%s_ratio", name,
                     way_names[w]);
            bench_print(text, median / group, "x");
        }
    }
}

int main(int argc, char **argv)
{
    setting s = {.pg = NULL};
    MPI_Init(&argc, &argv);
    bench_must(brg_pg_create(&s.pg, "mpi", NULL));
    size_t n = (size_t)brg_pg_world_size(s.pg) * COUNT * sizeof(float);
    for (int w = 0; w < N_WAYS; w++) {
        buffers *b = &s.of[w];
        if (w == WAY_GROUP) {
            bench_must(
                brg_pg_alloc(s.pg, (void **)&b->one, COUNT * sizeof(float)));
            bench_must(brg_pg_alloc(s.pg, (void **)&b->all, n));
        } else {
            b->one = malloc(COUNT * sizeof(float));
            b->all = malloc(n);
        }
        if (!b->one || !b->all)
            bench_fail("no memory");
        bench_fill(b->one, COUNT, 1, 1);
        bench_fill(b->all, n / sizeof(float), 1, 2);
    }
    compare(&s, "reduce_scatter", reduce_scatter);
    compare(&s, "all_gather", all_gather);
    compare(&s, "broadcast", broadcast);
    compare(&s, "sum_leaves", sum_leaves);
    brg_pg_destroy(s.pg);
    for (int w = WAY_PLAIN; w < N_WAYS; w++) {
        free(s.of[w].one);
        free(s.of[w].all);
    }
    MPI_Finalize();
    return 0;
}
