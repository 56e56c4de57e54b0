/* SPDX-License-Identifier: Apache-2.0
 * Layers: names, shapes, starting values, forwards, and a block that learns. */
#include <brigade/autograd.h>
#include <brigade/nn.h>
#include <brigade/ops.h>
#include <brigade/optim.h>
#include <brigade/random.h>

#include <math.h>

#include "tests/support/brg_test.h"
#include "tests/support/fail_alloc.h"

static brg_nn_options options_for(brg_params *params)
{
    brg_nn_options nn = BRG_NN_OPTIONS_INIT;
    nn.params = params;
    return nn;
}

static brg_params *new_params(void)
{
    brg_params *params;
    assert_brg_ok(brg_params_create(&params));
    return params;
}

static void check_tensor(const brg_params *params, const char *name, int ndim,
                         const int64_t *shape)
{
    const brg_tensor *t = brg_params_find(params, name);
    if (!t) {
        print_error("there is no '%s'\n", name);
        fail();
    }
    assert_int_equal(brg_tensor_ndim(t), ndim);
    for (int i = 0; i < ndim; i++)
        assert_int_equal(brg_tensor_size(t, i), shape[i]);
}

/* ---- Starting values ---------------------------------------------------------------- */

static void moments(const brg_tensor *t, double *mean, double *variance,
                    double *largest)
{
    const float *x = brg_tensor_data(t);
    int64_t n = brg_tensor_numel(t);
    double sum = 0, squares = 0;
    *largest = 0;
    for (int64_t i = 0; i < n; i++) {
        double value = (double)x[i];
        sum += value;
        squares += value * value;
        *largest = fmax(*largest, fabs(value));
    }
    *mean = sum / (double)n;
    *variance = squares / (double)n - *mean * *mean;
}

static void test_nn_fill__variances_are_those_of_the_papers(void **state)
{
    (void)state;
    const brg_nn_fans fans = {100, 50, 0.3};
    const struct {
        brg_nn_init init;
        double variance;
        bool is_uniform;
    } cases[] = {
        {BRG_NN_INIT_DEFAULT, 1.0 / 300, true},
        {BRG_NN_INIT_KAIMING_UNIFORM, 2.0 / 100, true},
        {BRG_NN_INIT_KAIMING_NORMAL, 2.0 / 100, false},
        {BRG_NN_INIT_XAVIER_UNIFORM, 2.0 / 150, true},
        {BRG_NN_INIT_XAVIER_NORMAL, 2.0 / 150, false},
        {BRG_NN_INIT_NORMAL, 0.09, false},
        {BRG_NN_INIT_ZEROS, 0, true},
    };
    brg_scope *scope = brg_scope_begin();
    brg_seed(5);
    brg_tensor *t = brg_empty(BRG_DTYPE_F32, BRG_SHAPE(200, 500));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        double mean, variance, largest;
        assert_brg_ok(brg_nn_fill(t, cases[i].init, &fans));
        moments(t, &mean, &variance, &largest);
        double expected = cases[i].variance, bound = sqrt(3 * expected);
        assert_true(fabs(mean) < 0.02 * sqrt(expected) + 1e-12);
        assert_true(fabs(variance - expected) <= 0.02 * expected);
        if (cases[i].is_uniform)
            assert_true(largest <= bound && largest >= 0.99 * bound);
        else
            assert_true(largest > 1.5 * bound);
    }
    brg_scope_end(scope);
}

static void test_nn_fill__errors(void **state)
{
    (void)state;
    brg_scope *scope = brg_scope_begin();
    brg_tensor *t = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(2));
    const brg_nn_fans none = {0, 1, 0}, some = {1, 1, 0};
    assert_brg_fails(brg_nn_fill(t, BRG_NN_INIT_DEFAULT, NULL), BRG_ERR_ARG);
    assert_brg_fails(brg_nn_fill(t, BRG_NN_INIT_DEFAULT, &none), BRG_ERR_ARG);
    assert_brg_fails(brg_nn_fill(t, (brg_nn_init)99, &some), BRG_ERR_ARG);
    assert_brg_fails(brg_nn_fill(NULL, BRG_NN_INIT_DEFAULT, &some),
                     BRG_ERR_ARG);
    brg_scope_end(scope);
}

/* ---- Layers ------------------------------------------------------------------------- */

static void test_nn__linear(void **state)
{
    (void)state;
    brg_params *params = new_params();
    brg_nn_options nn = options_for(params);
    nn.prefix = "net.";
    brg_nn_linear fc, bare;
    assert_brg_ok(brg_nn_linear_init(&fc, &nn, "fc1", 3, 2));
    nn.no_bias = true;
    assert_brg_ok(brg_nn_linear_init(&bare, &nn, "fc2", 3, 2));
    check_tensor(params, "net.fc1.weight", 2, (const int64_t[]){2, 3});
    check_tensor(params, "net.fc1.bias", 1, (const int64_t[]){2});
    assert_null(bare.bias);
    assert_int_equal(brg_params_count(params), 3);
    assert_ptr_equal(fc.weight, brg_params_find(params, "net.fc1.weight"));
    assert_true(brg_requires_grad(fc.bias));
    brg_scope *scope = brg_scope_begin();
    const float values[] = {1, 2, 3};
    brg_tensor *x = brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(1, 3), values);
    brg_tensor *y = brg_nn_linear_forward(&fc, x);
    const float *w = brg_tensor_data(fc.weight), *b = brg_tensor_data(fc.bias);
    for (int k = 0; k < 2; k++) {
        float expected = b[k];
        for (int i = 0; i < 3; i++)
            expected += w[3 * k + i] * values[i];
        assert_true(fabsf(((float *)brg_tensor_data(y))[k] - expected) < 1e-6f);
    }
    assert_null(brg_nn_linear_forward(&fc, NULL));
    brg_scope_end(scope);
    brg_params_destroy(params);
}

static void test_nn__conv2d(void **state)
{
    (void)state;
    brg_params *params = new_params();
    brg_nn_options nn = options_for(params);
    nn.init = BRG_NN_INIT_KAIMING_NORMAL;
    brg_nn_conv2d conv;
    brg_nn_conv2d_options options = {.n_in = 4,
                                     .n_out = 6,
                                     .kernel = {3, 5},
                                     .padding = {1, 2},
                                     .groups = 2};
    assert_brg_ok(brg_nn_conv2d_init(&conv, &nn, "conv", &options));
    check_tensor(params, "conv.weight", 4, (const int64_t[]){6, 2, 3, 5});
    check_tensor(params, "conv.bias", 1, (const int64_t[]){6});
    assert_true(((float *)brg_tensor_data(conv.bias))[0] == 0);
    brg_scope *scope = brg_scope_begin();
    brg_tensor *x = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(2, 4, 7, 9));
    brg_tensor *y = assert_brg_some(brg_nn_conv2d_forward(&conv, x));
    const int64_t expected[] = {2, 6, 7, 9};
    for (int i = 0; i < 4; i++)
        assert_int_equal(brg_tensor_size(y, i), expected[i]);
    options.groups = 3;
    assert_brg_fails_with(brg_nn_conv2d_init(&conv, &nn, "c", &options),
                          BRG_ERR_ARG, "3 groups");
    options.n_in = 0;
    assert_brg_fails(brg_nn_conv2d_init(&conv, &nn, "c", &options),
                     BRG_ERR_ARG);
    assert_brg_fails(brg_nn_conv2d_init(&conv, &nn, "c", NULL), BRG_ERR_ARG);
    brg_scope_end(scope);
    brg_params_destroy(params);
}

static void test_nn__embedding(void **state)
{
    (void)state;
    brg_params *params = new_params();
    brg_nn_options nn = options_for(params);
    nn.init = BRG_NN_INIT_NORMAL;
    nn.std = 0.02;
    brg_nn_embedding table;
    assert_brg_ok(brg_nn_embedding_init(&table, &nn, "wte", 1000, 50));
    double mean, variance, largest;
    moments(table.weight, &mean, &variance, &largest);
    assert_true(fabs(sqrt(variance) - 0.02) < 0.0005);
    brg_scope *scope = brg_scope_begin();
    const int64_t ids[] = {7, 999};
    brg_tensor *y = assert_brg_some(brg_nn_embedding_forward(
        &table, brg_from_data(BRG_DTYPE_I64, BRG_SHAPE(2), ids)));
    assert_memory_equal((float *)brg_tensor_data(y) + 50,
                        (float *)brg_tensor_data(table.weight) + 999 * 50,
                        50 * sizeof(float));
    brg_scope_end(scope);
    brg_params_destroy(params);
}

static void test_nn__layer_norm(void **state)
{
    (void)state;
    brg_params *params = new_params();
    brg_nn_options nn = options_for(params);
    brg_nn_layer_norm norm;
    assert_brg_ok(brg_nn_layer_norm_init(&norm, &nn, "ln", 4));
    assert_true(((float *)brg_tensor_data(norm.weight))[3] == 1);
    assert_true(((float *)brg_tensor_data(norm.bias))[3] == 0);
    brg_scope *scope = brg_scope_begin();
    const float values[] = {1, 2, 3, 4};
    brg_tensor *y = assert_brg_some(brg_nn_layer_norm_forward(
        &norm, brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(1, 4), values)));
    for (int i = 0; i < 4; i++) {
        double expected = (values[i] - 2.5) / sqrt(1.25 + 1e-5);
        assert_true(fabs(((float *)brg_tensor_data(y))[i] - expected) < 1e-6);
    }
    brg_scope_end(scope);
    brg_params_destroy(params);
}

static void test_nn__batch_norm_keeps_its_statistics_as_buffers(void **state)
{
    (void)state;
    brg_params *params = new_params();
    brg_nn_options nn = options_for(params);
    brg_nn_batch_norm norm;
    assert_brg_ok(brg_nn_batch_norm_init(&norm, &nn, "bn", 2));
    assert_int_equal(brg_params_count(params), 4);
    assert_string_equal(brg_params_at(params, 2)->name, "bn.running_mean");
    assert_int_equal(brg_params_at(params, 3)->kind, BRG_PARAM_BUFFER);
    assert_int_equal(brg_params_numel(params), 4);
    brg_scope *scope = brg_scope_begin();
    const float values[] = {1, 10, 3,
                            30}; /* (2, 2): channels (1, 3), (10, 30) */
    brg_tensor *x = brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(2, 2), values);
    brg_tensor *y = assert_brg_some(brg_nn_batch_norm_forward(&norm, x, true));
    assert_true(fabsf(((float *)brg_tensor_data(y))[0] + 1) < 1e-4f);
    const float *mean = brg_tensor_data(norm.running_mean);
    const float *variance = brg_tensor_data(norm.running_var);
    assert_true(fabsf(mean[0] - 0.2f) < 1e-6f);
    assert_true(fabsf(mean[1] - 2.0f) < 1e-6f);
    assert_true(fabsf(variance[0] - (0.9f + 0.1f * 2)) < 1e-6f);
    y = assert_brg_some(brg_nn_batch_norm_forward(&norm, x, false));
    double expected = (1 - 0.2) / sqrt(1.1 + 1e-5);
    assert_true(fabs(((float *)brg_tensor_data(y))[0] - expected) < 1e-6);
    assert_true(fabsf(mean[0] - 0.2f) < 1e-6f);
    brg_scope_end(scope);
    brg_params_destroy(params);
}

static void test_nn__errors(void **state)
{
    (void)state;
    brg_params *params = new_params();
    brg_nn_options nn = options_for(params), blank = {0};
    brg_nn_linear fc;
    brg_nn_layer_norm ln;
    brg_nn_embedding table;
    assert_brg_ok(brg_nn_linear_init(&fc, &nn, "fc", 2, 2));
    assert_brg_fails_with(brg_nn_linear_init(&fc, &nn, "fc", 2, 2), BRG_ERR_ARG,
                          "'fc.weight' is taken");
    assert_brg_fails_with(brg_nn_linear_init(&fc, &nn, "x", 0, 2), BRG_ERR_ARG,
                          "linear 'x': n_in 0");
    assert_brg_fails(brg_nn_linear_init(&fc, &nn, "", 2, 2), BRG_ERR_ARG);
    assert_brg_fails(brg_nn_linear_init(&fc, NULL, "x", 2, 2), BRG_ERR_ARG);
    assert_brg_fails(brg_nn_linear_init(&fc, &blank, "x", 2, 2), BRG_ERR_ARG);
    assert_brg_fails(brg_nn_layer_norm_init(&ln, &nn, "x", 0), BRG_ERR_ARG);
    assert_brg_fails(brg_nn_embedding_init(&table, &nn, "x", 2, -1),
                     BRG_ERR_ARG);
    char name[400];
    memset(name, 'n', sizeof name - 1);
    name[399] = 0;
    assert_brg_fails_with(brg_nn_linear_init(&fc, &nn, name, 2, 2), BRG_ERR_ARG,
                          "longer than");
    nn.dtype = BRG_DTYPE_I64;
    assert_brg_fails(brg_nn_linear_init(&fc, &nn, "ids", 2, 2), BRG_ERR_DTYPE);
    brg_params_destroy(params);
}

/* ---- The block ------------------------------------------------------------------------ */

static void test_nn__block_has_the_names_of_gpt2(void **state)
{
    (void)state;
    brg_params *params = new_params();
    brg_nn_options nn = options_for(params);
    brg_nn_block block;
    brg_nn_block_options options = {.dim = 64, .n_heads = 4, .n_blocks = 8};
    assert_brg_ok(brg_nn_block_init(&block, &nn, "h.0", &options));
    assert_int_equal(brg_params_count(params), 12);
    check_tensor(params, "h.0.ln_1.weight", 1, (const int64_t[]){64});
    check_tensor(params, "h.0.attn.c_attn.weight", 2,
                 (const int64_t[]){192, 64});
    check_tensor(params, "h.0.attn.c_proj.bias", 1, (const int64_t[]){64});
    check_tensor(params, "h.0.mlp.c_fc.weight", 2, (const int64_t[]){256, 64});
    check_tensor(params, "h.0.mlp.c_proj.weight", 2,
                 (const int64_t[]){64, 256});
    double mean, variance, largest;
    moments(block.fc.weight, &mean, &variance, &largest);
    assert_true(fabs(sqrt(variance) - 0.02) < 0.0005);
    moments(block.fc_proj.weight, &mean, &variance, &largest);
    assert_true(fabs(sqrt(variance) - 0.005) < 0.0002);
    assert_true(((float *)brg_tensor_data(block.qkv.bias))[0] == 0);
    options.n_heads = 5;
    assert_brg_fails_with(brg_nn_block_init(&block, &nn, "h.1", &options),
                          BRG_ERR_ARG, "'h.1'");
    assert_brg_fails(brg_nn_block_init(&block, &nn, "h.1", NULL), BRG_ERR_ARG);
    brg_params_destroy(params);
}

/* Later positions do not change earlier ones. */
static void test_nn__block_is_causal(void **state)
{
    (void)state;
    brg_params *params = new_params();
    brg_nn_options nn = options_for(params);
    nn.std = 0.5;
    brg_nn_block block;
    brg_nn_block_options options = {.dim = 8, .n_heads = 2, .n_blocks = 1};
    brg_seed(3);
    assert_brg_ok(brg_nn_block_init(&block, &nn, "h", &options));
    brg_scope *scope = brg_scope_begin();
    brg_tensor *x = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(1, 5, 8));
    brg_tensor *a = assert_brg_some(brg_nn_block_forward(&block, x));
    float *at = brg_tensor_data(x);
    for (int i = 4 * 8; i < 5 * 8; i++)
        at[i] += 1;
    brg_tensor_touch(x);
    brg_tensor *b = assert_brg_some(brg_nn_block_forward(&block, x));
    const float *u = brg_tensor_data(a), *v = brg_tensor_data(b);
    for (int i = 0; i < 4 * 8; i++)
        assert_true(fabsf(u[i] - v[i]) < 1e-5f);
    assert_true(fabsf(u[33] - v[33]) > 1e-3f);
    brg_scope_end(scope);
    brg_params_destroy(params);
}

/* A model of one block learns to predict the next number of a fixed row. */
static void test_nn__block_learns(void **state)
{
    (void)state;
    enum { T = 12, V = 10, DIM = 16 };
    const int64_t text[T + 1] = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9};
    brg_params *params = new_params();
    brg_nn_options nn = options_for(params);
    nn.init = BRG_NN_INIT_NORMAL;
    nn.std = 0.1;
    brg_nn_embedding wte, wpe;
    brg_nn_block block;
    brg_nn_layer_norm norm;
    brg_nn_block_options options = {.dim = DIM, .n_heads = 2, .n_blocks = 1};
    brg_seed(1);
    assert_brg_ok(brg_nn_embedding_init(&wte, &nn, "wte", V, DIM));
    assert_brg_ok(brg_nn_embedding_init(&wpe, &nn, "wpe", T, DIM));
    assert_brg_ok(brg_nn_block_init(&block, &nn, "h.0", &options));
    assert_brg_ok(brg_nn_layer_norm_init(&norm, &nn, "ln_f", DIM));
    brg_adamw_options adamw = BRG_ADAMW_OPTIONS_INIT;
    adamw.lr = 0.01;
    brg_optim *optim;
    assert_brg_ok(brg_optim_create_adamw(&optim, params, &adamw));
    double first = 0, last = 0;
    for (int step = 0; step < 100; step++) {
        brg_scope *scope = brg_scope_begin();
        brg_tensor *x = brg_from_data(BRG_DTYPE_I64, BRG_SHAPE(1, T), text);
        brg_tensor *y = brg_from_data(BRG_DTYPE_I64, BRG_SHAPE(1, T), text + 1);
        int64_t at[T];
        for (int i = 0; i < T; i++)
            at[i] = i;
        brg_tensor *places = brg_from_data(BRG_DTYPE_I64, BRG_SHAPE(T), at);
        brg_tensor *h = brg_add(brg_nn_embedding_forward(&wte, x),
                                brg_nn_embedding_forward(&wpe, places));
        h = brg_nn_layer_norm_forward(&norm, brg_nn_block_forward(&block, h));
        brg_tensor *loss =
            brg_cross_entropy(brg_linear(h, wte.weight, NULL), y);
        assert_brg_ok(brg_backward(loss));
        for (size_t i = 0; i < brg_params_count(params); i++)
            assert_non_null(brg_tensor_grad(brg_params_at(params, i)->tensor));
        assert_brg_ok(brg_optim_step(optim));
        assert_brg_ok(brg_optim_zero_grad(optim, false));
        assert_brg_ok(brg_tensor_item(loss, &last));
        first = step == 0 ? last : first;
        brg_scope_end(scope);
    }
    assert_true(first > 1.8 && last < 0.2);
    brg_optim_destroy(optim);
    brg_params_destroy(params);
}

/* ---- Out of memory ------------------------------------------------------------------- */

static brg_status make_all(void *user)
{
    (void)user;
    brg_params *params;
    BRG_TRY(brg_params_create(&params));
    brg_nn_options nn = options_for(params);
    brg_nn_conv2d conv;
    brg_nn_batch_norm norm;
    brg_nn_block block;
    brg_nn_conv2d_options c = {.n_in = 1, .n_out = 2, .kernel = {3, 3}};
    brg_nn_block_options b = {.dim = 4, .n_heads = 2, .n_blocks = 1};
    brg_status status;
    BRG_TRY_GOTO(brg_nn_conv2d_init(&conv, &nn, "conv", &c), out);
    BRG_TRY_GOTO(brg_nn_batch_norm_init(&norm, &nn, "bn", 2), out);
    status = brg_nn_block_init(&block, &nn, "h", &b);
out:
    brg_params_destroy(params);
    return status;
}

static void test_nn__out_of_memory(void **state)
{
    (void)state;
    assert_true(assert_oom_clean(make_all, NULL) > 30);
}

int main(void)
{
    fail_alloc_install();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nn_fill__variances_are_those_of_the_papers),
        cmocka_unit_test(test_nn_fill__errors),
        cmocka_unit_test(test_nn__linear),
        cmocka_unit_test(test_nn__conv2d),
        cmocka_unit_test(test_nn__embedding),
        cmocka_unit_test(test_nn__layer_norm),
        cmocka_unit_test(test_nn__batch_norm_keeps_its_statistics_as_buffers),
        cmocka_unit_test(test_nn__errors),
        cmocka_unit_test(test_nn__block_has_the_names_of_gpt2),
        cmocka_unit_test(test_nn__block_is_causal),
        cmocka_unit_test(test_nn__block_learns),
        cmocka_unit_test(test_nn__out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
