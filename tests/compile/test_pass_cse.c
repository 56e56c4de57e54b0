/* SPDX-License-Identifier: Apache-2.0
 * Common subexpressions: what is one, and what must stay two. */
#include "tests/compile/ir_build.h"

static int scaled(brg__ir *ir, int a, double factor)
{
    const brg_op *op = brg_op_find("mul_scalar");
    return ir_node(ir,
                   (brg__ir_node){.kind = BRG__IR_OP,
                                  .op = op,
                                  .attrs.f[0] = factor,
                                  .lifted = NO,
                                  .visit = NO},
                   1, IN(a));
}

static void run(brg__ir *ir)
{
    assert_brg_ok(brg__pass_cse(ir));
    assert_brg_ok(brg__ir_verify(ir));
    assert_brg_ok(brg__pass_dce(ir));
}

static void test_pass_cse__equal_chains_become_one(void **state)
{
    (void)state;
    brg__ir ir = {0};
    int a = ir_input(&ir), b = ir_input(&ir);
    int first = ir_op(&ir, "sin", IN(ir_op(&ir, "mul", IN(a, b))));
    int second = ir_op(&ir, "sin", IN(ir_op(&ir, "mul", IN(a, b))));
    int sum = ir_op(&ir, "sub", IN(first, second));
    ir_of(&ir, BRG__IR_ACCUMULATE, 0, 0, IN(sum));
    run(&ir);
    expect_plan(&ir, "v2 f32/2 = mul(in0, in1)\n"
                     "v3 f32/2 = sin(v2)\n"
                     "v6 f32/2 = sub(v3, v3)\n"
                     "accumulate@0(v6)\n");
    brg__ir_deinit(&ir);
}

static void test_pass_cse__attributes_and_operands_tell_apart(void **state)
{
    (void)state;
    brg__ir ir = {0};
    int a = ir_input(&ir), b = ir_input(&ir);
    int x = scaled(&ir, a, 2), y = scaled(&ir, a, 3), z = scaled(&ir, a, 2);
    int w = scaled(&ir, a, -0.0), v = scaled(&ir, a, 0.0);
    int ab = ir_op(&ir, "sub", IN(a, b)), ba = ir_op(&ir, "sub", IN(b, a));
    int all[] = {x, y, z, w, v, ab, ba};
    int sum = a;
    for (int i = 0; i < 7; i++)
        sum = ir_op(&ir, "add", IN(sum, all[i]));
    ir_of(&ir, BRG__IR_ACCUMULATE, 0, 0, IN(sum));
    size_t n = ir.nodes.n;
    run(&ir);
    assert_int_equal(ir.nodes.n, n - 1); /* z is x; the others differ */
    brg__ir_deinit(&ir);
}

/* Sizes of one slot are one operand, whoever asked for them. */
static void test_pass_cse__slots_are_the_same_operand(void **state)
{
    (void)state;
    brg__ir ir = {0};
    int a = ir_input(&ir), out[2];
    for (int k = 0; k < 2; k++) {
        int like = ir_value(&ir, (brg__ir_value){.source = BRG__IR_FROM_SLOT,
                                                 .visit = 4,
                                                 .index = 1});
        out[k] = ir_op(&ir, "sum_to_like", IN(a, like));
    }
    ir_of(&ir, BRG__IR_ACCUMULATE, 0, 0,
          IN(ir_op(&ir, "add", IN(out[0], out[1]))));
    run(&ir);
    expect_plan(&ir, "v2 f32/2 = sum_to_like(in0, slot4.1)\n"
                     "v5 f32/2 = add(v2, v2)\n"
                     "accumulate@0(v5)\n");
    brg__ir_deinit(&ir);
}

/* Two leaves get two gradients, two hooks two tensors. */
static void test_pass_cse__what_is_handed_out_stays_two(void **state)
{
    (void)state;
    brg__ir ir = {0};
    int a = ir_input(&ir);
    for (int k = 0; k < 2; k++)
        ir_of(&ir, BRG__IR_ACCUMULATE, k, 0, IN(ir_op(&ir, "sin", IN(a))));
    for (int k = 0; k < 2; k++)
        ir_of(&ir, BRG__IR_TENSOR_HOOKS, 7, 1, IN(ir_op(&ir, "cos", IN(a))));
    run(&ir);
    assert_int_equal(ir.nodes.n, 8);
    brg__ir_deinit(&ir);
}

static void test_pass_cse__random_numbers_are_drawn_each_time(void **state)
{
    (void)state;
    brg__ir ir = {0};
    int a = ir_input(&ir), out[2];
    for (int k = 0; k < 2; k++)
        out[k] = ir_node(&ir,
                         (brg__ir_node){.kind = BRG__IR_OP,
                                        .op = brg_op_find("dropout"),
                                        .lifted = 3,
                                        .visit = NO},
                         1, IN(a));
    ir_of(&ir, BRG__IR_ACCUMULATE, 0, 0,
          IN(ir_op(&ir, "add", IN(out[0], out[1]))));
    run(&ir);
    assert_int_equal(ir.nodes.n, 4);
    brg__ir_deinit(&ir);
}

/* Code of the user may change what comes from outside, which a view shows; what
 * the plan made itself it cannot reach. */
static void test_pass_cse__user_code_ends_what_inputs_were(void **state)
{
    (void)state;
    brg__ir ir = {0};
    int a = ir_input(&ir), out[2], inside[2];
    int view = ir_op(&ir, "reshape_like", IN(a, ir_input(&ir)));
    int made = ir_op(&ir, "sin", IN(a));
    for (int k = 0; k < 2; k++) {
        out[k] = ir_op(&ir, "cos", IN(view));
        inside[k] = ir_op(&ir, "neg", IN(made));
        ir_of(&ir, BRG__IR_POST_ACCUMULATE, 1, 0, NULL, 0);
    }
    int sums[] = {ir_op(&ir, "add", IN(out[0], out[1])),
                  ir_op(&ir, "add", IN(inside[0], inside[1]))};
    ir_of(&ir, BRG__IR_ACCUMULATE, 0, 0, IN(sums[0]));
    ir_of(&ir, BRG__IR_ACCUMULATE, 2, 0, IN(sums[1]));
    run(&ir);
    expect_plan(&ir, "v2 f32/2 = reshape_like(in0, in1)\n"
                     "v3 f32/2 = sin(in0)\n"
                     "v4 f32/2 = cos(v2)\n"
                     "v5 f32/2 = neg(v3)\n"
                     "post_accumulate@1()\n"
                     "v6 f32/2 = cos(v2)\n"
                     "post_accumulate@1()\n"
                     "v8 f32/2 = add(v4, v6)\n"
                     "v9 f32/2 = add(v5, v5)\n"
                     "accumulate@0(v8)\n"
                     "accumulate@2(v9)\n");
    brg__ir_deinit(&ir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pass_cse__equal_chains_become_one),
        cmocka_unit_test(test_pass_cse__attributes_and_operands_tell_apart),
        cmocka_unit_test(test_pass_cse__slots_are_the_same_operand),
        cmocka_unit_test(test_pass_cse__what_is_handed_out_stays_two),
        cmocka_unit_test(test_pass_cse__random_numbers_are_drawn_each_time),
        cmocka_unit_test(test_pass_cse__user_code_ends_what_inputs_were),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
