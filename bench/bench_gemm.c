/* SPDX-License-Identifier: Apache-2.0
 * A training step against its matrix products alone, in turn, on one rank: how
 * far the step is from what BLAS allows. Convolutions count as the products of
 * their unfolded form. */
#include <stdio.h>
#include <string.h>

#include "bench/bench.h"
#include "bench/gemm_shapes.h"
#include "bench/models.h"

enum { N_PASSES = 31 };
#define PASS_SECONDS 0.05

static double time_products(const gemm_list *list, int n_steps)
{
    const double start = bench_seconds();
    for (int i = 0; i < n_steps; i++)
        gemm_list_run(list);
    return (bench_seconds() - start) / n_steps;
}

static void run_model(const char *model)
{
    bench_model m;
    gemm_list list;
    bench_model_init(&m, model, 1);
    gemm_list_init_model(&list, model);
    bench_model_warm_up(&m, 5);
    const int n_steps = 1 + (int)(PASS_SECONDS / time_products(&list, 3));
    bench_pairs pairs = {0};
    for (int pass = 0; pass < N_PASSES; pass++) {
        const double before = bench_switches();
        const double step = bench_model_time(&m, n_steps);
        const double products = time_products(&list, n_steps);
        bench_pairs_add(&pairs, step, products, bench_switches() - before);
    }
    char prefix[32];
    snprintf(prefix, sizeof(prefix), "gemm.%s", model);
    const double products_s = bench_pairs_b(&pairs);
    bench_print(bench_name(prefix, "step_to_products"),
                bench_pairs_ratio(&pairs, 0.5), "x");
    bench_print(bench_name(prefix, "step"), 1e3 * bench_pairs_a(&pairs), "ms");
    bench_print(bench_name(prefix, "products"), 1e3 * products_s, "ms");
    bench_print(bench_name(prefix, "products_speed"),
                1e-9 * gemm_list_flop(&list) / products_s, "GFLOP/s");
    gemm_list_deinit(&list);
    bench_model_deinit(&m);
}

int main(int argc, char **argv)
{
    for (int i = 0; i < BENCH_N_MODELS; i++)
        if (argc < 2 || strcmp(argv[1], bench_model_names[i]) == 0)
            run_model(bench_model_names[i]);
    return 0;
}
