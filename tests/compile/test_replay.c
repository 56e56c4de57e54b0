/* SPDX-License-Identifier: Apache-2.0
 * What keeps a device from replaying an executable; more of it in
 * tests/rows/test_replay_rows.c. */
#include "compile/replay.h"
#include "tests/compile/ir_build.h"
#include "tests/compile/replays.h"

/* The gradient that the caller gives lies on the host; it is moved. */
static void test_replay__gradient_given_on_the_host(void **state)
{
    (void)state;
    brg_tensor *x = leaf_there(3, BRG_SHAPE(4));
    brg_tensor *y = brg_sum_all(brg_square(x));
    brg_tensor *seed = brg_full(BRG_DTYPE_F32, BRG_SHAPE(), 2), *dx;
    int scope;
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    brg_backward_options given = BRG_BACKWARD_OPTIONS_INIT;
    options.replay = true;
    given.grad_outputs = &seed;
    assert_brg_ok(brg_compile_begin(&scope, &options));
    assert_brg_ok(brg_grad(&dx, &y, 1, &x, 1, &given));
    assert_brg_ok(brg_compile_end(scope));
    expect_all(brg_to(dx, HOME), 12);
    expect_counts(1, 1, 0);
}

/* The gradient of the root, another in each run: it goes along with the launch. */
static void test_replay__a_number_of_the_host_is_moved(void **state)
{
    (void)state;
    for (int i = 0; i < 5; i++) {
        brg_tensor *x = leaf_there(3, BRG_SHAPE(4));
        brg_tensor *y = brg_sum_all(brg_square(x));
        brg_tensor *g = brg_full(BRG_DTYPE_F32, BRG_SHAPE(), i + 1);
        int scope;
        brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
        brg_backward_options given = BRG_BACKWARD_OPTIONS_INIT;
        options.replay = true;
        given.grad_outputs = &g;
        assert_brg_ok(brg_compile_begin(&scope, &options));
        assert_brg_ok(brg_backward_with(&y, 1, &given));
        assert_brg_ok(brg_compile_end(scope));
        expect_grad_there(x, 6 * (i + 1));
    }
    expect_counts(1, 1, 0); /* x is another leaf each time: seen once */
    expect_launches(2, 2);
}

/* Part of the graph is on the host. */
static void test_replay__gradient_on_the_host(void **state)
{
    (void)state;
    brg_tensor *x = leaf_full(3, BRG_SHAPE(4));
    backward_replayed(brg_sum_all(brg_square(there(x))));
    expect_all(brg_tensor_grad(x), 6);
    expect_counts(1, 0, 1);
    expect_skip("a gradient on the host");
}

static brg_status twice(brg_tensor *grad, brg_tensor **replaced, void *user)
{
    (void)user;
    *replaced = brg_mul_scalar(grad, 2);
    return *replaced ? BRG_OK : brg_error_code();
}

static void test_replay__hooks_are_in_the_way(void **state)
{
    (void)state;
    brg_tensor *x = leaf_there(3, BRG_SHAPE(4));
    assert_brg_ok(brg_tensor_add_hook(NULL, x, twice, NULL, NULL));
    backward_replayed(brg_sum_all(brg_square(x)));
    expect_grad_there(x, 12);
    expect_counts(1, 0, 1);
    expect_skip("code of the user");
}

/* An op's operand on the host is in the way unless it is one number. */
static void test_replay__operands_on_the_host(void **state)
{
    (void)state;
    for (int ndim = 0; ndim < 2; ndim++) {
        brg_tensor *in[2] = {there(leaf_full(3, BRG_SHAPE(4))),
                             brg_full(BRG_DTYPE_F32, ndim, (int64_t[]){4}, 2)};
        brg__plan plan = {0};
        brg__task task = {0};
        brg__collected c = {0};
        char why[128] = "";
        for (int i = 0; i < 2; i++)
            assert_brg_ok(brg__array_push(&c.inputs, in[i]));
        int a = ir_input(&plan.ir), b = ir_input(&plan.ir);
        ir_op(&plan.ir, "mul", IN(a, b));
        bool is_allowed = brg__replay_allows(&plan, &task, &c, why, sizeof why);
        assert_int_equal(is_allowed, ndim == 0);
        assert_string_equal(why, ndim == 0 ? "" : "a tensor on the host");
        ir_of(&plan.ir, BRG__IR_OUTPUT, 0, 0, IN(b));
        assert_false(brg__replay_allows(&plan, &task, &c, why, sizeof why));
        if (ndim == 0)
            assert_string_equal(why, "a number on the host that is no op's");
        brg__ir_deinit(&plan.ir);
        brg__array_deinit(&c.inputs);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_replay__gradient_given_on_the_host),
        scoped_test(test_replay__a_number_of_the_host_is_moved),
        scoped_test(test_replay__gradient_on_the_host),
        scoped_test(test_replay__hooks_are_in_the_way),
        scoped_test(test_replay__operands_on_the_host),
    };
    return cmocka_run_group_tests(tests, register_fake_device, NULL);
}
