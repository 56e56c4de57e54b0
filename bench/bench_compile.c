/* SPDX-License-Identifier: Apache-2.0
 * Compiled backwards and whole compiled steps against eager steps and against
 * the models' matrix products alone, in turn:
 *     bench_compile alone             one rank: chain, lookup, capture, models
 *     mpirun -n 2 bench_compile       models with their gradients averaged
 * A name behind it (chain, lookup, a model): only that. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include <brigade/autograd.h>
#include <brigade/compile.h>
#include <brigade/ops.h>

#include "bench/bench.h"
#include "bench/gemm_shapes.h"
#include "bench/models.h"
#include "bench/ranks.h"

#define PASS_SECONDS 0.01
#define MODEL_SECONDS 6.0

typedef struct limit {
    const char *model;
    double least; /* eager step / whole compiled step */
    double most;  /* compiled step / matrix products; 0: not stated */
} limit;

static const limit limits[] = {{"mlp-a8", 1.3, 0},
                               {"mlp-a", 1.0, 1.25},
                               {"mlp-b", 1.0, 1.25},
                               {"cnn", 1.0, 1.35},
                               {"gpt", 1.15, 1.25}};

static int begin(brg_compile_backend backend)
{
    int scope;
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    options.backend = backend;
    bench_must(brg_compile_begin(&scope, &options));
    return scope;
}

static void end(int scope)
{
    bench_must(brg_compile_end(scope));
}

/* ---- Graphs of single ops ------------------------------------------------ */

typedef struct graph {
    brg_tensor *x, *w, *y, *g;
    int n_ops;
} graph;

/* y = x, n_ops times changed; its backward is a chain as long. */
static void graph_init(graph *gr, int n_ops, int ndim, const int64_t *shape)
{
    *gr = (graph){.n_ops = n_ops};
    gr->x = bench_random(1, 1, ndim, shape);
    gr->w = bench_random(1, 2, 1, shape + ndim - 1);
    gr->g = bench_random(1, 3, ndim, shape);
    bench_must(brg_set_requires_grad(gr->x, true));
    brg_scope *scope = brg_scope_begin();
    brg_tensor *y = gr->x;
    for (int i = 0; i < n_ops; i++)
        y = i % 3 == 0   ? brg_mul(y, gr->w)
            : i % 3 == 1 ? brg_mul_scalar(y, 1.01)
                         : brg_neg(y);
    gr->y = brg_retain(bench_some(y));
    brg_scope_end(scope);
}

static void graph_deinit(graph *gr)
{
    brg_release(gr->x);
    brg_release(gr->w);
    brg_release(gr->y);
    brg_release(gr->g);
}

static double graph_time(graph *gr, int n)
{
    brg_backward_options options = BRG_BACKWARD_OPTIONS_INIT;
    options.grad_outputs = &gr->g;
    options.retain_graph = true;
    const double start = bench_seconds();
    for (int i = 0; i < n; i++) {
        bench_must(brg_tensor_set_grad(gr->x, NULL));
        bench_must(brg_backward_with(&gr->y, 1, &options));
    }
    return (bench_seconds() - start) / n;
}

static void run_chain(const char *name, brg_compile_backend backend,
                      double least)
{
    graph gr;
    bench_pairs pairs = {0};
    graph_init(&gr, 20, 2, (const int64_t[]){1024, 1024});
    for (int pass = -2; pass < 40; pass++) {
        const double start = bench_switches();
        const double eager = graph_time(&gr, 2);
        const int scope = begin(backend);
        const double compiled = graph_time(&gr, 2);
        end(scope);
        if (pass >= 0)
            bench_pairs_add(&pairs, eager, compiled, bench_switches() - start);
    }
    bench_at_least(bench_name("compile.chain", name),
                   bench_pairs_ratio(&pairs, 0.5), "x", least);
    bench_print("compile.chain.eager", 1e3 * bench_pairs_a(&pairs), "ms");
    bench_print("compile.chain.compiled", 1e3 * bench_pairs_b(&pairs), "ms");
    graph_deinit(&gr);
}

/* 20 ops forward, as a function compiled whole. */
static brg_status chain_forward(brg_tensor *const *in, size_t n_in,
                                brg_tensor **out, size_t n_out, void *user)
{
    const bool has_functions = *(const bool *)user;
    brg_tensor *y = in[0];
    (void)n_in;
    (void)n_out;
    for (int i = 0; i < 20; i++)
        y = i % 4 == 0   ? brg_mul(y, in[1])
            : i % 4 == 1 ? has_functions ? brg_tanh(y) : brg_mul_scalar(y, 0.9)
            : i % 4 == 2 ? brg_add(y, in[1])
                         : brg_relu(y);
    out[0] = y;
    return y ? BRG_OK : brg_error_code();
}

static double time_call(brg_compiled *compiled, brg_tensor *const *in,
                        bool *has_functions)
{
    brg_scope *scope = brg_scope_begin();
    brg_tensor *out[1] = {NULL};
    const double start = bench_seconds();
    bench_must(compiled ? brg_compiled_call(compiled, in, 2, out, 1)
                        : chain_forward(in, 2, out, 1, has_functions));
    const double seconds = bench_seconds() - start;
    brg_scope_end(scope);
    return seconds;
}

static void run_forward_chain(const char *name, bool has_functions,
                              brg_compile_backend backend, double least)
{
    const int64_t shape[] = {1024, 1024};
    brg_tensor *in[] = {bench_random(1, 1, 2, shape),
                        bench_random(1, 2, 1, shape)};
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    brg_compiled *compiled;
    bench_pairs pairs = {0};
    options.backend = backend;
    options.whole = true;
    bench_must(brg_compiled_create(&compiled, chain_forward, &has_functions,
                                   &options));
    for (int pass = -2; pass < 60; pass++) {
        const double start = bench_switches();
        const double eager = time_call(NULL, in, &has_functions);
        const double fused = time_call(compiled, in, NULL);
        if (pass >= 0)
            bench_pairs_add(&pairs, eager, fused, bench_switches() - start);
    }
    bench_at_least(bench_name("compile.forward", name),
                   bench_pairs_ratio(&pairs, 0.5), "x", least);
    brg_compiled_destroy(compiled);
    brg_release(in[0]);
    brg_release(in[1]);
}

/* From the start of a backward of 100 nodes to its plan. */
static void run_lookup(void)
{
    graph gr;
    brg_compile_stats before, after;
    double best = 1;
    graph_init(&gr, 100, 1, (const int64_t[]){4});
    const int scope = begin(BRG_COMPILE_BACKEND_DEFAULT);
    (void)graph_time(&gr, 10);
    for (int pass = 0; pass < 50; pass++) {
        brg_compile_get_stats(&before);
        (void)graph_time(&gr, 100);
        brg_compile_get_stats(&after);
        const double ns = (double)(after.lookup_ns - before.lookup_ns);
        best = 1e-11 * ns < best ? 1e-11 * ns : best;
    }
    end(scope);
    bench_at_most("compile.lookup_100", 1e6 * best, "us", 3);
    graph_deinit(&gr);
}

/* The quickest of many steps whose backward is captured, less the quickest that
 * finds its plan: of single pairs the difference is lost in the steps' noise. */
static void run_capture(void)
{
    bench_model m;
    bench_model_init(&m, "gpt", 1);
    bench_model_warm_up(&m, 5);
    double first = INFINITY, later = INFINITY;
    for (int i = 0; i < 20; i++) {
        bench_must(brg_compile_reset());
        const int scope = begin(BRG_COMPILE_BACKEND_DEFAULT);
        first = fmin(first, bench_model_time(&m, 1));
        for (int k = 0; k < 2; k++)
            later = fmin(later, bench_model_time(&m, 1));
        end(scope);
    }
    bench_at_most("compile.capture_gpt", 1e3 * (first - later), "ms", 50);
    bench_model_deinit(&m);
}

/* ---- Models -------------------------------------------------------------- */

/* One model while it is measured; PG: its ranks, NULL when alone. */
typedef struct contest {
    const limit *limit;
    brg_pg *pg;
    bench_model model;
    gemm_list list;
    int n_steps;                                   /* of a pass */
    bench_pairs compiled, whole;                   /* eager step / this one */
    bench_pairs compiled_products, whole_products; /* this one / products */
    /* Time that a step waits for its reductions, of the rank that waits less:
     * the other one waits for it too. */
    bench_pairs compiled_wait, whole_wait; /* this one / eager */
} contest;

static double slowest(const contest *c, double seconds)
{
    return c->pg ? bench_max(seconds) : seconds;
}

static double time_products(const contest *c)
{
    const double start = bench_seconds();
    for (int i = 0; i < c->n_steps; i++)
        gemm_list_run(&c->list);
    return (bench_seconds() - start) / c->n_steps;
}

static double waited(const contest *c)
{
    brg_reducer_stats stats;
    if (!c->pg)
        return 0;
    brg_ddp_get_stats(c->model.ddp, &stats);
    return 1e-9 * (double)stats.total_wait_ns;
}

/* Seconds of a step; *wait: of them those spent waiting. */
static double time_mode(contest *c, bench_mode mode, double *wait)
{
    const double before = waited(c);
    if (c->pg)
        bench_barrier();
    const double seconds = bench_model_time_as(&c->model, mode, c->n_steps);
    *wait = (waited(c) - before) / c->n_steps;
    if (c->pg)
        *wait = -bench_max(-*wait);
    return slowest(c, seconds);
}

static void time_pass(contest *c)
{
    double wait[3];
    const double start = bench_switches();
    const double e = time_mode(c, BENCH_EAGER, &wait[0]);
    const double b = time_mode(c, BENCH_COMPILED, &wait[1]);
    const double w = time_mode(c, BENCH_WHOLE, &wait[2]);
    const double p = c->list.n ? time_products(c) : 1;
    const double noise = slowest(c, bench_switches() - start);
    bench_pairs_add(&c->compiled, e, b, noise);
    bench_pairs_add(&c->whole, e, w, noise);
    bench_pairs_add(&c->compiled_products, b, p, noise);
    bench_pairs_add(&c->whole_products, w, p, noise);
    bench_pairs_add(&c->compiled_wait, wait[1], wait[0], noise);
    bench_pairs_add(&c->whole_wait, wait[2], wait[0], noise);
}

static void print_waits(const char *prefix, const contest *c)
{
    bench_print(bench_name(prefix, "exposed_eager"),
                1e6 * bench_pairs_b(&c->compiled_wait), "us");
    bench_print(bench_name(prefix, "exposed_compiled"),
                1e6 * bench_pairs_a(&c->compiled_wait), "us");
    bench_print(bench_name(prefix, "exposed_whole"),
                1e6 * bench_pairs_a(&c->whole_wait), "us");
    bench_at_most(bench_name(prefix, "exposed_compiled_to_eager"),
                  bench_pairs_ratio(&c->compiled_wait, 0.5), "x", 1);
    bench_at_most(bench_name(prefix, "exposed_whole_to_eager"),
                  bench_pairs_ratio(&c->whole_wait, 0.5), "x", 1);
}

static void print_contest(const contest *c)
{
    char prefix[64];
    const limit *l = c->limit;
    snprintf(prefix, sizeof(prefix), "compile.%s%s", l->model,
             c->pg ? ".2" : "");
    bench_at_least(bench_name(prefix, "eager_to_compiled"),
                   bench_pairs_ratio(&c->compiled, 0.5), "x", 1);
    bench_at_least(bench_name(prefix, "eager_to_whole"),
                   bench_pairs_ratio(&c->whole, 0.5), "x", l->least);
    bench_print(bench_name(prefix, "eager_to_whole_quarter"),
                bench_pairs_ratio(&c->whole, 0.25), "x");
    bench_print(bench_name(prefix, "eager_to_whole_three_quarters"),
                bench_pairs_ratio(&c->whole, 0.75), "x");
    bench_print(bench_name(prefix, "eager"), 1e3 * bench_pairs_a(&c->whole),
                "ms");
    bench_print(bench_name(prefix, "compiled"),
                1e3 * bench_pairs_b(&c->compiled), "ms");
    bench_print(bench_name(prefix, "whole"), 1e3 * bench_pairs_b(&c->whole),
                "ms");
    if (c->list.n) {
        bench_at_most(bench_name(prefix, "compiled_to_products"),
                      bench_pairs_ratio(&c->compiled_products, 0.5), "x",
                      l->most);
        bench_at_most(bench_name(prefix, "whole_to_products"),
                      bench_pairs_ratio(&c->whole_products, 0.5), "x", l->most);
    }
    if (c->pg)
        print_waits(prefix, c);
    bench_print(bench_name(prefix, "switches"), bench_pairs_noise(&c->whole),
                "");
}

/* Eager step, compiled backward, whole step, and the products, in turn. */
static void run_model(const limit *l, brg_pg *pg)
{
    static contest c;
    double wait;
    c = (contest){.limit = l, .pg = pg, .n_steps = 3};
    bench_model_init(&c.model, l->model,
                     pg ? 1 + (uint64_t)brg_pg_rank(pg) : 1);
    if (pg)
        bench_model_distribute(&c.model, pg);
    bench_model_warm_up(&c.model, 5);
    gemm_list_init_model(&c.list, l->model);
    (void)time_mode(&c, BENCH_COMPILED, &wait);
    (void)time_mode(&c, BENCH_WHOLE, &wait);
    c.n_steps = 1 + (int)(PASS_SECONDS / time_mode(&c, BENCH_EAGER, &wait));
    const double stop = slowest(&c, bench_seconds() + MODEL_SECONDS);
    while (c.whole.n < BENCH_MAX_PASSES &&
           !(slowest(&c, bench_seconds()) > stop))
        time_pass(&c);
    if (!pg || brg_pg_rank(pg) == 0)
        print_contest(&c);
    gemm_list_deinit(&c.list);
    bench_model_deinit(&c.model);
}

int main(int argc, char **argv)
{
    const bool is_alone = argc > 1 && strcmp(argv[1], "alone") == 0;
    brg_pg *pg = is_alone ? NULL : bench_ranks_begin(&argc, &argv);
    const char *only = argc > 1 + is_alone ? argv[1 + is_alone] : NULL;
    if (is_alone && (!only || strcmp(only, "chain") == 0)) {
        run_chain("interpreted", BRG_COMPILE_BACKEND_PASSES, 1);
        run_chain("fused", BRG_COMPILE_BACKEND_FUSED, 5);
        run_forward_chain("interpreted", false, BRG_COMPILE_BACKEND_PASSES, 1);
        run_forward_chain("fused", false, BRG_COMPILE_BACKEND_FUSED, 5);
        run_forward_chain("tanh_fused", true, BRG_COMPILE_BACKEND_FUSED, 1);
    }
    if (is_alone && (!only || strcmp(only, "lookup") == 0)) {
        run_lookup();
        run_capture();
    }
    for (size_t i = 0; i < sizeof(limits) / sizeof(limits[0]); i++)
        if (!only || strcmp(only, limits[i].model) == 0)
            run_model(&limits[i], pg);
    if (pg)
        bench_ranks_end(pg);
    return 0;
}
