/* SPDX-License-Identifier: Apache-2.0
 * A training step with optimizer state in shards against the same step with
 * all of it on every rank, in turn; AdamW. Each layer waits for its parameters
 * just before it uses them. */
#include <stdio.h>
#include <string.h>

#include <brigade/shard.h>

#include "bench/bench.h"
#include "bench/models.h"
#include "bench/ranks.h"

#define PASS_SECONDS 0.004
#define MODEL_SECONDS 5.0

static double state_bytes(const brg_optim *optim)
{
    double sum = 0;
    for (size_t i = 0; i < brg_optim_state_count(optim); i++)
        if (brg_optim_state_param(optim, i))
            sum +=
                (double)brg_tensor_nbytes(brg_optim_state_at(optim, i)->tensor);
    return sum;
}

/* Both had the same data: the same bits, or the figures mean nothing. */
static void check_weights(const bench_model *a, const bench_model *b)
{
    for (size_t i = 0; i < a->n_params; i++) {
        bench_must(brg_ddp_wait_params(a->ddp, a->p[i]));
        if (memcmp(brg_tensor_data(a->p[i]), brg_tensor_data(b->p[i]),
                   brg_tensor_nbytes(a->p[i])) != 0)
            bench_fail("weights differ from those of the whole optimizer");
    }
}

static void print_model(const char *model, const bench_pairs *pairs,
                        double share)
{
    char prefix[32];
    snprintf(prefix, sizeof(prefix), "shard.%s", model);
    bench_print(bench_name(prefix, "ratio"), bench_pairs_ratio(pairs, 0.5),
                "x");
    bench_print(bench_name(prefix, "ratio_quarter"),
                bench_pairs_ratio(pairs, 0.25), "x");
    bench_print(bench_name(prefix, "ratio_three_quarters"),
                bench_pairs_ratio(pairs, 0.75), "x");
    bench_print(bench_name(prefix, "step"), 1e3 * bench_pairs_a(pairs), "ms");
    bench_print(bench_name(prefix, "step_whole"), 1e3 * bench_pairs_b(pairs),
                "ms");
    bench_print(bench_name(prefix, "switches"), bench_pairs_noise(pairs), "");
    bench_print(bench_name(prefix, "state_share"), 100 * share, "%");
}

static void run_model(brg_pg *pg, const char *model)
{
    bench_model sharded, whole;
    const uint64_t seed = 1 + (uint64_t)brg_pg_rank(pg);
    bench_model_init(&sharded, model, seed);
    bench_model_init(&whole, model, seed);
    bench_model_distribute_adamw(&sharded, pg, true);
    bench_model_distribute_adamw(&whole, pg, false);
    bench_model_warm_up(&sharded, 5);
    bench_model_warm_up(&whole, 5);

    const double guess = bench_ranks_time(&whole, 5);
    (void)bench_ranks_time(&sharded, 5); /* as many steps */
    const int n_steps = 1 + (int)(PASS_SECONDS / bench_max(guess));
    bench_pairs pairs = {0};
    bench_ranks_pairs(&pairs, &sharded, &whole, n_steps, MODEL_SECONDS);
    check_weights(&sharded, &whole);
    const double share =
        bench_max(state_bytes(sharded.optim)) / state_bytes(whole.optim);
    if (brg_pg_rank(pg) == 0)
        print_model(model, &pairs, share);
    bench_model_deinit(&sharded);
    bench_model_deinit(&whole);
}

int main(int argc, char **argv)
{
    brg_pg *pg = bench_ranks_begin(&argc, &argv);
    bench_ranks_models(pg, argc, argv, run_model);
    bench_ranks_end(pg);
    return 0;
}
