/* SPDX-License-Identifier: Apache-2.0
 * Dead code elimination: what nobody reads goes, what has an effect stays. */
#include "tests/compile/ir_build.h"

static void test_pass_dce__chains_that_lead_nowhere_go(void **state)
{
    (void)state;
    brg__ir ir = {0};
    int a = ir_input(&ir), b = ir_input(&ir);
    int used = ir_op(&ir, "mul", IN(a, b));
    int dead = ir_op(&ir, "sin", IN(a));
    ir_op(&ir, "mul", IN(dead, used));
    ir_of(&ir, BRG__IR_ADD, NO, 1, IN(dead, b));
    ir_of(&ir, BRG__IR_ACCUMULATE, 3, 0, IN(used));
    assert_brg_ok(brg__pass_dce(&ir));
    expect_plan(&ir, "v2 f32/2 = mul(in0, in1)\n"
                     "accumulate@3(v2)\n");
    assert_brg_ok(brg__pass_dce(&ir)); /* nothing more to do */
    assert_int_equal(ir.nodes.n, 2);
    brg__ir_deinit(&ir);
}

static void test_pass_dce__effects_stay(void **state)
{
    (void)state;
    brg__ir ir = {0};
    int a = ir_input(&ir);
    int hooked = ir_of(&ir, BRG__IR_TENSOR_HOOKS, 1, 1, IN(a));
    int pre = ir_of(&ir, BRG__IR_PRE_HOOKS, 1, 1, IN(hooked));
    int called = ir_of(&ir, BRG__IR_CALL, 1, 1, IN(pre));
    ir_of(&ir, BRG__IR_POST_HOOKS, 1, 1, IN(called, pre));
    ir_of(&ir, BRG__IR_UNPACK, 2, 1, NULL, 0);
    ir_of(&ir, BRG__IR_RETAIN, 2, 0, IN(a));
    ir_of(&ir, BRG__IR_DELIVER, NO, 0, IN(a));
    ir_op(&ir, "dropout", IN(a));
    size_t n = ir.nodes.n;
    assert_brg_ok(brg__pass_dce(&ir));
    assert_int_equal(ir.nodes.n, n);
    assert_brg_ok(brg__ir_verify(&ir));
    brg__ir_deinit(&ir);
}

static void test_pass_dce__an_op_with_one_result_used_stays(void **state)
{
    (void)state;
    brg__ir ir = {0};
    int a = ir_input(&ir);
    int two = ir_node(
        &ir, (brg__ir_node){.kind = BRG__IR_ADD, .visit = NO, .lifted = NO}, 2,
        IN(a, a));
    ir_of(&ir, BRG__IR_ACCUMULATE, 0, 0, IN(two + 1));
    assert_brg_ok(brg__pass_dce(&ir));
    assert_int_equal(ir.nodes.n, 2);
    brg__ir_deinit(&ir);
}

/* Whatever a pass does wrong is found, and named. */
static void test_pass_dce__verification_names_what_is_wrong(void **state)
{
    (void)state;
    brg__ir ir = {0};
    int a = ir_input(&ir);
    int b = ir_op(&ir, "sin", IN(a));
    ir_of(&ir, BRG__IR_ACCUMULATE, 0, 0, IN(b));
    const int swapped[] = {1, 0}, without[] = {1};
    assert_brg_ok(brg__ir_arrange(&ir, swapped, 2));
    assert_brg_fails_with(brg__ir_verify(&ir), BRG_ERR_INTERNAL,
                          "node 0 reads value 1 before node 1 makes it");
    assert_brg_ok(brg__ir_arrange(&ir, swapped, 2));
    assert_brg_ok(brg__ir_verify(&ir));
    assert_brg_ok(brg__ir_arrange(&ir, without, 1));
    assert_brg_fails_with(brg__ir_verify(&ir), BRG_ERR_INTERNAL,
                          "whose node is gone");
    assert_brg_fails_with(brg__passes_run(&ir, BRG_COMPILE_BACKEND_PASSES),
                          BRG_ERR_INTERNAL, "whose node is gone");
    brg__ir_deinit(&ir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pass_dce__chains_that_lead_nowhere_go),
        cmocka_unit_test(test_pass_dce__effects_stay),
        cmocka_unit_test(test_pass_dce__an_op_with_one_result_used_stays),
        cmocka_unit_test(test_pass_dce__verification_names_what_is_wrong),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
