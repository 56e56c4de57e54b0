/* SPDX-License-Identifier: Apache-2.0
 * Whole steps that a device records once and is then told to do again, on a
 * device made for tests: losses and parameters have the bits of eager steps. */
#include <brigade/brigade.h>

#include "reducer/ddp.h"
#include "tests/rows/both.h"
#include "tests/support/device_group.h"
#include "tests/support/recording_device.h"

#define N_STEPS 9
#define N_PARAMS 4

/* ---- A model -------------------------------------------------------------------- */

typedef struct model {
    brg_tensor *p[N_PARAMS];
    brg_tensor *seen; /* changed in place by each step */
    brg_optim *optim;
    brg_params *params;
    brg_status (*end)(struct model *m); /* what follows the backward */
    bool zeroes_first;                  /* gradients go when a step begins */
    double dropout;
    int n_steps;
    brg_pg *pg;
    brg_ddp *ddp;
    bool looks;    /* at gradients, when they are reduced */
    bool keeps;    /* gradients become zeros where they are */
    bool may_skip; /* steps whose gradients were not finite */
    brg_comm_hook *hook;
} model;

static brg_tensor *there(brg_tensor *t)
{
    return assert_brg_some(brg_to(t, THERE));
}

static brg_status end_plainly(model *m)
{
    return brg_optim_step(m->optim);
}

/* Gradients of two backwards add up. */
static brg_status end_at_every_other(model *m)
{
    return m->n_steps % 2 ? brg_optim_step(m->optim) : BRG_OK;
}

static void model_make(model *m, bool is_adamw)
{
    static const int64_t shapes[N_PARAMS][2] = {{6, 5}, {6, 0}, {3, 6}, {3, 0}};
    *m = (model){.end = end_plainly};
    brg_seed(11);
    assert_brg_ok(brg_params_create(&m->params));
    for (int i = 0; i < N_PARAMS; i++) {
        char name[8];
        m->p[i] = brg_retain(
            there(brg_randn(BRG_DTYPE_F32, shapes[i][1] ? 2 : 1, shapes[i])));
        assert_brg_ok(brg_set_requires_grad(m->p[i], true));
        snprintf(name, sizeof name, "p%d", i);
        assert_brg_ok(
            brg_params_add(m->params, name, m->p[i], BRG_PARAM_TRAINED));
    }
    m->seen = brg_retain(there(brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(3))));
    if (is_adamw) {
        brg_adamw_options adamw = BRG_ADAMW_OPTIONS_INIT;
        assert_brg_ok(brg_optim_create_adamw(&m->optim, m->params, &adamw));
    } else {
        brg_sgd_options sgd = BRG_SGD_OPTIONS_INIT;
        sgd.lr = 0.1;
        sgd.momentum = 0.9;
        assert_brg_ok(brg_optim_create_sgd(&m->optim, m->params, &sgd));
    }
}

static void model_free(model *m)
{
    brg_optim_destroy(m->optim);
    brg_params_destroy(m->params);
    for (int i = 0; i < N_PARAMS; i++)
        brg_release(m->p[i]);
    brg_release(m->seen);
}

/* in: x (n, 5) and y (n, 3). */
static brg_status step(brg_tensor *const *in, size_t n_in, brg_tensor **out,
                       size_t n_out, void *user)
{
    model *m = user;
    (void)n_in;
    (void)n_out;
    if (m->zeroes_first)
        BRG_TRY(brg_optim_zero_grad(m->optim, false));
    brg_tensor *h = brg_relu(brg_linear(in[0], m->p[0], m->p[1]));
    if (m->dropout > 0)
        h = brg_dropout(h, m->dropout, true);
    brg_tensor *y = brg_linear(h, m->p[2], m->p[3]);
    out[0] = brg_mean_all(brg_square(brg_sub(y, in[1])));
    if (!out[0])
        return brg_error_code();
    BRG_TRY(brg_backward(out[0]));
    BRG_TRY(brg_add_(m->seen, brg_sum(brg_detach(y), 1, (int[]){0}, false), 1));
    BRG_TRY(m->end(m));
    if (m->zeroes_first ||
        (m->end == end_at_every_other && m->n_steps % 2 == 0))
        return BRG_OK;
    return brg_optim_zero_grad(m->optim, m->keeps);
}

/* ---- Runs of it -------------------------------------------------------------------- */

typedef struct history {
    float loss[N_STEPS];
    double norm[N_STEPS]; /* of the reducer's gradients */
    int bad[N_STEPS];     /* 1 + the parameter whose gradient was not finite */
    float end[256];
    size_t n;
    uint64_t n_skipped; /* steps */
} history;

static void read_one(history *h, brg_tensor *of)
{
    brg_tensor *t = assert_brg_some(brg_to(
        of->dtype == BRG_DTYPE_F32 ? of : brg_cast(of, BRG_DTYPE_F32), HOME));
    assert_true(h->n + (size_t)brg_tensor_numel(t) <= 256);
    memcpy(h->end + h->n, brg_tensor_data(t), brg_tensor_nbytes(t));
    h->n += (size_t)brg_tensor_numel(t);
}

static void read_all(history *h, const model *m)
{
    brg_tensor *tensors[N_PARAMS + 1] = {m->p[0], m->p[1], m->p[2], m->p[3],
                                         m->seen};
    h->n = 0;
    for (int i = 0; i <= N_PARAMS; i++)
        read_one(h, tensors[i]);
    h->n_skipped = brg_optim_n_skipped(m->optim);
    assert_int_equal(h->n_skipped, m->may_skip);
    for (size_t i = 0; i < brg_comm_hook_state_count(m->hook); i++)
        read_one(h, brg_comm_hook_state_at(m->hook, i)->tensor);
}

#define BAD_STEP 5 /* is launched */

static void look(const model *m, int k, history *h)
{
    brg_finite_info info;
    h->norm[k] = brg_reducer_grad_norm(brg_ddp_reducer(m->ddp));
    if (!brg_ddp_grads_finite(m->ddp, &info))
        h->bad[k] = 1 + (int)info.param;
    assert_int_equal(info.n_ranks, h->bad[k] > 0);
    assert_int_equal(h->bad[k] > 0, k == BAD_STEP);
    assert_int_equal(isfinite(h->norm[k]) != 0, k != BAD_STEP);
}

static void one_step(model *m, brg_compiled *compiled, int k, int n, history *h)
{
    brg_scope *scope = brg_scope_begin();
    brg_tensor *in[2], *out = NULL;
    double loss;
    brg_seed(100 + (uint64_t)k);
    in[0] = there(brg_randn(BRG_DTYPE_F32, BRG_SHAPE(n, 5)));
    in[1] = there(brg_randn(BRG_DTYPE_F32, BRG_SHAPE(n, 3)));
    if ((m->looks || m->may_skip) && k == BAD_STEP)
        in[1] = there(brg_full(BRG_DTYPE_F32, BRG_SHAPE(n, 3), INFINITY));
    assert_brg_ok(brg_optim_set_lr(m->optim, 0.1 / (1 + k)));
    assert_brg_ok(compiled ? brg_compiled_call(compiled, in, 2, &out, 1)
                           : step(in, 2, &out, 1, m));
    assert_brg_ok(brg_tensor_item(out, &loss));
    h->loss[k] = (float)loss;
    if (m->looks)
        look(m, k, h);
    brg_scope_end(scope);
}

static brg_compiled *compile(model *m)
{
    brg_compiled *compiled;
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    options.fullgraph = options.whole = options.replay = true;
    assert_brg_ok(brg_compiled_create(&compiled, step, m, &options));
    return compiled;
}

static void distribute(model *m, brg_ddp_buffers sync)
{
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    options.first_bucket_bytes = options.bucket_bytes = 64;
    options.sync_buffers = sync;
    options.check_finite = m->looks || m->may_skip;
    options.measure_norm = m->looks;
    options.hook = m->hook;
    m->pg = group_there();
    assert_brg_ok(
        brg_ddp_create(&m->ddp, m->pg, m->p, N_PARAMS, &m->seen, 1, &options));
    if (m->may_skip)
        assert_brg_ok(
            brg_optim_set_found_inf(m->optim, brg_ddp_found_inf(m->ddp)));
}

static void end_distribution(model *m)
{
    brg_reducer_stats stats;
    if (!m->ddp)
        return;
    assert_brg_ok(brg_ddp_confirm(m->ddp));
    brg_ddp_get_stats(m->ddp, &stats);
    assert_int_equal(stats.n_steps, N_STEPS);
    assert_true(stats.n_buckets > 1);
    brg_ddp_destroy(m->ddp);
    brg_comm_hook_destroy(m->hook);
    brg_pg_destroy(m->pg);
}

typedef struct variant {
    bool is_adamw, zeroes_first, has_ddp, looks, may_skip;
    brg_ddp_buffers sync;
    double dropout;
    brg_status (*end)(model *m);
    brg_status (*hook)(brg_comm_hook **out); /* with has_ddp; or NULL */
} variant;

static void run(const variant *v, bool is_compiled, history *h)
{
    model m;
    brg_scope *scope = brg_scope_begin();
    model_make(&m, v->is_adamw);
    m.zeroes_first = v->zeroes_first;
    m.dropout = v->dropout;
    m.looks = v->looks;
    m.may_skip = v->may_skip;
    m.end = v->end ? v->end : end_plainly;
    if (v->hook)
        assert_brg_ok(v->hook(&m.hook));
    if (v->has_ddp)
        distribute(&m, v->sync);
    brg_compiled *compiled = is_compiled ? compile(&m) : NULL;
    memset(h, 0, sizeof *h);
    for (int k = 0; k < N_STEPS; k++)
        one_step(&m, compiled, k, 4, h);
    read_all(h, &m);
    brg_compiled_destroy(compiled);
    end_distribution(&m);
    model_free(&m);
    brg_scope_end(scope);
}

/* Eager and compiled alike; the counts of what was compiled. */
static brg_compile_stats check(const variant *v)
{
    static history eager, launched;
    int64_t before = seen.n_blocks;
    assert_brg_ok(brg_compile_reset());
    run(v, false, &eager);
    run(v, true, &launched);
    assert_memory_equal(&eager, &launched, sizeof eager);
    assert_true(eager.loss[0] != eager.loss[N_STEPS - 1]);
    assert_int_equal(seen.n_blocks, before);
    assert_int_equal(compile_stats().function_fallbacks, 0);
    return compile_stats();
}

static void expect_skip(const char *why)
{
    brg_compile_record record;
    assert_true(brg_compile_get_record(0, &record));
    assert_int_equal(record.cause, BRG_COMPILE_REPLAY_SKIP);
    if (!strstr(record.text, why))
        fail_msg("'%s' does not say '%s'", record.text, why);
}

/* ---- What is launched --------------------------------------------------------------- */

static void test_relaunch__a_step_is_recorded_once(void **state)
{
    (void)state;
    for (int is_adamw = 0; is_adamw < 2; is_adamw++) {
        brg_compile_stats s = check(&(variant){.is_adamw = is_adamw});
        assert_int_equal(s.replays, 1);
        assert_int_equal(s.replay_skips, 0);
        assert_int_equal(s.replay_recordings, 1);
        assert_int_equal(s.replay_launches, N_STEPS - 3);
    }
}

/* More of it in test_relaunch_numbers.c. */
static void test_relaunch__dropout_draws_at_each_run(void **state)
{
    (void)state;
    for (int has_ddp = 0; has_ddp < 2; has_ddp++) {
        brg_compile_stats s =
            check(&(variant){.dropout = 0.25, .has_ddp = has_ddp});
        assert_int_equal(s.replay_skips, 0);
        assert_int_equal(s.replay_launches, N_STEPS - 3);
    }
}

/* Packing and reductions are part of the launch; the reducer counts its steps
 * and asks after each what the one before came to. */
static void test_relaunch__with_a_reducer(void **state)
{
    (void)state;
    for (int first = 0; first < 2; first++) {
        brg_compile_stats s =
            check(&(variant){.has_ddp = true, .zeroes_first = first});
        assert_int_equal(s.replay_skips, 0);
        assert_int_equal(s.replay_recordings, 1);
        assert_int_equal(s.replay_launches, N_STEPS - 3);
    }
}

/* Buffers go with each launch. */
static void test_relaunch__with_buffers(void **state)
{
    (void)state;
    for (int sync = 1; sync <= 2; sync++) {
        n_loads = n_unloads = 0;
        brg_compile_stats s =
            check(&(variant){.has_ddp = true, .sync = (brg_ddp_buffers)sync});
        assert_int_equal(s.replay_skips, 0);
        assert_int_equal(s.replay_launches, N_STEPS - 3);
        assert_int_equal(n_loads, 2 * N_STEPS); /* eager and compiled */
        assert_int_equal(n_unloads, 2 * N_STEPS);
    }
}

/* In one step a gradient is infinite; nothing is updated in this training. */
static brg_status end_with_nothing(model *m)
{
    (void)m;
    return BRG_OK;
}

/* Looks are part of the launch, too: each step has its own norm, and the bad
 * one, and no other, is said to be so. */
static void test_relaunch__gradients_are_looked_at(void **state)
{
    (void)state;
    brg_compile_stats s = check(
        &(variant){.has_ddp = true, .looks = true, .end = end_with_nothing});
    assert_int_equal(s.replay_skips, 0);
    assert_int_equal(s.replay_recordings, 1);
    assert_int_equal(s.replay_launches, N_STEPS - 3);
}

/* The host counts steps, and hears before the next one that one was left out. */
static void test_relaunch__steps_that_may_be_left_out(void **state)
{
    (void)state;
    for (int is_adamw = 0; is_adamw < 2; is_adamw++) {
        brg_compile_stats s = check(&(variant){
            .has_ddp = true, .may_skip = true, .is_adamw = is_adamw});
        assert_int_equal(s.replay_skips, 0);
        assert_int_equal(s.replay_recordings, 1);
        assert_int_equal(s.replay_launches, N_STEPS - 3);
    }
}

static brg_status make_cast(brg_comm_hook **out)
{
    return brg_comm_hook_create_cast(out, BRG_DTYPE_BF16, false);
}

static brg_status make_fed_back(brg_comm_hook **out)
{
    return brg_comm_hook_create_cast(out, BRG_DTYPE_BF16, true);
}

static brg_status make_q8(brg_comm_hook **out)
{
    return brg_comm_hook_create_q8(out, true);
}

static brg_status make_powersgd(brg_comm_hook **out, int64_t start, bool cold)
{
    brg_powersgd_options options = BRG_POWERSGD_OPTIONS_INIT;
    options.min_saving = 1;
    options.start_step = start;
    options.no_warm_start = cold;
    return brg_comm_hook_create_powersgd(out, &options);
}

static brg_status make_warm(brg_comm_hook **out)
{
    return make_powersgd(out, 0, false);
}

static brg_status make_later(brg_comm_hook **out)
{
    return make_powersgd(out, 4, false);
}

static brg_status make_cold(brg_comm_hook **out)
{
    return make_powersgd(out, 0, true);
}

/* Errors fed back and counts of steps, too, are those of eager steps. */
static void test_relaunch__with_communication_hooks(void **state)
{
    (void)state;
    static const struct {
        brg_status (*make)(brg_comm_hook **out);
        uint64_t n_recordings;
    } hooks[] = {{make_cast, 1}, {make_fed_back, 1}, {make_q8, 1},
                 {make_warm, 1}, {make_later, 2},    {make_cold, 0}};
    for (size_t i = 0; i < sizeof hooks / sizeof *hooks; i++) {
        const uint64_t n = hooks[i].n_recordings;
        brg_compile_stats s =
            check(&(variant){.has_ddp = true, .hook = hooks[i].make});
        assert_int_equal(s.replay_recordings, n);
        assert_int_equal(s.replay_launches, n ? N_STEPS - 2 - n : 0);
    }
}

static brg_status end_clipped_there(model *m)
{
    BRG_TRY(brg_clip_grad_norm(NULL, m->params, 0.5, false));
    return brg_optim_step(m->optim);
}

static brg_status end_scaled(model *m)
{
    BRG_TRY(brg_scale_grad(m->params, 0.5));
    BRG_TRY(brg_clip_grad_value(m->params, 0.01));
    return brg_optim_step(m->optim);
}

/* The device measures the norm itself. */
static void test_relaunch__clipping_on_the_device(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        brg_compile_stats s =
            check(&(variant){.end = i ? end_scaled : end_clipped_there});
        assert_int_equal(s.replay_skips, 0);
        assert_int_equal(s.replay_launches, N_STEPS - 3);
    }
}

/* Each recording drops the gradients of the one before. */
static void test_relaunch__gradients_dropped_first(void **state)
{
    (void)state;
    brg_compile_stats s = check(&(variant){.zeroes_first = true});
    assert_int_equal(s.replay_skips, 0);
    assert_in_range(s.replay_recordings, 1, 4);
    assert_int_equal(s.replay_launches, N_STEPS - 2 - s.replay_recordings);
}

static void test_relaunch__the_host_calls_no_kernel(void **state)
{
    (void)state;
    model m;
    history h;
    model_make(&m, true);
    brg_compiled *compiled = compile(&m);
    for (int k = 0; k < 3; k++)
        one_step(&m, compiled, k, 4, &h);
    int64_t n = seen.n_kernels;
    for (int k = 3; k < N_STEPS; k++)
        one_step(&m, compiled, k, 4, &h);
    assert_int_equal(seen.n_kernels, n);
    brg_compiled_destroy(compiled);
    model_free(&m);
}

/* Each size has a graph of its own. */
static void test_relaunch__two_sizes(void **state)
{
    (void)state;
    static history h[2];
    assert_brg_ok(brg_compile_reset());
    for (int is_compiled = 0; is_compiled < 2; is_compiled++) {
        model m;
        model_make(&m, false);
        brg_compiled *compiled = is_compiled ? compile(&m) : NULL;
        for (int k = 0; k < N_STEPS; k++)
            one_step(&m, compiled, k, 3 + k % 2, &h[is_compiled]);
        read_all(&h[is_compiled], &m);
        brg_compiled_destroy(compiled);
        model_free(&m);
    }
    assert_memory_equal(&h[0], &h[1], sizeof h[0]);
    assert_int_equal(compile_stats().replay_recordings, 2);
    assert_int_equal(compile_stats().replay_launches, N_STEPS - 6);
}

/* The step is run as it is while somebody holds a gradient that it would
 * overwrite. */
static void test_relaunch__a_gradient_that_is_kept(void **state)
{
    (void)state;
    model m;
    history h;
    assert_brg_ok(brg_compile_reset());
    model_make(&m, false);
    m.zeroes_first = true;
    brg_compiled *compiled = compile(&m);
    for (int k = 0; k < 7; k++)
        one_step(&m, compiled, k, 4, &h);
    uint64_t n = compile_stats().replay_launches;
    assert_true(n > 0);
    brg_tensor *kept = brg_retain(brg_tensor_grad(m.p[0]));
    float before[30], after[30];
    assert_brg_ok(brg_tensor_read(kept, before, sizeof before));
    one_step(&m, compiled, 7, 4, &h);
    assert_brg_ok(brg_tensor_read(kept, after, sizeof after));
    assert_memory_equal(before, after, sizeof before);
    assert_int_equal(compile_stats().replay_launches, n);
    brg_release(kept);
    brg_compiled_destroy(compiled);
    model_free(&m);
}

/* What the caller got is his: the next launch does not change it. */
static void test_relaunch__results_stay(void **state)
{
    (void)state;
    model m;
    history h;
    model_make(&m, false);
    brg_compiled *compiled = compile(&m);
    for (int k = 0; k < 4; k++)
        one_step(&m, compiled, k, 4, &h);
    brg_tensor *in[2] = {there(brg_ones(BRG_DTYPE_F32, BRG_SHAPE(4, 5))),
                         there(brg_ones(BRG_DTYPE_F32, BRG_SHAPE(4, 3)))};
    brg_tensor *first, *second;
    double a, b, again;
    assert_brg_ok(brg_compiled_call(compiled, in, 2, &first, 1));
    assert_brg_ok(brg_tensor_item(first, &a));
    assert_brg_ok(brg_compiled_call(compiled, in, 2, &second, 1));
    assert_brg_ok(brg_tensor_item(first, &again));
    assert_brg_ok(brg_tensor_item(second, &b));
    assert_true(a == again && a != b);
    brg_compiled_destroy(compiled);
    model_free(&m);
}

/* ---- Micro-batches ------------------------------------------------------------------- */

/* Steps since the last one in which reductions went off and on: 2 n times. */
static void add_micro_batches(model *m, int n)
{
    for (int i = 0; i < n; i++) {
        brg_scope *scope = brg_scope_begin();
        assert_true(brg_ddp_set_sync(m->ddp, false));
        brg_tensor *x = there(brg_randn(BRG_DTYPE_F32, BRG_SHAPE(2, 5)));
        brg_tensor *h = brg_relu(brg_linear(x, m->p[0], m->p[1]));
        assert_brg_ok(brg_backward(
            brg_mean_all(brg_square(brg_linear(h, m->p[2], m->p[3])))));
        assert_false(brg_ddp_set_sync(m->ddp, true));
        brg_scope_end(scope);
    }
}

/* What the last reduction said of this rank's switches. */
static float said_of_switches(const model *m)
{
    const brg_reducer *r = brg_ddp_reducer(m->ddp);
    const float *tail = (const void *)(r->arena + r->plan.tail_offset);
    return tail[r->n_params + 2];
}

/* However many there are before a step, it is launched and tells the others. */
static void test_relaunch__behind_micro_batches(void **state)
{
    (void)state;
    static history h[2];
    assert_brg_ok(brg_compile_reset());
    for (int is_compiled = 0; is_compiled < 2; is_compiled++) {
        model m;
        model_make(&m, true);
        m.keeps = true;
        distribute(&m, BRG_DDP_BUFFERS_LEAVE);
        brg_compiled *compiled = is_compiled ? compile(&m) : NULL;
        for (int k = 0; k < N_STEPS; k++) {
            brg_seed(700 + (uint64_t)k);
            add_micro_batches(&m, k % 3);
            one_step(&m, compiled, k, 3 + k % 2, &h[is_compiled]);
            assert_true(said_of_switches(&m) == (float)(2 * (k % 3)));
        }
        read_all(&h[is_compiled], &m);
        brg_compiled_destroy(compiled);
        end_distribution(&m);
        model_free(&m);
    }
    assert_memory_equal(&h[0], &h[1], sizeof h[0]);
    assert_int_equal(compile_stats().replay_skips, 0);
    assert_int_equal(compile_stats().replay_recordings, 2);
    assert_int_equal(compile_stats().replay_launches, N_STEPS - 6);
}

/* ---- Backwards alone ------------------------------------------------------------------- */

/* Only the ops are launched: gradients arrive at leaves by the host, are added
 * to what is there, and belong to whoever holds them. */
static void test_relaunch__backwards(void **state)
{
    (void)state;
    static history h[2];
    assert_brg_ok(brg_compile_reset());
    for (int is_compiled = 0; is_compiled < 2; is_compiled++) {
        model m;
        int scope = 0;
        brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
        options.fullgraph = options.replay = true;
        model_make(&m, true);
        m.end = end_at_every_other;
        if (is_compiled)
            assert_brg_ok(brg_compile_begin(&scope, &options));
        for (int k = 0; k < N_STEPS; k++) {
            m.n_steps = k;
            one_step(&m, NULL, k, 4, &h[is_compiled]);
        }
        if (is_compiled)
            assert_brg_ok(brg_compile_end(scope));
        read_all(&h[is_compiled], &m);
        model_free(&m);
    }
    assert_memory_equal(&h[0], &h[1], sizeof h[0]);
    /* one plan with gradients that are there, and one without */
    assert_int_equal(compile_stats().replays, 2);
    assert_int_equal(compile_stats().replay_skips, 0);
    assert_int_equal(compile_stats().replay_recordings, 2);
    assert_int_equal(compile_stats().replay_launches, N_STEPS - 4);
}

static void test_relaunch__a_gradient_of_a_backward_stays(void **state)
{
    (void)state;
    brg_tensor *w = there(brg_ones(BRG_DTYPE_F32, BRG_SHAPE(3))), *kept[5];
    int scope;
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    options.replay = true;
    assert_brg_ok(brg_compile_reset());
    assert_brg_ok(brg_set_requires_grad(w, true));
    assert_brg_ok(brg_compile_begin(&scope, &options));
    for (int k = 0; k < 5; k++) {
        brg_tensor *x = there(brg_full(BRG_DTYPE_F32, BRG_SHAPE(3), (double)k));
        brg_tensor *y = brg_sum_all(brg_mul(brg_mul(w, x), w));
        assert_brg_ok(brg_grad(&kept[k], &y, 1, &w, 1, NULL));
    }
    assert_brg_ok(brg_compile_end(scope));
    for (int k = 0; k < 5; k++) {
        float value[3];
        assert_brg_ok(brg_tensor_read(kept[k], value, sizeof value));
        for (int i = 0; i < 3; i++)
            assert_float_equal(value[i], 2.0 * k, 0);
    }
    assert_int_equal(compile_stats().replay_launches, 3);
}

/* ---- What is not ----------------------------------------------------------------------- */

static brg_status end_clipped(model *m)
{
    BRG_TRY(brg_clip_grad_norm(NULL, m->params, 0.5, true));
    return brg_optim_step(m->optim);
}

static void test_relaunch__clipping_needs_the_host(void **state)
{
    (void)state;
    brg_compile_stats s = check(&(variant){.end = end_clipped});
    assert_int_equal(s.replay_launches, 0);
    assert_int_equal(s.replay_skips, 1);
    expect_skip("the host has to act: clip_grad_norm");
}

static brg_status there_and_back(brg_tensor *const *in, size_t n_in,
                                 brg_tensor **out, size_t n_out, void *user)
{
    model *m = user;
    (void)n_in;
    (void)n_out;
    brg_tensor *y =
        brg_linear(brg_linear(in[0], m->p[0], m->p[1]), m->p[2], m->p[3]);
    y = brg_to(brg_to(y, HOME), THERE);
    out[0] = brg_mean_all(brg_square(y));
    BRG_TRY(brg_backward(out[0]));
    BRG_TRY(brg_optim_step(m->optim));
    return brg_optim_zero_grad(m->optim, false);
}

/* Found while half of the step is recorded: the rest runs, nothing is lost. */
static void test_relaunch__a_copy_to_the_host_in_the_middle(void **state)
{
    (void)state;
    double loss[2][6];
    assert_brg_ok(brg_compile_reset());
    for (int is_compiled = 0; is_compiled < 2; is_compiled++) {
        model m;
        brg_compiled *compiled;
        brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
        options.fullgraph = options.whole = options.replay = true;
        model_make(&m, false);
        assert_brg_ok(
            brg_compiled_create(&compiled, there_and_back, &m, &options));
        brg_tensor *x = there(brg_ones(BRG_DTYPE_F32, BRG_SHAPE(4, 5))), *out;
        for (int k = 0; k < 6; k++) {
            assert_brg_ok(is_compiled
                              ? brg_compiled_call(compiled, &x, 1, &out, 1)
                              : there_and_back(&x, 1, &out, 1, &m));
            assert_brg_ok(brg_tensor_item(out, &loss[is_compiled][k]));
        }
        brg_compiled_destroy(compiled);
        model_free(&m);
    }
    assert_memory_equal(loss[0], loss[1], sizeof loss[0]);
    assert_int_equal(compile_stats().replay_recordings, 1);
    assert_int_equal(compile_stats().replay_launches, 0);
    expect_skip("a copy to or from the host");
}

static brg_status twice(brg_tensor *grad, brg_tensor **replaced, void *user)
{
    (void)user;
    *replaced = brg_mul_scalar(grad, 2);
    return *replaced ? BRG_OK : brg_error_code();
}

/* A hook that comes and goes: the graph serves the calls without it. */
static void test_relaunch__a_hook_at_a_leaf(void **state)
{
    (void)state;
    static history h[2];
    assert_brg_ok(brg_compile_reset());
    for (int is_compiled = 0; is_compiled < 2; is_compiled++) {
        model m;
        brg_hook *hook = NULL;
        model_make(&m, false);
        brg_compiled *compiled = is_compiled ? compile(&m) : NULL;
        for (int k = 0; k < N_STEPS; k++) {
            if (k == 5)
                assert_brg_ok(
                    brg_tensor_add_hook(&hook, m.p[0], twice, NULL, NULL));
            one_step(&m, compiled, k, 4, &h[is_compiled]);
            if (k == 6)
                brg_hook_remove(hook);
        }
        read_all(&h[is_compiled], &m);
        brg_compiled_destroy(compiled);
        model_free(&m);
    }
    assert_memory_equal(&h[0], &h[1], sizeof h[0]);
    assert_int_equal(compile_stats().replay_recordings, 1);
    assert_int_equal(compile_stats().replay_launches, N_STEPS - 3 - 2);
}

static int register_recording_device(void **state)
{
    (void)state;
    return brg_device_register(BRG_DEVICE_CUDA, &recording_device);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_relaunch__a_step_is_recorded_once),
        scoped_test(test_relaunch__dropout_draws_at_each_run),
        scoped_test(test_relaunch__with_a_reducer),
        scoped_test(test_relaunch__with_buffers),
        scoped_test(test_relaunch__gradients_are_looked_at),
        scoped_test(test_relaunch__steps_that_may_be_left_out),
        scoped_test(test_relaunch__with_communication_hooks),
        scoped_test(test_relaunch__clipping_on_the_device),
        scoped_test(test_relaunch__gradients_dropped_first),
        scoped_test(test_relaunch__the_host_calls_no_kernel),
        scoped_test(test_relaunch__two_sizes),
        scoped_test(test_relaunch__a_gradient_that_is_kept),
        scoped_test(test_relaunch__results_stay),
        scoped_test(test_relaunch__behind_micro_batches),
        scoped_test(test_relaunch__backwards),
        scoped_test(test_relaunch__a_gradient_of_a_backward_stays),
        scoped_test(test_relaunch__clipping_needs_the_host),
        scoped_test(test_relaunch__a_copy_to_the_host_in_the_middle),
        scoped_test(test_relaunch__a_hook_at_a_leaf),
    };
    return cmocka_run_group_tests(tests, register_recording_device, NULL);
}
