/* SPDX-License-Identifier: Apache-2.0
 * Training on one GPU equals training on the CPU: the same starting values and
 * data, then the losses of each step and the parameters after the last. */
#include "tests/cuda/models.h"

#define N_STEPS 12
#define BATCH 16

/* Some gradients are zero but for rounding (a bias in front of batch norm, the
 * bias of keys); AdamW would make whole steps of that. */
static const model_options with = {
    .padding = 1, .groups = 2, .dropout = 0.1, .eps = 1e-4};

/* Data of a step, drawn on the CPU and moved. */
static brg_tensor *loss_of(model *m, int step, brg_dtype dtype)
{
    brg_device device = brg_device_get();
    brg_seed(1000 + (uint64_t)step);
    if (m->kind == GPT) {
        brg_tensor *ids = brg_randint(0, VOCAB, BRG_SHAPE(BATCH, CONTEXT));
        brg_tensor *next = brg_randint(0, VOCAB, BRG_SHAPE(BATCH, CONTEXT));
        return brg_cross_entropy(forward(m, ids), next);
    }
    brg_tensor *x = brg_cast(
        brg_randn(BRG_DTYPE_F32, BRG_SHAPE(BATCH, 1, SIDE, SIDE)), dtype);
    brg_tensor *t = brg_randint(0, N_CLASSES, BRG_SHAPE(BATCH));
    assert_int_equal(brg_tensor_device(x).type, device.type);
    return brg_cross_entropy(forward(m, x), t);
}

/* The losses, and all parameters and buffers in one row; borrowed. */
static brg_tensor *train(kind k, brg_dtype dtype, brg_device device,
                         double losses[N_STEPS])
{
    model m;
    brg_tensor *flat[128];
    assert_brg_ok(brg_device_set(device));
    model_init(&m, k, dtype, &with);
    for (int step = 0; step < N_STEPS; step++) {
        brg_scope *scope = brg_scope_begin();
        brg_tensor *loss = assert_brg_some(loss_of(&m, step, dtype));
        assert_brg_ok(brg_backward(loss));
        double norm;
        assert_brg_ok(brg_clip_grad_norm(&norm, m.params, 1.0, true));
        assert_brg_ok(brg_optim_step(m.optim));
        assert_brg_ok(brg_optim_zero_grad(m.optim, step % 2 == 0));
        assert_brg_ok(brg_tensor_item(loss, &losses[step]));
        brg_scope_end(scope);
    }
    size_t n = brg_params_count(m.params);
    assert_true(n < 128);
    bool mode = brg_grad_mode_set(false);
    for (size_t i = 0; i < n; i++)
        flat[i] = brg_flatten(
            brg_cast(brg_params_at(m.params, i)->tensor, BRG_DTYPE_F32), 0, -1);
    brg_tensor *all = assert_brg_some(brg_cat(flat, (int)n, 0));
    (void)brg_grad_mode_set(mode);
    model_free(&m);
    return all;
}

static void check(kind k, brg_dtype dtype, double tolerance)
{
    double here[N_STEPS], there[N_STEPS];
    brg_scope *scope = brg_scope_begin();
    brg_tensor *want = train(k, dtype, CPU, here);
    brg_tensor *got = train(k, dtype, GPU, there);
    assert_brg_ok(brg_device_set(CPU));
    double d = distance(got, want), worst = 0;
    for (int i = 0; i < N_STEPS; i++)
        worst = fmax(worst, fabs(here[i] - there[i]));
    printf("%s %s: parameters off by %.2g, losses by %.2g, %.4f to %.4f\n",
           kind_names[k], brg_dtype_name(dtype), d, worst, here[0],
           here[N_STEPS - 1]);
    assert_true(d <= tolerance && worst <= 10 * tolerance);
    brg_scope_end(scope);
}

static void test_train__f32(void **state)
{
    (void)state;
    check(MLP, BRG_DTYPE_F32, 1e-5);
    check(CNN, BRG_DTYPE_F32, 1e-4);
    check(GPT, BRG_DTYPE_F32, 1e-4);
}

static void test_train__f64(void **state)
{
    (void)state;
    check(MLP, BRG_DTYPE_F64, 1e-7); /* the row that is compared is f32 */
    check(CNN, BRG_DTYPE_F64, 1e-7);
    check(GPT, BRG_DTYPE_F64, 1e-7);
}

static void test_train__bf16_with_f32_master_weights(void **state)
{
    (void)state;
    check(MLP, BRG_DTYPE_BF16, 2e-2);
    check(CNN, BRG_DTYPE_BF16, 3e-2);
    check(GPT, BRG_DTYPE_BF16, 3e-2);
}

int main(void)
{
    int missing = require_gpu();
    if (missing)
        return missing;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_train__f64),
        cmocka_unit_test(test_train__f32),
        cmocka_unit_test(test_train__bf16_with_f32_master_weights),
    };
    return cmocka_run_group_tests_name("train", tests, NULL, NULL);
}
