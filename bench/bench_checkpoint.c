/* SPDX-License-Identifier: Apache-2.0
 * What activation checkpointing costs: its extra time against the forward that
 * it runs again, and how its peak memory grows with the number of layers. */
#include <math.h>
#include <string.h>

#include <brigade/autograd.h>
#include <brigade/ops.h>
#include <brigade/recompute.h>
#include <brigade/runtime.h>

#include "bench/bench.h"

enum { N_LAYERS = 16, BATCH = 64, WIDTH = 384, N_PASSES = 60 };

/* ---- Time ------------------------------------------------------------------- */

typedef enum manner { PLAIN, FORWARD, EACH, REENTRANT, CHAIN } manner;

typedef struct chain {
    brg_tensor *x, *w[N_LAYERS];
} chain;

static brg_status layer(size_t i, brg_tensor *x, brg_tensor **y, void *user)
{
    const chain *c = user;
    *y = brg_tanh(brg_linear(x, c->w[i], NULL));
    return *y ? BRG_OK : brg_error_code();
}

static brg_status stretch(brg_tensor *const *in, brg_tensor **out, void *user)
{
    (void)user;
    out[0] = brg_tanh(brg_linear(in[0], in[1], NULL));
    return out[0] ? BRG_OK : brg_error_code();
}

static brg_tensor *forward(chain *c, manner how)
{
    brg_recompute_options options = BRG_RECOMPUTE_OPTIONS_INIT;
    options.is_reentrant = how == REENTRANT;
    brg_tensor *h = c->x;
    if (how == CHAIN)
        return bench_some(brg_recompute_chain(layer, c, N_LAYERS, 0, h));
    for (size_t i = 0; i < N_LAYERS; i++) {
        brg_tensor *in[2] = {h, c->w[i]};
        if (how == EACH || how == REENTRANT)
            bench_must(brg_recompute(&h, stretch, NULL, in, 2, &options));
        else
            bench_must(layer(i, h, &h, c));
    }
    return h;
}

/* Seconds of a forward, and of the backward unless that is all. */
static double run(chain *c, manner how)
{
    for (size_t i = 0; i < N_LAYERS; i++)
        bench_must(brg_tensor_set_grad(c->w[i], NULL));
    const double start = bench_seconds();
    brg_scope *scope = brg_scope_begin();
    brg_tensor *y = forward(c, how);
    if (how != FORWARD)
        bench_must(brg_backward(brg_mean_all(y)));
    brg_scope_end(scope);
    const double seconds = bench_seconds() - start;
    for (size_t i = 0; i < N_LAYERS && how != FORWARD; i++)
        if (!brg_tensor_grad(c->w[i]))
            bench_fail("a weight has no gradient");
    return seconds;
}

/* The gradients must be those of the plain chain. */
static void check_gradients(chain *c, manner how)
{
    static float want[WIDTH * WIDTH], got[WIDTH * WIDTH];
    (void)run(c, PLAIN);
    bench_must(brg_tensor_read(brg_tensor_grad(c->w[0]), want, sizeof want));
    (void)run(c, how);
    bench_must(brg_tensor_read(brg_tensor_grad(c->w[0]), got, sizeof got));
    if (memcmp(want, got, sizeof want) != 0)
        bench_fail("checkpointing changed a gradient");
}

static void bench_time(chain *c, manner how, const char *name)
{
    static bench_pairs extra, whole;
    extra.n = whole.n = 0;
    check_gradients(c, how);
    for (int pass = 0; pass < N_PASSES; pass++) {
        const double before = bench_switches();
        const double plain = run(c, PLAIN), again = run(c, FORWARD);
        const double checkpointed = run(c, how);
        const double noise = bench_switches() - before;
        bench_pairs_add(&extra, checkpointed - plain, again, noise);
        bench_pairs_add(&whole, checkpointed, plain + again, noise);
    }
    bench_at_most(bench_name(name, "extra_to_forward"),
                  bench_pairs_ratio(&extra, 0.5), "x", 1.05);
    bench_at_most(bench_name(name, "step_to_sum"),
                  bench_pairs_ratio(&whole, 0.5), "x", 1.05);
}

/* ---- Memory ------------------------------------------------------------------ */

enum { ROW = 65536 };

static brg_status wide_layer(size_t i, brg_tensor *x, brg_tensor **y,
                             void *user)
{
    (void)i;
    (void)user;
    *y = brg_tanh(brg_mul_scalar(x, 1.01));
    return *y ? BRG_OK : brg_error_code();
}

/* Peak bytes beyond the start, in outputs of a layer. */
static double peak(size_t n_layers, size_t n_segments)
{
    brg_tensor *x = bench_random(1, 7, BRG_SHAPE(ROW));
    brg_memory_stats before, after;
    bench_must(brg_set_requires_grad(x, true));
    brg_memory_get_stats(&before);
    brg_memory_reset_peak();
    brg_scope *scope = brg_scope_begin();
    brg_tensor *y =
        brg_recompute_chain(wide_layer, NULL, n_layers, n_segments, x);
    bench_must(brg_backward(brg_sum_all(bench_some(y))));
    brg_scope_end(scope);
    brg_memory_get_stats(&after);
    brg_release(x);
    return (double)(after.peak - before.in_use) / (ROW * sizeof(float));
}

static void bench_memory(void)
{
    const double few = peak(64, 0), many = peak(1024, 0);
    bench_print("checkpoint.peak_64", few, "layers");
    bench_print("checkpoint.peak_256", peak(256, 0), "layers");
    bench_print("checkpoint.peak_1024", many, "layers");
    bench_print("checkpoint.peak_1024_one_stretch", peak(1024, 1), "layers");
    bench_at_most("checkpoint.peak_exponent", log(many / few) / log(16.0), "",
                  0.55);
}

int main(void)
{
    chain c;
    c.x = bench_random(1, 1, BRG_SHAPE(BATCH, WIDTH));
    for (size_t i = 0; i < N_LAYERS; i++) {
        c.w[i] = bench_random(0.05f, i + 2, BRG_SHAPE(WIDTH, WIDTH));
        bench_must(brg_set_requires_grad(c.w[i], true));
    }
    bench_must(brg_set_requires_grad(c.x, true));
    bench_time(&c, EACH, "checkpoint.each");
    bench_time(&c, REENTRANT, "checkpoint.reentrant");
    bench_time(&c, CHAIN, "checkpoint.chain");
    bench_memory();
    for (size_t i = 0; i < N_LAYERS; i++)
        brg_release(c.w[i]);
    brg_release(c.x);
    return 0;
}
