/* SPDX-License-Identifier: Apache-2.0
 * The step of an optimizer over many small parameters and over a few large
 * ones, whole and as one of four ranks with state in shards, against the step
 * of one parameter with as many elements: what is left is the cost of a
 * parameter. */
#include <stdio.h>
#include <stdlib.h>

#include <brigade/brigade.h>

#include "bench/bench.h"

#define N_SMALL 1024
#define N_BIG 4
#define SMALL 64
#define BIG (1 << 20)
#define SECONDS 2.0
#define FAKE_RANKS 4

typedef struct subject {
    brg_scope *scope;
    brg_params *params;
    brg_pg *pg;
    brg_ddp *ddp;
    brg_optim *optim;
    size_t n_params;
    size_t numel; /* that a step changes */
} subject;

typedef enum rule { SGD, MOMENTUM, ADAMW, N_RULES } rule;
static const char *const rule_names[N_RULES] = {"sgd", "momentum", "adamw"};

static void make_params(subject *s, size_t n_params, size_t numel)
{
    bench_must(brg_params_create(&s->params));
    for (size_t i = 0; i < n_params; i++) {
        char name[24];
        snprintf(name, sizeof name, "p%zu", i);
        brg_tensor *t = bench_random(1, i + 1, BRG_SHAPE((int64_t)numel));
        bench_must(brg_params_add(s->params, name, t, BRG_PARAM_TRAINED));
        brg_release(t);
    }
    s->n_params = n_params;
    s->numel = n_params * numel;
}

static void make_gradients(subject *s)
{
    brg_scope *scope = brg_scope_begin();
    for (size_t i = 0; i < s->n_params; i++) {
        brg_tensor *p = brg_params_at(s->params, i)->tensor;
        bench_must(brg_backward(bench_some(brg_sum_all(brg_square(p)))));
    }
    brg_scope_end(scope);
}

/* The ddp's gradients are views of its buckets, the parameters lie in its
 * arena. */
static void make_shards(subject *s, brg_optim_range *ranges)
{
    size_t n;
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    brg_tensor *const *tensors =
        brg_params_tensors(s->params, BRG_PARAM_TRAINED, &n);
    options.shard = true;
    bench_must(brg_pg_create_fake(&s->pg, 1, FAKE_RANKS));
    bench_must(brg_ddp_create(&s->ddp, s->pg, tensors, n, NULL, 0, &options));
    bench_must(brg_ddp_shard(s->ddp, s->params, ranges, n));
    s->numel = 0;
    for (size_t i = 0; i < n; i++)
        s->numel += ranges[i].n;
    brg_scope *scope = brg_scope_begin();
    brg_tensor *loss = NULL;
    for (size_t i = 0; i < n; i++) {
        brg_tensor *term = brg_sum_all(brg_square(tensors[i]));
        loss = bench_some(loss ? brg_add(loss, term) : term);
    }
    bench_must(brg_backward(loss));
    brg_scope_end(scope);
}

static void make_optim(subject *s, rule kind, const brg_optim_range *ranges)
{
    brg_sgd_options sgd = BRG_SGD_OPTIONS_INIT;
    brg_adamw_options adamw = BRG_ADAMW_OPTIONS_INIT;
    sgd.momentum = kind == MOMENTUM ? 0.9 : 0;
    sgd.lr = adamw.lr = 1e-4;
    sgd.ranges = adamw.ranges = ranges;
    bench_must(kind == ADAMW
                   ? brg_optim_create_adamw(&s->optim, s->params, &adamw)
                   : brg_optim_create_sgd(&s->optim, s->params, &sgd));
}

static void init(subject *s, rule kind, size_t n_params, size_t numel,
                 bool is_sharded)
{
    brg_optim_range ranges[N_SMALL];
    *s = (subject){.scope = brg_scope_begin()};
    make_params(s, n_params, numel);
    if (is_sharded)
        make_shards(s, ranges);
    else
        make_gradients(s);
    make_optim(s, kind, is_sharded ? ranges : NULL);
}

static void deinit(subject *s)
{
    brg_optim_destroy(s->optim);
    brg_ddp_destroy(s->ddp);
    brg_params_destroy(s->params);
    brg_scope_end(s->scope);
    brg_pg_destroy(s->pg);
}

static double time_steps(subject *s, int n)
{
    const double start = bench_seconds();
    for (int i = 0; i < n; i++)
        bench_must(brg_optim_step(s->optim));
    return (bench_seconds() - start) / n;
}

static void compare(const char *name, rule kind, bool is_small, bool is_sharded)
{
    static bench_pairs pairs;
    subject s, floor;
    char prefix[64];
    const size_t n = is_small ? N_SMALL : N_BIG;
    init(&s, kind, n, is_small ? SMALL : BIG, is_sharded);
    init(&floor, kind, 1, s.numel, false);
    (void)time_steps(&s, 2);
    const int n_steps = 1 + (int)(0.002 / time_steps(&floor, 2));
    const double end = bench_seconds() + SECONDS;
    for (pairs.n = 0; pairs.n < BENCH_MAX_PASSES && bench_seconds() < end;) {
        const double before = bench_switches();
        const double a = time_steps(&s, n_steps);
        const double b = time_steps(&floor, n_steps);
        bench_pairs_add(&pairs, a, b, bench_switches() - before);
    }
    snprintf(prefix, sizeof prefix, "optim.%s.%s", name, rule_names[kind]);
    bench_print(bench_name(prefix, "ratio"), bench_pairs_ratio(&pairs, 0.5),
                "x");
    bench_print(bench_name(prefix, "step"), 1e6 * bench_pairs_a(&pairs), "us");
    bench_print(bench_name(prefix, "per_param"),
                1e9 * (bench_pairs_a(&pairs) - bench_pairs_b(&pairs)) /
                    (double)n,
                "ns");
    deinit(&floor);
    deinit(&s);
}

static const struct {
    const char *name;
    bool is_small, is_sharded;
} cases[] = {{"small", true, false},
             {"small_shard", true, true},
             {"big", false, false},
             {"big_shard", false, true}};
#define N_CASES (int)(sizeof cases / sizeof cases[0])

/* For a tool that counts instructions: n steps of a case, or of its floor if
 * N_CASES is added to its number. */
static void spin(int which, rule kind, int n)
{
    subject s;
    const int i = which % N_CASES;
    init(&s, kind, cases[i].is_small ? N_SMALL : N_BIG,
         cases[i].is_small ? SMALL : BIG, cases[i].is_sharded);
    if (which >= N_CASES) {
        const size_t numel = s.numel;
        deinit(&s);
        init(&s, kind, 1, numel, false);
    }
    (void)time_steps(&s, n);
    deinit(&s);
}

int main(int argc, char **argv)
{
    if (argc > 3) {
        spin(atoi(argv[1]), (rule)atoi(argv[2]), atoi(argv[3]));
        return 0;
    }
    for (int i = 0; i < N_CASES; i++)
        for (int r = 0; r < N_RULES; r++)
            compare(cases[i].name, (rule)r, cases[i].is_small,
                    cases[i].is_sharded);
    return 0;
}
