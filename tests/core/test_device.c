/* SPDX-License-Identifier: Apache-2.0
 * Tensors on another device than the CPU, with a device made for the test. */
#include <math.h>

#include <brigade/brigade.h>

#include "core/ops/op.h"
#include "core/tensor/device.h"
#include "tests/support/brg_test.h"
#include "tests/support/fake_device.h"

static int set_up(void **state)
{
    *state = brg_scope_begin();
    memset(&seen, 0, sizeof seen);
    return brg_device_register(BRG_DEVICE_CUDA, &fake);
}

static int tear_down(void **state)
{
    int status = brg_device_set(HOME);
    brg_scope_end(*state);
    return status || seen.n_blocks != 0;
}

static void assert_values(brg_tensor *t, size_t n, const float *want)
{
    float got[16];
    assert_true(n <= 16);
    assert_brg_ok(brg_tensor_read(t, got, n * sizeof *got));
    for (size_t i = 0; i < n; i++)
        assert_float_equal(got[i], want[i], 0);
}

#define ASSERT_VALUES(t, ...)                                                  \
    assert_values((t), sizeof((const float[]){__VA_ARGS__}) / sizeof(float),   \
                  (const float[]){__VA_ARGS__})

static brg_tensor *make(brg_device device)
{
    const float values[] = {1, 2, 3, 4, 5, 6};
    assert_brg_ok(brg_device_set(device));
    return assert_brg_some(
        brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(2, 3), values));
}

static void test_device__parse(void **state)
{
    (void)state;
    brg_device d;
    assert_brg_ok(brg_device_parse(&d, "cpu"));
    assert_int_equal(d.type, BRG_DEVICE_CPU);
    assert_brg_ok(brg_device_parse(&d, "cuda:3"));
    assert_int_equal(d.type, BRG_DEVICE_CUDA);
    assert_int_equal(d.index, 3);
    const char *const bad[] = {"", "gpu", "cuda:", "cuda:x", "cuda:-1", NULL};
    for (int i = 0; i < 6; i++)
        assert_brg_fails(brg_device_parse(&d, bad[i]), BRG_ERR_ARG);
}

static void test_device__load_says_what_is_missing(void **state)
{
    (void)state;
    assert_brg_fails_with(brg_device_load("nonesuch"), BRG_ERR_NOT_FOUND,
                          "libbrigade_nonesuch.so");
    assert_brg_fails(brg_device_load("../x"), BRG_ERR_ARG);
}

static void test_device__set_needs_one(void **state)
{
    (void)state;
    assert_brg_fails_with(brg_device_set((brg_device){BRG_DEVICE_CUDA, 7}),
                          BRG_ERR_DEVICE, "cuda:7");
    assert_int_equal(brg_device_get().type, BRG_DEVICE_CPU);
}

static void test_device__to_needs_one(void **state)
{
    (void)state;
    brg_scope *scope = brg_scope_begin();
    brg_tensor *x = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(3));
    assert_brg_null_with(brg_to(x, (brg_device){BRG_DEVICE_CPU, 9}),
                         BRG_ERR_DEVICE,
                         "brg_to: there is no cpu:9, only 1 of these");
    assert_brg_null_with(brg_to(x, (brg_device){77, 0}), BRG_ERR_DEVICE,
                         "77 is not a type of device");
    brg_scope_end(scope);
}

static void test_device__new_tensors_are_there(void **state)
{
    (void)state;
    assert_brg_ok(brg_device_set(THERE));
    brg_tensor *all[] = {
        brg_empty(BRG_DTYPE_F32, BRG_SHAPE(2)),
        brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(2)),
        brg_full(BRG_DTYPE_F32, BRG_SHAPE(2), 3.0),
        brg_rand(BRG_DTYPE_F32, BRG_SHAPE(2)),
        brg_randint(0, 5, BRG_SHAPE(2)),
        brg_randperm(2),
        brg_arange(BRG_DTYPE_F32, 0, 2, 1),
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        assert_int_equal(brg_tensor_device(assert_brg_some(all[i])).type,
                         BRG_DEVICE_CUDA);
    ASSERT_VALUES(all[2], 3, 3);
    ASSERT_VALUES(all[6], 0, 1);
}

static void test_device__random_numbers_are_the_same(void **state)
{
    (void)state;
    float here[6], there[6];
    brg_seed(7);
    assert_brg_ok(brg_tensor_read(brg_randn(BRG_DTYPE_F32, BRG_SHAPE(6)), here,
                                  sizeof here));
    assert_brg_ok(brg_device_set(THERE));
    brg_seed(7);
    assert_brg_ok(brg_tensor_read(brg_randn(BRG_DTYPE_F32, BRG_SHAPE(6)), there,
                                  sizeof there));
    assert_memory_equal(here, there, sizeof here);
}

static brg_draw draw_seen;

/* 0, 1, 2, ... */
static brg_status count_up(brg_device device, const brg_draw *draw)
{
    (void)device;
    draw_seen = *draw;
    for (size_t i = 0; i < draw->numel; i++)
        if (draw->dtype == BRG_DTYPE_F32)
            ((float *)draw->out)[i] = (float)i;
        else
            ((int64_t *)draw->out)[i] = (int64_t)i;
    return BRG_OK;
}

static void test_device__draws_itself_where_it_can(void **state)
{
    (void)state;
    brg_device_vtable drawing = fake;
    drawing.draw = count_up;
    assert_brg_ok(brg_device_register(BRG_DEVICE_CUDA, &drawing));
    brg_tensor *x = make(THERE);
    brg_random_set_state(&(brg_random_state){9, 100});
    seen.n_copies = 0;
    assert_brg_ok(brg_normal_(brg_transpose(x, 0, 1), 2.0, 3.0));
    assert_int_equal(draw_seen.kind, BRG_DRAW_NORMAL);
    assert_int_equal(draw_seen.seed, 9);
    assert_int_equal(draw_seen.offset, 100);
    assert_float_equal(draw_seen.a, 2.0, 0);
    assert_float_equal(draw_seen.b, 3.0, 0);
    assert_int_equal(seen.n_copies, 0); /* none from the host */
    ASSERT_VALUES(x, 0, 2, 4, 1, 3, 5);
    int64_t got[5];
    brg_tensor *i = assert_brg_some(brg_randint(-4, 9, BRG_SHAPE(5)));
    assert_brg_ok(brg_tensor_read(i, got, sizeof got));
    assert_int_equal(got[4], 4);
    assert_int_equal(draw_seen.offset, 102); /* after 6 numbers */
    assert_int_equal(draw_seen.low, -4);
    assert_int_equal(draw_seen.range, 13);
    brg_random_state after;
    brg_random_get_state(&after);
    assert_int_equal(after.offset, 104);
    assert_brg_ok(brg_device_register(BRG_DEVICE_CUDA, &fake));
}

static void test_device__to_copies_any_layout(void **state)
{
    (void)state;
    brg_tensor *x = make(HOME);
    assert_ptr_equal(brg_to(x, HOME), x);
    brg_tensor *t = assert_brg_some(brg_to(brg_transpose(x, 0, 1), THERE));
    assert_int_equal(t->device.type, BRG_DEVICE_CUDA);
    ASSERT_VALUES(t, 1, 4, 2, 5, 3, 6);
    ASSERT_VALUES(brg_to(brg_transpose(t, 0, 1), HOME), 1, 2, 3, 4, 5, 6);
}

static void test_device__gradient_comes_back(void **state)
{
    (void)state;
    brg_tensor *x = make(HOME);
    assert_brg_ok(brg_set_requires_grad(x, true));
    brg_tensor *loss = brg_sum_all(brg_square(brg_to(x, THERE)));
    assert_int_equal(brg_tensor_device(assert_brg_some(loss)).type,
                     BRG_DEVICE_CUDA);
    assert_brg_ok(brg_backward(loss));
    brg_tensor *grad = brg_tensor_grad(x);
    assert_int_equal(brg_tensor_device(assert_brg_some(grad)).type,
                     BRG_DEVICE_CPU);
    ASSERT_VALUES(grad, 2, 4, 6, 8, 10, 12);
}

static void test_device__in_place(void **state)
{
    (void)state;
    brg_tensor *x = make(THERE), *y = make(THERE);
    assert_brg_ok(brg_add_(x, y, 2.0));
    ASSERT_VALUES(x, 3, 6, 9, 12, 15, 18);
    assert_brg_ok(brg_mul_scalar_(brg_select(x, 1, 0), 2.0));
    ASSERT_VALUES(x, 6, 6, 9, 24, 15, 18);
    assert_brg_ok(brg_fill_(brg_select(x, 1, 1), 7.0));
    ASSERT_VALUES(x, 6, 7, 9, 24, 7, 18);
    assert_brg_ok(brg_zero_(x));
    ASSERT_VALUES(x, 0, 0, 0, 0, 0, 0);
    assert_brg_ok(brg_copy_(x, brg_to(y, HOME)));
    ASSERT_VALUES(x, 1, 2, 3, 4, 5, 6);
    double item;
    assert_brg_ok(brg_tensor_item(brg_sum_all(x), &item));
    assert_float_equal(item, 21.0, 0);
    assert_brg_fails_with(brg_add_(x, make(HOME), 1.0), BRG_ERR_DEVICE,
                          "dst is on cuda:0, src on cpu:0");
}

static void test_device__mixed_devices_are_named(void **state)
{
    (void)state;
    brg_tensor *x = make(HOME), *y = make(THERE);
    assert_brg_null_with(brg_add(x, y), BRG_ERR_DEVICE, "cuda:0");
}

static void test_device__missing_kernel_is_named(void **state)
{
    (void)state;
    assert_brg_null_with(brg_erf(make(THERE)), BRG_ERR_UNSUPPORTED,
                         "erf has no kernel for cuda:0");
}

static void test_device__out_of_memory_names_the_tensor(void **state)
{
    (void)state;
    assert_brg_ok(brg_device_set(THERE));
    assert_brg_null_with(brg_empty(BRG_DTYPE_F32, BRG_SHAPE(1 << 15, 1 << 15)),
                         BRG_ERR_NOMEM, "f32[32768, 32768]: out of memory");
    assert_brg_some(brg_empty(BRG_DTYPE_F32, BRG_SHAPE(2)));
}

static void test_device__optimizer_hands_all_parameters_over(void **state)
{
    (void)state;
    brg_params *params;
    brg_optim *optim;
    assert_brg_ok(brg_params_create(&params));
    brg_tensor *w[2];
    for (int i = 0; i < 2; i++) {
        w[i] = make(THERE);
        assert_brg_ok(
            brg_params_add(params, i ? "b" : "a", w[i], BRG_PARAM_TRAINED));
        assert_brg_ok(brg_tensor_set_grad(w[i], make(THERE)));
    }
    brg_adamw_options options = BRG_ADAMW_OPTIONS_INIT;
    options.lr = 0.5;
    assert_brg_ok(brg_optim_create_adamw(&optim, params, &options));
    assert_brg_ok(brg_optim_step(optim));
    assert_int_equal(seen.n_updates, 2);
    assert_int_equal(seen.update.rule, BRG_UPDATE_ADAMW);
    assert_int_equal(seen.update.numel, 6);
    assert_ptr_equal(seen.update.param, brg_tensor_data(w[1]));
    assert_non_null(seen.update.state[1]);
    assert_float_equal(seen.update.f[1], options.beta1, 0);
    double norm;
    assert_brg_ok(brg_clip_grad_norm(&norm, params, 1.0, true));
    assert_float_equal(norm, 13.490737, 1e-5);
    assert_brg_ok(brg_clip_grad_value(params, 0.1));
    ASSERT_VALUES(brg_tensor_grad(w[0]), 1 / 13.490738f, 0.1f, 0.1f, 0.1f, 0.1f,
                  0.1f);
    assert_brg_ok(brg_optim_zero_grad(optim, true));
    ASSERT_VALUES(brg_tensor_grad(w[0]), 0, 0, 0, 0, 0, 0);
    brg_optim_destroy(optim);
    brg_params_destroy(params);
}

static void test_device__offload_brings_back(void **state)
{
    (void)state;
    brg_tensor *x = make(THERE);
    assert_brg_ok(brg_set_requires_grad(x, true));
    brg_offload_options options = BRG_OFFLOAD_OPTIONS_INIT;
    options.min_bytes = 1;
    assert_brg_ok(brg_offload_begin(&options));
    brg_tensor *y = brg_square(brg_exp(brg_mul_scalar(x, 0.0)));
    assert_brg_ok(brg_offload_end());
    assert_brg_ok(brg_backward(brg_sum_all(brg_mul(y, x))));
    ASSERT_VALUES(brg_tensor_grad(x), 1, 1, 1, 1, 1, 1);
}

static brg_status offload_once(brg_offload_kind kind, float *filled)
{
    brg_offload_options options = BRG_OFFLOAD_OPTIONS_INIT;
    options.kind = kind;
    options.min_bytes = 1;
    brg_tensor *x = make(THERE);
    assert_brg_ok(brg_set_requires_grad(x, true));
    assert_brg_ok(brg_offload_begin(&options));
    brg_tensor *y = brg_transpose(brg_mul_scalar(x, 0.5), 0, 1);
    y = brg_square(brg_exp(y));
    brg_status status = y ? BRG_OK : brg_error_code();
    assert_brg_ok(brg_offload_end());
    if (status == BRG_OK)
        status = brg_backward(brg_sum_all(y));
    if (status == BRG_OK)
        status = brg_tensor_read(brg_tensor_grad(x), filled, 6 * sizeof(float));
    return status;
}

/* Each copy between the two memories fails once: the op or the backward that
 * asked for it says so, and nothing is lost. */
static void test_device__offload_of_which_a_copy_fails(void **state)
{
    (void)state;
    float grads[2][6] = {{0}};
    brg_memory_stats before, after;
    for (int kind = 0; kind < 2; kind++) {
        brg_scope *scope = brg_scope_begin(); /* a plan, which holds memory */
        assert_brg_ok(offload_once((brg_offload_kind)kind, grads[kind]));
        brg_scope_end(scope);
        brg_status status = BRG_ERR_DEVICE;
        for (int64_t n = 2; status != BRG_OK; n++) { /* make's is the first */
            brg_memory_get_stats(&before);
            scope = brg_scope_begin();
            seen.n_copies = 0;
            seen.failing_copy = n;
            status = offload_once((brg_offload_kind)kind, grads[kind]);
            seen.failing_copy = 0;
            if (status != BRG_OK) {
                assert_int_equal(status, BRG_ERR_DEVICE);
                assert_non_null(strstr(brg_error_message(), "failed"));
            }
            brg_scope_end(scope);
            brg_memory_get_stats(&after);
            assert_true(after.in_use == before.in_use);
            assert_int_equal(seen.n_blocks, 0);
            assert_true(n < 100);
        }
    }
    for (int i = 0; i < 6; i++) {
        assert_true(fabs(grads[0][i] - exp(1 + i)) < 1e-5 * exp(1 + i));
        assert_true(grads[0][i] == grads[1][i]);
    }
}

/* ---- Gradients in the wrong place ------------------------------------------- */

static brg_status call_on(brg_context *ctx, const brg_value *args,
                          size_t n_args, brg_value *out)
{
    (void)ctx;
    (void)n_args;
    out[0] = brg_value_tensor(brg_mul_scalar(args[0].as.tensor, 2));
    return out[0].as.tensor ? BRG_OK : brg_error_code();
}

/* The gradient, moved to the CPU. */
static brg_status stray_backward(brg_context *ctx, brg_tensor *const *grad_out,
                                 brg_tensor **grad_in, size_t *n_grad_in)
{
    (void)ctx;
    (void)n_grad_in;
    grad_in[0] = brg_to(brg_mul_scalar(grad_out[0], 2), HOME);
    return grad_in[0] ? BRG_OK : brg_error_code();
}

static brg_tensor *through_stray(brg_tensor *x)
{
    brg_function_def def = BRG_FUNCTION_DEF_INIT;
    def.name = "Stray";
    def.n_outputs = 1;
    def.forward = call_on;
    def.backward = stray_backward;
    brg_function *f;
    assert_brg_ok(brg_function_create(&f, &def));
    const brg_value arg = brg_value_tensor(x);
    brg_tensor *y = brg_function_call(f, &arg, 1);
    brg_function_release(f);
    return y;
}

static brg_status stray_hook(brg_tensor *grad, brg_tensor **replacement,
                             void *user)
{
    (void)user;
    *replacement = brg_to(grad, HOME);
    return BRG_OK;
}

static brg_status stray_pre_hook(brg_tensor **grads, size_t n, void *user)
{
    (void)n;
    (void)user;
    grads[0] = brg_to(grads[0], HOME);
    return BRG_OK;
}

static void test_device__gradients_in_the_wrong_place_are_named(void **state)
{
    (void)state;
    brg_tensor *here = make(HOME), *x = make(THERE);
    assert_brg_ok(brg_set_requires_grad(x, true));
    brg_tensor *y = brg_square(x);
    brg_backward_options options = BRG_BACKWARD_OPTIONS_INIT;
    options.grad_outputs = &here;
    options.retain_graph = true;
    assert_brg_fails_with(brg_backward_with(&y, 1, &options), BRG_ERR_DEVICE,
                          "grad_outputs[0] is on cpu:0, its output on cuda:0");
    assert_brg_fails_with(brg_tensor_set_grad(x, here), BRG_ERR_SHAPE,
                          "device must be equal");
    assert_brg_fails_with(brg_backward(brg_sum_all(through_stray(x))),
                          BRG_ERR_DEVICE,
                          "Stray returned a gradient on cpu:0 at index 0, "
                          "expected cuda:0");
    brg_hook *hook;
    assert_brg_ok(brg_tensor_add_hook(&hook, y, stray_hook, NULL, NULL));
    assert_brg_fails_with(brg_backward(brg_sum_all(y)), BRG_ERR_CALLBACK,
                          "changed the device of value");
    brg_hook_remove(hook);
    brg_node *node;
    assert_brg_ok(brg_tensor_node(&node, x));
    assert_brg_ok(
        brg_node_add_pre_hook(&hook, node, stray_pre_hook, NULL, NULL));
    assert_brg_fails_with(brg_backward(brg_sum_all(brg_square(x))),
                          BRG_ERR_CALLBACK, "changed the device of value");
    brg_hook_remove(hook);
    brg_node_release(node);
    assert_null(brg_tensor_grad(x));
    brg_tensor *there = make(THERE); /* and the engine still works */
    options.grad_outputs = &there;
    y = brg_square(x); /* a plan that failed has freed what it had taken */
    assert_brg_ok(brg_backward_with(&y, 1, &options));
    ASSERT_VALUES(brg_tensor_grad(x), 2, 8, 18, 32, 50, 72);
}

static void test_device__a_gradient_of_one_number_is_moved(void **state)
{
    (void)state;
    assert_brg_ok(brg_device_set(THERE));
    brg_tensor *x = assert_brg_some(brg_full(BRG_DTYPE_F32, BRG_SCALAR, 3));
    assert_brg_ok(brg_set_requires_grad(x, true));
    assert_brg_ok(brg_device_set(HOME));
    brg_tensor *seed = brg_full(BRG_DTYPE_F32, BRG_SCALAR, 5);
    brg_tensor *y = brg_square(through_stray(x));
    brg_backward_options options = BRG_BACKWARD_OPTIONS_INIT;
    options.grad_outputs = &seed;
    assert_brg_ok(brg_backward_with(&y, 1, &options));
    assert_int_equal(brg_tensor_device(brg_tensor_grad(x)).type,
                     BRG_DEVICE_CUDA);
    ASSERT_VALUES(brg_tensor_grad(x), 5 * 2 * 6 * 2);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_device__parse),
        TEST(test_device__load_says_what_is_missing),
        TEST(test_device__set_needs_one),
        TEST(test_device__to_needs_one),
        TEST(test_device__new_tensors_are_there),
        TEST(test_device__random_numbers_are_the_same),
        TEST(test_device__draws_itself_where_it_can),
        TEST(test_device__to_copies_any_layout),
        TEST(test_device__gradient_comes_back),
        TEST(test_device__in_place),
        TEST(test_device__mixed_devices_are_named),
        TEST(test_device__missing_kernel_is_named),
        TEST(test_device__out_of_memory_names_the_tensor),
        TEST(test_device__optimizer_hands_all_parameters_over),
        TEST(test_device__offload_brings_back),
        TEST(test_device__offload_of_which_a_copy_fails),
        TEST(test_device__gradients_in_the_wrong_place_are_named),
        TEST(test_device__a_gradient_of_one_number_is_moved),
    };
    return cmocka_run_group_tests_name("device", tests, NULL, NULL);
}
