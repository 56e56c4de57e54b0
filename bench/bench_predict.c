/* SPDX-License-Identifier: Apache-2.0
 * Predicted against measured: each rank profiles a model alone, the group is
 * timed, and from these two the step of both ranks is predicted (schedule.h).
 * Then it is taken, in turn with the step alone. */
#include <stdio.h>

#include <brigade/schedule.h>

#include "bench/bench.h"
#include "bench/models.h"
#include "bench/ranks.h"

#define N_RECORDED 40
#define PASS_SECONDS 0.02
#define MODEL_SECONDS 10.0
#define MARGIN 0.1

/* Both ranks step through a model of their own; the slower one's times count,
 * as the buckets of the slower one do. */
static brg_profile *record(bench_model *m)
{
    brg_profile *profile;
    bench_must(brg_ddp_record(m->ddp, N_RECORDED));
    bench_barrier();
    for (int i = 0; i <= N_RECORDED; i++)
        bench_model_step(m);
    bench_must(brg_reducer_get_profile(brg_ddp_reducer(m->ddp), &profile));
    profile->step_ns = (uint64_t)bench_max((double)profile->step_ns);
    profile->backward_ns = (uint64_t)bench_max((double)profile->backward_ns);
    return profile;
}

static brg_schedule predict(brg_pg *pg, bench_model *alone, size_t n_bytes)
{
    brg_link link;
    brg_schedule schedule;
    uint32_t buckets[BENCH_MAX_PARAMS];
    brg_profile *profile = record(alone);
    bench_must(brg_link_measure(pg, n_bytes, &link));
    bench_must(brg_schedule_by_size(buckets, profile, 0, 0));
    bench_must(brg_schedule_predict(&schedule, profile, &link, buckets));
    brg_profile_destroy(profile);
    return schedule;
}

static void print_model(const char *model, const bench_pairs *pairs,
                        const brg_schedule *s)
{
    char prefix[32];
    snprintf(prefix, sizeof prefix, "predict.%s", model);
    /* the step alone as it was in the same rounds: machines drift */
    const double alone = bench_pairs_b(pairs);
    const double added = 1e-9 * (double)(s->busy_ns + s->exposed_ns);
    const double ratio = (alone + added) / bench_pairs_a(pairs);
    bench_print(bench_name(prefix, "transfer"), 1e-6 * (double)s->transfer_ns,
                "ms");
    bench_print(bench_name(prefix, "alone"), 1e3 * alone, "ms");
    bench_print(bench_name(prefix, "added_predicted"), 1e3 * added, "ms");
    bench_print(bench_name(prefix, "added"),
                1e3 * (bench_pairs_a(pairs) - alone), "ms");
    bench_print(bench_name(prefix, "predicted"), 1e3 * (alone + added), "ms");
    bench_print(bench_name(prefix, "measured"), 1e3 * bench_pairs_a(pairs),
                "ms");
    bench_at_least(bench_name(prefix, "ratio_least"), ratio, "x", 1 - MARGIN);
    bench_at_most(bench_name(prefix, "ratio_most"), ratio, "x", 1 + MARGIN);
}

static void run_model(brg_pg *pg, const char *name)
{
    brg_pg *self;
    bench_model alone, shared;
    const uint64_t seed = 1 + (uint64_t)brg_pg_rank(pg);
    bench_must(brg_pg_create_self(&self));
    bench_model_init(&alone, name, seed);
    bench_model_init(&shared, name, seed);
    bench_model_distribute(&alone, self);
    bench_model_distribute(&shared, pg);
    bench_model_warm_up(&alone, 5);
    bench_model_warm_up(&shared, 5);

    brg_reducer_stats stats;
    brg_ddp_get_stats(shared.ddp, &stats);
    const double alone_s = bench_ranks_time(&alone, N_RECORDED);
    const brg_schedule schedule = predict(pg, &alone, stats.n_bytes);
    const int n_steps = 1 + (int)(PASS_SECONDS / alone_s);
    bench_pairs pairs = {0};
    bench_ranks_pairs(&pairs, &shared, &alone, n_steps, MODEL_SECONDS);
    if (brg_pg_rank(pg) == 0)
        print_model(name, &pairs, &schedule);
    bench_model_deinit(&shared);
    bench_model_deinit(&alone);
    brg_pg_destroy(self);
}

int main(int argc, char **argv)
{
    brg_pg *pg = bench_ranks_begin(&argc, &argv);
    bench_ranks_models(pg, argc, argv, run_model);
    bench_ranks_end(pg);
    return 0;
}
