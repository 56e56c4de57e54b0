/* SPDX-License-Identifier: Apache-2.0
 * Leaves get their gradients as soon as these exist; hooks keep their order. */
#include "tests/compile/ir_build.h"

/* A rule that makes two gradients, then both leaves: as captured. */
static void test_pass_early__accumulation_behind_its_producer(void **state)
{
    (void)state;
    brg__ir ir = {0};
    int g = ir_input(&ir), x = ir_input(&ir);
    int w = ir_op(&ir, "mul", IN(g, x)), b = ir_op(&ir, "sin", IN(g));
    int next = ir_op(&ir, "cos", IN(g));
    ir_of(&ir, BRG__IR_ACCUMULATE, 1, 0, IN(w));
    ir_of(&ir, BRG__IR_ACCUMULATE, 2, 0, IN(b));
    ir_of(&ir, BRG__IR_ACCUMULATE, 3, 0, IN(next));
    assert_brg_ok(brg__pass_early(&ir));
    expect_plan(&ir, "v2 f32/2 = mul(in0, in1)\n"
                     "accumulate@1(v2)\n"
                     "v3 f32/2 = sin(in0)\n"
                     "accumulate@2(v3)\n"
                     "v4 f32/2 = cos(in0)\n"
                     "accumulate@3(v4)\n");
    brg__ir_deinit(&ir);
}

/* Tensor hooks, pre-hooks, accumulation, post-accumulate hooks, post-hooks: the
 * whole chain of a leaf moves, in its order. */
static void test_pass_early__a_leafs_chain_moves_as_one(void **state)
{
    (void)state;
    brg__ir ir = {0};
    int g = ir_input(&ir);
    int w = ir_op(&ir, "sin", IN(g)), other = ir_op(&ir, "cos", IN(w));
    int hooked = ir_of(&ir, BRG__IR_TENSOR_HOOKS, 1, 1, IN(w));
    int pre = ir_of(&ir, BRG__IR_PRE_HOOKS, 1, 1, IN(hooked));
    ir_of(&ir, BRG__IR_ACCUMULATE, 1, 0, IN(pre));
    ir_of(&ir, BRG__IR_POST_ACCUMULATE, 1, 0, NULL, 0);
    ir_reduction(&ir, 1, 0, (brg__ir_bucket){.n_members = 1, .divisor = 2});
    ir_of(&ir, BRG__IR_POST_HOOKS, 1, 0, IN(pre));
    ir_of(&ir, BRG__IR_ACCUMULATE, 2, 0, IN(other));
    assert_brg_ok(brg__pass_early(&ir));
    expect_plan(&ir, "v1 f32/2 = sin(in0)\n"
                     "v3 f32/2 = tensor_hooks@1(v1)\n"
                     "v4 f32/2 = pre_hooks@1(v3)\n"
                     "accumulate@1(v4)\n"
                     "post_accumulate@1()\n"
                     "v5 token = pack@1[r0.p0]()\n"
                     "v6 token = all_reduce_start[r0.b0, scale 1/2](v5)\n"
                     "v7 token = wait[r0.b0](v6)\n"
                     "v8 token = write_back@1[r0.p0](v7)\n"
                     "post_hooks@1(v4)\n"
                     "v2 f32/2 = cos(v1)\n"
                     "accumulate@2(v2)\n");
    brg__ir_deinit(&ir);
}

/* What user code does before a gradient arrives, in an eager backward, it has
 * done before it arrives here. */
static void test_pass_early__no_effect_overtakes_another(void **state)
{
    (void)state;
    brg__ir ir = {0};
    int g = ir_input(&ir);
    int early = ir_op(&ir, "sin", IN(g)), late = ir_op(&ir, "cos", IN(g));
    int called = ir_of(&ir, BRG__IR_CALL, 5, 1, IN(late));
    ir_of(&ir, BRG__IR_RETAIN, 5, 0, IN(called));
    ir_of(&ir, BRG__IR_ACCUMULATE, 1, 0, IN(late));
    ir_of(&ir, BRG__IR_ACCUMULATE, 2, 0, IN(early));
    assert_brg_ok(brg__pass_early(&ir));
    expect_plan(&ir, "v1 f32/2 = sin(in0)\n"
                     "v2 f32/2 = cos(in0)\n"
                     "v3 f32/2 = call@5(v2)\n"
                     "retain_grad@5(v3)\n"
                     "accumulate@1(v2)\n"
                     "accumulate@2(v1)\n");
    brg__ir_deinit(&ir);
}

/* Tensor hooks of ops follow what made their gradient; pre-hooks, post-hooks
 * and outputs stay with their node. */
static void test_pass_early__hooks_of_ops(void **state)
{
    (void)state;
    brg__ir ir = {0};
    int g = ir_input(&ir);
    int a = ir_op(&ir, "sin", IN(g)), b = ir_op(&ir, "cos", IN(a));
    int hooked = ir_of(&ir, BRG__IR_TENSOR_HOOKS, 4, 1, IN(a));
    int pre = ir_of(&ir, BRG__IR_PRE_HOOKS, 4, 1, IN(hooked));
    int c = ir_op(&ir, "mul", IN(pre, b));
    int post = ir_of(&ir, BRG__IR_POST_HOOKS, 4, 1, IN(c, pre));
    ir_of(&ir, BRG__IR_ACCUMULATE, 1, 0, IN(post));
    assert_brg_ok(brg__pass_early(&ir));
    expect_plan(&ir, "v1 f32/2 = sin(in0)\n"
                     "v3 f32/2 = tensor_hooks@4(v1)\n"
                     "v2 f32/2 = cos(v1)\n"
                     "v4 f32/2 = pre_hooks@4(v3)\n"
                     "v5 f32/2 = mul(v4, v2)\n"
                     "v6 f32/2 = post_hooks@4(v5, v4)\n"
                     "accumulate@1(v6)\n");
    brg__ir_deinit(&ir);
}

/* A segment brings its gradients in the order of its arguments, at its end:
 * they go to their leaves in the order in which it makes them. */
static void test_pass_early__gradients_of_a_segment(void **state)
{
    (void)state;
    brg__ir ir = {0};
    int g = ir_input(&ir), made[3];
    const char *const ops[] = {"sin", "cos", "neg"};
    for (int k = 0; k < 3; k++) {
        made[k] = ir_op(&ir, ops[k], IN(k == 0 ? g : made[k - 1]));
        ir.nodes.at[ir.nodes.n - 1].segment = 1;
    }
    for (int k = 2; k >= 0; k--) {
        int hooked = ir_of(&ir, BRG__IR_TENSOR_HOOKS, k, 1, IN(made[k]));
        ir_of(&ir, BRG__IR_ACCUMULATE, k, 0, IN(hooked));
        ir_of(&ir, BRG__IR_POST_ACCUMULATE, k, 0, NULL, 0);
    }
    assert_brg_ok(brg__pass_early(&ir));
    expect_plan(&ir, "v1 f32/2 = s0_0/sin(in0)\n"
                     "v6 f32/2 = tensor_hooks@0(v1)\n"
                     "accumulate@0(v6)\n"
                     "post_accumulate@0()\n"
                     "v2 f32/2 = s0_0/cos(v1)\n"
                     "v5 f32/2 = tensor_hooks@1(v2)\n"
                     "accumulate@1(v5)\n"
                     "post_accumulate@1()\n"
                     "v3 f32/2 = s0_0/neg(v2)\n"
                     "v4 f32/2 = tensor_hooks@2(v3)\n"
                     "accumulate@2(v4)\n"
                     "post_accumulate@2()\n");
    brg__ir_deinit(&ir);
}

/* A hook of the user may change its leaf, which in1 may be: what reads that
 * comes first. Accumulation waits for nothing. */
static void test_pass_early__user_code_waits_for_readers(void **state)
{
    (void)state;
    brg__ir ir = {0};
    int g = ir_input(&ir), x = ir_input(&ir), y = ir_input(&ir);
    int first = ir_op(&ir, "mul", IN(g, y));
    int second = ir_op(&ir, "mul", IN(g, x));
    int inner = ir_op(&ir, "neg", IN(second));
    ir_of(&ir, BRG__IR_ACCUMULATE, 1, 0, IN(first));
    ir_of(&ir, BRG__IR_POST_ACCUMULATE, 1, 0, NULL, 0);
    ir_of(&ir, BRG__IR_ACCUMULATE, 2, 0, IN(inner));
    assert_brg_ok(brg__pass_early(&ir));
    expect_plan(&ir, "v3 f32/2 = mul(in0, in2)\n"
                     "accumulate@1(v3)\n"
                     "v4 f32/2 = mul(in0, in1)\n"
                     "post_accumulate@1()\n"
                     "v5 f32/2 = neg(v4)\n"
                     "accumulate@2(v5)\n");
    brg__ir_deinit(&ir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pass_early__accumulation_behind_its_producer),
        cmocka_unit_test(test_pass_early__a_leafs_chain_moves_as_one),
        cmocka_unit_test(test_pass_early__no_effect_overtakes_another),
        cmocka_unit_test(test_pass_early__hooks_of_ops),
        cmocka_unit_test(test_pass_early__gradients_of_a_segment),
        cmocka_unit_test(test_pass_early__user_code_waits_for_readers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
