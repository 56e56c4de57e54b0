/* SPDX-License-Identifier: Apache-2.0
 * Gradients of leaves are made before what only goes on. */
#include "tests/compile/ir_build.h"

/* A linear layer's rule, as captured: of the input, the weight, the bias. */
static void test_pass_leaves__weights_before_inputs(void **state)
{
    (void)state;
    brg__ir ir = {0};
    int g = ir_input(&ir), x = ir_input(&ir), w = ir_input(&ir);
    int grad_x = ir_op(&ir, "mul", IN(g, w));
    int grad_w = ir_op(&ir, "mul", IN(g, x)), grad_b = ir_op(&ir, "sin", IN(g));
    ir_of(&ir, BRG__IR_ACCUMULATE, 1, 0, IN(grad_w));
    ir_of(&ir, BRG__IR_ACCUMULATE, 2, 0, IN(grad_b));
    int before = ir_op(&ir, "cos", IN(grad_x));
    ir_of(&ir, BRG__IR_ACCUMULATE, 3, 0, IN(before));
    assert_brg_ok(brg__pass_leaves(&ir));
    expect_plan(&ir, "v4 f32/2 = mul(in0, in1)\n"
                     "v5 f32/2 = sin(in0)\n"
                     "v3 f32/2 = mul(in0, in2)\n"
                     "accumulate@1(v4)\n"
                     "accumulate@2(v5)\n"
                     "v6 f32/2 = cos(v3)\n"
                     "accumulate@3(v6)\n");
    brg__ir_deinit(&ir);
}

/* Several rules with nothing between them, as in a segment: each gradient comes
 * as soon as what it needs is there. */
static void test_pass_leaves__each_with_what_it_needs(void **state)
{
    (void)state;
    brg__ir ir = {0};
    int g = ir_input(&ir);
    int on = ir_op(&ir, "sin", IN(g)), one = ir_op(&ir, "cos", IN(g));
    int end = ir_op(&ir, "neg", IN(on)), two = ir_op(&ir, "exp", IN(on));
    int checked = ir_of(&ir, BRG__IR_TENSOR_HOOKS, 2, 1, IN(two));
    ir_of(&ir, BRG__IR_ACCUMULATE, 1, 0, IN(one));
    ir_of(&ir, BRG__IR_ACCUMULATE, 2, 0, IN(checked));
    ir_of(&ir, BRG__IR_DELIVER, 3, 0, IN(end));
    assert_brg_ok(brg__pass_leaves(&ir));
    expect_plan(&ir, "v2 f32/2 = cos(in0)\n"
                     "v1 f32/2 = sin(in0)\n"
                     "v4 f32/2 = exp(v1)\n"
                     "v3 f32/2 = neg(v1)\n"
                     "v5 f32/2 = tensor_hooks@2(v4)\n"
                     "accumulate@1(v2)\n"
                     "accumulate@2(v5)\n"
                     "deliver@3(v3)\n");
    brg__ir_deinit(&ir);
}

/* What has an effect is not overtaken: a hook may change what is read. */
static void test_pass_leaves__effects_stay_between(void **state)
{
    (void)state;
    brg__ir ir = {0};
    int g = ir_input(&ir);
    int a = ir_op(&ir, "sin", IN(g));
    int hooked = ir_of(&ir, BRG__IR_TENSOR_HOOKS, 7, 1, IN(a));
    int other = ir_op(&ir, "neg", IN(hooked)), w = ir_op(&ir, "cos", IN(g));
    ir_of(&ir, BRG__IR_ACCUMULATE, 1, 0, IN(w));
    ir_of(&ir, BRG__IR_DELIVER, 3, 0, IN(other));
    assert_brg_ok(brg__pass_leaves(&ir));
    expect_plan(&ir, "v1 f32/2 = sin(in0)\n"
                     "v2 f32/2 = tensor_hooks@7(v1)\n"
                     "v4 f32/2 = cos(in0)\n"
                     "v3 f32/2 = neg(v2)\n"
                     "accumulate@1(v4)\n"
                     "deliver@3(v3)\n");
    brg__ir_deinit(&ir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pass_leaves__weights_before_inputs),
        cmocka_unit_test(test_pass_leaves__each_with_what_it_needs),
        cmocka_unit_test(test_pass_leaves__effects_stay_between),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
