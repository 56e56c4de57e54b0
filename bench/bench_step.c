/* SPDX-License-Identifier: Apache-2.0
 * Trains one model for a while and prints its step time and memory: what
 * torch/compare.py sets against PyTorch, and what to run under a profiler.
 *     mpirun -n 2 bench_step <model> <steps> [compiled | whole]
 *     bench_step <model> <steps> alone [compiled | whole]
 * compiled: its backward is; whole: the step is one plan. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/bench.h"
#include "bench/models.h"
#include "bench/ranks.h"

static void print_run(const bench_model *m, double first_loss, double *seconds,
                      size_t n)
{
    printf("step_ms %.4f\n", 1e3 * bench_median(seconds, n));
    printf("best_ms %.4f\n", 1e3 * seconds[0]);
    printf("loss %.4f %.4f\n", first_loss, m->last_loss);
    printf("rss_mb %.1f\n", bench_memory_mb("VmRSS"));
    printf("hwm_mb %.1f\n", bench_memory_mb("VmHWM"));
}

static bench_mode mode_of(int argc, char **argv)
{
    const char *last = argc > 3 ? argv[argc - 1] : "";
    return strcmp(last, "compiled") == 0 ? BENCH_COMPILED
           : strcmp(last, "whole") == 0  ? BENCH_WHOLE
                                         : BENCH_EAGER;
}

int main(int argc, char **argv)
{
    const size_t n_steps = argc > 2 ? (size_t)atoi(argv[2]) : 0;
    if (n_steps == 0)
        bench_fail(
            "usage: bench_step <model> <steps> [alone] [compiled|whole]");
    const bool is_alone = argc > 3 && strcmp(argv[3], "alone") == 0;
    brg_pg *pg = is_alone ? NULL : bench_ranks_begin(&argc, &argv);
    const int rank = is_alone ? 0 : brg_pg_rank(pg);

    bench_model m;
    bench_model_init(&m, argv[1], 1 + (uint64_t)rank);
    if (!is_alone)
        bench_model_distribute(&m, pg);
    bench_model_step(&m);
    const double first_loss = m.last_loss;
    bench_model_warm_up(&m, 9);
    const bench_mode mode = mode_of(argc, argv);
    (void)bench_model_time_as(&m, mode, 3);
    double *seconds = malloc(n_steps * sizeof(*seconds));
    if (seconds == NULL)
        bench_fail("out of memory");
    for (size_t i = 0; i < n_steps; i++)
        seconds[i] = bench_model_time_as(&m, mode, 1);
    if (rank == 0)
        print_run(&m, first_loss, seconds, n_steps);
    free(seconds);
    bench_model_deinit(&m);
    if (!is_alone)
        bench_ranks_end(pg);
    return 0;
}
