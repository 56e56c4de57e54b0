/* SPDX-License-Identifier: Apache-2.0
 * Numbers of the host in launched steps on a GPU: they go along with the launch,
 * another in each step, and nothing waits. */
#include "tests/cuda/models.h"

#define N_STEPS 12

/* in: data, targets, what the loss is scaled by. */
static brg_status run_step(brg_tensor *const *in, size_t n_in, brg_tensor **out,
                           size_t n_out, void *user)
{
    model *m = user;
    (void)n_in;
    (void)n_out;
    brg_tensor *scale = brg_cast(brg_to(in[2], GPU), BRG_DTYPE_F32);
    out[0] = brg_mul(brg_cross_entropy(forward(m, in[0]), in[1]), scale);
    BRG_TRY(out[0] ? brg_backward(out[0]) : brg_error_code());
    BRG_TRY(brg_optim_step(m->optim));
    return brg_optim_zero_grad(m->optim, true);
}

typedef struct outcome {
    double losses[N_STEPS];
    brg_compile_stats stats;
    brg_device_counts before, after; /* of the last four steps */
} outcome;

static void run(brg_dtype dtype, bool is_launched, outcome *o)
{
    model m;
    brg_tensor *in[3], *losses[N_STEPS];
    brg_compiled *compiled = NULL;
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    options.fullgraph = options.whole = options.replay = true;
    brg_scope *scope = brg_scope_begin();
    assert_brg_ok(brg_device_set(GPU));
    model_init(&m, MLP, BRG_DTYPE_F32, &(model_options){.dropout = 0.2});
    assert_brg_ok(brg_compile_reset());
    if (is_launched)
        assert_brg_ok(brg_compiled_create(&compiled, run_step, &m, &options));
    brg_seed(3);
    in[0] = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(16, 1, SIDE, SIDE));
    in[1] = brg_randint(0, N_CLASSES, BRG_SHAPE(16));
    for (int step = 0; step < N_STEPS; step++) {
        if (step == N_STEPS - 4)
            assert_brg_ok(brg_device_get_counts(GPU, &o->before));
        assert_brg_ok(brg_device_set(CPU));
        in[2] = brg_full(dtype, BRG_SHAPE(), 1 + step);
        assert_brg_ok(brg_device_set(GPU));
        assert_brg_ok(compiled
                          ? brg_compiled_call(compiled, in, 3, &losses[step], 1)
                          : run_step(in, 3, &losses[step], 1, &m));
    }
    assert_brg_ok(brg_device_get_counts(GPU, &o->after));
    for (int step = 0; step < N_STEPS; step++)
        assert_brg_ok(brg_tensor_item(losses[step], &o->losses[step]));
    brg_compile_get_stats(&o->stats);
    brg_compiled_destroy(compiled);
    model_free(&m);
    assert_brg_ok(brg_device_set(CPU));
    brg_scope_end(scope);
}

static void test_numbers__go_with_each_launch(void **state)
{
    (void)state;
    static const brg_dtype dtypes[] = {BRG_DTYPE_F64, BRG_DTYPE_F32,
                                       BRG_DTYPE_F16, BRG_DTYPE_BF16,
                                       BRG_DTYPE_I64, BRG_DTYPE_U8};
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++) {
        outcome want = {0}, got = {0};
        run(dtypes[i], false, &want);
        run(dtypes[i], true, &got);
        assert_memory_equal(got.losses, want.losses, sizeof got.losses);
        assert_true(want.losses[0] != want.losses[N_STEPS - 1]);
        assert_int_equal(got.stats.function_fallbacks, 0);
        assert_int_equal(got.stats.replay_skips, 0);
        assert_int_equal(got.stats.replay_recordings, 1);
        assert_int_equal(got.stats.replay_launches, N_STEPS - 3);
        assert_int_equal(got.after.n_waits - got.before.n_waits, 0);
        assert_int_equal(got.after.n_allocs - got.before.n_allocs, 4);
        assert_int_equal(got.after.reserved - got.before.reserved, 0);
    }
}

/* Copies of few bytes are in a kernel's arguments: any bytes, any place. */
static void test_numbers__small_copies(void **state)
{
    (void)state;
    brg_device_counts before, after;
    uint8_t want[1200], got[1200];
    for (int i = 0; i < 1200; i++)
        want[i] = (uint8_t)(37 * i + i / 256);
    brg_tensor *home =
        brg_from_data(BRG_DTYPE_U8, BRG_SHAPE(sizeof want), want);
    assert_brg_ok(brg_device_set(GPU));
    brg_tensor *there = brg_zeros(BRG_DTYPE_U8, BRG_SHAPE(sizeof want));
    assert_brg_ok(brg_device_set(CPU));
    assert_brg_ok(brg_device_get_counts(GPU, &before));
    int64_t at = 0, n = 1;
    for (; at < (int64_t)sizeof want; at += n, n = n * 2 + 1) {
        if (at + n > (int64_t)sizeof want)
            n = (int64_t)sizeof want - at;
        assert_brg_ok(
            brg_copy_(brg_narrow(there, 0, at, n), brg_narrow(home, 0, at, n)));
    }
    assert_brg_ok(brg_device_get_counts(GPU, &after));
    assert_int_equal(after.n_waits - before.n_waits, 0);
    assert_brg_ok(brg_tensor_read(there, got, sizeof got));
    assert_memory_equal(got, want, sizeof got);
}

int main(void)
{
    int missing = require_gpu();
    if (missing)
        return missing;
    const struct CMUnitTest tests[] = {
        gpu_test(test_numbers__go_with_each_launch),
        gpu_test(test_numbers__small_copies),
    };
    return cmocka_run_group_tests_name("numbers", tests, NULL, NULL);
}
