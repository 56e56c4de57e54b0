/* SPDX-License-Identifier: Apache-2.0
 * What an op costs besides its arithmetic: chains of ops on tensors of four
 * numbers, hooks, scopes, allocations. torch/dispatch.py runs the same chains
 * in PyTorch. */
#include <stdio.h>

#include <brigade/autograd.h>
#include <brigade/ops.h>

#include "bench/bench.h"

enum { N_OPS = 100, N_REPEATS = 50, N_PASSES = 15, N_LEAVES = 64 };

/* ---- Chains -------------------------------------------------------------- */

typedef brg_tensor *(*link_fn)(brg_tensor *x, brg_tensor *w);

static brg_tensor *relu_link(brg_tensor *x, brg_tensor *w)
{
    (void)w;
    return brg_relu(x);
}

static brg_tensor *mixed_link(brg_tensor *x, brg_tensor *w)
{
    return brg_relu(brg_add(brg_mul(x, w), w));
}

typedef struct chain {
    const char *name;
    link_fn link;
    int ops_per_link;
} chain;

static const chain chains[] = {{"add", brg_add, 1},
                               {"mul", brg_mul, 1},
                               {"relu", relu_link, 1},
                               {"mixed", mixed_link, 3}};

typedef struct chain_run {
    const chain *chain;
    brg_tensor *x, *w, *ones;
} chain_run;

static brg_tensor *run_links(const chain_run *run, brg_tensor *x)
{
    for (int i = 0; i < N_OPS / run->chain->ops_per_link; i++)
        x = run->chain->link(x, run->w);
    return x;
}

static void run_forward(const void *user)
{
    const chain_run *run = user;
    brg_scope *scope = brg_scope_begin();
    const bool mode = brg_grad_mode_set(false);
    bench_some(run_links(run, run->x));
    brg_grad_mode_set(mode);
    brg_scope_end(scope);
}

static void run_both(const void *user)
{
    const chain_run *run = user;
    brg_scope *scope = brg_scope_begin();
    bench_must(brg_tensor_set_grad(run->w, NULL));
    brg_tensor *y = run_links(run, brg_add(run->x, run->w));
    brg_backward_options options = BRG_BACKWARD_OPTIONS_INIT;
    options.grad_outputs = &run->ones;
    bench_must(brg_backward_with(&y, 1, &options));
    brg_scope_end(scope);
}

/* Nanoseconds of one call: the best pass. */
static double best_ns(void (*body)(const void *user), const void *user)
{
    double best = 1e9;
    for (int pass = 0; pass < N_PASSES; pass++) {
        const double start = bench_seconds();
        for (int i = 0; i < N_REPEATS; i++)
            body(user);
        const double seconds = (bench_seconds() - start) / N_REPEATS;
        best = seconds < best ? seconds : best;
    }
    return 1e9 * best;
}

static void bench_chain(const chain *c)
{
    const int64_t shape[] = {4};
    chain_run run = {.chain = c,
                     .x = bench_random(1, 1, 1, shape),
                     .w = bench_random(1, 2, 1, shape),
                     .ones = bench_random(1, 3, 1, shape)};
    bench_must(brg_set_requires_grad(run.w, true));
    const int n_ops = N_OPS / c->ops_per_link * c->ops_per_link;
    char prefix[32];
    snprintf(prefix, sizeof(prefix), "dispatch.%s", c->name);
    bench_print(bench_name(prefix, "forward"),
                best_ns(run_forward, &run) / n_ops, "ns");
    bench_print(bench_name(prefix, "both"),
                best_ns(run_both, &run) / (n_ops + 1), "ns");
    brg_release(run.x);
    brg_release(run.w);
    brg_release(run.ones);
}

/* ---- Hooks --------------------------------------------------------------- */

typedef struct leaves {
    brg_tensor *leaf[N_LEAVES];
    brg_hook *hook[N_LEAVES];
} leaves;

static void sum_of_leaves(const void *user)
{
    const leaves *l = user;
    brg_scope *scope = brg_scope_begin();
    brg_tensor *y = l->leaf[0];
    for (int i = 1; i < N_LEAVES; i++)
        y = brg_add(y, l->leaf[i]);
    bench_must(brg_backward(y));
    for (int i = 0; i < N_LEAVES; i++)
        bench_must(brg_tensor_set_grad(l->leaf[i], NULL));
    brg_scope_end(scope);
}

static brg_status count_call(brg_tensor *leaf, void *user)
{
    (void)leaf;
    ++*(size_t *)user;
    return BRG_OK;
}

static void bench_hooks(void)
{
    leaves l;
    size_t n_calls = 0;
    for (int i = 0; i < N_LEAVES; i++) {
        l.leaf[i] = bench_random(1, (uint64_t)i, BRG_SCALAR);
        bench_must(brg_set_requires_grad(l.leaf[i], true));
    }
    const double without = best_ns(sum_of_leaves, &l);
    for (int i = 0; i < N_LEAVES; i++)
        bench_must(brg_tensor_add_post_accumulate_hook(
            &l.hook[i], l.leaf[i], count_call, &n_calls, NULL));
    const double with = best_ns(sum_of_leaves, &l);
    if (n_calls == 0)
        bench_fail("no hook was called");
    bench_print("dispatch.hook", (with - without) / N_LEAVES, "ns");
    for (int i = 0; i < N_LEAVES; i++) {
        brg_hook_remove(l.hook[i]);
        brg_release(l.leaf[i]);
    }
}

/* ---- Scopes and memory --------------------------------------------------- */

static void open_scope(const void *user)
{
    (void)user;
    for (int i = 0; i < N_OPS; i++)
        brg_scope_end(brg_scope_begin());
}

static void make_tensors(const void *user)
{
    for (int i = 0; i < N_OPS; i++) {
        brg_scope *scope = brg_scope_begin();
        brg_empty(BRG_DTYPE_F32, 1, user);
        brg_scope_end(scope);
    }
}

int main(void)
{
    for (size_t i = 0; i < sizeof(chains) / sizeof(chains[0]); i++)
        bench_chain(&chains[i]);
    bench_hooks();
    const int64_t tiny[] = {4}, large[] = {1 << 20};
    const double scope = best_ns(open_scope, NULL);
    bench_print("dispatch.scope", scope / N_OPS, "ns");
    bench_print("dispatch.tensor_16B",
                (best_ns(make_tensors, tiny) - scope) / N_OPS, "ns");
    bench_print("dispatch.tensor_4MB",
                (best_ns(make_tensors, large) - scope) / N_OPS, "ns");
    return 0;
}
