/* SPDX-License-Identifier: Apache-2.0
 * What an op costs besides its arithmetic: chains of ops on tensors of four
 * numbers, hooks, scopes, allocations. torch/dispatch.py runs the same chains
 * in PyTorch. */
#include <stdio.h>

#include <brigade/autograd.h>
#include <brigade/ops.h>

#include "bench/bench.h"

enum {
    N_OPS = 100,
    N_REPEATS = 50,
    N_PASSES = 15,
    N_LEAVES = 64,
    N_HOOK_PASSES = 120
};

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

static brg_status count_grad(brg_tensor *grad, brg_tensor **replacement,
                             void *user)
{
    (void)replacement;
    return count_call(grad, user);
}

static brg_status count_pre(brg_tensor **grads, size_t n, void *user)
{
    (void)n;
    return count_call(grads[0], user);
}

static brg_status count_post(brg_tensor **grad_in, size_t n_in,
                             brg_tensor *const *grad_out, size_t n_out,
                             void *user)
{
    (void)grad_in;
    (void)n_in;
    (void)n_out;
    return count_call(grad_out[0], user);
}

typedef enum hook_kind { POST_ACCUMULATE, ON_TENSOR, PRE, POST } hook_kind;

static void add_hook(hook_kind kind, brg_tensor *leaf, brg_hook **hook,
                     brg_node *node, size_t *n_calls)
{
    if (kind == POST_ACCUMULATE)
        bench_must(brg_tensor_add_post_accumulate_hook(hook, leaf, count_call,
                                                       n_calls, NULL));
    else if (kind == ON_TENSOR)
        bench_must(brg_tensor_add_hook(hook, leaf, count_grad, n_calls, NULL));
    else if (kind == PRE)
        bench_must(brg_node_add_pre_hook(hook, node, count_pre, n_calls, NULL));
    else
        bench_must(
            brg_node_add_post_hook(hook, node, count_post, n_calls, NULL));
}

static double seconds_of_leaves(const leaves *l)
{
    const double start = bench_seconds();
    for (int i = 0; i < N_REPEATS; i++)
        sum_of_leaves(l);
    return (bench_seconds() - start) / N_REPEATS;
}

/* With and without hooks in turn: the median of the differences. */
static void bench_hook(hook_kind kind, const char *name)
{
    static bench_pairs pairs;
    leaves l;
    brg_node *node[N_LEAVES];
    size_t n_calls = 0;
    pairs.n = 0;
    for (int i = 0; i < N_LEAVES; i++) {
        l.leaf[i] = bench_random(1, (uint64_t)i, BRG_SCALAR);
        bench_must(brg_set_requires_grad(l.leaf[i], true));
        bench_must(brg_tensor_node(&node[i], l.leaf[i])); /* on both sides */
    }
    for (int pass = 0; pass < N_HOOK_PASSES; pass++) {
        const double before = bench_switches();
        const double without = seconds_of_leaves(&l);
        for (int i = 0; i < N_LEAVES; i++)
            add_hook(kind, l.leaf[i], &l.hook[i], node[i], &n_calls);
        const double with = seconds_of_leaves(&l);
        bench_pairs_add(&pairs, with - without, without,
                        bench_switches() - before);
        for (int i = 0; i < N_LEAVES; i++)
            brg_hook_remove(l.hook[i]);
    }
    if (n_calls != (size_t)N_HOOK_PASSES * N_REPEATS * N_LEAVES)
        bench_fail("a hook was not called");
    bench_at_most(name, 1e9 * bench_pairs_a(&pairs) / N_LEAVES, "ns", 100);
    for (int i = 0; i < N_LEAVES; i++) {
        brg_node_release(node[i]);
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
    bench_hook(POST_ACCUMULATE, "dispatch.hook");
    bench_hook(ON_TENSOR, "dispatch.hook_tensor");
    bench_hook(PRE, "dispatch.hook_pre");
    bench_hook(POST, "dispatch.hook_post");
    const int64_t tiny[] = {4}, large[] = {1 << 20};
    const double scope = best_ns(open_scope, NULL);
    bench_print("dispatch.scope", scope / N_OPS, "ns");
    bench_print("dispatch.tensor_16B",
                (best_ns(make_tensors, tiny) - scope) / N_OPS, "ns");
    bench_print("dispatch.tensor_4MB",
                (best_ns(make_tensors, large) - scope) / N_OPS, "ns");
    return 0;
}
