/* SPDX-License-Identifier: Apache-2.0
 * What the trace costs: a record, of which a reducer writes one for each
 * gradient (on and off in turn), a mark of the user's, a training step with and
 * without. */
#include <stdlib.h>

#include <brigade/brigade.h>

#include "bench/bench.h"

enum { N_PARAMS = 1024, COUNT = 16, N_ROUNDS = 300, N_MARKS = 10000 };

/* ---- Records ------------------------------------------------------------- */

static brg_reducer *make_reducer(brg_pg *pg)
{
    static brg_reducer_param params[N_PARAMS];
    brg_reducer *reducer;
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    options.keep_order = true;
    for (size_t i = 0; i < N_PARAMS; i++)
        params[i] = (brg_reducer_param){.count = COUNT, .dtype = BRG_DTYPE_F32};
    bench_must(brg_reducer_create(&reducer, pg, params, N_PARAMS, &options));
    return reducer;
}

static double seconds_of_marks(brg_reducer *reducer, bool is_on)
{
    brg_trace_set_enabled(is_on);
    const double start = bench_seconds();
    for (size_t i = N_PARAMS; i-- > 0;)
        bench_must(brg_reducer_mark_ready(reducer, i));
    const double seconds = bench_seconds() - start;
    bench_must(brg_reducer_wait(reducer));
    return seconds;
}

static void bench_records(brg_pg *pg)
{
    static bench_pairs pairs;
    brg_reducer *reducer = make_reducer(pg);
    seconds_of_marks(reducer, true);
    for (int k = 0; k < N_ROUNDS; k++) {
        const double before = bench_switches();
        const double off = seconds_of_marks(reducer, false);
        const double on = seconds_of_marks(reducer, true);
        bench_pairs_add(&pairs, on - off, off, bench_switches() - before);
    }
    bench_at_most("trace.record", 1e9 * bench_pairs_a(&pairs) / N_PARAMS, "ns",
                  50);
    brg_reducer_destroy(reducer);
}

static void bench_marks(void)
{
    static double seconds[N_ROUNDS];
    brg_trace_set_enabled(true);
    for (int k = 0; k < N_ROUNDS; k++) {
        const double start = bench_seconds();
        for (int i = 0; i < N_MARKS; i++)
            brg_trace_mark("forward");
        seconds[k] = bench_seconds() - start;
    }
    bench_at_most("trace.mark", 1e9 * bench_median(seconds, N_ROUNDS) / N_MARKS,
                  "ns", 50);
}

/* ---- A step ----------------------------------------------------------------- */

enum { BATCH = 32, WIDTH = 256, N_LAYERS = 8 };

typedef struct model {
    brg_tensor *x;
    brg_tensor *w[N_LAYERS], *b[N_LAYERS];
    brg_ddp *ddp;
} model;

static void make_model(model *m, brg_pg *pg)
{
    brg_tensor *all[2 * N_LAYERS];
    const int64_t square[] = {WIDTH, WIDTH}, line[] = {WIDTH};
    const int64_t batch[] = {BATCH, WIDTH};
    m->x = bench_random(1, 1, 2, batch);
    for (int i = 0; i < N_LAYERS; i++) {
        all[2 * i] = m->w[i] = bench_random(0.1f, 2, 2, square);
        all[2 * i + 1] = m->b[i] = bench_random(0.1f, 3, 1, line);
        bench_must(brg_set_requires_grad(m->w[i], true));
        bench_must(brg_set_requires_grad(m->b[i], true));
    }
    bench_must(brg_ddp_create(&m->ddp, pg, all, 2 * N_LAYERS, NULL, 0, NULL));
}

static double seconds_of_step(model *m, bool is_on)
{
    brg_trace_set_enabled(is_on);
    const double start = bench_seconds();
    brg_scope *scope = brg_scope_begin();
    brg_trace_begin("forward");
    brg_tensor *h = m->x;
    for (int i = 0; i < N_LAYERS; i++)
        h = brg_relu(brg_linear(h, m->w[i], m->b[i]));
    h = bench_some(brg_mean_all(h));
    brg_trace_end("forward");
    bench_must(brg_backward(h));
    brg_scope_end(scope);
    return bench_seconds() - start;
}

static void bench_step(brg_pg *pg)
{
    static bench_pairs pairs;
    model m;
    make_model(&m, pg);
    for (int k = 0; k < 10; k++)
        seconds_of_step(&m, true);
    for (int k = 0; k < N_ROUNDS; k++) {
        const double before = bench_switches();
        const double off = seconds_of_step(&m, false);
        const double on = seconds_of_step(&m, true);
        bench_pairs_add(&pairs, on, off, bench_switches() - before);
    }
    bench_at_most("trace.step", bench_pairs_ratio(&pairs, 0.5), "x", 1.005);
    brg_ddp_destroy(m.ddp);
    brg_release(m.x);
    for (int i = 0; i < N_LAYERS; i++) {
        brg_release(m.w[i]);
        brg_release(m.b[i]);
    }
}

int main(void)
{
    brg_pg *pg;
    bench_must(brg_pg_create_self(&pg));
    bench_records(pg);
    bench_marks();
    bench_step(pg);
    brg_pg_destroy(pg);
    return 0;
}
