/* SPDX-License-Identifier: Apache-2.0
 * Plain MPI beside the library, and how fast two cores can talk at all. */
#include "bench/ranks.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include <mpi.h>

#include <brigade/mpi.h>

brg_pg *bench_ranks_begin(int *argc, char ***argv)
{
    int n_ranks;
    MPI_Init(argc, argv);
    MPI_Comm_size(MPI_COMM_WORLD, &n_ranks);
    if (n_ranks != 2)
        bench_fail("this benchmark wants mpirun -n 2");
    brg_pg *pg;
    bench_must(brg_pg_create(&pg, "mpi", NULL));
    return pg;
}

void bench_ranks_end(brg_pg *pg)
{
    brg_pg_destroy(pg);
    MPI_Finalize();
}

void bench_barrier(void)
{
    MPI_Barrier(MPI_COMM_WORLD);
}

double bench_max(double value)
{
    double most;
    MPI_Allreduce(&value, &most, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    return most;
}

double bench_ranks_time(bench_model *m, int n_steps)
{
    bench_barrier();
    return bench_max(bench_model_time(m, n_steps));
}

void bench_ranks_pairs(bench_pairs *pairs, bench_model *a, bench_model *b,
                       int n_steps, double seconds)
{
    /* alike on both ranks, so that they stop together */
    const double end = bench_max(bench_seconds() + seconds);
    while (pairs->n < BENCH_MAX_PASSES && !(bench_max(bench_seconds()) > end)) {
        const double start = bench_switches();
        const double a_s = bench_ranks_time(a, n_steps);
        const double b_s = bench_ranks_time(b, n_steps);
        bench_pairs_add(pairs, a_s, b_s, bench_max(bench_switches() - start));
    }
}

void bench_ranks_models(brg_pg *pg, int argc, char **argv,
                        void (*run)(brg_pg *pg, const char *model))
{
    for (int i = 0; i < BENCH_N_MODELS; i++)
        if (argc < 2 || strcmp(argv[1], bench_model_names[i]) == 0)
            run(pg, bench_model_names[i]);
}

/* Memory of each rank that both see: of[r] is rank r's. */
typedef struct window {
    MPI_Win win;
    int rank;
    void *of[2];
} window;

static void window_open(window *w, size_t nbytes)
{
    void *mine;
    MPI_Comm_rank(MPI_COMM_WORLD, &w->rank);
    MPI_Win_allocate_shared((MPI_Aint)nbytes, 1, MPI_INFO_NULL, MPI_COMM_WORLD,
                            &mine, &w->win);
    for (int r = 0; r < 2; r++) {
        MPI_Aint size;
        int unit;
        MPI_Win_shared_query(w->win, r, &size, &unit, &w->of[r]);
    }
    memset(mine, 0, nbytes);
    bench_barrier();
}

static void wait_for(_Atomic int *flag, int value)
{
    while (atomic_load_explicit(flag, memory_order_acquire) != value)
        ;
}

double bench_round_trip_ns(void)
{
    enum { N_PASSES = 15, N_ROUNDS = 5000, PAGE = 4096 };
    window w;
    window_open(&w, PAGE);
    _Atomic int *mine = w.of[w.rank], *theirs = w.of[1 - w.rank];
    double ns[N_PASSES];
    int round = 0;
    for (int pass = 0; pass < N_PASSES; pass++) {
        bench_barrier();
        const double start = bench_seconds();
        for (int i = 0; i < N_ROUNDS; i++) {
            round++;
            if (w.rank == 1)
                wait_for(theirs, round);
            atomic_store_explicit(mine, round, memory_order_release);
            if (w.rank == 0)
                wait_for(theirs, round);
        }
        ns[pass] = 1e9 * (bench_seconds() - start) / N_ROUNDS;
    }
    bench_barrier();
    MPI_Win_free(&w.win);
    return bench_median(ns, N_PASSES);
}

struct bench_floor {
    window window;
};

bench_floor *bench_floor_create(size_t max_bytes)
{
    bench_floor *floor = malloc(sizeof(*floor));
    if (floor == NULL)
        bench_fail("out of memory");
    window_open(&floor->window, max_bytes);
    return floor;
}

void bench_floor_destroy(bench_floor *floor)
{
    bench_barrier();
    MPI_Win_free(&floor->window.win);
    free(floor);
}

void bench_floor_run(const bench_floor *floor, size_t nbytes)
{
    const size_t half = nbytes / sizeof(float) / 2;
    const size_t from = floor->window.rank == 0 ? 0 : half;
    float *restrict a = (float *)floor->window.of[0] + from;
    float *restrict b = (float *)floor->window.of[1] + from;
    for (size_t i = 0; i < half; i++) {
        const float sum = a[i] + b[i];
        a[i] = sum;
        b[i] = sum;
    }
}
