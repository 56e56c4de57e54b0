/* SPDX-License-Identifier: Apache-2.0
 * Numbers of the host in steps that a device is told to do again: inputs and
 * tensors from outside of no dims, rates, and those of dropout. On a device made
 * for tests; losses and parameters have the bits of eager steps. */
#include "tests/compile/replays.h"

#define N_STEPS 10

/* ---- Steps ----------------------------------------------------------------------- */

typedef struct model {
    brg_tensor *w;
    brg_tensor *seen;  /* on the device, changed by some steps */
    brg_tensor *scale; /* a number on the host that is no input */
    brg_optim *optim;
    brg_params *params;
    double p; /* of dropout */
} model;

static void model_make(model *m, bool is_adamw)
{
    *m = (model){.p = 0};
    brg_seed(5);
    m->w = brg_retain(there(brg_randn(BRG_DTYPE_F32, BRG_SHAPE(6, 6))));
    m->seen = brg_retain(there(brg_zeros(BRG_DTYPE_F32, BRG_SHAPE())));
    m->scale = brg_retain(brg_full(BRG_DTYPE_F32, BRG_SHAPE(), 3));
    assert_brg_ok(brg_set_requires_grad(m->w, true));
    assert_brg_ok(brg_params_create(&m->params));
    assert_brg_ok(brg_params_add(m->params, "w", m->w, BRG_PARAM_TRAINED));
    brg_sgd_options sgd = BRG_SGD_OPTIONS_INIT;
    brg_adamw_options adamw = BRG_ADAMW_OPTIONS_INIT;
    sgd.momentum = 0.9;
    assert_brg_ok(is_adamw
                      ? brg_optim_create_adamw(&m->optim, m->params, &adamw)
                      : brg_optim_create_sgd(&m->optim, m->params, &sgd));
}

static void model_free(model *m)
{
    brg_optim_destroy(m->optim);
    brg_params_destroy(m->params);
    brg_release(m->w);
    brg_release(m->seen);
    brg_release(m->scale);
}

static brg_tensor *loss_of(model *m, brg_tensor *x)
{
    brg_tensor *h = brg_dropout(brg_matmul(x, m->w), m->p, true);
    return brg_mean_all(brg_square(brg_dropout(brg_relu(h), m->p, true)));
}

static brg_status train(model *m, brg_tensor *loss)
{
    if (!loss)
        return brg_error_code();
    BRG_TRY(brg_backward(loss));
    BRG_TRY(brg_optim_step(m->optim));
    return brg_optim_zero_grad(m->optim, true);
}

/* The loss is times in[1], a number of the host of any dtype. */
static brg_status step_scaled(brg_tensor *const *in, size_t n_in,
                              brg_tensor **out, size_t n_out, void *user)
{
    (void)n_in;
    (void)n_out;
    brg_tensor *n = brg_cast(brg_to(in[1], THERE), BRG_DTYPE_F32);
    out[0] = brg_mul(loss_of(user, in[0]), n);
    return train(user, out[0]);
}

/* What is computed from it on the host, and a tensor that takes it over. */
static brg_status step_computed(brg_tensor *const *in, size_t n_in,
                                brg_tensor **out, size_t n_out, void *user)
{
    model *m = user;
    (void)n_in;
    (void)n_out;
    brg_tensor *n = brg_add(brg_mul(in[1], in[1]), in[2]);
    BRG_TRY(brg_copy_(m->seen, in[2]));
    out[0] = brg_mul(loss_of(m, in[0]), brg_to(n, THERE));
    return train(m, out[0]);
}

/* A number that the function finds by itself. */
static brg_status step_found(brg_tensor *const *in, size_t n_in,
                             brg_tensor **out, size_t n_out, void *user)
{
    model *m = user;
    (void)n_in;
    (void)n_out;
    out[0] = brg_mul(loss_of(m, in[0]), brg_to(m->scale, THERE));
    return train(m, out[0]);
}

static brg_status step_plain(brg_tensor *const *in, size_t n_in,
                             brg_tensor **out, size_t n_out, void *user)
{
    (void)n_in;
    (void)n_out;
    out[0] = loss_of(user, in[0]);
    return train(user, out[0]);
}

/* ---- Runs of them ------------------------------------------------------------------ */

typedef struct history {
    float loss[N_STEPS], seen, w[36];
    brg_random_state random;
} history;

typedef struct variant {
    brg_compiled_fn fn;
    brg_dtype dtype; /* of the numbers */
    double p;
    bool is_adamw;
    bool is_constant;  /* numbers are the same in each step */
    bool changes_size; /* of the batch, from step to step */
} variant;

static brg_compiled *compile(brg_compiled_fn fn, model *m)
{
    brg_compiled *compiled;
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    options.fullgraph = options.whole = options.replay = true;
    assert_brg_ok(brg_compiled_create(&compiled, fn, m, &options));
    return compiled;
}

static brg_tensor *number(const variant *v, int k, double base)
{
    const double value = base + (v->is_constant ? 0 : k);
    return assert_brg_some(brg_full(v->dtype, BRG_SHAPE(), value));
}

/* Random numbers go on from step to step. */
static void one_step(const variant *v, model *m, brg_compiled *compiled, int k,
                     float *loss)
{
    brg_scope *scope = brg_scope_begin();
    const int64_t n = v->changes_size ? 3 + k % 2 : 4;
    brg_tensor *in[3] = {there(brg_randn(BRG_DTYPE_F32, BRG_SHAPE(n, 6))),
                         number(v, k, 2), number(v, 3 * k, 7)};
    brg_tensor *out = NULL;
    double value;
    if (!v->is_constant)
        assert_brg_ok(brg_fill_(m->scale, 2 + k));
    assert_brg_ok(brg_optim_set_lr(m->optim, 0.01 / (1 + k)));
    assert_brg_ok(compiled ? brg_compiled_call(compiled, in, 3, &out, 1)
                           : v->fn(in, 3, &out, 1, m));
    assert_brg_ok(brg_tensor_item(out, &value));
    *loss = (float)value;
    brg_scope_end(scope);
}

static void run(const variant *v, bool is_compiled, history *h)
{
    model m;
    brg_scope *scope = brg_scope_begin();
    memset(h, 0, sizeof *h);
    model_make(&m, v->is_adamw);
    m.p = v->p;
    brg_compiled *compiled = is_compiled ? compile(v->fn, &m) : NULL;
    for (int k = 0; k < N_STEPS; k++)
        one_step(v, &m, compiled, k, &h->loss[k]);
    assert_brg_ok(brg_tensor_read(m.w, h->w, sizeof h->w));
    assert_brg_ok(brg_tensor_read(m.seen, &h->seen, sizeof h->seen));
    brg_random_get_state(&h->random);
    brg_compiled_destroy(compiled);
    model_free(&m);
    brg_scope_end(scope);
}

/* Eager and launched alike; recorded once for each size. */
static void check(const variant *v)
{
    static history eager, launched;
    const uint64_t n_sizes = v->changes_size ? 2 : 1;
    const int64_t before = seen.n_blocks;
    assert_brg_ok(brg_compile_reset());
    run(v, false, &eager);
    run(v, true, &launched);
    assert_memory_equal(&eager, &launched, sizeof eager);
    assert_true(eager.loss[0] != eager.loss[N_STEPS - 1]);
    assert_int_equal(seen.n_blocks, before);
    const brg_compile_stats s = both_stats();
    assert_int_equal(s.function_fallbacks, 0);
    assert_int_equal(s.replay_skips, 0);
    assert_int_equal(s.replay_recordings, n_sizes);
    assert_int_equal(s.replay_launches, N_STEPS - 3 * n_sizes);
}

/* ---- Numbers ------------------------------------------------------------------------- */

static void test_relaunch_numbers__go_with_each_launch(void **state)
{
    (void)state;
    static const brg_dtype dtypes[] = {BRG_DTYPE_F64, BRG_DTYPE_F32,
                                       BRG_DTYPE_F16, BRG_DTYPE_BF16,
                                       BRG_DTYPE_I64, BRG_DTYPE_U8};
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++)
        check(&(variant){.fn = step_scaled, .dtype = dtypes[i]});
}

static void test_relaunch_numbers__computed_with(void **state)
{
    (void)state;
    check(&(variant){.fn = step_computed, .dtype = BRG_DTYPE_F32});
}

static void test_relaunch_numbers__that_are_no_inputs(void **state)
{
    (void)state;
    check(&(variant){.fn = step_found, .dtype = BRG_DTYPE_F32});
}

/* One input twice is one number. */
static void test_relaunch_numbers__given_twice(void **state)
{
    (void)state;
    float loss[2][6];
    assert_brg_ok(brg_compile_reset());
    for (int is_compiled = 0; is_compiled < 2; is_compiled++) {
        model m;
        model_make(&m, false);
        brg_compiled *c = is_compiled ? compile(step_computed, &m) : NULL;
        for (int k = 0; k < 6; k++) {
            brg_tensor *n = brg_full(BRG_DTYPE_F32, BRG_SHAPE(), 1 + k), *out;
            brg_tensor *x = there(brg_ones(BRG_DTYPE_F32, BRG_SHAPE(2, 6)));
            brg_tensor *in[3] = {x, n, n};
            assert_brg_ok(c ? brg_compiled_call(c, in, 3, &out, 1)
                            : step_computed(in, 3, &out, 1, &m));
            assert_brg_ok(
                brg_tensor_read(out, &loss[is_compiled][k], sizeof(float)));
        }
        brg_compiled_destroy(c);
        model_free(&m);
    }
    assert_memory_equal(loss[0], loss[1], sizeof loss[0]);
    assert_int_equal(both_stats().replay_launches, 3);
}

/* Nothing is sent, and nothing read, while they stay what they are. */
static void test_relaunch_numbers__are_sent_when_they_change(void **state)
{
    (void)state;
    model m;
    const variant v = {
        .fn = step_scaled, .dtype = BRG_DTYPE_F32, .is_constant = true};
    const variant changing = {.fn = step_scaled, .dtype = BRG_DTYPE_F32};
    float loss;
    int64_t n[3];
    model_make(&m, false);
    brg_compiled *compiled = compile(v.fn, &m);
    for (int k = 0; k < 5; k++)
        one_step(&v, &m, compiled, k, &loss);
    for (int i = 0; i < 3; i++) {
        n[i] = seen.n_copies;
        one_step(i == 1 ? &changing : &v, &m, compiled, 6, &loss);
        n[i] = seen.n_copies - n[i];
    }
    assert_int_equal(n[1], n[0] + 1);
    assert_int_equal(n[2], n[0] + 1); /* back again */
    brg_compiled_destroy(compiled);
    model_free(&m);
}

/* ---- Dropout --------------------------------------------------------------------------- */

/* Each step draws what the eager one would, from wherever the thread is. */
static void test_relaunch_numbers__dropout(void **state)
{
    (void)state;
    for (int is_adamw = 0; is_adamw < 2; is_adamw++)
        check(&(variant){.fn = step_plain, .p = 0.25, .is_adamw = is_adamw});
    check(&(variant){.fn = step_plain, .p = 0.5, .changes_size = true});
    check(&(variant){.fn = step_plain, .p = 0.9, .is_adamw = true});
}

static void test_relaunch_numbers__dropout_and_a_number(void **state)
{
    (void)state;
    check(&(variant){.fn = step_scaled, .dtype = BRG_DTYPE_F16, .p = 0.1});
}

/* The seed is one of them. */
static void test_relaunch_numbers__another_seed(void **state)
{
    (void)state;
    const variant v = {.fn = step_plain, .p = 0.5};
    float loss[2][8];
    for (int is_compiled = 0; is_compiled < 2; is_compiled++) {
        model m;
        model_make(&m, false);
        m.p = v.p;
        brg_compiled *c = is_compiled ? compile(v.fn, &m) : NULL;
        for (int k = 0; k < 8; k++) {
            brg_seed(40 + (uint64_t)(k / 2));
            one_step(&v, &m, c, 0, &loss[is_compiled][k]);
        }
        brg_compiled_destroy(c);
        model_free(&m);
    }
    assert_memory_equal(loss[0], loss[1], sizeof loss[0]);
}

static brg_status step_there_and_back(brg_tensor *const *in, size_t n_in,
                                      brg_tensor **out, size_t n_out,
                                      void *user)
{
    model *m = user;
    (void)n_in;
    (void)n_out;
    brg_tensor *h = brg_dropout(brg_matmul(in[0], m->w), m->p, true);
    h = brg_dropout(brg_to(brg_to(h, HOME), THERE), m->p, true);
    out[0] = brg_mul(brg_mean_all(brg_square(h)), brg_to(in[1], THERE));
    return train(m, out[0]);
}

/* A recording that ends in the middle: what runs behind it has its numbers. */
static void test_relaunch_numbers__a_recording_that_is_given_up(void **state)
{
    (void)state;
    static history eager, ended;
    const variant v = {
        .fn = step_there_and_back, .p = 0.5, .dtype = BRG_DTYPE_F32};
    assert_brg_ok(brg_compile_reset());
    run(&v, false, &eager);
    run(&v, true, &ended);
    assert_memory_equal(&eager, &ended, sizeof eager);
    assert_true(eager.loss[0] != eager.loss[N_STEPS - 1]);
    expect_launches(1, 0);
    expect_skip("a copy to or from the host");
}

/* ---- What is refused --------------------------------------------------------------------- */

static brg_status step_that_returns_it(brg_tensor *const *in, size_t n_in,
                                       brg_tensor **out, size_t n_out,
                                       void *user)
{
    BRG_TRY(step_scaled(in, n_in, out, n_out, user));
    out[1] = brg_mul_scalar(in[1], 2); /* on the host */
    return out[1] ? BRG_OK : brg_error_code();
}

static brg_status step_with_a_row(brg_tensor *const *in, size_t n_in,
                                  brg_tensor **out, size_t n_out, void *user)
{
    (void)n_in;
    (void)n_out;
    out[0] = brg_mul(loss_of(user, in[0]), brg_sum_all(brg_to(in[1], THERE)));
    return train(user, out[0]);
}

/* Right, but not launched. */
static void expect_refusal(brg_compiled_fn fn, int ndim, const char *why)
{
    model m;
    assert_brg_ok(brg_compile_reset());
    model_make(&m, false);
    brg_compiled *compiled = compile(fn, &m);
    for (int k = 0; k < 5; k++) {
        double value;
        brg_tensor *x = there(brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(2, 6)));
        brg_tensor *n = brg_full(BRG_DTYPE_F32, ndim, (int64_t[]){3}, k);
        brg_tensor *out[2] = {NULL, NULL}, *in[2] = {x, n};
        const size_t n_out = fn == step_that_returns_it ? 2 : 1;
        assert_brg_ok(brg_compiled_call(compiled, in, 2, out, n_out));
        if (n_out < 2)
            continue;
        assert_int_equal(brg_tensor_device(out[1]).type, BRG_DEVICE_CPU);
        assert_brg_ok(brg_tensor_item(out[1], &value));
        assert_float_equal(value, 2.0 * k, 0);
    }
    assert_int_equal(both_stats().replay_skips, 1);
    expect_launches(0, 0);
    expect_skip(why);
    brg_compiled_destroy(compiled);
    model_free(&m);
}

static void test_relaunch_numbers__what_is_no_ops(void **state)
{
    (void)state;
    expect_refusal(step_that_returns_it, 0,
                   "a number on the host that is no op's");
    expect_refusal(step_with_a_row, 1, "an input on another device");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_relaunch_numbers__go_with_each_launch),
        scoped_test(test_relaunch_numbers__computed_with),
        scoped_test(test_relaunch_numbers__that_are_no_inputs),
        scoped_test(test_relaunch_numbers__given_twice),
        scoped_test(test_relaunch_numbers__are_sent_when_they_change),
        scoped_test(test_relaunch_numbers__dropout),
        scoped_test(test_relaunch_numbers__dropout_and_a_number),
        scoped_test(test_relaunch_numbers__another_seed),
        scoped_test(test_relaunch_numbers__a_recording_that_is_given_up),
        scoped_test(test_relaunch_numbers__what_is_no_ops),
    };
    return cmocka_run_group_tests(tests, register_fake_device, NULL);
}
