/* SPDX-License-Identifier: Apache-2.0
 * What the reducer costs a parameter, from the mark or the hook to the start
 * of its bucket, without any communication (a group of one) and under mpirun
 * -n 2, where buckets start real reductions. A hook in two ways:
 *     hook         a backward with a ddp less one without; the other rank
 *                  disturbs that by more than it is, so alone only
 *     hook_itself  between a hook before the ddp's and one after it, less the
 *                  same without a ddp: what lies outside of it cannot disturb,
 *                  but the two looks at the clock let nothing overlap */
#include <stdio.h>
#include <stdlib.h>

#include <brigade/brigade.h>

#include "bench/bench.h"

#define N_PARAMS 1024
#define COUNT 16
#define N_ROUNDS 120
#define N_REPEATS 5
#define N_BUCKETS 8
#define TARGET_NS 100.0

static bool is_alone; /* else only rank 0 prints */
static int rank;

/* The median of the repeats, and their range. */
static void print_cost(const char *name, double ns[N_REPEATS])
{
    const double middle = bench_median(ns, N_REPEATS); /* sorts */
    if (rank != 0)
        return;
    name = bench_name(is_alone ? "reducer" : "reducer.ranks", name);
    bench_at_most(name, middle, "ns", TARGET_NS);
    printf("  (%.0f to %.0f in %d repeats)\n", ns[0], ns[N_REPEATS - 1],
           N_REPEATS);
}

/* ---- Marks of a hand-written backward ------------------------------------------- */

static brg_reducer *make_reducer(brg_pg *pg, float *memory)
{
    static brg_reducer_param params[N_PARAMS];
    brg_reducer *reducer;
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    options.keep_order = true;
    for (size_t i = 0; i < N_PARAMS; i++)
        params[i] =
            (brg_reducer_param){.grad = memory ? memory + i * COUNT : NULL,
                                .count = COUNT,
                                .dtype = BRG_DTYPE_F32};
    options.first_bucket_bytes = options.bucket_bytes =
        N_PARAMS * COUNT * sizeof(float) / N_BUCKETS;
    bench_must(brg_reducer_create(&reducer, pg, params, N_PARAMS, &options));
    return reducer;
}

static double time_marks(brg_reducer *reducer)
{
    static double seconds[N_ROUNDS];
    for (size_t k = 0; k < N_ROUNDS; k++) {
        double start = bench_seconds();
        for (size_t i = N_PARAMS; i-- > 0;)
            bench_must(brg_reducer_mark_ready(reducer, i));
        seconds[k] = bench_seconds() - start;
        bench_must(brg_reducer_wait(reducer));
    }
    return 1e9 * bench_median(seconds, N_ROUNDS) / N_PARAMS;
}

static void run_marks(brg_pg *pg, const char *name, float *memory)
{
    double ns[N_REPEATS];
    brg_reducer *reducer = make_reducer(pg, memory);
    time_marks(reducer);
    for (int k = 0; k < N_REPEATS; k++)
        ns[k] = time_marks(reducer);
    print_cost(name, ns);
    brg_reducer_destroy(reducer);
}

/* ---- Hooks of a ddp ---------------------------------------------------------------- */

#define N_LEAVES 512

typedef struct leaves {
    bool is_in_place; /* the sum over what was broadcast writes gradients into
                         their slots, the rule of brg_mul leaves a copy to the
                         hook */
    brg_scope *scope;
    brg_tensor *at[N_LEAVES];
    brg_ddp *ddp;
} leaves;

static double probe_begin, probe_spent;

static brg_status begin_probe(brg_tensor *leaf, void *user)
{
    (void)leaf;
    (void)user;
    probe_begin = bench_seconds();
    return BRG_OK;
}

static brg_status end_probe(brg_tensor *leaf, void *user)
{
    (void)leaf;
    (void)user;
    probe_spent += bench_seconds() - probe_begin;
    return BRG_OK;
}

static void add_probes(leaves *l, brg_post_accumulate_fn fn)
{
    for (size_t i = 0; i < N_LEAVES; i++)
        bench_must(brg_tensor_add_post_accumulate_hook(NULL, l->at[i], fn, NULL,
                                                       NULL));
}

static void leaves_init(leaves *l, bool is_in_place)
{
    *l = (leaves){.is_in_place = is_in_place, .scope = brg_scope_begin()};
    for (size_t i = 0; i < N_LEAVES; i++) {
        l->at[i] = bench_some(brg_full(BRG_DTYPE_F32, BRG_SHAPE(1, COUNT), 1));
        bench_must(brg_set_requires_grad(l->at[i], true));
    }
}

static void leaves_reduce(leaves *l, brg_pg *pg, size_t n_buckets)
{
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    options.keep_order = true;
    if (n_buckets > 1) /* else the default, one bucket here */
        options.first_bucket_bytes = options.bucket_bytes =
            N_LEAVES * COUNT * sizeof(float) / n_buckets;
    bench_must(brg_ddp_create(&l->ddp, pg, l->at, N_LEAVES, NULL, 0, &options));
}

static void leaves_deinit(leaves *l)
{
    brg_ddp_destroy(l->ddp);
    brg_scope_end(l->scope);
}

/* A backward, and its gradients given back: a hook gives back what it has
 * copied, which has to be done without it as well. The wait at its end is no
 * part of it. */
static double time_backward(leaves *l)
{
    brg_scope *scope = brg_scope_begin();
    brg_reducer_stats stats = {0};
    const int n_rows = l->is_in_place ? 2 : 1;
    brg_tensor *all =
        bench_some(brg_full(BRG_DTYPE_F32, BRG_SHAPE(n_rows, COUNT), 1));
    for (size_t i = 0; i < N_LEAVES; i++)
        all = bench_some(brg_mul(all, l->at[i]));
    brg_tensor *loss = bench_some(brg_sum_all(all));
    double start = bench_seconds();
    bench_must(brg_backward(loss));
    for (size_t i = 0; i < N_LEAVES; i++)
        bench_must(brg_tensor_set_grad(l->at[i], NULL));
    double seconds = bench_seconds() - start;
    if (l->ddp)
        brg_ddp_get_stats(l->ddp, &stats);
    if (l->ddp && (stats.n_packed_bytes == 0) != l->is_in_place)
        bench_fail("gradients reach their slots another way");
    brg_scope_end(scope);
    return seconds - 1e-9 * (double)stats.wait_ns;
}

/* With a ddp and without, in turn, so that both see the same machine; of the
 * rounds in which it was quietest, going by the backward without. */
static double time_hooks(leaves *with, leaves *without, bool is_probed)
{
    static bench_pairs pairs;
    pairs.n = 0;
    for (size_t k = 0; k < N_ROUNDS; k++) {
        probe_spent = 0;
        const double a = time_backward(with), probed = probe_spent;
        probe_spent = 0;
        const double b = time_backward(without);
        bench_pairs_add(&pairs, is_probed ? probed - probe_spent : a - b, b, b);
    }
    return 1e9 * bench_pairs_a(&pairs) / N_LEAVES;
}

static void run_hooks(brg_pg *pg, const char *name, size_t n_buckets)
{
    static leaves with, without;
    double ns[N_REPEATS];
    leaves_init(&with, false);
    leaves_reduce(&with, pg, n_buckets);
    leaves_init(&without, false);
    for (int k = 0; k < N_REPEATS; k++)
        ns[k] = time_hooks(&with, &without, false);
    print_cost(name, ns);
    leaves_deinit(&without);
    leaves_deinit(&with);
}

/* Hooks run in the order in which they were added. */
static void run_probes(brg_pg *pg, const char *name, bool is_in_place)
{
    static leaves with, without;
    double ns[N_REPEATS];
    leaves_init(&with, is_in_place);
    add_probes(&with, begin_probe);
    leaves_reduce(&with, pg, N_BUCKETS);
    add_probes(&with, end_probe);
    leaves_init(&without, is_in_place);
    add_probes(&without, begin_probe);
    add_probes(&without, end_probe);
    for (int k = 0; k < N_REPEATS; k++)
        ns[k] = time_hooks(&with, &without, true);
    print_cost(name, ns);
    leaves_deinit(&without);
    leaves_deinit(&with);
}

/* ---- check_finite and measure_norm --------------------------------------------------- */

#define LARGE ((size_t)1 << 20)

typedef enum extra { NONE, FINITE, NORM } extra;

/* The mark of one gradient, which is copied to its slot; with the wait, which
 * copies it back. */
static double time_large(brg_pg *pg, float *x, size_t count, extra what,
                         bool with_wait)
{
    brg_reducer *reducer;
    brg_reducer_param param = {
        .grad = x, .count = count, .dtype = BRG_DTYPE_F32};
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    options.check_finite = what == FINITE;
    options.measure_norm = what == NORM;
    bench_must(brg_reducer_create(&reducer, pg, &param, 1, &options));
    double seconds = 1;
    for (int k = 0; k < 5; k++) {
        double start = bench_seconds();
        bench_must(brg_reducer_mark_ready(reducer, 0));
        double marked = bench_seconds() - start;
        bench_must(brg_reducer_wait(reducer));
        double now = with_wait ? bench_seconds() - start : marked;
        seconds = now < seconds ? now : seconds;
    }
    if (!brg_reducer_grads_finite(reducer, NULL))
        bench_fail("numbers are taken for others");
    if ((brg_reducer_grad_norm(reducer) > 0) != (what == NORM))
        bench_fail("a norm is there without being measured, or none is");
    brg_reducer_destroy(reducer);
    return seconds;
}

/* What looking at a gradient costs: beside packing it, where it is checked;
 * beside a step without communication, where its norm is measured. In turn. */
static void run_extra(brg_pg *pg, const char *prefix, extra what)
{
    static const size_t counts[] = {1 << 14, 1 << 18, LARGE};
    static const char *const names[] = {"64k", "1m", "4m"};
    float *x = malloc(LARGE * sizeof *x);
    if (!x)
        bench_fail("no memory");
    bench_fill(x, LARGE, 1, 1);
    for (size_t i = 0; i < 3; i++) {
        static bench_pairs pairs;
        pairs.n = 0;
        for (int k = 0; k < 60; k++) {
            double before = bench_switches();
            double with = time_large(pg, x, counts[i], what, what == NORM);
            double without = time_large(pg, x, counts[i], NONE, what == NORM);
            bench_pairs_add(&pairs, with, without, bench_switches() - before);
        }
        bench_print(bench_name(prefix, names[i]),
                    bench_pairs_ratio(&pairs, 0.5), "x");
    }
    free(x);
}

int main(void)
{
    brg_pg *pg;
    float *memory = calloc(N_PARAMS * COUNT, sizeof *memory);
    bench_must(brg_pg_create(&pg, "auto", NULL));
    is_alone = brg_pg_world_size(pg) == 1;
    rank = brg_pg_rank(pg);
    run_marks(pg, "mark_in_slot", NULL);
    run_marks(pg, "mark_and_copy", memory);
    if (is_alone) {
        run_hooks(pg, "hook", 0);
        run_hooks(pg, "hook_of_8_buckets", N_BUCKETS);
    }
    run_probes(pg, "hook_itself", false);
    run_probes(pg, "hook_itself_in_place", true);
    if (is_alone) {
        run_extra(pg, "reducer.finite", FINITE);
        run_extra(pg, "reducer.norm", NORM);
    }
    brg_pg_destroy(pg);
    free(memory);
    return 0;
}
