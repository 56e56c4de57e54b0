/* SPDX-License-Identifier: Apache-2.0
 * Plans belong to one device: two of one type have a plan each. */
#include "tests/autograd/graph.h"
#include "tests/support/fake_device.h"

static int two(void)
{
    return 2;
}

static int register_two(void **state)
{
    static brg_device_vtable vtable;
    (void)state;
    vtable = fake;
    vtable.count = two;
    return brg_device_register(BRG_DEVICE_CUDA, &vtable) == BRG_OK ? 0 : -1;
}

static void backward_on(int16_t index)
{
    const brg_device device = {BRG_DEVICE_CUDA, index};
    brg_tensor *x = assert_brg_some(
        brg_to(brg_full(BRG_DTYPE_F32, BRG_SHAPE(4), 3), device));
    assert_brg_ok(brg_set_requires_grad(x, true));
    assert_brg_ok(brg_backward(brg_sum_all(brg_square(x))));
    assert_int_equal(brg_tensor_device(brg_tensor_grad(x)).index, index);
}

static void test_key_device__each_has_a_plan(void **state)
{
    int scope;
    brg_compile_stats stats;
    (void)state;
    assert_brg_ok(brg_compile_begin(&scope, NULL));
    for (int k = 0; k < 6; k++)
        backward_on((int16_t)(k % 2));
    brg_compile_get_stats(&stats);
    assert_brg_ok(brg_compile_end(scope));
    assert_int_equal(stats.captures, 2);
    assert_int_equal(stats.hits, 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_key_device__each_has_a_plan),
    };
    return cmocka_run_group_tests(tests, register_two, NULL);
}
