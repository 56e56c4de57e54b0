/* SPDX-License-Identifier: Apache-2.0
 * A training step of two ranks against the same step without communication,
 * in turn: forward, backward, all-reduce, update. */
#include <stdio.h>
#include <string.h>

#include "bench/bench.h"
#include "bench/models.h"
#include "bench/ranks.h"

/* Passes are short, so that some are left alone by other programs. */
#define PASS_SECONDS 0.004
#define MODEL_SECONDS 10.0

typedef struct limit {
    const char *model;
    double most; /* step with / step without communication */
} limit;

static const limit limits[BENCH_N_MODELS] = {
    {"mlp-a", 1.15}, {"mlp-b", 1.05}, {"cnn", 1.08}, {"gpt", 1.05}};

/* Ranks have different data, so equal weights show that sums are right. */
static void check_agreement(const bench_model *m)
{
    for (size_t i = 0; i < m->n_params; i++) {
        const float *w = brg_tensor_data(m->p[i]);
        const int64_t n = brg_tensor_numel(m->p[i]);
        double sum = 0;
        for (int64_t k = 0; k < n; k++)
            sum += w[k];
        if (bench_max(sum) != -bench_max(-sum))
            bench_fail("the ranks' weights differ");
    }
}

static void print_model(const char *model, const bench_pairs *pairs,
                        const brg_reducer_stats *stats, double wait_s,
                        double most)
{
    char prefix[32];
    snprintf(prefix, sizeof(prefix), "ddp.%s", model);
    bench_at_most(bench_name(prefix, "ratio"), bench_pairs_ratio(pairs, 0.5),
                  "x", most);
    bench_print(bench_name(prefix, "ratio_quarter"),
                bench_pairs_ratio(pairs, 0.25), "x");
    bench_print(bench_name(prefix, "ratio_three_quarters"),
                bench_pairs_ratio(pairs, 0.75), "x");
    bench_print(bench_name(prefix, "step"), 1e3 * bench_pairs_a(pairs), "ms");
    bench_print(bench_name(prefix, "step_alone"), 1e3 * bench_pairs_b(pairs),
                "ms");
    bench_print(bench_name(prefix, "wait_share"),
                100 * wait_s / bench_pairs_a(pairs), "%");
    bench_print(bench_name(prefix, "switches"), bench_pairs_noise(pairs), "");
    bench_print(bench_name(prefix, "megabytes"), 1e-6 * (double)stats->n_bytes,
                "MB");
    bench_print(bench_name(prefix, "buckets"), (double)stats->n_buckets, "");
    bench_print(bench_name(prefix, "early_buckets"), (double)stats->n_early,
                "");
}

static void run_model(brg_pg *pg, const limit *l)
{
    bench_model alone, shared;
    const uint64_t seed = 1 + (uint64_t)brg_pg_rank(pg);
    bench_model_init(&alone, l->model, seed);
    bench_model_init(&shared, l->model, seed);
    bench_model_distribute(&shared, pg);
    bench_model_warm_up(&alone, 5);
    bench_model_warm_up(&shared, 5);

    const double guess = bench_ranks_time(&alone, 5);
    const int n_steps = 1 + (int)(PASS_SECONDS / guess);
    brg_reducer_stats before, after;
    bench_pairs pairs = {0};
    brg_ddp_get_stats(shared.ddp, &before);
    bench_ranks_pairs(&pairs, &shared, &alone, n_steps, MODEL_SECONDS);
    brg_ddp_get_stats(shared.ddp, &after);
    const double wait_s = 1e-9 *
                          (double)(after.total_wait_ns - before.total_wait_ns) /
                          (double)(after.n_steps - before.n_steps);
    check_agreement(&shared);
    if (brg_pg_rank(pg) == 0)
        print_model(l->model, &pairs, &after, wait_s, l->most);
    bench_model_deinit(&shared);
    bench_model_deinit(&alone);
}

int main(int argc, char **argv)
{
    brg_pg *pg = bench_ranks_begin(&argc, &argv);
    const double before = bench_round_trip_ns();
    for (int i = 0; i < BENCH_N_MODELS; i++)
        if (argc < 2 || strcmp(argv[1], limits[i].model) == 0)
            run_model(pg, &limits[i]);
    const double after = bench_round_trip_ns();
    if (brg_pg_rank(pg) == 0) {
        bench_print("ddp.round_trip_before", before, "ns");
        bench_print("ddp.round_trip_after", after, "ns");
    }
    bench_ranks_end(pg);
    return 0;
}
