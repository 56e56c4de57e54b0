/* SPDX-License-Identifier: Apache-2.0
 * A training step on GPUs, one per rank: eager, with a compiled backward, as a
 * compiled step, as a step recorded as one CUDA graph, both of these with
 * kernels for fused groups too, and (one rank alone) with a backward whose ops
 * are recorded. All take turns; medians over the rounds, and how long the host is
 * busy with a call while the GPU is idle.
 *     mpirun -n 1|2 bench_gpu_step mlp-b|gpt [rounds] */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <mpi.h>

#include <brigade/brigade.h>
#include <brigade/mpi.h>
#include <brigade/nccl.h>

#include "bench/bench.h"
#include "bench/models.h"
#include "bench/ranks.h"

enum { EAGER, BACKWARD, STEP, FUSED, LAUNCHED, BOTH, GRADIENTS, N_WAYS };
enum { N_STEPS = 25, N_WARM = 12, MAX_ROUNDS = 200 };

static const char *const names[N_WAYS] = {
    "eager",         "compiled backward", "compiled step",    "fused step",
    "launched step", "fused, launched",   "launched backward"};

typedef struct way {
    bench_model m;
    brg_compiled *compiled;
    double ms[MAX_ROUNDS], host_us[MAX_ROUNDS];
    double loss[2];
    brg_device_counts counts; /* of the timed steps */
} way;

static brg_status step(brg_tensor *const *in, size_t n_in, brg_tensor **out,
                       size_t n_out, void *user)
{
    bench_model here = *(const bench_model *)user;
    (void)n_in;
    (void)n_out;
    here.x = in[0];
    here.y = in[1];
    out[0] = here.loss(&here);
    BRG_TRY(brg_backward(out[0]));
    BRG_TRY(brg_optim_step(here.optim));
    return brg_optim_zero_grad(here.optim, false);
}

static void call(way *w, double *loss)
{
    brg_scope *scope = brg_scope_begin();
    brg_tensor *in[2] = {w->m.x, w->m.y}, *out = NULL;
    bench_must(w->compiled ? brg_compiled_call(w->compiled, in, 2, &out, 1)
                           : step(in, 2, &out, 1, &w->m));
    if (loss)
        bench_must(brg_tensor_item(out, loss));
    brg_scope_end(scope);
}

static void init(way *w, int kind, const char *name, brg_pg *pg)
{
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    options.fullgraph = true;
    options.whole = kind >= STEP && kind != GRADIENTS;
    options.replay = kind >= LAUNCHED;
    if (kind == FUSED || kind == BOTH)
        options.backend = BRG_COMPILE_BACKEND_FUSED;
    bench_model_init(&w->m, name, 1 + (uint64_t)(pg ? brg_pg_rank(pg) : 0));
    if (pg)
        bench_model_distribute(&w->m, pg);
    if (kind != EAGER)
        bench_must(brg_compiled_create(&w->compiled, step, &w->m, &options));
    call(w, &w->loss[0]);
    for (int i = 1; i < N_WARM; i++)
        call(w, &w->loss[1]);
}

static void wait_all(void)
{
    bench_must(brg_device_synchronize(brg_device_get()));
    bench_barrier();
}

static void add_counts(way *w, const brg_device_counts *a)
{
    brg_device_counts b;
    bench_must(brg_device_get_counts(brg_device_get(), &b));
    w->counts.n_waits += b.n_waits - a->n_waits;
    w->counts.n_allocs += b.n_allocs - a->n_allocs;
    w->counts.n_graphs += b.n_graphs - a->n_graphs;
    w->counts.reserved += b.reserved - a->reserved;
}

static void time_round(way *w, int round)
{
    brg_device_counts before;
    double host[N_STEPS];
    wait_all();
    bench_must(brg_device_get_counts(brg_device_get(), &before));
    double start = bench_seconds();
    for (int i = 0; i < N_STEPS; i++)
        call(w, NULL);
    add_counts(w, &before);
    bench_must(brg_device_synchronize(brg_device_get()));
    w->ms[round] = 1e3 * (bench_seconds() - start) / N_STEPS;
    for (int i = 0; i < N_STEPS; i++) {
        wait_all();
        start = bench_seconds();
        call(w, NULL);
        host[i] = 1e6 * (bench_seconds() - start);
    }
    w->host_us[round] = bench_median(host, N_STEPS);
}

static void print_way(const char *name, way *w, size_t rounds, double eager)
{
    const double n = (double)rounds * N_STEPS;
    const double ms = bench_median(w->ms, rounds);
    printf("%-18s %8.4f ms  %6.2f x  host %7.1f us  waits %.2f  allocs %.2f  "
           "graphs %.2f  from the driver %zu  loss %.4f %.4f\n",
           name, ms, eager / ms, bench_median(w->host_us, rounds),
           (double)w->counts.n_waits / n, (double)w->counts.n_allocs / n,
           (double)w->counts.n_graphs / n, w->counts.reserved, w->loss[0],
           w->loss[1]);
}

int main(int argc, char **argv)
{
    static way ways[N_WAYS];
    int n_ranks, rank;
    brg_pg *over, *pg = NULL;
    const char *name = argc > 1 ? argv[1] : "";
    const int rounds = argc > 2 ? atoi(argv[2]) : 15;
    if (rounds < 1 || rounds > MAX_ROUNDS)
        bench_fail("usage: bench_gpu_step mlp-b|gpt [rounds]");
    MPI_Init(&argc, &argv);
    MPI_Comm_size(MPI_COMM_WORLD, &n_ranks);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    bench_must(brg_pg_create(&over, "mpi", NULL));
    bench_must(brg_device_load("cuda"));
    const brg_device device = {BRG_DEVICE_CUDA, (int16_t)rank};
    bench_must(brg_device_set(device));
    if (n_ranks > 1)
        bench_must(brg_nccl_create(&pg, over, device));
    const int n_ways = pg ? GRADIENTS : N_WAYS;
    for (int k = 0; k < n_ways; k++)
        init(&ways[k], k, name, pg);
    for (int r = 0; r < rounds; r++)
        for (int k = 0; k < n_ways; k++)
            time_round(&ways[k], r);
    if (rank == 0) {
        printf("%s, %d rank(s), %d rounds of %d steps\n", name, n_ranks, rounds,
               N_STEPS);
        const double eager = bench_median(ways[EAGER].ms, (size_t)rounds);
        for (int k = 0; k < n_ways; k++)
            print_way(names[k], &ways[k], (size_t)rounds, eager);
        if (ways[LAUNCHED].counts.n_graphs == 0)
            printf("nothing was launched: %s\n", brg_compile_reason());
    }
    wait_all();
    for (int k = 0; k < n_ways; k++) {
        brg_compiled_destroy(ways[k].compiled);
        bench_model_deinit(&ways[k].m);
    }
    brg_pg_destroy(pg);
    brg_pg_destroy(over);
    MPI_Finalize();
    return 0;
}
