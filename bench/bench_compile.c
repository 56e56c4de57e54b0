/* SPDX-License-Identifier: Apache-2.0
 * Compiled backwards against eager ones and against the models' matrix
 * products alone, in turn:
 *     bench_compile alone             one rank: chain, lookup, capture, models
 *     bench_compile alone whole       whole steps
 *     mpirun -n 2 bench_compile       models with their gradients averaged */
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
    double least; /* eager step / compiled step */
    double most;  /* compiled step / matrix products; 0: not stated */
} limit;

static const limit limits[] = {{"mlp-a8", 1.3, 0},
                               {"mlp-a", 1.0, 1.25},
                               {"mlp-b", 1.0, 1.25},
                               {"cnn", 1.0, 1.35},
                               {"gpt", 1.15, 1.25}};

static const char *prefix_of(const char *what, bool is_alone)
{
    static char text[64];
    snprintf(text, sizeof(text), "compile.%s%s", what, is_alone ? "" : ".2");
    return text;
}

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

/* The first compiled backward of the gpt less a later one. */
static void run_capture(void)
{
    bench_model m;
    bench_model_init(&m, "gpt", 1);
    bench_model_warm_up(&m, 5);
    double seconds[9];
    for (int i = 0; i < 9; i++) {
        bench_must(brg_compile_reset());
        const int scope = begin(BRG_COMPILE_BACKEND_DEFAULT);
        const double first = bench_model_time(&m, 1);
        seconds[i] = first - bench_model_time(&m, 3);
        end(scope);
    }
    bench_at_most("compile.capture_gpt", 1e3 * bench_median(seconds, 9), "ms",
                  50);
    bench_model_deinit(&m);
}

/* ---- Models -------------------------------------------------------------- */

static double time_products(const gemm_list *list, int n)
{
    const double start = bench_seconds();
    for (int i = 0; i < n; i++)
        gemm_list_run(list);
    return (bench_seconds() - start) / n;
}

static double slowest(double seconds, bool is_alone)
{
    return is_alone ? seconds : bench_max(seconds);
}

static double time_steps(bench_model *m, int n, bool is_compiled, bool is_alone)
{
    int scope = 0;
    if (!is_alone)
        bench_barrier();
    if (is_compiled)
        scope = begin(BRG_COMPILE_BACKEND_FUSED);
    const double seconds = bench_model_time(m, n);
    if (is_compiled)
        end(scope);
    return slowest(seconds, is_alone);
}

static void run_model(const limit *l, brg_pg *pg)
{
    const bool is_alone = pg == NULL;
    const uint64_t seed = is_alone ? 1 : 1 + (uint64_t)brg_pg_rank(pg);
    bench_model m;
    gemm_list list = {0};
    bench_model_init(&m, l->model, seed);
    if (!is_alone)
        bench_model_distribute(&m, pg);
    bench_model_warm_up(&m, 5);
    gemm_list_init_model(&list, l->model);
    (void)time_steps(&m, 3, true, is_alone);
    const int n = 1 + (int)(PASS_SECONDS / time_steps(&m, 3, false, is_alone));
    bench_pairs eager = {0}, products = {0};
    const double stop = slowest(bench_seconds() + MODEL_SECONDS, is_alone);
    while (eager.n < BENCH_MAX_PASSES &&
           !(slowest(bench_seconds(), is_alone) > stop)) {
        const double start = bench_switches();
        const double e = time_steps(&m, n, false, is_alone);
        const double c = time_steps(&m, n, true, is_alone);
        const double p = list.n ? time_products(&list, n) : 0;
        const double noise = slowest(bench_switches() - start, is_alone);
        bench_pairs_add(&eager, e, c, noise);
        if (list.n)
            bench_pairs_add(&products, c, p, noise);
    }
    if (is_alone || brg_pg_rank(pg) == 0) {
        char prefix[64];
        snprintf(prefix, sizeof(prefix), "%s", prefix_of(l->model, is_alone));
        bench_at_least(bench_name(prefix, "eager_to_compiled"),
                       bench_pairs_ratio(&eager, 0.5), "x", l->least);
        bench_print(bench_name(prefix, "step"), 1e3 * bench_pairs_b(&eager),
                    "ms");
        if (list.n)
            bench_at_most(bench_name(prefix, "compiled_to_products"),
                          bench_pairs_ratio(&products, 0.5), "x", l->most);
        bench_print(bench_name(prefix, "switches"), bench_pairs_noise(&eager),
                    "");
    }
    gemm_list_deinit(&list);
    bench_model_deinit(&m);
}

/* ---- Whole steps ----------------------------------------------------------- */

static brg_status step_of(brg_tensor *const *in, size_t n_in, brg_tensor **out,
                          size_t n_out, void *user)
{
    const bench_model *m = user;
    (void)in;
    (void)n_in;
    (void)n_out;
    BRG_TRY(brg_optim_zero_grad(m->optim, false));
    out[0] = m->loss(m);
    BRG_TRY(brg_backward(out[0]));
    return brg_optim_step(m->optim);
}

static double time_whole(bench_model *m, brg_compiled *step, int n)
{
    const double start = bench_seconds();
    for (int i = 0; i < n; i++) {
        brg_scope *scope = brg_scope_begin();
        brg_tensor *loss = NULL;
        bench_must(brg_compiled_call(step, NULL, 0, &loss, 1));
        bench_must(brg_tensor_item(loss, &m->last_loss));
        brg_scope_end(scope);
    }
    return (bench_seconds() - start) / n;
}

static const char *const whole_models[] = {"mlp-a8", "mlp-a", "gpt"};

/* Eager step, compiled backward and whole step in turn, on one rank. */
static void run_whole(const char *name)
{
    bench_model m;
    brg_compiled *step;
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    options.whole = options.fullgraph = true;
    options.backend = BRG_COMPILE_BACKEND_FUSED;
    bench_model_init(&m, name, 1);
    bench_must(brg_compiled_create(&step, step_of, &m, &options));
    bench_model_warm_up(&m, 5);
    (void)time_steps(&m, 3, true, true);
    (void)time_whole(&m, step, 3);
    const int n = 1 + (int)(PASS_SECONDS / time_steps(&m, 3, false, true));
    bench_pairs eager = {0}, compiled = {0};
    const double stop = bench_seconds() + MODEL_SECONDS;
    while (eager.n < BENCH_MAX_PASSES && bench_seconds() < stop) {
        const double start = bench_switches();
        const double e = time_steps(&m, n, false, true);
        const double c = time_steps(&m, n, true, true);
        const double w = time_whole(&m, step, n);
        const double noise = bench_switches() - start;
        bench_pairs_add(&eager, e, w, noise);
        bench_pairs_add(&compiled, c, w, noise);
    }
    const char *prefix = prefix_of(name, true);
    bench_at_least(bench_name(prefix, "eager_to_whole"),
                   bench_pairs_ratio(&eager, 0.5), "x", 1);
    bench_print(bench_name(prefix, "compiled_to_whole"),
                bench_pairs_ratio(&compiled, 0.5), "x");
    bench_print(bench_name(prefix, "whole_step"), 1e3 * bench_pairs_b(&eager),
                "ms");
    brg_compiled_destroy(step);
    bench_model_deinit(&m);
}

int main(int argc, char **argv)
{
    const bool is_alone = argc > 1 && strcmp(argv[1], "alone") == 0;
    const char *only = argc > 2 ? argv[2] : NULL;
    brg_pg *pg = is_alone ? NULL : bench_ranks_begin(&argc, &argv);
    if (is_alone && !only) {
        run_chain("interpreted", BRG_COMPILE_BACKEND_PASSES, 1);
        run_chain("fused", BRG_COMPILE_BACKEND_FUSED, 5);
        run_forward_chain("interpreted", false, BRG_COMPILE_BACKEND_PASSES, 1);
        run_forward_chain("fused", false, BRG_COMPILE_BACKEND_FUSED, 5);
        run_forward_chain("tanh_fused", true, BRG_COMPILE_BACKEND_FUSED, 1);
        run_lookup();
        run_capture();
    }
    for (size_t i = 0; i < sizeof(limits) / sizeof(limits[0]); i++)
        if (!only || strcmp(only, limits[i].model) == 0)
            run_model(&limits[i], pg);
    if (is_alone && only && strcmp(only, "whole") == 0)
        for (size_t i = 0; i < sizeof(whole_models) / sizeof(*whole_models);
             i++)
            run_whole(whole_models[i]);
    if (pg)
        bench_ranks_end(pg);
    return 0;
}
