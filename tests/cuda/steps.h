/* SPDX-License-Identifier: Apache-2.0
 * The same training steps on a GPU in five ways, which have to give the same
 * bits: eager, with a compiled backward, as a compiled step, as a step that is
 * recorded and launched, with a backward whose ops are. */
#ifndef BRG_TESTS_CUDA_STEPS_H
#define BRG_TESTS_CUDA_STEPS_H

#include "tests/cuda/models.h"
#include "tests/cuda/outside.h"

#define N_STEPS 10
#define MAX_NUMEL (1 << 19)

typedef enum way { EAGER, BACKWARD, STEP, LAUNCHED, GRADIENTS, N_WAYS } way;

static const char *const way_names[N_WAYS] = {"eager", "backward", "step",
                                              "launched", "launched backward"};

static const model_options plain = {0};
/* Its attention is cuDNN's, or by products for f32. */
static const model_options longer = {.context = 128, .dim = 128, .n_heads = 2};

static const model_options dropping = {.dropout = 0.1, .gpt_dropout = 0.1};

/* Gradients are clipped by their norm in each step. */
static bool clips;

/* That compiled ways run with. */
static brg_compile_backend backend_of_ways;

/* In this step the first part of the data is infinite; or -1. */
static int bad_step = -1;

/* Before each step; or NULL. Gradients then become zeros where they are, unless
 * they are dropped all the same. */
static void (*before_step)(model *m, int step);
static bool drops;

/* in: data, targets. */
static inline brg_status run_step(brg_tensor *const *in, size_t n_in,
                                  brg_tensor **out, size_t n_out, void *user)
{
    model *m = user;
    (void)n_in;
    (void)n_out;
    out[0] = brg_cross_entropy(forward(m, in[0]), in[1]);
    if (!out[0])
        return brg_error_code();
    BRG_TRY(brg_backward(out[0]));
    if (clips)
        BRG_TRY(brg_clip_grad_norm(NULL, m->params, 0.5, false));
    BRG_TRY(brg_optim_step(m->optim));
    return brg_optim_zero_grad(m->optim, before_step != NULL && !drops);
}

/* Part `part` of `n` of the batch of a step, on the thread's device. */
static inline void make_data(const model *m, int step, brg_dtype dtype,
                             int part, int n, brg_tensor *in[2])
{
    const int64_t batch = 16, each = batch / n, first = part * each;
    brg_seed(1000 + (uint64_t)step);
    if (m->kind == GPT) {
        in[0] = brg_randint(0, VOCAB, BRG_SHAPE(batch, m->context));
        in[1] = brg_randint(0, VOCAB, BRG_SHAPE(batch, m->context));
    } else {
        in[0] = brg_cast(
            brg_randn(BRG_DTYPE_F32, BRG_SHAPE(batch, 1, SIDE, SIDE)), dtype);
        in[1] = brg_randint(0, N_CLASSES, BRG_SHAPE(batch));
    }
    for (int i = 0; i < 2; i++)
        in[i] =
            assert_brg_some(brg_contiguous(brg_narrow(in[i], 0, first, each)));
}

/* Losses, then all parameters and buffers. */
typedef struct outcome {
    double losses[N_STEPS];
    float numbers[MAX_NUMEL];
    size_t n;
    bool draws; /* random numbers, which a backward alone reads at each run */
    brg_compile_stats stats;
    brg_device_counts counts; /* of the last three steps */
} outcome;

static inline void read_model(outcome *o, const model *m)
{
    bool mode = brg_grad_mode_set(false);
    o->n = 0;
    for (size_t i = 0; i < brg_params_count(m->params); i++) {
        brg_tensor *t = assert_brg_some(
            brg_cast(brg_params_at(m->params, i)->tensor, BRG_DTYPE_F32));
        const size_t n = (size_t)brg_tensor_numel(t);
        assert_true(o->n + n <= MAX_NUMEL);
        assert_brg_ok(brg_tensor_read(t, o->numbers + o->n, n * sizeof(float)));
        o->n += n;
    }
    (void)brg_grad_mode_set(mode);
}

/* Losses stay where they are until the end: a step waits for nothing. */
static inline void run_steps(model *m, way w, brg_dtype dtype, int part, int n,
                             outcome *o)
{
    brg_tensor *losses[N_STEPS];
    brg_compiled *compiled = NULL;
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    brg_device_counts before = {0};
    o->draws = m->dropout > 0;
    options.fullgraph = true;
    options.backend = backend_of_ways;
    options.whole = w == STEP || w == LAUNCHED;
    options.replay = w >= LAUNCHED;
    assert_brg_ok(brg_compile_reset());
    if (w != EAGER)
        assert_brg_ok(brg_compiled_create(&compiled, run_step, m, &options));
    brg_scope *all = brg_scope_begin();
    for (int step = 0; step < N_STEPS; step++) {
        brg_tensor *in[2], *out = NULL;
        if (before_step)
            before_step(m, step);
        make_data(m, step, dtype, part, n, in);
        if (step == bad_step && part == 0)
            assert_brg_ok(brg_fill_(in[0], INFINITY));
        if (step == N_STEPS - 3)
            assert_brg_ok(brg_device_get_counts(brg_device_get(), &before));
        assert_brg_ok(brg_optim_set_lr(m->optim, 0.05 / (1 + step)));
        assert_brg_ok(compiled ? brg_compiled_call(compiled, in, 2, &out, 1)
                               : run_step(in, 2, &out, 1, m));
        losses[step] = out;
    }
    assert_brg_ok(brg_device_get_counts(brg_device_get(), &o->counts));
    o->counts.n_waits -= before.n_waits;
    o->counts.n_allocs -= before.n_allocs;
    o->counts.n_graphs -= before.n_graphs;
    o->counts.reserved -= before.reserved;
    for (int step = 0; step < N_STEPS; step++)
        assert_brg_ok(brg_tensor_item(losses[step], &o->losses[step]));
    brg_scope_end(all);
    read_model(o, m);
    brg_compile_get_stats(&o->stats);
    brg_compiled_destroy(compiled);
}

/* What was compiled is what was asked for. */
static inline void check_counts(kind k, way w, const outcome *o)
{
    /* the attributes of batch norm are read at each run */
    const bool is_skipped = (k == CNN || o->draws) && w == GRADIENTS;
    if (w == EAGER)
        return;
    assert_int_equal(o->stats.fallbacks + o->stats.function_fallbacks, 0);
    assert_int_equal(o->stats.function_hits,
                     w == STEP || w == LAUNCHED ? N_STEPS - 1 : 0);
    assert_int_equal(o->stats.replay_skips, is_skipped);
    if (w < LAUNCHED || is_skipped)
        return;
    if (o->stats.replay_launches == 0)
        print_error("%s\n", brg_compile_reason());
    assert_in_range(o->stats.replay_recordings, 1, 2);
    assert_true(o->stats.replay_launches >= 4);
    assert_int_equal(o->counts.n_graphs, 3);
}

/* The steps of a model of its own on the GPU. */
static inline void run_way(kind k, way w, brg_dtype dtype,
                           const model_options *options, outcome *o)
{
    model m;
    memset(o, 0, sizeof *o);
    brg_scope *scope = brg_scope_begin();
    assert_brg_ok(brg_device_set(GPU));
    model_init(&m, k, dtype, options);
    run_steps(&m, w, dtype, 0, 1, o);
    model_free(&m);
    assert_brg_ok(brg_device_set(CPU));
    brg_scope_end(scope);
}

/* That counting from outside sees what is there to be seen. */
static inline void check_outside(outside *o)
{
    double value;
    if (!outside_begin(o))
        return;
    brg_scope *scope = brg_scope_begin();
    assert_brg_ok(
        brg_tensor_item(brg_ones(BRG_DTYPE_F32, BRG_SHAPE()), &value));
    brg_scope_end(scope);
    outside_end();
    assert_true(o->n_waits > 0);
}

/* No wait, and nothing more from the driver, with data that is there: counted by
 * the library, and from outside. */
static inline void launch_without_waits(model *m, brg_dtype dtype, int part,
                                        int n)
{
    brg_compiled *compiled;
    brg_tensor *in[2], *out;
    brg_device_counts before, after;
    outside seen;
    bool is_seen = false;
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    options.fullgraph = options.whole = options.replay = true;
    make_data(m, 0, dtype, part, n, in);
    check_outside(&seen);
    assert_brg_ok(brg_compile_reset());
    assert_brg_ok(brg_compiled_create(&compiled, run_step, m, &options));
    for (int step = 0; step < 30; step++) {
        brg_scope *one = brg_scope_begin();
        if (step == 10) {
            assert_brg_ok(brg_device_get_counts(brg_device_get(), &before));
            is_seen = outside_begin(&seen);
        }
        assert_brg_ok(brg_compiled_call(compiled, in, 2, &out, 1));
        brg_scope_end(one);
    }
    if (is_seen)
        outside_end();
    if (seen.n_waits + seen.n_memory > 0)
        print_error("%ld waits, %ld calls for memory: %s\n", seen.n_waits,
                    seen.n_memory, seen.first);
    assert_int_equal(seen.n_waits, 0);
    assert_int_equal(seen.n_memory, 0);
    assert_brg_ok(brg_device_get_counts(brg_device_get(), &after));
    assert_int_equal(after.n_graphs - before.n_graphs, 20);
    assert_int_equal(after.n_waits - before.n_waits, 0);
    assert_int_equal(after.n_allocs - before.n_allocs, 20); /* the losses */
    assert_int_equal(after.reserved - before.reserved, 0);
    brg_compiled_destroy(compiled);
}

/* The largest difference of a loss or number. */
static inline double worst_of(const outcome *got, const outcome *want)
{
    double worst = 0;
    assert_int_equal(got->n, want->n);
    for (size_t i = 0; i < got->n; i++)
        worst = fmax(worst, fabs(got->numbers[i] - want->numbers[i]));
    for (int i = 0; i < N_STEPS; i++)
        worst = fmax(worst, fabs(got->losses[i] - want->losses[i]));
    return worst;
}

/* It learnt something, and has the same bits. */
static inline void check_bits(kind k, way w, const outcome *got,
                              const outcome *want)
{
    printf("%s %s: off by %.2g, loss %.5f to %.5f; %d launches, in 3 steps "
           "%d waits, %d pieces of memory, %d bytes from the driver\n",
           kind_names[k], way_names[w], worst_of(got, want), got->losses[0],
           got->losses[N_STEPS - 1], (int)got->stats.replay_launches,
           (int)got->counts.n_waits, (int)got->counts.n_allocs,
           (int)got->counts.reserved);
    assert_true(want->losses[0] != want->losses[N_STEPS - 1]);
    assert_memory_equal(got->losses, want->losses, sizeof got->losses);
    assert_memory_equal(got->numbers, want->numbers,
                        got->n * sizeof *got->numbers);
}

#endif
