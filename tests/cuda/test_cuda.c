/* SPDX-License-Identifier: Apache-2.0
 * The CUDA device: memory, random numbers, errors, optimizers. Its ops are
 * tested by test_rows.c and cuda/core_test_ops. */
#include "tests/cuda/compare.h"
#include "tests/support/optim_rules.h"

/* ---- Random numbers ------------------------------------------------------------------ */

static void test_cuda__dropout_draws_the_numbers_of_the_cpu(void **state)
{
    (void)state;
    brg_tensor *x = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(77, 33));
    brg_seed(3);
    brg_tensor *want = assert_brg_some(brg_dropout(x, 0.3, true));
    brg_seed(3);
    brg_tensor *got = assert_brg_some(brg_dropout(brg_to(x, GPU), 0.3, true));
    assert_float_equal(distance(got, want), 0.0, 0.0);
}

static brg_tensor *drawn(int what, brg_dtype dtype, int64_t n)
{
    const int64_t shape[] = {n, 3};
    brg_tensor *t = brg_zeros(dtype, 2, shape);
    switch (what) {
    case 0:
        return brg_rand(dtype, 2, shape);
    case 1:
        return brg_randn(dtype, 2, shape);
    case 2:
        assert_brg_ok(brg_uniform_(t, -0.3, 1.4));
        return t;
    case 3:
        assert_brg_ok(brg_normal_(t, 0.7, 1.9));
        return t;
    case 4: /* row-major order, whatever the layout */
        t = brg_zeros(dtype, BRG_SHAPE(3, n));
        assert_brg_ok(brg_normal_(brg_transpose(t, 0, 1), 0.7, 1.9));
        return t;
    case 5:
        return brg_randint(-5, 1000000007, 2, shape);
    default:
        return brg_randperm(n);
    }
}

static void assert_same_draws(int what, brg_dtype dtype, int64_t n,
                              brg_random_state from)
{
    static char bytes[2][8 * 3 * 10007];
    brg_random_state after[2];
    size_t size = 0;
    brg_scope *scope = brg_scope_begin();
    for (int k = 0; k < 2; k++) {
        assert_brg_ok(brg_device_set(k ? GPU : CPU));
        brg_random_set_state(&from);
        brg_tensor *t = assert_brg_some(drawn(what, dtype, n));
        brg_random_get_state(&after[k]);
        size = brg_tensor_nbytes(t);
        assert_int_equal(brg_tensor_device(t).type, k ? GPU.type : CPU.type);
        assert_true(size <= sizeof *bytes);
        assert_brg_ok(brg_tensor_read(t, bytes[k], size));
    }
    if (memcmp(bytes[0], bytes[1], size) != 0)
        fail_msg("draw %d of %s, %lld rows, differs", what,
                 brg_dtype_name(dtype), (long long)n);
    assert_memory_equal(&after[0], &after[1], sizeof *after);
    assert_brg_ok(brg_device_set(CPU));
    brg_scope_end(scope);
}

static void test_cuda__draws_have_the_bits_of_the_cpu(void **state)
{
    (void)state;
    static const int64_t rows[] = {1, 2, 5, 21, 10007};
    static const brg_random_state from[] = {
        {0, 0}, {0x123456789abcdefu, 0xfffffffeu}, {~(uint64_t)0, 1}};
    for (int what = 0; what < 7; what++)
        for (int dtype = BRG_DTYPE_F64; dtype <= BRG_DTYPE_BF16; dtype++)
            for (size_t k = 0; k < 15; k++)
                assert_same_draws(what, (brg_dtype)dtype, rows[k % 5],
                                  from[k / 5]);
}

/* ---- Errors ------------------------------------------------------------------------------ */

static void test_cuda__id_out_of_range_is_told_by_the_next_read(void **state)
{
    (void)state;
    const int64_t bad[] = {1, 2, 9};
    brg_tensor *w = brg_to(brg_ones(BRG_DTYPE_F32, BRG_SHAPE(4, 2)), GPU);
    brg_tensor *ids =
        brg_to(brg_from_data(BRG_DTYPE_I64, BRG_SHAPE(3), bad), GPU);
    float out[6];
    brg_tensor *y = assert_brg_some(brg_embedding(w, ids));
    assert_brg_fails_with(
        brg_tensor_read(y, out, sizeof out), BRG_ERR_ARG,
        "embedding: id 9 at position 2 is out of range [0, 4)");
    float again[8]; /* told once; the device goes on */
    assert_brg_ok(brg_tensor_read(w, again, sizeof again));
    brg_tensor *x = brg_to(brg_ones(BRG_DTYPE_F32, BRG_SHAPE(3, 4)), GPU);
    brg_tensor *loss = assert_brg_some(brg_cross_entropy(x, ids));
    double value;
    assert_brg_fails_with(
        brg_tensor_item(loss, &value), BRG_ERR_ARG,
        "cross_entropy: target 9 of row 2 is out of range [0, 4)");
}

static void test_cuda__out_of_memory_names_the_tensor(void **state)
{
    (void)state;
    assert_brg_ok(brg_device_set(GPU));
    const int64_t big = (int64_t)1 << 20;
    assert_brg_null_with(brg_empty(BRG_DTYPE_F32, BRG_SHAPE(big, big)),
                         BRG_ERR_NOMEM, "f32[1048576, 1048576]: out of memory");
    brg_tensor *x = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(1000));
    double sum;
    assert_brg_ok(brg_tensor_item(brg_sum_all(x), &sum));
    assert_float_equal(sum, 1000.0, 0.0);
}

static void test_cuda__no_such_gpu(void **state)
{
    (void)state;
    assert_brg_fails_with(brg_device_set((brg_device){BRG_DEVICE_CUDA, 99}),
                          BRG_ERR_DEVICE, "cuda:99");
}

static void test_cuda__mixed_devices_are_named(void **state)
{
    (void)state;
    brg_tensor *x = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(2));
    assert_brg_null_with(brg_add(brg_to(x, GPU), x), BRG_ERR_DEVICE, "cpu:0");
}

/* ---- Optimizers ---------------------------------------------------------------------------- */

/* Thirty parameters of growing sizes after three steps, in one row. */
static brg_tensor *stepped(optim_rule r, brg_dtype dtype, brg_device device)
{
    brg_params *params;
    brg_tensor *all[30];
    assert_brg_ok(brg_params_create(&params));
    brg_seed(1);
    for (int i = 0; i < 30; i++) {
        char name[8];
        snprintf(name, sizeof name, "p%d", i);
        all[i] = brg_to(normal(dtype, BRG_SHAPE(1 + 400 * i)), device);
        assert_brg_ok(brg_params_add(params, name, all[i], BRG_PARAM_TRAINED));
    }
    brg_optim *optim = make_optim(params, r);
    for (int step = 0; step < 3; step++) {
        for (int i = 0; i < 30; i++) {
            brg_tensor *g =
                brg_to(normal(dtype, BRG_SHAPE(1 + 400 * i)), device);
            assert_brg_ok(brg_tensor_set_grad(all[i], g));
        }
        assert_brg_ok(brg_optim_step(optim));
    }
    brg_tensor *joined = assert_brg_some(brg_cat(all, 30, 0));
    brg_optim_destroy(optim);
    brg_params_destroy(params);
    return joined;
}

static void test_cuda__optimizers_step_as_on_the_cpu(void **state)
{
    (void)state;
    static const brg_dtype dtypes[] = {BRG_DTYPE_F64, BRG_DTYPE_F32,
                                       BRG_DTYPE_BF16, BRG_DTYPE_F16};
    static const double tolerance[] = {1e-13, 1e-6, 1e-3, 1e-4};
    for (optim_rule r = 0; r < N_RULES; r++)
        for (int d = 0; d < 4; d++) {
            brg_scope *scope = brg_scope_begin();
            double off = distance(stepped(r, dtypes[d], GPU),
                                  stepped(r, dtypes[d], CPU));
            if (off > tolerance[d])
                print_error("rule %d, %s: off by %g\n", (int)r,
                            brg_dtype_name(dtypes[d]), off);
            assert_true(off <= tolerance[d]);
            brg_scope_end(scope);
        }
}

/* Gradients of growing sizes, clipped; norm: NULL, or to be filled. */
static brg_tensor *clipped(brg_dtype dtype, brg_device device, double *norm)
{
    brg_params *params;
    brg_tensor *all[40];
    assert_brg_ok(brg_params_create(&params));
    brg_seed(2);
    for (int i = 0; i < 40; i++) {
        char name[8];
        snprintf(name, sizeof name, "p%d", i);
        brg_tensor *p =
            brg_to(brg_zeros(dtype, BRG_SHAPE(1 + 701 * i)), device);
        all[i] = brg_to(normal(dtype, BRG_SHAPE(1 + 701 * i)), device);
        assert_brg_ok(brg_params_add(params, name, p, BRG_PARAM_TRAINED));
        assert_brg_ok(brg_tensor_set_grad(p, all[i]));
    }
    assert_brg_ok(brg_clip_grad_norm(norm, params, 3.0, norm != NULL));
    for (int i = 0; i < 40; i++)
        all[i] = brg_tensor_grad(brg_params_at(params, (size_t)i)->tensor);
    brg_tensor *joined = assert_brg_some(brg_cat(all, 20, 0));
    brg_tensor *rest = assert_brg_some(brg_cat(all + 20, 20, 0));
    joined = assert_brg_some(brg_cat((brg_tensor *[]){joined, rest}, 2, 0));
    brg_params_destroy(params);
    return joined;
}

static void test_cuda__gradients_are_clipped_as_on_the_cpu(void **state)
{
    (void)state;
    static const brg_dtype dtypes[] = {BRG_DTYPE_F64, BRG_DTYPE_F32,
                                       BRG_DTYPE_BF16};
    static const double tolerance[] = {1e-13, 1e-6, 1e-2};
    for (int d = 0; d < 3; d++) {
        brg_scope *scope = brg_scope_begin();
        double norm[2];
        brg_tensor *want = clipped(dtypes[d], CPU, &norm[0]);
        assert_true(distance(clipped(dtypes[d], GPU, &norm[1]), want) <=
                    tolerance[d]);
        assert_float_equal(norm[1], norm[0], 1e-6 * norm[0]);
        assert_true(distance(clipped(dtypes[d], GPU, NULL), want) <=
                    tolerance[d]);
        brg_scope_end(scope);
    }
}

static void test_cuda__a_norm_that_is_not_finite_is_told(void **state)
{
    (void)state;
    brg_params *params;
    assert_brg_ok(brg_params_create(&params));
    const float bad[] = {1.0f, INFINITY};
    brg_tensor *p = brg_to(brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(2)), GPU);
    brg_tensor *g =
        brg_to(brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(2), bad), GPU);
    assert_brg_ok(brg_params_add(params, "p", p, BRG_PARAM_TRAINED));
    assert_brg_ok(brg_tensor_set_grad(p, g));
    assert_brg_ok(brg_clip_grad_norm(NULL, params, 0.1, false));
    float kept[2];
    assert_brg_ok(brg_tensor_read(brg_tensor_grad(p), kept, sizeof kept));
    assert_float_equal(kept[0], 1.0, 0.0);
    assert_brg_fails_with(brg_clip_grad_norm(NULL, params, 0.1, true),
                          BRG_ERR_NAN, "'p'");
    brg_params_destroy(params);
}

/* More copies than there is pinned memory for, each with its own value. */
static void test_cuda__copies_do_not_mix(void **state)
{
    (void)state;
    brg_tensor *there[40];
    for (int i = 0; i < 40; i++) {
        brg_tensor *here =
            brg_full(BRG_DTYPE_F32, BRG_SHAPE(200000), (double)i);
        there[i] = assert_brg_some(brg_to(here, GPU));
    }
    for (int i = 0; i < 40; i++) {
        double low, high;
        assert_brg_ok(
            brg_tensor_item(brg_amin(there[i], 0, NULL, false), &low));
        assert_brg_ok(
            brg_tensor_item(brg_amax(there[i], 0, NULL, false), &high));
        assert_float_equal(low, i, 0.0);
        assert_float_equal(high, i, 0.0);
    }
}

int main(void)
{
    int missing = require_gpu();
    if (missing)
        return missing;
    const struct CMUnitTest tests[] = {
        gpu_test(test_cuda__dropout_draws_the_numbers_of_the_cpu),
        gpu_test(test_cuda__draws_have_the_bits_of_the_cpu),
        gpu_test(test_cuda__id_out_of_range_is_told_by_the_next_read),
        gpu_test(test_cuda__out_of_memory_names_the_tensor),
        gpu_test(test_cuda__no_such_gpu),
        gpu_test(test_cuda__mixed_devices_are_named),
        gpu_test(test_cuda__optimizers_step_as_on_the_cpu),
        gpu_test(test_cuda__gradients_are_clipped_as_on_the_cpu),
        gpu_test(test_cuda__a_norm_that_is_not_finite_is_told),
        gpu_test(test_cuda__copies_do_not_mix),
    };
    return cmocka_run_group_tests_name("cuda", tests, NULL, NULL);
}
