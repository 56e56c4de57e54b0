/* SPDX-License-Identifier: Apache-2.0
 * Unpacking right before the first use. */
#include "tests/compile/ir_build.h"

static void test_pass_unpack__right_before_the_first_user(void **state)
{
    (void)state;
    brg__ir ir = {0};
    int g = ir_input(&ir);
    int x = ir_of(&ir, BRG__IR_UNPACK, 1, 1, NULL, 0);
    int y = ir_of(&ir, BRG__IR_UNPACK, 1, 1, NULL, 0);
    int hooked = ir_of(&ir, BRG__IR_TENSOR_HOOKS, 2, 1, IN(g));
    int a = ir_op(&ir, "mul", IN(hooked, y));
    int b = ir_op(&ir, "mul", IN(a, x));
    int c = ir_op(&ir, "mul", IN(b, x));
    ir_of(&ir, BRG__IR_ACCUMULATE, 3, 0, IN(c));
    assert_brg_ok(brg__pass_unpack(&ir));
    expect_plan(&ir, "v3 f32/2 = tensor_hooks@2(in0)\n"
                     "v2 f32/2 = unpack@1()\n"
                     "v4 f32/2 = mul(v3, v2)\n"
                     "v1 f32/2 = unpack@1()\n"
                     "v5 f32/2 = mul(v4, v1)\n"
                     "v6 f32/2 = mul(v5, v1)\n"
                     "accumulate@3(v6)\n");
    brg__ir_deinit(&ir);
}

/* The hooks still run, once, where the rule would have run them. */
static void test_pass_unpack__one_that_nobody_reads_stays(void **state)
{
    (void)state;
    brg__ir ir = {0};
    int g = ir_input(&ir);
    ir_of(&ir, BRG__IR_UNPACK, 1, 1, NULL, 0);
    int x = ir_of(&ir, BRG__IR_UNPACK, 1, 1, NULL, 0);
    ir_op(&ir, "sin", IN(g));
    ir_of(&ir, BRG__IR_CALL, 4, 0, IN(g, x));
    assert_brg_ok(brg__pass_unpack(&ir));
    expect_plan(&ir, "v1 f32/2 = unpack@1()\n"
                     "v3 f32/2 = sin(in0)\n"
                     "v2 f32/2 = unpack@1()\n"
                     "call@4(in0, v2)\n");
    brg__ir_deinit(&ir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pass_unpack__right_before_the_first_user),
        cmocka_unit_test(test_pass_unpack__one_that_nobody_reads_stays),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
